//! `cp`: gives a model a second name. The files are shared.

use crate::args::Cp;
use crate::context::Context;
use crate::exit::Result;
use serde_json::json;

pub fn run(context: &Context, args: &Cp) -> Result<()> {
    context.local_only("cp")?;
    let copy = context.models()?.copy(&args.from, &args.to)?;
    if context.out.json {
        context.out.value(&json!({ "name": copy.name, "id": copy.id, "size": copy.size }));
    } else {
        context.out.note(format!("{} is {} too", args.from, copy.name));
    }
    context.refresh_server()
}
