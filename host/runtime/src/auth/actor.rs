//! The actor that owns the keys.

use super::{
    AuthError, CreatedKey, KeyInfo, KeyRecord, KeyRing, LimitsChange, NewKey, check_limits, make, unix,
};
use crate::actor::{Backoff, Panicked, blocking, guarded};
use crate::store::{KeyStore, StoreError};
use actix::fut::WrapFuture;
use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, AtomicResponse, Context, Handler, Message,
    ResponseActFuture, Supervised,
};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

const NAME: &str = "auth";
/// How often the times of use are written down.
const TOUCH: Duration = Duration::from_secs(60);
/// How long it waits before it reads keys again that could not be read.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Owns the keys: writes them through the store, then publishes them. What is published stays in force until there is
/// something better.
pub struct AuthActor {
    store: Arc<dyn KeyStore>,
    /// `Err` after a restart, until the store gave them again.
    keys: Result<Vec<KeyRecord>, StoreError>,
    published: Arc<ArcSwap<KeyRing>>,
    restarts: Arc<AtomicU64>,
    backoff: Backoff,
    /// Times of use, by key, that the store has not been told yet.
    unwritten: HashMap<String, i64>,
}

impl AuthActor {
    /// An actor that owns these keys, which are published already.
    pub fn new(
        store: Arc<dyn KeyStore>,
        keys: Vec<KeyRecord>,
        published: Arc<ArcSwap<KeyRing>>,
        restarts: Arc<AtomicU64>,
    ) -> Self {
        Self {
            store,
            keys: Ok(keys),
            published,
            restarts,
            backoff: Backoff::default(),
            unwritten: HashMap::new(),
        }
    }

    /// Takes the times of use from the ring.
    fn remember_use(&mut self) {
        let ring = self.published.load();
        for KeyRecord { info: key, .. } in self.keys.iter_mut().flatten() {
            let used = ring.used_at(&key.id);
            if used.is_some() && key.last_used_at != used {
                key.last_used_at = used;
                self.unwritten.extend(used.map(|at| (key.id.clone(), at)));
            }
        }
    }

    fn publish(&mut self) {
        self.remember_use();
        if let Ok(keys) = &self.keys {
            self.published.store(Arc::new(KeyRing::new(keys)));
        }
    }

    fn key(&mut self, tenant: &str, id: &str) -> Result<&mut KeyInfo, AuthError> {
        let keys = self.keys.as_mut().map_err(|error| error.clone())?;
        keys.iter_mut()
            .map(|key| &mut key.info)
            .find(|key| &*key.tenant == tenant && key.id == id)
            .ok_or_else(|| AuthError::NotFound(id.to_owned()))
    }

    fn guarded<T>(
        &mut self,
        context: &mut Context<Self>,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, Panicked> {
        let restarts = self.restarts.clone();
        guarded(self, context, NAME, &restarts, |actor, _| work(actor))
    }

    /// Calls the store on a thread of its own, then `done` with what it said. Messages are handled meanwhile.
    fn store_then<T: Send + 'static, R: 'static>(
        &self,
        call: impl FnOnce(&dyn KeyStore) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(&mut Self, T) -> Result<R, AuthError> + 'static,
    ) -> ResponseActFuture<Self, Result<R, AuthError>> {
        let store = self.store.clone();
        let called = blocking(NAME, move || call(&*store)).into_actor(self);
        Box::pin(called.map(move |answer, actor, context| match answer {
            Ok(answer) => {
                let answer = answer?;
                actor.guarded(context, |actor| done(actor, answer))?
            }
            Err(panicked) => {
                actor.restarts.fetch_add(1, Ordering::Relaxed);
                context.stop();
                Err(panicked.into())
            }
        }))
    }

    /// Tells the store which keys were used, and when. What it does not take is told again.
    fn write_use(&mut self, context: &mut Context<Self>) -> ResponseActFuture<Self, Result<(), AuthError>> {
        let used = self.guarded(context, |actor| {
            actor.remember_use();
            std::mem::take(&mut actor.unwritten)
        });
        let used: Vec<_> = match used {
            Ok(used) if used.is_empty() => return Box::pin(actix::fut::ready(Ok(()))),
            Ok(used) => used.into_iter().collect(),
            Err(panicked) => return Box::pin(actix::fut::ready(Err(panicked.into()))),
        };
        let again = used.clone();
        let written = self.store_then(move |store| store.touch_keys(&used), |_, ()| Ok(()));
        Box::pin(written.map(move |written, actor, _| {
            written.inspect_err(|error| {
                tracing::warn!(%error, "the times of use of keys could not be written");
                for (key, at) in again {
                    actor.unwritten.entry(key).or_insert(at);
                }
            })
        }))
    }

    fn read_again(&mut self, after: Duration, context: &mut Context<Self>) {
        let store = self.store.clone();
        let read = async move {
            actix_rt::time::sleep(after).await;
            blocking(NAME, move || store.keys()).await
        };
        // Messages wait for it: there is nothing to answer them from.
        context.wait(read.into_actor(self).map(|keys, actor, context| {
            actor.keys = keys.unwrap_or_else(|panicked| Err(StoreError::Failed(panicked.to_string())));
            match &actor.keys {
                Ok(_) => {
                    actor.publish();
                    tracing::warn!(restarts = actor.restarts.load(Ordering::Relaxed), "auth actor is back");
                }
                Err(error) => {
                    tracing::error!(%error, "keys could not be read again; those that were published stay in force");
                    context.run_later(READ_AGAIN, |actor, context| actor.read_again(Duration::ZERO, context));
                }
            }
        }));
    }
}

impl Actor for AuthActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(256);
        context.run_interval(TOUCH, |actor, context| {
            let written = actor.write_use(context);
            context.spawn(written.map(|_, _, _| ()));
        });
    }
}

