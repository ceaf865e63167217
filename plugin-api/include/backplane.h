/*
 * backplane.h: the Backplane plugin ABI, version 1.0.
 *
 * This file is the source of truth and the manual. It needs only <stdint.h>, and compiles as C99 and C++11.
 * A plugin is one shared library that exports one function, bp_entry_v1 (at the end of this file). Everything
 * else travels in tables of function pointers: the host's in bp_host, the plugin's in bp_plugin, bp_model and
 * bp_instance. Nothing is looked up by name a second time.
 *
 * ---- The shape ----------------------------------------------------------------------------------------
 *   bp_plugin    one per loaded library   bp_entry_v1 -> init -> ... -> shutdown
 *   bp_model     one per opened model     model_open  -> ... -> close
 *   bp_instance  one per running copy     instance_new -> submit* -> quiesce -> destroy
 *   request      a row of submit          answered through bp_host.push and bp_host.finish
 *
 * ---- Rules that hold for every table and struct ---------------------------------------------------------
 * 1. It starts with struct_size and flags. The writer sets struct_size to the sizeof it was compiled with;
 *    the reader treats members beyond it as absent (BP_HAS). Unknown bits in the upper half of flags
 *    (BP_FLAG_REQUIRED_MASK) must be refused with BP_BAD_STRUCT; unknown bits in the lower half are
 *    ignored. Arrays of structs carry a stride: element i is at base + i * stride.
 * 2. Within major 1 members are only appended. Nothing is reordered, retyped or reused. Reserved members are 0.
 * 3. No implicit padding (gcc -Wpadded), so a member added later never hides in an old hole.
 * 4. A host of minor M loads every plugin of major 1 whose abi_minor_min <= M, for ever.
 * 5. Anything optional is an extension: get_extension(id) with ids "vendor.name/revision"; a published
 *    revision is frozen. NULL means absent. The host's are at the end of this file.
 *
 * ---- Threads --------------------------------------------------------------------------------------------
 * Every function below carries one of these tags.
 *   [init]             one at a time per object, on any thread, may block
 *   [instance-serial]  one at a time per instance, always on that instance's own thread, may block
 *   [any]              any thread, concurrently
 *   [no-block]         (with another tag) returns promptly, takes no lock that is held across a call out
 * All host functions are [any] and may be called from threads the plugin created, also from inside a callback. No
 * function of the plugin is called from inside a host function that the plugin called, but for the release of a
 * buffer, the read of one in device memory, and the callbacks of bp.call/1.
 *
 * ---- Ownership ------------------------------------------------------------------------------------------
 * Who allocates, frees, by a function on the object itself. Strings and arrays handed to a function are valid
 * until it returns, unless its comment says longer. Strings inside an object the plugin returned stay valid
 * until that object is destroyed. Host objects are 64-bit handles with a generation; a stale or invented handle
 * is answered with BP_STALE_HANDLE and changes nothing.
 *
 * ---- Failure --------------------------------------------------------------------------------------------
 * No exception, panic or longjmp may cross this boundary. A plugin must not call exit, abort, setenv, chdir,
 * setlocale or install signal handlers. A library is never dlclosed; it is unloaded with its process.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef BACKPLANE_H
#define BACKPLANE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BP_ABI_MAJOR 1
#define BP_ABI_MINOR 0

/* True when the struct behind p was written by someone who knew member f. */
#define BP_HAS(p, f) \
  ((p)->struct_size >= (uint32_t)((const char *)&(p)->f - (const char *)(p)) + (uint32_t)sizeof((p)->f))

#define BP_FLAG_REQUIRED_MASK 0xFFFF0000u

/* ==== Basic types ========================================================================================= */

/* UTF-8 text, not NUL-terminated. ptr may be NULL when len is 0. */
typedef struct bp_str {
  const char *ptr;
  uint64_t len;
} bp_str;

/* Host objects: generation-tagged handles. 0 is "none". */
typedef uint64_t bp_req;    /* a request, from submit until finish                                             */
typedef uint64_t bp_sink;   /* where its results go; equal in life to the request                              */
typedef uint64_t bp_buf;    /* a reference-counted buffer                                                      */
typedef uint64_t bp_err;    /* where a call that can fail leaves its reason; valid until that call returns     */
typedef uint64_t bp_ticket; /* an instance's seat in the host's compute pool, from instance_new until destroy  */

