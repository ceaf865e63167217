/*
 * my-plugin: gives a text back word by word, each as soon as its reader wants it.
 *
 * backplane.h beside this file is the manual. From top to bottom: answering one request, then the three tables
 * (instance, model, plugin), then the manifest. Yours starts where it says HERE.
 */
#define _POSIX_C_SOURCE 200809L /* nanosleep */
#include "backplane.h"
#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ID "com.example.my-plugin" /* as in plugin.toml, and so is the version */
#define VERSION "0.1.0"
#define CAPABILITY "com.example.my-plugin"
#define MOST_WORDS 10000

static bp_str str(const char *text) {
  bp_str s;
  s.ptr = text;
  s.len = strlen(text);
  return s;
}

static int is(bp_str s, const char *text) {
  return s.len == strlen(text) && (s.len == 0 || memcmp(s.ptr, text, (size_t)s.len) == 0);
}

/* ---- Answering a request --------------------------------------------------------------------------------- */

static bp_error error_of(bp_code code, const char *message, const char *reason, const char *details) {
  bp_error error;
  memset(&error, 0, sizeof error); /* a member that comes later is 0 then */
  error.struct_size = sizeof error;
  error.code = code;
  error.message = str(message);      /* for people: what was wrong, with what, what would fix it */
  error.reason = str(reason);        /* for programs */
  error.details_json = str(details); /* figures */
  return error;
}

/* The last thing that happens to a request, exactly once. */
static void finish(const bp_host *host, const bp_request *request, const bp_error *error) {
  bp_done done;
  memset(&done, 0, sizeof done);
  done.struct_size = sizeof done;
  done.error = error;
  done.confidence = -1.0; /* not known */
  host->finish(host, request->sink, &done);
}

static void fail(const bp_host *host, const bp_request *request, bp_code code, const char *message, const char *reason,
                 const char *details) {
  bp_error error = error_of(code, message, reason, details);
  finish(host, request, &error);
}

/* Whether the caller has left: looked at in every step. */
static int cancelled(const bp_request *request) { return __atomic_load_n(request->cancel, __ATOMIC_RELAXED) != 0; }

/* Offers a piece until it is taken: a reader that is behind is waited for. */
static bp_code push(const bp_host *host, const bp_request *request, const char *json, size_t len) {
  const struct timespec pause = {0, 1000000};
  bp_chunk chunk;
  bp_code code = BP_CANCELLED;
  memset(&chunk, 0, sizeof chunk);
  chunk.struct_size = sizeof chunk;
  chunk.json.ptr = json;
  chunk.json.len = len;
  while (!cancelled(request) && (code = host->push(host, request->sink, &chunk)) == BP_WOULD_BLOCK) nanosleep(&pause, NULL);
  return code;
}

/* HERE: what a caller may say. */
typedef struct params {
  bp_str text;
  int has_text;
  char wrong[160], param[80];
} params;

static int read_param(void *ctx, bp_str name, char kind, bp_str value) {
  params *p = (params *)ctx;
  if (!is(name, "text")) {
    /* A misspelt parameter is named, not passed over. A name that is cut short would be no JSON any more. */
    int len = name.len < 40 ? (int)name.len : 0;
    snprintf(p->wrong, sizeof p->wrong, "there is no parameter `%.*s`: this capability takes `text`", len, name.ptr);
    snprintf(p->param, sizeof p->param, "{\"param\":\"%.*s\"}", len, name.ptr);
    return 0;
  }
  if (kind != '"') {
    snprintf(p->wrong, sizeof p->wrong, "`text` must be a string");
    snprintf(p->param, sizeof p->param, "{\"param\":\"text\"}");
    return 0;
  }
  p->text = value;
  p->has_text = 1;
  return 1;
}

