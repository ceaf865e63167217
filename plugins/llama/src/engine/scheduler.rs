//! The one thread that owns the context: every step decodes a batch of whatever all slots need next.
//!
//! A step holds one token of each answer being made and a bounded share of the prompts being worked through, so that
//! a long prompt slows the others down and never stops them. Between two steps requests come, leave and start.

use super::choice::Choice;
use super::job::{Delta, Job, Push, Sink};
use super::loaded::Loaded;
use super::rating::Rater;
use super::slots::{self, Start, View};
use super::stats::Stats;
use super::{Config, Permits};
use crate::sys::Threads;
use backplane_plugin::Code;
use backplane_plugin::payload::Usage;
use backplane_plugin::payload::complete::PromptLogprob;
use backplane_plugin::{Error, Result};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// What the thread is told.
pub enum Message {
    /// Serve this.
    Job(Box<Job>, Box<dyn Sink>),
    /// End what is open, and end.
    Stop,
}

/// How long a step may take because of prompts, while answers are being made, and while none is: the pause that the
/// answers make, and the longest that a cancelled prompt keeps its slot.
const PROMPT_TIME_SHARED: f64 = 0.1;
const PROMPT_TIME_ALONE: f64 = 0.3;
/// Batches of at least this many tokens run a quarter faster (llama.cpp's attention works in tiles of 64).
const FULL_TILE: usize = 64;
/// How often readers that are behind are asked again.
const READER_WAIT: Duration = Duration::from_millis(1);
/// From this many tokens on, a step gains from the threads for prompts.
const MANY_TOKENS: usize = 16;

/// Most memory for the logits of prompt tokens that a step rates. llama.cpp keeps a row of the vocabulary for each:
/// 170 rows at 49 152 tokens and 55 at 151 936, so that rating is limited by a step's time before it is by this.
const RATED_BYTES: usize = 32 << 20;

/// The thread's state.
pub struct Scheduler<'m> {
    model: &'m LlamaModel,
    context: LlamaContext<'m>,
    threads: Option<Threads>,
    permits: Arc<dyn Permits>,
    config: &'m Config,
    /// Tokens one request may take in all.
    room: usize,
    vocabulary: usize,
    /// Whether a sequence's cache can be cut and copied.
    divisible: bool,
    eog: Vec<i32>,
    inbox: Receiver<Message>,
    stats: Arc<Stats>,
    slots: Vec<Slot>,
    waiting: VecDeque<Choice>,
    jobs: HashMap<u64, Open>,
    next_job: u64,
    clock: u64,
    batch: LlamaBatch<'static>,
    pace: Pace,
    rater: Rater,
}

/// A token of a step whose logits are wanted.
struct Output {
    /// Its place in the batch.
    at: i32,
    slot: usize,
    /// The place of the prompt's token that they rate; otherwise they choose the next.
    rates: Option<usize>,
}

/// A sequence of the context.
#[derive(Default)]
struct Slot {
    /// Tokens whose keys and values are in the cache, from position 0.
    cached: Vec<i32>,
    choice: Option<Choice>,
    touched: u64,
}

/// A request being served.
struct Open {
    job: Job,
    sink: Box<dyn Sink>,
    /// Pieces the reader had no room for.
    outbox: VecDeque<Delta>,
    /// Choices without their last piece.
    choices: u32,
    usage: Usage,
    /// Whether the first choice still works through a prompt whose tokens are reported; the others wait for it.
    rating: bool,
    logprob_sum: f64,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

impl<'m> Scheduler<'m> {
    pub fn new(
        loaded: &'m Loaded,
        context: LlamaContext<'m>,
        permits: Arc<dyn Permits>,
        stats: Arc<Stats>,
        inbox: Receiver<Message>,
    ) -> Self {
        let (model, config) = (&*loaded.model, &loaded.config);
        let vocab = model.vocab();
        let eog = (0..vocab.n_tokens()).filter(|&token| vocab.is_eog(LlamaToken(token))).collect();
        Self {
            threads: Threads::of(&context, config.threads()),
            divisible: !(model.is_recurrent() || model.is_hybrid()),
            slots: (0..config.slots).map(|_| Slot::default()).collect(),
            batch: LlamaBatch::new(config.batch as usize, 1),
            model,
            context,
            permits,
            room: loaded.plan.context as usize,
            vocabulary: usize::try_from(vocab.n_tokens()).unwrap_or(0),
            eog,
            inbox,
            stats,
            waiting: VecDeque::new(),
            jobs: HashMap::new(),
            next_job: 0,
            clock: 0,
            pace: Pace::default(),
            rater: Rater::default(),
            config,
        }
    }

