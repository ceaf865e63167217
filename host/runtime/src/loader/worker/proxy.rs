//! The tables of a plugin that is in a worker.
//!
//! They outlive workers: a model knows what it was opened from and an instance where it was placed, so that a worker that
//! died is started again, and made to be what it was, by the next call that needs it.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI, played by the host")]

use super::crashes::{Crashes, Refused, fingerprint};
use super::host::{CancelWord, HostSide};
use super::link::{Link, Lost, Open, Returned};
use super::process::Why;
use super::{Launch, QUARANTINED, WorkerEntry, in_quarantine};
use backplane_abi::table::*;
use backplane_abi::worker::{Call, Channel, Failure, Placement, Query, Return, Row, Value, own_tensors};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A bid takes a millisecond, says the header. A worker that takes so long is ended.
const BID_LIMIT: Duration = Duration::from_secs(2);
/// The same for what else returns promptly.
const PROMPT: Duration = Duration::from_secs(5);

/// An error of ours.
struct Said {
    code: bp_code,
    message: String,
    reason: &'static str,
    retry_after: Duration,
}

impl Said {
    fn new(code: bp_code, message: impl Into<String>, reason: &'static str) -> Self {
        Self { code, message: message.into(), reason, retry_after: Duration::ZERO }
    }

    fn failure(&self) -> Failure<'_> {
        Failure {
            code: self.code,
            sub: BP_SUB_NONE,
            retry_after_ms: self.retry_after.as_millis() as u32,
            message: self.message.as_bytes(),
            reason: self.reason.as_bytes(),
            details: b"",
        }
    }
}

const UNAVAILABLE: bp_code = 14;

/// A plugin. Lives as long as the process, as its table may.
struct Proxy {
    table: bp_plugin,
    host: HostSide,
    launch: Arc<Launch>,
    id: Vec<u8>,
    version: Vec<u8>,
    state: Mutex<State>,
    crashes: Mutex<Crashes>,
}
// SAFETY: the table's pointers lead into this value, which is never freed.
unsafe impl Send for Proxy {}
// SAFETY: as above; everything that changes is behind a lock.
unsafe impl Sync for Proxy {}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    /// What it was initialised with.
    config: Option<Vec<u8>>,
    shut: bool,
    /// That it is in quarantine was noted down: whoever takes the note away lets it be tried again.
    noted: bool,
}

/// A number for a model, an instance or a request: never the same one twice.
fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// # Safety
/// As [`bp_str::bytes`].
unsafe fn owned(text: bp_str) -> Vec<u8> {
    // SAFETY: the caller's promise.
    unsafe { text.bytes() }.to_vec()
}

fn text(bytes: &[u8]) -> bp_str {
    bp_str { ptr: bytes.as_ptr().cast(), len: bytes.len() as u64 }
}

/// Passes on the reason of a call, and its code.
fn report(host: &HostSide, err: bp_err, returned: &Return<'_>) -> bp_code {
    if let Some(failure) = &returned.error {
        host.set_error(err, failure);
    }
    returned.code
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
            Err(why) => return failed(why),
        };
        let returned = match greet(&link, &host, self.launch.limit) {
            Ok(returned) => returned,
            Err(_) => return failed(ended(&link, "entered")),
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
            crashes: Mutex::default(),
        }));
        (proxy.table.id, proxy.table.version) = (text(&proxy.id), text(&proxy.version));
        proxy.table.self_ = (&raw mut *proxy).cast();
        // SAFETY: not null, and a place to write to.
        unsafe { *out = &raw mut proxy.table };
        code
    }
}

/// Enters the plugin in a worker that just started.
fn greet(link: &Link, host: &HostSide, limit: Duration) -> Result<Returned, Lost> {
    let known = &host.known;
    let whole = size_of::<bp_host>() <= known.struct_size as usize;
    let (name, version) = if whole {
        // SAFETY: strings of the host's table, which it keeps; of a table that is too short there are none.
        unsafe { (known.name.bytes(), known.version.bytes()) }
    } else {
        (&[][..], &[][..])
    };
    link.call(
        &Call::Enter {
            struct_size: known.struct_size,
            flags: known.flags,
            abi_major: known.abi_major,
            abi_minor: known.abi_minor,
            name,
            version,
            compute: host.has_compute(),
            call: host.has_call(),
            license: host.has_license(),
        },
        Some(limit),
    )
}

