//! Confines this process before a plugin is loaded into it.
//!
//! Everything is set while there is one thread, none of the plugin's code has run, and nothing is needed any more that is
//! then denied. What cannot be had is not done without: the worker says what is missing, and ends.
//!
//! | mechanism | what it stops |
//! |---|---|
//! | `landlock` | files but those that are named, each to be read or to be written; from Linux 6.7 on TCP, to all ports or to all but some; from 6.12 on signals and abstract sockets, too |
//! | `seccomp` | sockets, new processes and programs, signals, tracing, other files' modes and owners, namespaces, the kernel's rarely used doors |
//! | `limits` | descriptors without end, memory beyond what was granted, a higher priority |
//! | `capabilities` | what root may that others may not |
//! | `namespaces` | the machine's network and System V memory; where the system allows it, since `seccomp` stops both |

mod denied;
mod files;
mod syscalls;

use crate::library::Source;
use backplane_abi::worker::{Channel, Confine, NOT_CONFINED};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::process::{set_dumpable_behavior, set_parent_process_death_signal, setpgid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

/// Descriptors this process may have: each lane is one.
const DESCRIPTORS: u64 = 1024;

/// Whom a plugin may connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Net<'a> {
    Nobody,
    /// By TCP, whoever answers at these ports. A kernel knows no names.
    Ports(&'a [u16]),
    Any,
}

/// What confines a plugin.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    /// Mechanisms that are left out, by their names above.
    pub off: Vec<String>,
    /// Mechanisms that are made absent first, as on a kernel that was built without them.
    pub absent: Vec<String>,
    /// The newest version of Landlock that is used, as on a kernel that knows no newer one.
    pub newest: Option<u8>,
}

impl Sandbox {
    /// All of it.
    pub fn whole() -> Self {
        Self::default()
    }

    /// Confines this process, or says what is missing.
    ///
    /// # Errors
    /// When anything that was asked for cannot be had: a plugin is then not loaded.
    pub(crate) fn apply(
        &self,
        confine: &Confine<'_>,
        library: &Source<'_>,
        main: &Channel,
    ) -> Result<(), String> {
        let failed = |what: &str, error: rustix::io::Errno| format!("{NOT_CONFINED}: {what}: {error}");
        // Whoever starts workers keeps the thread that starts them for as long as it lives.
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|error| failed("end with the parent", error))?;
        // Ctrl+C at a terminal is for the host, which lets its requests finish first. A group and no session of its own:
        // the system may share processors between sessions, in each of which alone a priority then counts.
        let _already = setpgid(None, None);
        syscalls::close_all_but(main, library.sealed())
            .map_err(|error| failed("close what was inherited", error))?;
        // When the machine runs out of memory, it is not the host that is ended for it. Best effort: not every system has it.
        let _kept = std::fs::write("/proc/self/oom_score_adj", "1000");
        let no_core = Rlimit { current: Some(0), maximum: Some(0) };
        setrlimit(Resource::Core, no_core).map_err(|error| failed("no core dumps", error))?;
        let Confine::Sandbox { read, write, memory, network, ports, gpu } = confine else { return Ok(()) };
        let net = match (network, &ports[..]) {
            (true, _) => Net::Any,
            (false, []) => Net::Nobody,
            (false, ports) => Net::Ports(ports),
        };

        set_no_new_privs(true).map_err(|error| failed("no new privileges", error))?;
        for mechanism in &self.absent {
            syscalls::make_absent(mechanism)?;
        }
        let on = |mechanism: &str| self.off.iter().all(|off| off != mechanism);
        if on("limits") {
            limit(Resource::Nofile, DESCRIPTORS).map_err(|error| failed("descriptors", error))?;
            // Whom the host has lowered does not raise itself, whatever the user may.
            for priority in [Resource::Nice, Resource::Rtprio] {
                limit(priority, 0).map_err(|error| failed("priorities", error))?;
            }
            if *memory != 0 {
                limit(Resource::Data, *memory).map_err(|error| failed("memory", error))?;
                limit(Resource::Fsize, *memory).map_err(|error| failed("file size", error))?;
            }
        }
        if on("namespaces") {
            syscalls::leave_namespaces(net != Net::Nobody);
        }
        let cuts = match on("landlock") {
            true => {
                let files = files::Files { read, write, library: library.file(), net, gpu: *gpu };
                files.confine(self.newest.unwrap_or(u8::MAX))?
            }
            false => true,
        };
        // Root is nobody special any more, and no other user is either.
        if on("capabilities") {
            let none = CapabilitySet::empty();
            let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
            set_capabilities(None, none).map_err(|error| failed("give up capabilities", error))?;
        }
        // The process's memory is nobody else's to read; after what needed /proc/self to be its own.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| failed("no dumps", error))?;
        if on("seccomp") {
            syscalls::filter(cuts, net)?;
        }
        Ok(())
    }
}

/// Not more than this, nor than it was.
fn limit(resource: Resource, most: u64) -> rustix::io::Result<()> {
    let now = getrlimit(resource);
    let most = now.maximum.map_or(most, |maximum| maximum.min(most));
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
}
