//! `serve`: the host and its HTTP front in one process.

use crate::args::Serve;
use crate::context::{CONFIG_FILE, Context, address_file};
use crate::exit::{Exit, Failure, Result};
use crate::holder::Holder;
use crate::logging;
use crate::output::{Output, Style, Table};
use crate::text;
use backplane::{Config, Host, ModelState, StartError};
use backplane_server::Server;
use serde_json::json;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What connections get after the host has drained: the last bytes of answers are on their way.
const LAST_BYTES: Duration = Duration::from_secs(2);

pub fn run(context: &Context, args: Serve) -> Result<()> {
    let config = context.load_config(overrides(context, &args)?)?;
    if args.new_admin_key && !config.auth.enabled {
        return Err(Failure::usage(
            "`--new-admin-key` makes a key, and with `auth.enabled = false` none is asked for",
        )
        .next("leave it out, or set `auth.enabled = true`"));
    }
    let state = context.state()?;
    logging::start(&state, &config.log, context.global.verbose, context.global.quiet)?;
    // Before anything else is made: who finds the port taken should not have a new key in the state directory.
    TcpListener::bind(config.server.address).map_err(|error| {
        let failure = no_port(config.server.address, &error);
        // The start would say this of the state directory, but only to who has got another port.
        match Holder::of(&state) {
            Some(holder) => taken_too(failure, holder, &state, config.server.address),
            None => failure,
        }
    })?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the signals cannot be watched: {error}")))?;
    // From here on a signal waits until the host can obey: a SIGHUP would end the process, a SIGTERM leave it half made.
    let signals = runtime.block_on(async { Signals::watch() })?;

    // A file that was made since the start counts too, where none was named.
    let (again, named, state_file) =
        (config.clone(), context.global.config.is_some(), state.join(CONFIG_FILE));
    let source = move || match (named, state_file.exists()) {
        (false, true) => again.read_from(Some(state_file.clone())),
        _ => again.read_again(),
    };
    let mut builder = Host::builder()
        .config(config)
        .config_source(source)
        .state_dir(&state)
        .new_admin_key(args.new_admin_key);
    for dir in &args.plugin_dir {
        if !dir.is_dir() {
            return Err(Failure::new(
                Exit::NotFound,
                format!("`--plugin-dir` {} is not a folder", dir.display()),
            ));
        }
        builder = builder.plugin_dir(dir);
    }
    let host = builder.start().map_err(not_started)?;
    let settings = host.config().server.clone();
    let asked = settings.address;
    let server = Server::start(host.clone(), settings).map_err(|error| no_port(asked, &error))?;
    let published = Published::new(&state, server.address())?;
    tracing::info!(address = %server.address(), state = %state.display(), version = host.version(), "serving");
    banner(&context.out, &host, server.address());
    if args.new_admin_key && host.first_key().is_none() {
        context.out.note("`--new-admin-key` made none: the key in `admin.key` works");
    }

    let end = runtime.block_on(until_stopped(host, server, signals));
    drop(published);
    match end {
        End::Drained => Ok(()),
        End::AtOnce => Err(Failure::failed("stopped at once by a second signal; open requests were cut off")),
    }
}

fn overrides(context: &Context, args: &Serve) -> Result<Vec<(String, String)>> {
    let mut overrides = args.settings.clone();
    // `BACKPLANE_ADDR` means the same to the server as to its clients.
    let address = match (&args.address, &context.global.host) {
        (Some(address), _) => Some(address.clone()),
        (None, Some(_)) => Some(context.address()?.to_bind()),
        (None, None) => None,
    };
    overrides.extend(address.map(|address| ("server.address".to_owned(), address)));
    if args.no_auth {
        overrides.push(("auth.enabled".to_owned(), "false".to_owned()));
    }
    Ok(overrides)
}

fn no_port(address: SocketAddr, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let who = crate::client::Address::parse(&address.to_string())
                .and_then(|address| {
                    let key = crate::context::Key { given: None, own: None, ours: false, lost: false };
                    crate::client::Client::new(address, key, false)
                })
                .is_ok_and(|client| client.is_up());
            let who = if who { "another backplane answers there" } else { "another program has it" };
            Failure::failed(format!("cannot listen on {address}: the address is already in use; {who}"))
                .next("stop it, or `--address 127.0.0.1:0` for a free port")
                .code("address_in_use")
        }
        io::ErrorKind::PermissionDenied => {
            Failure::new(Exit::Denied, format!("cannot listen on {address}: {error}"))
                .next("ports below 1024 need root; take a higher one with `--address`")
                .code("address_denied")
        }
        _ => Failure::failed(format!("cannot listen on {address}: {error}"))
            .next("name an address of this machine with `--address`")
            .code("address_unusable"),
    }
}