fn ended(link: &Link, doing: &str) -> String {
    let how = link.death().map_or_else(|| "ended".to_owned(), |death| death.how);
    format!("its worker {how} while it was {doing}")
}

impl Proxy {
    /// # Safety
    /// `plugin` is a table that [`WorkerEntry`] made.
    unsafe fn of<'a>(plugin: *mut bp_plugin) -> &'a Proxy {
        // SAFETY: the caller's promise; `self_` was set by `enter`, and a proxy is never freed.
        unsafe { &*(*plugin).self_.cast::<Proxy>() }
    }

    /// The worker, if it lives.
    fn alive(&self) -> Option<Arc<Link>> {
        self.state.lock().link.clone().filter(|link| !link.is_dead())
    }

    /// The worker; a new one when the last one died.
    fn link(&self) -> Result<Arc<Link>, Said> {
        let mut state = self.state.lock();
        if let Some(link) = state.link.as_ref().filter(|link| !link.is_dead() && !state.shut) {
            return Ok(link.clone());
        }
        let gone = state.link.take();
        let link = self.replace(&mut state, gone.as_deref())?;
        state.link = Some(link.clone());
        Ok(link)
    }

    /// The worker for an instance, in the place of `gone`: the plugin's, or one of its own.
    fn link_for_instance(&self, gone: Option<&Link>) -> Result<Arc<Link>, Said> {
        match self.launch.per_instance {
            true => self.replace(&mut self.state.lock(), gone),
            false => self.link(),
        }
    }

    /// An instance has left this worker, which ends if it was its own.
    fn leave(&self, link: &Link) {
        if self.launch.per_instance {
            // One that does not come back is ended with its process.
            let _lost = link.call(&Call::Shutdown {}, Some(PROMPT));
            link.close();
        }
    }

    /// A new worker, if there may be one now.
    fn replace(&self, state: &mut State, gone: Option<&Link>) -> Result<Arc<Link>, Said> {
        if state.shut {
            return Err(Said::new(BP_BAD_STATE, "the plugin was shut down", ""));
        }
        // One that kept a request whose caller had left did not crash: who leaves early must not be able to take a plugin
        // from all others.
        let death = gone.and_then(Link::death).filter(|death| !death.stuck);
        if let (Some(gone), Some(death)) = (gone, death) {
            let mut crashes = self.crashes.lock();
            crashes.add(death.at);
            crashes.suspect(death.at, gone.generation, &death.had);
            let quarantined = crashes.may_start(death.at) == Err(Refused::Quarantined);
            drop(crashes);
            if quarantined {
                let Launch { id, version, quarantine, .. } = &*self.launch;
                state.noted = quarantine.as_ref().is_some_and(|note| note.put(id, version, &death.how));
            }
        }
        let id = &self.launch.id;
        let quarantined = || Said::new(UNAVAILABLE, in_quarantine(id), QUARANTINED);
        if self.launch.is_quarantined() {
            state.noted = true;
            return Err(quarantined());
        }
        if std::mem::take(&mut state.noted) {
            *self.crashes.lock() = Crashes::default();
        }
        let refused = self.crashes.lock().may_start(Instant::now());
        match refused {
            Ok(()) => {}
            Err(Refused::Wait(left)) => {
                let message =
                    format!("plugin `{id}` crashed and is started again in {:.1} s", left.as_secs_f64());
                let mut said = Said::new(UNAVAILABLE, message, "worker_crashed");
                said.retry_after = left.max(Duration::from_millis(1));
                return Err(said);
            }
            Err(Refused::Quarantined) => return Err(quarantined()),
        }
        let link =
            self.revive(state.config.as_deref()).inspect_err(|_| self.crashes.lock().add(Instant::now()))?;
        if gone.is_some() {
            tracing::warn!(plugin = id, pid = link.pid, "a worker was started again");
        }
        Ok(link)
    }