/* Result of a call. 0 is success. 1..16 are the canonical codes of gRPC. 32.. are answers of the flow control,
 * negative values mean that the ABI was misused and nothing happened. */
typedef int32_t bp_code;
#define BP_OK 0
#define BP_CANCELLED 1           /* the caller left                                                            */
#define BP_UNKNOWN 2
#define BP_INVALID_ARGUMENT 3    /* the request is wrong whatever the state of the system                      */
#define BP_DEADLINE_EXCEEDED 4
#define BP_NOT_FOUND 5
#define BP_ALREADY_EXISTS 6
#define BP_PERMISSION_DENIED 7
#define BP_RESOURCE_EXHAUSTED 8  /* memory, slots, quota: may work later                                       */
#define BP_FAILED_PRECONDITION 9 /* the system must change first (a missing runtime, a licence)                */
#define BP_ABORTED 10
#define BP_OUT_OF_RANGE 11       /* valid in form, beyond a limit (a prompt longer than the context)           */
#define BP_UNIMPLEMENTED 12
#define BP_INTERNAL 13           /* a bug in the plugin or host                                                */
#define BP_UNAVAILABLE 14        /* transient                                                                  */
#define BP_DATA_LOSS 15          /* a model or package file is corrupt                                         */
#define BP_UNAUTHENTICATED 16
#define BP_WOULD_BLOCK 32        /* push: the reader is behind; the chunk was not taken, offer it again        */
#define BP_STALE_HANDLE (-1)     /* the handle is not, or no longer, alive                                     */
#define BP_NULL_ARGUMENT (-2)
#define BP_BAD_STATE (-3)        /* not allowed now (a second finish, submit after destroy)                    */
#define BP_BAD_STRUCT (-4)       /* struct_size too small, or a required flag this side does not know          */

/* Why something failed. sub values below are known to the host, others are the plugin's own. */
#define BP_SUB_NONE 0
#define BP_SUB_PANIC 1   /* a panic was caught inside the plugin: the instance is poisoned and will be replaced */
#define BP_SUB_POISONED 2 /* the instance cannot serve any more, for another reason                            */
#define BP_SUB_FATAL 3   /* nothing in this process can serve any more, such as after a sticky error of a GPU's
                            driver: a worker is ended for it and started again; in-process the instance is replaced */

typedef struct bp_error {
  uint32_t struct_size, flags;
  bp_code code;
  int32_t sub;              /* BP_SUB_*                                                                        */
  uint32_t retry_after_ms;  /* 0: no advice                                                                    */
  uint32_t reserved;
  bp_str message;           /* for people: what was wrong, with what, what would fix it                        */
  bp_str reason;            /* for machines: "context_length_exceeded", "model_invalid"; may be empty          */
  bp_str details_json;      /* an object with figures, e.g. {"param":"messages","n_prompt":5000,"n_ctx":4096}  */
} bp_error;

/* ==== Tensors ============================================================================================= */

/* Data type: DLPack's code, bits and lanes (dlpack.h, DLDataTypeCode), and one of ours for byte strings. */
#define BP_DT_INT 0
#define BP_DT_UINT 1
#define BP_DT_FLOAT 2
#define BP_DT_BFLOAT 4
#define BP_DT_COMPLEX 5
#define BP_DT_BOOL 6
/* Byte strings, bits = 8. The data is, for each element in row-major order, a uint32 length in little endian
 * and that many bytes: the BYTES layout of the Open Inference Protocol's binary extension. */
#define BP_DT_BYTES 200

/* Device: DLPack's DLDeviceType. */
#define BP_DEV_CPU 1
#define BP_DEV_CUDA 2
#define BP_DEV_CUDA_HOST 3
#define BP_DEV_EXT 12            /* DLPack's kDLExtDev: one that has no number of its own                      */

#define BP_TENSOR_READ_ONLY 1u

/* How to wait before touching device data: bp.device/1 below. */
#define BP_SYNC_NONE 0        /* it is there                                                                   */
#define BP_SYNC_CUDA_STREAM 1 /* reserved: no tensor that crosses has it                                       */
#define BP_SYNC_CUDA_EVENT 2  /* sync is a CUevent, recorded behind the work that writes the data              */

/* A tensor: a view of memory, described as DLPack describes it. Of the numeric kinds every element is stored;
 * strides are in elements, NULL means dense row-major. nbytes is the size of the data behind data+byte_offset.
 * When buffer is not 0 it keeps the memory alive; when it is 0 the memory lives as long as the call or request
 * that brought the tensor. */
