//! When two requests are the same: pure.

use crate::job::Request;
use crate::tensor::Tensor;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// Names a request and everything that its answer depends on: a hash of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// What a model's answers depend on, besides what it is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity<'a> {
    /// Names its content (a digest, where there is one).
    pub name: &'a str,
    /// Which files lie at its paths: a local model has no digest.
    pub files: &'a str,
    /// Which plugin answers, in which version.
    pub plugin: &'a str,
    /// How it is opened.
    pub settings: &'a str,
}

/// Parameters that change how an answer is delivered, and not the answer.
const DELIVERY: [&str; 2] = ["stream", "stream_options"];

impl Key {
    /// The key of a request to a model.
    ///
    /// A tenant never meets another's answers, whatever they ask.
    pub fn of(tenant: &str, model: &Identity<'_>, request: &Request) -> Self {
        let Identity { name, files, plugin, settings } = *model;
        // One buffer and one call: many small updates would take longer than the hash.
        let mut text = Vec::with_capacity(request.params.len() + settings.len() + 512);
        for part in [tenant, name, files, plugin, settings, &request.capability] {
            field(&mut text, part);
        }
        // An answer that nobody scored is not the answer for someone who wants a score.
        text.push(u8::from(request.confidence));
        text.extend_from_slice(&request.default_max_tokens.map_or(u64::MAX, u64::from).to_le_bytes());
        canonical(&request.params, &mut text);
        if request.tensors.is_empty() {
            return Self(*blake3::hash(&text).as_bytes());
        }
        let mut hash = blake3::Hasher::new();
        hash.update(&text);
        tensors(&mut hash, &request.tensors);
        Self(*hash.finalize().as_bytes())
    }

    /// Its first bytes: uniform, so they do as a hash.
    pub(super) fn prefix(&self) -> u64 {
        self.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:016x}…)", self.prefix().swap_bytes())
    }
}

/// With its length, so that no two lists of fields look alike.
fn field(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// By name: the order they were sent in means nothing.
fn tensors(hash: &mut blake3::Hasher, tensors: &[Tensor]) {
    let mut sorted: Vec<&Tensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut head = Vec::new();
    for tensor in sorted {
        head.clear();
        field(&mut head, &tensor.name);
        field(&mut head, tensor.dtype.name());
        head.extend_from_slice(&(tensor.shape.len() as u64).to_le_bytes());
        head.extend(tensor.shape.iter().flat_map(|side| side.to_le_bytes()));
        head.extend_from_slice(&(tensor.data.len() as u64).to_le_bytes());
        hash.update(&head).update(&tensor.data);
    }
}

/// Writes parameters in one form: no white space, members sorted, text without escapes; `1`, `1.0` and `true` stay
/// apart. Text that is not JSON, or has numbers too large to be told apart, stands for itself.
fn canonical(params: &str, out: &mut Vec<u8>) {
    let begin = out.len();
    let mut json = serde_json::Deserializer::from_str(params);
    let read = Canonical { out, outermost: true }.deserialize(&mut json);
    if read.and_then(|()| json.end()).is_err() {
        out.truncate(begin);
        out.push(b'?');
        field(out, params);
    }
}

/// Writes a value while it is read. Every value begins with a byte for its type; lists end with one.
struct Canonical<'a> {
    out: &'a mut Vec<u8>,
    outermost: bool,
}

impl Canonical<'_> {
    fn tagged(self, tag: u8, bytes: &[u8]) {
        self.out.push(tag);
        self.out.extend_from_slice(bytes);
    }
}

impl<'de> DeserializeSeed<'de> for Canonical<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Canonical<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.out.push(b'n');
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.tagged(b'b', &[u8::from(value)]);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.tagged(b'u', &value.to_le_bytes());
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.tagged(b'i', &value.to_le_bytes());
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        // From here on a long integer may have lost its last digits.
        if value.abs() >= i64::MAX as f64 {
            return Err(E::custom("too large"));
        }
        self.tagged(b'f', &value.to_bits().to_le_bytes());
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.out.push(b's');
        field(self.out, value);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.out.push(b'[');
        while items.next_element_seed(Canonical { out: self.out, outermost: false })?.is_some() {}
        self.out.push(b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        self.out.push(b'{');
        let begin = self.out.len();
        let mut ends = Vec::new();
        loop {
            let at = self.out.len();
            if members.next_key_seed(Canonical { out: self.out, outermost: false })?.is_none() {
                break;
            }
            let key = self.out.get(at + 9..).unwrap_or_default();
            if self.outermost && DELIVERY.iter().any(|name| name.as_bytes() == key) {
                self.out.truncate(at);
                members.next_value::<IgnoredAny>()?;
            } else {
                members.next_value_seed(Canonical { out: self.out, outermost: false })?;
                ends.push(self.out.len());
            }
        }
        // Further inside the order may be a part of what is asked: the properties of a schema come in an answer, and the
        // parameters of a tool in a prompt, as they were written.
        if self.outermost {
            sort(self.out, begin, &ends);
        }
        self.out.push(b'}');
        Ok(())
    }
}

