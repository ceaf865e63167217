//! The actor that looks after the others.

use super::{Restarts, Snapshot, Watched};
use crate::actor::guarded;
use crate::info::{Health, PartState};
use actix::{Actor, AsyncContext, Context, Handler, Message, Supervised};
use std::time::Duration;

/// How often it looks.
const TICK: Duration = Duration::from_millis(500);

/// Looks at every part and publishes what it sees.
pub struct SupervisorActor {
    watched: Vec<Watched>,
    snapshot: Snapshot,
    restarts: Restarts,
}

impl SupervisorActor {
    pub fn new(watched: Vec<Watched>, snapshot: Snapshot, restarts: Restarts) -> Self {
        Self { watched, snapshot, restarts }
    }

    fn look(&mut self) {
        let parts: Vec<_> = self.watched.iter().map(|watched| (watched.look)()).collect();
        let before = self.snapshot.read();
        for part in &parts {
            let old = before.parts.iter().find(|other| other.part == part.part);
            if old.is_some_and(|old| old.state != part.state) {
                tracing::warn!(part = part.part, state = ?part.state, detail = part.detail, "health changed");
            }
        }
        let ready = parts.iter().all(|part| part.state != PartState::Down);
        self.snapshot.publish(Health { ready, parts });
    }

    fn guarded_look(&mut self, context: &mut Context<Self>) {
        let restarts = self.restarts.counter();
        // A panic has been logged and stops the actor; actix starts it again.
        let _ = guarded(self, context, "supervisor", &restarts, Self::look);
    }
}

impl Actor for SupervisorActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(16);
        self.guarded_look(context);
        context.run_interval(TICK, Self::guarded_look);
    }
}

impl Supervised for SupervisorActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        tracing::warn!(restarts = self.restarts.count(), "supervisor actor is back");
    }
}

/// Looks now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Look;

impl Handler<Look> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, _: Look, context: &mut Self::Context) {
        self.guarded_look(context);
    }
}

/// Panics: tests show that the actor comes back.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

#[cfg(test)]
impl Handler<Panic> for SupervisorActor {
    type Result = ();

    fn handle(&mut self, _: Panic, context: &mut Self::Context) {
        let restarts = self.restarts.counter();
        let _ = guarded(self, context, "supervisor", &restarts, |_| panic!("asked to"));
    }
}