typedef struct bp_tensor {
  uint32_t struct_size, flags;  /* BP_TENSOR_*                                                                 */
  bp_str name;
  int32_t dev_type, dev_id;     /* BP_DEV_*                                                                    */
  uint8_t code, bits;           /* BP_DT_*                                                                     */
  uint16_t lanes;               /* 1                                                                           */
  int32_t ndim;                 /* 0 is a scalar                                                               */
  const int64_t *shape;         /* ndim values >= 0                                                            */
  const int64_t *strides;       /* ndim values, or NULL                                                        */
  uint64_t byte_offset, nbytes;
  void *data;
  bp_buf buffer;
  int32_t sync_kind, layout;    /* BP_SYNC_*; layout is 0 (reserved for media)                                 */
  uint64_t sync;
} bp_tensor;

/* ==== Requests and results ================================================================================ */

#define BP_REQUEST_CONFIDENCE 1u /* the host wants bp_done.confidence, even if it costs a little               */
#define BP_REQUEST_STREAM 2u     /* the caller reads piece by piece: push early                                */
#define BP_REQUEST_DEVICE 4u     /* the caller takes tensors where they are: bp.device/1                       */

/* One request. The struct itself is valid until submit returns; everything its members point to stays valid
 * and unchanged until finish for this request returns. */
typedef struct bp_request {
  uint32_t struct_size, flags;  /* BP_REQUEST_*                                                                */
  bp_req id;
  bp_sink sink;
  bp_str capability;            /* "chat", "acme.speech.tts"                                                   */
  bp_str params_json;           /* an object, per the capability's schema                                      */
  const bp_tensor *in;
  uint32_t n_in, in_stride;
  bp_str request_id;            /* as in the logs                                                              */
  bp_str traceparent;           /* W3C trace context, may be empty                                             */
  bp_str tenant;
  int64_t deadline_ns;          /* CLOCK_MONOTONIC; 0: none                                                    */
  const uint32_t *cancel;       /* becomes non-zero when the caller has left: read it at every step (atomic)   */
  int32_t priority;             /* higher first                                                                */
  uint32_t capability_version;  /* of the payload schema: 1 for "chat/1"                                       */
} bp_request;

/* A piece of a result: JSON, tensors, or both. */
typedef struct bp_chunk {
  uint32_t struct_size, flags;
  bp_str json;                  /* an object, or empty                                                         */
  const bp_tensor *tensors;
  uint32_t n_tensors, stride;
} bp_chunk;

/* The end of a result. error NULL means success. */
typedef struct bp_done {
  uint32_t struct_size, flags;
  const bp_error *error;
  bp_str usage_json;            /* {"prompt_tokens":..,"completion_tokens":..,"cached_tokens":..}, or empty;
                                 * of a bp_call also "model": which one answered                               */
  double confidence;            /* 0..1 that the answer is right, uncalibrated; negative: not known            */
} bp_done;

/* ==== Bids ================================================================================================ */

/* What the host asks before it chooses. model_json describes the model as in model_open. */
typedef struct bp_query {
  uint32_t struct_size, flags;
  bp_str capability;            /* empty: any (the host plans a load)                                          */
  bp_str format;                /* "gguf", "onnx", "" for a plugin's built-in model                            */
  bp_str model_json;
  const bp_tensor *shapes;      /* the request's tensors without data, or NULL                                 */
  uint32_t n_shapes, stride;
  uint64_t input_bytes;         /* size of the request's JSON                                                  */
  uint32_t slo_p99_us;          /* what the caller hopes for; 0: nothing                                       */
  int32_t dev_type, dev_id;
  uint32_t capability_version;
} bp_query;

#define BP_BID_REASON_NONE 0
#define BP_BID_REASON_FORMAT 1
#define BP_BID_REASON_DEVICE 2
#define BP_BID_REASON_MEMORY 3
#define BP_BID_REASON_LICENCE 4
#define BP_BID_REASON_RUNTIME 5 /* something the plugin needs is not installed                                 */

/* A claim about a job, before it runs. The host fills struct_size, zeroes the rest; text stays valid until the
 * next bid on the same thread. */
