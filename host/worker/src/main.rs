//! `backplane-worker`: see the library.

use backplane_worker::Sandbox;
use std::process::ExitCode;

fn main() -> ExitCode {
    backplane_worker::run(&Sandbox::whole())
}
