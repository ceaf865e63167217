//! Any chat model, asked through the host: one sentence at a time, with an answer that is looked at before it is believed.

use super::{Engine, Pair, Work};
use crate::detect::Detector;
use crate::languages;
use crate::protect::document::Rendering;
use crate::protect::weave::Part;
use backplane_plugin::payload::{Usage, chat as payload};
use backplane_plugin::prelude::*;

/// See the module.
pub struct Chat {
    /// Which model; empty lets the host choose.
    pub model: String,
}

/// What a small model says before it translates, or instead of it, whatever it was asked for.
const CHATTER: &[&str] = &[
    "sure",
    "here is",
    "here's",
    "certainly",
    "of course",
    "translation",
    "the translation",
    "as an ai",
    "i'm sorry",
    "i am sorry",
    "i cannot",
    "i can't",
    "translated text",
    "output",
    "note",
];
/// An announcement is no longer than this.
const PREAMBLE: usize = 80;

impl Engine for Chat {
    fn name(&self) -> &'static str {
        "chat"
    }

    fn longest(&self) -> usize {
        600
    }

    /// Whether a model knows a language nobody can say beforehand. The checks tell afterwards.
    fn serves(&self, pair: Pair) -> bool {
        pair.from != pair.to
    }

    fn is_general(&self) -> bool {
        true
    }

    fn translate(&self, pair: Pair, sentences: &[Vec<Part>], work: &Work<'_>) -> Result<Vec<Rendering>> {
        let mut renderings = Vec::with_capacity(sentences.len());
        for sentence in sentences {
            work.check()?;
            renderings.push(self.sentence(pair, sentence, work)?);
        }
        Ok(renderings)
    }
}

impl Chat {
    fn sentence(&self, pair: Pair, sentence: &[Part], work: &Work<'_>) -> Result<Rendering> {
        let source = write(sentence);
        let params = json!({
            "messages": messages(pair, &source),
            "max_tokens": 64 + 2 * source.chars().count(),
            // The first is the likeliest; another one has to differ.
            "temperature": if work.variant == 0 { 0.0 } else { 0.8 },
            "seed": work.variant,
        });
        let answer = work.request.call(payload::CAPABILITY).model(&self.model).params(&params)?.wait()?;
        let mut text = String::new();
        for chunk in answer.chunks::<payload::Chunk>()? {
            text.push_str(&chunk.content);
        }
        let sure = answer.confidence.or_else(|| {
            let usage: Usage = serde_json::from_str(&answer.usage_json).ok()?;
            usage.mean_logprob.map(f64::exp)
        });
        let Some((answer, checked)) = check(pair, &source, &text) else {
            return Ok(Rendering { parts: Vec::new(), confidence: 0.0 });
        };
        Ok(Rendering { parts: read(&answer), confidence: sure.unwrap_or(0.7).clamp(0.0, 1.0) * checked })
    }
}

fn messages(pair: Pair, source: &str) -> Value {
    let (from, to) = (pair.from.name, pair.to.name);
    let system = format!(
        "You translate from {from} to {to}. Answer with the {to} translation of the user's text and with nothing else: no \
         explanation, no quotation marks, no {from}. A sign such as \u{27E6}0\u{27E7} stands for a word that stays: copy each \
         one exactly once to where it belongs."
    );
    json!([{"role": "system", "content": system}, {"role": "user", "content": source}])
}

/// A sentence for the model.
fn write(sentence: &[Part]) -> String {
    let text = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Mark(mark) => format!("\u{27E6}{mark}\u{27E7}"),
    };
    sentence.iter().map(text).collect()
}

/// A sentence from the model. Whatever is in the brackets of a mark and is no number of one is left out.
fn read(answer: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = answer;
    while let Some((before, after)) = rest.split_once('\u{27E6}') {
        let (inside, behind) = after.split_once('\u{27E7}').unwrap_or((after, ""));
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.extend(inside.trim().parse().ok().map(Part::Mark));
        rest = behind;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.replace('\u{27E7}', "")));
    }
    parts
}