typedef struct bp_bid {
  uint32_t struct_size, flags;
  uint16_t score, quality;      /* score 0..1000, 0 = cannot; quality 0..1000 of the answers                   */
  uint32_t est_p50_us, est_p99_us, max_batch;
  uint32_t valid_ms;            /* how long the claim stands                                                   */
  uint32_t load_ms;
  uint64_t bytes_dev, bytes_host; /* memory the model will take once open: weights, caches and scratch         */
  int32_t reason;               /* BP_BID_REASON_*, when score is 0                                            */
  uint32_t reserved;
  bp_str text;                  /* for people: why                                                             */
} bp_bid;

/* ==== The host's table ==================================================================================== */

#define BP_LOG_ERROR 1
#define BP_LOG_WARN 2
#define BP_LOG_INFO 3
#define BP_LOG_DEBUG 4
#define BP_LOG_TRACE 5

typedef struct bp_host {
  uint32_t struct_size, flags;
  uint16_t abi_major, abi_minor;
  uint32_t reserved;
  void *ctx;                    /* the host's own                                                              */
  bp_str name, version;         /* of the host program                                                         */

  /* The extension with this id, or NULL. The table lives as long as the host.
   * [any][no-block] since 1.0 */
  const void *(*get_extension)(const struct bp_host *host, bp_str id);

  /* Leaves the reason for the failure of the call that was given err. Copies everything.
   * Errors: BP_STALE_HANDLE, BP_NULL_ARGUMENT, BP_BAD_STRUCT. [any][no-block] since 1.0 */
  bp_code (*set_error)(const struct bp_host *host, bp_err err, const bp_error *error);

  /* Writes a line to the host's log under this plugin's name. level is BP_LOG_*; fields_json is an object or
   * empty. Copies. Lines above the plugin's rate are counted and dropped, which the log says.
   * [any][no-block] since 1.0 */
  void (*log)(const struct bp_host *host, int32_t level, bp_str message, bp_str fields_json);

  /* A new buffer with one reference, zeroed, aligned to align (a power of two; 0 means 64). dev_type is BP_DEV_CPU.
   * Errors: BP_UNIMPLEMENTED (this device never), BP_RESOURCE_EXHAUSTED (not now). [any] since 1.0 */
  bp_code (*buf_alloc)(const struct bp_host *host, int32_t dev_type, int32_t dev_id, uint64_t nbytes,
                       uint64_t align, bp_buf *out, void **data);

  /* Puts memory of the plugin's behind a handle with one reference. release(ctx) is called exactly once, when
   * the last reference goes, on any thread, even inside a host function that the plugin called; on error it is not
   * called. Errors: BP_NULL_ARGUMENT, BP_INVALID_ARGUMENT (longer than memory can be). [any] since 1.0 */
  bp_code (*buf_wrap)(const struct bp_host *host, void *data, uint64_t nbytes, void *ctx,
                      void (*release)(void *ctx), bp_buf *out);

  /* One reference more, one less. Errors: BP_STALE_HANDLE. [any] since 1.0 */
  bp_code (*buf_retain)(const struct bp_host *host, bp_buf buf);
  bp_code (*buf_release)(const struct bp_host *host, bp_buf buf);

  /* Gives memory for an output tensor: reads dtype, shape and nbytes of spec, fills data and buffer. The plugin
   * owns one reference until it pushes the tensor and releases it. Errors: as buf_alloc, BP_STALE_HANDLE.
   * [any] since 1.0 */
  bp_code (*out_alloc)(const struct bp_host *host, bp_sink sink, bp_tensor *spec);

  /* Hands over a piece of the result. JSON is copied; a tensor with a buffer is retained, one without is copied.
   * BP_OK, BP_WOULD_BLOCK (not taken: the reader is behind), BP_CANCELLED (the caller left: stop and finish).
   * Errors: BP_STALE_HANDLE (after finish, or a buffer that is not alive), BP_INVALID_ARGUMENT (text that is not
   * UTF-8, a tensor whose parts do not fit together), BP_UNIMPLEMENTED (a device this host cannot read),
   * BP_NULL_ARGUMENT, BP_BAD_STRUCT (also a stride shorter than the struct). A tensor in device memory may have to be
   * copied first (bp.device/1): then it waits for its owner's read, and has that one's errors too.
   * [any][no-block, but for that] since 1.0 */
  bp_code (*push)(const struct bp_host *host, bp_sink sink, const bp_chunk *chunk);

  /* Ends the request, exactly once, after which its handles, its memory and its cancel word are gone. Required
   * even after BP_CANCELLED. Errors: BP_STALE_HANDLE on a second call. [any][no-block] since 1.0 */
  bp_code (*finish)(const struct bp_host *host, bp_sink sink, const bp_done *done);
} bp_host;