/// Neither the port nor the state directory can be had: mostly because this server runs already.
fn taken_too(port: Failure, holder: Holder, state: &Path, address: SocketAddr) -> Failure {
    let here =
        std::fs::read_to_string(address_file(state)).is_ok_and(|text| text.trim() == address.to_string());
    let what = if here {
        format!("{} serves this state directory, {}, at {address} already", holder.name(), state.display())
    } else {
        format!("{}; and {} uses this state directory, {}", port.what, holder.name(), state.display())
    };
    let next = "`backplane stop --server` stops it; `--state DIR --address 127.0.0.1:0` starts one beside it";
    let mut failure = Failure::failed(what).next(next).code("state_locked");
    let codes = [port.code.as_deref().unwrap_or_default(), "state_locked"];
    failure.details.insert("codes".to_owned(), json!(codes));
    failure
}

fn not_started(error: StartError) -> Failure {
    let code = match &error {
        StartError::NoStateDir | StartError::StateDir { .. } => "state_dir",
        StartError::Locked(_) => "state_locked",
        StartError::Store(_) => "store",
        StartError::Part { .. } => "start",
    };
    let failure = Failure::failed(error.to_string()).code(code);
    if code == "state_locked" { failure.next("`backplane stop --server` stops it") } else { failure }
}

/// The file that says where the server listens, as long as it does.
#[derive(Debug)]
struct Published(PathBuf);

impl Published {
    fn new(state: &Path, address: SocketAddr) -> Result<Self> {
        let path = address_file(state);
        let mut reached = address;
        if reached.ip().is_unspecified() {
            reached.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        // Whole or not at all: others read it at any time.
        let draft = path.with_extension("new");
        std::fs::write(&draft, format!("{reached}\n"))
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(|error| Failure::io("write", &path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

enum End {
    Drained,
    AtOnce,
}

/// The signals a server obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn watch() -> Result<Self> {
        let watch = |kind| {
            signal(kind).map_err(|error| Failure::failed(format!("a signal cannot be watched: {error}")))
        };
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            hang_up: watch(SignalKind::hangup())?,
        })
    }
}

/// Serves until a signal or an administrator says stop; reloads on SIGHUP.
async fn until_stopped(host: Host, server: Server, signals: Signals) -> End {
    let Signals { mut terminate, mut interrupt, mut hang_up } = signals;
    let mut asked = std::pin::pin!(host.stop_asked());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = &mut asked => break,
            _ = hang_up.recv() => {
                // What was changed is logged by the host.
                if let Err(error) = host.reload().await {
                    tracing::error!(%error, "not reloaded");
                }
            }
        }
    }
    let drain = host.config().server.drain;
    tracing::info!(?drain, "stopping: finishing open requests; a second signal ends at once");
    // Readiness goes with the first step of `shutdown`, while connections are still answered. It ends by waiting for
    // the host's thread, so it gets a thread of its own and the second signal is heard.
    let (done, drained) = tokio::sync::oneshot::channel();
    let stopping = host.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            runtime.block_on(async {
                stopping.shutdown(drain).await;
                server.stop(LAST_BYTES).await;
            });
        }
        done.send(()).ok();
    });
    tokio::select! {
        _ = drained => End::Drained,
        _ = terminate.recv() => at_once(host),
        _ = interrupt.recv() => at_once(host),
    }
}

fn at_once(host: Host) -> End {
    tracing::warn!("a second signal: ending at once");
    // Dropping the last handle waits for the host's thread; its journal is safe at any time.
    std::mem::forget(host);
    End::AtOnce
}

