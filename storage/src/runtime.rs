//! The threads on which requests run.

use std::future::Future;
use std::io;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, sync_channel};

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

/// Requests wait far more than they compute; two threads keep a fast network busy.
const THREADS: usize = 2;

static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("storage")
        .enable_all()
        .build()
});

fn handle() -> io::Result<&'static Handle> {
    match &*RUNTIME {
        Ok(runtime) => Ok(runtime.handle()),
        Err(error) => Err(io::Error::other(format!("no threads for object storage: {error}"))),
    }
}

/// A result that is being made.
pub(crate) type Pending<T> = Receiver<T>;

/// Starts a request.
pub(crate) fn start<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> io::Result<Pending<T>> {
    let (send, receive) = sync_channel(1);
    handle()?.spawn(async move {
        // Nobody waits for what was given up.
        let _ = send.send(future.await);
    });
    Ok(receive)
}

/// Waits for a request. A thread that also serves others (a task's) tells its runtime, which puts another in its place.
pub(crate) fn wait<T: Send>(pending: &Pending<T>) -> io::Result<T> {
    let receive = || {
        pending
            .recv()
            .map_err(|_| io::Error::other("a storage request ended without a result"))
    };
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(receive),
        _ => receive(),
    }
}

/// Runs a request to its end.
pub(crate) fn block<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
    wait(&start(future)?)
}