    /// Serves until told to stop, or until nobody can tell any more.
    pub fn run(&mut self) {
        while self.receive() {
            self.flush_outboxes();
            self.drop_departed(Instant::now());
            self.start_waiting();
            self.count_busy();
            if let Err(error) = self.step() {
                self.fail_all(&error);
            }
            self.count_busy();
        }
        self.fail_all(&Error::new(Code::Unavailable, "the model was closed"));
    }

    /// Ends everything that is open.
    pub fn fail_all(&mut self, error: &Error) {
        self.waiting.clear();
        for slot in &mut self.slots {
            slot.choice = None;
            slot.cached.clear();
        }
        self.context.clear_kv_cache();
        for (_, open) in self.jobs.drain() {
            self.stats.leave();
            open.sink.finish(Err(error.clone()));
        }
    }

    fn count_busy(&self) {
        self.stats.set_busy(self.slots.iter().filter(|slot| slot.choice.is_some()).count());
    }

    /// Takes what came in; waits while there is nothing to do. False when it is time to stop.
    fn receive(&mut self) -> bool {
        let mut wait = if self.jobs.is_empty() { Some(None) } else { None };
        if wait.is_none() && !self.can_step() {
            wait = Some(Some(READER_WAIT));
        }
        if let Some(limit) = wait {
            let message = match limit {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(limit) => self.inbox.recv_timeout(limit),
            };
            match message {
                Ok(Message::Job(job, sink)) => self.admit(*job, sink),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Job(job, sink)) => self.admit(*job, sink),
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// Whether a step would decode anything.
    fn can_step(&self) -> bool {
        !self.waiting.is_empty() && self.slots.iter().any(|slot| slot.choice.is_none())
            || self
                .slots
                .iter()
                .any(|slot| slot.choice.as_ref().is_some_and(|choice| !self.is_paused(choice)))
    }

    /// Whether an answer waits for its reader, as a prompt that is reported does. Other prompts never do: others may
    /// wait for their work.
    fn is_paused(&self, choice: &Choice) -> bool {
        let open = self.jobs.get(&choice.job);
        (choice.next.is_some() || open.is_some_and(|open| open.rating))
            && open.is_none_or(|open| !open.outbox.is_empty())
    }

    fn admit(&mut self, job: Job, sink: Box<dyn Sink>) {
        let id = self.next_job;
        self.next_job += 1;
        let answer = answer_id();
        let usage = Usage { prompt_tokens: job.prompt.len() as u64, ..Usage::default() };
        let choices: Vec<Choice> = (0..job.choices)
            .map(|index| Choice::new(&job, id, index, &self.eog, &format!("{answer}{index}x")))
            .collect();
        self.stats.add_prompt(job.prompt.len());
        let nothing_to_make = job.max_tokens == 0 && job.rated.is_none();
        let open = Open {
            choices: job.choices,
            sink,
            outbox: VecDeque::new(),
            usage,
            rating: job.rated.is_some(),
            logprob_sum: 0.0,
            started: None,
            first_token: None,
            job,
        };
        let echo = open.job.echo.clone();
        self.jobs.insert(id, open);
        if !nothing_to_make {
            self.waiting.extend(choices);
            return;
        }
        for mut choice in choices {
            let mut delta = choice.cut();
            delta.text.insert_str(0, &echo);
            self.deliver(&choice, delta);
        }
    }

    /// Offers what readers had no room for.
    fn flush_outboxes(&mut self) {
        let mut done = Vec::new();
        for (&id, open) in &mut self.jobs {
            while let Some(delta) = open.outbox.front() {
                if open.sink.push(delta) == Push::Full {
                    break;
                }
                open.outbox.pop_front();
            }
            if open.choices == 0 && open.outbox.is_empty() {
                done.push(id);
            }
        }
        done.into_iter().for_each(|id| self.finish(id));
    }

    /// Ends requests that nobody waits for any more; touches no other.
    fn drop_departed(&mut self, now: Instant) {
        let departed: Vec<(u64, Error)> = self
            .jobs
            .iter()
            .filter_map(|(&id, open)| {
                if open.sink.is_gone() {
                    Some((id, Error::cancelled()))
                } else if open.job.terms.deadline.is_some_and(|deadline| deadline <= now) {
                    Some((
                        id,
                        Error::new(
                            Code::DeadlineExceeded,
                            "the deadline passed before the answer was complete",
                        ),
                    ))
                } else {
                    None
                }
            })
            .collect();
        for (id, error) in departed {
            self.abandon(id, error);
        }
    }

    fn abandon(&mut self, id: u64, error: Error) {
        self.waiting.retain(|choice| choice.job != id);
        self.clock += 1;
        let mut produced = 0;
        for slot in &mut self.slots {
            if let Some(choice) = slot.choice.take_if(|choice| choice.job == id) {
                produced += u64::from(choice.produced());
                slot.touched = self.clock;
            }
        }
        if let Some(open) = self.jobs.remove(&id) {
            self.stats.leave();
            let error = error
                .with_detail("prompt_tokens", open.usage.prompt_tokens)
                .with_detail("completion_tokens", open.usage.completion_tokens + produced);
            open.sink.finish(Err(error));
        }
    }

    /// Puts waiting choices into free slots.
    fn start_waiting(&mut self) {
        let mut i = 0;
        while i < self.waiting.len() {
            let choice = &self.waiting[i];
            let Some(open) = self.jobs.get(&choice.job) else {
                self.waiting.remove(i);
                continue;
            };
            let views: Vec<View<'_>> = self.slots.iter().map(|slot| slot.view(&self.jobs)).collect();
            let start = match (open.rating, choice.index) {
                // What is cached has no logits any more.
                (true, 0) => slots::oldest(&views).map(|slot| Start::Here { slot, keep: 0 }),
                (true, _) => Some(Start::Wait),
                (false, _) => slots::choose(&views, &open.job.prompt, self.divisible),
            };
            match start {
                None => return,
                Some(Start::Wait) => i += 1,
                Some(Start::Here { slot, keep }) => {
                    let keep = self.cut(slot, keep);
                    self.start(i, slot, keep);
                }
                Some(Start::Copy { slot, from, keep }) => {
                    self.cut(slot, 0);
                    let copied =
                        self.context.copy_kv_cache_seq(from as i32, slot as i32, Some(0), Some(keep as u32));
                    self.start(i, slot, if copied.is_ok() { keep } else { 0 });
                }
            }
        }
    }

    /// Forgets a slot's tokens from `keep` on; returns how many it could keep.
    fn cut(&mut self, slot: usize, keep: usize) -> usize {
        if keep == self.slots[slot].cached.len() {
            return keep;
        }
        let seq = Some(slot as u32);
        if keep > 0 && self.context.clear_kv_cache_seq(seq, Some(keep as u32), None) == Ok(true) {
            return keep;
        }
        // Forgetting a whole sequence always succeeds.
        let _ = self.context.clear_kv_cache_seq(seq, None, None);
        0
    }

    fn start(&mut self, waiting: usize, slot: usize, keep: usize) {
        let Some(choice) = self.waiting.remove(waiting) else { return };
        let Some(open) = self.jobs.get_mut(&choice.job) else { return };
        self.slots[slot].cached.clear();
        self.slots[slot].cached.extend_from_slice(&open.job.prompt[..keep]);
        if choice.index == 0 {
            open.usage.cached_tokens = keep as u64;
        }
        open.started.get_or_insert_with(Instant::now);
        self.stats.add_cached(keep);
        if let Some(rated) = &open.job.rated {
            if choice.index == 0 {
                // Nothing is before the first token: it has no probability.
                let first = if rated.range.start == 0 { rated.entry(0) } else { None };
                open.give_back(open.job.echo.clone(), first.into_iter().collect());
            }
        } else if !open.job.echo.is_empty() {
            let delta = Delta { index: choice.index, text: open.job.echo.clone(), ..Delta::default() };
            open.push(delta);
        }
        self.slots[slot].choice = Some(choice);
    }

    /// Decodes one batch and gives out what came of it.
    fn step(&mut self) -> Result<()> {
        self.batch.clear();
        let mut outputs: Vec<Output> = Vec::with_capacity(self.slots.len());
        let mut prompts: Vec<usize> = Vec::new();
        for i in 0..self.slots.len() {
            let Some(choice) = self.slots[i].choice.as_ref().filter(|choice| !self.is_paused(choice)) else {
                continue;
            };
            match choice.next {
                Some(token) => {
                    outputs.push(Output { at: self.batch.n_tokens(), slot: i, rates: None });
                    self.add(token, i, true)?;
                }
                None => prompts.push(i),
            }
        }
        let answers = outputs.len();
        let budget = self.pace.budget(answers > 0).min(self.config.batch as usize - answers);
        let needs = self.prompt_needs(&prompts);
        for (&i, share) in prompts.iter().zip(slots::share(budget, &needs)) {
            for _ in 0..share {
                let Some((token, output)) = self.prompt_token(i) else { break };
                self.add(token, i, output.is_some())?;
                outputs.extend(output);
            }
        }
        let tokens = self.batch.n_tokens() as usize;
        if tokens == 0 {
            return Ok(());
        }
        let prompt_tokens = tokens - answers;
        let want = if tokens >= MANY_TOKENS { self.config.prompt_threads() } else { self.config.threads() };
        let elapsed = {
            let grant = self.permits.acquire(want);
            if let Some(threads) = &mut self.threads {
                threads.set(&mut self.context, grant.threads);
            }
            let began = Instant::now();
            self.context.decode(&mut self.batch).map_err(|error| {
                Error::internal(format!("the model failed on a batch of {tokens} tokens: {error}"))
            })?;
            self.context.synchronize();
            began.elapsed()
        };
        self.stats.add_step(tokens, answers, prompt_tokens, elapsed);
        let rating = self.rate(&outputs);
        if prompt_tokens >= MANY_TOKENS {
            self.pace.note(tokens, (elapsed + rating).as_secs_f64());
        }
        for output in outputs.iter().filter(|output| output.rates.is_none()) {
            self.advance(output.slot, output.at);
        }
        Ok(())
    }

    /// How many tokens of each of these slots' prompts a step may take: what is left, and of prompts that are rated no
    /// more than their logits have memory for.
    fn prompt_needs(&self, prompts: &[usize]) -> Vec<usize> {
        let open =
            |slot: usize| self.slots[slot].choice.as_ref().and_then(|choice| self.jobs.get(&choice.job));
        let rated = prompts.iter().filter(|&&slot| open(slot).is_some_and(|open| open.rating)).count();
        let row = self.vocabulary * size_of::<f32>();
        let most = (RATED_BYTES / row.max(1) / rated.max(1)).max(1);
        let need = |&slot: &usize| {
            let Some(open) = open(slot) else { return 0 };
            let need = open.job.prompt.len() - self.slots[slot].cached.len();
            if open.rating { need.min(most) } else { need }
        };
        prompts.iter().map(need).collect()
    }

    /// Reports the prompts' tokens of a step, and ends what asked for nothing else. Returns how long it took.
    fn rate(&mut self, outputs: &[Output]) -> Duration {
        let began = Instant::now();
        for slot in 0..self.slots.len() {
            let Some(choice) = &self.slots[slot].choice else { continue };
            let Some(open) = self.jobs.get_mut(&choice.job).filter(|open| open.rating) else { continue };
            let mut entries: Vec<PromptLogprob> = Vec::new();
            for output in outputs.iter().filter(|output| output.slot == slot) {
                let Some(place) = output.rates else { continue };
                let Some(mut entry) = open.job.rated.as_ref().and_then(|rated| rated.entry(place)) else {
                    continue;
                };
                let logits = self.context.get_logits_ith(output.at);
                let alternatives = open.job.logprobs.unwrap_or(0);
                let (logprob, top) =
                    self.rater.rate(self.model, logits, open.job.prompt[place], alternatives);
                entry.logprob = Some(logprob);
                entry.top = top;
                entries.push(entry);
            }
            if !entries.is_empty() {
                open.give_back(String::new(), entries);
            }
            open.rating = self.slots[slot].cached.len() < open.job.prompt.len();
            if !open.rating && open.job.max_tokens == 0 {
                self.end_rated(slot);
            }
        }
        began.elapsed()
    }

    /// Ends the choices of a request that asked for its prompt alone.
    fn end_rated(&mut self, slot: usize) {
        let Some(first) = self.slots[slot].choice.take() else { return };
        self.clock += 1;
        self.slots[slot].touched = self.clock;
        let id = first.job;
        if let Some(open) = self.jobs.get_mut(&id) {
            open.first_token = Some(Instant::now());
        }
        let others: VecDeque<Choice>;
        (others, self.waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|choice| choice.job == id);
        for mut choice in std::iter::once(first).chain(others) {
            let delta = choice.cut();
            self.deliver(&choice, delta);
        }
    }

    /// The next token of a slot's prompt, and what its logits are wanted for.
    fn prompt_token(&self, slot: usize) -> Option<(i32, Option<Output>)> {
        let choice = self.slots[slot].choice.as_ref()?;
        let open = self.jobs.get(&choice.job)?;
        let place = self.slots[slot].cached.len();
        let token = *open.job.prompt.get(place)?;
        let at = self.batch.n_tokens();
        let next = place + 1;
        let rated = open.job.rated.as_ref().filter(|rated| open.rating && rated.range.contains(&next));
        let output = match rated {
            Some(_) => Some(Output { at, slot, rates: Some(next) }),
            None if next == open.job.prompt.len() && open.job.max_tokens > 0 => {
                Some(Output { at, slot, rates: None })
            }
            None => None,
        };
        Some((token, output))
    }

    fn add(&mut self, token: i32, slot: usize, logits: bool) -> Result<()> {
        let position = self.slots[slot].cached.len();
        self.batch
            .add(LlamaToken(token), position as i32, &[slot as i32], logits)
            .map_err(|error| Error::internal(format!("a step's batch is too small: {error}")))?;
        self.slots[slot].cached.push(token);
        Ok(())
    }

    /// Takes a slot's answer one token further.
    fn advance(&mut self, slot: usize, at: i32) {
        let Some(mut choice) = self.slots[slot].choice.take() else { return };
        let full = self.slots[slot].cached.len() >= self.room;
        let delta = choice.advance(self.model, self.context.get_logits_ith(at), full);
        self.stats.add_generated(1);
        if let Some(open) = self.jobs.get_mut(&choice.job) {
            open.first_token.get_or_insert_with(Instant::now);
        }
        match delta {
            Ok(delta) => {
                let ends = delta.finish.is_some();
                self.deliver(&choice, delta);
                if ends {
                    self.clock += 1;
                    self.slots[slot].touched = self.clock;
                } else {
                    self.slots[slot].choice = Some(choice);
                }
            }
            Err(error) => {
                let id = choice.job;
                self.abandon(id, error);
            }
        }
    }

    /// Hands a piece to its reader, and notes what its end means for the request.
    fn deliver(&mut self, choice: &Choice, mut delta: Delta) {
        let Some(open) = self.jobs.get_mut(&choice.job) else { return };
        if delta.finish.is_some() {
            open.choices -= 1;
            open.usage.completion_tokens += u64::from(choice.produced());
            open.logprob_sum += choice.logprob_sum;
            delta.dropped = open.job.dropped;
        }
        if delta != (Delta { index: delta.index, ..Delta::default() }) {
            open.push(delta);
        }
        if open.choices == 0 && open.outbox.is_empty() {
            let id = choice.job;
            self.finish(id);
        }
    }

    fn finish(&mut self, id: u64) {
        let Some(mut open) = self.jobs.remove(&id) else { return };
        self.stats.leave();
        let now = Instant::now();
        let usage = &mut open.usage;
        if open.job.terms.confidence && usage.completion_tokens > 0 {
            usage.mean_logprob = Some(open.logprob_sum / usage.completion_tokens as f64);
        }
        if let (Some(started), Some(first)) = (open.started, open.first_token) {
            usage.prefill_seconds = Some((first - started).as_secs_f64());
            usage.decode_seconds = Some((now - first).as_secs_f64());
            let queued = (started - open.job.arrived).as_secs_f64();
            usage.extra.insert("queue_seconds".into(), queued.into());
        }
        // Who has the end may look at the counters next.
        self.count_busy();
        open.sink.finish(Ok(open.usage));
    }
}

impl Slot {
    fn view<'a>(&'a self, jobs: &'a HashMap<u64, Open>) -> View<'a> {
        let planned = self
            .choice
            .as_ref()
            .filter(|choice| choice.next.is_none())
            .and_then(|choice| jobs.get(&choice.job))
            // One that is reported may stand still, for its reader; nobody is to wait for that.
            .filter(|open| !open.rating)
            .map_or(&[][..], |open| &open.job.prompt);
        View { cached: &self.cached, planned, busy: self.choice.is_some(), touched: self.touched }
    }
}

impl Open {
    /// Gives every choice the next piece of the prompt.
    fn give_back(&mut self, text: String, entries: Vec<PromptLogprob>) {
        for index in 0..self.job.choices {
            let (text, prompt_logprobs) = (text.clone(), entries.clone());
            self.push(Delta { index, text, prompt_logprobs, ..Delta::default() });
        }
    }

    /// Hands a piece over, after those that wait. A reader who left is noticed before the next step.
    fn push(&mut self, delta: Delta) {
        if !self.outbox.is_empty() || self.sink.push(&delta) == Push::Full {
            self.outbox.push_back(delta);
        }
    }
}

/// How many prompt tokens make a step of bearable length, learnt from the steps so far.
#[derive(Default)]
struct Pace {
    /// Seconds for a token.
    cost: Option<f64>,
}

impl Pace {
    fn budget(&self, shared: bool) -> usize {
        let (time, least) =
            if shared { (PROMPT_TIME_SHARED, MANY_TOKENS) } else { (PROMPT_TIME_ALONE, FULL_TILE) };
        match self.cost {
            None => FULL_TILE,
            Some(cost) => ((time / cost) as usize / MANY_TOKENS * MANY_TOKENS).max(least),
        }
    }

    fn note(&mut self, tokens: usize, seconds: f64) {
        let cost = (seconds / tokens as f64).max(1e-9);
        self.cost = Some(self.cost.map_or(cost, |old| 0.7 * old + 0.3 * cost));
    }
}

/// Tells call ids of different answers apart, whoever makes them.
fn answer_id() -> String {
    use std::hash::{BuildHasher, Hasher};
    format!("{:016x}", std::hash::RandomState::new().build_hasher().finish())
}
