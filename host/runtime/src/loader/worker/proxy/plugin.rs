//! The table of a plugin in a worker.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI, played by the host")]

use super::super::crashes::Crashes;
use super::super::host::HostSide;
use super::super::link::Link;
use super::super::{Launch, WorkerEntry, in_quarantine};
use super::model::model_open;
use super::revival::{ended, greet};
use super::{PROMPT, Said, UNAVAILABLE, report, text};
use backplane_abi::table::*;
use backplane_abi::worker::{Call, Query, Return, Value, own_tensors};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

/// A bid takes a millisecond, says the header. A worker that takes so long is ended.
const BID_LIMIT: Duration = Duration::from_secs(2);

/// A plugin. Lives as long as the process, as its table may.
pub(super) struct Proxy {
    table: bp_plugin,
    pub(super) host: HostSide,
    pub(super) launch: Arc<Launch>,
    id: Vec<u8>,
    version: Vec<u8>,
    pub(super) state: Mutex<State>,
    pub(super) crashes: Mutex<Crashes>,
}
// SAFETY: the table's pointers lead into this value, which is never freed.
unsafe impl Send for Proxy {}
// SAFETY: as above; everything that changes is behind a lock.
unsafe impl Sync for Proxy {}

#[derive(Default)]
pub(super) struct State {
    pub(super) link: Option<Arc<Link>>,
    /// What it was initialised with.
    pub(super) config: Option<Vec<u8>>,
    pub(super) shut: bool,
    /// Why it could not be started, the last time: it did not crash.
    pub(super) unable: Option<String>,
    /// That it is in quarantine was noted down: whoever takes the note away lets it be tried again.
    pub(super) noted: bool,
}

/// # Safety
/// As [`bp_str::bytes`].
pub(super) unsafe fn owned(text: bp_str) -> Vec<u8> {
    // SAFETY: the caller's promise.
    unsafe { text.bytes() }.to_vec()
}

impl Enter for WorkerEntry {
    unsafe fn enter(&self, host: *const bp_host, out: *mut *mut bp_plugin) -> bp_code {
        // SAFETY: the caller's promise: a host's table that outlives the plugin.
        let (Some(host), false) = (unsafe { HostSide::new(host) }, out.is_null()) else {
            return BP_NULL_ARGUMENT;
        };
        *self.problem.lock() = None;
        let failed = |why: String| {
            *self.problem.lock() = Some(why);
            UNAVAILABLE
        };
        if self.launch.is_quarantined() {
            return failed(in_quarantine(&self.launch.id));
        }
        let link = match Link::start(&self.launch, host) {
            Ok(link) => link,
            Err(why) => return failed(why.to_string()),
        };
        let returned = match greet(&link, &host, self.launch.limit) {
            Ok(returned) => returned,
            Err(_) => return failed(format!("its worker {}", ended(&link, "entered"))),
        };
        let Return {
            code,
            value: Value::Plugin { struct_size, flags, minor_built, minor_min, id, version, functions },
            ..
        } = returned.read()
        else {
            link.close();
            let code = returned.read().code;
            return if code == BP_OK { BP_BAD_STRUCT } else { code };
        };
        let has = |bit: u8| functions & 1 << bit != 0;
        let proxy = Box::leak(Box::new(Proxy {
            table: bp_plugin {
                struct_size: struct_size.min(size_of::<bp_plugin>() as u32),
                flags,
                abi_minor_built: minor_built,
                abi_minor_min: minor_min,
                init: has(0).then_some(init as _),
                bid: has(1).then_some(bid as _),
                model_open: has(2).then_some(model_open as _),
                get_extension: has(3).then_some(plugin_extension as _),
                shutdown: has(4).then_some(shutdown as _),
                ..bp_plugin::new()
            },
            host,
            launch: self.launch.clone(),
            id: id.to_vec(),
            version: version.to_vec(),
            state: Mutex::new(State { link: Some(link), ..State::default() }),
            crashes: Mutex::new(Crashes::new()),
        }));
        (proxy.table.id, proxy.table.version) = (text(&proxy.id), text(&proxy.version));
        proxy.table.self_ = (&raw mut *proxy).cast();
        // SAFETY: not null, and a place to write to.
        unsafe { *out = &raw mut proxy.table };
        code
    }
}

impl Proxy {
    /// # Safety
    /// `plugin` is a table that [`WorkerEntry`] made.
    pub(super) unsafe fn of<'a>(plugin: *mut bp_plugin) -> &'a Proxy {
        // SAFETY: the caller's promise; `self_` was set by `enter`, and a proxy is never freed.
        unsafe { &*(*plugin).self_.cast::<Proxy>() }
    }

