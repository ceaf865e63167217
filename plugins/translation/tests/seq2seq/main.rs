//! Sequence-to-sequence translation, held against others: the pieces of SentencePiece, and the greedy and beam search of
//! CTranslate2, on a small model that `make.py` makes, writes as ONNX graphs and hands to both. The graphs are run by the real
//! onnx plugin. Needs ONNX Runtime of the test models and the Python of the end-to-end tests; `make unit` brings both.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use backplane_plugin::prelude::ModelSpec;
use backplane_testkit::{
    CallInput, Case, Chunk, DType, Failure, Instance, PluginTest, TensorInput, TensorOutput,
};
use backplane_translation::engine::Pair;
use backplane_translation::engine::seq2seq::Seq2Seq;
use backplane_translation::engine::seq2seq::graphs::{Input, Numbers, Output, Run};
use backplane_translation::engine::seq2seq::search::Hypothesis;
use backplane_translation::engine::seq2seq::sentencepiece::SentencePiece;
use backplane_translation::languages::find;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What `make.py` says that others make of the model.
#[derive(Deserialize)]
struct Reference {
    sentences: Vec<Sentence>,
    searches: Vec<Search>,
    /// Sentences and their translations.
    texts: Vec<(String, String)>,
    pieces: Vec<Pieces>,
}

#[derive(Deserialize)]
struct Sentence {
    text: String,
    ids: Vec<i64>,
}

/// A search of CTranslate2's: the tokens of each translation, the end included, and their score; the best first.
#[derive(Deserialize)]
struct Search {
    beams: usize,
    length_penalty: f64,
    banned: Vec<Vec<i64>>,
    found: Vec<Vec<(Vec<i64>, f64)>>,
}

/// What SentencePiece makes of texts, and of pieces.
#[derive(Deserialize)]
struct Pieces {
    file: String,
    encoded: Vec<(String, Vec<u32>, Vec<String>)>,
    decoded: Vec<(Vec<String>, String)>,
}

/// The model, made once for all tests of this process.
struct Made {
    folder: PathBuf,
    reference: Reference,
}

