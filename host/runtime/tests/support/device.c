/*
 * A plugin with a made-up device, for tests of bp.device/1: the device's memory is a mapping that no processor may read or
 * write (PROT_NONE), and the device itself goes by /proc/self/mem. Whoever follows an address of it by mistake is ended by
 * SIGSEGV. Its one capability says what it does; a word among the parameters, how:
 *
 *   device.make   answers with the tensor `x`, on the device where the caller takes it there. `always` leaves it there
 *                 whoever asks; `lose` loses the device and all that was made on it, `full` fails for want of its memory
 *   device.take   answers with where it found `x` and what it read there. With TAKES=1 it knows the device
 *   device.relay  has another plugin make `x` and hands it to the plugin that is named among the parameters: `a.device`,
 *                 `a.processor` or, with `itself`, has the host read it; `lose` loses the device in between; `keep` answers
 *                 with `x`
 *
 *   cc -std=c99 -shared -fPIC -fvisibility=hidden -I plugin-api/include -DID='"com.example.x"' -DCAPABILITY='"device.make"' ...
 */
#define _GNU_SOURCE /* MAP_ANONYMOUS, memmem */
#include "backplane.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef TAKES
#define TAKES 0
#endif

#define DEVICE BP_DEV_EXT
#define DEVICE_ID 3
#define EVENT 77
#define PAGE 4096
/* Where `x` begins in its memory, and what it holds. */
#define OFFSET 16
static const char CONTENT[] = "on the device!!!";
static const int64_t SHAPE[] = {2, 8};

static const bp_host *the_host;
static bp_plugin plugin;
static bp_model model;
static bp_stats_1 stats;
static bp_device_inputs_1 inputs;
/* Memory that was made and given back; how often it was copied by its owner; which of the device's lives it is. */
static int32_t made, released, copied, life;

/* An instance, whose device may have failed. */
typedef struct seat {
  bp_instance table;
  int32_t broken;
} seat;

/* Memory of the device, in one of its lives. */
typedef struct memory {
  char *at;
  int32_t life;
} memory;

static bp_str str(const char *text) {
  bp_str s;
  s.ptr = text;
  s.len = strlen(text);
  return s;
}

static int is(bp_str text, const char *other) {
  return text.len == strlen(other) && memcmp(text.ptr, other, text.len) == 0;
}

static int says(const bp_request *request, const char *word) {
  return memmem(request->params_json.ptr, request->params_json.len, word, strlen(word)) != NULL;
}

/* The device reads and writes its memory. */
static int access_device(char *at, void *bytes, size_t n, int write) {
  int file = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
  ssize_t done = write ? pwrite(file, bytes, n, (off_t)(size_t)at) : pread(file, bytes, n, (off_t)(size_t)at);
  close(file);
  return done == (ssize_t)n;
}

static bp_error error_of(bp_code code, int32_t sub, const char *reason, const char *message) {
  bp_error error;
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;
  error.code = code;
  error.sub = sub;
  error.reason = str(reason);
  error.message = str(message);
  return error;
}

static bp_code read_memory(void *ctx, uint64_t offset, uint64_t nbytes, void *to, bp_err err) {
  memory *self = (memory *)ctx;
  if (self->life != __atomic_load_n(&life, __ATOMIC_SEQ_CST)) {
    bp_error error = error_of(BP_UNAVAILABLE, BP_SUB_NONE, "device_lost", "what was on the device is lost with it");
    the_host->set_error(the_host, err, &error);
    return BP_UNAVAILABLE;
  }
  __atomic_add_fetch(&copied, 1, __ATOMIC_SEQ_CST);
  return access_device(self->at + offset, to, (size_t)nbytes, 0) ? BP_OK : BP_INTERNAL;
}

static void release_memory(void *ctx) {
  memory *self = (memory *)ctx;
  munmap(self->at, PAGE);
  free(self);
  __atomic_add_fetch(&released, 1, __ATOMIC_SEQ_CST);
}

static const bp_device_1 *device(void) { return (const bp_device_1 *)the_host->get_extension(the_host, str(BP_EXT_DEVICE_1)); }

static void finish(const bp_request *request, const bp_error *error) {
  bp_done done;
  memset(&done, 0, sizeof done);
  done.struct_size = sizeof done;
  done.confidence = -1.0;
  done.error = error;
  done.usage_json = str("{\"prompt_tokens\":5,\"completion_tokens\":0}");
  the_host->finish(the_host, request->sink, &done);
}

