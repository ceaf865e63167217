//! The verbs about licences. All of them work on files: what is true of the running server only the server can say.

mod files;
mod inspect;
mod keys;
mod status;
mod vendor;

use crate::args::License;
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::verbs::plugin::manifests;
use backplane_registry::license::{Clock, Machine, Refusal, Report, Running, Situation, UsageLog, Use};
use backplane_registry::trust::{Timestamp, TrustError, TrustStore, Trusted};
use std::path::Path;

/// Does what was asked.
pub fn run(context: &Context, verb: License) -> Result<()> {
    context.local_only("license")?;
    match verb {
        License::Inspect(args) => inspect::run(context, &args),
        License::Install { files } => files::install(context, &files),
        License::Remove { id } => files::remove(context, &id),
        License::List => files::list(context),
        License::Status { plugin } => status::status(context, plugin.as_deref()),
        License::Fingerprint { plugin } => status::fingerprint(context, &plugin),
        License::Usage => status::usage(context),
        License::Check { plugin, feature, tenant } => status::check(context, &plugin, &feature, &tenant),
        License::Trust(verb) => keys::run(context, verb),
        License::Keygen { owner, out } => vendor::keygen(context, &owner, &out),
        License::Issue(args) => vendor::issue(context, &args),
        License::Revoke(args) => vendor::revoke(context, &args),
    }
}

/// What licences are checked against on this machine.
struct Here {
    trusted: Trusted,
    machine: Machine,
    now: Timestamp,
}

impl Here {
    fn of(context: &Context) -> Result<Self> {
        let state = context.state()?;
        let system = Timestamp::now();
        // A server that ran here remembers what time it was: setting the clock back gives nothing.
        let clock = Clock::read(&state).map_err(refused)?;
        let now = clock.map_or(system, |clock| clock.now(system, Timestamp::default(), None));
        let trusted = TrustStore::at(&state).load(now).map_err(refused)?;
        for problem in &trusted.problems {
            context.out.complain(format!("warning: {problem}"));
        }
        Ok(Self { trusted, machine: Machine::read(&state), now })
    }

    fn situation<'a>(&'a self, plugin: Option<&'a Running>, used: Option<&'a Use>) -> Situation<'a> {
        Situation {
            trust: &self.trusted.keys,
            revocations: &self.trusted.revocations,
            machine: &self.machine,
            plugin,
            used,
            first_seen: None,
            now: self.now,
        }
    }
}

/// The plugins that lie where a server would look.
fn installed(context: &Context) -> Result<Vec<Running>> {
    Ok(manifests(context)?.iter().map(|(manifest, built)| Running::of(manifest, *built)).collect())
}

/// What a plugin used this month, if anybody counted.
fn used(context: &Context, plugin: &str, now: Timestamp) -> Result<Option<Use>> {
    let month = now.day().month();
    let entries = UsageLog::at(&context.state()?).read().map_err(refused)?;
    let of_it: Vec<_> =
        entries.iter().filter(|entry| entry.plugin == plugin && entry.month == month).collect();
    Ok((!of_it.is_empty()).then(|| Use {
        tokens_month: of_it.iter().map(|entry| entry.tokens).fold(0, u64::saturating_add),
        nodes: of_it.iter().map(|entry| entry.peak_nodes).max().unwrap_or(0),
        gpus: of_it.iter().map(|entry| entry.peak_gpus).max().unwrap_or(0),
        ..Use::default()
    }))
}

/// A file, key or list that is not believed.
fn refused(error: TrustError) -> Failure {
    let exit = match &error {
        TrustError::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => Exit::NotFound,
            std::io::ErrorKind::PermissionDenied => Exit::Denied,
            _ => Exit::Failure,
        },
        _ => Exit::Failure,
    };
    Failure::new(exit, error.to_string()).code(error.code())
}

/// A licence that does not do: the file, the licence, the field, why, and what helps.
fn refusal(exit: Exit, file: &Path, report: &Report, refusal: &Refusal) -> Failure {
    let licence =
        report.id().map_or_else(|| "a licence nobody can read".to_owned(), |id| format!("licence {id}"));
    let what = format!("{}: {licence}, `{}`: {}", file.display(), refusal.field, refusal.reason);
    Failure::new(exit, what).next(refusal.remedy.clone()).code(refusal.code)
}
