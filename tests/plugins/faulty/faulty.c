/*
 * A plugin that does on command what no plugin may do. Its parameters are {"do":"..."}; what it tried and lived through it
 * answers with {"errno":N}, 0 for success. Misuse of the table is "accepted" (0) or "refused" (1).
 *
 *   c++ -fexceptions -fPIC -c throw.cc
 *   cc -fexceptions -shared -fPIC -fvisibility=hidden -pthread -I plugin-api/include faulty.c throw.o -lstdc++ -o libfaulty.so
 *
 * With -DNAME="other" it is another plugin.
 */
#define _GNU_SOURCE
#include "backplane.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <math.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef NAME
#define NAME "faulty"
#endif

static const bp_host *the_host;
static bp_plugin plugin;
static bp_model model;
static bp_instance instance;

static bp_str str(const char *text) {
  bp_str s;
  s.ptr = text;
  s.len = strlen(text);
  return s;
}

static bp_code say(bp_sink sink, const char *json) {
  bp_chunk chunk;
  memset(&chunk, 0, sizeof chunk);
  chunk.struct_size = sizeof chunk;
  chunk.json = str(json);
  return the_host->push(the_host, sink, &chunk);
}

void faulty_throw(void);

static bp_code finish_with(bp_sink sink, const char *usage, double confidence) {
  bp_done done;
  memset(&done, 0, sizeof done);
  done.struct_size = sizeof done;
  done.usage_json = str(usage);
  done.confidence = confidence;
  return the_host->finish(the_host, sink, &done);
}

static void finish(bp_sink sink) {
  bp_done done;
  memset(&done, 0, sizeof done);
  done.struct_size = sizeof done;
  done.confidence = -1.0;
  the_host->finish(the_host, sink, &done);
}

static void fail_with(bp_sink sink, const bp_error *error) {
  bp_done done;
  memset(&done, 0, sizeof done);
  done.struct_size = sizeof done;
  done.error = error;
  done.confidence = -1.0;
  the_host->finish(the_host, sink, &done);
}

static int is(bp_str params, const char *what) {
  char all[128], wanted[64];
  size_t len = params.len < sizeof all - 1 ? (size_t)params.len : sizeof all - 1;
  memcpy(all, params.ptr, len);
  all[len] = 0;
  snprintf(wanted, sizeof wanted, "\"%s\"", what);
  return strstr(all, wanted) != NULL;
}

static int deeper(volatile char *above) {
  volatile char frame[4096];
  frame[0] = above[0];
  return deeper(frame) + frame[0];
}

static void nap(long ms) {
  struct timespec pause;
  pause.tv_sec = ms / 1000;
  pause.tv_nsec = ms % 1000 * 1000000;
  nanosleep(&pause, NULL);
}

/* Compiled with -DHANG="open", its model_open does not return, and so on. */
static void hang(const char *where) {
#ifdef HANG
  if (strcmp(HANG, where) == 0) nap(3600 * 1000);
#else
  (void)where;
#endif
}

static int tried(int failed) { return failed ? errno : 0; }

static int try_connect(void) {
  struct sockaddr_in address;
  int s = socket(AF_INET, SOCK_STREAM, 0), result;
  if (s < 0) return errno;
  memset(&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_port = htons(9);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  result = tried(connect(s, (struct sockaddr *)&address, sizeof address) != 0);
  close(s);
  /* Nobody listens: that the question reached the network is all that is asked. */
  return result == ECONNREFUSED ? 0 : result;
}

/* A socket of no file: who knows its name can connect to it, across everything but a network namespace. */
static int try_abstract(void) {
  struct sockaddr_un address;
  int s = socket(AF_UNIX, SOCK_STREAM, 0), result;
  if (s < 0) return errno;
  memset(&address, 0, sizeof address);
  address.sun_family = AF_UNIX;
  snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "backplane-faulty-%d", (int)getppid());
  result = tried(connect(s, (struct sockaddr *)&address, sizeof address) != 0);
  close(s);
  return result;
}

static int try_exec(void) {
  /* A program that is not there is looked for, if one may look. */
  char *none[] = {NULL};
  return tried(syscall(SYS_execve, "/bin/does-not-exist", none, none) != 0) == ENOENT ? 0 : errno;
}

static int try_read_memory(void) {
  char byte;
  struct iovec here = {&byte, 1}, there = {(void *)(size_t)0x400000, 1};
  if (process_vm_readv(getppid(), &here, 1, &there, 1, 0) == 1) return 0;
  /* Nothing is mapped there: it was looked at. */
  return errno == EFAULT ? 0 : errno;
}

