//! Chooses the next token. Pure: logits in, token out.
//!
//! The order is llama.cpp's: bias, penalties, grammar, top-k, top-p, min-p, temperature, draw. It is written here
//! rather than chained from llama.cpp's samplers because those copy the vocabulary into an array of structs for
//! every token, and because a bad parameter there is an assertion.

use super::logprobs;
use backplane_plugin::payload::Sampling as Asked;
use backplane_plugin::{Error, Result};
use serde::Deserialize;
use std::collections::{HashMap, VecDeque};

/// How tokens are chosen, complete and within bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 is off.
    pub repeat_penalty: f32,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub seed: Option<u32>,
    /// Token and what is added to its logit.
    pub logit_bias: Vec<(i32, f32)>,
    pub ignore_eos: bool,
    /// Tokens that end the answer, beside the model's own.
    pub stop_tokens: Vec<i32>,
}

/// What holds where a request says nothing: llama.cpp's own defaults, changed by the model card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repeat_penalty: f32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, repeat_penalty: 1.0 }
    }
}

/// How far back the repeat penalty looks, prompt included.
const REPEAT_WINDOW: usize = 64;

impl Sampling {
    /// Checks what was asked; `vocabulary` is the number of tokens.
    ///
    /// # Errors
    /// `InvalidArgument` that names the parameter and its range.
    pub fn new(asked: &Asked, defaults: &Defaults, vocabulary: i32) -> Result<Self> {
        let range = |name: &str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                Ok(value)
            } else {
                Err(Error::invalid(format!("`{name}` is {value}; it goes from {low} to {high}"))
                    .with_param(name))
            }
        };
        let repeat_penalty = asked.repeat_penalty.unwrap_or(defaults.repeat_penalty);
        let logit_bias = asked
            .logit_bias
            .iter()
            .map(|(id, &bias)| {
                let wrong = |what: String| Error::invalid(what).with_param("logit_bias");
                let token: i32 =
                    id.parse().ok().filter(|token| (0..vocabulary).contains(token)).ok_or_else(|| {
                        wrong(format!(
                            "`logit_bias` names token `{id}`; tokens go from 0 to {}",
                            vocabulary - 1
                        ))
                    })?;
                if !(-100.0..=100.0).contains(&bias) {
                    return Err(wrong(format!(
                        "`logit_bias` of token {id} is {bias}; it goes from -100 to 100"
                    )));
                }
                // -100 bans, as OpenAI documents; a finite value would leave a chance.
                Ok((token, if bias == -100.0 { f32::NEG_INFINITY } else { bias }))
            })
            .collect::<Result<_>>()?;
        let stop_tokens = asked
            .stop_token_ids
            .iter()
            .map(|&id| {
                let token = i32::try_from(id).ok().filter(|token| *token < vocabulary);
                token.ok_or_else(|| {
                    let last = vocabulary - 1;
                    Error::invalid(format!("`stop_token_ids` names token {id}; tokens go from 0 to {last}"))
                        .with_param("stop_token_ids")
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            temperature: range("temperature", asked.temperature.unwrap_or(defaults.temperature), 0.0, 2.0)?,
            top_k: asked.top_k.unwrap_or(defaults.top_k) as usize,
            top_p: range("top_p", asked.top_p.unwrap_or(defaults.top_p), 0.0, 1.0)?,
            min_p: range("min_p", asked.min_p.unwrap_or(defaults.min_p), 0.0, 1.0)?,
            repeat_penalty: range("repeat_penalty", repeat_penalty, 0.01, 10.0)?,
            frequency_penalty: range("frequency_penalty", asked.frequency_penalty.unwrap_or(0.0), -2.0, 2.0)?,
            presence_penalty: range("presence_penalty", asked.presence_penalty.unwrap_or(0.0), -2.0, 2.0)?,
            seed: asked.seed,
            logit_bias,
            ignore_eos: asked.ignore_eos,
            stop_tokens,
        })
    }
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub token: i32,
    pub logit: f32,
}

/// What a grammar allows at this place.
pub trait Allow {
    /// Whether this token may come.
    ///
    /// # Errors
    /// When it takes too much to say.
    fn allows(&mut self, token: i32) -> Result<bool>;
    /// Removes the candidates that may not come.
    ///
    /// # Errors
    /// When it takes too much to say.
    fn retain(&mut self, candidates: &mut Vec<Candidate>) -> Result<()>;
}

