// my-plugin: gives a text back word by word, each as soon as its reader wants it.
//
// backplane.h beside this file is the manual. From top to bottom: answering one request, then the three tables
// (instance, model, plugin), then the manifest. Yours starts where it says HERE.
//
// No exception may leave a function of the tables: each is written as `guarded(.., [&] { .. })`, which catches.
#include "backplane.h"
#include "json.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>

namespace {

constexpr std::string_view ID = "com.example.my-plugin"; // as in plugin.toml, and so is the version
constexpr std::string_view VERSION = "0.1.0";
constexpr std::string_view CAPABILITY = "com.example.my-plugin";
constexpr std::size_t MOST_WORDS = 10000;

bp_str str(std::string_view text) { return bp_str{text.data(), text.size()}; }
std::string_view view(bp_str text) { return text.len == 0 ? std::string_view{} : std::string_view{text.ptr, text.len}; }

// A table with its size set and everything else zero, as a member that comes later has to be.
template <class Table> Table table() {
  Table it{};
  it.struct_size = sizeof it;
  return it;
}

// ---- Failures ----------------------------------------------------------------------------------------------

// What a request or a call fails with: the code says who has to act, the reason and the details are for programs.
struct Failure : std::runtime_error {
  bp_code code;
  std::string reason, details;
  Failure(bp_code code, const std::string &message, std::string reason = "", std::string details = "")
      : std::runtime_error(message), code(code), reason(std::move(reason)), details(std::move(details)) {}

  bp_error error() const {
    bp_error it = table<bp_error>();
    it.code = code;
    it.message = str(what());
    it.reason = str(reason);
    it.details_json = str(details);
    return it;
  }
};

// Runs what may throw, and hands what it threw to `failed`.
template <class Work, class Failed> void caught(Work work, Failed failed) noexcept {
  try {
    work();
  } catch (const Failure &failure) {
    failed(failure.error());
  } catch (const std::bad_alloc &) {
    bp_error error = table<bp_error>();
    error.code = BP_RESOURCE_EXHAUSTED;
    error.message = str("no memory");
    failed(error);
  } catch (const std::exception &exception) {
    bp_error error = table<bp_error>();
    error.code = BP_INTERNAL;
    error.message = str(exception.what());
    failed(error);
  } catch (...) {
    bp_error error = table<bp_error>();
    error.code = BP_INTERNAL;
    error.message = str("an unknown exception");
    failed(error);
  }
}

// The same for a function that leaves its reason with the host.
template <class Work> bp_code guarded(const bp_host *host, bp_err err, Work work) noexcept {
  bp_code code = BP_OK;
  caught(work, [&](const bp_error &error) {
    code = error.code;
    host->set_error(host, err, &error);
  });
  return code;
}

// ---- Answering a request -----------------------------------------------------------------------------------

class Request {
public:
  Request(const bp_host *host, const bp_request *row) : host(host), row(row) {}

  std::string_view capability() const { return view(row->capability); }
  bp_str params() const { return row->params_json; }
  bool cancelled() const { return __atomic_load_n(row->cancel, __ATOMIC_RELAXED) != 0; }

