//! A plugin that misbehaves in every way there is: in a worker, in a process of its own in place of the host, and in a worker
//! without the mechanism that stops it. What is seen is the table of `docs/isolation.md`; `BACKPLANE_UPDATE=1` writes it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use backplane::isolation::{Confinement, Granted, Launch};
use backplane_testkit::{Answer, End, Instance, PluginTest};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fmt::Write as _;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use support::{LONG, faulty, faulty_launch, through, weakened};

/// One way to misbehave.
struct Case {
    /// What the plugin is told to do.
    does: &'static str,
    /// The same, for people.
    what: &'static str,
    /// What is seen with the plugin in the host's process.
    in_process: &'static str,
    /// What is seen with the plugin in a worker.
    worker: &'static str,
    /// What stopped it.
    by: &'static str,
    /// The worker that lacks it, and what is seen then. Empty: there is nothing to leave out.
    without: (&'static str, &'static str),
}

const fn crash(does: &'static str, what: &'static str, how: &'static str) -> Case {
    Case { does, what, in_process: how, worker: how, by: "process", without: ("", "") }
}

const fn tries(
    does: &'static str,
    what: &'static str,
    worker: &'static str,
    by: &'static str,
    without: (&'static str, &'static str),
) -> Case {
    Case { does, what, in_process: "succeeds", worker, by, without }
}

const fn forges(does: &'static str, what: &'static str, worker: &'static str, by: &'static str) -> Case {
    Case { does, what, in_process: "-", worker, by, without: ("", "") }
}

const fn misuses(does: &'static str, what: &'static str) -> Case {
    Case { does, what, in_process: "refused", worker: "refused", by: "the table", without: ("", "") }
}

const BY_SECCOMP: (&str, &str) = ("seccomp", "succeeds");
/// Of a host that is root its workers are less than equal.
const BY_SECCOMP_OR_RIGHTS: (&str, &str) = ("seccomp capabilities", "succeeds");

