//! Chat models, asked through the host: one sentence at a time, with an answer that is looked at before it is believed. What one
//! of them cannot do the next one is asked for.

use super::{Engine, Pair, Work};
use crate::detect;
use crate::languages::{self, Language};
use crate::protect::document::Rendering;
use crate::protect::weave::{self, Part};
use backplane_plugin::payload::{Usage, chat as payload};
use backplane_plugin::prelude::*;
use std::collections::HashSet;
use std::fmt;
use std::time::Instant;

/// See the module.
pub struct Chat {
    /// Which models, in the order in which they are asked; none lets the host choose one.
    pub models: Vec<String>,
}

/// What was seen of chat models while a text was translated.
#[derive(Default)]
pub struct Seen {
    /// By the names they were asked by: which one it was that answered.
    answered: Vec<(String, String)>,
    failed: Vec<Failed>,
    /// Sentences that none of them could translate: they are not asked for one again.
    beyond: HashSet<Vec<Part>>,
}

/// A model that could not do something.
struct Failed {
    asked: String,
    model: String,
    /// What it did last.
    how: How,
    /// How many sentences it could make nothing of.
    sentences: usize,
}

enum How {
    Flawed(Flaw),
    Refused(Error),
}

/// A model that could make nothing of so many sentences of a text, and something of none, is asked for no more of it.
const HOPELESS: usize = 5;

impl Seen {
    /// Whose words a translation has.
    pub fn models(&self) -> Vec<String> {
        let mut models: Vec<String> = Vec::new();
        for (_, model) in &self.answered {
            if !model.is_empty() && !models.contains(model) {
                models.push(model.clone());
            }
        }
        models
    }

    fn answers(&mut self, asked: &str, model: String) {
        let answer = (asked.to_owned(), model);
        if !self.answered.contains(&answer) {
            self.answered.push(answer);
        }
    }

    fn fails(&mut self, asked: &str, model: &str, how: How) {
        // What is kept can be kept from it: the sentence is asked for piece by piece.
        let one = usize::from(!matches!(how, How::Flawed(Flaw::Kept)));
        // One model may be asked by two names, and one name may lead to two models.
        match self.failed.iter_mut().find(|failed| failed.asked == asked && failed.model == model) {
            Some(failed) => (failed.how, failed.sentences) = (how, failed.sentences + one),
            None => {
                let (asked, model) = (asked.to_owned(), model.to_owned());
                self.failed.push(Failed { asked, model, how, sentences: one });
            }
        }
    }

    fn is_hopeless(&self, asked: &str) -> bool {
        let failures = self.failed.iter().filter(|failed| failed.asked == asked);
        HOPELESS <= failures.map(|failed| failed.sentences).sum()
            && !self.answered.iter().any(|(answered, _)| answered == asked)
    }

    /// What each model did wrong, for people; nothing where none did.
    pub fn failures(&self, pair: Pair) -> Option<String> {
        let told = self.failed.iter().map(|failed| {
            let name = match &*failed.model {
                "" => "the chat model".to_owned(),
                name => format!("the chat model `{name}`"),
            };
            match &failed.how {
                How::Flawed(flaw) => format!("{name} {}", flaw.told(pair)),
                How::Refused(error) => format!("{name} gave no answer: {}", error.message),
            }
        });
        let mut once: Vec<String> = Vec::new();
        for told in told {
            if !once.contains(&told) {
                once.push(told);
            }
        }
        (!once.is_empty()).then(|| once.join("; "))
    }
}

/// Why an answer is no translation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flaw {
    Empty,
    /// The source, word for word.
    Same,
    /// In another language.
    In(&'static Language),
    Script,
    Lines,
    Chatter,
    Length,
    /// Something that is to be kept is missing, or there twice.
    Kept,
}

impl Flaw {
    /// What the model did, for people.
    fn told(self, pair: Pair) -> impl fmt::Display {
        let to = pair.to.name;
        match self {
            Self::Empty => "answered nothing".to_owned(),
            Self::Same => format!("gave the {} text back as it was", pair.from.name),
            Self::In(language) => format!("answered in {}, not {to}", language.name),
            Self::Script => format!("answered in letters that {to} is not written in"),
            Self::Lines => "answered several lines to one".to_owned(),
            Self::Chatter => "talked about the translation instead of giving it alone".to_owned(),
            Self::Length => "answered far more or far less than the text says".to_owned(),
            Self::Kept => "lost numbers or placeholders of the text, or gave them twice".to_owned(),
        }
    }
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