  // Offers a piece until it is taken: a reader that is behind is waited for.
  void push(std::string_view json) const {
    bp_chunk chunk = table<bp_chunk>();
    chunk.json = str(json);
    for (;;) {
      const bp_code code = cancelled() ? BP_CANCELLED : host->push(host, row->sink, &chunk);
      if (code == BP_OK) return;
      if (code == BP_CANCELLED) throw Failure(BP_CANCELLED, "the caller has left");
      if (code != BP_WOULD_BLOCK) throw Failure(BP_INTERNAL, "the host refused a piece of the answer");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  // The last thing that happens to a request, exactly once.
  void finish(const bp_error *error) const {
    bp_done done = table<bp_done>();
    done.error = error;
    done.confidence = -1.0; // not known
    host->finish(host, row->sink, &done);
  }

private:
  const bp_host *host;
  const bp_request *row;
};

// HERE: what a caller may say.
struct Params {
  std::string_view text;

  explicit Params(bp_str json) {
    Reader reader;
    if (json_object(json, Reader::member, &reader) == 0) {
      if (!reader.wrong.empty()) throw Failure(BP_INVALID_ARGUMENT, reader.wrong, "", param(reader.name));
      throw Failure(BP_INVALID_ARGUMENT, "the parameters are not a JSON object");
    }
    if (reader.text == nullptr) throw Failure(BP_INVALID_ARGUMENT, "`text` is missing", "", param("text"));
    text = view(*reader.text);
  }

private:
  struct Reader {
    std::unique_ptr<bp_str> text;
    std::string wrong, name;

    static int member(void *ctx, bp_str name, char kind, bp_str value) {
      Reader &self = *static_cast<Reader *>(ctx);
      self.name = std::string(view(name));
      if (view(name) != "text") self.wrong = "there is no parameter `" + self.name + "`: this capability takes `text`";
      else if (kind != '"') self.wrong = "`text` must be a string";
      else self.text = std::make_unique<bp_str>(value);
      return self.wrong.empty();
    }
  };

  // A name is JSON already: it keeps the escapes it came with.
  static std::string param(std::string_view name) { return "{\"param\":\"" + std::string(name) + "\"}"; }
};

// HERE: what it does. What it throws is what the request fails with.
void answer(const Request &request) {
  if (request.capability() != CAPABILITY) {
    throw Failure(BP_UNIMPLEMENTED, "this model serves `" + std::string(CAPABILITY) + "` only");
  }
  const Params params(request.params());
  const auto each_word = [&](auto &&what) {
    for (std::size_t at = 0; at < params.text.size();) {
      const std::size_t end = std::min(params.text.find(' ', at), params.text.size());
      if (end > at) what(params.text.substr(at, end - at));
      at = end + 1;
    }
  };
  std::size_t words = 0;
  each_word([&](std::string_view) { words++; });
  if (words > MOST_WORDS) {
    throw Failure(BP_OUT_OF_RANGE, "`text` has more than 10000 words: send it in parts", "text_too_long",
                  "{\"param\":\"text\",\"words\":" + std::to_string(words) + ",\"most\":" + std::to_string(MOST_WORDS) + "}");
  }
  each_word([&](std::string_view word) { request.push("{\"word\":\"" + std::string(word) + "\"}"); });
}

// ---- The instance: a running copy --------------------------------------------------------------------------

struct Instance {
  bp_instance it = table<bp_instance>();
  const bp_host *host;

  explicit Instance(const bp_host *host) : host(host) {
    it.self = this;
    it.submit = submit;
    it.destroy = [](bp_instance *instance) { delete static_cast<Instance *>(instance->self); };
  }

  static bp_code submit(bp_instance *instance, const bp_request *requests, uint32_t n, uint32_t stride, bp_err) {
    // Rows lie at the host's stride: a newer host's are longer than ours.
    const auto row = [&](uint32_t number) {
      return reinterpret_cast<const bp_request *>(reinterpret_cast<const char *>(requests) + std::size_t{number} * stride);
    };
    for (uint32_t i = 0; i < n; i++) { // all of them are taken, or none
      if (!BP_HAS(row(i), capability_version) || (row(i)->flags & BP_FLAG_REQUIRED_MASK) != 0) return BP_BAD_STRUCT;
    }
    for (uint32_t i = 0; i < n; i++) {
      const Request request(static_cast<Instance *>(instance->self)->host, row(i));
      bool failed = false;
      caught([&] { answer(request); }, [&](const bp_error &error) { failed = true; request.finish(&error); });
      if (!failed) request.finish(nullptr);
    }
    return BP_OK;
  }
};

// ---- The model ---------------------------------------------------------------------------------------------

struct Model {
  bp_model it = table<bp_model>();
  const bp_host *host;

  explicit Model(const bp_host *host) : host(host) {
    it.self = this;
    it.exec_class = BP_CONCURRENT; // `answer` is called from several threads at once
    it.max_inflight = 4;
    it.max_batch = 1;
    it.cancel_grace_ms = 1000;
    it.instance_new = instance_new;
    it.close = [](bp_model *model) { delete static_cast<Model *>(model->self); };
  }

  static bp_code instance_new(bp_model *model, const bp_placement *, bp_instance **out, bp_err err) {
    const Model &self = *static_cast<Model *>(model->self);
    return guarded(self.host, err, [&] { *out = &(new Instance(self.host))->it; });
  }
};

// ---- The plugin: one for each host -------------------------------------------------------------------------

struct Plugin {
  bp_plugin it = table<bp_plugin>();
  const bp_host *host;
  bool ready = false;

  explicit Plugin(const bp_host *host) : host(host) {
    it.self = this;
    it.abi_minor_built = BP_ABI_MINOR;
    it.id = str(ID);
    it.version = str(VERSION);
    it.init = init;
    it.bid = bid;
    it.model_open = model_open;
    it.shutdown = [](bp_plugin *plugin) { delete static_cast<Plugin *>(plugin->self); };
  }

  // The second argument is its section of the host's configuration; this plugin has nothing to be told.
  static bp_code init(bp_plugin *plugin, bp_str, bp_err) {
    Plugin &self = *static_cast<Plugin *>(plugin->self);
    if (self.ready) return BP_BAD_STATE;
    self.ready = true;
    return BP_OK;
  }

  static bp_code bid(bp_plugin *plugin, const bp_query *query, bp_bid *out) {
    if (!static_cast<Plugin *>(plugin->self)->ready) return BP_BAD_STATE;
    if (!BP_HAS(query, capability) || !BP_HAS(out, valid_ms)) return BP_BAD_STRUCT;
    const std::string_view asked = view(query->capability);
    out->score = asked.empty() || asked == CAPABILITY ? 500 : 0; // of 1000; 0: cannot
    out->quality = 500;
    out->valid_ms = 60000;
    return BP_OK;
  }

  static bp_code model_open(bp_plugin *plugin, bp_str card, bp_model **out, bp_err err) {
    const Plugin &self = *static_cast<Plugin *>(plugin->self);
    if (!self.ready) return BP_BAD_STATE;
    return guarded(self.host, err, [&] {
      // HERE: parameters of the card, which are passed over.
      if (json_object(card, [](void *, bp_str, char, bp_str) { return 1; }, nullptr) == 0) {
        throw Failure(BP_INVALID_ARGUMENT, "the model's card is not a JSON object");
      }
      *out = &(new Model(self.host))->it;
    });
  }
};

} // namespace

extern "C" __attribute__((visibility("default"))) bp_code bp_entry_v1(const bp_host *host, bp_plugin **out) {
  if (host == nullptr || out == nullptr) return BP_NULL_ARGUMENT;
  if (!BP_HAS(host, finish) || (host->flags & BP_FLAG_REQUIRED_MASK) != 0) return BP_BAD_STRUCT;
  Plugin *plugin = new (std::nothrow) Plugin(host);
  if (plugin == nullptr) return BP_RESOURCE_EXHAUSTED;
  *out = &plugin->it;
  return BP_OK;
}

// ---- The manifest: plugin.toml as an ELF note, to be read without running anything --------------------------

__asm__(
    ".pushsection " BP_NOTE_SECTION ", \"a\", %note\n"
    ".balign 4\n"
    ".long 1f - 0f, 3f - 2f, 1\n" // sizes of owner and text, BP_NOTE_MANIFEST
    "0: .asciz \"" BP_NOTE_NAME "\"\n"
    "1: .balign 4\n"
    "2: .incbin \"plugin.toml\"\n"
    "3: .balign 4\n"
    ".popsection\n");