static MADE: LazyLock<Made> = LazyLock::new(|| {
    // Nothing that is static is dropped: the next run takes this one's place.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("seq2seq");
    let _before = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let made = Command::new(cache("BACKPLANE_TEST_PYTHON", "venv/bin/python"))
        .arg(here.join("seq2seq/make.py"))
        .arg(&folder)
        .arg(here.join("data/languages.tsv"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let reference = std::fs::read(folder.join("reference.json")).unwrap();
    Made { reference: serde_json::from_slice(&reference).unwrap(), folder }
});

fn cache(variable: &str, below: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path =
        std::env::var_os(variable).map_or_else(|| root.join(".cache").join(below), |path| root.join(path));
    assert!(path.exists(), "{} is missing: run `make unit`, or name it in {variable}", path.display());
    path
}

const FILES: [(&str, &str); 8] = [
    ("encoder", "encoder_model.onnx"),
    ("decoder", "decoder_model.onnx"),
    ("decoder_with_past", "decoder_with_past_model.onnx"),
    ("config", "config.json"),
    ("generation_config", "generation_config.json"),
    ("vocabulary", "vocab.json"),
    ("source", "source.spm"),
    ("target", "target.spm"),
];

impl Made {
    /// A card of it.
    fn card(&self, parameters: Value) -> Value {
        let file = |(role, name): &(&str, &str)| {
            let path = self.folder.join(name);
            json!({"role": role, "name": name, "size": path.metadata().unwrap().len(), "path": path})
        };
        let files: Vec<Value> = FILES.iter().map(file).collect();
        json!({
            "name": "made", "format": "marian", "capabilities": ["translate"], "languages": ["en", "es"],
            "parameters": parameters, "files": files,
        })
    }

    fn engine(&self, card: Value) -> Seq2Seq {
        let model: ModelSpec = serde_json::from_value(card).unwrap();
        Seq2Seq::open(&model).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// A card with another content of the file with this role, which lies in `folder`.
    fn card_with(&self, role: &str, content: &[u8], folder: &TempDir) -> Value {
        let others = folder.path().read_dir().unwrap().count();
        let path = folder.path().join(format!("{role}-{others}"));
        std::fs::write(&path, content).unwrap();
        let mut card = self.card(json!({}));
        for file in card["files"].as_array_mut().unwrap() {
            if file["role"] == role {
                file["path"] = json!(path);
            }
        }
        card
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.folder.join(file)).unwrap()).unwrap()
    }
}

/// The graphs in the onnx plugin, by the names that the host gives them.
struct Onnx(BTreeMap<String, Instance>);

impl Onnx {
    fn open() -> Self {
        let runtimes = cache("BACKPLANE_TEST_MODELS", "state").join("runtimes");
        let onnx =
            PluginTest::build("backplane-onnx").unwrap().config(json!({"runtimes": runtimes}).to_string());
        let graph = |(role, name): &(&str, &str)| {
            let path = MADE.folder.join(name);
            let card = json!({
                "name": format!("made.{role}"), "format": "onnx", "capabilities": ["tensor.infer"],
                "files": [{"role": "model", "size": path.metadata().unwrap().len(), "path": path}],
            });
            (format!("made.{role}"), onnx.open(&card.to_string()).unwrap().instance().unwrap())
        };
        Self(FILES[..3].iter().map(graph).collect())
    }

    fn answer(&self, model: &str, inputs: Vec<TensorInput>) -> Result<Vec<Chunk>, Failure> {
        let answer = self.0[model].submit("tensor.infer", "{}", inputs).wait();
        match answer.failure() {
            Some(failure) => Err(failure.clone()),
            None => Ok(answer.chunks),
        }
    }
}

/// The way of the engine to its graphs, without a request: for tests that look at tokens.
impl Run for Onnx {
    fn run(&self, role: &str, inputs: Vec<Input>) -> backplane_plugin::Result<Vec<Output>> {
        let input = |Input { name, shape, numbers }: &Input| match numbers {
            Numbers::Whole(numbers) => TensorInput::int64(name, shape, numbers),
            Numbers::Real(numbers) => TensorInput::fp32(name, shape, numbers),
        };
        let chunks = self.answer(&format!("made.{role}"), inputs.iter().map(input).collect()).unwrap();
        let output = |tensor: &TensorOutput| {
            assert_eq!(tensor.dtype, DType::Fp32);
            let numbers = tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            Output { name: tensor.name.clone(), shape: tensor.shape.clone(), numbers }
        };
        Ok(chunks.iter().flat_map(|chunk| &chunk.tensors).map(output).collect())
    }
}

/// The plugin, with its graphs run by the onnx plugin: what the host does for it. Counts its calls.
fn plugin(calls: &'static AtomicUsize) -> PluginTest {
    let onnx = Onnx::open();
    let engine = move |call: &CallInput| -> Result<Vec<Chunk>, Failure> {
        calls.fetch_add(1, Ordering::Relaxed);
        if call.capability != "tensor.infer" {
            let code = backplane_testkit::Code::NotFound as i32;
            return Err(Failure { code, message: "nothing serves it here".to_owned(), ..Failure::default() });
        }
        let tensor = |tensor: &TensorOutput| {
            TensorInput::new(&tensor.name, tensor.dtype, &tensor.shape, tensor.data.clone())
        };
        onnx.answer(&call.model, call.tensors.iter().map(tensor).collect())
    };
    PluginTest::of(backplane_translation::backplane_export::bp_entry_v1).answering(engine)
}

/// The model, opened by the plugin.
fn instance(calls: &'static AtomicUsize, parameters: Value) -> Instance {
    plugin(calls).open(&MADE.card(parameters).to_string()).unwrap().instance().unwrap()
}

fn translate(instance: &Instance, params: &Value) -> Vec<Value> {
    let answer = instance.submit("translate", &params.to_string(), vec![]).wait();
    assert!(answer.failure().is_none(), "{:?}", answer.failure());
    answer.json()["translations"].as_array().unwrap().clone()
}

fn english_spanish() -> Pair {
    Pair { from: find("en").unwrap(), to: find("es").unwrap() }
}

#[test]
fn texts_are_cut_and_put_together_as_sentencepiece_does() {
    for Pieces { file, encoded, decoded } in &MADE.reference.pieces {
        let model = SentencePiece::read(std::fs::read(MADE.folder.join(file)).unwrap()).unwrap();
        assert!(1000 < encoded.len() && 1000 < decoded.len());
        for (text, ids, pieces) in encoded {
            let tokens = model.encode(text);
            let own: Vec<&str> = tokens.iter().map(|token| &*token.piece).collect();
            assert_eq!(own, *pieces, "{file}: {text:?}");
            assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), *ids, "{file}: {text:?}");
        }
        for (pieces, text) in decoded {
            assert_eq!(model.decode(pieces.iter().map(String::as_str)), *text, "{file}: {pieces:?}");
        }
    }
}

