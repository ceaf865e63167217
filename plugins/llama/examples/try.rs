use backplane_llama::engine::*;
use backplane_plugin::payload::*;
use std::sync::{Arc, mpsc::*};
struct R(Sender<String>);
impl Sink for R {
    fn push(&mut self, d: &Delta) -> Push {
        let _ = self.0.send(d.text.clone());
        Push::Taken
    }
    fn is_gone(&self) -> bool {
        false
    }
    fn finish(self: Box<Self>, r: backplane_plugin::Result<Usage>) {
        let _ = self.0.send(format!(
            "  [{:?}]",
            r.map(|u| (u.prompt_tokens, u.completion_tokens, u.decode_seconds)).map_err(|e| e.message)
        ));
    }
}
fn main() {
    backplane_llama::sys::route_log(Box::new(|_, _| {}));
    let mut a = std::env::args().skip(1);
    let p = a.next().unwrap();
    let e = Engine::start(
        Arc::new(
            Loaded::open(std::path::Path::new(&p), Config { context: Some(2048), ..Config::default() })
                .unwrap(),
        ),
        Arc::new(Unlimited),
    )
    .unwrap();
    for q in a {
        let (s, r) = channel();
        if let Some(raw) = q.strip_prefix("raw:") {
            let mut x = backplane_plugin::payload::Extra::new();
            x.insert("parse_special".into(), true.into());
            e.complete(
                &complete::Params {
                    prompt: complete::Prompt::Text(raw.replace("\\n", "\n")),
                    extra: x,
                    max_tokens: Some(60),
                    sampling: Sampling { temperature: Some(0.0), ..Default::default() },
                    ..Default::default()
                },
                Terms::default(),
                Box::new(R(s)),
            );
        } else {
            let v: chat::Params = serde_json::from_str(&q).unwrap();
            e.chat(&v, Terms::default(), Box::new(R(s)));
        }
        let t: String = r.iter().collect();
        println!("--- {q}\n{t}");
    }
}