/* HERE: what it does. Every way out finishes the request once. */
static void answer(const bp_host *host, const bp_request *request) {
  params p;
  char *piece;
  const char *word, *end;
  uint64_t words = 0, at;
  bp_code code = BP_OK;

  memset(&p, 0, sizeof p);
  if (!is(request->capability, CAPABILITY)) {
    fail(host, request, BP_UNIMPLEMENTED, "this model serves `" CAPABILITY "` only", "", "");
    return;
  }
  if (!json_object(request->params_json, read_param, &p)) {
    if (p.wrong[0] == 0) snprintf(p.wrong, sizeof p.wrong, "the parameters are not a JSON object");
    fail(host, request, BP_INVALID_ARGUMENT, p.wrong, "", p.param);
    return;
  }
  if (!p.has_text) {
    fail(host, request, BP_INVALID_ARGUMENT, "`text` is missing", "", "{\"param\":\"text\"}");
    return;
  }
  for (at = 0; at < p.text.len; at++) words += p.text.ptr[at] != ' ' && (at == 0 || p.text.ptr[at - 1] == ' ');
  if (words > MOST_WORDS) {
    /* A typed error: the code says who has to act, the reason and the figures are for programs. */
    snprintf(p.param, sizeof p.param, "{\"param\":\"text\",\"words\":%llu,\"most\":%d}", (unsigned long long)words, MOST_WORDS);
    fail(host, request, BP_OUT_OF_RANGE, "`text` has more than 10000 words: send it in parts", "text_too_long", p.param);
    return;
  }
  /* Room for the longest piece. The words are JSON already: they keep the escapes they came with. */
  if ((piece = (char *)malloc((size_t)p.text.len + 16)) == NULL) {
    fail(host, request, BP_RESOURCE_EXHAUSTED, "no memory for the answer", "", "");
    return;
  }
  end = p.text.ptr + p.text.len;
  for (word = p.text.ptr; code == BP_OK && word < end;) {
    const char *stop = (const char *)memchr(word, ' ', (size_t)(end - word));
    size_t len = (size_t)((stop == NULL ? end : stop) - word);
    if (len > 0) {
      memcpy(piece, "{\"word\":\"", 9);
      memcpy(piece + 9, word, len);
      memcpy(piece + 9 + len, "\"}", 2);
      code = push(host, request, piece, len + 11);
    }
    word += len + 1;
  }
  free(piece);
  if (code == BP_OK) {
    finish(host, request, NULL);
  } else if (code == BP_CANCELLED) {
    fail(host, request, BP_CANCELLED, "the caller has left", "", "");
  } else {
    fail(host, request, BP_INTERNAL, "the host refused a piece of the answer", "", "");
  }
}

/* ---- The instance: a running copy ------------------------------------------------------------------------ */

typedef struct my_instance {
  bp_instance table;
  const bp_host *host;
} my_instance;

static const bp_request *row(const bp_request *requests, uint32_t number, uint32_t stride) {
  /* Rows lie at the host's stride: a newer host's are longer than ours. */
  return (const bp_request *)(const void *)((const char *)requests + (size_t)number * stride);
}

static bp_code submit(bp_instance *instance, const bp_request *requests, uint32_t n, uint32_t stride, bp_err err) {
  const my_instance *self = (const my_instance *)instance->self;
  uint32_t i;
  (void)err;
  for (i = 0; i < n; i++) { /* all of them are taken, or none */
    const bp_request *request = row(requests, i, stride);
    if (!BP_HAS(request, capability_version) || (request->flags & BP_FLAG_REQUIRED_MASK) != 0) return BP_BAD_STRUCT;
  }
  for (i = 0; i < n; i++) answer(self->host, row(requests, i, stride));
  return BP_OK;
}

static void destroy(bp_instance *instance) { free(instance->self); }

/* ---- The model ------------------------------------------------------------------------------------------- */

typedef struct my_model {
  bp_model table;
  const bp_host *host;
} my_model;

static bp_code instance_new(bp_model *model, const bp_placement *placement, bp_instance **out, bp_err err) {
  my_instance *self = (my_instance *)calloc(1, sizeof *self);
  (void)placement;
  (void)err;
  if (self == NULL) return BP_RESOURCE_EXHAUSTED;
  self->host = ((const my_model *)model->self)->host;
  self->table.struct_size = sizeof self->table;
  self->table.self = self;
  self->table.submit = submit;
  self->table.destroy = destroy;
  *out = &self->table;
  return BP_OK;
}

