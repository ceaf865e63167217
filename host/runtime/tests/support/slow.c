/*
 * A plugin that takes its time, for tests of a host's patience: INIT_MS to start, BID_MS for each bid, STATS_MS for its
 * figures, but for the first time, WORK_MS for a request, and CANCEL_MS to be told of a cancel. It answers with its version; with ECHO=1 with the
 * parameters. To open a model it takes OPEN_MB and gives them back. For tests of upgrades it answers in PIECES, each after
 * WORK_MS; fails to start with INIT_FAILS=1; fails each request whose number FAIL_EVERY divides, before its first piece or
 * with FAIL_LATE=1 after it; claims BID_MB for a model; and with EXAMPLE=1 gives an example of a request. With STATE=1 it
 * remembers: each piece says from which opening of its model it comes, and how many pieces that has given so far. With
 * BID_ONCE=1 its first bid comes at once and stands for a millisecond. As it starts it tries to make the file WRITES. With
 * CRASH=1 a request ends it and the process.
 *
 *   cc -std=c99 -shared -fPIC -fvisibility=hidden -I plugin-api/include -DID='"com.example.x"' slow.c -o libx.so
 */
#define _POSIX_C_SOURCE 200809L /* nanosleep */
#include "backplane.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "1.0.0"
#endif
#ifndef INIT_MS
#define INIT_MS 0
#endif
#ifndef BID_MS
#define BID_MS 0
#endif
#ifndef BID_ONCE
#define BID_ONCE 0
#endif
#ifndef ECHO
#define ECHO 0
#endif
#ifndef WORK_MS
#define WORK_MS 0
#endif
#ifndef CANCEL_MS
#define CANCEL_MS 0
#endif
#ifndef OPEN_MB
#define OPEN_MB 0
#endif
#ifndef PIECES
#define PIECES 1
#endif
#ifndef INIT_FAILS
#define INIT_FAILS 0
#endif
#ifndef FAIL_EVERY
#define FAIL_EVERY 0
#endif
#ifndef FAIL_LATE
#define FAIL_LATE 0
#endif
#ifndef BID_MB
#define BID_MB 0
#endif
#ifndef INFLIGHT
#define INFLIGHT 4
#endif
#ifndef CAPABILITY
#define CAPABILITY "slow.answer"
#endif
#ifndef EXAMPLE
#define EXAMPLE 0
#endif
#ifndef STATE
#define STATE 0
#endif
#ifndef STATS_MS
#define STATS_MS 0
#endif
#ifndef CRASH
#define CRASH 0
#endif
#ifndef WRITES
#define WRITES ""
#endif
/* More lines of its manifest. */
#ifndef MORE
#define MORE ""
#endif

/* Of one call of the entry: a version that is gone back to is entered while it still answers what it was asked before. */
typedef struct entered {
  const bp_host *host;
  bp_plugin plugin;
  bp_model model;
  bp_instance instance;
  bp_stats_1 stats;
} entered;

#define OF(self, member) ((entered *)(void *)((char *)(self) - offsetof(entered, member)))

static int32_t readings, requests_seen;
/* Of STATE. */
static int32_t openings, given;

static bp_str str(const char *text) {
  bp_str s;
  s.ptr = text;
  s.len = strlen(text);
  return s;
}

static void sleep_ms(long ms) {
  struct timespec pause;
  pause.tv_sec = ms / 1000;
  pause.tv_nsec = ms % 1000 * 1000000;
  if (ms != 0) nanosleep(&pause, NULL);
}

static const char *remembered(char *into, size_t len, int32_t opening) {
  int32_t number = __atomic_add_fetch(&given, 1, __ATOMIC_RELAXED);
  snprintf(into, len, "{\"text\":\"" VERSION "\",\"opening\":\"" VERSION " in %d, number %d\",\"given\":%d}", (int)getpid(),
           (int)opening, (int)number);
  return into;
}

static bp_code submit(bp_instance *self, const bp_request *requests, uint32_t n, uint32_t stride, bp_err err) {
  const bp_host *host = OF(self, instance)->host;
  uint32_t i;
  (void)err;
  for (i = 0; i < n; i++) {
    const bp_request *request = (const bp_request *)(const void *)((const char *)requests + (size_t)i * stride);
    bp_chunk chunk;
    bp_done done;
    bp_error error;
    int piece;
    char memory[160];
    int32_t opening = __atomic_load_n(&openings, __ATOMIC_RELAXED);
    int32_t number = __atomic_add_fetch(&requests_seen, 1, __ATOMIC_RELAXED);
    int fails = FAIL_EVERY != 0 && number % (FAIL_EVERY + (FAIL_EVERY == 0)) == 0;
    if (CRASH) abort();
    memset(&chunk, 0, sizeof chunk);
    chunk.struct_size = sizeof chunk;
    chunk.json = str("{\"text\":\"" VERSION "\"}");
    if (ECHO) chunk.json = request->params_json;
    for (piece = 0; piece < PIECES && !(fails && piece == FAIL_LATE); piece++) {
      sleep_ms(WORK_MS);
      if (STATE) chunk.json = str(remembered(memory, sizeof memory, opening));
      host->push(host, request->sink, &chunk);
    }
    memset(&done, 0, sizeof done);
    done.struct_size = sizeof done;
    done.confidence = -1.0;
    memset(&error, 0, sizeof error);
    error.struct_size = sizeof error;
    error.code = BP_INTERNAL;
    error.message = str("this version fails");
    if (fails) done.error = &error;
    host->finish(host, request->sink, &done);
  }
  return BP_OK;
}