static int try_fork(void) {
  pid_t child = fork();
  if (child < 0) return errno;
  if (child == 0) _exit(0);
  waitpid(child, NULL, 0);
  return 0;
}

static int try_ptrace(void) {
  if (ptrace(PTRACE_SEIZE, getppid(), NULL, NULL) != 0) return errno;
  ptrace(PTRACE_DETACH, getppid(), NULL, NULL);
  return 0;
}

static int try_open(const char *path, int flags) {
  int fd = open(path, flags, 0600);
  if (fd < 0) return errno;
  close(fd);
  return 0;
}

/* What stands after "at" in the parameters, without what JSON would escape. */
static const char *at_of(bp_str params) {
  static char at[256];
  const char *from = params.ptr, *end = params.ptr + params.len;
  size_t len = 0;
  for (; from + 6 < end && memcmp(from, "\"at\":\"", 6) != 0; from++) {}
  for (from += 6; from < end && *from != '"' && len + 1 < sizeof at; from++) at[len++] = *from;
  at[len] = 0;
  return at;
}

static int try_port(const char *port, int protocol, int fast) {
  struct sockaddr_in address;
  int s = socket(AF_INET, SOCK_STREAM, protocol), result;
  if (s < 0) return errno;
  memset(&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_port = htons((unsigned short)atoi(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fast) result = tried(sendto(s, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&address, sizeof address) != 1);
  else result = tried(connect(s, (struct sockaddr *)&address, sizeof address) != 0);
  close(s);
  return result;
}

/* Under another name, and gone. */
static int try_move(const char *path) {
  char moved[300];
  snprintf(moved, sizeof moved, "%s.moved", path);
  if (rename(path, moved) != 0) return errno;
  return tried(unlink(moved) != 0);
}

/* A file of the user's whom the host runs as, made by the test. */
static const char *own_file(void) {
  static char path[64];
  snprintf(path, sizeof path, "/tmp/backplane-faulty-own-%d", (int)getppid());
  return path;
}

/* Locks the file that the parameters name, "path" last of them: for that it need only be open for reading. */
static int try_lock(bp_str params) {
  static const char key[] = "\"path\":\"";
  char path[1024];
  const char *at = memmem(params.ptr, params.len, key, sizeof key - 1);
  size_t len;
  int fd, result;
  if (at == NULL) return EINVAL;
  at += sizeof key - 1;
  len = params.len - (size_t)(at - params.ptr);
  if (sizeof path <= len) return EINVAL;
  memcpy(path, at, len);
  path[len] = 0;
  *strchrnul(path, '"') = 0;
  fd = open(path, O_RDONLY);
  if (fd < 0) return errno;
  result = tried(flock(fd, LOCK_EX | LOCK_NB) != 0);
  close(fd);
  return result;
}

static int try_watch(void) {
  int watch = inotify_init1(0), result;
  if (watch < 0) return errno;
  result = tried(inotify_add_watch(watch, "/tmp", IN_CREATE | IN_OPEN) < 0);
  close(watch);
  return result;
}

/* To what it is anyway: that it may be set is all that is asked. */
static int try_priority(void) {
  int now = getpriority(PRIO_PROCESS, (id_t)getppid());
  return tried(setpriority(PRIO_PROCESS, (id_t)getppid(), now) != 0);
}

static int try_affinity(void) {
  cpu_set_t now;
  if (sched_getaffinity(getppid(), sizeof now, &now) != 0) return errno;
  return tried(sched_setaffinity(getppid(), sizeof now, &now) != 0);
}

/* A signal by way of a descriptor whose owner the host is. */
static int try_sigio(void) {
  int ends[2], result;
  if (pipe(ends) != 0) return errno;
  result = tried(fcntl(ends[0], F_SETOWN, getppid()) != 0);
  close(ends[0]);
  close(ends[1]);
  return result;
}

/* The same call by its number in the x32 ABI, for which a filter has to look. Kernels without it say ENOSYS. */
static int try_x32(void) {
#ifdef __x86_64__
  return tried(syscall(0x40000000 | SYS_getpid) < 0);
#else
  return EPERM;
#endif
}

static int try_descriptors(void) {
  int n;
  for (n = 0; n < 2000; n++)
    if (dup(0) < 0) return errno;
  return 0;
}

static int try_memory(void) {
  /* 64 GiB that are asked for, none that is touched. */
  void *all = mmap(NULL, (size_t)64 << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return errno;
  munmap(all, (size_t)64 << 30);
  return 0;
}

/* What is allocated is touched, a MiB at a time, half a GiB of them. */
static int try_leak(void) {
  int n;
  for (n = 0; n < 512; n++) {
    char *more = malloc(1 << 20);
    if (more == NULL) return ENOMEM;
    memset(more, 1, 1 << 20);
  }
  return 0;
}

/* The same in memory that could be shared, which RLIMIT_DATA does not count. */
static int try_leak_shared(void) {
  int n;
  for (n = 0; n < 512; n++) {
    char *more = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (more == MAP_FAILED) return errno;
    memset(more, 1, 1 << 20);
  }
  /* Whoever looks now and then has to see it. */
  sleep(1);
  return 0;
}

static void *sleeper(void *arg) {
  (void)arg;
  pause();
  return NULL;
}

/* 2000 threads that sleep; then it waits for what comes of it. */
static int try_threads(void) {
  pthread_attr_t small;
  pthread_t thread;
  int n, e;
  struct timespec second = {1, 0};
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  for (n = 0; n < 2000; n++)
    if ((e = pthread_create(&thread, &small, sleeper, NULL)) != 0) return e;
  nanosleep(&second, NULL);
  return 0;
}

static volatile int spinning;

static void *spin(void *arg) {
  (void)arg;
  while (spinning) continue;
  return NULL;
}

/* Four threads for each processor, which do nothing, until nobody waits for the answer. */
static int spin_on_all(const bp_request *r) {
  pthread_t threads[256];
  long n, all = 4 * sysconf(_SC_NPROCESSORS_ONLN);
  if (256 < all) all = 256;
  spinning = 1;
  for (n = 0; n < all; n++)
    if (pthread_create(&threads[n], NULL, spin, NULL) != 0) break;
  say(r->sink, "{\"spins\":true}");
  while (!*r->cancel) nap(10);
  spinning = 0;
  while (0 < n) pthread_join(threads[--n], NULL);
  return 0;
}

static void touch_what_is_gone(void) {
  int fd = memfd_create("gone", 0);
  volatile char *at;
  ftruncate(fd, 4096);
  at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ftruncate(fd, 0);
  at[0] = 1;
}

static void *exit_alone(void *arg) {
  (void)arg;
  _exit(3);
}

static int code(bp_code answered) { return answered == BP_OK ? 0 : 1; }

/* The handle of somebody else's request, or of nobody's: 0 if the host took it for anything. */
static int try_handle(bp_sink handle) {
  bp_chunk chunk;
  int refused;
  memset(&chunk, 0, sizeof chunk);
  chunk.struct_size = sizeof chunk;
  chunk.json = str("{\"of\":\"somebody else\"}");
  refused = code(the_host->push(the_host, handle, &chunk));
  refused &= code(finish_with(handle, "", -1.0));
  refused &= code(the_host->buf_release(the_host, handle));
  return refused;
}

/* Handles near ours, and of others: 0 if the host took any of them. */
static int try_handles(bp_sink sink) {
  bp_sink guess[] = {0, sink + 1, sink - 1, sink ^ ((uint64_t)1 << 32), (uint64_t)1 << 60, UINT64_MAX};
  size_t n;
  int refused = 1;
  for (n = 0; n < sizeof guess / sizeof guess[0]; n++) refused &= try_handle(guess[n]);
  return refused;
}

/* A tensor that reaches beyond the buffer it says it lies in. */
static int try_outside(bp_sink sink) {
  bp_chunk chunk;
  bp_tensor tensor;
  bp_buf buffer;
  void *data;
  int64_t shape[1] = {1 << 20};
  if (the_host->buf_alloc(the_host, BP_DEV_CPU, 0, 4096, 0, &buffer, &data) != BP_OK) return 0;
  memset(&tensor, 0, sizeof tensor);
  tensor.struct_size = sizeof tensor;
  tensor.name = str("far");
  tensor.dev_type = BP_DEV_CPU;
  tensor.code = BP_DT_UINT;
  tensor.bits = 8;
  tensor.lanes = 1;
  tensor.ndim = 1;
  tensor.shape = shape;
  tensor.nbytes = 1 << 20;
  tensor.data = data;
  tensor.buffer = buffer;
  memset(&chunk, 0, sizeof chunk);
  chunk.struct_size = sizeof chunk;
  chunk.tensors = &tensor;
  chunk.n_tensors = 1;
  chunk.stride = sizeof tensor;
  return code(the_host->push(the_host, sink, &chunk));
}

static void garbage(void) {
  /* The main connection is one of these. A frame that is none, and a frame with the number of a request nobody has. */
  char noise[64];
  int fd;
  memset(noise, 0xA5, sizeof noise);
  for (fd = 3; fd < 16; fd++) {
    if (write(fd, noise, sizeof noise) < 0) continue;
  }
}

/* On the main connection, which is the standard input, too. */
static void packet(const void *bytes, size_t len, int arena) {
  struct iovec piece = {(void *)(size_t)bytes, len};
  char space[CMSG_SPACE(sizeof(int))];
  struct msghdr message;
  memset(&message, 0, sizeof message);
  memset(space, 0, sizeof space);
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (arena >= 0) {
    struct cmsghdr *rights;
    message.msg_control = space;
    message.msg_controllen = sizeof space;
    rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &arena, sizeof arena);
  }
  sendmsg(0, &message, MSG_NOSIGNAL);
}

/* A frame in memory that can still be changed when it has been checked. */
static void unsealed(void) {
  int arena = memfd_create("arena", MFD_ALLOW_SEALING);
  ftruncate(arena, 1 << 20);
  packet("\1", 1, arena);
}

/* A frame whose sealed memory says that it has more pieces than there are bytes. */
static void sealed_noise(void) {
  int arena = memfd_create("arena", MFD_ALLOW_SEALING);
  char noise[4096];
  memset(noise, 0xff, sizeof noise);
  noise[0] = 2;
  if (write(arena, noise, sizeof noise) < 0) return;
  fcntl(arena, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
  packet("\1", 1, arena);
}

static void oversized(void) {
  static char much[100000];
  packet(much, sizeof much, -1);
}

static size_t number(unsigned char *at, uint64_t value, size_t bytes) {
  size_t i;
  for (i = 0; i < bytes; i++) at[i] = (unsigned char)(value >> (8 * i));
  return bytes;
}

/* Finish (3) or push (2) of a request, on the main connection: tag, id, then no error, no usage, 0.0, or no JSON and no
 * tensors; the last byte says "inline". */
static void forged(unsigned char tag, uint64_t id) {
  unsigned char frame[64];
  size_t len = 0;
  memset(frame, 0, sizeof frame);
  len += number(frame + len, tag, 1);
  len += number(frame + len, id, 8);
  len += tag == 3 ? 1 + 8 + 8 : 8 + 4;
  frame[len++] = 0;
  send(0, frame, len, MSG_NOSIGNAL);
}

/* The first word of the conversation (0), in the middle of it. */
static void again(void) {
  unsigned char frame[9] = {0};
  frame[1] = 6;
  packet(frame, sizeof frame, -1);
}

/* A piece of this request with a tensor of 16 KiB, of which one byte is sent: what lies behind it is the host's. */
static void forged_length(const bp_request *r) {
  unsigned char frame[512];
  size_t len = 0, pad;
  memset(frame, 0, sizeof frame);
  len += number(frame + len, 2, 1);           /* Push */
  len += number(frame + len, r->id, 8);
  len += number(frame + len, 0, 8);           /* json */
  len += number(frame + len, 1, 4);           /* tensors */
  len += number(frame + len, sizeof(bp_tensor), 4);
  len += number(frame + len, 0, 4);           /* flags */
  len += number(frame + len, 1, 8);           /* name */
  frame[len++] = 'x';
  len += number(frame + len, BP_DEV_CPU, 4);
  len += number(frame + len, 0, 4);           /* dev_id */
  len += number(frame + len, BP_DT_UINT, 1);
  len += number(frame + len, 8, 1);           /* bits */
  len += number(frame + len, 1, 2);           /* lanes */
  len += number(frame + len, 1, 4);           /* ndim */
  len += number(frame + len, 1, 1);           /* a shape */
  len += number(frame + len, 1, 4);
  len += number(frame + len, 16384, 8);
  len += number(frame + len, 0, 1);           /* no strides */
  len += number(frame + len, 16384, 8);       /* nbytes */
  len += number(frame + len, 1, 1);           /* data */
  len += number(frame + len, 0, 1);           /* lead */
  len += number(frame + len, 1, 8);
  pad = (128 - len % 64) % 64;
  len += pad + 1;
  len += number(frame + len, 0, 1);           /* no buffer */
  len += number(frame + len, 0, 1);           /* inline */
  packet(frame, len, -1);
}

/* Sealed, and never written: it would be the host that has it allocated. */
static void sparse(void) {
  int arena = memfd_create("arena", MFD_ALLOW_SEALING);
  ftruncate(arena, (off_t)1 << 27);
  fcntl(arena, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
  packet("\1", 1, arena);
}

static void forever(int number) {
  (void)number;
  for (;;) pause();
}

/* Questions without end (11: the licence's bytes) on the main connection; and nobody who would read an answer. */
static void deaf(void) {
  unsigned char frame[11] = {11};
  signal(SIGUSR1, forever);
  syscall(SYS_tgkill, getpid(), getpid(), SIGUSR1);
  for (;;) send(0, frame, sizeof frame, MSG_NOSIGNAL);
}

static bp_ticket the_ticket;

/* Threads (5), which it never gives back, so that each question after the first has to wait: a day long. */
static int greedy(void) {
  unsigned char frame[30] = {5};
  uint32_t want = 1024;
  struct timespec now;
  int64_t deadline;
  uint64_t ask;
  clock_gettime(CLOCK_MONOTONIC, &now);
  deadline = ((int64_t)now.tv_sec + 86400) * 1000000000;
  memcpy(frame + 9, &the_ticket, 8);
  memcpy(frame + 17, &want, 4);
  memcpy(frame + 21, &deadline, 8);
  for (ask = 1; ask <= 5000; ask++) {
    memcpy(frame + 1, &ask, 8);
    if (send(0, frame, sizeof frame, MSG_NOSIGNAL) < 0) return errno;
  }
  return 0;
}

/* Calls of echo, each from inside a callback of another, which is allowed. */
struct chain {
  bp_sink sink;
  bp_req parent;
  int left, open, error;
};

static bp_code chain_chunk(void *ctx, const bp_chunk *chunk);
static void chain_done(void *ctx, const bp_done *done);

static void chain_next(struct chain *chain) {
  const bp_call_1 *calls = the_host->get_extension(the_host, str(BP_EXT_CALL_1));
  bp_call call;
  bp_req handle;
  bp_code e = BP_UNIMPLEMENTED;
  if (__atomic_fetch_sub(&chain->left, 1, __ATOMIC_SEQ_CST) <= 0) return;
  memset(&call, 0, sizeof call);
  call.struct_size = sizeof call;
  call.parent = chain->parent;
  call.capability = str("echo");
  call.model = str("echo");
  call.params_json = str("{\"text\":\"one two\",\"chunks\":2}");
  call.ctx = chain;
  call.on_chunk = chain_chunk;
  call.on_done = chain_done;
  __atomic_add_fetch(&chain->open, 1, __ATOMIC_SEQ_CST);
  if (calls != NULL) e = calls->start(the_host, &call, &handle);
  if (e == BP_OK) return;
  chain->error = e;
  __atomic_sub_fetch(&chain->open, 1, __ATOMIC_SEQ_CST);
}

static void chain_closed(struct chain *chain) {
  char json[64];
  if (__atomic_sub_fetch(&chain->open, 1, __ATOMIC_SEQ_CST) != 0) return;
  snprintf(json, sizeof json, "{\"errno\":%d}", chain->error);
  say(chain->sink, json);
  finish(chain->sink);
  free(chain);
}

static bp_code chain_chunk(void *ctx, const bp_chunk *chunk) {
  (void)chunk;
  chain_next(ctx);
  return BP_OK;
}

static void chain_done(void *ctx, const bp_done *done) {
  struct chain *chain = ctx;
  if (done->error != NULL) chain->error = done->error->code;
  chain_next(chain);
  chain_closed(chain);
}

static int time_left(const bp_request *r) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return r->deadline_ns == 0 ? 0 : (int)((r->deadline_ns - (int64_t)now.tv_sec * 1000000000 - now.tv_nsec) / 1000000);
}

static void serve(const bp_request *r) {
  char json[128];
  bp_str p = r->params_json;
  volatile char top = 0;
  int e = -1;
  if (is(p, "segv")) *(volatile int *)8 = 1;
  if (is(p, "abort")) abort();
  if (is(p, "exit")) exit(0);
  if (is(p, "overflow")) deeper(&top);
  if (is(p, "fpe")) snprintf(json, sizeof json, "%d", 7 / (int)top);
  if (is(p, "ill")) __builtin_trap();
  if (is(p, "bus")) touch_what_is_gone();
  if (is(p, "throw")) faulty_throw();
  if (is(p, "kill-self")) kill(getpid(), SIGKILL);
  if (is(p, "exit-thread")) {
    pthread_t thread;
    pthread_create(&thread, NULL, exit_alone, NULL);
    nap(3600 * 1000);
  }
  if (is(p, "unsealed")) unsealed();
  if (is(p, "sealed-noise")) sealed_noise();
  if (is(p, "oversized")) oversized();
  if (is(p, "sparse")) sparse();
  if (is(p, "deaf")) deaf();
  if (is(p, "loop"))
    for (;;) top = 1;
  if (is(p, "deadlock")) {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    for (;;) pthread_mutex_lock(&mutex);
  }
  if (is(p, "garbage")) garbage();
  if (is(p, "forged-finish")) forged(3, (uint64_t)1 << 60);
  if (is(p, "forged-push")) forged(2, (uint64_t)1 << 60);
  if (is(p, "out-of-order")) again();
  if (is(p, "forged-length")) forged_length(r);
  if (is(p, "hang")) nap(3600 * 1000);
  if (is(p, "stream")) {
    int n;
    for (n = 0; n < 100000; n++) {
      snprintf(json, sizeof json, "{\"pid\":%d,\"sink\":\"%llu\"}", (int)getpid(), (unsigned long long)r->sink);
      if (say(r->sink, json) == BP_CANCELLED) break;
      nap(10);
    }
  }
  if (is(p, "garbage") || is(p, "forged-finish") || is(p, "forged-push") || is(p, "unsealed") || is(p, "sealed-noise") ||
      is(p, "sparse") || is(p, "oversized") || is(p, "forged-length") || is(p, "out-of-order"))
    nap(3600 * 1000);
  if (is(p, "shadow")) e = try_open("/etc/shadow", O_RDONLY);
  if (is(p, "write-tmp")) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/backplane-faulty-%d", (int)getppid());
    e = try_open(path, O_WRONLY | O_CREAT);
  }
  if (is(p, "parent-environ")) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/environ", (int)getppid());
    e = try_open(path, O_RDONLY);
  }
  if (is(p, "read-own")) e = try_open(own_file(), O_RDONLY);
  if (is(p, "chmod")) e = tried(chmod(own_file(), 0666) != 0);
  if (is(p, "utimes")) e = tried(utimensat(AT_FDCWD, own_file(), NULL, 0) != 0);
  if (is(p, "truncate")) e = tried(truncate(own_file(), 0) != 0);
  if (is(p, "cut")) e = try_open(own_file(), O_RDONLY | O_TRUNC);
  if (is(p, "lock")) e = try_lock(p);
  if (is(p, "read-at")) e = try_open(at_of(p), O_RDONLY);
  if (is(p, "write-at")) e = try_open(at_of(p), O_WRONLY | O_CREAT | O_TRUNC);
  if (is(p, "move-at")) e = try_move(at_of(p));
  if (is(p, "connect-at")) e = try_port(at_of(p), 0, 0);
  if (is(p, "mptcp-at")) e = try_port(at_of(p), 262, 0);
  if (is(p, "fast-at")) e = try_port(at_of(p), 0, 1);
  if (is(p, "watch")) e = try_watch();
  if (is(p, "priority")) e = try_priority();
  if (is(p, "affinity")) e = try_affinity();
  if (is(p, "sigio")) e = try_sigio();
  if (is(p, "x32")) e = try_x32();
  if (is(p, "greedy")) e = greedy();
  if (is(p, "outlive")) e = tried(prctl(PR_SET_PDEATHSIG, 0) != 0);
  if (is(p, "connect")) e = try_connect();
  if (is(p, "ptrace")) e = try_ptrace();
  if (is(p, "kill-parent")) e = tried(kill(getppid(), 0) != 0);
  if (is(p, "fork")) e = try_fork();
  if (is(p, "memory")) e = try_memory();
  if (is(p, "thread")) {
    pthread_t thread;
    e = pthread_create(&thread, NULL, (void *(*)(void *))abs, NULL);
    if (e == 0) pthread_join(thread, NULL);
  }
  if (is(p, "exec")) e = try_exec();
  if (is(p, "read-memory")) e = try_read_memory();
  if (is(p, "abstract")) e = try_abstract();
  if (is(p, "leak")) e = try_leak();
  if (is(p, "leak-shared")) e = try_leak_shared();
  if (is(p, "threads")) e = try_threads();
  if (is(p, "spin")) e = spin_on_all(r);
  if (is(p, "chdir")) e = tried(chdir("/proc") != 0);
  if (is(p, "setenv")) e = tried(setenv("BACKPLANE_FAULTY", "was here", 1) != 0);
  if (is(p, "setlocale")) e = tried(setlocale(LC_ALL, "C.UTF-8") == NULL);
  if (is(p, "locale")) e = strcmp(setlocale(LC_ALL, NULL), "C") != 0;
  if (is(p, "handler")) e = tried(signal(SIGUSR2, SIG_IGN) == SIG_ERR);
  if (is(p, "handles")) e = try_handles(r->sink);
  if (is(p, "handle-at")) e = try_handle(strtoull(at_of(p), NULL, 10));
  if (is(p, "outside")) e = try_outside(r->sink);
  if (is(p, "log")) {
    int n;
    for (n = 0; n < 20000; n++) the_host->log(the_host, 2, str("again and again"), str("{}"));
    e = 0;
  }
  if (is(p, "print")) {
    int n;
    for (n = 0; n < 20000; n++) fprintf(stderr, "again and again\n"), printf("again and again\n");
    e = 0;
  }
  if (is(p, "lies")) {
    say(r->sink, "{\"errno\":0}");
    finish_with(r->sink, "{\"prompt_tokens\":-7,\"completion_tokens\":1e300}", NAN);
    return;
  }
  if (is(p, "fatal")) {
    bp_error error;
    memset(&error, 0, sizeof error);
    error.struct_size = sizeof error;
    error.code = BP_INTERNAL;
    error.sub = BP_SUB_FATAL;
    error.message = str("the driver says the same about everything from now on");
    fail_with(r->sink, &error);
    return;
  }
  if (is(p, "noisy-error")) {
    static char noise[1 << 20];
    bp_error error;
    memset(noise, 0xFE, sizeof noise);
    memset(&error, 0, sizeof error);
    error.struct_size = sizeof error;
    error.code = 4711;
    error.sub = -1;
    error.retry_after_ms = UINT32_MAX;
    error.message.ptr = error.reason.ptr = error.details_json.ptr = noise;
    error.message.len = error.reason.len = error.details_json.len = sizeof noise;
    fail_with(r->sink, &error);
    return;
  }
  if (is(p, "many-tokens")) {
    say(r->sink, "{\"errno\":0}");
    finish_with(r->sink, "{\"prompt_tokens\":9000000000000000000,\"completion_tokens\":9000000000000000000}", 99.0);
    return;
  }
  if (is(p, "finish-twice")) {
    int again;
    say(r->sink, "{\"errno\":1}");
    finish(r->sink);
    again = finish_with(r->sink, "", -1.0);
    if (code(again) == 0 || code(say(r->sink, "{\"late\":true}")) == 0) abort();
    return;
  }
  if (is(p, "chain")) {
    struct chain *chain = calloc(1, sizeof *chain);
    chain->sink = r->sink;
    chain->parent = r->id;
    chain->left = 6;
    chain->open = 1;
    chain_next(chain);
    chain_closed(chain);
    return;
  }
  if (is(p, "time-left")) e = time_left(r);
  if (is(p, "descriptors")) e = try_descriptors();
  if (is(p, "environment")) e = getenv("PATH") == NULL ? ENOENT : 0;
  if (is(p, "pid")) e = (int)getpid();
  snprintf(json, sizeof json, "{\"errno\":%d}", e);
  say(r->sink, json);
  finish(r->sink);
}

static bp_code i_submit(bp_instance *self, const bp_request *requests, uint32_t n, uint32_t stride, bp_err err) {
  uint32_t row;
  (void)self;
  (void)err;
  for (row = 0; row < n; row++) serve((const bp_request *)(const void *)((const char *)requests + row * (size_t)stride));
  return BP_OK;
}

static void i_destroy(bp_instance *self) {
  (void)self;
  hang("destroy");
}

static bp_code i_quiesce(bp_instance *self, int64_t deadline_ns) {
  (void)self;
  (void)deadline_ns;
  hang("quiesce");
  return BP_OK;
}

static bp_code i_health(bp_instance *self, int32_t *state, bp_err err) {
  (void)self;
  (void)err;
  hang("health");
  *state = 4711;
  return BP_OK;
}

/* Names without end. */
static bp_code stats(bp_model *self, void *ctx, void (*each)(void *ctx, bp_str name, double value)) {
  int n;
  char name[32];
  (void)self;
  for (n = 0; n < 100000; n++) {
    snprintf(name, sizeof name, "figure_%d", n);
    each(ctx, str(name), NAN);
  }
  return BP_OK;
}

static const void *m_extension(bp_model *self, bp_str id) {
  static const bp_stats_1 table = {sizeof table, 0, stats};
  (void)self;
  return id.len == strlen(BP_EXT_STATS_1) && memcmp(id.ptr, BP_EXT_STATS_1, id.len) == 0 ? &table : NULL;
}

static bp_code m_instance_new(bp_model *self, const bp_placement *placement, bp_instance **out, bp_err err) {
  (void)self;
  (void)err;
  hang("instance");
  the_ticket = placement->ticket;
  instance.struct_size = sizeof instance;
  instance.submit = i_submit;
  instance.quiesce = i_quiesce;
  instance.destroy = i_destroy;
  instance.health = i_health;
  *out = &instance;
  return BP_OK;
}

static void m_close(bp_model *self) {
  (void)self;
  hang("close");
}

static bp_code p_init(bp_plugin *self, bp_str config_json, bp_err err) {
  (void)self;
  (void)config_json;
  (void)err;
#ifdef INIT
  if (strcmp(INIT, "segv") == 0) *(volatile int *)8 = 1;
  if (strcmp(INIT, "error") == 0) return BP_BAD_STATE;
#endif
  return BP_OK;
}

static bp_code p_bid(bp_plugin *self, const bp_query *query, bp_bid *out) {
  (void)self;
  (void)query;
  hang("bid");
  /* More than there is to bid, for no time and no memory. */
  out->score = 65535;
  out->quality = 65535;
  return BP_OK;
}

static bp_code p_model_open(bp_plugin *self, bp_str model_json, bp_model **out, bp_err err) {
  (void)self;
  (void)model_json;
  (void)err;
  hang("open");
  model.struct_size = sizeof model;
  model.exec_class = BP_CONCURRENT;
#ifdef HANG
  /* Others are not asked to finish what they have. */
  if (strcmp(HANG, "quiesce") == 0) model.exec_class = BP_CONTINUOUS;
#endif
  model.max_inflight = 4;
  model.max_batch = 1;
  model.cancel_grace_ms = 200;
  model.instance_new = m_instance_new;
  model.close = m_close;
  model.get_extension = m_extension;
  *out = &model;
  return BP_OK;
}

static void p_shutdown(bp_plugin *self) { (void)self; }

#ifdef CONSTRUCTOR
__attribute__((constructor)) static void early(void) {
  if (strcmp(CONSTRUCTOR, "exit") == 0) exit(0);
  if (strcmp(CONSTRUCTOR, "segv") == 0) *(volatile int *)8 = 1;
  if (strcmp(CONSTRUCTOR, "hang") == 0) nap(3600 * 1000);
}
#endif

#ifdef WRONG_LAYOUT
/* What a library of Rust has whose abi_stable is not the host's. */
__attribute__((visibility("default"))) const char _1as_0lib_1header_0root_bmodule_bloader[4096] = "another layout";
#endif

__attribute__((visibility("default"))) bp_code bp_entry_v1(const bp_host *host, bp_plugin **out) {
  if (host == NULL || out == NULL) return BP_NULL_ARGUMENT;
  the_host = host;
  plugin.struct_size = sizeof plugin;
  plugin.id = str("com.example." NAME);
  plugin.version = str("1.0.0");
  plugin.init = p_init;
  plugin.bid = p_bid;
  plugin.model_open = p_model_open;
  plugin.shutdown = p_shutdown;
  *out = &plugin;
  return BP_OK;
}

#define MANIFEST                                       \
  "id = \"com.example." NAME "\"\n"                     \
  "version = \"1.0.0\"\n"                               \
  "abi = \"1.0\"\n"                                     \
  "capabilities = [\"com.example." NAME ".do\"]\n"      \
  "models = [{ name = \"" NAME "\" }]\n"

typedef struct manifest_note {
  uint32_t name_size, description_size, type;
  char name[12];
  char description[(sizeof MANIFEST + 3) / 4 * 4];
} manifest_note;

__attribute__((section(BP_NOTE_SECTION), used, aligned(4))) static const manifest_note manifest = {
    sizeof BP_NOTE_NAME, (sizeof MANIFEST + 3) / 4 * 4, BP_NOTE_MANIFEST, BP_NOTE_NAME, MANIFEST};
