//! Vectors.

use crate::support::with_engine;
use backplane_llama::engine::{EmbedSink, Embeddings, Engine, Terms};
use backplane_plugin::Result;
use backplane_plugin::payload::{Usage, embed};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

struct Vectors(Sender<Result<(Embeddings, Usage)>>);

impl EmbedSink for Vectors {
    fn is_gone(&self) -> bool {
        false
    }

    fn finish(self: Box<Self>, result: Result<(Embeddings, Usage)>) {
        let _ = self.0.send(result);
    }
}

pub fn embed(engine: &Engine, params: &embed::Params) -> Result<(Embeddings, Usage)> {
    let (sender, receiver) = channel();
    engine.embed(params, Terms::default(), Box::new(Vectors(sender)));
    receiver.recv_timeout(Duration::from_secs(60)).expect("vectors in time")
}

#[test]
fn texts_become_vectors_that_mean_something() {
    with_engine(|engine| {
        let texts = [
            "A cat sleeps on the sofa.",
            "A kitten naps on the couch.",
            "The stock market fell sharply today.",
        ];
        let input = |texts: &[&str]| embed::Params {
            input: texts.iter().map(|text| embed::Input::Text((*text).to_owned())).collect(),
            ..embed::Params::default()
        };
        let (vectors, usage) = embed(engine, &input(&texts)).unwrap();
        assert_eq!((vectors.dimensions, vectors.values.len()), (576, 3 * 576));
        assert_eq!(usage.prompt_tokens, engine.loaded().count_embed(&input(&texts)).unwrap());
        let row = |i: usize| &vectors.values[i * 576..(i + 1) * 576];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        for i in 0..3 {
            assert!((dot(row(i), row(i)) - 1.0).abs() < 1e-4);
        }
        assert!(dot(row(0), row(1)) > dot(row(0), row(2)));
        // Alone or in a batch, and longer than a batch: the same text has the same vector.
        let alone = embed(engine, &input(&texts[..1])).unwrap().0.values;
        assert!(dot(&alone, row(0)) > 0.9999);
        let long = "All work and no play makes Jack a dull boy. ".repeat(60);
        let (long, usage) = embed(engine, &input(&[&long])).unwrap();
        assert!(usage.prompt_tokens > 600 && (dot(&long.values, &long.values) - 1.0).abs() < 1e-4);
        let short = embed(engine, &embed::Params { dimensions: Some(64), ..input(&texts[..1]) }).unwrap().0;
        assert!(short.values.len() == 64 && (dot(&short.values, &short.values) - 1.0).abs() < 1e-4);
        let error = embed(engine, &input(&[&"word ".repeat(1100)])).unwrap_err();
        assert_eq!(error.reason.as_deref(), Some("context_length_exceeded"));
        let cut = embed::Params { truncate: true, ..input(&[&"word ".repeat(1100)]) };
        assert_eq!(embed(engine, &cut).unwrap().1.prompt_tokens, 1024);
        assert!(embed(engine, &embed::Params::default()).is_err());
    });
}