    fn chat_models(&self) -> &[String] {
        &self.models
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
    /// Asks one model after the other. A sentence that none of them could translate has no parts.
    fn sentence(&self, pair: Pair, sentence: &[Part], work: &Work<'_>) -> Result<Rendering> {
        let none = Rendering { parts: Vec::new(), confidence: 0.0 };
        if work.variant == 0 && work.chats.borrow().beyond.contains(sentence) {
            return Ok(none);
        }
        let any = [String::new()];
        let models = if self.models.is_empty() { &any[..] } else { &self.models };
        let mut refused = None;
        let mut flawed = false;
        for (place, model) in models.iter().enumerate() {
            if work.chats.borrow().is_hopeless(model) {
                flawed = true;
                continue;
            }
            match ask(model, models.len() - place, pair, sentence, work) {
                Ok((name, Ok(rendering))) => {
                    work.chats.borrow_mut().answers(model, name);
                    return Ok(rendering);
                }
                Ok((name, Err(flaw))) => {
                    flawed = true;
                    work.chats.borrow_mut().fails(model, &name, How::Flawed(flaw));
                }
                Err(error) => {
                    // Its own time may be over where that of the request is not.
                    work.check()?;
                    work.chats.borrow_mut().fails(model, model, How::Refused(error.clone()));
                    refused = Some(error);
                }
            }
        }
        work.chats.borrow_mut().beyond.insert(sentence.to_vec());
        match refused {
            Some(error) if !flawed => Err(error),
            _ => Ok(none),
        }
    }
}

/// What one model says, and which one it is. While `left` more than one can be asked it has half of the time there is.
fn ask(
    model: &str,
    left: usize,
    pair: Pair,
    sentence: &[Part],
    work: &Work<'_>,
) -> Result<(String, Result<Rendering, Flaw>)> {
    let source = write(sentence);
    let params = json!({
        "messages": messages(pair, &source),
        "max_tokens": 64 + 2 * source.chars().count(),
        // The first is the likeliest; another one has to differ.
        "temperature": if work.variant == 0 { 0.0 } else { 0.8 },
        "seed": work.variant,
    });
    let mut call = work.request.call(payload::CAPABILITY).model(model).params(&params)?;
    if let Some(deadline) = work.request.deadline().filter(|_| 1 < left) {
        let now = Instant::now();
        call = call.deadline(now + deadline.saturating_duration_since(now) / 2);
    }
    let answer = call.wait()?;
    let mut text = String::new();
    for chunk in answer.chunks::<payload::Chunk>()? {
        text.push_str(&chunk.content);
    }
    let sure = answer.confidence.or_else(|| {
        let usage: Usage = serde_json::from_str(&answer.usage_json).ok()?;
        usage.mean_logprob.map(f64::exp)
    });
    let rendering = check(pair, &source, &text).and_then(|(text, checked)| {
        let parts = read(&text);
        let confidence = sure.unwrap_or(0.7).clamp(0.0, 1.0) * checked;
        has_what_is_kept(sentence, &parts).then_some(Rendering { parts, confidence }).ok_or(Flaw::Kept)
    });
    let name = if answer.model.is_empty() { model.to_owned() } else { answer.model };
    Ok((name, rendering))
}

/// Whether every mark and every number is there as often as before.
fn has_what_is_kept(sentence: &[Part], answer: &[Part]) -> bool {
    let marks = |parts: &[Part]| {
        let mark = |part: &Part| if let Part::Mark(mark) = part { Some(*mark) } else { None };
        let mut marks: Vec<usize> = parts.iter().filter_map(mark).collect();
        marks.sort_unstable();
        marks
    };
    let words = |parts: &[Part]| {
        let text = |part: &Part| if let Part::Text(text) = part { text.clone() } else { " ".to_owned() };
        parts.iter().map(text).collect::<String>()
    };
    marks(sentence) == marks(answer) && weave::keeps_numbers(&words(sentence), &words(answer))
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

/// What is left of an answer when all that is not the translation is taken off, and how likely it is one; or why it is none.
fn check(pair: Pair, source: &str, answer: &str) -> Result<(String, f64), Flaw> {
    let answer = answer.trim();
    let answer =
        answer.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")).unwrap_or(answer).trim();
    let quoted =
        [('"', '"'), ('\u{201C}', '\u{201D}'), ('\u{AB}', '\u{BB}')].iter().find_map(|(open, close)| {
            answer.strip_prefix(*open)?.strip_suffix(*close).filter(|_| !source.starts_with(*open))
        });
    let answer = quoted.unwrap_or(answer).trim();
    let lower = answer.to_lowercase();
    let letters: Vec<&str> = answer.chars().filter_map(languages::script).collect();
    if letters.is_empty() {
        return Err(Flaw::Empty);
    }
    let is_same = source.to_lowercase() == lower;
    // A name is the same in both, and what only changes its script may be.
    if is_same && !is_name(source) && pair.from.in_any_script() != pair.to.in_any_script() {
        return Err(Flaw::Same);
    }
    // The wrong language is told with more certainty than the right one.
    if !is_same && let Some(other) = detect::other_than(pair.to, pair.from, answer) {
        return Err(Flaw::In(other));
    }
    // Letters of a script that the language is not written in: those of names are, a few.
    let own = letters.iter().filter(|script| pair.to.is_written_in(script)).count();
    if own * 2 < letters.len() {
        return Err(Flaw::Script);
    }
    if answer.lines().filter(|line| !line.trim().is_empty()).count() > 1 {
        return Err(Flaw::Lines);
    }
    if is_chatter(pair, source, &lower) {
        return Err(Flaw::Chatter);
    }
    let ratio = (weight(answer) + 8.0) / (weight(source) + 8.0);
    if !(0.3..=3.0).contains(&ratio) {
        return Err(Flaw::Length);
    }
    let mut sure = if is_same { 0.3 } else { 1.0 };
    if !(0.5..=2.0).contains(&ratio) {
        sure *= 0.6;
    }
    Ok((answer.to_owned(), sure))
}

/// Whether a text may be a name, which no language translates: one word, or several of which each begins as names do.
fn is_name(text: &str) -> bool {
    let mut words = text.split_whitespace().filter(|word| word.chars().any(char::is_alphabetic));
    let is_capital = |word: &str| !word.chars().find(|c| c.is_alphabetic()).is_some_and(char::is_lowercase);
    let single = words.clone().nth(1).is_none();
    single || words.clone().nth(3).is_none() && words.all(is_capital)
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
    fn each_name_that_a_model_is_asked_by_has_a_count_of_its_own() {
        let mut seen = Seen::default();
        for _ in 0..HOPELESS {
            assert!(!seen.is_hopeless("small") && !seen.is_hopeless("alias"));
            for name in ["small", "alias"] {
                seen.fails(name, "small", How::Flawed(Flaw::Empty));
            }
        }
        assert!(seen.is_hopeless("small") && seen.is_hopeless("alias"));
        assert_eq!(seen.failures(pair()).as_deref(), Some("the chat model `small` answered nothing"));
        // Who could do something is not hopeless, by whichever of its names.
        for name in ["small", "alias"] {
            seen.answers(name, "small".to_owned());
            assert!(!seen.is_hopeless(name), "{name}");
        }
        assert_eq!(seen.models(), ["small"]);
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
        assert_eq!(sure("El gato negro duerme en la cama."), Ok(1.0));
        assert_eq!(
            check(pair(), source, "\"El gato negro duerme en la cama.\"").unwrap().0,
            "El gato negro duerme en la cama."
        );
        let english = find("en").unwrap();
        for (answer, flaw) in [
            ("", Flaw::Empty),
            ("...", Flaw::Empty),
            (source, Flaw::Same),
            ("the black cat sleeps in the bed.", Flaw::Same),
            ("The cat is black and it is sleeping.", Flaw::In(english)),
            ("Le chat noir dort dans le lit de mon frère aîné depuis hier.", Flaw::In(find("fr").unwrap())),
            ("Sure! El gato negro duerme en la cama.", Flaw::Chatter),
            ("El gato negro duerme.\n¡Espero que te ayude!", Flaw::Lines),
            ("Черный кот спит в кровати.", Flaw::Script),
            ("El", Flaw::Length),
            (
                "El gato negro duerme en la cama y luego se despierta y come y bebe y juega y corre y salta y vuelve a dormir en la cama",
                Flaw::Length,
            ),
        ] {
            assert_eq!(sure(answer), Err(flaw), "{answer}");
        }
    }

    #[test]
    fn a_name_is_the_same_in_both_languages() {
        let sure = |text: &str| check(pair(), text, text).map(|(_, sure)| sure);
        for name in ["Paris", "New York", "OpenAI", "John F. Kennedy"] {
            assert_eq!(sure(name), Ok(0.3), "{name}");
        }
        for text in ["The house", "Good morning", "Read The Fine Manual Now"] {
            assert_eq!(sure(text), Err(Flaw::Same), "{text}");
        }
    }

    #[test]
    fn what_is_to_be_kept_is_there_as_often_as_before() {
        let text = |text: &str| Part::Text(text.to_owned());
        let sentence = [text("On the 3rd "), Part::Mark(0), text(" of 1,234 and "), Part::Mark(1)];
        let moved = [Part::Mark(1), text(" y el 3 "), Part::Mark(0), text(" de 1,234")];
        assert!(has_what_is_kept(&sentence, &sentence));
        assert!(has_what_is_kept(&moved, &[text("3, 1,234: "), Part::Mark(0), Part::Mark(1)]));
        assert!(!has_what_is_kept(&sentence, &sentence[..3]));
        assert!(!has_what_is_kept(&sentence, &[&sentence[..], &[Part::Mark(0)]].concat()));
        assert!(!has_what_is_kept(
            &sentence,
            &[text("El 3rd "), Part::Mark(0), text(" de 1,235 y "), Part::Mark(1)]
        ));
    }

    /// From Spanish into English, and from English into others: what is right although it begins as chatter does.
    #[test]
    fn a_translation_may_begin_as_chatter_does() {
        let right = |from: &str, to: &str, source: &str, answer: &str| {
            let pair = Pair { from: find(from).unwrap(), to: find(to).unwrap() };
            assert_eq!(check(pair, source, answer).map(|(text, _)| text).as_deref(), Ok(answer), "{source}");
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
            let flaw = check(pair, source, answer).unwrap_err();
            assert!(matches!(flaw, Flaw::Chatter | Flaw::Lines | Flaw::In(_)), "{answer}: {flaw:?}");
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