    fn revive(&self, config: Option<&[u8]>) -> Result<Arc<Link>, Said> {
        let broken = |why: String| {
            Said::new(
                UNAVAILABLE,
                format!("plugin `{}` could not be started again: {why}", self.launch.id),
                "worker_crashed",
            )
        };
        let link = Link::start(&self.launch, self.host).map_err(broken)?;
        let entered =
            greet(&link, &self.host, self.launch.limit).map_err(|_| broken(ended(&link, "entered")))?;
        if entered.read().code != BP_OK {
            link.close();
            return Err(broken(format!("it refused this host (code {})", entered.read().code)));
        }
        if let Some(config) = config {
            let started = link
                .call(&Call::Init { config }, Some(self.launch.limit))
                .map_err(|_| broken(ended(&link, "initialised")))?;
            if started.read().code != BP_OK {
                link.close();
                return Err(broken(format!("its `init` failed (code {})", started.read().code)));
            }
        }
        Ok(link)
    }

    /// The words for a call that ended with its worker.
    fn lost(&self, link: &Link, doing: &str) -> Said {
        let message = format!("plugin `{}` broke down: {}", self.launch.id, ended(link, doing));
        Said::new(UNAVAILABLE, message, "worker_crashed")
    }

    fn fail(&self, err: bp_err, said: &Said) -> bp_code {
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

// ---- models -----------------------------------------------------------------------------------------------------

struct Model {
    table: bp_model,
    plugin: &'static Proxy,
    json: Vec<u8>,
    describe: Vec<u8>,
    functions: u8,
    /// Its number, in whatever worker.
    id: u64,
    /// Held while it is opened in a worker.
    opening: Mutex<()>,
}

unsafe extern "C" fn model_open(
    plugin: *mut bp_plugin,
    model_json: bp_str,
    out: *mut *mut bp_model,
    err: bp_err,
) -> bp_code {
    // SAFETY: our table, which is never freed; text valid until we return.
    let (plugin, json) = unsafe { (Proxy::of(plugin), owned(model_json)) };
    if out.is_null() {
        return BP_NULL_ARGUMENT;
    }
    let link = match plugin.link() {
        Ok(link) => link,
        Err(said) => return plugin.fail(err, &said),
    };
    let id = number();
    let Ok(returned) = link.call(&Call::Open { model: id, json: &json }, None) else {
        return plugin.fail(err, &plugin.lost(&link, "opening a model"));
    };
    let returned = returned.read();
    let code = report(&plugin.host, err, &returned);
    let Value::Model {
        struct_size,
        flags,
        exec_class,
        max_inflight,
        max_batch,
        cancel_grace_ms,
        describe,
        functions,
    } = returned.value
    else {
        return if code == BP_OK { BP_BAD_STRUCT } else { code };
    };
    let has = |bit: u8| functions & 1 << bit != 0;
    let model = Box::leak(Box::new(Model {
        table: bp_model {
            struct_size: struct_size.min(size_of::<bp_model>() as u32),
            flags,
            exec_class,
            max_inflight,
            max_batch,
            cancel_grace_ms,
            instance_new: has(0).then_some(instance_new as _),
            get_extension: has(1).then_some(model_extension as _),
            close: has(2).then_some(close as _),
            ..bp_model::new()
        },
        plugin,
        json,
        describe: describe.to_vec(),
        functions,
        id,
        opening: Mutex::default(),
    }));
    link.models.lock().insert(id);
    model.table.describe_json = text(&model.describe);
    model.table.self_ = (&raw mut *model).cast();
    // SAFETY: not null, and a place to write to. Given back in `close`.
    unsafe { *out = &raw mut model.table };
    code
}

impl Model {
    /// # Safety
    /// `model` is a table that `model_open` made and `close` has not ended.
    unsafe fn of<'a>(model: *mut bp_model) -> &'a Model {
        // SAFETY: the caller's promise; `self_` was set by `model_open`.
        unsafe { &*(*model).self_.cast::<Model>() }
    }

    /// Sees to it that it is open in this worker.
    fn open_in(&self, link: &Link) -> Result<(), Said> {
        let _alone = self.opening.lock();
        if link.models.lock().contains(&self.id) {
            return Ok(());
        }
        let returned = link
            .call(&Call::Open { model: self.id, json: &self.json }, None)
            .map_err(|_| self.plugin.lost(link, "opening a model"))?;
        let returned = returned.read();
        if returned.code != BP_OK {
            let message = returned.error.map_or_else(
                || format!("code {}", returned.code),
                |error| String::from_utf8_lossy(error.message).into_owned(),
            );
            let message = format!("the model could not be opened in another worker: {message}");
            return Err(Said::new(returned.code, message, ""));
        }
        link.models.lock().insert(self.id);
        Ok(())
    }

    /// The plugin's worker, if it lives and has this model.
    fn alive(&self) -> Option<Arc<Link>> {
        self.plugin.alive().filter(|link| link.models.lock().contains(&self.id))
    }
}

unsafe extern "C" fn model_extension(model: *mut bp_model, id: bp_str) -> *const c_void {
    static TOKENS: bp_tokens_1 =
        bp_tokens_1 { struct_size: size_of::<bp_tokens_1>() as u32, flags: 0, count: Some(count) };
    static STATS: bp_stats_1 =
        bp_stats_1 { struct_size: size_of::<bp_stats_1>() as u32, flags: 0, read: Some(stats) };
    // SAFETY: our table; an id valid until we return.
    let (this, id) = unsafe { (Model::of(model), id.text()) };
    match id {
        Some(BP_EXT_TOKENS_1) if this.functions & 1 << 3 != 0 => (&raw const TOKENS).cast(),
        Some(BP_EXT_STATS_1) if this.functions & 1 << 4 != 0 => (&raw const STATS).cast(),
        _ => std::ptr::null(),
    }
}

unsafe extern "C" fn count(
    model: *mut bp_model,
    capability: bp_str,
    params_json: bp_str,
    tokens: *mut u64,
    err: bp_err,
) -> bp_code {
    // SAFETY: our table; texts valid until we return.
    let (this, capability, params) = unsafe { (Model::of(model), capability.bytes(), params_json.bytes()) };
    if tokens.is_null() {
        return BP_NULL_ARGUMENT;
    }
    // Who cannot count now is asked to do without.
    let Some(link) = this.alive() else { return BP_UNIMPLEMENTED };
    let Ok(returned) = link.call(&Call::Count { model: this.id, capability, params }, Some(PROMPT)) else {
        return this.plugin.fail(err, &this.plugin.lost(&link, "counting tokens"));
    };
    let returned = returned.read();
    if let Value::Tokens { tokens: counted } = returned.value {
        // SAFETY: not null, and a place to write to.
        unsafe { *tokens = counted };
    }
    report(&this.plugin.host, err, &returned)
}

unsafe extern "C" fn stats(
    model: *mut bp_model,
    ctx: *mut c_void,
    each: Option<unsafe extern "C" fn(ctx: *mut c_void, name: bp_str, value: f64)>,
) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Model::of(model) };
    let (Some(each), Some(link)) = (each, this.alive()) else { return BP_OK };
    if let Ok(returned) = link.call(&Call::Stats { model: this.id }, Some(PROMPT))
        && let Value::Figures { figures } = returned.read().value
    {
        for figure in figures {
            // SAFETY: the host's callback with its ctx; the name is valid until it returns.
            unsafe { each(ctx, text(figure.name), figure.value) };
        }
    }
    BP_OK
}