/* ==== The plugin's tables ================================================================================= */

#define BP_HEALTH_READY 0
#define BP_HEALTH_DEGRADED 1
#define BP_HEALTH_NOT_READY 2
#define BP_HEALTH_FAILED 3   /* the host replaces the instance                                                */

/* Where an instance is to live. */
typedef struct bp_placement {
  uint32_t struct_size, flags;
  bp_ticket ticket;             /* for bp.compute/1                                                            */
  int32_t dev_type, dev_id;
  uint32_t threads;             /* CPU threads this instance may hope for; ask bp.compute/1 before each burst  */
  uint32_t index;               /* which copy of the model this is, from 0                                     */
} bp_placement;

/* One running copy of a model. */
typedef struct bp_instance {
  uint32_t struct_size, flags;
  void *self;                   /* the plugin's own                                                            */

  /* Takes n requests: element i is at (const char *)requests + i * stride. BP_OK: all of them are now the
   * plugin's, each to be finished exactly once (before or after submit returns). Any other code: none is, and
   * the host keeps them; the reason goes to err.
   * SERIAL: [instance-serial], may block until all are finished. CONCURRENT: [any], may block.
   * CONTINUOUS: [any][no-block]. since 1.0 */
  bp_code (*submit)(struct bp_instance *instance, const bp_request *requests, uint32_t n, uint32_t stride,
                    bp_err err);

  /* Says that a request's cancel word was set, for plugins that sleep. May be NULL. The request must still be
   * finished. [any][no-block] since 1.0 */
  bp_code (*cancel)(struct bp_instance *instance, bp_req request);

  /* How it is: *state = BP_HEALTH_*; a reason goes to err. Within 50 ms, from a thread that serves nothing.
   * May be NULL (ready). [any] since 1.0 */
  bp_code (*health)(struct bp_instance *instance, int32_t *state, bp_err err);

  /* Finish what was taken, take nothing more. Returns when idle or at deadline_ns (CLOCK_MONOTONIC) with
   * BP_DEADLINE_EXCEEDED. May be NULL. [any] since 1.0 */
  bp_code (*quiesce)(struct bp_instance *instance, int64_t deadline_ns);

  /* The instance's extension, or NULL. May be NULL. [any][no-block] since 1.0 */
  const void *(*get_extension)(struct bp_instance *instance, bp_str id);

  /* Ends it and frees its memory. No request is open. SERIAL: [instance-serial], else [init]. since 1.0 */
  void (*destroy)(struct bp_instance *instance);
} bp_instance;

/* How instances of a model want to be called. */
#define BP_SERIAL 0     /* one call at a time, on one thread of its own, for its whole life                    */
#define BP_CONCURRENT 1 /* up to max_inflight calls at once, from several threads; a call may block            */
#define BP_CONTINUOUS 2 /* submit returns at once; the plugin schedules up to max_inflight requests itself     */

/* An opened model. */
typedef struct bp_model {
  uint32_t struct_size, flags;
  void *self;
  int32_t exec_class;           /* BP_SERIAL, BP_CONCURRENT, BP_CONTINUOUS                                     */
  uint32_t max_inflight;        /* per instance; SERIAL: 1                                                     */
  uint32_t max_batch;           /* rows the host may put into one submit; 1: none is batched                   */
  uint32_t cancel_grace_ms;     /* how long after cancel a request may take to finish                          */
  bp_str describe_json;         /* inputs, outputs, context length, ...: docs/capabilities/describe.md; "" = {} */

  /* A running copy, ready to serve. Errors: through err. [init] since 1.0 */
  bp_code (*instance_new)(struct bp_model *model, const bp_placement *placement, bp_instance **out, bp_err err);

  /* The model's extension, or NULL. May be NULL. [any][no-block] since 1.0 */
  const void *(*get_extension)(struct bp_model *model, bp_str id);

  /* Closes it and gives its memory back. No instance is left. [init] since 1.0 */
  void (*close)(struct bp_model *model);
} bp_model;