/// What the plugin ends is a process: the host's, or its worker's.
const CASES: &[Case] = &[
    crash("segv", "a null pointer is written to", "SIGSEGV"),
    crash("bus", "memory of a file that shrank", "SIGBUS"),
    crash("fpe", "a division by zero", "SIGFPE"),
    crash("ill", "an instruction that there is not", "SIGILL"),
    crash("abort", "`abort()`", "SIGABRT"),
    crash("overflow", "stack overflow", "SIGABRT"),
    crash("throw", "a C++ exception leaves the plugin", "SIGABRT"),
    crash("exit", "`exit(0)`", "status 0"),
    crash("exit-thread", "`_exit(3)` on a thread of its own", "status 3"),
    crash("kill-self", "`kill(getpid(), SIGKILL)`", "SIGKILL"),
    tries("shadow", "`open(\"/etc/shadow\")`", "EACCES", "landlock", ("landlock", "succeeds")),
    tries(
        "read-own",
        "a file of the host's, as its configuration is",
        "EACCES",
        "landlock",
        ("landlock", "succeeds"),
    ),
    tries("write-tmp", "a new file in `/tmp`", "EACCES", "landlock", ("landlock", "succeeds")),
    tries(
        "parent-environ",
        "`/proc/<host>/environ`",
        "EACCES",
        "landlock; no capabilities",
        ("landlock capabilities", "succeeds"),
    ),
    tries("environment", "the host's environment", "ENOENT", "a new environment", ("", "")),
    tries(
        "connect",
        "TCP to this machine",
        "EPERM",
        "seccomp; landlock; namespaces",
        ("seccomp landlock namespaces", "succeeds"),
    ),
    tries(
        "abstract",
        "an abstract socket of the host's",
        "EPERM",
        "seccomp; landlock; namespaces",
        ("seccomp landlock namespaces", "succeeds"),
    ),
    tries(
        "kill-parent",
        "a signal to the host",
        "EPERM",
        "seccomp; landlock",
        ("seccomp landlock", "succeeds"),
    ),
    tries("sigio", "a signal to the host, of a descriptor whose owner it is", "EPERM", "seccomp", BY_SECCOMP),
    tries(
        "ptrace",
        "`ptrace(host)`",
        "EPERM",
        "seccomp; landlock; no capabilities",
        ("seccomp landlock capabilities", "succeeds"),
    ),
    tries(
        "read-memory",
        "`process_vm_readv(host)`",
        "EPERM",
        "seccomp; landlock; no capabilities",
        ("seccomp landlock capabilities", "succeeds"),
    ),
    tries("fork", "`fork()`", "EPERM", "seccomp", BY_SECCOMP),
    tries("exec", "`execve()`", "EPERM", "seccomp", BY_SECCOMP),
    tries("outlive", "not to end with the host", "EPERM", "seccomp", BY_SECCOMP),
    tries("chmod", "`chmod()` of a file of the host's", "EPERM", "seccomp", BY_SECCOMP),
    tries("utimes", "the times of a file of the host's", "EPERM", "seccomp", BY_SECCOMP),
    tries(
        "truncate",
        "`truncate()` of a file of the host's",
        "EPERM",
        "seccomp; landlock",
        ("seccomp landlock", "succeeds"),
    ),
    tries("watch", "what others open in `/tmp`", "EPERM", "seccomp", BY_SECCOMP),
    tries("priority", "the host's priority", "EPERM", "seccomp; no capabilities", BY_SECCOMP_OR_RIGHTS),
    tries(
        "affinity",
        "the processors that the host may use",
        "EPERM",
        "seccomp; no capabilities",
        BY_SECCOMP_OR_RIGHTS,
    ),
    tries("descriptors", "2000 descriptors", "EMFILE", "limits", ("limits", "succeeds")),
    tries("memory", "64 GiB of address space", "ENOMEM", "limits", ("limits", "succeeds")),
    tries("leak", "512 MiB that are never freed, 256 granted", "ENOMEM", "limits", ("ungranted", "succeeds")),
    tries(
        "leak-shared",
        "the same in memory that can be shared",
        "took more memory than it is granted",
        "watch",
        ("ungranted", "succeeds"),
    ),
    tries(
        "threads",
        "2000 threads, 64 granted",
        "started more threads than it is granted",
        "watch",
        ("ungranted", "succeeds"),
    ),
    Case {
        in_process: "the host's is changed",
        worker: "its own is changed",
        ..tries("chdir", "`chdir()`", "", "process", ("", ""))
    },
    Case {
        in_process: "the host's is changed",
        worker: "its own is changed",
        ..tries("setenv", "`setenv()`", "", "process", ("", ""))
    },
    Case {
        in_process: "the host's is changed",
        worker: "its own is changed",
        ..tries("setlocale", "`setlocale()`", "", "process", ("", ""))
    },
    Case {
        in_process: "the host's is changed",
        worker: "its own is changed",
        ..tries("handler", "a signal is ignored from now on", "", "process", ("", ""))
    },
    forges("garbage", "noise on every descriptor", "not in the protocol", "strict decoding"),
    forges("oversized", "a packet longer than any", "not in the protocol", "strict decoding"),
    forges(
        "forged-finish",
        "the end of a request that it does not have",
        "not in the protocol",
        "numbers of the host's",
    ),
    forges(
        "forged-push",
        "a piece of a request that it does not have",
        "not in the protocol",
        "numbers of the host's",
    ),
    forges("out-of-order", "a first word in mid-conversation", "not in the protocol", "strict decoding"),
    forges(
        "forged-length",
        "a tensor that is longer than what is sent of it",
        "not in the protocol",
        "strict decoding",
    ),
    forges("unsealed", "an arena that it can still write to", "not in the protocol", "seals are looked at"),
    forges("sealed-noise", "an arena whose lengths lead outside", "not in the protocol", "strict decoding"),
    forges(
        "sparse",
        "an arena of holes, for the host to fill",
        "not in the protocol",
        "its blocks are counted",
    ),
    forges(
        "deaf",
        "questions without end, and no answer is read",
        "does not read what it is told",
        "time limit",
    ),
    misuses("handles", "handles that it guessed: push, finish, release"),
    misuses("finish-twice", "finish twice, then push"),
    misuses("outside", "a tensor that reaches beyond its buffer"),
];

/// Limits under which the cases about limits are run.
fn granted() -> Confinement {
    Confinement::Sandbox(Granted { memory: 256 << 20, threads: 64, ..Granted::default() })
}

