//! The verbs, one file each.

mod classify;
mod completions;
mod config;
mod cp;
mod detect;
mod doctor;
mod embed;
mod infer;
mod key;
mod license;
mod logs;
mod ls;
mod ocr;
mod pictures;
mod plugin;
mod ps;
mod pull;
mod rm;
mod run;
mod serve;
mod show;
mod stop;
mod translate;

pub use show::describe;

use crate::args::Verb;
use crate::context::Context;
use crate::exit::Result;

/// Does what was asked.
pub fn run(context: &Context, verb: Verb) -> Result<()> {
    match verb {
        Verb::Serve(args) => serve::run(context, args),
        Verb::Run(args) => run::run(context, args),
        Verb::Pull(args) => pull::run(context, args),
        Verb::Ls(args) => ls::run(context, &args),
        Verb::Ps => ps::run(context),
        Verb::Show(args) => show::run(context, &args),
        Verb::Cp(args) => cp::run(context, &args),
        Verb::Rm(args) => rm::run(context, &args),
        Verb::Stop(args) => stop::run(context, &args),
        Verb::Plugin(verb) => plugin::run(context, verb),
        Verb::License(verb) => license::run(context, verb),
        Verb::Embed(args) => embed::run(context, &args),
        Verb::Translate(args) => translate::run(context, &args),
        Verb::Ocr(args) => ocr::run(context, &args),
        Verb::Detect(args) => detect::run(context, &args),
        Verb::Classify(args) => classify::run(context, &args),
        Verb::Infer(args) => infer::run(context, &args),
        Verb::Key(verb) => key::run(context, verb),
        Verb::Config(verb) => config::run(context, verb),
        Verb::Logs(args) => logs::run(context, &args),
        Verb::Doctor => doctor::run(context),
        Verb::Completions { shell } => completions::run(context, shell),
    }
}