/// What is left of an answer when all that is not the translation is taken off, and how likely it is one; `None` if it is
/// none.
fn check(pair: Pair, source: &str, answer: &str) -> Option<(String, f64)> {
    let answer = answer.trim();
    let answer =
        answer.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")).unwrap_or(answer).trim();
    let quoted =
        [('"', '"'), ('\u{201C}', '\u{201D}'), ('\u{AB}', '\u{BB}')].iter().find_map(|(open, close)| {
            answer.strip_prefix(*open)?.strip_suffix(*close).filter(|_| !source.starts_with(*open))
        });
    let answer = quoted.unwrap_or(answer).trim();
    let lower = answer.to_lowercase();
    let source_lower = source.to_lowercase();
    let lines = answer.lines().filter(|line| !line.trim().is_empty()).count();
    if answer.is_empty() || lines > 1 || is_chatter(pair, source, &lower) {
        return None;
    }
    // Letters of a script that the language is not written in: those of names are, a few.
    let letters: Vec<&str> = answer.chars().filter_map(languages::script).collect();
    let own = letters.iter().filter(|script| pair.to.is_written_in(script)).count();
    if letters.is_empty() || own * 2 < letters.len() {
        return None;
    }
    let ratio = (weight(answer) + 8.0) / (weight(source) + 8.0);
    if !(0.3..=3.0).contains(&ratio) {
        return None;
    }
    let mut sure = 1.0;
    if source_lower == lower {
        sure *= 0.3;
    } else if 20 <= answer.chars().count() {
        // The wrong language is told with more certainty than the right one.
        let found = Detector::Whatlang.detect(answer, 1);
        if let Some(found) = found.first() {
            sure *= match &found.language {
                language if *language == pair.to.in_any_script().code => 1.0,
                language if *language == pair.from.in_any_script().code => 0.3,
                _ => 0.7,
            };
        }
    }
    if !(0.5..=2.0).contains(&ratio) {
        sure *= 0.6;
    }
    Some((answer.to_owned(), sure))
}

/// Whether an answer, in lower case, begins with words about the translation. Into English such words may be the translation:
/// then they are chatter where they announce or quote it, or say a lot more than the source.
fn is_chatter(pair: Pair, source: &str, answer: &str) -> bool {
    let begins = |words: &&&str| {
        let rest = answer.strip_prefix(**words);
        rest.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
    };
    let Some(words) = CHATTER.iter().find(begins) else { return false };
    if source.to_lowercase().starts_with(words) {
        return false;
    }
    // `Nota:` is `Note:`, in English and in others that have the word.
    let announces = |text: &str| {
        text.char_indices()
            .take(PREAMBLE)
            .any(|(at, c)| matches!(c, ':' | '\u{FF1A}') && !text[at + c.len_utf8()..].trim().is_empty())
    };
    let quotes = |text: &str| text.contains(['"', '\u{201C}', '\u{AB}', '\u{300C}', '\u{201E}']);
    if announces(answer) && !announces(source) || quotes(answer) && !quotes(source) {
        return true;
    }
    let says_more = 1.8 * (weight(source) + 8.0) < weight(answer) + 8.0;
    says_more || pair.to.code != "en" && !announces(answer)
}

