//! The plugin that does nothing: what is left of a request's time is the host's and the SDK's.

use backplane_plugin::prelude::*;

struct Null;

impl Plugin for Null {
    const ID: &'static str = "dev.backplane.null";

    fn init(_host: Host, _config: &Value) -> Result<Self> {
        Ok(Null)
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        let parameters: Value = model.parameters()?;
        Ok(Box::new(Opened {
            continuous: parameters["continuous"] == true,
            chunks: parameters["chunks"].as_u64().unwrap_or(0),
        }))
    }
}

struct Opened {
    continuous: bool,
    /// Pieces of each answer: what a token is.
    chunks: u64,
}

impl Model for Opened {
    fn execution(&self) -> Execution {
        match self.continuous {
            true => Execution::Continuous { max_inflight: 64 },
            false => Execution::Concurrent { max_inflight: 64, max_batch: 1 },
        }
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        let chunks = self.chunks;
        Ok(each(move |request| {
            (0..chunks).try_for_each(|_| request.push_json(&json!({"content": " word"})))?;
            Ok(Done::new())
        }))
    }
}

export_plugin!(
    Null,
    concat!(
        "id = 'dev.backplane.null'\nversion = '",
        env!("CARGO_PKG_VERSION"),
        r#"'
        abi = "1.0"
        description = "Does nothing"
        capabilities = [{ name = "bench.null", version = 1 }]
        models = [
            { name = "null", capabilities = ["bench.null"] },
            { name = "null-continuous", capabilities = ["bench.null"], parameters = { continuous = true } },
        ]
        "#
    )
);
