//! Every route, in one list, and what they all share.

use crate::caller::Scope::{Admin, InBody, Metrics, Open, User};
use crate::fetch::Fetcher;
use crate::oip::{infer, metadata, repository, settings, statistics, wire as oip};
use crate::openai::{chat, completions, embeddings, models};
use crate::route::{Route, delete, get, patch, post};
use crate::translate::files::Files;
use crate::translate::routes as libre;
use crate::{admin, capabilities, health, openapi, page, vision};
use backplane::{Host, payload};
use std::collections::BTreeMap;

/// What every route may use.
pub(crate) struct App {
    pub host: Host,
    pub body_limit: usize,
    pub json_depth: usize,
    pub fetcher: Fetcher,
    pub files: Files,
}

impl App {
    /// Whether pages of this origin may call the server.
    pub(crate) fn allows_origin(&self, origin: &[u8]) -> bool {
        let config = self.host.config();
        config.server.cors_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin)
    }
}

/// The routes. Of several that match, the first answers; so what is asked most, and what is most special, comes first.
pub(crate) fn routes() -> Vec<Route> {
    const CHAT: &str = "OpenAI";
    const OIP: &str = "Open Inference Protocol";
    const LIBRE: &str = "LibreTranslate";
    const VISION: &str = "Pictures";
    const ANY: &str = "Capabilities";
    const ADMIN: &str = "Administration";
    const HOST: &str = "Host";
    vec![
        // ---- OpenAI
        post("/v1/chat/completions", User, chat::create)
            .also_at(&["/openai/v1/chat/completions"])
            .doc(CHAT, "Answer a conversation")
            .takes::<chat::wire::Request>()
            .gives::<chat::answer::Completion>()
            .streams::<chat::answer::Piece<'_>>(),
        post("/v1/completions", User, completions::create)
            .also_at(&["/openai/v1/completions"])
            .doc(CHAT, "Continue a text, or several")
            .takes::<completions::wire::Request>()
            .gives::<completions::answer::Completion>()
            .streams::<completions::answer::Completion>(),
        post("/v1/embeddings", User, embeddings::create)
            .also_at(&["/openai/v1/embeddings"])
            .doc(CHAT, "Embed texts")
            .takes::<embeddings::wire::Request>()
            .gives::<embeddings::wire::Embeddings<'_>>(),
        get("/v1/models", User, models::list)
            .also_at(&["/openai/v1/models"])
            .doc(CHAT, "List the models")
            .gives::<models::List>(),
        get("/v1/models/{model:.+}", User, models::retrieve)
            .also_at(&["/openai/v1/models/{model:.+}"])
            .doc(CHAT, "Describe a model, by name, alias or route")
            .gives::<models::Model>(),
        // ---- pictures
        post("/v1/vision/ocr", User, vision::ocr)
            .doc(VISION, "Read the text of a picture, sent in JSON, as a form, or as it is")
            .takes::<vision::Asked<payload::ocr::Params>>()
            .pictures::<vision::Asked<payload::ocr::Params>>()
            .gives::<vision::Told<vision::Given<payload::ocr::Chunk>>>(),
        post("/v1/vision/detect", User, vision::detect)
            .doc(VISION, "Find what a picture shows, with a box around each thing")
            .takes::<vision::Asked<payload::vision_detect::Params>>()
            .pictures::<vision::Asked<payload::vision_detect::Params>>()
            .gives::<vision::Told<vision::Given<vision::Drawn<payload::vision_detect::Chunk>>>>(),
        post("/v1/vision/classify", User, vision::classify)
            .doc(VISION, "Tell what a picture shows as a whole")
            .takes::<vision::Asked<payload::vision_classify::Params>>()
            .pictures::<vision::Asked<payload::vision_classify::Params>>()
            .gives::<vision::Told<vision::Given<payload::vision_classify::Chunk>>>(),
        post("/v1/vision/faces", User, vision::faces)
            .doc(VISION, "Find faces, their eyes, nose and mouth")
            .takes::<vision::Asked<payload::vision_faces::Params>>()
            .pictures::<vision::Asked<payload::vision_faces::Params>>()
            .gives::<vision::Told<vision::Given<vision::Drawn<payload::vision_faces::Chunk>>>>(),
        post("/v1/vision/embed", User, vision::embed)
            .doc(VISION, "Make features of pictures, and tell how alike they are")
            .takes::<vision::Asked<payload::vision_embed::Params>>()
            .pictures::<vision::Asked<payload::vision_embed::Params>>()
            .gives::<vision::Told<vision::Embedded>>(),
        post("/ocr", User, vision::rapid_ocr)
            .doc(VISION, "Read the text of a picture, as RapidOCR's server does")
            .form::<vision::RapidForm>()
            .gives::<BTreeMap<usize, vision::RapidLine>>(),
        // ---- any capability
        post("/v1/capabilities/{capability}", User, capabilities::call)
            .doc(ANY, "Ask a capability, whatever it is")
            .takes::<capabilities::Request<'_>>()
            .gives::<capabilities::Answered<'_>>()
            .streams::<capabilities::Piece<'_>>(),
        get("/v1/capabilities/{capability}", User, capabilities::retrieve)
            .doc(ANY, "Tell which models and plugins offer a capability"),
        get("/v1/capabilities", User, capabilities::list).doc(ANY, "List what can be asked for"),
        // ---- LibreTranslate
        post("/translate", InBody, libre::translate)
            .doc(LIBRE, "Translate a text, or several; JSON or a form")
            .takes::<libre::Request>()
            .gives::<libre::Translated>(),
        post("/detect", InBody, libre::detect)
            .doc(LIBRE, "Tell which language a text is in")
            .gives::<Vec<libre::Detected>>(),
        get("/languages", Open, libre::languages)
            .doc(LIBRE, "List the languages, and what each can be translated into")
            .gives::<Vec<libre::Language>>(),
        post("/translate_file", InBody, libre::translate_file)
            .doc(LIBRE, "Translate a file of text, Markdown or HTML, sent as a form")
            .gives::<libre::TranslatedFile>(),
        get("/download_file/{name}", Open, libre::download)
            .doc(LIBRE, "Give a translated file")
            .media("application/octet-stream"),
        get("/frontend/settings", Open, libre::settings).doc(LIBRE, "Tell a translation page what it may do"),
        // ---- Open Inference Protocol
        post("/v2/models/{model:.+}/versions/{version}/infer", User, infer::infer)
            .doc(OIP, "Infer, with a version of a model")
            .takes::<oip::InferRequest<'_>>()
            .gives::<oip::InferResponse<'_>>(),
        post("/v2/models/{model:.+}/infer", User, infer::infer)
            .doc(OIP, "Infer; tensors as JSON or as binary data behind it")
            .takes::<oip::InferRequest<'_>>()
            .gives::<oip::InferResponse<'_>>(),
        get("/v2/health/live", Open, metadata::live).doc(OIP, "Tell whether the server lives"),
        get("/v2/health/ready", Open, metadata::ready).doc(OIP, "Tell whether the server takes requests"),
        get("/v2", User, metadata::server).doc(OIP, "Describe the server").gives::<oip::ServerMetadata>(),
        get("/v2/models/stats", User, statistics::all).doc(OIP, "Tell what every model has done"),
        get("/v2/models/{model:.+}/versions/{version}/stats", User, statistics::one)
            .doc(OIP, "Tell what a version of a model has done"),
        get("/v2/models/{model:.+}/stats", User, statistics::one).doc(OIP, "Tell what a model has done"),
        get("/v2/models/{model:.+}/versions/{version}/ready", User, metadata::model_ready)
            .doc(OIP, "Tell whether a version of a model is open"),
        get("/v2/models/{model:.+}/ready", User, metadata::model_ready)
            .doc(OIP, "Tell whether a model is open"),
        get("/v2/models/{model:.+}/versions/{version}/config", User, metadata::model_config)
            .doc(OIP, "Tell the configuration of a version of a model"),
        get("/v2/models/{model:.+}/config", User, metadata::model_config)
            .doc(OIP, "Tell the configuration of a model"),
        get("/v2/models/{model:.+}/trace/setting", User, settings::trace)
            .doc(OIP, "Tell a model's trace settings"),
        post("/v2/models/{model:.+}/trace/setting", Admin, settings::set_trace)
            .doc(OIP, "Refuse to change a model's trace settings"),
        get("/v2/models/{model:.+}/versions/{version}", User, metadata::model_metadata)
            .doc(OIP, "Describe the tensors of a version of a model")
            .gives::<oip::ModelMetadata>(),
        get("/v2/models/{model:.+}", User, metadata::model_metadata)
            .doc(OIP, "Describe the tensors of a model")
            .gives::<oip::ModelMetadata>(),
        post("/v2/repository/index", User, repository::index)
            .doc(OIP, "List the models and their states")
            .takes::<oip::IndexRequest>()
            .gives::<Vec<oip::IndexEntry>>(),
        post("/v2/repository/models/{model:.+}/load", Admin, repository::load)
            .doc(OIP, "Open a model")
            .takes::<oip::RepositoryRequest>(),
        post("/v2/repository/models/{model:.+}/unload", Admin, repository::unload)
            .doc(OIP, "Close a model")
            .takes::<oip::RepositoryRequest>(),
        get("/v2/trace/setting", User, settings::trace).doc(OIP, "Tell the trace settings"),
        post("/v2/trace/setting", Admin, settings::set_trace).doc(OIP, "Refuse to change the trace settings"),
        get("/v2/logging", User, settings::logging).doc(OIP, "Tell the log settings"),
        post("/v2/logging", Admin, settings::set_logging).doc(OIP, "Refuse to change the log settings"),
        get("/v2/systemsharedmemory/status", User, settings::no_regions)
            .also_at(&["/v2/cudasharedmemory/status"])
            .doc(OIP, "List shared memory regions: none"),
        get("/v2/systemsharedmemory/region/{region:.+}/status", User, settings::no_regions)
            .also_at(&["/v2/cudasharedmemory/region/{region:.+}/status"])
            .doc(OIP, "Describe a shared memory region: there is none"),
        post("/v2/systemsharedmemory/region/{region:.+}/register", User, settings::register)
            .also_at(&["/v2/cudasharedmemory/region/{region:.+}/register"])
            .doc(OIP, "Refuse shared memory"),
        post("/v2/systemsharedmemory/region/{region:.+}/unregister", User, settings::unregister)
            .also_at(&["/v2/cudasharedmemory/region/{region:.+}/unregister"])
            .doc(OIP, "Forget a shared memory region"),
        post("/v2/systemsharedmemory/unregister", User, settings::unregister)
            .also_at(&["/v2/cudasharedmemory/unregister"])
            .doc(OIP, "Forget every shared memory region"),
        // ---- administration
        get("/admin/v1/whoami", User, admin::whoami)
            .doc(ADMIN, "Tell whose key this is, its limits, and what it has spent and has left"),
        get("/admin/v1/models", Admin, admin::models).doc(ADMIN, "List the models with state and figures"),
        post("/admin/v1/models/{model:.+}/load", Admin, admin::load)
            .doc(ADMIN, "Open a model and wait until it serves")
            .takes::<admin::LoadRequest>(),
        post("/admin/v1/models/{model:.+}/unload", Admin, admin::unload)
            .doc(ADMIN, "Let a model finish what it has, then close it"),
        get("/admin/v1/models/{model:.+}/plan", Admin, admin::plan)
            .doc(ADMIN, "Tell what opening a model would take, without opening it"),
        get("/admin/v1/models/{model:.+}", Admin, admin::model).doc(ADMIN, "Describe a model"),
        post("/admin/v1/refresh", Admin, admin::refresh).doc(ADMIN, "Look again at what is installed"),
        get("/admin/v1/plugins", Admin, admin::plugins)
            .doc(ADMIN, "List the plugins, loaded or not, and why not"),
        post("/admin/v1/plugins/{plugin}/upgrade", Admin, admin::upgrade)
            .doc(ADMIN, "Let the installed version of a plugin take over while the host serves")
            .takes::<admin::UpgradeRequest>(),
        get("/admin/v1/plugins/{plugin}/upgrade", Admin, admin::upgraded)
            .doc(ADMIN, "Tell how the last upgrade of a plugin goes, or went"),
        delete("/admin/v1/plugins/{plugin}/quarantine", Admin, admin::unquarantine)
            .doc(ADMIN, "Let a plugin be started again that crashed again and again"),
        get("/admin/v1/keys", Admin, admin::keys)
            .doc(ADMIN, "List the keys, with what each has spent and has left")
            .gives::<admin::Keys>(),
        post("/admin/v1/keys", Admin, admin::create_key)
            .doc(ADMIN, "Make a key; its secret is in this answer only")
            .takes::<admin::KeyRequest>(),
        patch("/admin/v1/keys/{key}", Admin, admin::change_key)
            .doc(ADMIN, "Change the limits of a key; what it has spent stays spent")
            .takes::<admin::KeyChange>(),
        delete("/admin/v1/keys/{key}", Admin, admin::revoke_key).doc(ADMIN, "Revoke a key"),
        get("/admin/v1/config", Admin, admin::config).doc(ADMIN, "Show the configuration in force"),
        post("/admin/v1/config/reload", Admin, admin::reload)
            .doc(ADMIN, "Read the configuration anew: all of it, or none"),
        post("/admin/v1/shutdown", Admin, admin::shutdown)
            .doc(ADMIN, "Finish what is open, then end the server: as SIGTERM does")
            .gives::<admin::Stopping>(),
        post("/admin/v1/cache/flush", Admin, admin::flush).doc(ADMIN, "Empty the cache"),
        get("/admin/v1/health", Admin, health::ready).doc(ADMIN, "Tell how each part is"),
        // ---- the host
        // LibreTranslate has it without the z.
        get("/healthz", Open, health::alive).also_at(&["/health"]).doc(HOST, "Tell that the process lives"),
        get("/readyz", Open, health::ready).doc(HOST, "Tell whether the host takes requests, and why not"),
        get("/metrics", Metrics, health::metrics).doc(HOST, "Give Prometheus' text").media("text/plain"),
        get("/openapi.json", User, openapi::serve).doc(HOST, "Give this document"),
        get("/", Open, page::index).doc(HOST, "Show the page").media("text/html"),
        get("/page.css", Open, page::css).doc(HOST, "The page's style").media("text/css"),
        get("/page.js", Open, page::js).doc(HOST, "The page's script").media("text/javascript"),
        get("/docs", Open, page::docs).doc(HOST, "Show this document to people").media("text/html"),
        get("/docs.js", Open, page::docs_js).doc(HOST, "The script that shows it").media("text/javascript"),
        get("/favicon.svg", Open, page::icon).doc(HOST, "The page's sign").media("image/svg+xml"),
    ]
}