unsafe extern "C" fn close(model: *mut bp_model) {
    // SAFETY: our table, which nobody uses after this call.
    let this = unsafe { Box::from_raw((*model).self_.cast::<Model>()) };
    if let Some(link) = this.alive() {
        link.models.lock().remove(&this.id);
        let _lost = link.call(&Call::Close { model: this.id }, None);
    }
}

// ---- instances --------------------------------------------------------------------------------------------------

struct Instance {
    table: bp_instance,
    /// Not closed before its instances are destroyed.
    model: &'static Model,
    placement: Placement,
    seat: Mutex<Arc<Seat>>,
}

/// Where an instance is.
struct Seat {
    link: Arc<Link>,
    id: u64,
    /// Made, called and destroyed here, so that it is always the same thread of the worker; of a SERIAL one only, for the
    /// others have many callers.
    lane: Option<Channel>,
}

impl Seat {
    fn call(&self, call: &Call<'_>, limit: Option<Duration>) -> Result<Returned, Lost> {
        match &self.lane {
            Some(lane) => self.link.call_on(lane, call, limit),
            None => self.link.call(call, limit),
        }
    }
}

/// Makes an instance in a worker; in the place of one that was in `gone`.
fn seat(model: &Model, placement: Placement, gone: Option<&Link>) -> Result<(Seat, Returned), Said> {
    let link = model.plugin.link_for_instance(gone)?;
    let made = seat_in(model, placement, link.clone());
    if !made.as_ref().is_ok_and(|(_, returned)| returned.read().code == BP_OK) {
        model.plugin.leave(&link);
    }
    made
}