fn banner(out: &Output, host: &Host, address: SocketAddr) {
    let url = format!("http://{address}");
    let (config, plugins, models) = (host.config(), host.plugins(), host.models());
    let first = host.first_key();
    if out.json {
        out.value(&json!({
            "version": host.version(),
            "address": address,
            "url": url,
            "state": host.state_dir(),
            "config": config.file(),
            "auth": config.auth.enabled,
            "admin_key": first.as_ref().map(|key| &key.secret),
            "admin_key_file": first.as_ref().map(|key| &key.path),
            "plugins": plugins,
            "models": models,
        }));
        return;
    }
    out.line(format!(
        "{} {} {}",
        out.styled(Style::Bold, "backplane"),
        host.version(),
        out.styled(Style::Good, &url)
    ));
    out.line(format!("state   {}", host.state_dir().display()));
    if let Some(file) = config.file() {
        out.line(format!("config  {}", file.display()));
    }
    out.line(key_line(
        &config,
        first.as_ref().map(|key| (key.secret.as_str(), key.path.as_path())),
        host.state_dir(),
    ));

    out.line("");
    if plugins.is_empty() {
        out.line("no plugins: put shared libraries into `plugins` of the state directory, or name a folder with `--plugin-dir`");
    } else {
        out.table(&super::plugin::table(&plugins.iter().map(super::plugin::Row::from).collect::<Vec<_>>()));
    }
    out.line("");
    if models.is_empty() {
        out.line("no models: `backplane pull smollm2`, or put a file in with `backplane pull ./model.gguf`");
    } else {
        let mut table = Table::new(&["MODEL", "SIZE", "STATE", "SERVES"]);
        for model in &models {
            let size = if model.size == 0 { "built in".to_owned() } else { text::bytes(model.size) };
            let state = match (&model.problem, model.state) {
                (Some(problem), _) => problem.clone(),
                (None, state) => state_name(state).to_owned(),
            };
            table.row([model.name.to_string(), size, state, model.capabilities.join(", ")]);
        }
        out.table(&table);
    }
    let key = config.auth.enabled.then(|| host.state_dir().join(backplane::auth::ADMIN_KEY_FILE));
    try_it(out, &url, &models, key.as_deref());
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// As the API writes it.
pub fn state_name(state: ModelState) -> &'static str {
    match state {
        ModelState::Idle => "idle",
        ModelState::Loading => "loading",
        ModelState::Ready => "ready",
        ModelState::Closing => "closing",
        ModelState::Failed => "failed",
    }
}

fn key_line(config: &Config, first: Option<(&str, &Path)>, state: &Path) -> String {
    match first {
        _ if !config.auth.enabled => {
            "key     none is needed: anybody on this machine is an administrator".to_owned()
        }
        Some((secret, path)) => format!(
            "key     {secret}\n        an admin key, shown this once; kept in {}, readable by you only",
            path.display()
        ),
        None => {
            let path = state.join(backplane::auth::ADMIN_KEY_FILE);
            if path.exists() {
                format!("key     kept in {}; more: `backplane key create`", path.display())
            } else {
                format!(
                    "key     {} is not there; it was lost? `backplane serve --new-admin-key`",
                    path.display()
                )
            }
        }
    }
}

/// Lines to copy. `key`: the file that has one, where one is needed.
fn try_it(out: &Output, url: &str, models: &[backplane::ModelInfo], key: Option<&Path>) {
    let serves = |capability: &str| {
        let fit = models.iter().filter(|model| model.problem.is_none());
        let fit = fit.filter(|model| model.capabilities.iter().any(|name| name == capability));
        // The smallest answers soonest.
        fit.min_by_key(|model| model.size)
    };
    let bearer = if key.is_some() { "-H \"authorization: Bearer $KEY\" " } else { "" };
    let (path, body) = match (serves("chat"), serves("echo")) {
        (Some(model), _) => (
            "/v1/chat/completions",
            json!({"model": model.name, "messages": [{"role": "user", "content": "hello"}]}),
        ),
        (None, Some(_)) => ("/v1/capabilities/echo", json!({"params": {"text": "hello"}})),
        (None, None) => ("/v1/models", json!(null)),
    };
    let data = if body.is_null() {
        String::new()
    } else {
        format!(" -H 'content-type: application/json' -d '{body}'")
    };
    out.line("");
    if let Some(file) = key {
        out.line(if file.exists() {
            format!("key     export KEY=$(cat {})", quoted(file))
        } else {
            "key     export KEY=...".to_owned()
        });
    }
    let key = if key.is_some() { "os.environ[\"KEY\"]" } else { "\"none\"" };
    out.line(format!("curl    curl {bearer}{url}{path}{data}"));
    out.line(format!("Python  OpenAI(base_url=\"{url}/v1\", api_key={key})"));
    out.line(format!("page    open {url}/"));
}
