/*
 * A plugin that is wrong, for tests of the host. With -DFAULT="..." it is wrong when it is loaded or opened; without, it
 * loads, and each of its capabilities does something else that the header forbids.
 *
 *   cc -std=c99 -shared -fPIC -fvisibility=hidden -I plugin-api/include -DID='"com.example.x"' wrong.c -o libx.so
 */
#define _POSIX_C_SOURCE 200809L /* nanosleep */
#include "backplane.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#ifndef FAULT
#define FAULT ""
#endif
#ifndef ID
#define ID "com.example.wrong"
#endif
#ifndef ENTRY
#define ENTRY bp_entry_v1
#endif
#define VERSION "1.0.0"

#ifdef UNRESOLVED
void a_function_that_nobody_has(void);
#endif

static const bp_host *the_host;
static bp_plugin plugin;
static bp_model model;
static bp_instance instance;

static int fault_is(const char *name) { return strcmp(FAULT, name) == 0; }

static bp_str str(const char *text) {
  bp_str s;
  s.ptr = text;
  s.len = strlen(text);
  return s;
}

static int is(bp_str s, const char *text) { return s.len == strlen(text) && memcmp(s.ptr, text, (size_t)s.len) == 0; }

static void sleep_ms(long ms) {
  struct timespec pause;
  pause.tv_sec = ms / 1000;
  pause.tv_nsec = ms % 1000 * 1000000;
  nanosleep(&pause, NULL);
}

static bp_code fail(bp_err err, bp_code code, const char *message) {
  bp_error error;
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;
  error.code = code;
  error.message = str(message);
  the_host->set_error(the_host, err, &error);
  return code;
}

static bp_code push(bp_sink sink, bp_str json, const bp_tensor *tensors, uint32_t n, uint32_t stride) {
  bp_chunk chunk;
  memset(&chunk, 0, sizeof chunk);
  chunk.struct_size = sizeof chunk;
  chunk.json = json;
  chunk.tensors = tensors;
  chunk.n_tensors = n;
  chunk.stride = stride;
  return the_host->push(the_host, sink, &chunk);
}

static bp_code finish(bp_sink sink) {
  bp_done done;
  memset(&done, 0, sizeof done);
  done.struct_size = sizeof done;
  done.confidence = -1.0;
  return the_host->finish(the_host, sink, &done);
}

/* ---- Misuse that must be answered with a code, and change nothing ------------------------------------------ */

/* What was answered, as the members of a JSON object. */
typedef struct answers {
  char text[2048];
  size_t len;
} answers;

static void note(answers *all, const char *what, int64_t code) {
  int n = snprintf(all->text + all->len, sizeof all->text - all->len, "%s\"%s\":%lld", all->len > 1 ? "," : "", what, (long long)code);
  if (n > 0) all->len += (size_t)n;
}

static bp_tensor tensor_of(const int64_t *shape, int32_t ndim, void *data, uint64_t nbytes) {
  bp_tensor tensor;
  memset(&tensor, 0, sizeof tensor);
  tensor.struct_size = sizeof tensor;
  tensor.name = str("t");
  tensor.dev_type = BP_DEV_CPU;
  tensor.code = BP_DT_INT;
  tensor.bits = 8;
  tensor.lanes = 1;
  tensor.ndim = ndim;
  tensor.shape = shape;
  tensor.data = data;
  tensor.nbytes = nbytes;
  return tensor;
}

static bp_code push_tensor(bp_sink sink, const bp_tensor *tensor) { return push(sink, str("{}"), tensor, 1, sizeof *tensor); }