/* A piece; a refusal of the host's is the end. */
static void answer(const bp_request *request, const char *json, const bp_tensor *tensor) {
  bp_chunk chunk;
  bp_code code;
  memset(&chunk, 0, sizeof chunk);
  chunk.struct_size = sizeof chunk;
  chunk.json = str(json);
  chunk.tensors = tensor;
  chunk.n_tensors = tensor != NULL;
  chunk.stride = sizeof *tensor;
  code = the_host->push(the_host, request->sink, &chunk);
  if (code != BP_OK) {
    bp_error error = error_of(code > 0 ? code : BP_INTERNAL, BP_SUB_NONE, "not_taken", "the host did not take the piece");
    finish(request, &error);
  } else {
    finish(request, NULL);
  }
}

static bp_tensor tensor_of(const char *name) {
  bp_tensor tensor;
  memset(&tensor, 0, sizeof tensor);
  tensor.struct_size = sizeof tensor;
  tensor.name = str(name);
  tensor.dev_type = BP_DEV_CPU;
  tensor.code = BP_DT_UINT;
  tensor.bits = 8;
  tensor.lanes = 1;
  tensor.ndim = 2;
  tensor.shape = SHAPE;
  tensor.nbytes = 16;
  return tensor;
}

static void make(seat *self, const bp_request *request) {
  bp_tensor tensor = tensor_of("x");
  bp_device_memory wrapped;
  memory *mine;
  char json[128];
  int stays = (request->flags & BP_REQUEST_DEVICE) != 0 || says(request, "always");
  if (says(request, "lose")) {
    __atomic_add_fetch(&life, 1, __ATOMIC_SEQ_CST);
    self->broken = 1;
  }
  if (self->broken) {
    bp_error error = error_of(BP_UNAVAILABLE, BP_SUB_FATAL, "device_lost", "the device is lost");
    finish(request, &error);
    return;
  }
  if (says(request, "full")) {
    bp_error error = error_of(BP_RESOURCE_EXHAUSTED, BP_SUB_NONE, "device_memory", "the device has no memory left");
    finish(request, &error);
    return;
  }
  if (!stays || device() == NULL) {
    tensor.data = (void *)(size_t)CONTENT;
    answer(request, "{\"at\":\"processor\"}", &tensor);
    return;
  }
  mine = (memory *)malloc(sizeof *mine);
  mine->life = __atomic_load_n(&life, __ATOMIC_SEQ_CST);
  mine->at = (char *)mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  access_device(mine->at + OFFSET, (void *)(size_t)CONTENT, sizeof CONTENT - 1, 1);
  __atomic_add_fetch(&made, 1, __ATOMIC_SEQ_CST);
  memset(&wrapped, 0, sizeof wrapped);
  wrapped.struct_size = sizeof wrapped;
  wrapped.dev_type = tensor.dev_type = DEVICE;
  wrapped.dev_id = tensor.dev_id = DEVICE_ID;
  wrapped.data = tensor.data = mine->at;
  wrapped.nbytes = PAGE;
  wrapped.ctx = mine;
  wrapped.read = read_memory;
  wrapped.release = release_memory;
  tensor.byte_offset = OFFSET;
  tensor.sync_kind = BP_SYNC_CUDA_EVENT;
  tensor.sync = EVENT;
  if (device()->wrap(the_host, &wrapped, &tensor.buffer) != BP_OK) {
    bp_error error = error_of(BP_INTERNAL, BP_SUB_NONE, "not_wrapped", "the host did not take the memory");
    finish(request, &error);
    return;
  }
  snprintf(json, sizeof json, "{\"at\":\"%p\"}", (void *)(mine->at + OFFSET));
  answer(request, json, &tensor);
  the_host->buf_release(the_host, tensor.buffer);
}

static void take(const bp_request *request) {
  const bp_tensor *x = request->in;
  char json[256], text[17] = "";
  if (request->n_in != 1 || x->nbytes != 16) {
    bp_error error = error_of(BP_INVALID_ARGUMENT, BP_SUB_NONE, "", "`x` is missing");
    finish(request, &error);
    return;
  }
  if (x->dev_type == BP_DEV_CPU) {
    memcpy(text, (const char *)x->data + x->byte_offset, 16);
  } else {
    access_device((char *)x->data + x->byte_offset, text, 16, 0);
  }
  snprintf(json, sizeof json, "{\"kind\":%d,\"id\":%d,\"at\":\"%p\",\"event\":%d,\"buffer\":%s,\"text\":\"%s\"}", (int)x->dev_type,
           (int)x->dev_id, (void *)((char *)x->data + x->byte_offset), (int)x->sync, x->buffer == 0 ? "false" : "true", text);
  answer(request, json, NULL);
}