static void close_model(bp_model *model) { free(model->self); }

/* ---- The plugin: one for each host ----------------------------------------------------------------------- */

typedef struct my_plugin {
  bp_plugin table;
  const bp_host *host;
  int ready;
} my_plugin;

static bp_code init(bp_plugin *plugin, bp_str config_json, bp_err err) {
  my_plugin *self = (my_plugin *)plugin->self;
  (void)config_json; /* its section of the host's configuration; this plugin has nothing to be told */
  (void)err;
  if (self->ready) return BP_BAD_STATE;
  self->ready = 1;
  return BP_OK;
}

static bp_code bid(bp_plugin *plugin, const bp_query *query, bp_bid *out) {
  if (!((const my_plugin *)plugin->self)->ready) return BP_BAD_STATE;
  if (!BP_HAS(query, capability) || !BP_HAS(out, valid_ms)) return BP_BAD_STRUCT;
  out->score = query->capability.len == 0 || is(query->capability, CAPABILITY) ? 500 : 0; /* of 1000; 0: cannot */
  out->quality = 500;
  out->valid_ms = 60000;
  return BP_OK;
}

/* HERE: parameters of the card, which `any` passes over. */
static int any(void *ctx, bp_str name, char kind, bp_str value) {
  (void)ctx, (void)name, (void)kind, (void)value;
  return 1;
}

static bp_code model_open(bp_plugin *plugin, bp_str model_json, bp_model **out, bp_err err) {
  const my_plugin *self = (const my_plugin *)plugin->self;
  my_model *model;
  if (!self->ready) return BP_BAD_STATE;
  if (!json_object(model_json, any, NULL)) {
    bp_error error = error_of(BP_INVALID_ARGUMENT, "the model's card is not a JSON object", "", "");
    self->host->set_error(self->host, err, &error);
    return BP_INVALID_ARGUMENT;
  }
  if ((model = (my_model *)calloc(1, sizeof *model)) == NULL) return BP_RESOURCE_EXHAUSTED;
  model->host = self->host;
  model->table.struct_size = sizeof model->table;
  model->table.self = model;
  model->table.exec_class = BP_CONCURRENT; /* `answer` is called from several threads at once */
  model->table.max_inflight = 4;
  model->table.max_batch = 1;
  model->table.cancel_grace_ms = 1000;
  model->table.instance_new = instance_new;
  model->table.close = close_model;
  *out = &model->table;
  return BP_OK;
}

static void shut_down(bp_plugin *plugin) { free(plugin->self); }

__attribute__((visibility("default"))) bp_code bp_entry_v1(const bp_host *host, bp_plugin **out) {
  my_plugin *self;
  if (host == NULL || out == NULL) return BP_NULL_ARGUMENT;
  if (!BP_HAS(host, finish) || (host->flags & BP_FLAG_REQUIRED_MASK) != 0) return BP_BAD_STRUCT;
  if ((self = (my_plugin *)calloc(1, sizeof *self)) == NULL) return BP_RESOURCE_EXHAUSTED;
  self->host = host;
  self->table.struct_size = sizeof self->table;
  self->table.self = self;
  self->table.abi_minor_built = BP_ABI_MINOR;
  self->table.abi_minor_min = 0;
  self->table.id = str(ID);
  self->table.version = str(VERSION);
  self->table.init = init;
  self->table.bid = bid;
  self->table.model_open = model_open;
  self->table.shutdown = shut_down;
  *out = &self->table;
  return BP_OK;
}

/* ---- The manifest: plugin.toml as an ELF note, to be read without running anything ------------------------- */

__asm__(
    ".pushsection " BP_NOTE_SECTION ", \"a\", %note\n"
    ".balign 4\n"
    ".long 1f - 0f, 3f - 2f, 1\n" /* sizes of owner and text, BP_NOTE_MANIFEST */
    "0: .asciz \"" BP_NOTE_NAME "\"\n"
    "1: .balign 4\n"
    "2: .incbin \"plugin.toml\"\n"
    "3: .balign 4\n"
    ".popsection\n");
