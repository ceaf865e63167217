//! `stop`: closes an open model, after it has finished what it has.

use crate::args::Stop;
use crate::client::segment;
use crate::context::Context;
use crate::exit::Result;
use serde_json::json;

pub fn run(context: &Context, args: &Stop) -> Result<()> {
    let client = context.client()?;
    let mut closed = Vec::new();
    for name in &args.models {
        let model = client.post(&format!("/admin/v1/models/{}/unload", segment(name)), &json!({}))?;
        if !context.out.json {
            context.out.note(format!("{} is closed", model["name"].as_str().unwrap_or(name)));
        }
        closed.push(json!({ "name": model["name"], "state": model["state"] }));
    }
    if context.out.json {
        context.out.value(&closed);
    }
    Ok(())
}
