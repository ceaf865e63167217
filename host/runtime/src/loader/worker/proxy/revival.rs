//! Which worker a call goes to: the one that runs, or a new one in the place of one that died, if there may be one now.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI, played by the host")]

use super::super::crashes::{Crashes, Refused};
use super::super::host::HostSide;
use super::super::link::{Link, Lost, Returned};
use super::super::{Launch, QUARANTINED, in_quarantine};
use super::plugin::{Proxy, State};
use super::{PROMPT, Said, UNAVAILABLE};
use backplane_abi::table::*;
use backplane_abi::worker::Call;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
            tracing::warn!(plugin = id, pid = link.pid(), "a worker was started again");
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

pub(super) fn ended(link: &Link, doing: &str) -> String {
    let how = link.death().map_or_else(|| "ended".to_owned(), |death| death.how);
    format!("its worker {how} while it was {doing}")
}
