//! The actor that publishes the route table.

use super::Shared;
use super::table::{Names, RouteTable};
use crate::actor::guarded;
use actix::{Actor, AsyncContext, Context, Handler, Message, Supervised};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a changed listing is noticed.
const TICK: Duration = Duration::from_millis(250);

/// Rebuilds the table when the listing or the names change.
pub struct RouterActor {
    shared: Arc<Shared>,
    names: Names,
    built_from: u64,
    restarts: Arc<AtomicU64>,
}

impl RouterActor {
    pub fn new(shared: Arc<Shared>, restarts: Arc<AtomicU64>) -> Self {
        Self { shared, names: Names::default(), built_from: 0, restarts }
    }

    fn rebuild(&mut self) {
        let version = self.shared.shelf.version();
        let models = self.shared.shelf.entries().into_iter().map(|entry| {
            let listed = entry.listed();
            (listed.name.clone(), listed.capabilities.clone())
        });
        self.shared.table.store(Arc::new(RouteTable::new(models, self.names.clone())));
        self.shared.bids.clear();
        self.built_from = version;
    }

    fn look(&mut self, context: &mut Context<Self>) {
        let restarts = self.restarts.clone();
        // A panic has been logged and stops the actor; the supervisor starts it again.
        let _ = guarded(self, context, "router", &restarts, |actor, _| {
            if actor.built_from != actor.shared.shelf.version() {
                actor.rebuild();
            }
            let now = Instant::now();
            actor.shared.bids.retain(|_, (_, until)| now < *until);
        });
    }
}

impl Actor for RouterActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(64);
        context.run_interval(TICK, Self::look);
    }
}

impl Supervised for RouterActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.rebuild();
        tracing::warn!(restarts = self.restarts.load(Ordering::Relaxed), "router actor is back");
    }
}

/// Puts these names into force and rebuilds the table.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Rebuild {
    pub names: Names,
}

impl Handler<Rebuild> for RouterActor {
    type Result = ();

    fn handle(&mut self, message: Rebuild, context: &mut Self::Context) {
        let restarts = self.restarts.clone();
        let _ = guarded(self, context, "router", &restarts, |actor, _| {
            actor.names = message.names;
            actor.rebuild();
        });
    }
}

/// Panics after it has spoilt what it publishes: tests show that the actor comes back with what is right.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

#[cfg(test)]
impl Handler<Panic> for RouterActor {
    type Result = ();

    fn handle(&mut self, _: Panic, context: &mut Self::Context) {
        let restarts = self.restarts.clone();
        let _ = guarded(self, context, "router", &restarts, |actor, _| {
            actor.shared.table.store(Arc::default());
            panic!("asked to");
        });
    }
}
