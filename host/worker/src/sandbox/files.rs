//! Files: by Landlock, and all or nothing.

use backplane_abi::worker::{NOT_CONFINED, Text};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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

/// Denies every file but these, every TCP port, and signals to processes outside.
pub fn confine(read: &[Text<'_>], library: Option<Text<'_>>) -> Result<(), String> {
    // Linux 6.12. A kernel that knows less would enforce less, so that it is asked for as a whole.
    const ABI: ABI = ABI::V6;
    let missing = |error: &dyn std::fmt::Display| {
        format!(
            "{NOT_CONFINED}: Landlock: {error}; it needs Linux 6.12 or newer with Landlock enabled \
             (`landlock` in /sys/kernel/security/lsm)"
        )
    };
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI)))
        .and_then(Ruleset::create)
        .map_err(|error| missing(&error))?;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = rules;
    for path in SYSTEM.iter().map(Path::new).filter(|path| path.exists()) {
        rules = allow(rules, path, reading)?;
    }
    for path in DEVICES.iter().map(Path::new).filter(|path| path.exists()) {
        rules = allow(rules, path, AccessFs::ReadFile | AccessFs::WriteFile)?;
    }
    // What the operator named must be there: a rule that is dropped in silence is how sandboxes fail.
    for path in read.iter().chain(&library) {
        rules = allow(rules, Path::new(OsStr::from_bytes(path)), reading)?;
    }
    let status = rules.restrict_self().map_err(|error| missing(&error))?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        other => Err(missing(&format!("{other:?}"))),
    }
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{NOT_CONFINED}: `{}`: {error}", path.display());
    let file = PathFd::new(path).map_err(|error| failed(&error))?;
    // A file has no entries to be listed.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI::V6) };
    rules.add_rule(PathBeneath::new(file, access)).map_err(|error| failed(&error))
}