static void misuse_tensors(answers *all, bp_sink sink) {
  static char data[64];
  char crooked[16 + 8];
  int64_t shape[65] = {4};
  const int64_t negative[1] = {-1}, huge[2] = {INT64_MAX, 4}, wide[2] = {2, 2}, far_apart[2] = {INT64_MAX, 1};
  bp_tensor tensor;

  tensor = tensor_of(negative, 1, data, 4);
  note(all, "negative side", push_tensor(sink, &tensor));
  tensor = tensor_of(huge, 2, data, 4);
  note(all, "shape overflows", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, 1, data, 5);
  note(all, "bytes do not fit shape", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, 65, data, 4);
  note(all, "65 sides", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, -1, data, 4);
  note(all, "-1 sides", push_tensor(sink, &tensor));
  tensor = tensor_of(NULL, 1, data, 4);
  note(all, "no shape", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, 1, NULL, 4);
  note(all, "no data", push_tensor(sink, &tensor));
  memcpy(crooked + 1, shape, 8);
  tensor = tensor_of((const int64_t *)(const void *)(crooked + 1), 1, data, 4);
  note(all, "shape is misaligned", push_tensor(sink, &tensor));
  tensor = tensor_of(wide, 2, data, 4);
  tensor.strides = far_apart;
  note(all, "strides leave the data", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, 1, data, UINT64_MAX);
  tensor.code = BP_DT_BYTES;
  note(all, "more bytes than there are addresses", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, 1, data, 4);
  tensor.byte_offset = UINT64_MAX;
  note(all, "offset beyond all addresses", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, 1, data, 4);
  tensor.bits = 7;
  note(all, "type that is none", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, 1, data, 4);
  tensor.dev_type = BP_DEV_CUDA;
  note(all, "on a device", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, 1, data, 4);
  tensor.name.ptr = "\xff";
  note(all, "name is not UTF-8", push_tensor(sink, &tensor));
  tensor = tensor_of(shape, 1, data, 4);
  note(all, "stride of 8", push(sink, str("{}"), &tensor, 1, 8));
  note(all, "stride of 0", push(sink, str("{}"), &tensor, UINT32_MAX, 0));
  note(all, "no tensors", push(sink, str("{}"), NULL, 2, sizeof tensor));
}

static void misuse_buffers(answers *all, bp_sink sink) {
  const int64_t shape[1] = {4};
  bp_tensor tensor;
  bp_buf buffer = 0;
  void *data = NULL;
  note(all, "align 3", the_host->buf_alloc(the_host, BP_DEV_CPU, 0, 4, 3, &buffer, &data));
  note(all, "2^62 bytes", the_host->buf_alloc(the_host, BP_DEV_CPU, 0, (uint64_t)1 << 62, 0, &buffer, &data));
  note(all, "on no device", the_host->buf_alloc(the_host, 77, 0, 4, 0, &buffer, &data));
  note(all, "nowhere to write", the_host->buf_alloc(the_host, BP_DEV_CPU, 0, 4, 0, NULL, NULL));
  note(all, "wrapped without release", the_host->buf_wrap(the_host, &buffer, 8, NULL, NULL, &buffer));
  if (the_host->buf_alloc(the_host, BP_DEV_CPU, 0, 4, 0, &buffer, &data) != BP_OK) return;
  tensor = tensor_of(shape, 1, (char *)data + 1, 4);
  tensor.buffer = buffer;
  note(all, "outside its buffer", push_tensor(sink, &tensor));
  the_host->buf_release(the_host, buffer);
  tensor.data = data;
  note(all, "buffer after release", push_tensor(sink, &tensor));
  note(all, "release after release", the_host->buf_release(the_host, buffer));
  note(all, "retain after release", the_host->buf_retain(the_host, buffer));
}

