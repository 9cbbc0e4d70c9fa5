//! Work that blocks, asked for by tasks that must not.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinError;

/// Does `work` on a thread that may block. On a runtime that has one thread only it is done in place: who chose that wants
/// everything to happen in one order. An error if the work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn tasks_go_on_meanwhile() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiting = tokio::spawn(blocking(move || receiver.recv()));
        tokio::task::yield_now().await;
        sender.send(7).unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), Ok(7));
    }

    #[tokio::test]
    async fn one_thread_does_everything_itself() {
        let here = thread::current().id();
        assert_eq!(blocking(|| thread::current().id()).await.unwrap(), here);
    }
}
