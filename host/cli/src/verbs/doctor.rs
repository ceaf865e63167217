//! `doctor`: checks what might be wrong, and says how to mend it. Changes nothing.

mod state;

use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::holder::Holder;
use crate::output::Style;
use crate::text;
use backplane::metrics::disk;
use serde::Serialize;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Below this much free memory not even a small model is comfortable.
const MEMORY: u64 = 1 << 30;
/// Below this much free disk a pull may fail.
const DISK: u64 = 2 << 30;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warning,
    Bad,
}

/// What was checked.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), fix: None }
    }

    fn warning(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    fn bad(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, ..Self::warning(what, found, fix) }
    }
}

pub fn run(context: &Context) -> Result<()> {
    let checks = checks(context)?;
    let out = &context.out;
    if out.json {
        out.value(&checks);
    } else {
        for check in &checks {
            let mark = match check.verdict {
                Verdict::Ok => out.styled(Style::Good, "ok  "),
                Verdict::Warning => out.styled(Style::Warning, "warn"),
                Verdict::Bad => out.styled(Style::Bad, "bad "),
            };
            out.line(format!("{mark}  {:<13}{}", check.what, crate::output::printable(&check.found)));
            if let Some(fix) = &check.fix {
                out.line(format!("                   fix: {fix}"));
            }
        }
    }
    match checks.iter().filter(|check| check.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        1 => Err(Failure::failed("one check is bad")),
        count => Err(Failure::failed(format!("{count} checks are bad"))),
    }
}

fn checks(context: &Context) -> Result<Vec<Check>> {
    let state = context.state()?;
    let config = context.load_config(Vec::new());
    let mut checks = vec![
        cpu(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), std::env::consts::ARCH),
        threads(),
        memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        state::check(&state),
        free_disk(&state),
        match &config {
            Ok(config) => Check::ok(
                "config",
                match config.file() {
                    Some(file) => file.display().to_string(),
                    None => "defaults; no file".to_owned(),
                },
            ),
            Err(failure) => Check::bad(
                "config",
                failure.what.clone(),
                "every key and its default: `backplane config init -`",
            ),
        },
    ];
    checks.extend(server(context, config.as_ref().ok().map(|config| config.server.address))?);
    checks.push(key_file(&state));
    if config.is_ok() {
        checks.extend(plugins(context)?);
    }
    checks.push(match context.models()?.runtime("onnxruntime") {
        Some(runtime) => {
            Check::ok("onnxruntime", format!("{} {}", runtime.version, runtime.library.display()))
        }
        None => Check::warning(
            "onnxruntime",
            "not installed; models of format `onnx` cannot be opened",
            "`backplane pull onnxruntime`",
        ),
    });
    checks.push(models(context)?);
    checks.extend(failed_models(context)?);
    Ok(checks)
}

/// llama.cpp is built for AVX2, F16C and FMA.
fn cpu(cpuinfo: &str, arch: &str) -> Check {
    if arch != "x86_64" {
        return Check::ok("cpu", arch);
    }
    let flags: Vec<&str> = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .map(|(_, flags)| flags.split_whitespace().collect())
        .unwrap_or_default();
    let missing: Vec<&str> =
        ["avx2", "fma", "f16c"].into_iter().filter(|flag| !flags.contains(flag)).collect();
    if missing.is_empty() {
        let best = if flags.contains(&"avx512f") { "AVX2, AVX-512" } else { "AVX2" };
        Check::ok("cpu", format!("{arch}, {best}"))
    } else {
        Check::bad(
            "cpu",
            format!("{} missing: the llama plugin would stop at an illegal instruction", missing.join(", ")),
            "use a machine with AVX2 (any since 2013), or let the virtual machine pass the host's CPU through",
        )
    }
}

fn threads() -> Check {
    match std::thread::available_parallelism() {
        Ok(count) if count.get() == 1 => {
            Check::warning("threads", "1", "give the machine a second core; answers wait for everything else")
        }
        Ok(count) => Check::ok("threads", count.to_string()),
        Err(error) => Check::warning("threads", error.to_string(), "set `compute.threads`"),
    }
}

fn memory(meminfo: &str) -> Check {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    match (kib("MemAvailable"), kib("MemTotal")) {
        (Some(free), Some(total)) => {
            let found = format!("{} of {} free", text::bytes(free << 10), text::bytes(total << 10));
            if free << 10 < MEMORY {
                Check::warning(
                    "memory",
                    found,
                    "close other programs; `backplane show MODEL --plan` says what a model needs",
                )
            } else {
                Check::ok("memory", found)
            }
        }
        _ => Check::warning("memory", "not known: /proc/meminfo cannot be read", "mount /proc"),
    }
}

