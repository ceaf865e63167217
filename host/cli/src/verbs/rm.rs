//! `rm`: removes models, and gives their disk space back.

use crate::args::Rm;
use crate::client::{Client, segment};
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::text;
use backplane_registry::Removed;
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
            context.out.note(format!("{} is removed{}", gone.name, disk(&gone)));
        }
    }
    if context.out.json {
        context.out.value(&removed);
    }
    if running { context.refresh_server() } else { Ok(()) }
}

/// What became of its files. It may have had none: a card of a model elsewhere, or files that were gone.
fn disk(gone: &Removed) -> String {
    let freed = (gone.freed != 0).then(|| format!("{} are free again", text::bytes(gone.freed)));
    let stay = match gone.shared {
        0 => None,
        _ if gone.freed == 0 => Some("its files stay, another name needs them".to_owned()),
        1 => Some("a file stays, another name needs it".to_owned()),
        count => Some(format!("{count} files stay, another name needs them")),
    };
    [freed, stay].into_iter().flatten().map(|part| format!("; {part}")).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_the_files_is_true() {
        let said = |freed, shared| disk(&Removed { name: "m".parse().unwrap(), freed, shared });
        assert_eq!(said(0, 0), "", "it had none, or they were gone");
        assert_eq!(said(0, 1), "; its files stay, another name needs them");
        assert_eq!(said(2_000_000, 0), "; 2.0 MB are free again");
        assert_eq!(said(2_000_000, 1), "; 2.0 MB are free again; a file stays, another name needs it");
    }
}
