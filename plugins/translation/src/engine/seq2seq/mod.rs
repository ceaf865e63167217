//! Sequence-to-sequence models in the layout of Marian and OPUS, by graphs that another plugin runs.
//!
//! - [`card`]: what a model's card and configuration say.
//! - [`vocabulary`]: a text as numbers, and back; [`sentencepiece`] cuts it.
//! - [`graphs`]: encoder and decoder, and the state between two steps.
//! - [`search`]: which tokens follow each other.
//!
//! No engine is linked here: each graph is a model of the host, called by the capability `tensor.infer`.

pub mod card;
pub mod graphs;
mod protobuf;
pub mod search;
pub mod sentencepiece;
pub mod vocabulary;

use super::{Engine, Pair, Work};
use crate::protect::document::Rendering;
use crate::protect::weave::Part;
use backplane_plugin::payload::tensor;
use backplane_plugin::prelude::*;
use card::{Parameters, Settings};
use graphs::{Graphs, Input, Numbers, Output, Run};
use search::Hypothesis;
use std::collections::HashSet;
use vocabulary::{Encoded, Vocabulary};

/// The format of such models.
pub const FORMAT: &str = "marian";

/// Characters of a sentence. Models were trained on sentences; one that is longer comes out worse, and shortened.
const LONGEST: usize = 400;

/// What may stand around the number of a mark.
const SIGNS: [Sign; 5] = [('\u{27E6}', '\u{27E7}'), ('{', '}'), ('[', ']'), ('<', '>'), ('(', ')')];

/// What stands before and behind the number of a mark.
type Sign = (char, char);

/// A model. See the module.
pub struct Seq2Seq {
    pairs: Vec<Served>,
    vocabulary: Vocabulary,
    graphs: Graphs,
    settings: Settings,
    /// The host's names of the graphs, by their roles.
    models: [(&'static str, String); 3],
    /// Those that the vocabulary has, the least common in texts first.
    signs: Vec<Sign>,
}

/// A pair of languages, and the token that chooses it.
struct Served {
    pair: Pair,
    prefix: Option<i64>,
}

impl Seq2Seq {
    /// The claim to a model of this format. Its graphs are models with memory of their own.
    pub fn bid(model: &ModelSpec) -> Bid {
        if let Err(error) = model.parameters::<Parameters>().and_then(|card| card.pairs(model)) {
            return Bid::no(BidReason::Format, error.message);
        }
        let graphs = [graphs::ENCODER, graphs::DECODER, graphs::DECODER_WITH_PAST];
        let is_graph = |role: &str| graphs.contains(&role.split('.').next().unwrap_or_default());
        let own: u64 = model.files.iter().filter(|file| !is_graph(&file.role)).map(|file| file.size).sum();
        // Of one pair: it is for who asks for it by name, or gives it the pair in the configuration. The pieces stand in three
        // tables, and a table of hashes may be half empty: twelve times their files is an upper bound by estimate.
        Bid { score: 300, quality: 700, host_bytes: (4 << 20) + 12 * own, ..Bid::default() }
    }

    /// Opens the files that a card lists, but for the graphs, which the host opens when they are first run.
    ///
    /// # Errors
    /// When one is missing or is not what it should be.
    pub fn open(model: &ModelSpec) -> Result<Self> {
        let card: Parameters = model.parameters()?;
        let settings = Settings::of(model, &card)?;
        let vocabulary = Vocabulary::open(model)?;
        let served = |pair: Pair| Ok(Served { pair, prefix: prefix(&card, &vocabulary, pair, model)? });
        let pairs = card.pairs(model)?.into_iter().map(served).collect::<Result<_>>()?;
        let graph = |role| (role, format!("{}.{role}", model.name));
        let known = |(open, close): &Sign| {
            vocabulary.encode(&format!("a {open}0{close} b {open}12{close} c")).unknown == 0
        };
        Ok(Self {
            signs: SIGNS.into_iter().filter(known).collect(),
            pairs,
            graphs: Graphs::open(model)?,
            settings,
            models: [graph(graphs::ENCODER), graph(graphs::DECODER), graph(graphs::DECODER_WITH_PAST)],
            vocabulary,
        })
    }

    /// The pairs that it serves.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        self.pairs.iter().map(|served| served.pair)
    }

    /// A text as the model reads it, for one of its pairs.
    pub fn encode(&self, pair: Pair, text: &str) -> Encoded {
        let Encoded { mut ids, unknown } = self.vocabulary.encode(text);
        ids.splice(
            0..0,
            self.pairs.iter().find(|served| served.pair == pair).and_then(|served| served.prefix),
        );
        ids.extend(self.settings.rules.ends.first());
        Encoded { ids, unknown }
    }

    /// The text of tokens.
    pub fn decode(&self, tokens: &[i64]) -> String {
        let special: Vec<i64> = self.settings.rules.ends.iter().copied().chain([self.settings.pad]).collect();
        self.vocabulary.decode(tokens, &special)
    }

    /// The translations of sentences, the best of each first. A sentence that is too long has none.
    ///
    /// # Errors
    /// Those of whatever runs the graphs.
    pub fn search(&self, run: &dyn Run, sentences: &[Vec<i64>]) -> Result<Vec<Vec<Hypothesis>>> {
        let mut found = vec![Vec::new(); sentences.len()];
        let fits = |at: &usize| (1..=self.settings.longest).contains(&sentences[*at].len());
        let mut order: Vec<usize> = (0..sentences.len()).filter(fits).collect();
        // Sentences of one length need no padding.
        order.sort_by_key(|at| sentences[*at].len());
        for chunk in order.chunks(self.settings.batch) {
            let ids: Vec<&[i64]> = chunk.iter().map(|at| &*sentences[*at]).collect();
            let mut state = self.graphs.read(run, &ids, self.settings.pad)?;
            let hypotheses = search::search(chunk.len(), &self.settings.rules, |rows| state.step(rows))?;
            for (at, hypotheses) in chunk.iter().zip(hypotheses) {
                found[*at] = hypotheses;
            }
        }
        Ok(found)
    }
}

/// The token that chooses the language to translate into: the card's, else the one with the language's code, where a model has
/// such tokens at all.
fn prefix(card: &Parameters, vocabulary: &Vocabulary, pair: Pair, model: &ModelSpec) -> Result<Option<i64>> {
    let wrong = |why: String| {
        Error::invalid(format!("[parameters] of model `{}`: {why}", model.name)).with_param("parameters")
    };
    if let Some(token) = card.prefixes.get(pair.to.code) {
        let id = vocabulary.id(token);
        return id.map(Some).ok_or_else(|| wrong(format!("`prefixes`: `{token}` is not in the vocabulary")));
    }
    let found = vocabulary.id(&format!(">>{}<<", pair.to.iso3));
    if found.is_none()
        && let Some(other) = vocabulary.languages().min()
    {
        let code = pair.to.code;
        return Err(wrong(format!(
            "the model translates into several languages, chosen by tokens such as `{other}`; say which is `{code}`'s: \
             `prefixes = {{ {code} = \"{other}\" }}`"
        )));
    }
    Ok(found)
}

impl Engine for Seq2Seq {
    fn name(&self) -> &'static str {
        FORMAT
    }

