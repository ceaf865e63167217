//! `pull`: fetches models and runtimes into the state directory.

use crate::args::Pull;
use crate::consent::{self, Ask};
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::output::Style;
use crate::text;
use backplane_registry::{ModelName, PullOptions};
use serde_json::json;

pub fn run(context: &Context, args: Pull) -> Result<()> {
    context.local_only("pull")?;
    if args.name.is_some() && args.what.len() > 1 {
        return Err(Failure::usage("`--name` names one model, and several are to be pulled")
            .next("pull them one by one"));
    }
    let name = args.name.as_deref().map(str::parse::<ModelName>).transpose()?;
    let models = context.models()?;
    let options = PullOptions {
        name,
        replace: args.replace,
        offline: context.global.offline,
        ..PullOptions::default()
    };
    let mut results = Vec::new();
    for what in &args.what {
        let plan = models.plan_pull(what, &options)?;
        if args.dry_run {
            if context.out.json {
                results.push(json!({
                    "name": plan.name, "licence": plan.licence, "format": plan.format, "size": plan.size,
                    "download": plan.download, "installed": plan.installed,
                }));
            } else {
                context.out.line(consent::describe(&plan));
            }
            continue;
        }
        let installed = consent::pull(context, &models, what, &plan, options.clone(), Ask::IfNeeded)?;
        if context.out.json {
            results.push(json!({
                "name": installed.name, "id": installed.id, "size": installed.size, "was_installed": plan.installed,
            }));
        } else if !context.global.quiet {
            let done = if plan.installed { "is installed" } else { "installed" };
            let sums = installed.files.iter().filter(|file| file.sha256.is_some()).count();
            let check = context.out.styled(Style::Good, "✓");
            context.out.line(format!(
                "{} {done}  {}  {}  sha256 {check} {sums} file{}",
                installed.name,
                installed.id,
                text::bytes(installed.size),
                if sums == 1 { "" } else { "s" }
            ));
        }
    }
    if context.out.json {
        context.out.value(&results);
    }
    if args.dry_run { Ok(()) } else { context.refresh_server() }
}
