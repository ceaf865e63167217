//! System calls: by seccomp, and what else there is no safe function for.
#![expect(
    unsafe_code,
    reason = "close_range and unshare have no safe form: both can be made while others rely on what they take"
)]

use super::Net;
use super::denied::{DENIED, DENIED_HERE};
use backplane_abi::worker::{Channel, NOT_CONFINED};
use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Closes what was inherited and is not ours: the standard streams, the main connection and a sealed library stay.
pub fn close_all_but(main: &Channel, sealed: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut kept: Vec<u32> =
        [Some(main.as_fd()), sealed].iter().flatten().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let from = [3].into_iter().chain(kept.iter().map(|kept| kept + 1));
    let to = kept.iter().map(|kept| kept - 1).chain([u32::MAX]);
    for (first, last) in from.zip(to) {
        if first <= last {
            // SAFETY: nothing in this process knows a descriptor in this range: it has opened none but those.
            if unsafe { libc::close_range(first, last, 0) } != 0 {
                return Err(Errno::from_raw_os_error(
                    std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
                ));
            }
        }
    }
    Ok(())
}

/// System V memory and, if it has none of the machine's, a network of its own, without anything in them, where the system
/// allows it.
pub fn leave_namespaces(network: bool) {
    let left = libc::CLONE_NEWIPC | if network { 0 } else { libc::CLONE_NEWNET };
    // SAFETY: this process has one thread, and relies on nothing that it leaves.
    unsafe {
        if libc::unshare(left) != 0 {
            // Who is not root may do so as root of a user namespace.
            libc::unshare(libc::CLONE_NEWUSER | left);
        }
    }
}

/// Denies what a plugin has no use for: the call answers EPERM, and `clone3` ENOSYS, so that the C library asks in the
/// way that can be looked into. `cuts`: whether Landlock knows what it means to cut a file short; `net`: whether others
/// may be reached.
pub fn filter(cuts: bool, net: Net<'_>) -> Result<(), String> {
    let denied = DENIED.iter().chain(DENIED_HERE);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = denied.map(|call| (*call, Vec::new())).collect();
    if net != Net::Nobody {
        // To others, and from nobody: sockets of the internet's two families, and no names of this machine's.
        let families = [libc::AF_INET, libc::AF_INET6].map(|family| u64::from(family.cast_unsigned()));
        let others = families.map(|family| condition(0, SeccompCmpOp::Ne, family));
        let others = others.into_iter().collect::<Result<_, _>>()?;
        let mut sockets = vec![SeccompRule::new(others).map_err(|error| failed(error.into()))?];
        rules.remove(&libc::SYS_connect);
        if matches!(net, Net::Ports(_)) {
            // Landlock holds `connect` of TCP itself to ports. Not MPTCP, which reaches whoever listens by TCP, nor SCTP and
            // the like; nor what is connected by sending.
            let protocols = [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP];
            let others =
                protocols.map(|known| condition(2, SeccompCmpOp::Ne, u64::from(known.cast_unsigned())));
            let others = others.into_iter().collect::<Result<_, _>>()?;
            sockets.push(SeccompRule::new(others).map_err(|error| failed(error.into()))?);
            for kind in [libc::SOCK_RAW, libc::SOCK_SEQPACKET, SOCK_DCCP] {
                sockets.push(when(1, SeccompCmpOp::MaskedEq(SOCK_KIND), u64::from(kind.cast_unsigned()))?);
            }
            let fast = u64::from(libc::MSG_FASTOPEN.cast_unsigned());
            for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
                rules.insert(call, vec![when(flags, SeccompCmpOp::MaskedEq(fast), fast)?]);
            }
        }
        rules.insert(libc::SYS_socket, sockets);
    }
    // A thread, but no process.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), 0)?]);
    // Signals to itself only: abort() needs them.
    let own = u64::from(std::process::id());
    for call in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo] {
        rules.insert(call, vec![when(0, SeccompCmpOp::Ne, own)?]);
    }
    // And none by way of a descriptor that is given an owner, or of a lease that is broken.
    let roundabout = [F_SETOWN, F_SETSIG, F_SETOWN_EX, libc::F_SETLEASE, libc::F_NOTIFY];
    let roundabout = roundabout.map(|command| when(1, SeccompCmpOp::Eq, u64::from(command.cast_unsigned())));
    rules.insert(libc::SYS_fcntl, roundabout.into_iter().collect::<Result<_, _>>()?);
    let owners = [FIOSETOWN, SIOCSPGRP].map(|request| when(1, SeccompCmpOp::Eq, request));
    rules.insert(libc::SYS_ioctl, owners.into_iter().collect::<Result<_, _>>()?);
    // How fast others run. A thread's own it may change, by the name 0.
    for call in [
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
    ] {
        rules.insert(call, vec![when(0, SeccompCmpOp::Ne, 0)?]);
    }
    for (call, process) in [(libc::SYS_setpriority, libc::PRIO_PROCESS as u64), (libc::SYS_ioprio_set, 1)] {
        rules.insert(call, vec![when(0, SeccompCmpOp::Ne, process)?, when(1, SeccompCmpOp::Ne, 0)?]);
    }
    // It ends with its host.
    let death = u64::from(libc::PR_SET_PDEATHSIG.cast_unsigned());
    rules.insert(libc::SYS_prctl, vec![when(0, SeccompCmpOp::Eq, death)?]);
    let mut absent = vec![libc::SYS_clone3];
    if !cuts {
        let cut = libc::O_TRUNC as u64;
        rules.insert(libc::SYS_openat, vec![when(2, SeccompCmpOp::MaskedEq(cut), cut)?]);
        #[cfg(target_arch = "x86_64")]
        rules.extend([
            (libc::SYS_open, vec![when(1, SeccompCmpOp::MaskedEq(cut), cut)?]),
            (libc::SYS_creat, Vec::new()),
        ]);
        // Its flags lie where a filter cannot look.
        absent.push(libc::SYS_openat2);
    }
    other_tables()?;
    install(rules, libc::EPERM)?;
    install(absent.into_iter().map(|call| (call, Vec::new())).collect(), libc::ENOSYS)
}

