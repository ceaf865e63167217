//! The wish that the program which runs a host stops it: from somebody who can reach the host, but not that program.

use crate::error::{Error, ErrorCode, Result};
use futures::channel::oneshot;
use parking_lot::Mutex;

/// Made by [`crate::Host::ask_to_stop`], heard through [`crate::Host::stop_asked`].
#[derive(Default)]
pub(crate) struct Wish(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    NobodyListens,
    Heard(oneshot::Sender<()>),
    Asked,
}

impl Wish {
    /// # Errors
    /// When nobody listens.
    pub fn ask(&self) -> Result<()> {
        let mut state = self.0.lock();
        *state = match std::mem::take(&mut *state) {
            State::Heard(listener) => match listener.send(()) {
                Ok(()) => State::Asked,
                Err(()) => State::NobodyListens,
            },
            other => other,
        };
        match *state {
            State::Asked => Ok(()),
            _ => Err(Error::new(
                ErrorCode::Unimplemented,
                "the program that runs this host stops it in a way of its own",
            )
            .with_reason("stop_not_supported")),
        }
    }

    pub fn wait(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut state = self.0.lock();
        let (sender, receiver) = oneshot::channel();
        match *state {
            State::Asked => {
                sender.send(()).ok();
            }
            _ => *state = State::Heard(sender),
        }
        async move {
            // A host that is gone, or another listener, asks for nothing.
            if receiver.await.is_err() {
                futures::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn a_wish_is_heard_by_who_listens_last_and_refused_where_nobody_does() {
        let wish = Wish::default();
        assert_eq!(wish.ask().unwrap_err().reason, "stop_not_supported");
        let (first, second) = (wish.wait(), wish.wait());
        assert_eq!(wish.ask(), Ok(()));
        assert_eq!(wish.ask(), Ok(()), "again");
        assert_eq!(first.now_or_never(), None);
        assert_eq!(second.now_or_never(), Some(()));
        assert_eq!(wish.wait().now_or_never(), Some(()), "who comes late hears of it");
    }

    #[test]
    fn who_left_does_not_listen() {
        let wish = Wish::default();
        drop(wish.wait());
        assert!(wish.ask().is_err());
    }
}