#[test]
fn sentences_become_the_numbers_that_the_vocabulary_has() {
    let engine = MADE.engine(MADE.card(json!({})));
    for Sentence { text, ids } in &MADE.reference.sentences {
        assert_eq!(engine.encode(english_spanish(), text).ids, *ids, "{text}");
    }
}

/// What a search finds, as the reference writes it.
fn found(found: &[Hypothesis], length_penalty: f64) -> Vec<(Vec<i64>, f64)> {
    let written = |hypothesis: &Hypothesis| {
        let ends = hypothesis.tokens.len() < hypothesis.length;
        let tokens = hypothesis.tokens.iter().copied().chain(ends.then_some(0)).collect();
        (tokens, hypothesis.score(length_penalty))
    };
    found.iter().map(written).collect()
}

#[test]
fn greedy_and_beam_search_find_what_the_toolkit_finds_token_for_token() {
    let onnx = Onnx::open();
    let Reference { sentences, searches, .. } = &MADE.reference;
    let sentences: Vec<Vec<i64>> = sentences.iter().map(|sentence| sentence.ids.clone()).collect();
    let folder = tempfile::tempdir().unwrap();
    for Search { beams, length_penalty, banned, found: expected } in searches {
        let mut config = MADE.json("generation_config.json");
        config["num_beams"] = json!(beams);
        config["length_penalty"] = json!(length_penalty);
        config["bad_words_ids"].as_array_mut().unwrap().extend(banned.iter().map(|words| json!(words)));
        let mut card = MADE.card_with("generation_config", config.to_string().as_bytes(), &folder);
        card["parameters"] = json!({"batch": 7});
        let hypotheses = MADE.engine(card).search(&onnx, &sentences).unwrap();
        assert_eq!(hypotheses.len(), expected.len());
        for (at, (hypotheses, expected)) in hypotheses.iter().zip(expected).enumerate() {
            let (tokens, scores): (Vec<_>, Vec<_>) = found(hypotheses, *length_penalty).into_iter().unzip();
            let (expected, their_scores): (Vec<_>, Vec<_>) = expected.iter().cloned().unzip();
            assert_eq!(tokens, expected, "sentence {at}, {beams} beams, length penalty {length_penalty}");
            for (own, theirs) in scores.iter().zip(their_scores) {
                assert!((own - theirs).abs() < 1e-4 * (1.0 + theirs.abs()), "{own} for {theirs}");
            }
        }
    }
}

