//! Schemas are refused, or hold: answers that their grammars allow are written at random, and a validator reads them.

use super::{gbnf, grammar, matcher::Matcher};
use backplane_plugin::payload::ResponseFormat;
use backplane_plugin::payload::chat::{Tool, ToolChoice};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRng, TestRunner};
use serde_json::{Value, json};
use std::cell::Cell;
use std::sync::Arc;

/// An answer that the grammar allows; `None` when it came to no end in good time.
fn write(start: &Matcher, random: &mut TestRng) -> Option<String> {
    let (mut matcher, mut text) = (start.clone(), String::new());
    for _ in 0..400 {
        let ranges = matcher.next_ranges();
        if matcher.may_end() && (ranges.is_empty() || random.random_bool(0.7)) {
            return Some(text);
        }
        // What closes something, and what is no white space, or the answer would never end.
        let closing: Vec<_> =
            ranges.iter().filter(|(first, _)| [0x22, 0x5d, 0x7d, 0x3a].contains(first)).copied().collect();
        let from = if !closing.is_empty() && random.random_bool(0.5) { &closing } else { &ranges };
        let (first, last) = from[random.random_range(0..from.len())];
        if first <= 0x20 && random.random_bool(0.9) && ranges.len() > 1 {
            continue;
        }
        let c = char::from_u32(random.random_range(first..=last)).unwrap_or('a');
        if matcher.accept_text(c.encode_utf8(&mut [0; 4]).as_bytes()).unwrap() {
            text.push(c);
        }
    }
    None
}

/// Refuses a schema, or says how many answers were written; each of them was valid.
fn held(schema: &Value, most: usize) -> Result<usize, String> {
    let validator = jsonschema::draft202012::new(schema).map_err(|error| error.to_string());
    let written = answers(schema, most)?;
    let validator = validator?;
    for value in &written {
        assert!(validator.is_valid(value), "{schema} does not allow {value}");
    }
    Ok(written.len())
}

/// Refuses a schema, or writes answers.
fn answers(schema: &Value, most: usize) -> Result<Vec<Value>, String> {
    let format = ResponseFormat::JsonSchema { schema: schema.clone() };
    let text = grammar::of_format(&format, &|| false).map_err(|error| error.message)?.unwrap();
    let rules = gbnf::parse(&text, &|_| None).map_err(|mistake| mistake.what)?;
    let start = Matcher::new(Arc::new(rules)).unwrap();
    let mut random = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let written = (0..most).filter_map(|_| write(&start, &mut random));
    let read = |text: String| -> Value {
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{schema}: {text}: {error}"))
    };
    Ok(written.map(read).collect())
}

#[test]
fn what_is_not_refused_holds() {
    for schema in [
        json!({"type": "integer", "minimum": 3, "exclusiveMinimum": 7, "maximum": 12}),
        json!({"type": "integer", "minimum": 105}),
        json!({"type": "integer", "exclusiveMaximum": -3.5}),
        json!({"type": "integer", "minimum": i64::MIN, "maximum": u64::MAX}),
        json!({"type": ["integer", "null"], "minimum": -2, "maximum": 1}),
        json!({"type": ["string", "integer"], "maxLength": 2, "minimum": 9}),
        json!({"type": "integer", "minLength": 4, "pattern": "^a$"}),
        json!({"type": "string", "minLength": 2, "maxLength": 3}),
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
               "anyOf": [{"properties": {"b": {"type": "null"}}, "required": ["b"]}, {"properties": {"a": {"maximum": 3}}}]}),
        json!({"oneOf": [{"type": "string"}, {"type": "integer"}], "minLength": 3, "minimum": 5}),
        json!({"enum": ["a", "bbb", 7, null, 1.0, [1]], "type": ["string", "integer"], "minLength": 2}),
        json!({"enum": ["ab", "b"], "pattern": "^a[a-z]$"}),
        json!({"enum": [1, 5, 9], "minimum": 2, "exclusiveMaximum": 9}),
        json!({"allOf": [{"enum": [1, 2, 3]}, {"const": 2}]}),
        json!({"allOf": [{"enum": ["x", "yy"]}, {"type": "string", "maxLength": 1}]}),
        json!({"prefixItems": [{"type": "integer"}, {"type": "null"}, {}], "items": {"type": "string"}, "maxItems": 2}),
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}),
        json!({"type": "array", "maxItems": 0}),
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}),
        json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        json!({"type": "object", "properties": {"*": {"type": "integer"}, "b": {"type": "null"}}, "required": ["*"],
               "additionalProperties": false}),
        json!({"type": "object", "properties": {"a\"]^-\\": {"const": "\u{e9}\n"}}, "required": ["a\"]^-\\"]}),
        json!({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]}),
        json!({"$defs": {"a/b": {"type": "null"}, "c~d": {"const": 1}, "e f": {"const": 2}, "a.b": {"const": 3}, "a-b": {"const": 4}},
               "anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c~0d"}, {"$ref": "#/%24defs/e%20f"},
                         {"$ref": "#/$defs/a.b"}, {"$ref": "#/$defs/a-b"}]}),
        json!({"type": "object", "properties": {"at0": {"$ref": "#/properties/b"}, "b": {"type": ["integer", "null"], "minimum": 0}},
               "required": ["at0", "b"]}),
        json!({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]},
                         {"type": "object", "properties": {"k": {"enum": ["b", "c"]}, "n": {"type": "number"}}, "required": ["k", "n"]}]}),
        json!({"type": "number"}),
        json!({"type": "object", "properties": {"value-of-root": {"type": "null"}, "root": {"type": "boolean"}, "char": {}}}),
        json!({"type": "object", "properties": {"": {"type": "integer"}}, "required": [""], "additionalProperties": false}),
        json!({"type": "object", "properties": {"": {"$ref": "#/$defs/a"}, "-": {"type": "object", "properties": {"": {"type": "null"}}}},
               "$defs": {"a": {"type": "object", "properties": {"": {"type": "boolean"}, "b": {"const": 3}}, "required": ["", "b"]}}}),
        json!({"anyOf": [{"type": "object", "properties": {"": {"enum": [1, 2]}}, "required": [""]}, {"type": "null"}]}),
        json!({}),
    ] {
        let written = held(&schema, 150).unwrap_or_else(|error| panic!("{schema}: {error}"));
        assert!(written > 15, "{schema}: {written}");
    }
}

