//! A plugin that panics wherever its configuration or its model's card says, to see that the host lives.

use backplane_plugin::prelude::*;

struct Panics;

/// Panics if `place` is where it is to.
#[expect(clippy::panic, reason = "that is what it is for")]
fn pass(place: &str, asked: &Value) {
    if asked["panic"] == place {
        panic!("asked to panic in {place}");
    }
}

impl Plugin for Panics {
    const ID: &'static str = "com.example.panics";

    fn init(_host: Host, config: &Value) -> Result<Self> {
        pass("init", config);
        Ok(Panics)
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        if let Ok(model) = query.model() {
            pass("bid", &Value::Object(model.parameters));
        }
        Bid::default()
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        let asked = Value::Object(model.parameters.clone());
        pass("open", &asked);
        Ok(Box::new(Opened(asked)))
    }
}

struct Opened(Value);

impl Model for Opened {
    fn execution(&self) -> Execution {
        Execution::Concurrent { max_inflight: 4, max_batch: 1 }
    }

    fn describe(&self) -> Description {
        pass("describe", &self.0);
        Description::default()
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        pass("instance", &self.0);
        Ok(Box::new(Running(self.0.clone())))
    }

    fn count_tokens(&self, _capability: &str, _params: &str) -> Result<Option<u64>> {
        pass("count_tokens", &self.0);
        Ok(None)
    }

    fn stats(&self, _each: &mut dyn FnMut(&str, f64)) {
        pass("stats", &self.0);
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        pass("close", &self.0);
    }
}

struct Running(Value);

impl Instance for Running {
    fn submit(&self, requests: Vec<Request>) {
        pass("submit", &self.0);
        for request in requests {
            request.finish(Ok(Done::new()));
        }
    }

    fn health(&self) -> Health {
        pass("health", &self.0);
        Health::Ready
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        pass("drop", &self.0);
    }
}

export_plugin!(
    Panics,
    concat!(
        "id = 'com.example.panics'\nversion = '",
        env!("CARGO_PKG_VERSION"),
        r#"'
        abi = "1.0"
        capabilities = ["com.example.panic"]
        models = [
            { name = "panics-bid", parameters = { panic = "bid" } },
            { name = "panics-open", parameters = { panic = "open" } },
            { name = "panics-describe", parameters = { panic = "describe" } },
            { name = "panics-instance", parameters = { panic = "instance" } },
            { name = "panics-count_tokens", parameters = { panic = "count_tokens" } },
            { name = "panics-stats", parameters = { panic = "stats" } },
            { name = "panics-submit", parameters = { panic = "submit" } },
            { name = "panics-health", parameters = { panic = "health" } },
            { name = "panics-drop", parameters = { panic = "drop" } },
            { name = "panics-close", parameters = { panic = "close" } },
        ]
        "#
    )
);
