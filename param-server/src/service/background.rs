//! Work that must not take the processor from training.

use coati_common::rpc::{ErrorCode, ServiceError};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Nice level: about a tenth of the processor when everybody wants it, all of it when nobody does.
#[cfg(target_os = "linux")]
const NICE: libc::c_int = 10;

/// Does `work` in a thread of its own that gives way to others; in place on a runtime of one thread, as
/// [`coati_common::work::blocking`] does.
pub(super) async fn background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, ServiceError> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let failed = |what: String| ServiceError::new(ErrorCode::Internal, format!("internal error: {what}"));
    std::thread::Builder::new()
        .name("background".to_owned())
        .spawn(move || {
            give_way();
            // Whoever asked may have gone; the work is done all the same.
            let _ = sender.send(work());
        })
        .map_err(|error| failed(format!("no thread: {error}")))?;
    receiver
        .await
        .unwrap_or_else(|_| Err(failed("the work ended unexpectedly".to_owned())))
}

/// Lowers this thread's priority, for good: there is no way back without privileges.
#[cfg(target_os = "linux")]
fn give_way() {
    // SAFETY: changes the calling thread's nice level; on Linux, 0 is the calling thread and not its process.
    let changed = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if changed != 0 {
        tracing::debug!("the thread keeps its priority");
    }
}

/// Elsewhere a nice level is the whole process's.
#[cfg(not(target_os = "linux"))]
fn give_way() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_panic_is_an_error_and_an_answer_comes_back() {
        assert_eq!(background(|| Ok(5)).await, Ok(5));
        let error = background::<u8>(|| panic!("on purpose")).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
    }
}