    /// The worker, if it lives.
    pub(super) fn alive(&self) -> Option<Arc<Link>> {
        self.state.lock().link.clone().filter(|link| !link.is_dead())
    }

    /// The words for a call that ended with its worker.
    pub(super) fn lost(&self, link: &Link, doing: &str) -> Said {
        let message = format!("plugin `{}` broke down: its worker {}", self.launch.id, ended(link, doing));
        Said::new(UNAVAILABLE, message, "worker_crashed")
    }

    pub(super) fn fail(&self, err: bp_err, said: &Said) -> bp_code {
        self.host.set_error(err, &said.failure());
        said.code
    }
}

unsafe extern "C" fn init(plugin: *mut bp_plugin, config_json: bp_str, err: bp_err) -> bp_code {
    // SAFETY: our table; text valid until we return.
    let (this, config) = unsafe { (Proxy::of(plugin), owned(config_json)) };
    let link = match this.link() {
        Ok(link) => link,
        Err(said) => return this.fail(err, &said),
    };
    match link.call(&Call::Init { config: &config }, Some(this.launch.limit)) {
        Ok(returned) => {
            let code = report(&this.host, err, &returned.read());
            if code == BP_OK {
                this.state.lock().config = Some(config);
            } else if this.state.lock().config.is_none() {
                // After an error shutdown is not called: nobody needs this worker any more.
                this.state.lock().shut = true;
                link.close();
            }
            code
        }
        Err(_) => this.fail(err, &this.lost(&link, "initialised")),
    }
}

thread_local! {
    /// Text of the last bid on this thread: the header lets the host read it until the next.
    static BID_TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "C" fn bid(plugin: *mut bp_plugin, query: *const bp_query, out: *mut bp_bid) -> bp_code {
    // SAFETY: our table; a query valid until we return.
    let (this, query) = unsafe { (Proxy::of(plugin), bp_query::view(query)) };
    let (Some(query), false) = (query, out.is_null()) else { return BP_NULL_ARGUMENT };
    // One whose worker died has to bid, too, or no model of its could be opened again.
    let Ok(link) = this.link() else { return UNAVAILABLE };
    // SAFETY: valid until we return; the host filled struct_size.
    let (shapes, out_size) =
        unsafe { (own_tensors(query.shapes, query.n_shapes, query.stride), (*out).struct_size) };
    let Some(shapes) = shapes else { return BP_BAD_STRUCT };
    // SAFETY: valid until we return.
    let (capability, format, model) =
        unsafe { (query.capability.bytes(), query.format.bytes(), query.model_json.bytes()) };
    let query = Query {
        struct_size: query.struct_size,
        flags: query.flags,
        capability,
        format,
        model,
        shapes,
        input_bytes: query.input_bytes,
        slo_p99_us: query.slo_p99_us,
        dev_type: query.dev_type,
        dev_id: query.dev_id,
        capability_version: query.capability_version,
    };
    let Ok(returned) = link.call(&Call::Bid { query, out_size }, Some(BID_LIMIT)) else { return UNAVAILABLE };
    let returned = returned.read();
    if let Value::Bid { bid } = &returned.value {
        let mut raw = bp_bid {
            struct_size: out_size,
            score: bid.score,
            quality: bid.quality,
            est_p50_us: bid.est_p50_us,
            est_p99_us: bid.est_p99_us,
            max_batch: bid.max_batch,
            valid_ms: bid.valid_ms,
            load_ms: bid.load_ms,
            bytes_dev: bid.bytes_dev,
            bytes_host: bid.bytes_host,
            reason: bid.reason,
            ..bp_bid::new()
        };
        BID_TEXT.with_borrow_mut(|kept| {
            bid.text.clone_into(kept);
            raw.text = text(kept);
        });
        let len = (out_size as usize).min(size_of::<bp_bid>());
        // SAFETY: the host's struct is `struct_size` bytes long, and no more is written.
        unsafe { std::ptr::copy_nonoverlapping((&raw const raw).cast::<u8>(), out.cast::<u8>(), len) };
    }
    returned.code
}

unsafe extern "C" fn plugin_extension(_plugin: *mut bp_plugin, _id: bp_str) -> *const c_void {
    // None is known that a plugin as such would have.
    std::ptr::null()
}

unsafe extern "C" fn shutdown(plugin: *mut bp_plugin) {
    // SAFETY: our table.
    let this = unsafe { Proxy::of(plugin) };
    this.state.lock().shut = true;
    let link = this.state.lock().link.take();
    if let Some(link) = link.filter(|link| !link.is_dead()) {
        // One that does not come back is ended with its process.
        let _lost = link.call(&Call::Shutdown {}, Some(PROMPT));
        link.close();
    }
}
