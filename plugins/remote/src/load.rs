//! How busy an upstream says that it is: two gauges of its metrics, looked at while a model of it is open, so that the
//! router prefers the upstream where nobody waits.

use crate::client::Missing;
use crate::discover;
use crate::serve::Target;
use crate::settings::Flavour;
use backplane_plugin::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;

/// How often an upstream is looked at, and how long a bid that depends on it stands.
pub const EVERY: Duration = Duration::from_secs(2);

/// Requests at an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Those that are answered.
    pub running: f64,
    /// Those that wait for their turn.
    pub waiting: f64,
}

impl Load {
    /// Out of Prometheus' text format; `None` where the two gauges of this flavour are not in it.
    ///
    /// vLLM counts the requests of an adapter under the name of its base, llama.cpp's server has one model: all rows count.
    /// A Backplane has a row for each model that is open.
    pub fn read(text: &str, flavour: Flavour, model: &str) -> Option<Self> {
        let (running, waiting, label) = match flavour {
            Flavour::Openai | Flavour::Ollama => return None,
            Flavour::Vllm => ("vllm:num_requests_running", "vllm:num_requests_waiting", None),
            Flavour::LlamaCpp => ("llamacpp:requests_processing", "llamacpp:requests_deferred", None),
            Flavour::Backplane => {
                let label = format!("model=\"{}\"", model.replace('\\', "\\\\").replace('"', "\\\""));
                ("backplane_model_busy_slots", "backplane_model_queued", Some(label))
            }
        };
        let sum = |name: &str| {
            let rows = text.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                let (labels, value) = match rest.strip_prefix('{') {
                    Some(rest) => rest.rsplit_once('}')?,
                    None => ("", rest.strip_prefix(' ')?),
                };
                if label.as_ref().is_some_and(|label| !labels.contains(&**label)) {
                    return None;
                }
                value.split_whitespace().next()?.parse().ok().filter(|value| (0.0..1e9).contains(value))
            });
            rows.fold(None, |sum, value: f64| Some(sum.unwrap_or(0.0) + value))
        };
        Some(Self { running: sum(running)?, waiting: sum(waiting)? })
    }

    /// What is left of a bid: half, where one more waits than is served.
    pub fn lower(self, score: u16) -> u16 {
        let served = self.running + 1.0;
        ((f64::from(score) * served / (served + self.waiting)) as u16).max(1)
    }
}

/// The models that are open, by their upstream's address and their name there: what a bid looks up. Several cards may
/// name the same one.
#[derive(Debug, Default)]
pub struct Loads(Mutex<HashMap<(String, String), Open>>);

type Open = Vec<Weak<Target>>;

impl Loads {
    /// What this upstream said last, if a model of it is open and it says such a thing.
    pub fn of(&self, url: &str, model: &str) -> Option<Load> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&(url.to_owned(), model.to_owned()))?.iter().find_map(|target| target.upgrade()?.load())
    }

    /// Looks at the upstream of `target` from now on, until that is closed, or the upstream refuses to say. `context` is
    /// what it said of the model's when that was opened.
    pub fn watch(&self, url: &str, target: &Arc<Target>, context: Option<u32>, host: Host, runtime: &Handle) {
        if !target.client.has_metrics() {
            return;
        }
        self.add(url, target);
        runtime.spawn(look(Arc::downgrade(target), context, host));
    }

    fn add(&self, url: &str, target: &Arc<Target>) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, targets| {
            targets.retain(|target| target.strong_count() > 0);
            !targets.is_empty()
        });
        open.entry((url.to_owned(), target.model.clone())).or_default().push(Arc::downgrade(target));
    }
}

/// After how many looks it is asked for the context again, which another start may have changed.
const CONTEXT_AFTER: u32 = 30;

async fn look(target: Weak<Target>, mut context: Option<u32>, host: Host) {
    let mut turn = tokio::time::interval(EVERY);
    let mut looks = 0;
    loop {
        turn.tick().await;
        let Some(target) = target.upgrade() else { return };
        match target.client.metrics().await {
            Ok(text) => {
                target.note(Load::read(&text, target.client.flavour, &target.model));
                looks += 1;
                if CONTEXT_AFTER <= looks {
                    looks = 0;
                    context = compare(&target, context, host).await;
                }
            }
            Err(missing) => {
                // It may be another one that is there next.
                looks = CONTEXT_AFTER;
                // A load that is not known lowers no bid.
                target.note(None);
                if let Missing::ForGood(why) = missing {
                    let name = &target.client.name;
                    host.log(
                        Level::Warn,
                        format!(
                            "upstream `{name}` gives no metrics, so that who waits there lowers no bid of `{}`: {why}",
                            target.model
                        ),
                    );
                    return;
                }
            }
        }
    }
}

