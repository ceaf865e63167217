//! Which worker a call goes to: the one that runs, or a new one in the place of one that died, if there may be one now.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI, played by the host")]

use super::super::crashes::{Crashes, Refused};
use super::super::host::HostSide;
use super::super::link::{Link, Lost, NotStarted, Returned};
use super::super::{Launch, QUARANTINED, in_quarantine};
use super::plugin::{Proxy, State};
use super::{PROMPT, Said, UNAVAILABLE};
use backplane_abi::table::*;
use backplane_abi::worker::Call;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The reason of an error that says that a worker could not be started, which was no crash.
const NOT_STARTED: &str = "worker_not_started";

impl Proxy {
    /// The worker; a new one when the last one died.
    pub(super) fn link(&self) -> Result<Arc<Link>, Said> {
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
    pub(super) fn link_for_instance(&self, gone: Option<&Link>) -> Result<Arc<Link>, Said> {
        match self.launch.per_instance {
            true => self.replace(&mut self.state.lock(), gone),
            false => self.link(),
        }
    }

    /// An instance has left this worker, which ends if it was its own.
    pub(super) fn leave(&self, link: &Link) {
        if !self.launch.per_instance {
            return;
        }
        if link.is_dead() {
            // Nobody else would hear of it.
            return self.died(&mut self.state.lock(), link);
        }
        // One that does not come back is ended with its process.
        let _lost = link.call(&Call::Shutdown {}, Some(PROMPT));
        link.close();
    }

    /// Counts the end of a worker, once.
    fn died(&self, state: &mut State, gone: &Link) {
        // One that kept a request whose caller had left did not crash: who leaves early must not be able to take a plugin
        // from all others.
        if let Some(death) = gone.uncounted_death().filter(|death| !death.stuck) {
            self.crashes.lock().suspect(death.at, gone.generation, &death.had);
            self.crashed(state, death.at, &death.how);
        }
    }

    /// Counts a crash; notes down that it was one too many.
    fn crashed(&self, state: &mut State, at: Instant, how: &str) {
        let mut crashes = self.crashes.lock();
        crashes.add(at);
        let quarantined = crashes.may_start(Instant::now()) == Err(Refused::Quarantined);
        drop(crashes);
        if quarantined {
            let Launch { id, version, quarantine, .. } = &*self.launch;
            state.noted = quarantine.as_ref().is_some_and(|note| note.put(id, version, how));
        }
    }

    /// A new worker, if there may be one now.
    fn replace(&self, state: &mut State, gone: Option<&Link>) -> Result<Arc<Link>, Said> {
        if state.shut {
            return Err(Said::new(BP_BAD_STATE, "the plugin was shut down", ""));
        }
        if let Some(gone) = gone {
            self.died(state, gone);
        }
        let id = &self.launch.id;
        let quarantined = || Said::new(UNAVAILABLE, in_quarantine(id), QUARANTINED);
        if self.launch.is_quarantined() {
            state.noted = true;
            return Err(quarantined());
        }
        if std::mem::take(&mut state.noted) {
            *self.crashes.lock() = Crashes::new();
        }
        let refused = self.crashes.lock().may_start(Instant::now());
        match refused {
            Ok(()) => {}
            Err(Refused::Wait(left)) => return Err(self.wait(state, left)),
            Err(Refused::Quarantined) => return Err(quarantined()),
        }
        let link = self.revive(state.config.as_deref()).map_err(|why| self.not_started(state, why))?;
        self.crashes.lock().started();
        state.unable = None;
        if gone.is_some() {
            tracing::warn!(plugin = id, pid = link.pid(), "a worker was started again");
        }
        Ok(link)
    }

    /// It is started again, but not now.
    fn wait(&self, state: &State, left: Duration) -> Said {
        let (id, seconds) = (&self.launch.id, left.as_secs_f64());
        let mut said = match &state.unable {
            None => Said::new(
                UNAVAILABLE,
                format!("plugin `{id}` crashed and is started again in {seconds:.1} s"),
                "worker_crashed",
            ),
            Some(why) => Said::new(
                UNAVAILABLE,
                format!(
                    "plugin `{id}` could not be started again: {why}; it is tried again in {seconds:.1} s"
                ),
                NOT_STARTED,
            ),
        };
        said.retry_after = left.max(Duration::from_millis(1));
        said
    }

    /// The worker that was to be started is not there.
    fn not_started(&self, state: &mut State, why: NotStarted) -> Said {
        let (id, now) = (&self.launch.id, Instant::now());
        tracing::error!(plugin = id, %why, "a worker could not be started again");
        match why {
            NotStarted::Crashed(how) => {
                state.unable = None;
                self.crashed(state, now, &how);
                let message = format!("plugin `{id}` could not be started again: its worker {how}");
                Said::new(UNAVAILABLE, message, "worker_crashed")
            }
            NotStarted::Unable(why) => {
                state.unable = Some(why);
                let mut crashes = self.crashes.lock();
                crashes.failed(now);
                let refused = crashes.may_start(now);
                drop(crashes);
                let left = if let Err(Refused::Wait(left)) = refused { left } else { Duration::ZERO };
                self.wait(state, left)
            }
        }
    }

    fn revive(&self, config: Option<&[u8]>) -> Result<Arc<Link>, NotStarted> {
        let link = Link::start(&self.launch, self.host)?;
        let crashed = |doing| NotStarted::Crashed(ended(&link, doing));
        let refused = |what, code| {
            link.close();
            NotStarted::Unable(format!("{what} (code {code})"))
        };
        let entered = greet(&link, &self.host, self.launch.limit).map_err(|_| crashed("entered"))?;
        if entered.read().code != BP_OK {
            return Err(refused("it refused this host", entered.read().code));
        }
        if let Some(config) = config {
            let started = link
                .call(&Call::Init { config }, Some(self.launch.limit))
                .map_err(|_| crashed("initialised"))?;
            if started.read().code != BP_OK {
                return Err(refused("its `init` failed", started.read().code));
            }
        }
        Ok(link)
    }
}

/// Enters the plugin in a worker that just started.
pub(super) fn greet(link: &Link, host: &HostSide, limit: Duration) -> Result<Returned, Lost> {
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

/// How a worker ended, as in "its worker ...".
pub(super) fn ended(link: &Link, doing: &str) -> String {
    let how = link.death().map_or_else(|| "ended".to_owned(), |death| death.how);
    format!("{how} while it was {doing}")
}