#[test]
fn what_a_caller_reads_is_what_the_toolkit_says() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let model = instance(&CALLS, json!({}));
    // Letters alone: what protects numbers and signs of a text is not asked.
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphabetic() || c == ' ');
    let texts: Vec<_> = MADE.reference.texts.iter().filter(|(from, to)| plain(from) && plain(to)).collect();
    assert!(10 < texts.len());
    let sources: Vec<&String> = texts.iter().map(|(from, _)| from).collect();
    let params = json!({"text": sources, "source": "en", "target": "es"});
    let greedy = instance(&CALLS, json!({"beams": 1}));
    let mut differ = 0;
    for ((translation, other), (from, to)) in
        translate(&model, &params).iter().zip(translate(&greedy, &params)).zip(texts)
    {
        assert_eq!(translation["text"], *to, "{from}");
        assert_eq!(translation["engine"], "marian");
        assert!((0.0..1.0).contains(&translation["confidence"].as_f64().unwrap()));
        differ += usize::from(other["text"] != *to);
    }
    assert!(0 < differ, "greedy search never finds anything else");
}

#[test]
fn format_is_kept_whatever_the_model_says() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let instance = instance(&CALLS, json!({}));
    let text = "# An act of the\n\nHello {name}, see <https://a.b/c>. Links to **other** web sites.\n\n```sh\nmake run\n```\n";
    let params = json!({"text": [text], "source": "en", "target": "es", "format": "markdown",
        "glossary": [{"source": "Links", "target": "Enlaces"}]});
    let translation = &translate(&instance, &params)[0];
    let translated = translation["text"].as_str().unwrap();
    assert!(translated != text && translated.starts_with("# "), "{translated}");
    assert!(translated.ends_with("\n\n```sh\nmake run\n```\n"), "{translated}");
    for kept in ["{name}", "<https://a.b/c>", "**", "Enlaces"] {
        let times = if kept == "Enlaces" { 1 } else { text.matches(kept).count() };
        assert_eq!(translated.matches(kept).count(), times, "{kept}: {translated}");
    }
    // A model of random weights copies no mark, so that these sentences were translated between what is kept.
    assert!(0 < translation["pieced"].as_u64().unwrap(), "{translation}");
}

#[test]
fn a_model_has_as_many_translations_as_beams() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let params = json!({"text": ["In addition, information should be provided"], "source": "en", "target": "es", "alternatives": 2});
    let alternatives = |parameters| {
        let translation = translate(&instance(&CALLS, parameters), &params).remove(0);
        // There are none where the member is absent.
        let texts = translation["alternatives"].as_array().cloned().unwrap_or_default();
        assert!(!texts.contains(&translation["text"]));
        texts.len()
    };
    let before = CALLS.load(Ordering::Relaxed);
    assert_eq!(alternatives(json!({"beams": 4})), 2);
    let with = CALLS.load(Ordering::Relaxed) - before;
    assert_eq!(alternatives(json!({"beams": 1})), 0);

    // One search finds them all.
    let model = instance(&CALLS, json!({"beams": 4}));
    let before = CALLS.load(Ordering::Relaxed);
    let mut alone = params.clone();
    alone["alternatives"] = json!(0);
    let best = translate(&model, &alone).remove(0);
    assert_eq!(CALLS.load(Ordering::Relaxed) - before, with);

    // Where more are wanted than there are, no sentence of one is left in its language.
    let mut more = params;
    more["alternatives"] = json!(5);
    let translation = translate(&model, &more).remove(0);
    assert_eq!(translation["text"], best["text"]);
    let others = translation["alternatives"].as_array().unwrap();
    assert!((2..4).contains(&others.len()), "{others:?}");
    assert!(!others.contains(&more["text"][0]), "{others:?}");
}

#[test]
fn a_translation_is_no_longer_than_the_card_says() {
    let onnx = Onnx::open();
    let engine = MADE.engine(MADE.card(json!({"max_tokens": 3})));
    let sentences: Vec<Vec<i64>> =
        MADE.reference.sentences.iter().map(|sentence| sentence.ids.clone()).collect();
    let found = engine.search(&onnx, &sentences).unwrap();
    assert!(found.iter().flatten().all(|hypothesis| hypothesis.length <= 3));
    // A sentence of more tokens than the model has places for is not translated at all.
    assert!(engine.search(&onnx, &[vec![5; 65]]).unwrap()[0].is_empty());
}