    fn longest(&self) -> usize {
        LONGEST
    }

    fn serves(&self, pair: Pair) -> bool {
        self.pairs().any(|own| own == pair)
    }

    fn has_variants(&self) -> bool {
        1 < self.settings.rules.beams
    }

    fn translate(&self, pair: Pair, sentences: &[Vec<Part>], work: &Work<'_>) -> Result<Vec<Rendering>> {
        let mut unknown: Vec<&Vec<Part>> =
            sentences.iter().filter(|sentence| !work.known.borrow().contains_key(*sentence)).collect();
        let mut seen = HashSet::new();
        unknown.retain(|sentence| seen.insert(*sentence));
        let written: Vec<Option<Written>> =
            unknown.iter().map(|sentence| Written::of(sentence, &self.signs)).collect();
        let ids = |written: &Option<Written>| {
            written.as_ref().map(|written| self.encode(pair, &written.text).ids).unwrap_or_default()
        };
        let found =
            self.search(&Called { engine: self, work }, &written.iter().map(ids).collect::<Vec<_>>())?;
        let mut known = work.known.borrow_mut();
        for ((sentence, written), hypotheses) in unknown.into_iter().zip(written).zip(found) {
            let sign = written.and_then(|written| written.sign);
            let rendering = |hypothesis: Hypothesis| Rendering {
                parts: read(&self.decode(&hypothesis.tokens), sign),
                confidence: hypothesis.confidence(),
            };
            let renderings = hypotheses.into_iter().take(work.wanted as usize).map(rendering).collect();
            known.insert(sentence.clone(), renderings);
        }
        let rendering = |sentence| {
            // A sentence that has fewer translations than another has its last one once more.
            let renderings: &[Rendering] = known.get(sentence).map_or(&[], |known| known);
            renderings.get(work.variant as usize).or(renderings.last()).cloned()
        };
        let none = || Rendering { parts: Vec::new(), confidence: 0.0 };
        Ok(sentences.iter().map(|sentence| rendering(sentence).unwrap_or_else(none)).collect())
    }
}