#[test]
fn an_answer_has_the_format_that_was_asked_for() {
    for (format, least) in
        [("email", 6), ("hostname", 1), ("ipv4", 7), ("ipv6", 15), ("uri", 1), ("duration", 3), ("uuid", 36)]
    {
        let schema = json!({"type": "string", "format": format, "minLength": least});
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        let written = answers(&schema, 150).unwrap();
        assert!(written.len() > 15, "{format}: {written:?}");
        for value in written {
            assert!(validator.is_valid(&value), "{format} does not allow {value}");
        }
    }
    // What nobody can hold to is a note.
    assert!(held(&json!({"type": "string", "format": "phone", "maxLength": 5}), 20).unwrap() > 5);
}

#[test]
fn what_cannot_be_held_to_is_refused_by_both_its_names() {
    for (schema, names) in [
        (json!({"type": "integer", "minimum": 5, "maximum": 3}), ["#/minimum", "`maximum`"]),
        (
            json!({"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 6}),
            ["#/exclusiveMinimum", "`exclusiveMaximum`"],
        ),
        (json!({"type": "integer", "minimum": 1e19}), ["#/minimum", "9007199254740991"]),
        (json!({"type": "string", "minLength": 5, "maxLength": 3}), ["#/minLength", "`maxLength`"]),
        (json!({"type": "array", "minItems": 5, "maxItems": 3}), ["#/minItems", "`maxItems`"]),
        (json!({"type": "string", "pattern": "^a*$", "minLength": 2}), ["#/minLength", "`pattern`"]),
        (
            json!({"type": "object", "properties": {"p": {"$id": "x", "type": "string"}}}),
            ["#/properties/p/$id", "cannot be held"],
        ),
        (json!({"type": "string", "format": "date", "maxLength": 2}), ["#/maxLength", "`format`"]),
        (json!({"type": "string", "format": "uuid", "pattern": "^a$"}), ["#/format", "`pattern`"]),
        (json!({"type": "string", "format": "email", "maxLength": 9}), ["#/maxLength", "`format`"]),
        (
            json!({"type": "string", "allOf": [{"format": "email"}, {"format": "uri", "type": "string"}]}),
            ["\"email\"", "\"uri\""],
        ),
        (json!({"type": "integer", "enum": ["a", 1.5]}), ["#/enum", "`type`"]),
        (json!({"const": 3, "enum": [1, 2]}), ["#/enum", "`const`"]),
        (json!({"const": {"a": 1}, "required": ["b"]}), ["#/const", "`required`"]),
        (json!({"prefixItems": [{}], "minItems": 2}), ["#/minItems", "`prefixItems`"]),
        (
            json!({"allOf": [{"prefixItems": [{}]}, {"items": {"type": "null"}}]}),
            ["`prefixItems`", "`items`"],
        ),
        (
            json!({"allOf": [{"prefixItems": [{}], "items": {}}, {"items": {"type": "string"}}]}),
            ["`prefixItems`", "`items`"],
        ),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), ["#/oneOf", "`anyOf`"]),
        (json!({"anyOf": [{"type": "string"}], "type": "null"}), ["#/anyOf/0", "nothing is both"]),
        (json!({"$ref": "#"}), ["#/$ref", "circle"]),
        (json!({"$ref": "#anchor"}), ["#/$ref", "#anchor"]),
    ] {
        let error = held(&schema, 0).unwrap_err();
        assert!(names.iter().all(|name| error.contains(name)), "{schema}: {error}");
    }
}