/// Tells whoever reads the log that the upstream serves another context than it did. What the host shows of a model is what was
/// said when it was opened.
async fn compare(target: &Target, before: Option<u32>, host: Host) -> Option<u32> {
    // One that was not asked for its context, or did not tell it, is not asked now.
    let was = before?;
    let Ok(found) = discover::model(&target.client, &target.model).await else { return before };
    let Some(now) = found.context.filter(|now| *now != was) else { return before };
    let (name, model) = (&target.client.name, &target.model);
    host.log(
        Level::Warn,
        format!(
            "upstream `{name}` serves `{model}` with a context of {now} now, and it was {was}: the model's own `context` is told anew \
             when it is opened anew (`backplane stop`)"
        ),
    );
    Some(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, Servers};
    use proptest::prelude::*;

    const VLLM: &str = "# HELP vllm:num_requests_running Number of requests in model execution batches.\n\
        # TYPE vllm:num_requests_running gauge\n\
        vllm:num_requests_running{engine=\"0\",model_name=\"llama\"} 8.0\n\
        vllm:num_requests_running{engine=\"1\",model_name=\"llama\"} 4.0\n\
        vllm:num_requests_waiting{engine=\"0\",model_name=\"llama\"} 3.0\n\
        vllm:num_requests_waiting{engine=\"1\",model_name=\"llama\"} NaN\n\
        vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 3.0\n";

    #[test]
    fn each_flavour_has_names_of_its_own() {
        let load = |running, waiting| Some(Load { running, waiting });
        assert_eq!(Load::read(VLLM, Flavour::Vllm, "adapter"), load(12.0, 3.0));
        assert_eq!(Load::read(VLLM, Flavour::LlamaCpp, "llama"), None);
        let llama = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 1 1763770000000\n";
        assert_eq!(Load::read(llama, Flavour::LlamaCpp, "m"), load(2.0, 1.0));
        let ours = "backplane_model_busy_slots{model=\"a\"} 4\nbackplane_model_busy_slots{model=\"b\"} 1\n\
                    backplane_model_queued{model=\"a\"} 9\nbackplane_model_queued{model=\"b\"} 0\n";
        assert_eq!(Load::read(ours, Flavour::Backplane, "b"), load(1.0, 0.0));
        assert_eq!(Load::read(ours, Flavour::Backplane, "c"), None);
        assert_eq!(Load::read(ours, Flavour::Openai, "b"), None);
    }

    #[test]
    fn who_waits_lowers_a_bid_and_who_is_served_does_not() {
        let lower = |running, waiting| Load { running, waiting }.lower(500);
        assert_eq!((lower(0.0, 0.0), lower(40.0, 0.0)), (500, 500));
        assert_eq!((lower(9.0, 10.0), lower(0.0, 1e8)), (250, 1));
    }

    #[test]
    fn of_two_cards_of_a_model_the_one_that_stays_is_heard() {
        let target = |waiting| {
            let upstream = toml::from_str("url = 'http://127.0.0.1:1/v1'").unwrap();
            let client = Client::new(&upstream, &Servers::default()).unwrap();
            let target = Arc::new(Target::new(client, "m".to_owned(), None));
            target.note(Some(Load { running: 0.0, waiting }));
            target
        };
        let (loads, first, second) = (Loads::default(), target(1.0), target(2.0));
        for target in [&first, &second] {
            loads.add("u", target);
        }
        let waiting = || loads.of("u", "m").map(|load| load.waiting);
        assert_eq!(waiting(), Some(1.0));
        drop(second);
        assert_eq!(waiting(), Some(1.0));
        drop(first);
        assert_eq!((waiting(), loads.of("u", "n")), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(vllm:num_requests_(running|waiting)(\\PC{0,12}| [0-9]{1,12}|\\{[^}]{0,9}\\} [-0-9e]{1,9})\n){0,6}") {
            if let Some(load) = Load::read(&text, Flavour::Vllm, "m") {
                prop_assert!(load.running >= 0.0 && load.waiting >= 0.0 && load.lower(1000) > 0);
            }
        }
    }
}
