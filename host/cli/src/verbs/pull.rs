//! `pull`: fetches models and runtimes into the state directory.

use crate::args::Pull;
use crate::client::segment;
use crate::consent::{self, Ask};
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::output::Style;
use crate::text;
use backplane_registry::{Kind, ModelName, Models, PullOptions, PullPlan};
use serde_json::json;

pub fn run(context: &Context, args: Pull) -> Result<()> {
    context.local_only("pull")?;
    if args.name.is_some() && args.what.len() > 1 {
        return Err(Failure::usage("`--name` names one model, and several are to be pulled")
            .next("pull them one by one"));
    }
    let name = args.name.as_deref().map(str::parse::<ModelName>).transpose()?;
    let models = context.models()?;
    if let Some(set) = args.what.iter().find_map(|what| models.catalogue().set(what))
        && name.is_some()
    {
        return Err(Failure::usage(format!(
            "`--name` names one model, and `{}` is a set of {}",
            set.name,
            set.models.len()
        )));
    }
    let options = PullOptions {
        name,
        replace: args.replace,
        offline: context.global.offline,
        look: true,
        ..PullOptions::default()
    };
    let (mut results, mut models_pulled) = (Vec::new(), Vec::new());
    let wanted = args.what.iter().map(|what| wanted(context, &models, what, &options, args.dry_run));
    for Wanted { what, plan, ask } in wanted.collect::<Result<Vec<_>>>()?.into_iter().flatten() {
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
        let installed = consent::pull(context, &models, &what, &plan, options.clone(), ask)?;
        if installed.card.kind == Kind::Model {
            models_pulled.push(installed.name.to_string());
        }
        if context.out.json {
            results.push(json!({
                "name": installed.name, "id": installed.id, "size": installed.size, "was_installed": plan.installed,
            }));
        } else if !context.global.quiet {
            let done = if plan.installed { "is installed" } else { "installed" };
            let sums = installed.files.iter().filter(|file| file.sha256.is_some()).count();
            let check = context.out.styled(Style::Good, "✓");
            let files = match sums {
                // A model that another server has: nothing of it lies here.
                0 => String::new(),
                1 => format!("  {}  sha256 {check} 1 file", text::bytes(installed.size)),
                sums => format!("  {}  sha256 {check} {sums} files", text::bytes(installed.size)),
            };
            let licence = plan.licence.as_deref().map(|licence| format!("  licence {licence}"));
            let licence = licence.unwrap_or_default();
            context.out.line(format!("{} {done}  {}{files}{licence}", installed.name, installed.id));
        }
    }
    if context.out.json {
        context.out.value(&results);
    }
    if args.dry_run {
        return Ok(());
    }
    context.refresh_server()?;
    can_be_opened(context, &models_pulled)
}

/// A model to be pulled.
struct Wanted {
    what: String,
    plan: PullPlan,
    ask: Ask,
}

/// What a word of the command line stands for: one model, or those of a set, about which the person has been asked.
fn wanted(
    context: &Context,
    models: &Models,
    what: &str,
    options: &PullOptions,
    dry_run: bool,
) -> Result<Vec<Wanted>> {
    let plan = |what: &str| -> Result<PullPlan> { Ok(models.plan_pull(what, options)?) };
    let Some(set) = models.catalogue().set(what) else {
        return Ok(vec![Wanted { what: what.to_owned(), plan: plan(what)?, ask: Ask::IfNeeded }]);
    };
    let names: Vec<String> = set.models.iter().map(ToString::to_string).collect();
    let plans = names.iter().map(|name| plan(name)).collect::<Result<Vec<_>>>()?;
    if !dry_run {
        consent::agree_to_all(context, set, &plans)?;
    }
    let wanted = |(what, plan)| Wanted { what, plan, ask: Ask::Agreed };
    Ok(names.into_iter().zip(plans).map(wanted).collect())
}

/// Asks a running server whether it could open what was pulled: its plugins know what a card may say. Opens nothing.
fn can_be_opened(context: &Context, names: &[String]) -> Result<()> {
    let client = context.client()?;
    if names.is_empty() || !client.is_up() {
        return Ok(());
    }
    let mut invalid = Ok(());
    for name in names {
        let failure = match client.get(&format!("/admin/v1/models/{}/plan", segment(name))) {
            Err(failure) => failure,
            Ok(plan) => {
                if let Some(says) = super::config::objection(&client, name, &plan) {
                    context.out.complain(format!("warning: `{name}` is installed; its plugin says: {says}"));
                }
                continue;
            }
        };
        let what = format!("`{name}` is installed, and cannot be opened: {}", failure.what);
        match failure.code.as_deref() {
            Some("model_invalid") => {
                let next = "mend its card and `backplane pull --replace` it, or `backplane rm` it";
                invalid = Err(Failure::failed(what).next(next).code("model_invalid"));
            }
            // A runtime or a licence may come yet.
            Some("load_failed" | "runtime_missing" | "device_missing" | "no_memory") => {
                context.out.complain(format!("warning: {what}"))
            }
            _ => {}
        }
    }
    invalid
}