// As the kernel has them; not all of them are in libc.
const F_SETOWN: i32 = 8;
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;
const SOCK_DCCP: i32 = 6;
/// Of the second argument of `socket`, without its flags.
const SOCK_KIND: u64 = 0xf;

/// A rule for one argument of a call.
fn when(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, String> {
    SeccompRule::new(vec![condition(argument, operator, value)?]).map_err(|error| failed(error.into()))
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        .map_err(|error| failed(error.into()))
}

/// On x86-64 the calls have a second set of numbers, those of the x32 ABI, by which every rule could be walked around.
#[cfg(target_arch = "x86_64")]
fn other_tables() -> Result<(), String> {
    use seccompiler::sock_filter;
    const X32: u32 = 0x4000_0000;
    let step = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let denied = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
    let program = [
        // The number is the first member of what a filter is given.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, denied),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    apply_filter(&program).map_err(failed)
}

#[cfg(not(target_arch = "x86_64"))]
fn other_tables() -> Result<(), String> {
    Ok(())
}

/// Makes a mechanism absent, as on a kernel that was built without it.
pub fn make_absent(mechanism: &str) -> Result<(), String> {
    let calls: &[i64] = match mechanism {
        "landlock" => &[
            libc::SYS_landlock_create_ruleset,
            libc::SYS_landlock_add_rule,
            libc::SYS_landlock_restrict_self,
        ],
        "seccomp" => &[libc::SYS_seccomp],
        other => return Err(format!("no mechanism is called `{}`", other)),
    };
    install(calls.iter().map(|call| (*call, Vec::new())).collect(), libc::ENOSYS)
}

fn install(rules: BTreeMap<i64, Vec<SeccompRule>>, answer: i32) -> Result<(), String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(error.into()))?;
    let denied = SeccompAction::Errno(answer.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)
        .map_err(|error| failed(error.into()))?;
    let program: BpfProgram =
        filter.try_into().map_err(|error: seccompiler::BackendError| failed(error.into()))?;
    apply_filter(&program).map_err(failed)
}

fn failed(error: seccompiler::Error) -> String {
    format!("{NOT_CONFINED}: seccomp: {error}; the kernel needs CONFIG_SECCOMP_FILTER")
}
