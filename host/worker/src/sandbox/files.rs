//! Files: by Landlock, and all or nothing.

use super::Net;
use backplane_abi::worker::{NOT_CONFINED, Text};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where libraries are, what the linker and the C library read, and what libraries ask about the machine. As far as it
/// is there: no system has all of it.
const SYSTEM: &[&str] = &[
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/fs/cgroup",
];
/// Devices without a machine behind them.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"];
/// What looks up names and tells true servers from false ones.
const NETWORK: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
];
/// What the drivers of GPUs read, and where they write to: their devices, and the names that they give their threads. The
/// doors of a driver are wide, and what is behind them no mechanism here looks into.
const GPU: &[&str] =
    &["/proc/driver/nvidia", "/proc/devices", "/sys/bus/pci", "/sys/module", "/etc/vulkan", "/opt/rocm"];
const GPU_DEVICES: &[&str] = &["nvidia", "kfd", "dri"];

/// What kernels know of Landlock, the newest first: Linux 6.12, 6.10, 6.7, 6.2, 5.19 and 5.13. Each is asked for as a whole:
/// what an older one lacks `syscalls` denies, whether or not a newer one does too.
const KNOWN: [ABI; 6] = [ABI::V6, ABI::V5, ABI::V4, ABI::V3, ABI::V2, ABI::V1];

/// Rules of this kind, if the kernel knows all of it.
fn rules(abi: ABI, net: Net<'_>) -> Result<RulesetCreated, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    if ABI::V4 <= abi {
        let denied = if net == Net::Any { AccessNet::BindTcp.into() } else { AccessNet::from_all(abi) };
        rules = rules.handle_access(denied)?;
    }
    if ABI::V6 <= abi {
        rules = rules.scope(Scope::from_all(abi))?;
    }
    let rules = rules.create()?;
    match net {
        Net::Ports(ports) => {
            let allowed = ports.iter().map(|port| NetPort::new(*port, AccessNet::ConnectTcp));
            rules.add_rules(allowed.map(Ok::<_, RulesetError>))
        }
        Net::Nobody | Net::Any => Ok(rules),
    }
}

/// What may be done in a folder that may be written: all that makes, changes and takes away files and folders in it; no
/// devices, sockets or pipes.
fn writing(abi: ABI) -> BitFlags<AccessFs> {
    let all = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    // What the kernel does not know it does not deny either, but for moving files between folders, which it always does.
    all & AccessFs::from_all(abi)
}

/// What is left.
pub struct Files<'a> {
    pub read: &'a [Text<'a>],
    pub write: &'a [Text<'a>],
    pub library: Option<Text<'a>>,
    pub net: Net<'a>,
    pub gpu: bool,
}

impl Files<'_> {
    /// Denies all other files; where the kernel can, every TCP port, too, and signals to processes outside. Says whether it
    /// is known what it means to cut a file short, which not all kernels do.
    pub fn confine(&self, newest: u8) -> Result<bool, String> {
        let missing = |error: &dyn std::fmt::Display| {
            format!(
                "{NOT_CONFINED}: Landlock: {error}; it needs Linux 5.13 or newer with Landlock enabled \
                 (`landlock` in /sys/kernel/security/lsm)"
            )
        };
        let held = |abi: &ABI| !matches!(self.net, Net::Ports(_)) || ABI::V4 <= *abi;
        let known = KNOWN.into_iter().filter(|abi| *abi as u8 <= newest).filter(held);
        let mut made = known.map(|abi| rules(abi, self.net).map(|rules| (abi, rules)));
        let (abi, mut rules) = match made.find(Result::is_ok) {
            Some(Ok(made)) => made,
            _ if !held(&ABI::V1) && rules(ABI::V1, Net::Nobody).is_ok() => {
                return Err(format!(
                    "{NOT_CONFINED}: Landlock: this kernel cannot hold a plugin to some ports, which takes Linux 6.7 or \
                     newer; `network = true` for its worker lets it connect to all"
                ));
            }
            // What the oldest of them says: that there is none.
            _ => (ABI::V1, rules(ABI::V1, Net::Nobody).map_err(|error| missing(&error))?),
        };
        let reading = AccessFs::ReadFile | AccessFs::ReadDir;
        let there = |paths: &'static [&str]| paths.iter().map(Path::new).filter(|path| path.exists());
        let network = if self.net == Net::Nobody { &[] } else { NETWORK };
        let gpu = if self.gpu { GPU } else { &[] };
        for path in there(SYSTEM).chain(there(network)).chain(there(gpu)) {
            rules = allow(rules, path, reading)?;
        }
        let using = AccessFs::ReadFile | AccessFs::WriteFile;
        for path in there(DEVICES) {
            rules = allow(rules, path, using)?;
        }
        if self.gpu {
            let using = if ABI::V5 <= abi { using | AccessFs::IoctlDev } else { using };
            for path in gpu_devices() {
                rules = allow(rules, &path, using | AccessFs::ReadDir)?;
            }
            rules = allow(rules, Path::new("/proc/self/task"), reading | AccessFs::WriteFile)?;
        }
        // What the operator named must be there: a rule that is dropped in silence is how sandboxes fail.
        for path in self.read.iter().chain(&self.library) {
            rules = allow(rules, Path::new(OsStr::from_bytes(path)), reading)?;
        }
        for path in self.write {
            rules = allow(rules, Path::new(OsStr::from_bytes(path)), writing(abi))?;
        }
        let status = rules.restrict_self().map_err(|error| missing(&error))?;
        match status.ruleset {
            RulesetStatus::FullyEnforced => Ok(ABI::V3 <= abi),
            other => Err(missing(&format!("{other:?}"))),
        }
    }
}

fn gpu_devices() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let is_one =
        |name: &OsStr| GPU_DEVICES.iter().any(|device| name.as_bytes().starts_with(device.as_bytes()));
    entries.filter(|entry| is_one(&entry.file_name())).map(|entry| entry.path()).collect()
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{NOT_CONFINED}: `{}`: {error}", path.display());
    if !path.exists() {
        return Err(failed(&"it is granted and not there; make it, with `mkdir` if it is a folder"));
    }
    let file = PathFd::new(path).map_err(|error| failed(&error))?;
    // A file has no entries to be listed.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI::V6) };
    rules.add_rule(PathBeneath::new(file, access)).map_err(|error| failed(&error))
}
