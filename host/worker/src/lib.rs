//! `backplane-worker`: a process that loads one plugin and answers for it.
//!
//! A library only so that the tests can start a worker that lacks a part of its [`Sandbox`]; the program has no such switch.
//!
//! The host starts it with the main connection as its standard input, says which library to load and how it is to be
//! confined, and speaks to it as `backplane_abi::worker` says. It confines itself before the library is mapped, while it
//! has one thread, and ends when its host does.

mod buffers;
mod callbacks;
mod calls;
mod library;
mod said;
mod sandbox;
mod state;
mod table;

use backplane_abi::ABI_MINOR;
use backplane_abi::worker::{Channel, PROTOCOL, ToHost, ToWorker, frame};
use std::os::fd::AsFd;
use std::process::ExitCode;

pub use sandbox::Sandbox;

/// The whole program.
pub fn run(sandbox: &Sandbox) -> ExitCode {
    match serve(sandbox) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("backplane-worker: {why}");
            ExitCode::from(2)
        }
    }
}

fn serve(sandbox: &Sandbox) -> Result<(), String> {
    const BY_HAND: &str = "is started by `backplane`, which speaks to it on its standard input";
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let main = Channel::from_fd(stdin);
    let Ok(Some((body, sealed))) = main.receive() else { return Err(BY_HAND.to_owned()) };
    let Ok(ToWorker::Start { protocol, library, confine }) = body.read() else {
        return Err(BY_HAND.to_owned());
    };
    let ready = |problem: Option<&str>| {
        let problem = problem.map(str::as_bytes);
        main.send(&frame(&ToHost::Ready { protocol: PROTOCOL, abi_minor: ABI_MINOR, problem }))
            .map_err(|error| error.to_string())
    };
    let entry = if protocol == PROTOCOL {
        let library = library::Source::new(library, sealed);
        sandbox.apply(&confine, &library, &main).and_then(|()| library.map())
    } else {
        Err(format!(
            "the host speaks protocol {protocol} and this worker {PROTOCOL}: install both from one release"
        ))
    };
    match entry {
        Ok(entry) => {
            ready(None)?;
            let state = state::State::start(main, entry).ok_or("started twice")?;
            let plugin =
                callbacks::start(state).map_err(|error| format!("no thread for callbacks: {error}"))?;
            while let Ok(Some((body, fd))) = state.main().receive() {
                if !calls::hear(state, body, fd, &plugin) {
                    return Err("the host said something that is not in the protocol".to_owned());
                }
            }
            state::leave()
        }
        Err(why) => ready(Some(&why)),
    }
}