#[test]
fn a_caller_that_leaves_is_not_kept_waiting() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let instance = instance(&CALLS, json!({}));
    let text = "The house is big and the garden is small. ".repeat(3_000);
    let params = json!({"text": [text], "source": "en", "target": "es"}).to_string();
    let running = instance.submit("translate", &params, vec![]);
    while CALLS.load(Ordering::Relaxed) < 5 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let left = Instant::now();
    running.cancel();
    assert!(running.wait().failure().is_some());
    assert!(left.elapsed() < Duration::from_secs(5), "it took {:?}", left.elapsed());
}

#[test]
fn the_contract_of_plugins_is_kept() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let params = |texts: &[String]| json!({"text": texts, "source": "en", "target": "es"}).to_string();
    let many: Vec<String> = (0..20).map(|n| "An act of the garden in the city. ".repeat(10 + n)).collect();
    let card = MADE.card(json!({"beams": 1, "max_tokens": 4}));
    let case = Case::new(card.to_string(), "translate", params(&["An act of the".to_owned()]))
        .slow(params(&many))
        .named("translate");
    plugin(&CALLS).rounds(20).check_conformance(&[case]).assert_ok();
}

/// A file comes from a stranger, and the plugin is in the host's process.
#[test]
fn a_damaged_file_is_an_error_or_another_model_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = 1_u64;
    let mut below = move |most: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % most
    };
    let (mut refused, mut read) = (0, 0);
    for (role, name) in FILES {
        let whole = std::fs::read(MADE.folder.join(name)).unwrap();
        for _ in 0..12 {
            let mut bytes = whole.clone();
            // Most of what matters stands at the beginning: the weights and tables behind it are not looked at.
            let near = bytes.len().min(if below(2) == 0 { 300 } else { usize::MAX });
            (0..=below(4)).for_each(|_| bytes[below(near)] = below(256) as u8);
            bytes.truncate(if below(3) == 0 { below(near) } else { usize::MAX });
            let model: ModelSpec = serde_json::from_value(MADE.card_with(role, &bytes, &folder)).unwrap();
            match Seq2Seq::open(&model) {
                Err(_) => refused += 1,
                Ok(engine) => {
                    let encoded = engine.encode(english_spanish(), "An act of the gar\u{2581}den, ﬁne\u{0}.");
                    engine.decode(&encoded.ids);
                    read += 1;
                }
            }
        }
    }
    assert!(10 < refused && 10 < read, "{refused} refused, {read} read");
}

#[test]
fn only_the_pairs_of_the_card_are_served() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let instance = instance(&CALLS, json!({"pairs": ["en-es", "en-pt"]}));
    let ask = |to: &str| {
        let params = json!({"text": ["An act of the"], "source": "en", "target": to}).to_string();
        instance.submit("translate", &params, vec![]).wait()
    };
    assert!(ask("es").is_done() && ask("pt").is_done());
    let refused = ask("ja");
    assert!(refused.failure().unwrap().message.contains("Japanese (`ja`)"), "{:?}", refused.failure());
}