/* The library itself. Until init has returned BP_OK the other functions answer BP_BAD_STATE, and get_extension NULL. */
typedef struct bp_plugin {
  uint32_t struct_size, flags;
  void *self;
  uint16_t abi_minor_built;     /* BP_ABI_MINOR it was compiled with                                           */
  uint16_t abi_minor_min;       /* the least minor of a host it can live with                                  */
  uint32_t reserved;
  bp_str id, version;           /* as in the manifest; the host refuses a library where they differ            */

  /* Starts the plugin; config_json is its section of the host's configuration, an object. After an error
   * shutdown is not called and the library stays unused. [init] since 1.0 */
  bp_code (*init)(struct bp_plugin *plugin, bp_str config_json, bp_err err);

  /* What it claims about a job. Pure, no device work, at most 1 ms. [any][no-block] since 1.0 */
  bp_code (*bid)(struct bp_plugin *plugin, const bp_query *query, bp_bid *out);

  /* Opens a model. model_json: {"name","format","capabilities":[..],"files":[{"role","name","path",
   * "size"}],"parameters":{..}}; a file's name is its own, for its path may end in a digest.
   * Errors: BP_DATA_LOSS with reason "model_invalid" for a bad file, BP_RESOURCE_EXHAUSTED,
   * BP_FAILED_PRECONDITION, BP_INVALID_ARGUMENT for parameters. A host may ask for a model that the plugin did
   * not bid for, for want of a device or a runtime (BP_BID_REASON_DEVICE, BP_BID_REASON_RUNTIME): it is told what
   * is wrong with the model itself, or that this is missing. [init] since 1.0 */
  bp_code (*model_open)(struct bp_plugin *plugin, bp_str model_json, bp_model **out, bp_err err);

  /* The plugin's extension, or NULL. May be NULL. [any][no-block] since 1.0 */
  const void *(*get_extension)(struct bp_plugin *plugin, bp_str id);

  /* Ends the plugin; no model is open. The library stays mapped. [init] since 1.0 */
  void (*shutdown)(struct bp_plugin *plugin);
} bp_plugin;

/* The one exported symbol; the major version is in its name. Writes the plugin's table to *out and returns BP_OK;
 * any other code refuses the host. Runs no model code, starts no thread, touches no file. host outlives the
 * plugin. Called once per host; a process may hold several hosts. [init] since 1.0 */
bp_code bp_entry_v1(const bp_host *host, bp_plugin **out);

/* ==== Host extensions ===================================================================================== */

/* CPU threads are one pool for all plugins. Before a burst of work (a decode step, a graph run) an instance
 * acquires threads, and releases them after it. */
#define BP_EXT_COMPUTE_1 "bp.compute/1"
typedef struct bp_compute_1 {
  uint32_t struct_size, flags;

  /* Asks for 1..want threads and waits for at least one until deadline_ns (CLOCK_MONOTONIC; 0: no limit).
   * *granted says how many. Errors: BP_DEADLINE_EXCEEDED, BP_STALE_HANDLE. [any], may block. since 1.0 */
  bp_code (*acquire)(const bp_host *host, bp_ticket ticket, uint32_t want, int64_t deadline_ns,
                     uint32_t *granted);

  /* Gives granted threads back. Errors: BP_STALE_HANDLE, BP_BAD_STATE (more than were granted).
   * [any][no-block] since 1.0 */
  bp_code (*release)(const bp_host *host, bp_ticket ticket, uint32_t granted);
} bp_compute_1;

/* A plugin asks another capability through the host, on behalf of a request it is serving. */
#define BP_EXT_CALL_1 "bp.call/1"
#define BP_CALL_DEVICE 1u       /* tensors of the answer may stay in device memory: bp.device/1                */
typedef struct bp_call {
  uint32_t struct_size, flags;  /* BP_CALL_*                                                                   */
  bp_req parent;                /* caller, deadline, trace and depth come from it                              */
  bp_str capability, model;     /* model may be empty: the router chooses                                      */
  bp_str params_json;
  const bp_tensor *in;
  uint32_t n_in, in_stride;
  int64_t deadline_ns;          /* an earlier deadline than the parent's, or 0                                 */
  void *ctx;                    /* handed to the callbacks                                                     */

  /* A piece of the answer; valid until it returns. Another code than BP_OK cancels the call.
   * [any][no-block]: called on a host thread. since 1.0 */
  bp_code (*on_chunk)(void *ctx, const bp_chunk *chunk);

  /* The end, exactly once, after which ctx is not used again. [any][no-block] since 1.0 */
  void (*on_done)(void *ctx, const bp_done *done);
} bp_call;

