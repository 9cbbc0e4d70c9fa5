use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coati_common::rpc::{ErrorCode, ServiceError};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::lock;

/// Why a server left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By its own process.
    Stopped,
    /// By the coordinator, with its reason.
    Told(String),
    /// Nobody called for this long.
    Orphaned(Duration),
    /// The listener failed.
    Failed(String),
}

/// Whether the server still has a job to live for.
#[derive(Debug)]
pub(super) struct Life {
    last_call: Mutex<Instant>,
    under_way: AtomicUsize,
    leaving: watch::Sender<Option<Ended>>,
}

/// A call under way; its end counts as a sign of life.
pub(super) struct Contact(Arc<Life>);

impl Drop for Contact {
    fn drop(&mut self) {
        *lock(&self.0.last_call) = Instant::now();
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Life {
    pub(super) fn new() -> Self {
        Self {
            last_call: Mutex::new(Instant::now()),
            under_way: AtomicUsize::new(0),
            leaving: watch::Sender::new(None),
        }
    }

    pub(super) fn contact(self: &Arc<Self>) -> Contact {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        *lock(&self.last_call) = Instant::now();
        Contact(Arc::clone(self))
    }

    /// A call begins, of server `index`; none does once it leaves.
    pub(super) fn enter(self: &Arc<Self>, index: u32) -> Result<Contact, ServiceError> {
        if self.is_leaving() {
            return Err(ServiceError::new(
                ErrorCode::ShuttingDown,
                format!("ps-{index} is leaving"),
            ));
        }
        Ok(self.contact())
    }

    /// The first reason counts.
    pub(super) fn leave(&self, reason: Ended) {
        self.leaving.send_if_modified(|leaving| {
            let first = leaving.is_none();
            if first {
                *leaving = Some(reason);
            }
            first
        });
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.borrow().is_some()
    }

    pub(super) async fn left(&self) -> Ended {
        let mut leaving = self.leaving.subscribe();
        match leaving.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(Ended::Stopped),
            Err(_) => Ended::Stopped,
        }
    }

    pub(super) async fn orphaned(&self, timeout: Duration) -> Ended {
        loop {
            let last = *lock(&self.last_call);
            match orphaned_in(Instant::now(), last, self.under_way.load(Ordering::SeqCst), timeout) {
                None => return Ended::Orphaned(timeout),
                Some(left) => tokio::time::sleep(left).await,
            }
        }
    }
}

/// How long to wait before asking again; nothing when the server is an orphan.
fn orphaned_in(now: Instant, last_call: Instant, under_way: usize, timeout: Duration) -> Option<Duration> {
    let silent = now.saturating_duration_since(last_call);
    if under_way > 0 {
        // A call that hangs is ended by the connection's keep-alive, not here.
        return Some(timeout);
    }
    timeout.checked_sub(silent).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_makes_an_orphan_and_calls_under_way_do_not() {
        let (start, timeout) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(orphaned_in(at(20), start, 0, timeout), Some(Duration::from_secs(40)));
        assert_eq!(orphaned_in(at(60), start, 0, timeout), None);
        assert_eq!(orphaned_in(at(600), start, 1, timeout), Some(timeout));
        assert_eq!(orphaned_in(at(0), at(5), 0, timeout), Some(timeout));
    }
}
