//! The threads that requests are served on: one, on few cores.
//!
//! Of two, each wakes the other for whatever comes beside the first, which costs a sixth of a streamed answer; on few cores a
//! second has nowhere to run that the host's own threads do not need. So what takes long must not keep the one from reading
//! what comes for others.

use backplane_plugin::prelude::*;

/// So many cores are few.
const FEW: usize = 4;
/// Bytes that are read, or written, in less time than it takes to have another thread take over.
const SHORT: usize = 64 << 10;

/// How many there are.
pub fn count() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores <= FEW { 1 } else { 2 }
}

/// Works on so many bytes. Where they are many, another thread serves the others meanwhile.
pub fn work<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes <= SHORT { work() } else { tokio::task::block_in_place(work) }
}

/// Bytes of what is asked.
pub fn asked(request: &Request) -> usize {
    let tensors = request.tensors().unwrap_or_default();
    tensors.iter().map(|tensor| tensor.bytes().len()).sum::<usize>() + request.params_json().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn long_work_keeps_nobody_else_waiting() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (sender, receiver) = channel();
        let patience = Duration::from_secs(10);
        let long = runtime.spawn(async move { work(SHORT + 1, || receiver.recv_timeout(patience)) });
        runtime.spawn(async move { sender.send("served") });
        assert_eq!(runtime.block_on(long).unwrap(), Ok("served"));
    }
}
