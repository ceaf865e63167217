//! `ps`: the models that are open. Looking opens nothing and resets no timer.

use crate::context::Context;
use crate::exit::Result;
use crate::output::Table;
use crate::text;
use serde_json::{Value, json};
use std::time::Duration;

pub fn run(context: &Context) -> Result<()> {
    let models = context.client()?.get("/admin/v1/models")?;
    let open: Vec<&Value> =
        models["data"].as_array().into_iter().flatten().filter(|model| is_open(model)).collect();
    let out = &context.out;
    if out.json {
        out.value(&open);
        return Ok(());
    }
    if context.global.quiet {
        open.iter().for_each(|model| out.line(model["name"].as_str().unwrap_or_default()));
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL", "PLUGIN", "TOK/S"]);
    for model in open {
        table.row(row(model));
    }
    out.table(&table);
    Ok(())
}

fn is_open(model: &Value) -> bool {
    !model["running"].is_null() || matches!(model["state"].as_str(), Some("loading" | "closing"))
}

fn row(model: &Value) -> [String; 8] {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
    let running = &model["running"];
    let until = match (model["state"].as_str(), running["pinned"].as_bool(), running["expires_in"].as_f64()) {
        (Some(state @ ("loading" | "closing")), ..) => state.to_owned(),
        (_, Some(true), _) => "pinned".to_owned(),
        (_, _, Some(seconds)) => match Duration::try_from_secs_f64(seconds) {
            Ok(time) if running["busy"].as_u64() == Some(0) => format!("{} from now", text::about(time)),
            _ => "in use".to_owned(),
        },
        (_, _, None) => "for ever".to_owned(),
    };
    [
        text(&model["name"]),
        text(&model["id"]),
        running["memory_bytes"].as_u64().map_or_else(|| "-".to_owned(), text::bytes),
        text(&running["device"]),
        model["description"]["context"].as_u64().map_or_else(|| "-".to_owned(), |tokens| tokens.to_string()),
        until,
        text(&model["plugin"]),
        rate(&running["engine"]).map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}")),
    ]
}

/// Tokens a second of each answer, over all answers since the model was opened.
fn rate(engine: &Value) -> Option<f64> {
    let figures = engine.as_array()?;
    let figure = |name: &str| figures.iter().find(|figure| figure[0] == json!(name))?[1].as_f64();
    let (tokens, seconds) = (figure("generated_tokens_total")?, figure("decode_seconds_total")?);
    (0.0 < tokens && 0.0 < seconds).then(|| tokens / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_what_is_known() {
        let model = json!({
            "name": "smollm2", "id": "b179c952", "state": "ready", "plugin": "dev.backplane.llama",
            "description": {"context": 4096},
            "running": {"memory_bytes": 152_000_000, "device": "cpu", "busy": 0, "expires_in": 290.5, "pinned": false,
                "engine": [["generated_tokens_total", 300.0], ["decode_seconds_total", 2.0]]},
        });
        assert!(is_open(&model));
        let expected = [
            "smollm2",
            "b179c952",
            "152 MB",
            "cpu",
            "4096",
            "5 minutes from now",
            "dev.backplane.llama",
            "150",
        ];
        assert_eq!(row(&model), expected);
        let loading = json!({ "name": "echo", "id": "", "state": "loading", "running": null });
        assert!(is_open(&loading));
        assert_eq!(row(&loading), ["echo", "-", "-", "-", "-", "loading", "-", "-"]);
        assert!(!is_open(&json!({ "state": "failed", "running": null })));
    }
}
