//! The actor that owns the keys.

use super::{AuthError, CreatedKey, KeyInfo, KeyRecord, KeyRing, NewKey, make, unix};
use crate::actor::guarded;
use crate::store::KeyStore;
use actix::{Actor, AsyncContext, Context, Handler, Message, Supervised};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// How often the times of use are written down.
const TOUCH: Duration = Duration::from_secs(60);

/// Owns the keys: writes them through the store, then publishes them.
pub struct AuthActor {
    store: Arc<dyn KeyStore>,
    keys: Vec<KeyRecord>,
    published: Arc<ArcSwap<KeyRing>>,
    restarts: Arc<AtomicU64>,
}

impl AuthActor {
    pub fn new(
        store: Arc<dyn KeyStore>,
        keys: Vec<KeyRecord>,
        published: Arc<ArcSwap<KeyRing>>,
        restarts: Arc<AtomicU64>,
    ) -> Self {
        Self { store, keys, published, restarts }
    }

    fn publish(&mut self) {
        self.remember_use();
        self.published.store(Arc::new(KeyRing::new(&self.keys)));
    }

    /// Takes the times of use from the ring. Returns those that are new.
    fn remember_use(&mut self) -> Vec<(String, i64)> {
        let ring = self.published.load();
        let mut new = Vec::new();
        for key in &mut self.keys {
            let Some(ringed) = ring.keys.get(&key.id) else { continue };
            let used = ringed.used_at.load(Ordering::Relaxed);
            if used != 0 && key.last_used_at != Some(used) {
                key.last_used_at = Some(used);
                new.push((key.id.clone(), used));
            }
        }
        new
    }

    fn create(&mut self, new: NewKey) -> Result<CreatedKey, AuthError> {
        let (record, secret) = make(new, unix(SystemTime::now()))?;
        self.store.add_key(&record)?;
        let info = KeyInfo::from(&record);
        self.keys.push(record);
        self.publish();
        Ok(CreatedKey { secret, info })
    }

    fn revoke(&mut self, id: &str) -> Result<KeyInfo, AuthError> {
        let now = unix(SystemTime::now());
        let key = self
            .keys
            .iter_mut()
            .find(|key| key.id == id)
            .ok_or_else(|| AuthError::NotFound(id.to_owned()))?;
        if key.revoked_at.is_none() {
            self.store.revoke_key(id, now)?;
            key.revoked_at = Some(now);
        }
        let info = KeyInfo::from(&*key);
        self.publish();
        Ok(info)
    }

    fn write_use(&mut self, context: &mut Context<Self>) {
        let restarts = self.restarts.clone();
        // A panic has been logged and stops the actor; the supervisor starts it again.
        let _ = guarded(self, context, "auth", &restarts, |actor| {
            let used = actor.remember_use();
            if !used.is_empty()
                && let Err(error) = actor.store.touch_keys(&used)
            {
                tracing::warn!(%error, "times of use could not be written");
            }
        });
    }
}

impl Actor for AuthActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(256);
        context.run_interval(TOUCH, Self::write_use);
    }
}

impl Supervised for AuthActor {
    fn restarting(&mut self, _: &mut Self::Context) {
        match self.store.keys() {
            Ok(keys) => {
                self.keys = keys;
                self.publish();
            }
            // What is published stays in force.
            Err(error) => tracing::error!(%error, "keys could not be read again"),
        }
        tracing::warn!(restarts = self.restarts.load(Ordering::Relaxed), "auth actor is back");
    }
}

/// Makes a key.
#[derive(Message)]
#[rtype(result = "Result<CreatedKey, AuthError>")]
pub struct Create(pub NewKey);

/// Every key.
#[derive(Message)]
#[rtype(result = "Result<Vec<KeyInfo>, AuthError>")]
pub struct List;

/// Revokes a key.
#[derive(Message)]
#[rtype(result = "Result<KeyInfo, AuthError>")]
pub struct Revoke(pub String);

impl Handler<Create> for AuthActor {
    type Result = Result<CreatedKey, AuthError>;

    fn handle(&mut self, message: Create, context: &mut Self::Context) -> Self::Result {
        let restarts = self.restarts.clone();
        guarded(self, context, "auth", &restarts, |actor| actor.create(message.0))?
    }
}

impl Handler<List> for AuthActor {
    type Result = Result<Vec<KeyInfo>, AuthError>;

    fn handle(&mut self, _: List, context: &mut Self::Context) -> Self::Result {
        let restarts = self.restarts.clone();
        Ok(guarded(self, context, "auth", &restarts, |actor| {
            actor.remember_use();
            actor.keys.iter().map(KeyInfo::from).collect()
        })?)
    }
}

impl Handler<Revoke> for AuthActor {
    type Result = Result<KeyInfo, AuthError>;

    fn handle(&mut self, message: Revoke, context: &mut Self::Context) -> Self::Result {
        let restarts = self.restarts.clone();
        guarded(self, context, "auth", &restarts, |actor| actor.revoke(&message.0))?
    }
}

/// Panics: tests show that the actor comes back.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

#[cfg(test)]
impl Handler<Panic> for AuthActor {
    type Result = ();

    fn handle(&mut self, _: Panic, context: &mut Self::Context) {
        let restarts = self.restarts.clone();
        let _ = guarded(self, context, "auth", &restarts, |actor| {
            actor.keys.clear();
            panic!("asked to");
        });
    }
}