/// How much a text says: one sign of a script without spaces as much as three letters.
fn weight(text: &str) -> f64 {
    text.chars().map(|c| if crate::protect::spans::is_unspaced(c) { 3.0 } else { 1.0 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::languages::find;

    fn pair() -> Pair {
        Pair { from: find("en").unwrap(), to: find("es").unwrap() }
    }

    #[test]
    fn marks_are_written_and_read() {
        let sentence =
            [Part::Text("Hi ".to_owned()), Part::Mark(0), Part::Text(", ".to_owned()), Part::Mark(1)];
        assert_eq!(read(&write(&sentence)), sentence);
        assert_eq!(
            read("a \u{27E6} 3 \u{27E7}\u{27E6}x\u{27E7}b\u{27E7}"),
            [Part::Text("a ".to_owned()), Part::Mark(3), Part::Text("b".to_owned())]
        );
    }

    #[test]
    fn what_is_no_translation_is_not_taken_for_one() {
        let source = "The black cat sleeps in the bed.";
        let sure = |answer: &str| check(pair(), source, answer).map(|(_, sure)| sure);
        assert_eq!(sure("El gato negro duerme en la cama."), Some(1.0));
        assert_eq!(
            check(pair(), source, "\"El gato negro duerme en la cama.\"").unwrap().0,
            "El gato negro duerme en la cama."
        );
        for answer in [
            "",
            "Sure! El gato negro duerme en la cama.",
            "El gato negro duerme.\nI hope this helps!",
            "Черный кот спит в кровати.",
            "El",
            "El gato negro duerme en la cama y luego se despierta y come y bebe y juega y corre y salta y vuelve a dormir en la cama",
        ] {
            assert_eq!(sure(answer), None, "{answer}");
        }
        assert!(sure(source).unwrap() < 0.5);
    }

    /// From Spanish into English, and from English into others: what is right although it begins as chatter does.
    #[test]
    fn a_translation_may_begin_as_chatter_does() {
        let right = |from: &str, to: &str, source: &str, answer: &str| {
            let pair = Pair { from: find(from).unwrap(), to: find(to).unwrap() };
            assert_eq!(
                check(pair, source, answer).map(|(text, _)| text).as_deref(),
                Some(answer),
                "{source}"
            );
        };
        for (source, answer) in [
            ("Lo siento, llego tarde.", "I'm sorry, I'm late."),
            ("Lo siento mucho, pero no puedo ayudarte.", "I am sorry, but I cannot help you."),
            ("Aquí está la llave de la casa.", "Here is the key to the house."),
            ("Nota: la casa es grande.", "Note: the house is big."),
            ("Claro, la casa es grande.", "Sure, the house is big."),
            ("No puedo dormir por la noche.", "I can't sleep at night."),
            ("Por supuesto que vendré mañana.", "Of course I will come tomorrow."),
            ("Ciertamente es una casa grande.", "Certainly it is a big house."),
            ("La traducción del libro es buena.", "The translation of the book is good."),
            ("Aquí están las reglas: nadie entra.", "Here are the rules: nobody enters."),
            ("Nota: la casa es grande, como ves.", "Note that the house is big, as you see."),
            ("Salida: la puerta de atrás.", "Output: the door behind."),
            ("Aquí está «el gato negro».", "Here is \u{201C}the black cat\u{201D}."),
        ] {
            right("es", "en", source, answer);
        }
        right("zh", "en", "对不起，我迟到了。", "I'm sorry, I'm late.");
        right("en", "fr", "Please note: the house is big.", "Note : la maison est grande.");
        right("en", "fi", "I got my feet wet today.", "Suretkaan eivät auta: jalat kastuivat.");
        right("en", "it", "The musical notes are on the page.", "Notevoli note musicali sono sulla pagina.");
    }

    #[test]
    fn chatter_before_or_instead_of_a_translation_is_not_taken_for_one() {
        let wrong = |from: &str, to: &str, source: &str, answer: &str| {
            let pair = Pair { from: find(from).unwrap(), to: find(to).unwrap() };
            assert_eq!(check(pair, source, answer), None, "{answer}");
        };
        for answer in [
            "Sure! Here is the translation: The cat sleeps.",
            "Here is the translation: The cat sleeps.",
            "Translation: The cat sleeps.",
            "The translation is \u{201C}The cat sleeps.\u{201D}",
            "I'm sorry, but I can't assist with that request.",
            "As an AI language model, I cannot translate this.",
            "Here's the translation:\nThe cat sleeps.",
        ] {
            wrong("es", "en", "El gato duerme.", answer);
        }
        for answer in [
            "Sure, el gato negro duerme en la cama.",
            "Translation: El gato negro duerme en la cama.",
            "Of course! El gato negro duerme en la cama.",
            "I cannot translate this sentence.",
        ] {
            wrong("en", "es", "The black cat sleeps in the bed.", answer);
        }
    }
}
