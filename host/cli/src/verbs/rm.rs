//! `rm`: removes models, and gives their disk space back.

use crate::args::Rm;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::text;
use serde_json::json;

pub fn run(context: &Context, args: &Rm) -> Result<()> {
    context.local_only("rm")?;
    let models = context.models()?;
    let client = context.client()?;
    let running = client.is_up();
    let mut removed = Vec::new();
    for name in &args.models {
        if running {
            close(&client, name, args.force)?;
        }
        let gone = models.remove(name)?;
        if context.out.json {
            removed.push(json!({ "name": gone.name, "freed": gone.freed }));
        } else {
            let disk = match gone.freed {
                0 => "its files stay, another name needs them".to_owned(),
                freed => format!("{} are free again", text::bytes(freed)),
            };
            context.out.note(format!("{} is removed; {disk}", gone.name));
        }
    }
    if context.out.json {
        context.out.value(&removed);
    }
    if running { context.refresh_server() } else { Ok(()) }
}

/// An open model is closed only if the person insists.
fn close(client: &Client, name: &str, force: bool) -> Result<()> {
    let path = format!("/admin/v1/models/{}", segment(name));
    // What the server does not know is not open: a runtime, a broken card.
    let Ok(model) = client.get(&path) else { return Ok(()) };
    // A copy is but a name of what is open.
    let copies = model["copies"].as_array().into_iter().flatten();
    if model["running"].is_null() || copies.into_iter().any(|copy| copy == name) {
        return Ok(());
    }
    if !force {
        return Err(Failure::failed(format!("`{name}` is open"))
            .next(format!("close it and remove it: `backplane rm -f {name}`"))
            .code("model_open"));
    }
    client.post(&format!("{path}/unload"), &json!({})).map(drop)
}