fn instance(test: PluginTest) -> Instance {
    test.open(r#"{"name":"faulty"}"#).unwrap().instance().unwrap()
}

fn ask(instance: &Instance, what: &str) -> Answer {
    instance.submit("com.example.faulty.do", &format!(r#"{{"do":"{what}"}}"#), vec![]).wait_for(LONG)
}

fn errno(number: i64) -> &'static str {
    match number {
        0 => "succeeds",
        1 => "EPERM",
        2 => "ENOENT",
        12 => "ENOMEM",
        13 => "EACCES",
        24 => "EMFILE",
        _ => "another errno",
    }
}

/// Of the host's process: where it is, what is in its environment, and whether it ignores SIGUSR2.
fn own_state() -> OwnState {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    let folder = std::fs::read_link("/proc/self/cwd").unwrap();
    (folder, std::env::var_os("BACKPLANE_FAULTY").is_some(), ignored & 1 << (libc::SIGUSR2 - 1) != 0)
}

type OwnState = (std::path::PathBuf, bool, bool);

/// What came of it, in the words of the table.
fn seen(case: &Case, instance: &Instance, answer: &Answer, before: &OwnState) -> String {
    if case.by == "the table" {
        let refused = match case.does {
            "finish-twice" => answer.json()["errno"] == 1,
            _ => answer.is_done() && answer.json()["errno"] == 1,
        };
        return if refused { "refused" } else { "accepted" }.to_owned();
    }
    if let Some(number) = answer.json()["errno"].as_i64() {
        if ["chdir", "setenv", "setlocale", "handler"].contains(&case.does) {
            assert_eq!(number, 0, "{}", case.does);
            let changed = match case.does {
                // Only a plugin can say; it is asked whose process it is in, too.
                "setlocale" => {
                    assert_eq!(ask(instance, "locale").json()["errno"], 1);
                    ask(instance, "pid").json()["errno"] == std::process::id()
                }
                _ => own_state() != *before,
            };
            return if changed { "the host's is changed" } else { "its own is changed" }.to_owned();
        }
        return errno(number).to_owned();
    }
    let (End::Failed(why) | End::Refused(why)) = &answer.end else { return format!("{}", answer.end) };
    assert_eq!(why.reason, "worker_crashed", "{}: {why}", case.does);
    let how = why.message.split("its worker ").nth(1).unwrap_or_default();
    let how = how.split(" and was killed").next().unwrap_or_default();
    let how = how.split("; retry").next().unwrap_or_default();
    let how = how.trim_start_matches("was killed by ").trim_start_matches("exited with ");
    if how.contains("not in the protocol") {
        // Noise on every descriptor is said on some connection first.
        return "not in the protocol".to_owned();
    }
    how.split(" (").next().unwrap_or_default().to_owned()
}

/// In a worker, or in one of these; after a crash the next request has to be served.
fn in_worker(case: &Case, library: &Path, lacks: &str) -> String {
    let ungranted = lacks == "without ungranted";
    let confinement = if ungranted { cpu_of_many() } else { granted() };
    let mut launch = faulty_launch(library.to_owned(), confinement);
    if !lacks.is_empty() && !ungranted {
        launch = Launch { program: weakened(lacks), ..launch };
    }
    let before = own_state();
    let instance = instance(through(launch));
    let answer = ask(&instance, case.does);
    let seen = seen(case, &instance, &answer, &before);
    let next = ask(&instance, "nothing");
    if next.json()["errno"] != -1 || !instance.model().faults().is_empty() {
        return format!("{seen}; the next one: {} {:?}", next.end, instance.model().faults());
    }
    seen
}

fn cpu_of_many() -> Confinement {
    Confinement::Sandbox(Granted { threads: 100_000, ..Granted::default() })
}

/// In the process of a host: another one, since that is what most of it ends.
fn in_process(case: &Case, library: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_host_of_its_own", "--ignored", "--nocapture"])
        .env("FAULTY_LIBRARY", library)
        .env("FAULTY_DOES", case.does)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(seen) =
        said.lines().find_map(|line| line.split_once("SEEN:").map(|(_, seen)| seen.to_owned()))
    {
        return seen;
    }
    match (output.status.signal(), output.status.code()) {
        (Some(libc::SIGSEGV), _) => "SIGSEGV".to_owned(),
        (Some(libc::SIGBUS), _) => "SIGBUS".to_owned(),
        (Some(libc::SIGFPE), _) => "SIGFPE".to_owned(),
        (Some(libc::SIGILL), _) => "SIGILL".to_owned(),
        (Some(libc::SIGABRT), _) => "SIGABRT".to_owned(),
        (Some(libc::SIGKILL), _) => "SIGKILL".to_owned(),
        (_, Some(status)) => format!("status {status}"),
        (signal, _) => format!("signal {signal:?}"),
    }
}

#[test]
#[ignore = "is a host that `in_process` starts"]
fn a_host_of_its_own() {
    let Some(library) = std::env::var_os("FAULTY_LIBRARY") else { return };
    let does = std::env::var("FAULTY_DOES").unwrap();
    let case = CASES.iter().find(|case| case.does == does).unwrap();
    let before = own_state();
    let instance = instance(PluginTest::load(library).unwrap().patience(LONG));
    let answer = ask(&instance, case.does);
    println!("\nSEEN:{}", seen(case, &instance, &answer, &before));
}

/// Whether this machine denies it to everybody.
fn denied_here(case: &Case) -> bool {
    match case.does {
        "shadow" => std::fs::File::open("/etc/shadow").is_err(),
        "ptrace" | "read-memory" => std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
            .is_ok_and(|rules| rules.trim() != "0"),
        _ => false,
    }
}

#[test]
fn every_case_is_stopped_and_by_what_is_said_to_stop_it() {
    // So that it is not this machine's own limit that stops the case about it. The hosts that it starts inherit it.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    let (_folder, library) = faulty(None);
    // What `abstract` looks for.
    let mut name = format!("backplane-faulty-{}", std::process::id()).into_bytes();
    name.resize(107, 0);
    let own = format!("/tmp/backplane-faulty-own-{}", std::process::id());
    std::fs::write(&own, "the host's").unwrap();
    let _listens = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    let queue = std::sync::Mutex::new(CASES.iter());
    let wrong = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let Some(case) = queue.lock().unwrap().next() else { return };
                let check = |place: &str, seen: String, expected: &str| {
                    if seen != expected {
                        wrong.lock().unwrap().push(format!("{} {place}: {seen}, not {expected}", case.does));
                    }
                };
                check("in a worker", in_worker(case, &library, ""), case.worker);
                if case.by.contains("landlock") || case.by.contains("seccomp") {
                    // Linux 5.13 knows of Landlock what is asked for, and the other mechanisms the rest.
                    check("on Linux 5.13", in_worker(case, &library, "knows 1"), case.worker);
                }
                if denied_here(case) {
                    println!("{}: this machine denies it to everybody", case.does);
                    continue;
                }
                if case.in_process != "-" {
                    check("in-process", in_process(case, &library), case.in_process);
                }
                if let (lacks, expected) = case.without
                    && !lacks.is_empty()
                {
                    let lacks = format!("without {lacks}");
                    check(&lacks, in_worker(case, &library, &lacks), expected);
                }
            }
        };
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let _made = std::fs::remove_file(format!("/tmp/backplane-faulty-{}", std::process::id()));
    std::fs::remove_file(own).unwrap();
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The table that people read is the one that was checked.
#[test]
fn the_table_of_the_documentation_is_this_one() {
    const BEGIN: &str = "<!-- faulty: written by host/worker/tests/faulty.rs -->\n";
    const END: &str = "<!-- faulty: end -->\n";
    let mut table =
        "| case | in-process | in a worker | mechanism | without it |\n|---|---|---|---|---|\n".to_owned();
    for case in CASES {
        let crash = case.by == "process" && case.without.0.is_empty() && case.in_process == case.worker;
        let (in_process, worker) = match (crash, case.in_process) {
            (true, how) => (
                format!("the host ends: {how}"),
                format!("an error that names {how}; the next request is served"),
            ),
            (false, "-") => ("-".to_owned(), format!("the worker is ended: {}", case.worker)),
            (false, how) => (
                how.to_owned(),
                match case.by {
                    "watch" => format!("the worker is ended: {}", case.worker),
                    _ => case.worker.to_owned(),
                },
            ),
        };
        let without = match case.without {
            ("", _) if crash => "as in-process",
            ("", _) => "-",
            (_, seen) => seen,
        };
        writeln!(table, "| {} | {in_process} | {worker} | {} | {without} |", case.what, case.by).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/isolation.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("docs/isolation.md has the table's first line");
    let (written, after) = rest.split_once(END).expect("docs/isolation.md has the table's last line");
    if std::env::var_os("BACKPLANE_UPDATE").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(written, table, "docs/isolation.md is stale: run this test with BACKPLANE_UPDATE=1");
    }
}