typedef struct bp_call_1 {
  uint32_t struct_size, flags;

  /* Starts the call and returns; everything in call is copied, but for tensors with a buffer, which is retained.
   * Errors (then no callback comes): BP_STALE_HANDLE (parent finished, or a buffer that is not alive),
   * BP_FAILED_PRECONDITION (too deep, or it would wait for itself), BP_INVALID_ARGUMENT (text that is not UTF-8, a
   * tensor whose parts do not fit together), BP_BAD_STRUCT. [any][no-block] since 1.0 */
  bp_code (*start)(const bp_host *host, const bp_call *call, bp_req *out);

  /* The answer is not wanted any more; on_done still comes. Errors: BP_STALE_HANDLE. [any][no-block] since 1.0 */
  bp_code (*cancel)(const bp_host *host, bp_req call);
} bp_call_1;

/* Tensors that stay in the memory of a device on their way from one plugin to the next. NULL where plugins do not share a
 * process, as in a worker: device memory does not leave it, and a plugin answers from CPU memory there.
 *
 * Whose. The plugin that allocated it owns the memory and wraps it into a buffer. The host and other plugins hold
 * references to that buffer; they never allocate, free or move it.
 * When. A tensor stays on its device where the caller said so (BP_REQUEST_DEVICE, BP_CALL_DEVICE); for any other caller the
 * host has its owner copy it to CPU memory as it is pushed. A request brings a tensor in device memory only to a model
 * that takes it (bp.device_inputs/1); for any other model the host has it copied first.
 * What. Numbers, dense and row-major: strides NULL, no BP_DT_BYTES. dev_type and dev_id are those of the buffer, data is a
 * device pointer within it, and buffer is never 0: in a request it holds until finish, in on_chunk until that returns, and
 * whoever needs it for longer retains it. It is read-only for all but its owner, who does not change it any more either.
 * Waiting. With BP_SYNC_CUDA_EVENT the reader makes its own stream wait (cuStreamWaitEvent), or waits itself, before it
 * reads. The event is the owner's: it lives as long as the buffer, and nobody else records or destroys it. A reader lets go
 * of the buffer (finish, buf_release) only when its own work that reads it has ended.
 * CUDA. data is an address of the driver's in the context that CU_POINTER_ATTRIBUTE_CONTEXT names. A reader in another
 * context copies it on the device (cuMemcpyPeerAsync).
 * Loss. When the owner's instance was replaced because its device failed, its memory is lost: reading it gives
 * BP_UNAVAILABLE, and a request that needed it ends with the reason "device_lost". */
#define BP_EXT_DEVICE_1 "bp.device/1"

/* Device memory that its owner hands over. */
typedef struct bp_device_memory {
  uint32_t struct_size, flags;
  int32_t dev_type, dev_id;     /* BP_DEV_*, not BP_DEV_CPU                                                    */
  void *data;                   /* as the device addresses it: the host never follows it                       */
  uint64_t nbytes;
  void *ctx;                    /* handed to both functions                                                    */

  /* Copies nbytes from offset on to CPU memory, after whatever still writes them; they are within the memory. Errors:
   * through err, of the owner's host; BP_UNAVAILABLE with the reason "device_lost" when they are gone. [any], may block.
   * since 1.0 */
  bp_code (*read)(void *ctx, uint64_t offset, uint64_t nbytes, void *to, bp_err err);

  /* As of buf_wrap: once, when the last reference goes. [any] since 1.0 */
  void (*release)(void *ctx);
} bp_device_memory;

typedef struct bp_device_1 {
  uint32_t struct_size, flags;

  /* As buf_wrap. Errors: BP_NULL_ARGUMENT, BP_INVALID_ARGUMENT (longer than memory can be, or in CPU memory),
   * BP_BAD_STRUCT. [any] since 1.0 */
  bp_code (*wrap)(const bp_host *host, const bp_device_memory *memory, bp_buf *out);

  /* Has the owner of a buffer copy nbytes from data on, an address of the device's within it, to CPU memory. Errors:
   * BP_STALE_HANDLE, BP_NULL_ARGUMENT, BP_OUT_OF_RANGE (not within it), BP_INVALID_ARGUMENT (a buffer in CPU memory), or the
   * owner's: BP_UNAVAILABLE when it is lost. The log has the owner's words. [any], may block. since 1.0 */
  bp_code (*read)(const bp_host *host, bp_buf buf, const void *data, uint64_t nbytes, void *to);
} bp_device_1;

