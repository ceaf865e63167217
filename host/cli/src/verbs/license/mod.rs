//! The verbs about licences. All of them work on files: what is true of the running server only the server can say.

mod files;
mod inspect;
mod keys;
mod status;
mod usage;
mod vendor;

use crate::args::{License, Usage};
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::verbs::plugin::manifests;
use backplane_registry::license::{
    Clock, Licences, Machine, Refusal, Report, Running, Situation, Snapshot, UsageLog, Use,
};
use backplane_registry::package::PackageManifest;
use backplane_registry::plugin::LicenceClass;
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
        License::Usage { verb: None } => usage::show(context),
        License::Usage { verb: Some(Usage::Export { plugins, out }) } => {
            usage::export(context, &plugins, out.as_deref())
        }
        License::Usage { verb: Some(Usage::Read { file }) } => usage::read(context, &file),
        License::Check { plugin, feature, tenant } => status::check(context, &plugin, &feature, &tenant),
        License::Trust(verb) => keys::run(context, verb),
        License::Keygen { owner, out } => vendor::keygen(context, &owner, &out),
        License::Issue(args) => vendor::issue(context, &args),
        License::Time { key, install, out } => vendor::time(context, &key, &install, &out),
        License::Revoke(args) => vendor::revoke(context, &args),
    }
}

/// What licences are checked against on this machine.
struct Here {
    trusted: Trusted,
    machine: Machine,
    /// As it is after what vendors signed to mend it.
    clock: Clock,
    system: Timestamp,
    now: Timestamp,
}

impl Here {
    fn of(context: &Context) -> Result<Self> {
        let state = context.state()?;
        let system = Timestamp::now();
        // A server that ran here remembers what time it was: setting the clock back gives nothing.
        let clock = match Clock::read(&state) {
            Ok(clock) => clock,
            Err(error) => {
                context.out.complain(format!("warning: {error}"));
                None
            }
        };
        let mut clock = clock.unwrap_or_else(|| Clock::anew(&state, system));
        let now = clock.now(system, Timestamp::default(), None);
        let (trusted, machine) = (TrustStore::at(&state).load(now).map_err(refused)?, Machine::read(&state));
        let mended = Licences::at(&state).mend(&mut clock, &trusted.keys, &machine, system);
        let (_, refused_tokens) = mended.map_err(refused)?;
        for problem in trusted.problems.iter().chain(&refused_tokens) {
            context.out.complain(format!("warning: {problem}"));
        }
        Ok(Self { trusted, machine, clock, system, now })
    }

    fn situation<'a>(&'a self, plugin: Option<&'a Running>, used: Option<&'a Use>) -> Situation<'a> {
        Situation {
            trust: &self.trusted.keys,
            revocations: &self.trusted.revocations,
            machine: &self.machine,
            plugin,
            used,
            first_seen: None,
            now: self.clock.times(self.system, Timestamp::default(), None),
        }
    }
}

/// The plugins that lie where a server would look.
fn installed(context: &Context) -> Result<Vec<Running>> {
    Ok(manifests(context)?.iter().map(|(manifest, built)| Running::of(manifest, *built)).collect())
}

/// How a package would stand here: nothing where it has to do with no licence.
pub fn standing(context: &Context, package: &PackageManifest) -> Result<Option<Snapshot>> {
    if package.plugin.licence_class == LicenceClass::Open {
        return Ok(None);
    }
    let (here, plugin) = (Here::of(context)?, Running::of(&package.plugin, package.built));
    let licences = Licences::at(&context.state()?);
    let held = licences.of_plugin(&plugin.id, &here.situation(Some(&plugin), None)).map_err(refused)?;
    Ok(Some(held.as_ref().map_or_else(Snapshot::missing, Snapshot::from)))
}

/// What a plugin used this month, if anybody counted.
fn used(context: &Context, plugin: &str, now: Timestamp) -> Result<Option<Use>> {
    let month = now.day().month();
    let (entries, problem) = UsageLog::at(&context.state()?).used_in(&month);
    if let Some(problem) = problem {
        return Err(refused(problem));
    }
    let of_it: Vec<_> = entries.iter().filter(|entry| entry.plugin == plugin).collect();
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