/// Sorts the members in `out[begin..]`, which end at `ends`, by their names. Members with one name keep their order: it
/// says which of them counts.
fn sort(out: &mut [u8], begin: usize, ends: &[usize]) {
    let starts = std::iter::once(begin).chain(ends.iter().copied());
    let mut members: Vec<&[u8]> = starts.zip(ends).filter_map(|(start, end)| out.get(start..*end)).collect();
    if members.is_sorted_by_key(|member| name(member)) {
        return;
    }
    members.sort_by_key(|member| name(member));
    let sorted = members.concat();
    if let Some(tail) = out.get_mut(begin..) {
        tail.copy_from_slice(&sorted);
    }
}

/// The name that a written member begins with: its type, its length, its text.
fn name(member: &[u8]) -> &[u8] {
    let len = member.get(1..).and_then(<[u8]>::first_chunk).map_or(0, |len| u64::from_le_bytes(*len));
    usize::try_from(len).ok().and_then(|len| member.get(..len.checked_add(9)?)).unwrap_or(member)
}

/// Whether an answer may be given again: whether the same request would get the same answer.
pub fn cacheable(capability: &str, params: &str, config: &crate::config::CacheConfig) -> bool {
    /// What makes sampling repeatable.
    #[derive(Deserialize)]
    struct Sampling {
        temperature: Option<f64>,
        seed: Option<IgnoredAny>,
    }
    let samples = matches!(capability, "chat" | "complete");
    config.enabled
        && config.capabilities.iter().any(|name| name == capability)
        && (!samples
            || serde_json::from_str::<Sampling>(params)
                .is_ok_and(|sampling| sampling.seed.is_some() || sampling.temperature == Some(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caller;
    use crate::config::Config;
    use proptest::prelude::*;
    use serde_json::Value;

    fn request(params: &str) -> Request {
        Request::new(Caller::internal("tests"), "chat", params)
    }

    fn model() -> Identity<'static> {
        Identity { name: "m", files: "f", plugin: "p", settings: "s" }
    }

    fn key(params: &str) -> Key {
        Key::of("t", &model(), &request(params))
    }

    #[test]
    fn how_a_request_is_written_does_not_matter() {
        let plain = key(r#"{"a":1,"b":{"x":[1,2],"y":"é"}}"#);
        assert_eq!(plain, key(r#" { "b" : { "x" : [ 1, 2 ], "y" : "\u00e9" }, "a" : 1 } "#));
        assert_eq!(plain, key(r#"{"a":1,"stream":true,"stream_options":{"u":1},"b":{"x":[1,2],"y":"é"}}"#));
    }

    #[test]
    fn whatever_a_plugin_could_tell_apart_matters() {
        let texts = [
            r#"{"a":1}"#,
            r#"{"a":1.0}"#,
            r#"{"a":-1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":true}"#,
            r#"{"a":null}"#,
            r#"{"a":[1]}"#,
            r#"{"a":[[1]]}"#,
            r#"{"a":[]}"#,
            r#"{"a":{}}"#,
            r#"{"a":{"stream":true}}"#,
            r#"{"a":{"stream":false}}"#,
            r#"{"a":{"first":1,"then":2}}"#,
            r#"{"a":{"then":2,"first":1}}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"b":1,"a":2}"#,
            r#"{"a":[1,2]}"#,
            r#"{"a":[2,1]}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":2,"a":1}"#,
            r#"{"a":0.0}"#,
            r#"{"a":-0.0}"#,
            r#"{"a":100000000000000000000000001}"#,
            r#"{"a":100000000000000000000000002}"#,
            r#"{"a":1"#,
            r#"{}"#,
            "",
        ];
        let keys: Vec<Key> = texts.iter().map(|text| key(text)).collect();
        for (at, one) in keys.iter().enumerate() {
            for (other, two) in keys.iter().enumerate().skip(at + 1) {
                assert_ne!(one, two, "{} and {}", texts[at], texts[other]);
            }
        }
    }

    #[test]
    fn tenant_model_files_plugin_settings_capability_and_score_are_part_of_it() {
        let base = request("{}");
        let of = |tenant, model: Identity<'_>, request: &Request| Key::of(tenant, &model, request);
        let same = model();
        let mut other = request("{}");
        other.capability = "complete".into();
        let mut scored = request("{}");
        scored.confidence = true;
        let mut short = request("{}");
        short.default_max_tokens = Some(16);
        let keys = [
            of("t", same, &base),
            of("t", same, &short),
            of("u", same, &base),
            of("tm", Identity { name: "", ..same }, &base),
            of("t", Identity { name: "n", ..same }, &base),
            of("t", Identity { files: "g", ..same }, &base),
            of("t", Identity { plugin: "q", ..same }, &base),
            of("t", Identity { settings: "r", ..same }, &base),
            of("t", same, &other),
            of("t", same, &scored),
        ];
        for (at, one) in keys.iter().enumerate() {
            assert!(keys[at + 1..].iter().all(|two| two != one), "{at}");
        }
        let mut again = request("{}").streamed();
        again.id = "another".into();
        assert_eq!(keys[0], of("t", same, &again), "neither its id nor its delivery");
    }

    #[test]
    fn tensors_count_by_name_type_shape_and_content() {
        let tensor = |name: &str, shape: &[i64], values: &[f32]| {
            Tensor::from_f32(name, shape.to_vec(), values).unwrap()
        };
        let of = |tensors: Vec<Tensor>| {
            let mut request = request("{}");
            request.tensors = tensors;
            Key::of("t", &model(), &request)
        };
        let (a, b) = (tensor("a", &[2], &[1.0, 2.0]), tensor("b", &[1], &[3.0]));
        let base = of(vec![a.clone(), b.clone()]);
        assert_eq!(base, of(vec![b.clone(), a.clone()]));
        for other in [
            tensor("c", &[2], &[1.0, 2.0]),
            tensor("a", &[1, 2], &[1.0, 2.0]),
            tensor("a", &[2], &[1.0, 2.5]),
        ] {
            assert_ne!(base, of(vec![other, b.clone()]));
        }
        assert_ne!(base, of(vec![a]));
    }

    #[test]
    fn sampled_answers_are_kept_only_when_they_would_come_out_the_same() {
        let config = Config::default().cache;
        for (params, kept) in [
            (r#"{"temperature":0}"#, true),
            (r#"{"temperature":0.0,"messages":[{"seed":1}]}"#, true),
            (r#"{"temperature":1,"seed":7}"#, true),
            (r#"{"temperature":0.7}"#, false),
            (r#"{"seed":null}"#, false),
            (r#"{"messages":[{"temperature":0}]}"#, false),
            ("{}", false),
            ("nonsense", false),
        ] {
            assert_eq!(cacheable("chat", params, &config), kept, "{params}");
        }
        assert!(cacheable("embed", "{}", &config));
        assert!(!cacheable("tensor.infer", "{}", &config), "not listed");
        assert!(!cacheable("embed", "{}", &crate::config::CacheConfig { enabled: false, ..config }));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            "[a-c\"\\\\é\n]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-e]{1,2}", inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// The same members in another order, outermost.
    fn reversed(value: &Value) -> Value {
        match value {
            Value::Object(members) => members.iter().rev().map(|(k, v)| (k.clone(), v.clone())).collect(),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn equal_values_have_equal_forms_and_others_have_not(one in json(), two in json()) {
            let of = |text: &str| { let mut out = Vec::new(); canonical(text, &mut out); out };
            let form = |value: &Value| of(&value.to_string());
            prop_assert_eq!(form(&one), form(&reversed(&one)));
            prop_assert_eq!(form(&one), of(&serde_json::to_string_pretty(&one).unwrap()));
            prop_assert!(form(&one) != form(&two) || one == two);
        }
    }

    /// `cargo test --release -p backplane cache -- --ignored --nocapture`
    #[test]
    #[ignore = "prints a time and asserts none"]
    fn time_of_a_key() {
        let text = "a sentence of ten words that says nothing at all. ".repeat(16);
        let params = serde_json::json!({"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 64});
        let request = request(&params.to_string());
        let batch = || {
            let began = std::time::Instant::now();
            for _ in 0..1000 {
                std::hint::black_box(Key::of("tenant", &model(), std::hint::black_box(&request)));
            }
            began.elapsed() / 1000
        };
        println!(
            "key of {} bytes, best of 200: {:?}",
            request.params.len(),
            (0..200).map(|_| batch()).min().unwrap()
        );
    }
}