fn seat_in(model: &Model, placement: Placement, link: Arc<Link>) -> Result<(Seat, Returned), Said> {
    let id = number();
    model.open_in(&link)?;
    let lost = |_| model.plugin.lost(&link, "making an instance");
    let lane = link.lane().map_err(lost)?;
    let returned =
        link.call_on(&lane, &Call::New { model: model.id, instance: id, placement }, None).map_err(lost)?;
    let lane = if model.table.exec_class == BP_SERIAL {
        Some(lane)
    } else {
        link.give_back(lane);
        None
    };
    Ok((Seat { link, id, lane }, returned))
}

unsafe extern "C" fn instance_new(
    model: *mut bp_model,
    placement: *const bp_placement,
    out: *mut *mut bp_instance,
    err: bp_err,
) -> bp_code {
    // SAFETY: our table, which is not closed before its instances are destroyed; a placement valid until we return.
    let (model, raw) = unsafe { (&*(*model).self_.cast::<Model>(), bp_placement::view(placement)) };
    let (Some(raw), false) = (raw, out.is_null()) else { return BP_NULL_ARGUMENT };
    let placement = Placement {
        struct_size: raw.struct_size,
        flags: raw.flags,
        ticket: raw.ticket,
        dev_type: raw.dev_type,
        dev_id: raw.dev_id,
        threads: raw.threads,
        index: raw.index,
    };
    let plugin = model.plugin;
    let (seat, returned) = match seat(model, placement, None) {
        Ok(made) => made,
        Err(said) => return plugin.fail(err, &said),
    };
    let returned = returned.read();
    let code = report(&plugin.host, err, &returned);
    let Value::Instance { struct_size, flags, functions } = returned.value else {
        return if code == BP_OK { BP_BAD_STRUCT } else { code };
    };
    let has = |bit: u8| functions & 1 << bit != 0;
    let instance = Box::leak(Box::new(Instance {
        table: bp_instance {
            struct_size: struct_size.min(size_of::<bp_instance>() as u32),
            flags,
            submit: has(0).then_some(submit as _),
            // Always there: the worker is told of a caller who left, whether or not its plugin wants to hear.
            cancel: Some(cancel),
            health: has(2).then_some(health as _),
            quiesce: has(3).then_some(quiesce as _),
            get_extension: Some(instance_extension),
            destroy: has(5).then_some(destroy as _),
            ..bp_instance::new()
        },
        model,
        placement,
        seat: Mutex::new(Arc::new(seat)),
    }));
    instance.table.self_ = (&raw mut *instance).cast();
    // SAFETY: not null, and a place to write to. Given back in `destroy`.
    unsafe { *out = &raw mut instance.table };
    code
}