impl Supervised for AuthActor {
    fn restarting(&mut self, context: &mut Self::Context) {
        // What the panic left of them is not to be trusted.
        self.keys = Err(StoreError::Failed("the keys are being read again".to_owned()));
        let pause = self.backoff.next(Instant::now());
        self.read_again(pause, context);
    }
}

/// Makes a key.
#[derive(Message)]
#[rtype(result = "Result<CreatedKey, AuthError>")]
pub struct Create {
    pub tenant: Arc<str>,
    pub new: NewKey,
}

/// Writes down which keys were used, and when.
#[derive(Message)]
#[rtype(result = "Result<(), AuthError>")]
pub struct WriteUse;

/// Every key of a tenant.
#[derive(Message)]
#[rtype(result = "Result<Vec<KeyInfo>, AuthError>")]
pub struct List {
    pub tenant: Arc<str>,
}

/// Revokes a key.
#[derive(Message)]
#[rtype(result = "Result<KeyInfo, AuthError>")]
pub struct Revoke {
    pub tenant: Arc<str>,
    pub id: String,
}

/// Changes the limits of a key.
#[derive(Message)]
#[rtype(result = "Result<KeyInfo, AuthError>")]
pub struct Change {
    pub tenant: Arc<str>,
    pub id: String,
    pub change: LimitsChange,
}

impl Handler<Create> for AuthActor {
    type Result = ResponseActFuture<Self, Result<CreatedKey, AuthError>>;

    fn handle(&mut self, message: Create, context: &mut Self::Context) -> Self::Result {
        let made = self.guarded(context, |actor| {
            // Before anything is written: what cannot be published must not be made.
            actor.keys.as_ref().map_err(|error| error.clone())?;
            make(&message.tenant, message.new, unix(SystemTime::now()))
        });
        match made.map_err(AuthError::from).flatten() {
            Err(error) => Box::pin(actix::fut::ready(Err(error))),
            Ok((record, secret)) => {
                let stored = record.clone();
                self.store_then(
                    move |store| store.add_key(&stored),
                    move |actor, ()| {
                        let created = CreatedKey { secret, info: record.info.clone() };
                        actor.keys.as_mut().map_err(|error| error.clone())?.push(record);
                        actor.publish();
                        Ok(created)
                    },
                )
            }
        }
    }
}

impl Handler<WriteUse> for AuthActor {
    type Result = ResponseActFuture<Self, Result<(), AuthError>>;

    fn handle(&mut self, _: WriteUse, context: &mut Self::Context) -> Self::Result {
        self.write_use(context)
    }
}

impl Handler<List> for AuthActor {
    type Result = Result<Vec<KeyInfo>, AuthError>;

    fn handle(&mut self, message: List, context: &mut Self::Context) -> Self::Result {
        self.guarded(context, |actor| {
            actor.remember_use();
            let keys = actor.keys.as_ref().map_err(|error| error.clone())?;
            Ok(keys.iter().map(|key| key.info.clone()).filter(|key| key.tenant == message.tenant).collect())
        })?
    }
}

impl Handler<Revoke> for AuthActor {
    type Result = ResponseActFuture<Self, Result<KeyInfo, AuthError>>;

    fn handle(&mut self, message: Revoke, context: &mut Self::Context) -> Self::Result {
        let Revoke { tenant, id } = message;
        let known = self.guarded(context, |actor| actor.key(&tenant, &id).cloned());
        match known.map_err(AuthError::from).flatten() {
            Err(error) => Box::pin(actix::fut::ready(Err(error))),
            Ok(key) if key.revoked_at.is_some() => Box::pin(actix::fut::ready(Ok(key))),
            Ok(_) => {
                let now = unix(SystemTime::now());
                let (in_tenant, revoked) = (tenant.clone(), id.clone());
                self.store_then(
                    move |store| store.revoke_key(&in_tenant, &revoked, now),
                    move |actor, _| {
                        let key = actor.key(&tenant, &id)?;
                        key.revoked_at.get_or_insert(now);
                        let info = key.clone();
                        actor.publish();
                        Ok(info)
                    },
                )
            }
        }
    }
}

impl Handler<Change> for AuthActor {
    /// One after the other: what one change leaves as it is may be what another changes.
    type Result = AtomicResponse<Self, Result<KeyInfo, AuthError>>;

    fn handle(&mut self, message: Change, context: &mut Self::Context) -> Self::Result {
        let Change { tenant, id, change } = message;
        // A revoked key that was given another budget would be revoked all the same.
        let limits = self.guarded(context, |actor| match actor.key(&tenant, &id)? {
            key if key.revoked_at.is_some() => Err(AuthError::Revoked(id.clone())),
            key => {
                let limits = change.of(key.limits);
                check_limits(&limits).map(|()| limits)
            }
        });
        AtomicResponse::new(match limits.map_err(AuthError::from).flatten() {
            Err(error) => Box::pin(actix::fut::ready(Err(error))),
            Ok(limits) => {
                let (in_tenant, changed) = (tenant.clone(), id.clone());
                self.store_then(
                    move |store| store.set_key_limits(&in_tenant, &changed, &limits),
                    move |actor, _| {
                        let key = actor.key(&tenant, &id)?;
                        key.limits = limits;
                        let info = key.clone();
                        actor.publish();
                        Ok(info)
                    },
                )
            }
        })
    }
}

/// Panics after it has spoilt the state: tests show that the actor comes back with what the store has.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

#[cfg(test)]
impl Handler<Panic> for AuthActor {
    type Result = ();

    fn handle(&mut self, _: Panic, context: &mut Self::Context) {
        let _ = self.guarded(context, |actor| {
            actor.keys = Ok(Vec::new());
            panic!("asked to");
        });
    }
}