fn free_disk(state: &Path) -> Check {
    let there = state.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match disk::free_bytes(there) {
        Ok(free) if free < DISK => Check::warning(
            "disk",
            format!("{} free", text::bytes(free)),
            "`backplane rm` models that are not needed",
        ),
        Ok(free) => Check::ok("disk", format!("{} free", text::bytes(free))),
        Err(error) => {
            Check::warning("disk", error.to_string(), "look at the file system of the state directory")
        }
    }
}

fn server(context: &Context, configured: Option<std::net::SocketAddr>) -> Result<Vec<Check>> {
    let client = context.client()?;
    if client.is_up() {
        let url = client.address.url().to_owned();
        return Ok(match client.get("/admin/v1/health") {
            Ok(health) => {
                let ill: Vec<String> = health["parts"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|part| matches!(part["state"].as_str(), Some("degraded" | "down")))
                    // These have checks of their own, which name each plugin and each model.
                    .filter(|part| !matches!(part["part"].as_str(), Some("plugins" | "models")))
                    .map(|part| {
                        let text = |member: &str| part[member].as_str().unwrap_or_default().to_owned();
                        format!("{}: {}", text("part"), text("detail"))
                    })
                    .collect();
                let mut checks = vec![Check::ok("server", format!("runs at {url}"))];
                if !ill.is_empty() {
                    checks.push(Check::warning(
                        "health",
                        ill.join("; "),
                        "the log says more: `backplane logs`",
                    ));
                }
                checks
            }
            Err(failure) => vec![Check::bad(
                "server",
                format!("runs at {url}, and refuses us: {failure}"),
                failure.next.unwrap_or_else(|| "`backplane logs`".to_owned()),
            )],
        });
    }
    if let Some(holder) = Holder::of(&context.state()?) {
        let who = holder.name();
        let kill = holder.pid.map_or_else(|| "end it".to_owned(), |pid| format!("`kill {pid}`"));
        return Ok(vec![Check::bad(
            "server",
            format!("{who} has the state directory, and does not answer at {}", client.address.url()),
            format!("if it is not just starting, {kill}; `backplane logs` may say why"),
        )]);
    }
    let Some(address) = configured else { return Ok(Vec::new()) };
    Ok(vec![match TcpListener::bind(address) {
        Ok(_) => Check::ok("server", format!("none runs; {address} is free")),
        Err(error) => {
            let fix = match error.kind() {
                ErrorKind::AddrInUse => {
                    "stop the program that has it (`ss -ltnp` names it), or `backplane serve --address 127.0.0.1:0`"
                }
                ErrorKind::PermissionDenied => "set `server.address` to a port of 1024 or more",
                _ => "set `server.address` to an address of this machine",
            };
            Check::bad("server", format!("none runs, and {address} cannot be had: {error}"), fix)
        }
    }])
}

fn key_file(state: &Path) -> Check {
    let path = state.join(backplane::auth::ADMIN_KEY_FILE);
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound && !state.join("backplane.db").exists() => {
            Check::ok("key", "made by the first start")
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Check::warning(
            "key",
            format!("{} is not there, and a start makes none while an administrator's works", path.display()),
            "set `BACKPLANE_API_KEY`; if none is left: `backplane serve --new-admin-key`",
        ),
        Err(error) => Check::bad(
            "key",
            format!("{} cannot be looked at: {error}", path.display()),
            "run as the user whose state directory it is",
        ),
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => Check::bad(
            "key",
            format!("{} is readable by others", path.display()),
            format!("`chmod 600 {}`, and make a new key", path.display()),
        ),
        Ok(_) => match std::fs::read_to_string(&path) {
            Ok(key) if key.trim().is_empty() => Check::bad(
                "key",
                format!("{} is empty", path.display()),
                "write an administrator's key into it, or set `BACKPLANE_API_KEY`",
            ),
            Ok(_) => Check::ok("key", path.display().to_string()),
            Err(error) => Check::bad(
                "key",
                format!("{} cannot be read: {error}", path.display()),
                "run as the user whose state directory it is",
            ),
        },
    }
}