/// The sampler of one answer: its random numbers, and what it has seen.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
    /// The last tokens, prompt included.
    recent: VecDeque<i32>,
    /// How often each token was generated.
    counts: HashMap<i32, u32>,
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// `prompt`: for the repeat penalty. `banned` never come (`ignore_eos`). `stream` tells choices of one request
    /// apart.
    pub fn new(mut sampling: Sampling, prompt: &[i32], banned: &[i32], stream: u32) -> Self {
        let seed = sampling.seed.map_or_else(entropy, u64::from);
        sampling.logit_bias.extend(banned.iter().map(|&token| (token, f32::NEG_INFINITY)));
        let recent = prompt[prompt.len().saturating_sub(REPEAT_WINDOW)..].iter().copied().collect();
        Self {
            random: Random::new(seed, stream),
            sampling,
            recent,
            counts: HashMap::new(),
            adjusted: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// Chooses a token and remembers it.
    ///
    /// # Errors
    /// `InvalidArgument` when the bias leaves nothing that could come; `Internal` when nothing can: no finite logit, or a
    /// grammar that allows none.
    pub fn next(&mut self, logits: &[f32], mut grammar: Option<&mut dyn Allow>) -> Result<i32> {
        let token = if self.changes_logits() {
            let mut adjusted = std::mem::take(&mut self.adjusted);
            self.adjust(logits, &mut adjusted);
            let token = self.choose(&adjusted, again(&mut grammar));
            self.adjusted = adjusted;
            token?
        } else {
            self.choose(logits, again(&mut grammar))?
        };
        let Some(token) = token else { return Err(self.nothing(logits, grammar)) };
        if self.recent.len() == REPEAT_WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_default() += 1;
        Ok(token)
    }

    /// Why no token can come.
    fn nothing(&mut self, logits: &[f32], grammar: Option<&mut dyn Allow>) -> Error {
        let held =
            if grammar.is_some() { "that the grammar or the schema allows here" } else { "to choose from" };
        match self.choose(logits, grammar) {
            // Without the bias something could.
            Ok(Some(_)) => {
                Error::invalid(format!("`logit_bias` (or `ignore_eos`) bans every token {held}: ban fewer"))
                    .with_param("logit_bias")
            }
            Ok(None) => Error::internal(
                "no token can come: the model's logits are not finite, as those of a damaged file are (`backplane pull` fetches it \
                 again), or the grammar allows none",
            ),
            Err(error) => error,
        }
    }

    fn changes_logits(&self) -> bool {
        let s = &self.sampling;
        !s.logit_bias.is_empty()
            || s.repeat_penalty != 1.0
            || s.frequency_penalty != 0.0
            || s.presence_penalty != 0.0
    }

    fn adjust(&self, logits: &[f32], adjusted: &mut Vec<f32>) {
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        let s = &self.sampling;
        if s.repeat_penalty != 1.0 {
            for (i, &token) in self.recent.iter().enumerate() {
                let seen = self.recent.iter().take(i).any(|&earlier| earlier == token);
                if let (false, Some(logit)) = (seen, adjusted.get_mut(token as usize)) {
                    *logit = if *logit > 0.0 { *logit / s.repeat_penalty } else { *logit * s.repeat_penalty };
                }
            }
        }
        for (&token, &count) in &self.counts {
            if let Some(logit) = adjusted.get_mut(token as usize) {
                *logit -= count as f32 * s.frequency_penalty + s.presence_penalty;
            }
        }
        for &(token, bias) in &s.logit_bias {
            if let Some(logit) = adjusted.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }

    fn choose(&mut self, logits: &[f32], grammar: Option<&mut dyn Allow>) -> Result<Option<i32>> {
        let mut candidates = std::mem::take(&mut self.candidates);
        let token = match grammar {
            None => {
                self.keep(logits, &mut candidates);
                Ok(self.draw(&candidates))
            }
            Some(grammar) => {
                // A grammar over the whole vocabulary takes longer than the model; what the model wants is allowed
                // most of the time, so ask about that alone first. The draw is not repeated for an allowed token,
                // so the distribution of what is allowed is unchanged: a rejected draw is followed by a new one
                // among the allowed.
                self.keep(logits, &mut candidates);
                let drawn = self.draw(&candidates);
                match drawn.map_or(Ok(false), |token| grammar.allows(token)) {
                    Ok(true) => Ok(drawn),
                    Ok(false) => self.choose_allowed(logits, grammar, &mut candidates),
                    Err(error) => Err(error),
                }
            }
        };
        self.candidates = candidates;
        token
    }

    /// Looks for allowed tokens among more and more of the likeliest.
    fn choose_allowed(
        &mut self,
        logits: &[f32],
        grammar: &mut dyn Allow,
        candidates: &mut Vec<Candidate>,
    ) -> Result<Option<i32>> {
        let total = logprobs::log_sum_exp(logits);
        for reach in [64, 1024, usize::MAX] {
            let whole = reach >= logits.len();
            top_k(logits, reach.min(logits.len()), candidates);
            let Some(floor) = candidates.last().map(|c| c.logit) else { return Ok(None) };
            let seen: f32 = candidates.iter().map(|c| (c.logit - total).exp()).sum();
            grammar.retain(candidates)?;
            let Some(best) = candidates.first().copied() else {
                if whole {
                    return Ok(None);
                }
                continue;
            };
            if self.sampling.temperature == 0.0 {
                return Ok(Some(best.token));
            }
            // What was not looked at may weigh something: look further unless it cannot matter.
            let allowed: f32 = candidates.iter().map(|c| (c.logit - total).exp()).sum();
            let enough = whole
                || (self.sampling.top_k != 0 && candidates.len() >= self.sampling.top_k)
                || (self.sampling.min_p > 0.0 && floor < best.logit + self.sampling.min_p.ln())
                || (1.0 - seen) < 1e-4 * allowed;
            if enough {
                if self.sampling.top_k != 0 {
                    candidates.truncate(self.sampling.top_k);
                }
                let total = sum(candidates, 1.0);
                self.truncate(candidates, total);
                return Ok(self.draw(candidates));
            }
        }
        Ok(None)
    }

    /// Fills `candidates` with what top-k, top-p and min-p leave, likeliest first.
    fn keep(&self, logits: &[f32], candidates: &mut Vec<Candidate>) {
        let s = &self.sampling;
        if s.temperature == 0.0 {
            candidates.clear();
            candidates.extend(greedy(logits));
            return;
        }
        if s.top_k != 0 {
            top_k(logits, s.top_k.min(logits.len()), candidates);
            let total = sum(candidates, 1.0);
            self.truncate(candidates, total);
            return;
        }
        // Without a top-k, most often 512 tokens reach far enough.
        let max = logprobs::max(logits);
        let total = (logprobs::log_sum_exp(logits) - max).exp();
        for reach in [512, logits.len()] {
            top_k(logits, reach.min(logits.len()), candidates);
            let before = candidates.len();
            self.truncate(candidates, total);
            if candidates.len() < before || before == logits.len() {
                return;
            }
        }
    }

    /// Top-p and min-p on sorted candidates. `total`: the sum of all weights relative to the likeliest.
    fn truncate(&self, candidates: &mut Vec<Candidate>, total: f32) {
        let Some(best) = candidates.first().map(|c| c.logit) else { return };
        let s = &self.sampling;
        if s.top_p < 1.0 {
            let wanted = s.top_p * total;
            let mut reached = 0.0;
            let keep = candidates
                .iter()
                .position(|c| {
                    reached += (c.logit - best).exp();
                    reached >= wanted
                })
                .map_or(candidates.len(), |last| last + 1);
            candidates.truncate(keep);
        }
        if s.min_p > 0.0 {
            let floor = best + s.min_p.ln();
            let keep = candidates.partition_point(|c| c.logit >= floor).max(1);
            candidates.truncate(keep);
        }
    }

    /// Draws by weight at the temperature; the first of them when greedy.
    fn draw(&mut self, candidates: &[Candidate]) -> Option<i32> {
        let best = candidates.first()?;
        let temperature = self.sampling.temperature;
        if temperature == 0.0 || candidates.len() == 1 {
            return Some(best.token);
        }
        let weight = |c: &Candidate| f64::from(((c.logit - best.logit) / temperature).exp());
        let mut left = self.random.unit() * candidates.iter().map(weight).sum::<f64>();
        for candidate in candidates {
            left -= weight(candidate);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        Some(best.token)
    }
}

/// Lends what will be needed once more.
fn again<'a>(grammar: &'a mut Option<&mut dyn Allow>) -> Option<&'a mut dyn Allow> {
    match grammar {
        Some(grammar) => Some(&mut **grammar),
        None => None,
    }
}

fn sum(candidates: &[Candidate], temperature: f32) -> f32 {
    let best = candidates.first().map_or(0.0, |c| c.logit);
    candidates.iter().map(|c| ((c.logit - best) / temperature).exp()).sum()
}

/// The likeliest token; of equals the one with the lowest number.
pub fn greedy(logits: &[f32]) -> Option<Candidate> {
    let max = logprobs::max(logits);
    let token = logits.iter().position(|&logit| logit == max)?;
    (max > f32::NEG_INFINITY).then_some(Candidate { token: token as i32, logit: max })
}

/// The `k` likeliest tokens, likeliest first; of equals those with the lowest numbers. Impossible ones are left out.
///
/// One pass that mostly compares blocks with the weakest token kept so far.
pub fn top_k(logits: &[f32], k: usize, top: &mut Vec<Candidate>) {
    const BLOCK: usize = 64;
    let order = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token));
    top.clear();
    if k == 0 {
        return;
    }
    let room = (2 * k).max(128);
    let mut floor = f32::NEG_INFINITY;
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        if logprobs::max(values) <= floor {
            continue;
        }
        for (i, &logit) in values.iter().enumerate() {
            if logit > floor {
                top.push(Candidate { token: (block * BLOCK + i) as i32, logit });
            }
        }
        if top.len() >= room {
            top.select_nth_unstable_by(k - 1, order);
            top.truncate(k);
            floor = top[k - 1].logit;
        }
    }
    if top.len() > k {
        top.select_nth_unstable_by(k - 1, order);
        top.truncate(k);
    }
    top.sort_unstable_by(order);
}

