//! `backplane plugin unquarantine`: in the server, or in the state directory for the next one.

use crate::args::Unquarantine;
use crate::client::segment;
use crate::context::Context;
use crate::exit::{Exit, Failure, Result};
use crate::output::printable;
use backplane::isolation::Quarantine;
use serde_json::{Value, json};

pub fn lift(context: &Context, args: &Unquarantine) -> Result<()> {
    let id = args.id.as_str();
    let client = context.client()?;
    let answer: Value = if client.is_up() {
        client.delete(&format!("/admin/v1/plugins/{}/quarantine", segment(id)))?
    } else {
        context.local_only("plugin unquarantine")?;
        let state = context.state()?;
        let lifted = Quarantine::lift(&state, id)
            .map_err(|error| Failure::io("remove a note of", &state.join("quarantine"), &error))?;
        json!({ "plugin": id, "lifted": 0 < lifted })
    };
    if answer["lifted"] != true {
        return Err(Failure::new(Exit::NotFound, format!("plugin `{}` is not in quarantine", printable(id)))
            .next("`backplane plugin ls` says how each plugin is")
            .code("not_quarantined"));
    }
    match context.out.json {
        true => context.out.value(&answer),
        false => context.out.line(format!("{} is started again when it is next asked for", printable(id))),
    }
    Ok(())
}
