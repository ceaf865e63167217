//! A host inside another program, without HTTP: loads the plugins of a folder, asks one capability, prints the answer.
//!
//! ```text
//! cargo build -p backplane-echo
//! cargo run -p backplane --example embed -- target/debug echo '{"text": "hello"}'
//! ```

use backplane::{Caller, Config, Host, Next, Request};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(plugins), Some(capability), Some(params)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: embed PLUGIN_FOLDER CAPABILITY PARAMS_JSON [MODEL]".into());
    };
    // A state directory with models may be named; without one the example leaves nothing behind.
    let named = std::env::var_os("BACKPLANE_STATE").map(std::path::PathBuf::from);
    let state = named
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("backplane-embed-{}", std::process::id())));
    let host = Host::builder().config(Config::default()).state_dir(&state).plugin_dir(plugins).start()?;
    let mut request = Request::new(Caller::internal("example"), capability, params).streamed();
    request.model = arguments.next();

    // Any executor will do; this one is the smallest there is.
    let answered = futures::executor::block_on(async {
        let mut reply = host.serve(request).await?;
        loop {
            match reply.next().await? {
                Next::Chunk(chunk) => eprintln!("{}", String::from_utf8_lossy(&chunk.json)),
                Next::Done(done) => return Ok::<_, backplane::Error>((reply.route.model, done)),
            }
        }
    });
    match answered {
        Ok((model, done)) => eprintln!("answered by `{model}` in {:?}", done.timing.run),
        Err(error) => eprintln!("{error}"),
    }
    futures::executor::block_on(host.shutdown(Duration::from_secs(5)));
    drop(host);
    if named.is_none() {
        std::fs::remove_dir_all(state)?;
    }
    Ok(())
}
