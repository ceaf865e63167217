//! Writes docs/languages.md, and compares it: every language, what tells it and what translates it, seen working here or not.
//!
//! After a change: `BACKPLANE_BLESS=1 cargo test -p backplane-translation --test languages`, read it, and commit it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use backplane_translation::languages::{LANGUAGES, find};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use support::{TEXTS, detect, lid_176, open, open_whatlang, texts};

/// Pairs with a package in Debian 12, in both directions or in one: written down from the names that its index has, and not
/// looked at by any test.
const PACKAGES: &str = "af-nl an-ca be-ru br-fr ca-it ca-sc da-nb en-ca en-gl en-es eo-ca eo-en eo-es eo-fr es-an es-ast es-ca \
    es-gl es-it es-pt es-ro eu-en eu-es fr-es fr-ca hr-en hr-mk hr-sl id-ms is-en is-sv mk-bg mk-en nn-nb oc-ca oc-es oc-fr pt-ca \
    pt-gl ru-uk sc-it sv-da sv-nb ur-hi";

/// Pairs that `make setup` installs, with a sentence and what Apertium makes of it.
const SEEN: &[(&str, &str, &str, &str)] = &[
    ("en", "es", "The house is big.", "La casa es grande."),
    ("es", "en", "La casa es grande.", "The house is big."),
];

/// How many of its sentences each detector told right, by language.
fn told(detector: &backplane_testkit::Instance) -> BTreeMap<&'static str, (usize, usize)> {
    let sentences = texts("s");
    let found = detect(detector, &sentences.iter().map(|(_, text)| *text).collect::<Vec<_>>());
    let mut told: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for ((language, _), found) in sentences.iter().zip(found) {
        let counts = told.entry(language).or_default();
        counts.0 += usize::from(found["languages"][0]["language"] == *language);
        counts.1 += 1;
    }
    told
}

/// What the engines are seen to do here.
fn translated() -> BTreeSet<(&'static str, &'static str)> {
    let apertium =
        open(r#"{"name":"apertium","capabilities":["translate"],"parameters":{"engines":["apertium"]}}"#);
    SEEN.iter()
        .map(|(from, to, text, expected)| {
            let params = json!({"text": [text], "source": from, "target": to}).to_string();
            let answer: Value = apertium.submit("translate", &params, vec![]).wait().json();
            assert_eq!(answer["translations"][0]["text"], *expected, "{from}-{to}");
            (*from, *to)
        })
        .collect()
}

fn document() -> String {
    let (file, built_in, seen) = (told(&open(&lid_176())), told(&open_whatlang()), translated());
    let pairs: Vec<(&str, &str)> =
        PACKAGES.split_whitespace().map(|pair| pair.split_once('-').unwrap()).collect();
    assert!(pairs.iter().all(|(one, other)| find(one).is_some() && find(other).is_some()));
    let mut text = format!(
        "# Languages\n\nThe {} languages that the [translation plugin](../plugins/translation/README.md) has codes for. A test \
         writes this page.\n\n\
         - **told**: how many of 25 sentences of the language each detector told right; – where it was not measured. `lid.176` \
         tells 176 languages, `whatlang` 69.\n\
         - **Apertium, seen working here**: translated by the tests. **code only**: Debian 12 has a package for the pair, in one \
         direction or both. This column was written down from the names in its index; no test has seen one of them work.\n\
         - **marian**: a sequence-to-sequence model serves the pairs that its card names. The tests have one of random weights, \
         which shows that it is run as it should be; no language is claimed, so that it has no column.\n\
         - **chat**: a chat model is asked for any pair, and LibreTranslate's API offers those among the `languages` of its card. What \
         one can do depends on the model, and is seen by the checks of each answer, which tell a language apart where `whatlang` does; \
         the plugin claims none, so that it has no column either.\n\
         - Another script than the first is a language of its own to ask for: `sr-Latn`, `zh-Hant`.\n\n\
         | code | ISO 639-3 | language | scripts | told by `lid.176` | by `whatlang` | Apertium, seen working here: into | Apertium, \
         code only: with |\n|---|---|---|---|---|---|---|---|\n",
        LANGUAGES.len()
    );
    for language in LANGUAGES {
        let code = language.code;
        let of = |told: &BTreeMap<&str, (usize, usize)>| {
            told.get(code).map_or("–".to_owned(), |(right, all)| format!("{right} of {all}"))
        };
        let into: Vec<&str> = seen.iter().filter(|(from, _)| *from == code).map(|(_, to)| *to).collect();
        let mut with: BTreeSet<&str> = BTreeSet::new();
        for (one, other) in &pairs {
            if *one == code {
                with.insert(other);
            }
            if *other == code {
                with.insert(one);
            }
        }
        with.retain(|other| !into.contains(other));
        let with: Vec<&str> = with.into_iter().collect();
        text.push_str(&format!(
            "| `{code}` | {} | {} | {} | {} | {} | {} | {} |\n",
            language.iso3,
            language.name,
            language.scripts.join(", "),
            of(&file),
            of(&built_in),
            into.join(", "),
            with.join(", ")
        ));
    }
    text
}

#[test]
fn the_page_of_languages_says_what_is() {
    assert!(TEXTS.lines().count() >= 1000);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/languages.md");
    let text = document();
    if std::env::var_os("BACKPLANE_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "docs/languages.md is not what the test sees: run it with BACKPLANE_BLESS=1, and read what changed"
    );
}
