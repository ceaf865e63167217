//! What a pull will cost, said before it starts, and asked where it is large or not known.

use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::progress::Pulling;
use crate::text;
use backplane_registry::{Installed, Models, PullOptions, PullPlan};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// When to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The person asked for this download: only if it is large, or its size not known.
    IfNeeded,
    /// The person asked for something else that needs it.
    Always,
}

/// One line: what, how much, under which licence.
pub fn describe(plan: &PullPlan) -> String {
    let download = match plan.download {
        Some(0) => "nothing to download".to_owned(),
        Some(bytes) => format!("{} to download", text::bytes(bytes)),
        None => "size not known".to_owned(),
    };
    let licence = plan.licence.as_deref().unwrap_or("not stated");
    let text = format!("{}  {download} · licence {licence}", plan.name);
    match &plan.description {
        Some(description) => format!("{text}\n  {}", crate::output::printable(description)),
        None => text,
    }
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
    if plan.download != Some(0) && !context.global.offline {
        out.note(describe(plan));
        let wanted = match ask {
            Ask::Always => true,
            Ask::IfNeeded => plan.needs_consent(),
        };
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
        assert!(text.starts_with("smollm2  92 MB to download · licence Apache-2.0"), "{text}");
    }
}
