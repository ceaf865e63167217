//! One worker that runs.
//!
//! - `life`: its process and the main connection to it, until its end.
//! - `calls`: what is called in its plugin, each on a lane.
//! - `listen`: what it says on the main connection.
//! - `requests`: those that it has, and the pieces of their answers.
//! - `grants`: threads of the machine that its instances have.
//! - `nested`: calls to other capabilities that its plugin has under way.

pub use calls::{Lost, Returned};
pub use requests::Open;

mod calls;
mod grants;
mod life;
mod listen;
mod nested;
mod requests;

use super::arenas::Arenas;
use super::crashes::Fingerprint;
use super::host::HostSide;
use super::process::{self, Why};
use super::quiet::Quiet;
use super::turn::Turn;
use super::{Confinement, Launch};
use backplane_abi::table::bp_sink;
use backplane_abi::worker::{Channel, Confine, Credit, Credits, Out, PROTOCOL, ToHost, ToWorker, frame};
use grants::Grants;
use life::{Death, Life, readable};
use nested::Nested;
use parking_lot::{Condvar, Mutex};
use requests::Requests;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

/// How long a worker may leave unread what it is told, when no more fits into its connection.
const UNREAD: Duration = Duration::from_secs(2);

static QUIET: LazyLock<Quiet> = LazyLock::new(|| Quiet::new(cores()));

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
}

/// A worker, from its start to its end.
pub struct Link {
    this: Weak<Link>,
    host: HostSide,
    launch: Arc<Launch>,
    /// Later ones have larger numbers.
    pub generation: u64,
    /// The numbers of models that are open in it.
    pub models: Mutex<HashSet<u64>>,
    life: Arc<Life>,
    lanes: Mutex<Vec<Channel>>,
    /// How many the worker was given.
    lanes_made: AtomicU64,
    arenas: Arenas,
    credits: Arc<Credits>,
    requests: Requests,
    grants: Arc<Grants>,
    nested: Nested,
    turn: Turn,
    /// Held while frames of the main connection are read and done, so that they are done in their order.
    reading: Mutex<()>,
    /// How many were.
    heard: Mutex<u64>,
    progress: Condvar,
    /// How often the worker was told that it may look for the next call.
    looks: AtomicU64,
}

impl Link {
    /// Starts a worker and waits until the plugin is mapped in it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn start(launch: &Arc<Launch>, host: HostSide) -> Result<Arc<Link>, NotStarted> {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let unable = |error: std::io::Error| NotStarted::Unable(error.to_string());
        let (main, theirs) = Channel::pair().map_err(unable)?;
        set_socket_timeout(&main, Timeout::Send, Some(UNREAD)).map_err(|error| unable(error.into()))?;
        let credits = Credits::new()
            .map_err(|error| NotStarted::Unable(format!("no memory for a worker's flow: {error}")))?;
        let mut child = process::spawn(launch, theirs).map_err(|error| {
            let program = launch.program.display();
            NotStarted::Unable(match error.kind() {
                std::io::ErrorKind::NotFound => format!(
                    "`{program}` is not there: install it beside this program, or set `plugins.isolation.\"{}\" = \
                     \"in-process\"` at your own risk",
                    launch.id
                ),
                _ => format!("`{program}` cannot be started: {error}"),
            })
        })?;
        if let Err(why) = greet(&main, launch, &credits) {
            let ended = process::reap(&mut child, Duration::from_millis(200));
            return Err(why.unwrap_or_else(|| match ended {
                Ok(status) => {
                    let how = format!("{} before it was ready", process::describe(status));
                    launch.crashed(child.id(), process::kind(None, Some(status)), &how, &[]);
                    NotStarted::Crashed(how)
                }
                Err(error) => unable(error),
            }));
        }
        let life = match Life::new(main, child.id()) {
            Ok(life) => Arc::new(life),
            Err(error) => {
                let _ended = process::reap(&mut child, Duration::ZERO);
                return Err(unable(error));
            }
        };
        let link = Arc::new_cyclic(|this| Link {
            this: this.clone(),
            host,
            launch: launch.clone(),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            models: Mutex::default(),
            lanes: Mutex::default(),
            lanes_made: AtomicU64::new(0),
            arenas: Arenas::new(&launch.confinement),
            credits,
            requests: Requests::new(host, life.clone()),
            grants: Arc::new(Grants::new(host, life.clone())),
            nested: Nested::new(host),
            life,
            turn: Turn::default(),
            reading: Mutex::default(),
            heard: Mutex::new(0),
            progress: Condvar::new(),
            looks: AtomicU64::new(0),
        });
        let listener = link.clone();
        std::thread::Builder::new()
            .name(format!("worker {}", launch.id))
            .spawn(move || listener.listen(child))
            .map_err(|error| NotStarted::Unable(format!("no thread for a worker: {error}")))?;
        Ok(link)
    }

    pub fn pid(&self) -> u32 {
        self.life.pid
    }

    /// Whether it is gone, or about to: one that was killed takes nothing any more.
    pub fn is_dead(&self) -> bool {
        self.life.is_over()
    }

    /// How it ended; waits a moment for the system to say.
    pub fn death(&self) -> Option<Death> {
        self.life.death()
    }

    /// The same, to the first who asks so.
    pub fn uncounted_death(&self) -> Option<Death> {
        self.life.uncounted_death()
    }

    /// Ends it, for this reason.
    pub fn kill(&self, why: Why) {
        self.life.kill(why);
    }

    /// Lets it end: no plugin is in it any more.
    pub fn close(&self) {
        self.life.close();
    }

    /// Says something on the main connection. Whether it could be sent.
    pub fn tell(&self, out: &Out<'_>) -> bool {
        self.life.tell(out)
    }

    /// Whether who waits for an answer, and it for the next request, may look for it for a moment before they sleep.
    pub fn may_look(&self) -> bool {
        self.launch.polling && QUIET.is_so()
    }

    /// Where the worker will read how much of an answer was taken. `None` when it has as many requests as it can have.
    pub fn credit(&self) -> Option<Credit> {
        self.credits.lend()
    }

    /// Notes requests that are about to be sent. `false` when the worker is gone.
    pub fn register(&self, requests: Vec<(u64, Open)>) -> bool {
        self.requests.register(requests)
    }

    /// Forgets requests that were not taken.
    pub fn forget(&self, ids: &[u64]) {
        self.requests.forget(ids);
    }

    /// Their submit returned, or was lost with the worker that had read them. If that is dead they end here, after
    /// `suspects` was told their fingerprints: whoever hears of the end and asks again is known by then.
    pub fn submitted(&self, ids: &[u64], suspects: impl FnOnce(&[Fingerprint])) {
        self.requests.submitted(&self.launch.id, ids, suspects);
    }

    /// Tells the worker that the caller of a request left.
    pub fn cancel(&self, sink: bp_sink) {
        self.requests.cancel(sink);
    }

    /// A call to another capability has ended.
    pub fn call_ended(&self, number: u64) {
        self.nested.ended(number);
    }
}