#[test]
fn a_pair_of_the_configuration_that_is_none_is_refused() {
    let start = |pairs: Value| {
        let plugin = PluginTest::of(backplane_translation::backplane_export::bp_entry_v1);
        let started = plugin.config(json!({"pairs": pairs}).to_string()).open(r#"{"name":"translator"}"#);
        started.map(|_| ()).map_err(|failure| failure.message)
    };
    assert_eq!(start(json!({"en-de": "opus"})), Ok(()));
    for (pair, says) in [("ende", "`ende` is no pair such as `en-de`"), ("en-xx", "`xx` is no language")] {
        let refused = start(json!({pair: "opus"})).unwrap_err();
        assert!(refused.contains(says) && refused.contains("`pairs`"), "{refused}");
    }
}

#[test]
fn what_is_wrong_with_a_model_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |card: Value| {
        let model: ModelSpec = serde_json::from_value(card).unwrap();
        Seq2Seq::open(&model).err().expect("it opens").message
    };
    // The same graph, which takes something else.
    let mut odd = std::fs::read(MADE.folder.join("decoder_model.onnx")).unwrap();
    let (hidden, other) = (b"encoder_hidden_states", b"use_cache_branch_odd_");
    while let Some(at) = odd.windows(hidden.len()).position(|bytes| bytes == hidden) {
        odd[at..at + other.len()].copy_from_slice(other);
    }
    // The same graph in 16 bits, as far as its signature says: a name, and in its type a tensor of FLOAT16 in place of FLOAT.
    let half = |file: &str, name: &str| {
        let mut graph = std::fs::read(MADE.folder.join(file)).unwrap();
        let is_port = |bytes: &[u8]| {
            let behind = bytes.strip_prefix(name.as_bytes());
            matches!(behind, Some([0x12, _, 0x0a, _, 0x08, 1, ..]))
        };
        let at = (0..graph.len()).rev().find(|at| is_port(&graph[*at..])).expect("no such port");
        graph[at + name.len() + 5] = 10;
        graph
    };
    let source = std::fs::read(MADE.folder.join("source.spm")).unwrap();
    let mut sampled = MADE.json("generation_config.json");
    sampled["do_sample"] = json!(true);
    let without_pad = |file: &str| {
        let mut config = MADE.json(file);
        config.as_object_mut().unwrap().remove("pad_token_id");
        config.to_string()
    };
    let config = MADE.card_with("config", without_pad("config.json").as_bytes(), &folder);
    let mut no_pad =
        MADE.card_with("generation_config", without_pad("generation_config.json").as_bytes(), &folder);
    no_pad["files"][3] = config["files"][3].clone();
    for (card, says) in [
        (MADE.card_with("decoder", &odd, &folder), "`use_cache_branch_odd_`"),
        (MADE.card_with("encoder", b"nothing of ONNX", &folder), "role `encoder`"),
        (
            MADE.card_with("encoder", &half("encoder_model.onnx", "last_hidden_state"), &folder),
            "its output `last_hidden_state` is of FLOAT16, and FLOAT goes",
        ),
        (
            MADE.card_with("decoder", &half("decoder_model.onnx", "encoder_hidden_states"), &folder),
            "its input `encoder_hidden_states` is of FLOAT16, and FLOAT goes",
        ),
        (MADE.card_with("decoder", &half("decoder_model.onnx", "logits"), &folder), "keep_io_types"),
        (MADE.card_with("source", &source[..1000], &folder), "role `source`"),
        (MADE.card_with("source", b"", &folder), "what is unknown"),
        (MADE.card_with("vocabulary", b"{\"a\": 4000000000}", &folder), "4000000000"),
        (MADE.card_with("vocabulary", b"[]", &folder), "role `vocabulary`"),
        (MADE.card_with("generation_config", sampled.to_string().as_bytes(), &folder), "`do_sample`"),
        (no_pad, "`pad_token_id`"),
        (MADE.card(json!({"pairs": ["en"]})), "`en` is no pair"),
        (MADE.card(json!({"pairs": ["en-xx"]})), "`xx`"),
        (MADE.card(json!({"beams": 0})), "`beams` is 0"),
        (MADE.card(json!({"baems": 1})), "`baems`"),
        (MADE.card(json!({"prefixes": {"es": ">>spa<<"}})), "`>>spa<<`"),
    ] {
        let message = refused(card);
        assert!(message.contains(says) && message.contains("`made`"), "{says}: {message}");
    }
}
