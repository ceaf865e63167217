//! A worker without this or that mechanism: for the tests that it is they which stop a case. What is left out is in the name
//! under which it is started, `without landlock seccomp`; `absent landlock` starts it as on a kernel that has none, and
//! `knows 1` as on one whose Landlock is of the first version.

use backplane_worker::Sandbox;
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default();
    let mechanisms = |said: &str| said.split(' ').map(str::to_owned).collect();
    let sandbox = match name.split_once(' ') {
        Some(("without", off)) => Sandbox { off: mechanisms(off), ..Sandbox::whole() },
        Some(("absent", absent)) => Sandbox { absent: mechanisms(absent), ..Sandbox::whole() },
        Some(("knows", newest)) => Sandbox { newest: newest.parse().ok(), ..Sandbox::whole() },
        _ => Sandbox::whole(),
    };
    backplane_worker::run(&sandbox)
}