/* What came of a call. */
typedef struct inbox {
  pthread_mutex_t lock;
  pthread_cond_t ended;
  int done;
  bp_code code;
  char json[256], reason[64], copy[16];
  bp_tensor x;
} inbox;

static bp_code on_chunk(void *ctx, const bp_chunk *chunk) {
  inbox *self = (inbox *)ctx;
  snprintf(self->json, sizeof self->json, "%.*s", (int)chunk->json.len, chunk->json.ptr == NULL ? "" : chunk->json.ptr);
  if (chunk->n_tensors == 1) {
    self->x = *chunk->tensors;
    self->x.name = str("x");
    self->x.shape = SHAPE;
    /* What is in no buffer is gone when this returns, and is in CPU memory. */
    if (self->x.buffer == 0) {
      memcpy(self->copy, (const char *)self->x.data + self->x.byte_offset, sizeof self->copy);
      self->x.data = self->copy;
      self->x.byte_offset = 0;
    } else if (the_host->buf_retain(the_host, self->x.buffer) != BP_OK) {
      return BP_INTERNAL;
    }
  }
  return BP_OK;
}

static void on_done(void *ctx, const bp_done *done) {
  inbox *self = (inbox *)ctx;
  pthread_mutex_lock(&self->lock);
  self->done = 1;
  if (done->error != NULL) {
    self->code = done->error->code;
    snprintf(self->reason, sizeof self->reason, "%.*s", (int)done->error->reason.len, done->error->reason.ptr);
  }
  pthread_cond_signal(&self->ended);
  pthread_mutex_unlock(&self->lock);
}

/* Whether the call ended well; if not, so does the request. */
static int ask(const bp_request *request, inbox *box, const char *capability, const char *to, const char *params,
               const bp_tensor *x) {
  const bp_call_1 *calls = (const bp_call_1 *)the_host->get_extension(the_host, str(BP_EXT_CALL_1));
  bp_call call;
  bp_req handle;
  memset(box, 0, sizeof *box);
  pthread_mutex_init(&box->lock, NULL);
  pthread_cond_init(&box->ended, NULL);
  memset(&call, 0, sizeof call);
  call.struct_size = sizeof call;
  call.flags = BP_CALL_DEVICE;
  call.parent = request->id;
  call.capability = str(capability);
  call.model = str(to);
  call.params_json = str(params);
  call.in = x;
  call.n_in = x != NULL;
  call.in_stride = sizeof *x;
  call.ctx = box;
  call.on_chunk = on_chunk;
  call.on_done = on_done;
  box->code = calls->start(the_host, &call, &handle);
  if (box->code == BP_OK) {
    pthread_mutex_lock(&box->lock);
    while (!box->done) pthread_cond_wait(&box->ended, &box->lock);
    pthread_mutex_unlock(&box->lock);
  }
  if (box->code == BP_OK) return 1;
  {
    bp_error error = error_of(box->code > 0 ? box->code : BP_INTERNAL, BP_SUB_NONE, box->reason, "the other plugin failed");
    finish(request, &error);
  }
  return 0;
}

static void relay(const bp_request *request) {
  inbox first, other;
  if (!ask(request, &first, "device.make", "the.maker", "{}", NULL)) return;
  if (says(request, "lose")) {
    bp_request quiet = *request;
    quiet.sink = 0; /* It fails, and that is what is wanted. */
    ask(&quiet, &other, "device.make", "the.maker", "{\"how\":\"lose\"}", NULL);
  }
  if (says(request, "keep")) {
    answer(request, first.json, &first.x);
  } else if (says(request, "itself")) {
    char json[128], text[17] = "";
    const char *at = (const char *)first.x.data + first.x.byte_offset;
    bp_code beyond = device()->read(the_host, first.x.buffer, at + PAGE - OFFSET - 8, 16, text);
    bp_code read = device()->read(the_host, first.x.buffer, at, 16, text);
    snprintf(json, sizeof json, "{\"beyond\":%d,\"read\":%d,\"text\":\"%s\"}", (int)beyond, (int)read, text);
    answer(request, json, NULL);
  } else {
    const char *to = says(request, "a.device") ? "a.device" : "a.processor";
    if (ask(request, &other, "device.take", to, "{}", &first.x)) {
      char json[600];
      snprintf(json, sizeof json, "{\"made\":%s,\"took\":%s}", first.json, other.json);
      answer(request, json, NULL);
    }
  }
  if (first.x.buffer != 0) the_host->buf_release(the_host, first.x.buffer);
}