/* How this plugin stands with its licence (docs/licences.md). There for plugins whose manifest has licence_class
 * "commercial" or "optional". What it says is the host's policy, which an operator could change: a plugin that must be
 * sure takes the signed bytes, checks them against a key of its own, and does so again when the revision is another
 * and at least once an hour. */
#define BP_EXT_LICENSE_1 "bp.license/1"
#define BP_LICENSE_UNKNOWN 0     /* nobody has looked yet, which is not the same as unlicensed                 */
#define BP_LICENSE_OK 1
#define BP_LICENSE_GRACE 2       /* it has ended, and serves for some days more                                */
#define BP_LICENSE_DENIED 3
typedef struct bp_license_1 {
  uint32_t struct_size, flags;

  /* *state = BP_LICENSE_*; *revision is another number after each change of the licence or of how it stands. Either may
   * be NULL. [any][no-block] since 1.0 */
  bp_code (*state)(const bp_host *host, int32_t *state, uint64_t *revision);

  /* *value = what a tenant has of a feature: 1 is on, another number says how much. Errors: BP_NOT_FOUND (off, not this
   * tenant's, or the licence does not serve), BP_INVALID_ARGUMENT (text that is not UTF-8), BP_NULL_ARGUMENT.
   * [any][no-block] since 1.0 */
  bp_code (*feature)(const bp_host *host, bp_str tenant, bp_str name, int64_t *value);

  /* Copies the signed bytes to buf, which holds capacity bytes; *len says how many they are. They are a DSSE envelope
   * as JSON, of the type "application/vnd.backplane.license.v1+json". Errors: BP_OUT_OF_RANGE (they are more: *len is set,
   * nothing is copied, and buf may be NULL), BP_NOT_FOUND (there is no licence that could be read), BP_NULL_ARGUMENT.
   * [any][no-block] since 1.0 */
  bp_code (*envelope)(const bp_host *host, void *buf, uint64_t capacity, uint64_t *len);

  /* As envelope: the id of this installation, which a licence may be bound to. [any][no-block] since 1.0 */
  bp_code (*install_id)(const bp_host *host, void *buf, uint64_t capacity, uint64_t *len);
} bp_license_1;

/* ==== Plugin extensions =================================================================================== */

/* A model that can count the tokens of a request before it is admitted. Asked of bp_model.get_extension. */
#define BP_EXT_TOKENS_1 "bp.tokens/1"
typedef struct bp_tokens_1 {
  uint32_t struct_size, flags;

  /* *tokens = prompt tokens of a request with these parameters. No device work. Errors: through err.
   * [any] since 1.0 */
  bp_code (*count)(bp_model *model, bp_str capability, bp_str params_json, uint64_t *tokens, bp_err err);
} bp_tokens_1;

/* A model that reports figures of its engine (slots, batch size, tokens). Asked of bp_model.get_extension. */
#define BP_EXT_STATS_1 "bp.stats/1"
typedef struct bp_stats_1 {
  uint32_t struct_size, flags;

  /* Calls each(ctx, name, value) for every figure: names are lower_snake_case, end in their unit or in _total
   * for counters, and are few and fixed. Touches nothing and loads nothing. [any][no-block] since 1.0 */
  bp_code (*read)(bp_model *model, void *ctx, void (*each)(void *ctx, bp_str name, double value));
} bp_stats_1;

/* A model that takes tensors of its requests in device memory: see bp.device/1. Asked of bp_model.get_extension. */
#define BP_EXT_DEVICE_INPUTS_1 "bp.device_inputs/1"
typedef struct bp_device_inputs_1 {
  uint32_t struct_size, flags;

  /* Whether it takes tensors of this device: BP_OK, or any other code where the host is to have them copied to CPU memory.
   * It may differ from device to device, and not from request to request. [any][no-block] since 1.0 */
  bp_code (*takes)(bp_model *model, int32_t dev_type, int32_t dev_id);
} bp_device_inputs_1;

/* ==== What a library says of itself without being run ===================================================== */

/* An ELF note in a section named BP_NOTE_SECTION (allocated, so that it survives strip): name "Backplane\0",
 * type BP_NOTE_MANIFEST, description = the text of plugin.toml (docs/writing-plugins.md), padded with zero
 * bytes to a multiple of 4 (its size may count them in). The host reads it before it maps the library. */
#define BP_NOTE_SECTION ".note.backplane"
#define BP_NOTE_NAME "Backplane"
#define BP_NOTE_MANIFEST 1

#ifdef __cplusplus
}
#endif
#endif /* BACKPLANE_H */
