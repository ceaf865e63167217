//! What belongs to the process, and so to the host: its folder, its environment, its signals, its children.

use super::{Bench, Case, Verdict, ensure, skipped};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

const RULE: &str =
    "Failure: \"A plugin must not call exit, abort, setenv, chdir, setlocale or install signal handlers\"";

/// Signals 32 and 33 are the C library's own: it catches them once there are threads.
const LIBC_SIGNALS: u64 = 1 << 31 | 1 << 32;

/// What a plugin has to leave as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Process {
    folder: PathBuf,
    environment: BTreeMap<OsString, OsString>,
    /// Lines of `/proc/self/status`: caught and ignored signals, the mask of new files.
    status: Vec<String>,
    children: usize,
}

impl Process {
    pub fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let wanted = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            match name {
                "Umask" => Some(format!("{name} {value}")),
                "SigIgn" | "SigCgt" => {
                    let signals = u64::from_str_radix(value, 16).ok()? & !LIBC_SIGNALS;
                    Some(format!("{name} {signals:x}"))
                }
                _ => None,
            }
        };
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let children = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
        Self {
            folder: std::env::current_dir().unwrap_or_default(),
            environment: std::env::vars_os().collect(),
            status: status.lines().filter_map(wanted).collect(),
            children: tasks.filter_map(children).map(|text| text.split_whitespace().count()).sum(),
        }
    }
}

/// Compares what was before the library was mapped with what is after everything was ended.
pub fn untouched(bench: &Bench<'_>, case: &Case) -> Verdict {
    // Other tests change a process that is not its own.
    if !bench.test.alone {
        return skipped("it needs a process of its own: `backplane plugin check`");
    }
    let Some(before) = &bench.test.before else { return skipped("the plugin is linked into this test") };
    let instance = bench.instance(case)?;
    bench.expect_serving(case, &instance, "in a process of its own")?;
    drop(instance);
    let after = Process::now();
    let changed = |what: &str, before: String, after: String, todo: &'static str| {
        ensure(before == after, || format!("{what} changed from `{before}` to `{after}`"), RULE, todo)
    };
    let show = |path: &PathBuf| path.display().to_string();
    changed("the current folder", show(&before.folder), show(&after.folder), "use whole paths")?;
    let differs = |(name, value): &(&OsString, &OsString)| before.environment.get(*name) != Some(*value);
    let changes = after.environment.iter().filter(differs).map(|(name, _)| name);
    let gone = before.environment.keys().filter(|name| !after.environment.contains_key(*name));
    let names: Vec<String> = changes.chain(gone).map(|name| name.to_string_lossy().into_owned()).collect();
    ensure(
        names.is_empty(),
        || format!("these variables of the environment changed: {names:?}"),
        RULE,
        "take settings from the configuration that `init` is given",
    )?;
    changed(
        "signals and the mask of new files (/proc/self/status)",
        before.status.join(", "),
        after.status.join(", "),
        "install no handlers, and turn them off in the libraries you use",
    )?;
    changed(
        "the number of child processes",
        before.children.to_string(),
        after.children.to_string(),
        "start no process; ask for what you need as a library, or wait for it before `destroy` returns",
    )?;
    Ok("folder, environment, signals and children are as they were".to_owned())
}
