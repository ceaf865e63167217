//! The router: which model answers.
//!
//! [`RouterHandle::choose`] reads a published table and cached bids; it sends no message. The [`actor`] rebuilds the
//! table when the listing or the configuration changes.

pub mod actor;
mod score;
mod table;

pub use score::confidence;
pub use table::{Cascade, Names, RouteTable, Target};

use crate::catalog::{Entry, Shelf};
use crate::error::{Error, ErrorCode, Result};
use crate::job::{Candidate, Request};
use crate::loader::{Bid, BidQuery, CANNOT_SERVE, Waits};
use actix::Addr;
use actor::RouterActor;
use arc_swap::ArcSwap;
use dashmap::DashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A bid is asked for again after this long at the latest.
const MAX_BID_AGE: Duration = Duration::from_secs(60);
/// A plugin that did not bid is asked again after this long: asking costs requests a moment each.
const NO_BID_AGE: Duration = Duration::from_secs(2);
/// The code of a plugin that did not bid in time, or failed to.
const BID_FAILED: &str = "bid_failed";

/// What callers hold.
#[derive(Clone)]
pub struct RouterHandle {
    shared: Arc<Shared>,
    actor: Addr<RouterActor>,
}

/// What the actor publishes.
pub struct Shared {
    table: ArcSwap<RouteTable>,
    bids: DashMap<(Arc<str>, String), (Bid, Instant)>,
    shelf: Arc<Shelf>,
}

impl Shared {
    /// Nothing is known yet.
    pub fn new(shelf: Arc<Shelf>) -> Self {
        Self { table: ArcSwap::default(), bids: DashMap::new(), shelf }
    }
}

/// The decision for a request, before anything runs.
pub struct Choice {
    /// In the order of trying.
    pub candidates: Vec<Scored>,
    /// An answer with less confidence is tried again with the next candidate.
    pub escalate_below: Option<f64>,
    /// Whether the next candidate may stand in for one that is overloaded or down.
    pub may_replace: bool,
    /// For people.
    pub why: String,
    /// Models that would serve this and cannot.
    pub refused: Vec<Candidate>,
}

/// A model with its bid.
pub struct Scored {
    /// The model.
    pub entry: Arc<Entry>,
    /// 0..=1000.
    pub score: u16,
    /// For people.
    pub why: String,
}

impl RouterHandle {
    pub fn new(shared: Arc<Shared>, actor: Addr<RouterActor>) -> Self {
        Self { shared, actor }
    }

    /// The table in force.
    pub fn table(&self) -> Arc<RouteTable> {
        self.shared.table.load_full()
    }

    /// Whether the actor takes messages.
    pub fn is_alive(&self) -> bool {
        self.actor.connected()
    }

    /// Rebuilds the table from the listing and these names.
    ///
    /// # Errors
    /// When the router is gone.
    pub async fn rebuild(&self, names: Names) -> Result<()> {
        self.actor.send(actor::Rebuild { names }).await.map_err(|_| Error::shutting_down())
    }