static bp_code cancel(bp_instance *self, bp_req request) {
  (void)self;
  (void)request;
  sleep_ms(CANCEL_MS);
  return BP_OK;
}

static void destroy(bp_instance *self) { (void)self; }

static bp_code instance_new(bp_model *self, const bp_placement *placement, bp_instance **out, bp_err err) {
  (void)placement;
  (void)err;
  *out = &OF(self, model)->instance;
  return BP_OK;
}

static bp_code read_stats(bp_model *self, void *ctx, void (*each)(void *ctx, bp_str name, double value)) {
  (void)self;
  if (__atomic_fetch_add(&readings, 1, __ATOMIC_RELAXED) != 0) sleep_ms(STATS_MS);
  each(ctx, str("first_reading"), 1.0);
  return BP_OK;
}

static const void *get_extension(bp_model *self, bp_str id) {
  return id.len == strlen(BP_EXT_STATS_1) && memcmp(id.ptr, BP_EXT_STATS_1, id.len) == 0 ? &OF(self, model)->stats : NULL;
}

static void close_model(bp_model *self) { (void)self; }

static bp_code init(bp_plugin *self, bp_str config, bp_err err) {
  (void)self;
  (void)config;
  (void)err;
  sleep_ms(INIT_MS);
  if (sizeof WRITES > 1) {
    FILE *file = fopen(WRITES, "w");
    if (file != NULL) fclose(file);
  }
  return INIT_FAILS ? BP_INTERNAL : BP_OK;
}

static bp_code bid(bp_plugin *self, const bp_query *query, bp_bid *out) {
  static int bids;
  const int asked = query->capability.len != 0 || query->format.len != 0;
  (void)self;
  out->valid_ms = BID_ONCE ? 1 : 60000;
  /* A load may be planned in peace. */
  if (asked && !(BID_ONCE && bids++ == 0)) sleep_ms(BID_MS);
  out->score = 900;
  out->bytes_host = (uint64_t)BID_MB << 20;
  return BP_OK;
}

/* In pieces of 64 KiB, of which the last one is kept, so that the allocator has a reason to hold the others. */
static void use_memory(size_t pieces) {
  static void *kept;
  const size_t size = 64 * 1024;
  void *first = NULL;
  size_t i;
  for (i = 0; i < pieces; i++) {
    void **piece = (void **)malloc(size);
    if (piece == NULL) break;
    memset(piece, 1, size);
    *piece = first;
    first = piece;
  }
  kept = first;
  first = kept == NULL ? NULL : *(void **)kept;
  while (first != NULL) {
    void *next = *(void **)first;
    free(first);
    first = next;
  }
}

static bp_code model_open(bp_plugin *self, bp_str model_json, bp_model **out, bp_err err) {
  (void)model_json;
  (void)err;
  use_memory(OPEN_MB * 16);
  __atomic_add_fetch(&openings, 1, __ATOMIC_RELAXED);
  __atomic_store_n(&given, 0, __ATOMIC_RELAXED);
  *out = &OF(self, plugin)->model;
  return BP_OK;
}

static void shutdown(bp_plugin *self) { (void)self; }

__attribute__((visibility("default"))) bp_code bp_entry_v1(const bp_host *host, bp_plugin **out) {
  entered *own = (entered *)calloc(1, sizeof *own);
  if (own == NULL) return BP_RESOURCE_EXHAUSTED;
  own->host = host;
  own->plugin.struct_size = sizeof own->plugin;
  own->plugin.abi_minor_built = BP_ABI_MINOR;
  own->plugin.id = str(ID);
  own->plugin.version = str(VERSION);
  own->plugin.init = init;
  own->plugin.bid = bid;
  own->plugin.model_open = model_open;
  own->plugin.shutdown = shutdown;
  own->model.struct_size = sizeof own->model;
  own->model.exec_class = BP_CONCURRENT;
  own->model.max_inflight = INFLIGHT;
  own->model.max_batch = 1;
  own->model.cancel_grace_ms = CANCEL_MS == 0 ? 100 : 30000;
  own->model.describe_json = str("");
  own->model.instance_new = instance_new;
  own->model.get_extension = get_extension;
  own->model.close = close_model;
  own->stats.struct_size = sizeof own->stats;
  own->stats.read = read_stats;
  own->instance.struct_size = sizeof own->instance;
  own->instance.submit = submit;
  own->instance.destroy = destroy;
  if (CANCEL_MS != 0) own->instance.cancel = cancel;
  *out = &own->plugin;
  return BP_OK;
}

#if EXAMPLE
#define OFFER "{ name = \"" CAPABILITY "\", version = 1, input_schema = { examples = [{ text = \"hello\" }] } }"
#else
#define OFFER "\"" CAPABILITY "\""
#endif

#define MANIFEST                       \
  "id = \"" ID "\"\n"                  \
  "version = \"" VERSION "\"\n"        \
  "abi = \"1.0\"\n"                    \
  "capabilities = [" OFFER "]\n"       \
  "formats = [\"slow\"]\n"             \
  MORE                                 \
  "models = [{ name = \"" ID "\" }]\n"

typedef struct manifest_note {
  uint32_t name_size, description_size, type;
  char name[12];
  char description[(sizeof MANIFEST + 3) / 4 * 4];
} manifest_note;

__attribute__((section(BP_NOTE_SECTION), used, aligned(4))) static const manifest_note manifest = {
    sizeof BP_NOTE_NAME, (sizeof MANIFEST + 3) / 4 * 4, BP_NOTE_MANIFEST, BP_NOTE_NAME, MANIFEST};