impl Instance {
    /// # Safety
    /// `instance` is a table that `instance_new` made and `destroy` has not ended.
    unsafe fn of<'a>(instance: *mut bp_instance) -> &'a Instance {
        // SAFETY: the caller's promise; `self_` was set by `instance_new`.
        unsafe { &*(*instance).self_.cast::<Instance>() }
    }

    /// Where it is; made again when its worker died.
    fn seat(&self) -> Result<Arc<Seat>, Said> {
        let mut now = self.seat.lock();
        if now.link.is_dead() {
            let (seat, returned) = seat(self.model, self.placement, Some(&now.link))?;
            let code = returned.read().code;
            if code != BP_OK {
                return Err(Said::new(code, "the instance could not be made again", "worker_crashed"));
            }
            *now = Arc::new(seat);
        }
        Ok(now.clone())
    }

    fn alive(&self) -> Option<Arc<Seat>> {
        Some(self.seat.lock().clone()).filter(|seat| !seat.link.is_dead())
    }
}

unsafe extern "C" fn submit(
    instance: *mut bp_instance,
    requests: *const bp_request,
    n: u32,
    stride: u32,
    err: bp_err,
) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Instance::of(instance) };
    let plugin = this.model.plugin;
    if n == 0 {
        return BP_OK;
    }
    if requests.is_null() || stride < 8 {
        return BP_BAD_STRUCT;
    }
    let suspects = |worker, had: &[u64]| plugin.crashes.lock().suspect(Instant::now(), worker, had);
    // Work that no worker has read is tried once more, on a new one.
    for _ in 0..2 {
        let seat = match this.seat() {
            Ok(seat) => seat,
            Err(said) => return plugin.fail(err, &said),
        };
        let mut rows = Vec::with_capacity(n as usize);
        let mut open = Vec::with_capacity(n as usize);
        for row in 0..n as usize {
            // SAFETY: n rows at stride, valid until we return, and what they point to longer.
            let Some((row, entry)) = (unsafe { read(requests.byte_add(row * stride as usize), seat.id) })
            else {
                return BP_BAD_STRUCT;
            };
            if plugin.crashes.lock().is_suspect(Instant::now(), entry.fingerprint) {
                let message = format!(
                    "this request crashed plugin `{}` twice, and is not given to it again for a while",
                    plugin.launch.id
                );
                let said = Said::new(BP_INVALID_ARGUMENT, message, "request_crashes_plugin");
                plugin.host.finish(entry.sink, Some(&said.failure()), b"", -1.0);
                continue;
            }
            open.push((row.id, entry));
            rows.push(row);
        }
        if rows.is_empty() {
            return BP_OK;
        }
        let ids: Vec<u64> = rows.iter().map(|row| row.id).collect();
        if !seat.link.register(open) {
            continue;
        }
        match seat.call(&Call::Submit { instance: seat.id, rows }, None) {
            Ok(returned) => {
                let returned = returned.read();
                if returned.code == BP_OK {
                    seat.link.submitted(&ids, |had| suspects(seat.link.generation, had));
                } else {
                    seat.link.forget(&ids);
                    if returned.error.as_ref().is_some_and(|error| error.sub == BP_SUB_FATAL) {
                        seat.link.kill(Why::Broken);
                    }
                }
                return report(&plugin.host, err, &returned);
            }
            // It had them: they end with it.
            Err(Lost { sent: true }) => {
                seat.link.submitted(&ids, |had| suspects(seat.link.generation, had));
                return BP_OK;
            }
            Err(Lost { sent: false }) => seat.link.forget(&ids),
        }
    }
    plugin.fail(err, &Said::new(UNAVAILABLE, "the plugin's worker died twice in a row", "worker_crashed"))
}