    /// Orders the models that can answer. `trail` are the models that are waiting for this answer themselves.
    ///
    /// # Errors
    /// `model_not_found`, `capability_not_found`, that the model does not serve the capability, or does not see.
    pub fn choose(&self, request: &Request, trail: &[Arc<str>]) -> Result<Choice> {
        let (asked, capability) = (request.model.as_deref(), request.capability.as_str());
        let input_bytes = request.params.len() as u64;
        let pictures = request.has_pictures();
        if pictures {
            self.check_sight(asked, capability)?;
        }
        let fits = |entry: &Arc<Entry>| !pictures || entry.listed().sees();
        let table = self.shared.table.load();
        let mut choice = match asked {
            Some(asked) => match table.resolve(asked).ok_or_else(|| table.not_found(asked))? {
                Target::Model(model) => {
                    let served = table.capabilities(&model);
                    if !served.iter().any(|name| name == capability) {
                        return Err(Error::invalid(format!(
                            "model `{model}` does not serve `{capability}`; it serves {}",
                            listed(served)
                        ))
                        .with_reason("capability_not_served")
                        .with_param("model"));
                    }
                    let why = if *model == *asked { "asked for" } else { "asked for by another name" };
                    let entry = self.shared.shelf.find(&model)?;
                    Choice {
                        candidates: vec![Scored { entry, score: 1000, why: why.to_owned() }],
                        escalate_below: None,
                        may_replace: false,
                        why: why.to_owned(),
                        refused: Vec::new(),
                    }
                }
                Target::Route(name, cascade) => {
                    let candidates: Vec<Scored> = cascade
                        .models
                        .iter()
                        .filter(|model| table.capabilities(model).iter().any(|name| name == capability))
                        .filter_map(|model| self.shared.shelf.get(model))
                        .filter(fits)
                        .map(|entry| Scored { entry, score: 1000, why: format!("a step of route `{name}`") })
                        .collect();
                    if candidates.is_empty() {
                        return Err(Error::new(
                            ErrorCode::NotFound,
                            format!(
                                "none of the models of route `{name}` is installed and serves `{capability}`"
                            ),
                        )
                        .with_reason("model_not_found")
                        .with_param("model"));
                    }
                    Choice {
                        candidates,
                        escalate_below: Some(cascade.escalate_below),
                        may_replace: true,
                        why: format!("route `{name}`"),
                        refused: Vec::new(),
                    }
                }
            },
            None => self.by_bids(&table, capability, input_bytes, fits)?,
        };
        if !trail.is_empty() {
            choice.candidates.retain(|candidate| !trail.contains(&candidate.entry.name()));
        }
        if choice.candidates.is_empty() {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("the call of `{capability}` would wait for itself: its only model is waiting for the answer"),
            )
            .with_reason("call_cycle"));
        }
        Ok(choice)
    }

    /// That one of the models that a request for `asked` may go to sees pictures.
    ///
    /// # Errors
    /// `pictures_not_supported`, with those that do; `model_not_found`.
    pub fn check_sight(&self, asked: Option<&str>, capability: &str) -> Result<()> {
        let table = self.shared.table.load();
        let serving = table.serving(capability);
        let sees =
            |model: &&Arc<str>| self.shared.shelf.get(model).is_some_and(|entry| entry.listed().sees());
        let (who, meant): (_, Vec<_>) = match asked.map(|asked| table.resolve(asked).ok_or(asked)) {
            Some(Err(asked)) => return Err(table.not_found(asked)),
            Some(Ok(Target::Model(model))) => {
                let meant = serving.iter().filter(|name| **name == model).collect();
                (format!("model `{model}` does not see"), meant)
            }
            Some(Ok(Target::Route(route, cascade))) => {
                let meant = serving.iter().filter(|name| cascade.models.iter().any(|step| **step == ***name));
                (format!("no model of route `{route}` sees"), meant.collect())
            }
            None => (format!("no model here that serves `{capability}` sees"), serving.iter().collect()),
        };
        // That none of them serves this at all is another matter.
        if meant.is_empty() || meant.iter().any(sees) {
            return Ok(());
        }
        let others: Vec<String> = serving.iter().filter(sees).map(|model| model.to_string()).collect();
        let hint = match others.as_slice() {
            [] => "the card of one that does says `modalities = [\"text\", \"image\"]`".to_owned(),
            [one] => format!("`{one}` does"),
            some => format!("{} do", listed(some)),
        };
        let error = Error::invalid(format!("there is a picture in the messages, and {who} pictures; {hint}"));
        Err(error.with_reason("pictures_not_supported"))
    }

    fn by_bids(
        &self,
        table: &RouteTable,
        capability: &str,
        input_bytes: u64,
        fits: impl Fn(&Arc<Entry>) -> bool,
    ) -> Result<Choice> {
        let models = table.serving(capability);
        if models.is_empty() {
            let all: Vec<String> = table.all_capabilities().into_iter().map(|(name, _)| name).collect();
            return Err(Error::new(
                ErrorCode::NotFound,
                format!("nothing here serves `{capability}`; what is served: {}", listed(&all)),
            )
            .with_reason("capability_not_found"));
        }
        let mut candidates = Vec::new();
        let mut unable = Vec::new();
        let whole = |entry: &Arc<Entry>| !entry.listed().part;
        let entries = models.iter().filter_map(|model| self.shared.shelf.get(model));
        for entry in entries.filter(whole).filter(fits) {
            let bid = self.bid(&entry, capability, input_bytes);
            match bid.score {
                0 => unable.push((entry, bid)),
                score => candidates.push(Scored { entry, score, why: bid.text }),
            }
        }
        if candidates.is_empty() && unable.is_empty() {
            let parts: Vec<String> = models.iter().map(|model| model.to_string()).collect();
            let message = format!(
                "`{capability}` is served here by parts of other models alone; name one: {}",
                listed(&parts)
            );
            return Err(Error::invalid(message).with_reason("capability_not_served").with_param("model"));
        }
        if candidates.is_empty() {
            return Err(self.nobody(capability, &unable));
        }
        // By bid, then the open ones, then by name so that ties are always decided alike.
        candidates.sort_by_key(|candidate| {
            (std::cmp::Reverse(candidate.score), candidate.entry.backend().is_none(), candidate.entry.name())
        });
        let why = format!("best of {} bids", candidates.len());
        let refused = unable.into_iter().map(|(entry, bid)| Candidate {
            model: entry.name(),
            score: 0,
            confidence: None,
            refused: Some(bid.refusal),
            why: bid.text,
        });
        Ok(Choice { candidates, escalate_below: None, may_replace: true, why, refused: refused.collect() })
    }

    /// What to say where no model can serve.
    fn nobody(&self, capability: &str, unable: &[(Arc<Entry>, Bid)]) -> Error {
        // All for want of a licence: what whoever names the model is told as well.
        let licences = unable.iter().map(|(entry, _)| self.shared.shelf.unlicensed(&entry.listed()));
        if let Some(error) = licences.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().next()) {
            return error;
        }
        let message = match unable {
            [(_, only)] => only.text.clone(),
            all => {
                let mut all: Vec<_> = all.iter().map(|(entry, bid)| (entry.name(), &bid.text)).collect();
                all.sort();
                let all: Vec<String> = all.iter().map(|(name, why)| format!("`{name}`: {why}")).collect();
                format!("no model can serve `{capability}` now; {}", all.join("; "))
            }
        };
        // What all of them say is said; of several reasons none is the whole truth.
        let mut codes = unable.iter().map(|(_, bid)| &bid.refusal);
        let common = codes.next().filter(|first| codes.all(|code| code == *first));
        let reason = common.filter(|code| ![CANNOT_SERVE, BID_FAILED].contains(&code.as_ref()));
        let reason = reason.cloned().unwrap_or("load_failed".into());
        Error::new(ErrorCode::FailedPrecondition, message).with_reason(reason)
    }

    /// A plugin's bid, from the cache while it stands. No bid is one of 0 that says why.
    fn bid(&self, entry: &Entry, capability: &str, input_bytes: u64) -> Bid {
        let key = (entry.name(), capability.to_owned());
        let now = Instant::now();
        let known = self.shared.bids.get(&key).map(|known| known.clone());
        if let Some((bid, until)) = &known
            && now < *until
        {
            return bid.clone();
        }
        let listed = entry.listed();
        let query =
            BidQuery { capability, format: &listed.format, model_json: &listed.model_json, input_bytes };
        let bidder = self.shared.shelf.bidder(&listed, Waits::Request);
        let bidder = bidder.map_err(|error| (error.reason, error.message));
        let asked = bidder.and_then(|(plugin, _)| {
            plugin.bid(query, Waits::Request).map_err(|why| (BID_FAILED.into(), why))
        });
        let (bid, stands) = match asked {
            Ok(bid) => {
                let stands = Duration::from_millis(u64::from(bid.valid_ms)).min(MAX_BID_AGE);
                (bid, stands)
            }
            Err((refusal, text)) => match known {
                // A plugin that is busy for a moment can do what it could before.
                Some((last, _)) if refusal == BID_FAILED && last.score > 0 => (last, NO_BID_AGE),
                _ => (Bid { score: 0, quality: 0, host_bytes: 0, valid_ms: 0, refusal, text }, NO_BID_AGE),
            },
        };
        self.shared.bids.insert(key, (bid.clone(), Instant::now() + stands));
        bid
    }

    #[cfg(test)]
    pub fn actor(&self) -> &Addr<RouterActor> {
        &self.actor
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