/// Why there is no worker.
#[derive(Debug)]
pub enum NotStarted {
    /// It broke down: how, as in "its worker ...".
    Crashed(String),
    /// It cannot be, or the plugin refused: why.
    Unable(String),
}

impl std::fmt::Display for NotStarted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Crashed(how) => write!(f, "its worker {how}"),
            Self::Unable(why) => f.write_str(why),
        }
    }
}

/// Says what to load, and waits until it is. `None`: it ended.
fn greet(main: &Channel, launch: &Launch, credits: &Credits) -> Result<(), Option<NotStarted>> {
    let unable = |why: String| Err(Some(NotStarted::Unable(why)));
    let confine = match &launch.confinement {
        Confinement::Nothing => Confine::Nothing {},
        Confinement::Sandbox(granted) => Confine::Sandbox {
            read: granted.read.iter().map(|path| path.as_os_str().as_bytes()).collect(),
            write: granted.write.iter().map(|path| path.as_os_str().as_bytes()).collect(),
            memory: granted.memory,
            network: granted.network,
            ports: granted.ports.clone(),
            gpu: granted.gpu,
        },
    };
    let library = launch.library.as_os_str().as_bytes();
    let start = frame(&ToWorker::Start { protocol: PROTOCOL, library, confine });
    main.send_with(&start, launch.sealed.as_ref().map(AsFd::as_fd)).map_err(|_| None)?;
    if !readable(main, launch.limit) {
        return Err(Some(NotStarted::Crashed(format!("was not ready within {:?}", launch.limit))));
    }
    let Ok(Some((body, None))) = main.receive() else { return Err(None) };
    match body.read() {
        Ok(ToHost::Ready { problem: None, protocol: PROTOCOL, .. }) => {}
        Ok(ToHost::Ready { problem: Some(problem), .. }) => {
            return unable(String::from_utf8_lossy(problem).into_owned());
        }
        Ok(ToHost::Ready { protocol, .. }) => {
            return unable(format!(
                "its worker speaks protocol {protocol} and this host {PROTOCOL}: install both from one release"
            ));
        }
        _ => {
            return Err(Some(NotStarted::Crashed("said what is not in the protocol".to_owned())));
        }
    }
    main.send_with(&frame(&ToWorker::Credits {}), Some(credits.file())).map_err(|_| None)
}