/// Schemas of which each was once minutes of work, or a crash. What is counted bounds the work.
#[test]
fn hostile_schemas_are_refused_before_they_take_long() {
    let values =
        |from: usize, count: usize| (from..from + count).map(|i| json!(format!("v{i}"))).collect::<Vec<_>>();
    let of = |count: usize, schema: &dyn Fn(usize) -> Value| (0..count).map(schema).collect::<Vec<_>>();
    let object = |count: usize, member: &dyn Fn(usize) -> (String, Value)| json!({"type": "object", "properties": (0..count).map(member).collect::<Value>()});
    let doubled = |key: &str, depth: usize| {
        let level = |i: usize| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), json!({key: [next, next], "title": "t"}))
        };
        let mut definitions: serde_json::Map<_, _> = (0..depth).map(level).collect();
        definitions.insert(format!("d{depth}"), json!({"type": "string"}));
        json!({"$defs": definitions, "allOf": [{"$ref": "#/$defs/d0"}]})
    };
    // Told apart by the last of the properties that all must have.
    let discriminated = |count: usize, required: usize| {
        let one = |i: usize| {
            let names = (0..required).map(|n| format!("p{n}"));
            let property = |name: String| {
                let schema = if name == format!("p{}", required - 1) {
                    json!({"const": i})
                } else {
                    json!({"minLength": 1})
                };
                (name, schema)
            };
            json!({"type": "object", "required": names.clone().collect::<Vec<_>>(), "properties": names.map(property).collect::<Value>()})
        };
        json!({"oneOf": of(count, &one)})
    };
    // All names become the same in a rule's name.
    let named_apart = |count: usize| {
        let names = || (0..count).map(|i| char::from_u32(0x4e00 + i as u32).unwrap().to_string());
        let properties: Value = names().enumerate().map(|(i, name)| (name, json!({"const": i}))).collect();
        json!({"type": "object", "required": names().collect::<Vec<_>>(), "properties": properties})
    };
    let patterns = |count: usize, pattern: &str| {
        object(count, &|i| {
            (format!("p{i}"), json!({"type": "string", "pattern": format!("^a{i}{pattern}$")}))
        })
    };
    let hostile = [
        (
            "too many values",
            json!({"allOf": [{"enum": values(0, 60_000)}, {"enum": values(60_000, 60_000)}]}),
        ),
        (
            "too many values",
            json!({"oneOf": [{"enum": values(0, 150_000)}, {"enum": values(150_000, 150_000)}]}),
        ),
        ("too many values", json!({"type": "object", "properties": {"a": {"enum": values(0, 2001)}}})),
        ("share none", json!({"allOf": [{"enum": values(0, 2000)}, {"enum": values(2000, 2000)}]})),
        ("too large", json!({"oneOf": of(100, &|i| json!({"enum": values(i * 2000, 2000)}))})),
        ("too much work", json!({"oneOf": of(1000, &|i| json!({"const": i, "title": "t"}))})),
        ("too large", json!({"allOf": vec![json!({"required": values(0, 100_000)}); 2]})),
        (
            "`type` that lists more",
            json!({"allOf": [{"type": vec!["string"; 9000]}, {"type": vec!["null"; 9000]}]}),
        ),
        ("more types", json!({"type": vec!["object"; 9000], "properties": {"a": {}}})),
        ("too much work", doubled("allOf", 15)),
        ("too much work", discriminated(100, 60)),
        ("too large", json!({"type": "string", "description": "d".repeat(1 << 20)})),
        ("256 bytes", object(1, &|_| ("!".repeat(500_000), json!({"type": "null"})))),
        ("too much work", named_apart(2000)),
        ("`required`", object(9000, &|i| (format!("p{i}"), json!({"type": "null"})))),
        (
            "too much work",
            json!({"prefixItems": vec![object(200, &|i| (format!("p{i}"), json!({"type": "null"}))); 40]}),
        ),
        (
            "too much work",
            json!({"prefixItems": of(2000, &|i| json!({"type": "string", "pattern": format!("^a{i}$")}))}),
        ),
        (
            "too much work",
            json!({"prefixItems": of(2000, &|i| json!({"enum": ["a"], "pattern": format!("^a[a-z]{{0,{}}}$", i % 900)}))}),
        ),
        (
            "too much work",
            json!({"prefixItems": vec![json!({"enum": ["http://a.org"], "format": "uri"}); 2000]}),
        ),
        (
            "beside `pattern`",
            json!({"enum": ["a".repeat(400_000)], "pattern": "^((a|a){1,30}|(a|aa){1,30}){1,30}$"}),
        ),
        ("", json!({"enum": [format!("value-of-root{}", "-".repeat(400_000))]})),
        ("", json!({"enum": (0..800).map(|i| format!("at{}0", "x".repeat(i))).collect::<Vec<_>>()})),
    ];
    let mut wrong = Vec::new();
    for (says, schema) in &hostile {
        let prepared = grammar::of_format(&ResponseFormat::JsonSchema { schema: schema.clone() }, &|| false);
        let message = prepared.err().map_or(String::new(), |error| error.message);
        if says.is_empty() != message.is_empty() || !message.contains(says) {
            wrong.push(format!("{:.60}: {message:.200}", schema.to_string()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // What each tool may ask for, all of them together may not.
    let tools: Vec<_> = (0..40)
        .map(|i| Tool { name: format!("t{i}"), parameters: Some(doubled("allOf", 10)), ..Tool::default() })
        .collect();
    assert!(grammar::of_tools(&tools[..1], &ToolChoice::Auto, true, &|| false).is_ok());
    let error = grammar::of_tools(&tools, &ToolChoice::Auto, true, &|| false).unwrap_err();
    assert!(error.message.contains("too much work") && error.message.contains("tools["), "{error}");
    // What is large and no more is prepared.
    for schema in [
        json!({"enum": values(0, 2000)}),
        json!({"allOf": [{"enum": values(0, 2000)}, {"enum": values(1000, 2000)}]}),
        json!({"oneOf": [{"enum": values(0, 2000)}, {"enum": values(2000, 2000)}]}),
        json!({"oneOf": of(200, &|i| json!({"type": "object", "properties": {"kind": {"const": format!("k{i}")}, "name": {"type": "string"}},
                                             "required": ["kind", "name"]}))}),
        named_apart(400),
        json!({"prefixItems": vec![object(200, &|i| (format!("p{i}"), json!({"type": "null"}))); 5]}),
        discriminated(30, 20),
        patterns(40, "[a-z]{2,9}"),
        json!({"enum": (0..500).map(|i| format!("somebody{i}@example.org")).collect::<Vec<_>>(), "format": "email"}),
    ] {
        let format = ResponseFormat::JsonSchema { schema };
        grammar::of_format(&format, &|| false).unwrap();
    }
}

/// llama.cpp recurses through a schema, from reference to reference: here on the stack that Rust gives a thread.
#[test]
fn as_deep_as_a_schema_may_go_llama_cpp_comes_back() {
    let chain = |places: usize, levels: usize| {
        let definition = |i: usize| {
            let end = if i == places {
                json!({"type": "null"})
            } else {
                json!({"$ref": format!("#/$defs/{}", i + 1)})
            };
            (i.to_string(), (0..levels).fold(end, |inner, _| json!({"type": "array", "items": inner})))
        };
        json!({"$defs": (1..=places).map(definition).collect::<Value>(), "type": "array", "items": {"$ref": "#/$defs/1"}})
    };
    for (places, levels) in [(390, 3), (60, 30)] {
        held(&chain(places, levels), 0).unwrap();
    }
    assert!(held(&chain(390, 20), 0).unwrap_err().contains("levels through its references"));
}

#[test]
fn so_many_properties_may_be_left_out_that_llama_cpp_comes_back() {
    let object = |count: usize, required: usize| {
        let names = (0..count).map(|i| format!("p{i}"));
        let properties: Value = names.clone().map(|name| (name, json!({"type": "null"}))).collect();
        json!({"type": "object", "properties": properties, "required": names.take(required).collect::<Vec<_>>()})
    };
    held(&object(200, 0), 0).unwrap();
    held(&object(2000, 1900), 0).unwrap();
    let error = held(&object(1000, 1), 0).unwrap_err();
    assert!(error.contains("#/properties") && error.contains("`required`"), "{error}");
}

#[test]
fn llama_cpp_writes_bounds_of_both_kinds_right() {
    let accepts = |low: i64, high: i64, n: i64| {
        let grammar = grammar::convert(&json!({"type": "integer", "minimum": low, "maximum": high})).unwrap();
        let mut matcher = Matcher::new(Arc::new(gbnf::parse(&grammar, &|_| None).unwrap())).unwrap();
        matcher.accept_text(n.to_string().as_bytes()).unwrap() && matcher.may_end()
    };
    let edges = [
        -1234, -1000, -999, -105, -100, -99, -10, -9, -1, 0, 1, 9, 10, 11, 99, 100, 105, 199, 990, 1000, 2001,
    ];
    for (i, &low) in edges.iter().enumerate() {
        for &high in &edges[i..] {
            for n in edges.iter().flat_map(|&n| [n - 1, n, n + 1]) {
                assert_eq!(accepts(low, high, n), (low..=high).contains(&n), "{n} from {low} to {high}");
            }
        }
    }
}

/// Any schema that is made of what is spoken of here, most of them odd.
fn any_schema() -> impl Strategy<Value = Value> {
    let small = 0i64..4;
    let bound =
        prop_oneof![(-12i64..120).prop_map(|n| json!(n)), (-30i64..30).prop_map(|n| json!(n as f64 / 4.0))];
    let constant = || {
        select(vec![
            json!(1),
            json!(1.0),
            json!(2.5),
            json!("a"),
            json!("ab"),
            json!("\u{e9}\""),
            json!(null),
            json!(true),
            json!([1]),
            json!({"a": 1}),
        ])
    };
    let types = || subsequence(vec!["object", "array", "string", "integer", "boolean", "null"], 1..4);
    let leaf = prop_oneof![
        4 => types().prop_map(|names| ("type".to_owned(), if names.len() == 1 { json!(names[0]) } else { json!(names) })),
        1 => constant().prop_map(|value| ("const".to_owned(), value)),
        2 => proptest::collection::vec(constant(), 1..5).prop_map(|values| ("enum".to_owned(), json!(values))),
        2 => (select(vec!["minLength", "maxLength", "minItems", "maxItems"]), small).prop_map(|(key, n)| (key.to_owned(), json!(n))),
        2 => (select(vec!["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), bound)
            .prop_map(|(key, n)| (key.to_owned(), n)),
        1 => select(vec!["^a[b-d]*$", "^[ab]{1,2}$", "^(x|yz)+$"]).prop_map(|pattern| ("pattern".to_owned(), json!(pattern))),
        1 => select(vec!["#", "#/$defs/a", "#/$defs/b~1c"]).prop_map(|to| ("$ref".to_owned(), json!(to))),
    ];
    let object = |keywords: Vec<(String, Value)>| Value::Object(keywords.into_iter().collect());
    let leaves = proptest::collection::vec(leaf.clone(), 0..3).prop_map(object);
    let schema = leaves.prop_recursive(3, 24, 3, move |inner| {
        let names = || subsequence(vec!["a", "", "c"], 0..3);
        let deep = prop_oneof![
            (
                select(vec!["anyOf", "oneOf", "allOf", "prefixItems"]),
                proptest::collection::vec(inner.clone(), 1..4)
            )
                .prop_map(|(key, schemas)| (key.to_owned(), json!(schemas))),
            (select(vec!["items", "additionalProperties"]), inner.clone())
                .prop_map(|(key, schema)| (key.to_owned(), schema)),
            names().prop_map(|names| ("required".to_owned(), json!(names))),
            (names(), proptest::collection::vec(inner, 3)).prop_map(|(names, schemas)| {
                ("properties".to_owned(), names.into_iter().map(str::to_owned).zip(schemas).collect())
            }),
            Just(("additionalProperties".to_owned(), json!(false))),
            leaf.clone(),
        ];
        proptest::collection::vec(deep, 1..4).prop_map(object)
    });
    (schema.clone(), schema.clone(), schema).prop_map(|(mut whole, a, b)| {
        whole["$defs"] = json!({"a": a, "b/c": b});
        whole
    })
}

#[test]
fn any_schema_is_refused_or_holds() {
    let holding = Cell::new(0);
    TestRunner::new(Config { cases: 1500, failure_persistence: None, ..Config::default() })
        .run(&any_schema(), |schema| {
            if held(&schema, 12).is_ok_and(|written| written > 0) {
                holding.set(holding.get() + 1);
            }
            Ok(())
        })
        .unwrap();
    assert!(holding.get() > 200, "{}", holding.get());
}
