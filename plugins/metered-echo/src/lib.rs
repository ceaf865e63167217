//! A commercial plugin to copy: it echoes for anybody, and shouts for who has a licence.
//!
//! The host says how the licence stands and which tenant has which feature; that costs a few dozen nanoseconds and is asked at
//! each request. It is the host's word, though. So the plugin also takes the signed bytes and checks them itself
//! ([`license`]), when they are others than before and once an hour: a feature is on only where both agree.

mod license;

use backplane_plugin::prelude::*;
use backplane_plugin::serde::Deserialize;
use license::OwnCheck;
use std::sync::Arc;

/// The licensed feature.
const SHOUT: &str = "shout";

struct MeteredEcho {
    own: Arc<OwnCheck>,
}

#[derive(Deserialize)]
#[serde(crate = "backplane_plugin::serde", deny_unknown_fields)]
struct Params {
    text: String,
    #[serde(default)]
    shout: bool,
}

impl Plugin for MeteredEcho {
    const ID: &'static str = "dev.backplane.metered-echo";

    fn init(host: Host, _config: &Value) -> Result<Self> {
        Ok(Self { own: Arc::new(OwnCheck::new(host)) })
    }

    fn open(&self, _model: &ModelSpec) -> Result<Box<dyn Model>> {
        Ok(Box::new(Self { own: self.own.clone() }))
    }
}

impl Model for MeteredEcho {
    fn execution(&self) -> Execution {
        Execution::Concurrent { max_inflight: 16, max_batch: 1 }
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        let own = self.own.clone();
        Ok(each(move |request| {
            let Params { text, shout } = request.params()?;
            let text = if shout {
                own.require(request.tenant(), SHOUT)?;
                text.to_uppercase()
            } else {
                text
            };
            request.push_json(&json!({"text": text}))?;
            Ok(Done::new())
        }))
    }
}

export_plugin!(MeteredEcho, include_str!("../plugin.toml"));
