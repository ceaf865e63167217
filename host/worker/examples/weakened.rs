//! A worker without this or that mechanism: for the tests that it is they which stop a case. What is left out is in the name
//! under which it is started, `without landlock seccomp`; `absent landlock` starts it as on a kernel that has none.

use backplane_worker::Sandbox;
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    let mechanisms = |said: &str| said.split(' ').map(str::to_owned).collect();
    let sandbox = match (name.strip_prefix("without "), name.strip_prefix("absent ")) {
        (Some(off), _) => Sandbox { off: mechanisms(off), ..Sandbox::whole() },
        (_, Some(absent)) => Sandbox { absent: mechanisms(absent), ..Sandbox::whole() },
        _ => Sandbox::whole(),
    };
    backplane_worker::run(&sandbox)
}
