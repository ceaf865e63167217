//! my-plugin: gives a text back word by word, each as soon as its reader wants it.
//!
//! Yours starts where it says HERE.

use backplane_plugin::prelude::*;
use backplane_plugin::serde::Deserialize;

const MOST_WORDS: usize = 10_000;

/// HERE: what a caller may say. A misspelt parameter is named, not passed over.
#[derive(Deserialize)]
#[serde(crate = "backplane_plugin::serde", deny_unknown_fields)]
struct Params {
    text: String,
}

/// HERE: what it does.
fn answer(request: &Request) -> Result<Done> {
    let params: Params = request.params()?;
    let words: Vec<&str> = params.text.split(' ').filter(|word| !word.is_empty()).collect();
    if words.len() > MOST_WORDS {
        // A typed error: the code says who has to act, the reason and the figures are for programs.
        let message = format!("`text` has more than {MOST_WORDS} words: send it in parts");
        return Err(Error::new(Code::OutOfRange, message)
            .with_reason("text_too_long")
            .with_param("text")
            .with_detail("words", words.len())
            .with_detail("most", MOST_WORDS));
    }
    for word in words {
        if request.is_cancelled() {
            return Err(Error::cancelled());
        }
        // Waits for a reader that is behind.
        request.push_json(&json!({ "word": word }))?;
    }
    Ok(Done::new())
}

/// Made once for each host.
struct MyPlugin;

impl Plugin for MyPlugin {
    const ID: &'static str = "com.example.my-plugin";

    fn init(_host: Host, _config: &Value) -> Result<Self> {
        Ok(MyPlugin)
    }

    fn open(&self, _model: &ModelSpec) -> Result<Box<dyn Model>> {
        Ok(Box::new(Words))
    }
}

/// The opened model: HERE is the place for weights, tables, whatever its instances share.
struct Words;

impl Model for Words {
    fn execution(&self) -> Execution {
        Execution::Concurrent { max_inflight: 4, max_batch: 1 }
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        Ok(each(answer))
    }
}

export_plugin!(MyPlugin, include_str!("../plugin.toml"));
