//! Pulls what its arguments name into a state directory:
//! `cargo run -p backplane-registry --example pull -- STATE NAME...`

use std::io::Write as _;

use backplane_registry::{Models, Progress, PullOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let models = Models::at(arguments.next().ok_or("usage: pull STATE NAME...")?);
    let options = PullOptions { allow_large: true, ..PullOptions::default() };
    let mut out = std::io::stderr();
    for what in arguments {
        let plan = models.plan_pull(&what, &options)?;
        writeln!(out, "{}: {:?} bytes to download, licence {:?}", plan.name, plan.download, plan.licence)?;
        let installed = models.pull(&what, &options, &mut |step| {
            let _ = match step {
                Progress::Downloading { file, part, parts, done, total, .. } => {
                    write!(out, "\r{file} {part}/{parts} {done} of {total:?}   ")
                }
                Progress::Verifying { done, total, .. } if done < total => Ok(()),
                step => writeln!(out, "\r{step:?}"),
            };
        })?;
        for file in &installed.files {
            writeln!(out, "{} {} {}", installed.id, file.role, file.path.display())?;
        }
    }
    Ok(())
}
