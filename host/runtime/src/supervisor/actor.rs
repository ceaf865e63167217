//! The actor that looks after the others.

use super::{Restarts, Snapshot, Watched};
use crate::actor::{Panicked, blocking, guarded};
use crate::info::{Health, PartHealth, PartState};
use actix::fut::WrapFuture;
use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseActFuture,
    Supervised,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NAME: &str = "supervisor";
/// How often it looks.
const TICK: Duration = Duration::from_millis(500);
/// How long a look at a disk may take before what it looks at counts as down.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at every part and publishes what it sees.
pub struct SupervisorActor {
    watched: Arc<Vec<Watched>>,
    /// What the last look at a disk saw.
    disks: Vec<PartHealth>,
    /// Since when the present look at a disk is under way.
    looking: Option<Instant>,
    snapshot: Snapshot,
    restarts: Restarts,
}

impl SupervisorActor {
    pub fn new(watched: Vec<Watched>, snapshot: Snapshot, restarts: Restarts) -> Self {
        Self { watched: Arc::new(watched), disks: Vec::new(), looking: None, snapshot, restarts }
    }

    /// Publishes how everything is, with what is known of the disks.
    fn publish(&mut self) {
        let mut parts = looks(&self.watched, false);
        parts.extend(self.disks.iter().cloned().map(|mut part| {
            if let Some(since) = self.looking.filter(|since| PATIENCE < since.elapsed()) {
                part.state = PartState::Down;
                part.detail = format!("it has not answered for {} s", since.elapsed().as_secs());
            }
            part
        }));
        let restarts = self.restarts.count();
        parts.push(PartHealth { part: NAME, state: PartState::Ok, detail: String::new(), restarts });
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

    fn guarded_publish(&mut self, context: &mut Context<Self>) {
        let restarts = self.restarts.counter();
        // A panic has been logged and stops the actor; actix starts it again.
        let _ = guarded(self, context, NAME, &restarts, |actor, _| actor.publish());
    }

    /// Looks at the disks on a thread of its own, then publishes.
    fn look(&mut self) -> ResponseActFuture<Self, ()> {
        self.looking = Some(Instant::now());
        let watched = self.watched.clone();
        let seen = blocking(NAME, move || looks(&watched, true)).into_actor(self);
        Box::pin(seen.map(|seen, actor, context| {
            actor.looking = None;
            match seen {
                Ok(seen) => {
                    actor.disks = seen;
                    actor.guarded_publish(context);
                }
                Err(Panicked(_)) => {
                    actor.restarts.counter().fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    context.stop();
                }
            }
        }))
    }

    fn tick(&mut self, context: &mut Context<Self>) {
        if self.looking.is_none() {
            let look = self.look();
            context.spawn(look);
        } else {
            self.guarded_publish(context);
        }
    }
}

fn looks(watched: &[Watched], blocking: bool) -> Vec<PartHealth> {
    watched.iter().filter(|watched| watched.blocks == blocking).map(|watched| (watched.look)()).collect()
}

impl Actor for SupervisorActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(16);
        context.run_interval(TICK, Self::tick);
    }
}

impl Supervised for SupervisorActor {
    fn restarting(&mut self, context: &mut Self::Context) {
        // A look that was under way has died with the old context.
        self.looking = None;
        self.tick(context);
        tracing::warn!(restarts = self.restarts.count(), "supervisor actor is back");
    }
}

/// Looks now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Look;

impl Handler<Look> for SupervisorActor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Look, _: &mut Self::Context) -> Self::Result {
        self.look()
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
        let _ = guarded(self, context, NAME, &restarts, |_, _| panic!("asked to"));
    }
}