static bp_code submit(bp_instance *self, const bp_request *requests, uint32_t n, uint32_t stride, bp_err err) {
  uint32_t i;
  (void)err;
  for (i = 0; i < n; i++) {
    const bp_request *request = (const bp_request *)(const void *)((const char *)requests + (size_t)i * stride);
    if (is(request->capability, "device.make")) {
      make((seat *)self->self, request);
    } else if (is(request->capability, "device.take")) {
      take(request);
    } else {
      relay(request);
    }
  }
  return BP_OK;
}

static void destroy(bp_instance *self) { free(self->self); }

static bp_code instance_new(bp_model *self, const bp_placement *placement, bp_instance **out, bp_err err) {
  seat *new_one = (seat *)calloc(1, sizeof *new_one);
  (void)self;
  (void)placement;
  (void)err;
  new_one->table.struct_size = sizeof new_one->table;
  new_one->table.self = new_one;
  new_one->table.submit = submit;
  new_one->table.destroy = destroy;
  *out = &new_one->table;
  return BP_OK;
}

static bp_code read_stats(bp_model *self, void *ctx, void (*each)(void *ctx, bp_str name, double value)) {
  (void)self;
  each(ctx, str("device_made_total"), __atomic_load_n(&made, __ATOMIC_SEQ_CST));
  each(ctx, str("device_released_total"), __atomic_load_n(&released, __ATOMIC_SEQ_CST));
  each(ctx, str("device_copied_total"), __atomic_load_n(&copied, __ATOMIC_SEQ_CST));
  return BP_OK;
}

static bp_code takes(bp_model *self, int32_t dev_type, int32_t dev_id) {
  (void)self;
  return dev_type == DEVICE && dev_id == DEVICE_ID ? BP_OK : BP_UNIMPLEMENTED;
}

static const void *get_extension(bp_model *self, bp_str id) {
  (void)self;
  if (is(id, BP_EXT_STATS_1)) return &stats;
  return TAKES && is(id, BP_EXT_DEVICE_INPUTS_1) ? &inputs : NULL;
}

static void close_model(bp_model *self) { (void)self; }

static bp_code init(bp_plugin *self, bp_str config, bp_err err) {
  (void)self;
  (void)config;
  (void)err;
  return BP_OK;
}

static bp_code bid(bp_plugin *self, const bp_query *query, bp_bid *out) {
  (void)self;
  (void)query;
  out->score = 900;
  out->valid_ms = 60000;
  return BP_OK;
}

static bp_code model_open(bp_plugin *self, bp_str model_json, bp_model **out, bp_err err) {
  (void)self;
  (void)model_json;
  (void)err;
  *out = &model;
  return BP_OK;
}

static void shutdown(bp_plugin *self) { (void)self; }

__attribute__((visibility("default"))) bp_code bp_entry_v1(const bp_host *host, bp_plugin **out) {
  the_host = host;
  plugin.struct_size = sizeof plugin;
  plugin.abi_minor_built = BP_ABI_MINOR;
  plugin.id = str(ID);
  plugin.version = str("1.0.0");
  plugin.init = init;
  plugin.bid = bid;
  plugin.model_open = model_open;
  plugin.shutdown = shutdown;
  model.struct_size = sizeof model;
  model.exec_class = BP_SERIAL;
  model.max_inflight = 1;
  model.max_batch = 1;
  model.cancel_grace_ms = 100;
  model.describe_json = str("");
  model.instance_new = instance_new;
  model.get_extension = get_extension;
  model.close = close_model;
  stats.struct_size = sizeof stats;
  stats.read = read_stats;
  inputs.struct_size = sizeof inputs;
  inputs.takes = takes;
  *out = &plugin;
  return BP_OK;
}

#define MANIFEST                           \
  "id = \"" ID "\"\n"                      \
  "version = \"1.0.0\"\n"                  \
  "abi = \"1.0\"\n"                        \
  "capabilities = [\"" CAPABILITY "\"]\n"  \
  "models = [{ name = \"" ID "\" }]\n"

typedef struct manifest_note {
  uint32_t name_size, description_size, type;
  char name[12];
  char description[(sizeof MANIFEST + 3) / 4 * 4];
} manifest_note;

__attribute__((section(BP_NOTE_SECTION), used, aligned(4))) static const manifest_note manifest = {
    sizeof BP_NOTE_NAME, (sizeof MANIFEST + 3) / 4 * 4, BP_NOTE_MANIFEST, BP_NOTE_NAME, MANIFEST};
