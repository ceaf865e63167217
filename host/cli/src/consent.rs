//! What a pull will cost, said before it starts, and asked where it is large or not known.

use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::Table;
use crate::progress::Pulling;
use crate::text;
use backplane_registry::{Installed, LARGE, Models, PullOptions, PullPlan, Set};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a set may have that little can be done with where there is no GPU.
const NVRTC: &str = "nvrtc";

/// Whether NVIDIA's driver runs here.
fn has_gpu() -> bool {
    Path::new("/proc/driver/nvidia/version").exists()
}

/// When to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The person asked for this download: only if it is large, or its size not known.
    IfNeeded,
    /// The person asked for something else that needs it.
    Always,
    /// No more: the person has seen it among others, and agreed.
    Agreed,
}

/// One line: what, how much, under which licence.
pub fn describe(plan: &PullPlan) -> String {
    let text = format!("{}  {} · licence {}", plan.name, download(plan), licence(plan));
    match &plan.description {
        Some(description) => format!("{text}\n  {}", crate::output::printable(description)),
        None => text,
    }
}

fn download(plan: &PullPlan) -> String {
    match plan.download {
        Some(0) => "nothing to download".to_owned(),
        Some(bytes) => format!("{} to download", text::bytes(bytes)),
        None => "size not known".to_owned(),
    }
}

fn licence(plan: &PullPlan) -> &str {
    plan.licence.as_deref().unwrap_or("not stated")
}

/// What the models of a set are, how much is to be downloaded for each, and under which licence.
pub fn describe_all(plans: &[PullPlan]) -> Table {
    let mut table = Table::new(&["NAME", "DOWNLOAD", "LICENCE", "WHAT"]);
    for plan in plans {
        let what = plan.description.clone().unwrap_or_default();
        table.row([plan.name.to_string(), download(plan), licence(plan).to_owned(), what]);
    }
    table
}

/// Shows what a set takes and asks once for all of it. Without a person to ask, as with one model: `--yes` is needed where
/// it is large, or its size not known.
pub fn agree_to_all(context: &Context, set: &Set, plans: &[PullPlan]) -> Result<()> {
    let out = &context.out;
    let missing: Vec<&PullPlan> = plans.iter().filter(|plan| plan.download != Some(0)).collect();
    if missing.is_empty() || context.global.offline {
        return Ok(());
    }
    let total: Option<u64> = plans.iter().map(|plan| plan.download).sum();
    let size = total.map_or_else(|| "nobody knows how much".to_owned(), text::bytes);
    out.note(format!("{}: {}", set.name, set.description));
    out.note_table(&describe_all(plans));
    if missing.iter().any(|plan| plan.name.to_string() == NVRTC) && !has_gpu() {
        out.note(format!(
            "{NVRTC} is of use without a GPU to who writes kernels: it tells whether they compile, and here is none to run them"
        ));
    }
    let refused = |next: &str| {
        Err(Failure::failed(format!("`{}` was not fetched: {size} to download", set.name))
            .next(next)
            .code("consent_needed"))
    };
    if context.global.yes {
        return Ok(());
    }
    if out.asks {
        let question = format!("fetch {} for {size}, under these licences?", models(missing.len()));
        return if out.ask(&question, true) { Ok(()) } else { refused("one of them: `backplane pull NAME`") };
    }
    match total {
        Some(total) if total < LARGE => Ok(()),
        _ => refused("run it again with `--yes`"),
    }
}

fn models(count: usize) -> String {
    if count == 1 { "one of them".to_owned() } else { format!("{count} of them") }
}

/// Shows what a pull takes, asks if need be, and pulls.
pub fn pull(
    context: &Context,
    models: &Models,
    what: &str,
    plan: &PullPlan,
    mut options: PullOptions,
    ask: Ask,
) -> Result<Installed> {
    let out = &context.out;
    options.allow_large |= ask == Ask::Agreed;
    if plan.download != Some(0) && !context.global.offline && ask != Ask::Agreed {
        out.note(describe(plan));
        let wanted = ask == Ask::Always || plan.needs_consent();
        if wanted && out.asks && !context.global.yes {
            if !out.ask("fetch it?", true) {
                return Err(
                    Failure::failed(format!("`{}` was not fetched", plan.name)).code("consent_needed")
                );
            }
            options.allow_large = true;
        }
    }
    // What is small needs no plan a second time, which would ask the server for its length again.
    options.allow_large |= context.global.yes || !plan.needs_consent();
    options.offline |= context.global.offline;
    options.cancel = Some(cancel_on_interrupt());
    let mut pulling = Pulling::new(out);
    let installed = models.pull(what, &options, &mut |step| pulling.step(step));
    pulling.end();
    Ok(installed?)
}

/// True after Ctrl+C, so that what has arrived is kept and the store left tidy.
fn cancel_on_interrupt() -> Arc<AtomicBool> {
    static CANCEL: std::sync::OnceLock<Arc<AtomicBool>> = std::sync::OnceLock::new();
    let cancel = CANCEL.get_or_init(|| {
        let cancel = Arc::new(AtomicBool::new(false));
        let flag = cancel.clone();
        let watch = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(tokio::signal::ctrl_c())?;
            flag.store(true, Ordering::Relaxed);
            // It is looked at between two reads. Who will not wait for a server that is silent asks again.
            runtime.block_on(tokio::signal::ctrl_c())?;
            end_now();
            Ok::<(), std::io::Error>(())
        };
        // Without the thread Ctrl+C ends the program at once, which a pull survives too.
        std::thread::Builder::new().name("interrupt".to_owned()).spawn(watch).ok();
        cancel
    });
    cancel.clone()
}

#[expect(clippy::disallowed_methods, reason = "a pull holds nothing that a crash would not leave as well")]
fn end_now() {
    std::process::exit(i32::from(Exit::Failure as u8));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_licence_are_said_before() {
        let plan = Models::at("/nonexistent").plan_pull("smollm2", &PullOptions::default()).unwrap();
        let text = describe(&plan);
        assert!(text.starts_with("smollm2  93 MB to download · licence Apache-2.0"), "{text}");
    }
}