/// A request as it travels, and as the link keeps it.
///
/// # Safety
/// `row` is readable up to its `struct_size`, and what it points to is valid for `'a`.
unsafe fn read<'a>(row: *const bp_request, instance: u64) -> Option<(Row<'a>, Open)> {
    // SAFETY: the caller's promise, for all of it.
    unsafe {
        let raw = bp_request::view(row)?;
        let cancel = CancelWord(raw.cancel);
        let tensors = own_tensors(raw.r#in, raw.n_in, raw.in_stride)?;
        let (capability, params) = (raw.capability.bytes(), raw.params_json.bytes());
        let data = tensors.iter().filter_map(|tensor| tensor.data.map(|data| data.bytes));
        let print = fingerprint([capability, params].into_iter().chain(data));
        let row = Row {
            struct_size: raw.struct_size,
            flags: raw.flags,
            id: number(),
            capability,
            params,
            tensors,
            request_id: raw.request_id.bytes(),
            traceparent: raw.traceparent.bytes(),
            tenant: raw.tenant.bytes(),
            deadline_ns: raw.deadline_ns,
            cancelled: cancel.is_set(),
            priority: raw.priority,
            capability_version: raw.capability_version,
        };
        let id = raw.request_id.lossy().into_owned();
        let open = Open::new(raw.sink, instance, cancel, id, print, row.cancelled);
        Some((row, open))
    }
}

unsafe extern "C" fn cancel(instance: *mut bp_instance, request: bp_req) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Instance::of(instance) };
    if let Some(seat) = this.alive() {
        seat.link.cancel(request);
    }
    BP_OK
}

unsafe extern "C" fn health(instance: *mut bp_instance, state: *mut i32, err: bp_err) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Instance::of(instance) };
    let plugin = this.model.plugin;
    if state.is_null() {
        return BP_NULL_ARGUMENT;
    }
    let returned = this.alive().map(|seat| seat.link.call(&Call::Health { instance: seat.id }, Some(PROMPT)));
    let Some(Ok(returned)) = returned else {
        // SAFETY: not null, and a place to write to.
        unsafe { *state = BP_HEALTH_DEGRADED };
        plugin.fail(
            err,
            &Said::new(UNAVAILABLE, "its worker died; the next request starts it again", "worker_crashed"),
        );
        return BP_OK;
    };
    let returned = returned.read();
    if let Value::State { state: said } = returned.value {
        // SAFETY: as above.
        unsafe { *state = said };
    }
    report(&plugin.host, err, &returned)
}

unsafe extern "C" fn quiesce(instance: *mut bp_instance, deadline_ns: i64) -> bp_code {
    // SAFETY: our table.
    let this = unsafe { Instance::of(instance) };
    let Some(seat) = this.alive() else { return BP_OK };
    let quiesced = seat.link.call(&Call::Quiesce { instance: seat.id, deadline_ns }, None);
    // What is gone is idle.
    quiesced.map_or(BP_OK, |returned| returned.read().code)
}

unsafe extern "C" fn instance_extension(_instance: *mut bp_instance, _id: bp_str) -> *const c_void {
    // None is known that an instance would have.
    std::ptr::null()
}

/// Ends the worker that this instance is in, if it is in one: what hangs in a process of its own need not be left to it.
pub fn end(instance: *mut bp_instance, known: &bp_instance) {
    // Only a table of ours has this function, whatever a plugin says of itself.
    let ours = known.submit.is_some_and(|function| std::ptr::fn_addr_eq(function, submit as SubmitFn));
    // SAFETY: our table, by its function.
    let seat = if ours { unsafe { Instance::of(instance) }.alive() } else { None };
    if let Some(seat) = seat {
        seat.link.kill(Why::Stuck);
    }
}

type SubmitFn = unsafe extern "C" fn(*mut bp_instance, *const bp_request, u32, u32, bp_err) -> bp_code;

unsafe extern "C" fn destroy(instance: *mut bp_instance) {
    // SAFETY: our table, which nobody uses after this call.
    let this = unsafe { Box::from_raw((*instance).self_.cast::<Instance>()) };
    let seat = this.seat.into_inner();
    if seat.link.is_dead() || seat.call(&Call::Destroy { instance: seat.id }, None).is_err() {
        return;
    }
    this.model.plugin.leave(&seat.link);
    if let Some(Seat { link, lane: Some(lane), .. }) = Arc::into_inner(seat) {
        link.give_back(lane);
    }
}