fn plugins(context: &Context) -> Result<Vec<Check>> {
    let client = context.client()?;
    let asked = if client.is_up() { client.get("/admin/v1/plugins").ok() } else { None };
    let plugins = match asked {
        Some(mut answer) => {
            serde_json::from_value::<Vec<serde_json::Value>>(answer["data"].take()).unwrap_or_default()
        }
        None => super::plugin::found(context)?,
    };
    // Another file of the same plugin is used in its place: that one is told of.
    let plugins: Vec<_> = plugins.into_iter().filter(|plugin| plugin["shadowed_by"].is_null()).collect();
    let name = |plugin: &serde_json::Value| plugin["id"].as_str().unwrap_or_default().to_owned();
    let (ill, well): (Vec<_>, Vec<_>) = plugins.iter().partition(|plugin| {
        plugin["problem"].is_string() && (plugin["ready"] != true || plugin["revoked"] == true)
    });
    let mut checks = Vec::new();
    if well.is_empty() {
        let fix = "put shared libraries into `plugins` of the state directory, or `serve --plugin-dir DIR`";
        checks.push(Check::warning("plugins", "none found", fix));
    } else {
        checks.push(Check::ok("plugins", well.iter().copied().map(name).collect::<Vec<_>>().join(", ")));
    }
    // Nothing is wrong where a plugin is for a device that this machine does not have; it is told all the same.
    for plugin in well {
        if let Some(why) = plugin["problem"].as_str() {
            checks.push(Check::ok("plugin", format!("{}: {why}", name(plugin))));
        }
    }
    for plugin in ill {
        let problem = plugin["problem"].as_str().unwrap_or_default();
        let id = crate::output::printable(&name(plugin));
        let fix = match plugin {
            _ if plugin["quarantined"] == true => format!("`backplane plugin unquarantine {id}`"),
            _ if plugin["revoked"] == true => {
                format!(
                    "`backplane plugin upgrade {id}`, or install another version, or remove it and restart"
                )
            }
            _ => "mend what it says, or take the file away".to_owned(),
        };
        checks.push(Check::warning("plugin", format!("{}: {problem}", name(plugin)), fix));
    }
    Ok(checks)
}

fn models(context: &Context) -> Result<Check> {
    let listing = context.models()?.list()?;
    Ok(match (listing.models.len(), listing.broken.first()) {
        (_, Some(broken)) => {
            Check::bad("models", broken.to_string(), "`backplane pull` it again, or `backplane rm` it")
        }
        (0, None) => Check::warning("models", "none installed", "`backplane pull smollm2`"),
        (count, None) => Check::ok("models", format!("{count} installed")),
    })
}

/// The models that a running server cannot serve, each with its reason.
fn failed_models(context: &Context) -> Result<Vec<Check>> {
    let client = context.client()?;
    let answer = if client.is_up() { client.get("/admin/v1/models").ok() } else { None };
    let models = answer.map(|mut answer| answer["data"].take()).unwrap_or_default();
    let text = |model: &serde_json::Value, member: &str| model[member].as_str().map(str::to_owned);
    let failed = models.as_array().into_iter().flatten().filter_map(|model| {
        let problem = text(model, "problem").or_else(|| {
            (model["state"] == "failed").then(|| "it could not be opened; the log says why".to_owned())
        })?;
        let name = text(model, "name").unwrap_or_default();
        let fix = format!("the log says more: `backplane logs {name}`");
        Some(Check::warning("model", format!("{name}: {problem}"), fix))
    });
    Ok(failed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_without_avx2_is_told() {
        let good = cpu("processor : 0\nflags\t\t: fpu fma f16c avx2 avx512f\n", "x86_64");
        assert_eq!((good.verdict, good.found.as_str()), (Verdict::Ok, "x86_64, AVX2, AVX-512"));
        let old = cpu("flags : fpu sse4_2 f16c\n", "x86_64");
        assert_eq!(old.verdict, Verdict::Bad);
        assert!(old.found.starts_with("avx2, fma missing"), "{}", old.found);
        assert_eq!(cpu("", "aarch64").verdict, Verdict::Ok);
    }

    #[test]
    fn little_memory_is_told() {
        let check = memory("MemTotal:  4000000 kB\nMemAvailable:  500000 kB\n");
        assert_eq!((check.verdict, check.found.as_str()), (Verdict::Warning, "512 MB of 4.1 GB free"));
        assert_eq!(memory("MemTotal: 64000000 kB\nMemAvailable: 60000000 kB\n").verdict, Verdict::Ok);
        assert_eq!(memory("").verdict, Verdict::Warning);
    }

    #[test]
    fn a_key_that_others_can_read_is_bad() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(key_file(state.path()).verdict, Verdict::Ok);
        let path = state.path().join(backplane::auth::ADMIN_KEY_FILE);
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(key_file(state.path()).verdict, Verdict::Bad);
    }
}