/// Graphs that are run through the host.
struct Called<'a> {
    engine: &'a Seq2Seq,
    work: &'a Work<'a>,
}

impl Run for Called<'_> {
    fn run(&self, role: &str, inputs: Vec<Input>) -> Result<Vec<Output>> {
        self.work.check()?;
        let model = self.engine.models.iter().find(|(own, _)| *own == role).map_or("", |(_, model)| model);
        let mut call = self.work.request.call(tensor::CAPABILITY).model(model);
        for Input { name, shape, numbers } in inputs {
            call = call.tensor(match numbers {
                Numbers::Whole(numbers) => Tensor::new(name, &shape, numbers)?,
                Numbers::Real(numbers) => Tensor::lent(name, &shape, numbers)?,
            });
        }
        let answer = call.wait().map_err(|error| match error.code {
            Code::NotFound => Error::model_invalid(format!(
                "nothing here runs the graph `{model}`: list `{role}` under `[graphs]` of the model's card ({})",
                error.message
            )),
            _ => error,
        })?;
        let output = |tensor: &backplane_plugin::AnswerTensor| {
            let view = tensor.view();
            let numbers = view.elements::<f32>().map_err(|error| {
                Error::model_invalid(format!(
                    "the graph `{model}` gives numbers of another type: {}",
                    error.message
                ))
            })?;
            Ok(Output { name: view.name().to_owned(), shape: view.shape().to_vec(), numbers: numbers.into() })
        };
        answer.tensors.iter().map(output).collect()
    }
}

/// A sentence for the model.
#[derive(Debug, PartialEq)]
struct Written {
    text: String,
    /// What stands around the numbers of its marks; `None` where it has no mark.
    sign: Option<Sign>,
}

impl Written {
    /// With signs that the sentence itself has not; `None` where there are no such.
    fn of(sentence: &[Part], signs: &[Sign]) -> Option<Self> {
        let has = |sign: &Sign| {
            sentence.iter().any(|part| matches!(part, Part::Text(words) if words.contains([sign.0, sign.1])))
        };
        let mut written = Self { text: String::new(), sign: None };
        for part in sentence {
            match part {
                Part::Text(words) => written.text.push_str(words),
                Part::Mark(mark) => {
                    let (open, close) = *signs.iter().find(|sign| !has(sign))?;
                    written.sign = Some((open, close));
                    written.text.push_str(&format!("{open}{mark}{close}"));
                }
            }
        }
        Some(written)
    }
}

/// A sentence from the model. A number between two signs is a mark, with or without spaces beside it.
fn read(text: &str, sign: Option<Sign>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut words = String::new();
    let mut rest = text;
    while let Some((open, close)) = sign
        && let Some((before, after)) = rest.split_once(open)
    {
        words.push_str(before);
        let mark =
            after.split_once(close).and_then(|(inside, behind)| Some((inside.trim().parse().ok()?, behind)));
        match mark {
            Some((mark, behind)) => {
                if !words.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut words)));
                }
                parts.push(Part::Mark(mark));
                rest = behind;
            }
            None => {
                words.push(open);
                rest = after;
            }
        }
    }
    words.push_str(rest);
    if !words.is_empty() {
        parts.push(Part::Text(words));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_written_and_read() {
        let words = |text: &str| Part::Text(text.to_owned());
        let sentence = [words("Hi "), Part::Mark(0), words(", "), Part::Mark(12), words("!")];
        for sign in SIGNS {
            let written = Written::of(&sentence, &[sign]).unwrap();
            assert_eq!(written.sign, Some(sign));
            assert_eq!(read(&written.text, written.sign), sentence);
        }
        assert_eq!(Written::of(&sentence, &[]), None);
        let sign = Some(('[', ']'));
        assert_eq!(read("a [ 3 ]b [x] c]", sign), [words("a "), Part::Mark(3), words("b [x] c]")]);
    }

    #[test]
    fn what_looks_like_a_mark_is_none() {
        let words = |text: &str| Part::Text(text.to_owned());
        let without = Written::of(&[words("see [1]")], &SIGNS).unwrap();
        assert_eq!((read(&without.text, without.sign), without.sign), (vec![words("see [1]")], None));
        let signs = [('[', ']'), ('<', '>')];
        let other = Written::of(&[words("see [1] and "), Part::Mark(0)], &signs).unwrap();
        assert_eq!((&*other.text, other.sign), ("see [1] and <0>", Some(('<', '>'))));
        assert_eq!(Written::of(&[words("see [1] and "), Part::Mark(0)], &signs[..1]), None);
    }
}
