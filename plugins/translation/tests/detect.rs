//! Detection, measured on 1,680 labelled texts in 48 languages: 25 sentences and 10 pairs of words of each. The floors are what
//! was measured (README), less a little.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells what it saw"
)]

mod support;

use backplane_testkit::Instance;
use backplane_translation::detect::fasttext::FastText;
use backplane_translation::detect::other_than;
use backplane_translation::languages::find;
use serde_json::json;
use support::{detect, lid_176, lid_176_file, open, open_whatlang, texts};

/// How often it is right, how often it says anything, and how far its confidence is from how often it is right (the expected
/// calibration error, ten bins).
struct Measured {
    right: f64,
    error: f64,
}

fn measure(instance: &Instance, kind: &str) -> Measured {
    let texts = texts(kind);
    let found = detect(instance, &texts.iter().map(|(_, text)| *text).collect::<Vec<_>>());
    let mut bins = [(0.0, 0.0, 0.0); 10];
    let mut right = 0.0;
    for ((language, _), found) in texts.iter().zip(&found) {
        let likeliest = &found["languages"][0];
        let is_right = f64::from(u8::from(likeliest["language"] == *language));
        let sure = likeliest["confidence"].as_f64().unwrap_or(0.0);
        let bin = &mut bins[((sure * 10.0) as usize).min(9)];
        *bin = (bin.0 + 1.0, bin.1 + sure, bin.2 + is_right);
        right += is_right;
    }
    let count = texts.len() as f64;
    let error = bins.iter().map(|(_, sure, right)| (sure - right).abs()).sum::<f64>() / count;
    println!("{kind}: {count} texts, right {:.3}, calibration error {error:.3}", right / count);
    for (n, sure, right) in bins {
        println!(
            "   {n:5} texts, sure {:.2}, right {:.2}",
            sure / f64::max(n, 1.0),
            right / f64::max(n, 1.0)
        );
    }
    Measured { right: right / count, error }
}

#[test]
fn the_file_tells_languages_apart() {
    let instance = open(&lid_176());
    let (sentences, words) = (measure(&instance, "s"), measure(&instance, "w"));
    assert!(0.95 <= sentences.right && sentences.error <= 0.03, "{} {}", sentences.right, sentences.error);
    assert!(0.70 <= words.right && words.error <= 0.06, "{} {}", words.right, words.error);
}

#[test]
fn what_is_in_the_plugin_tells_languages_apart() {
    let instance = open_whatlang();
    let (sentences, words) = (measure(&instance, "s"), measure(&instance, "w"));
    assert!(0.86 <= sentences.right && sentences.error <= 0.03, "{} {}", sentences.right, sentences.error);
    assert!(0.61 <= words.right && words.error <= 0.13, "{} {}", words.right, words.error);
}

#[test]
fn the_file_says_what_fasttext_says() {
    let instance = open(&lid_176());
    let model = FastText::read(&std::fs::read(lid_176_file()).unwrap()).unwrap();
    for (text, language, sure) in REFERENCE {
        let found = &detect(&instance, &[text])[0]["languages"][0];
        assert_eq!(found["language"], *language, "{text}");
        let likeliest =
            model.scores(text).into_iter().map(|(_, score)| score).max_by(f32::total_cmp).unwrap();
        assert!((likeliest - sure).abs() < 1e-4, "{text}: {likeliest}");
    }
}

/// fastText's answers for the same file (fasttext-predict 0.9.2.4, `predict(text, k=1)`), before calibration.
const REFERENCE: &[(&str, &str, f32)] = &[
    ("The black cat sleeps in the bed.", "en", 0.952_631),
    ("Où est la gare ?", "fr", 0.976_032),
    ("Ich möchte ein Glas Wasser, bitte.", "de", 0.997_540),
    ("El gato negro", "es", 0.571_635),
    ("こんにちは世界", "ja", 0.940_312),
    ("Привет, как дела?", "ru", 0.959_980),
    ("ok", "en", 0.629_765),
    ("hola mundo good morning", "en", 0.622_702),
    ("naïve café", "nb", 0.280_936),
];

#[test]
fn mixed_short_and_empty_texts_are_answered_as_the_manual_says() {
    let instance = open(&lid_176());
    let found = detect(
        &instance,
        &["", "12345 !?", "ok", "This is a sentence in English. Und hier folgt ein deutscher Satz."],
    );
    assert_eq!(found[0]["languages"], json!([]));
    assert_eq!(found[1]["languages"], json!([]));
    let mixed = found[3]["languages"].as_array().unwrap();
    let languages: Vec<_> = mixed.iter().map(|found| found["language"].as_str().unwrap()).collect();
    assert_eq!(languages, ["de", "en"]);
    assert!(
        mixed.iter().all(|found| (0.3..0.7).contains(&found["confidence"].as_f64().unwrap())),
        "{mixed:?}"
    );
}

/// What `chat` is told by: a sentence in its own language must not pass for its translation, and a right translation must not
/// be taken for the source. Both into English and out of it.
#[test]
fn an_answer_in_the_language_of_its_source_is_found_out() {
    let english = find("en").unwrap();
    let (mut left, mut found, mut right, mut accused) = (0, 0, 0, 0);
    for (code, text) in texts("s") {
        let language = find(code).unwrap();
        if language == english {
            continue;
        }
        left += 1;
        found += usize::from(other_than(english, language, text) == Some(language));
        right += 1;
        accused += usize::from(other_than(language, english, text).is_some());
    }
    println!("left as they are: {found} of {left} found; right: {accused} of {right} refused");
    let share = |part: usize, all: usize| part as f64 / all as f64;
    assert!(share(found, left) >= 0.85, "{found} of {left} were left as they are");
    assert!(share(accused, right) <= 0.01, "{accused} of {right} right ones were refused");
}