/// SplitMix64: small, and the same everywhere, so a seed means the same answer in every build.
///
/// # Source
/// Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u32) -> Self {
        let mut random = Self(seed ^ (u64::from(stream) << 32));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A seed nobody can guess: the standard library keys its hash maps with one.
fn entropy() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling() -> Sampling {
        let defaults = Defaults { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0 };
        Sampling::new(&Asked { seed: Some(1), ..Asked::default() }, &defaults, 1000).unwrap()
    }

    fn draws(sampling: Sampling, logits: &[f32], n: usize) -> Vec<f64> {
        let mut counts = vec![0f64; logits.len()];
        let mut sampler = Sampler::new(sampling, &[], &[], 0);
        for _ in 0..n {
            counts[sampler.next(logits, None).unwrap() as usize] += 1.0 / n as f64;
        }
        counts
    }

    /// Only even tokens.
    struct Even;
    impl Allow for Even {
        fn allows(&mut self, token: i32) -> Result<bool> {
            Ok(token % 2 == 0)
        }
        fn retain(&mut self, candidates: &mut Vec<Candidate>) -> Result<()> {
            candidates.retain(|c| c.token % 2 == 0);
            Ok(())
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let p: [f32; 4] = [0.5, 0.3, 0.15, 0.05];
        let seen = draws(sampling(), &p.map(f32::ln), 20_000);
        for (seen, p) in seen.iter().zip(p) {
            assert!((seen - f64::from(p)).abs() < 0.012, "{seen} is not near {p}");
        }
    }

    #[test]
    fn top_p_and_min_p_cut_the_tail() {
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        let seen = draws(Sampling { top_p: 0.79, ..sampling() }, &logits, 500);
        assert!(seen[0] > 0.0 && seen[1] > 0.0 && seen[2] == 0.0 && seen[3] == 0.0);
        let seen = draws(Sampling { min_p: 0.25, ..sampling() }, &logits, 500);
        assert!(seen[2] > 0.0 && seen[3] == 0.0);
        let seen = draws(Sampling { top_k: 2, ..sampling() }, &logits, 500);
        assert!(seen[1] > 0.0 && seen[2] == 0.0);
    }

    #[test]
    fn a_grammar_leaves_the_distribution_of_what_it_allows() {
        let p: [f32; 4] = [0.2, 0.5, 0.1, 0.2];
        let mut sampler = Sampler::new(sampling(), &[], &[], 0);
        let mut first = 0;
        for _ in 0..20_000 {
            let token = sampler.next(&p.map(f32::ln), Some(&mut Even)).unwrap();
            assert_eq!(token % 2, 0);
            first += u32::from(token == 0);
        }
        assert!((f64::from(first) / 20_000.0 - 2.0 / 3.0).abs() < 0.012);
    }

    #[test]
    fn an_allowed_token_is_found_however_unlikely() {
        let mut logits = vec![10.0f32; 3000];
        for logit in logits.iter_mut().step_by(2) {
            *logit = f32::NEG_INFINITY;
        }
        logits[2998] = -5.0;
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..sampling() }, &[], &[], 0);
        assert_eq!(sampler.next(&logits, Some(&mut Even)).unwrap(), 2998);
    }

    #[test]
    fn a_bias_that_leaves_nothing_is_the_caller_s_mistake() {
        let logits = [0.0f32; 4];
        let banned = |tokens: &[i32]| Sampling {
            logit_bias: tokens.iter().map(|&token| (token, f32::NEG_INFINITY)).collect(),
            ..sampling()
        };
        let mut sampler = Sampler::new(banned(&[0, 2]), &[], &[], 0);
        let error = sampler.next(&logits, Some(&mut Even)).unwrap_err();
        assert_eq!(error.code, backplane_plugin::Code::InvalidArgument);
        assert!(error.details["param"] == "logit_bias" && error.message.contains("schema"), "{error}");
        assert!(matches!(sampler.next(&logits, None), Ok(1 | 3)));
        let mut sampler = Sampler::new(banned(&[0, 1, 2, 3]), &[], &[], 0);
        assert_eq!(sampler.next(&logits, None).unwrap_err().details["param"], "logit_bias");
        let nothing = sampler.next(&[f32::NAN; 4], None).unwrap_err();
        assert_eq!(nothing.code, backplane_plugin::Code::Internal);
    }

    #[test]
    fn penalties_and_bias_change_the_choice() {
        let greedy = Sampling { temperature: 0.0, ..sampling() };
        let logits = [2.0, 1.9, 1.0];
        let mut s = Sampler::new(Sampling { presence_penalty: 1.0, ..greedy.clone() }, &[], &[], 0);
        assert_eq!(s.next(&logits, None).unwrap(), 0);
        assert_eq!(s.next(&logits, None).unwrap(), 1);
        let mut s = Sampler::new(Sampling { repeat_penalty: 1.5, ..greedy.clone() }, &[0], &[], 0);
        assert_eq!(s.next(&logits, None).unwrap(), 1);
        let mut s = Sampler::new(Sampling { logit_bias: vec![(2, 5.0)], ..greedy.clone() }, &[], &[], 0);
        assert_eq!(s.next(&logits, None).unwrap(), 2);
        let mut s = Sampler::new(greedy, &[], &[0], 0);
        assert_eq!(s.next(&logits, None).unwrap(), 1);
    }

    #[test]
    fn the_same_seed_draws_the_same_and_choices_differ() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32).sin()).collect();
        let run = |seed, stream| {
            let mut s = Sampler::new(Sampling { seed: Some(seed), ..sampling() }, &[], &[], stream);
            (0..30).map(|_| s.next(&logits, None).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(7, 0), run(7, 0));
        assert_ne!(run(7, 0), run(8, 0));
        assert_ne!(run(7, 0), run(7, 1));
    }

    #[test]
    fn no_finite_logit_is_an_error() {
        let mut s = Sampler::new(sampling(), &[], &[], 0);
        assert!(s.next(&[f32::NAN; 8], None).is_err());
        assert!(s.next(&[f32::NEG_INFINITY; 8], None).is_err());
    }

    #[test]
    fn a_request_says_more_than_a_card_and_a_card_more_than_nothing() {
        let card: Defaults =
            serde_json::from_value(serde_json::json!({"temperature": 0.2, "top_p": 0.9})).unwrap();
        let unsaid = Sampling::new(&Asked::default(), &card, 100).unwrap();
        assert_eq!((unsaid.temperature, unsaid.top_p, unsaid.top_k), (0.2, 0.9, 40));
        let asked = Asked { temperature: Some(1.0), top_p: Some(1.0), ..Asked::default() };
        let said = Sampling::new(&asked, &card, 100).unwrap();
        assert_eq!((said.temperature, said.top_p), (1.0, 1.0));
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let check = |asked: Asked, param: &str| {
            let error = Sampling::new(&asked, &Defaults::default(), 100).unwrap_err();
            assert_eq!(error.details["param"], param, "{error}");
        };
        check(Asked { temperature: Some(-1.0), ..Asked::default() }, "temperature");
        check(Asked { temperature: Some(f32::NAN), ..Asked::default() }, "temperature");
        check(Asked { top_p: Some(1.1), ..Asked::default() }, "top_p");
        check(Asked { frequency_penalty: Some(3.0), ..Asked::default() }, "frequency_penalty");
        check(Asked { logit_bias: [("100".into(), 1.0)].into(), ..Asked::default() }, "logit_bias");
        check(Asked { logit_bias: [("x".into(), 1.0)].into(), ..Asked::default() }, "logit_bias");
    }

    proptest! {
        #[test]
        fn top_k_is_what_sorting_gives(
            logits in proptest::collection::vec(prop_oneof![-9f32..9.0, Just(1.0)], 1..900),
            k in 1usize..200,
        ) {
            let mut expected: Vec<Candidate> =
                logits.iter().enumerate().map(|(i, &logit)| Candidate { token: i as i32, logit }).collect();
            expected.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
            expected.truncate(k);
            let mut top = Vec::new();
            top_k(&logits, k, &mut top);
            prop_assert_eq!(top, expected);
        }
    }
}
