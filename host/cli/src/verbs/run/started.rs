//! A server that a chat has started: it goes on for the next one, unless it was of no use.

use crate::client::Client;
use crate::context::Context;
use serde_json::json;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long a server may take to end that has nothing to finish.
const END: Duration = Duration::from_secs(20);

/// Chats that use the server of a state directory, each by a shared lock on one file.
#[derive(Debug)]
pub struct Chats(Option<File>);

impl Chats {
    /// Joins them, before the server is looked for. Where the file cannot be made nobody is ever alone.
    pub fn join(state: &Path) -> Self {
        let folder = state.join("run");
        let opened = DirBuilder::new().recursive(true).mode(0o700).create(&folder).and_then(|()| {
            let file = File::options().write(true).create(true).truncate(false).open(folder.join("chats"))?;
            file.lock_shared().map(|()| file)
        });
        Self(opened.ok())
    }

    /// Of a server that lies on another machine, and that nobody here ends.
    pub fn elsewhere() -> Self {
        Self(None)
    }

    /// Whether nobody else has joined. If so nobody joins until this value is gone.
    fn are_one(&self) -> bool {
        self.0.as_ref().is_some_and(|file| file.unlock().is_ok() && file.try_lock().is_ok())
    }
}

/// The server of this call. It ends with this value if this call started it, nothing was answered, and no other chat is
/// about to use it.
#[derive(Debug)]
pub struct Server<'a> {
    pub client: Client,
    context: &'a Context,
    chats: Chats,
    started: Option<Child>,
}

impl<'a> Server<'a> {
    pub fn new(context: &'a Context, client: Client, chats: Chats, started: Option<Child>) -> Self {
        Self { client, context, chats, started }
    }

    /// It was of use, and goes on.
    pub fn keep(&mut self) {
        self.started = None;
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let Some(mut server) = self.started.take() else { return };
        if !self.chats.are_one() || self.client.post("/admin/v1/shutdown", &json!({})).is_err() {
            return;
        }
        let begin = Instant::now();
        while begin.elapsed() < END {
            if let Ok(Some(_)) = server.try_wait() {
                self.context.out.note("nothing was answered: the server that was started for it has ended");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_chat_is_alone_and_of_two_none_is() {
        let state = tempfile::tempdir().unwrap();
        let one = Chats::join(state.path());
        let two = Chats::join(state.path());
        assert!(!two.are_one());
        drop(two);
        assert!(one.are_one());
        let nowhere = Chats::join(Path::new("/proc/backplane"));
        assert!(!nowhere.are_one());
    }
}