static void misuse(const bp_request *request) {
  answers all;
  bp_chunk chunk;
  bp_sink sink = request->sink;
  const bp_compute_1 *compute;
  const bp_call_1 *calls;
  bp_call call;
  bp_req called;
  uint32_t granted = 0;
  char after[256];
  bp_code late_push, late_alloc, late_finish, again;
  bp_tensor spec;
  bp_error error;

  all.text[0] = '{';
  all.text[1] = 0;
  all.len = 1;
  memset(&chunk, 0, sizeof chunk);
  chunk.struct_size = 4;
  note(&all, "small struct", the_host->push(the_host, sink, &chunk));
  chunk.struct_size = sizeof chunk;
  chunk.flags = 0x80000000u;
  note(&all, "required flag", the_host->push(the_host, sink, &chunk));
  note(&all, "no chunk", the_host->push(the_host, sink, NULL));
  note(&all, "invented sink", push(sink ^ 0x100000000u, str("{}"), NULL, 0, 0));
  note(&all, "sink 0", push(0, str("{}"), NULL, 0, 0));
  note(&all, "not UTF-8", push(sink, str("{\"a\":\"\xff\"}"), NULL, 0, 0));
  note(&all, "not JSON", push(sink, str("{\"a\":"), NULL, 0, 0));
  note(&all, "not an object", push(sink, str("[1]"), NULL, 0, 0));
  memset(&error, 0, sizeof error);
  error.struct_size = sizeof error;
  note(&all, "error of no call", the_host->set_error(the_host, request->id, &error));
  note(&all, "no host", the_host->push(NULL, sink, &chunk));
  misuse_tensors(&all, sink);
  misuse_buffers(&all, sink);
  compute = (const bp_compute_1 *)the_host->get_extension(the_host, str(BP_EXT_COMPUTE_1));
  note(&all, "invented ticket", compute->acquire(the_host, 12345, 1, 0, &granted));
  note(&all, "threads never granted", compute->release(the_host, 12345, 1));
  calls = (const bp_call_1 *)the_host->get_extension(the_host, str(BP_EXT_CALL_1));
  memset(&call, 0, sizeof call);
  call.struct_size = sizeof call;
  call.parent = request->id;
  note(&all, "call without callbacks", calls->start(the_host, &call, &called));
  note(&all, "cancel of no call", calls->cancel(the_host, 12345));
  note(&all, "unknown extension", the_host->get_extension(the_host, str("bp.call/2")) == NULL ? 0 : 1);
  all.text[all.len] = '}';
  all.text[all.len + 1] = 0;

  push(sink, str(all.text), NULL, 0, 0);
  finish(sink);
  late_push = push(sink, str("{}"), NULL, 0, 0);
  memset(&spec, 0, sizeof spec);
  spec.struct_size = sizeof spec;
  spec.dev_type = BP_DEV_CPU;
  late_alloc = the_host->out_alloc(the_host, sink, &spec);
  late_finish = finish(sink);
  again = calls->start(the_host, &call, &called);
  snprintf(after, sizeof after, "after finish: push %d, out_alloc %d, finish %d, call %d", late_push, late_alloc, late_finish, again);
  the_host->log(the_host, BP_LOG_WARN, str(after), str(""));
}

/* A tensor whose rows are apart, which the header allows: the host must gather them. */
static void strided(const bp_request *request) {
  static int32_t data[6] = {1, 2, 3, 4, 5, 6};
  const int64_t shape[2] = {3, 2}, columns[2] = {1, 3};
  bp_tensor tensor = tensor_of(shape, 2, data, sizeof data);
  bp_code code;
  tensor.bits = 32;
  tensor.strides = columns;
  code = push_tensor(request->sink, &tensor);
  if (code != BP_OK) the_host->log(the_host, BP_LOG_ERROR, str("strides were refused"), str(""));
  finish(request->sink);
}

/* ---- The tables --------------------------------------------------------------------------------------------- */

static bp_code submit(bp_instance *self, const bp_request *requests, uint32_t n, uint32_t stride, bp_err err) {
  uint32_t i;
  (void)self;
  (void)err;
  for (i = 0; i < n; i++) {
    const bp_request *request = (const bp_request *)(const void *)((const char *)requests + (size_t)i * stride);
    if (is(request->capability, ID ".misuse")) misuse(request);
    else if (is(request->capability, ID ".strided")) strided(request);
    else if (is(request->capability, ID ".refuse")) return fail(err, BP_UNAVAILABLE, "not today");
    else if (is(request->capability, ID ".lies")) return 77;
    else if (is(request->capability, ID ".silence")) continue; /* taken, and never finished */
    else { push(request->sink, str("{\"fine\":true}"), NULL, 0, 0); finish(request->sink); }
  }
  return BP_OK;
}

static void destroy(bp_instance *self) { (void)self; }

