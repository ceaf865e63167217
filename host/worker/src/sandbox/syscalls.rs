//! System calls: by seccomp, and what else there is no safe function for.
#![expect(
    unsafe_code,
    reason = "close_range and unshare have no safe form: both can be made while others rely on what they take"
)]

use backplane_abi::worker::{Channel, NOT_CONFINED};
use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Denied altogether.
const DENIED: &[i64] = &[
    // Other processes: to make, to become, to look into.
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_tkill,
    libc::SYS_prlimit64,
    // The network: a pair of connected sockets within the process is all there is.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Doors of the kernel's that a plugin has no use for.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_fanotify_init,
    libc::SYS_personality,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_msgget,
    libc::SYS_semget,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

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

/// A network and System V memory of its own, without anything in them, where the system allows it.
pub fn leave_namespaces() {
    // SAFETY: this process has one thread, and relies on nothing that it leaves.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC) != 0 {
            // Who is not root may do so as root of a user namespace.
            libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC);
        }
    }
}

/// Denies what a plugin has no use for: the call answers EPERM, and `clone3` ENOSYS, so that the C library asks in the
/// way that can be looked into.
pub fn filter() -> Result<(), String> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let when = |operator, value| {
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value);
        let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
        rule.map(|rule| vec![rule]).map_err(|error| failed(error.into()))
    };
    // A thread, but no process.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, when(SeccompCmpOp::MaskedEq(thread), 0)?);
    // Signals to itself only: abort() needs them.
    let own = u64::from(std::process::id());
    for call in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo] {
        rules.insert(call, when(SeccompCmpOp::Ne, own)?);
    }
    install(rules, libc::EPERM)?;
    install(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
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