static bp_code instance_new(bp_model *self, const bp_placement *placement, bp_instance **out, bp_err err) {
  (void)self;
  (void)placement;
  if (fault_is("instance_fails")) return fail(err, BP_RESOURCE_EXHAUSTED, "no room for an instance");
  if (fault_is("instance_is_null")) return BP_OK;
  *out = &instance;
  return BP_OK;
}

static void close_model(bp_model *self) { (void)self; }

static bp_code init(bp_plugin *self, bp_str config, bp_err err) {
  (void)self;
  (void)config;
#ifdef UNRESOLVED
  a_function_that_nobody_has();
#endif
  if (fault_is("init_fails")) return fail(err, BP_FAILED_PRECONDITION, "the flux capacitor is missing");
  if (fault_is("init_fails_silently")) return BP_INTERNAL;
  if (fault_is("init_hangs")) sleep_ms(3600000);
  return BP_OK;
}

static bp_code bid(bp_plugin *self, const bp_query *query, bp_bid *out) {
  (void)self;
  (void)query;
  out->score = 500;
  out->valid_ms = 60000;
  return BP_OK;
}

static bp_code model_open(bp_plugin *self, bp_str model_json, bp_model **out, bp_err err) {
  (void)self;
  (void)model_json;
  (void)err;
  if (fault_is("open_fails")) return fail(err, BP_DATA_LOSS, "the model is made of cheese");
  if (fault_is("open_hangs")) sleep_ms(3600000);
  if (fault_is("open_is_null")) return BP_OK;
  *out = &model;
  return BP_OK;
}

static void shutdown(bp_plugin *self) { (void)self; }

__attribute__((visibility("default"))) bp_code ENTRY(const bp_host *host, bp_plugin **out) {
  if (fault_is("refuses_the_host")) return BP_UNIMPLEMENTED;
  if (fault_is("writes_no_table")) return BP_OK;
  the_host = host;
  plugin.struct_size = fault_is("small_plugin") ? 16 : sizeof plugin;
  plugin.flags = fault_is("required_flag") ? 0x80000000u : 0;
  plugin.abi_minor_built = BP_ABI_MINOR;
  plugin.abi_minor_min = fault_is("wants_a_newer_host") ? 7 : 0;
  plugin.id = str(fault_is("other_id") ? "com.example.somebody-else" : ID);
  plugin.version = str(fault_is("other_version") ? "9.9.9" : VERSION);
  plugin.init = init;
  plugin.bid = fault_is("no_bid") ? NULL : bid;
  plugin.model_open = model_open;
  plugin.shutdown = shutdown;
  model.struct_size = fault_is("small_model") ? 16 : sizeof model;
  model.exec_class = fault_is("no_class") ? 7 : BP_CONCURRENT;
  model.max_inflight = 1;
  model.max_batch = 1;
  model.cancel_grace_ms = 100;
  model.describe_json = str(fault_is("describes_garbage") ? "\xff{]" : "");
  model.instance_new = instance_new;
  model.close = close_model;
  instance.struct_size = fault_is("small_instance") ? 16 : sizeof instance;
  instance.submit = fault_is("no_submit") ? NULL : submit;
  instance.destroy = destroy;
  *out = &plugin;
  return BP_OK;
}

#ifndef NO_NOTE
#define MANIFEST                                                                     \
  "id = \"" ID "\"\n"                                                                \
  "version = \"" VERSION "\"\n"                                                      \
  "abi = \"1.0\"\n"                                                                  \
  "capabilities = [\"" ID ".misuse\", \"" ID ".strided\", \"" ID ".refuse\", \"" ID ".lies\", \"" ID ".silence\", \"" ID ".fine\"]\n" \
  "models = [{ name = \"" ID "\" }]\n"

typedef struct manifest_note {
  uint32_t name_size, description_size, type;
  char name[12];
  char description[(sizeof MANIFEST + 3) / 4 * 4];
} manifest_note;

__attribute__((section(BP_NOTE_SECTION), used, aligned(4))) static const manifest_note manifest = {
    sizeof BP_NOTE_NAME, (sizeof MANIFEST + 3) / 4 * 4, BP_NOTE_MANIFEST, BP_NOTE_NAME, MANIFEST};
#endif
