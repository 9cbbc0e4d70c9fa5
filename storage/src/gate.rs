//! How many requests go to a bucket at a time: more while it answers, half as many when it says that they are too many.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// What is allowed to begin with.
const FIRST: f64 = 16.0;
/// Requests that were on their way when the limit was cut tell of the old limit: one cut within this time is enough.
const ONE_CUT: Duration = Duration::from_secs(1);

/// Additive increase, multiplicative decrease.
#[derive(Debug)]
struct Window {
    limit: f64,
    most: f64,
    in_flight: usize,
    cut: Option<Instant>,
}

impl Window {
    fn succeeded(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(self.most);
    }

    /// True when the limit was cut.
    fn throttled(&mut self, now: Instant) -> bool {
        if self.cut.is_some_and(|cut| now.saturating_duration_since(cut) < ONE_CUT) {
            return false;
        }
        self.cut = Some(now);
        self.limit = (self.limit / 2.0).max(1.0);
        true
    }

    fn enter(&mut self) -> bool {
        let free = (self.in_flight as f64) < self.limit.floor();
        self.in_flight += usize::from(free);
        free
    }
}

/// Of one bucket.
#[derive(Debug)]
pub(crate) struct Gate {
    window: Mutex<Window>,
    freed: Notify,
}

/// A request that was let through.
pub(crate) struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
        self.0.freed.notify_one();
    }
}

impl Gate {
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        Self {
            window: Mutex::new(Window {
                limit: FIRST.min(most),
                most,
                in_flight: 0,
                cut: None,
            }),
            freed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn.
    pub(crate) async fn pass(&self) -> Pass<'_> {
        loop {
            let freed = self.freed.notified();
            if self.lock().enter() {
                return Pass(self);
            }
            freed.await;
        }
    }

    /// A request was answered.
    pub(crate) fn succeeded(&self) {
        let before = {
            let mut window = self.lock();
            let before = window.limit.floor();
            window.succeeded();
            window.limit.floor() > before
        };
        if before {
            self.freed.notify_one();
        }
    }

    /// A request was answered by 429 or 503.
    pub(crate) fn throttled(&self) {
        let mut window = self.lock();
        if window.throttled(Instant::now()) {
            tracing::debug!(limit = window.limit, "the bucket asks for fewer requests");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_once_for_a_burst_and_recovers() {
        let mut window = Window {
            limit: 16.0,
            most: 20.0,
            in_flight: 0,
            cut: None,
        };
        let now = Instant::now();
        assert!(window.throttled(now));
        assert!(!window.throttled(now + ONE_CUT / 2), "one burst, one cut");
        assert_eq!(window.limit, 8.0);
        assert!(window.throttled(now + ONE_CUT));
        assert_eq!(window.limit, 4.0);
        for _ in 0..10 {
            window.cut = None;
            window.throttled(now);
        }
        assert_eq!(window.limit, 1.0, "one request is always allowed");
        assert!(window.enter() && !window.enter());
        (0..1000).for_each(|_| window.succeeded());
        assert_eq!(window.limit, 20.0);
    }

    #[tokio::test]
    async fn who_waits_is_let_in_when_another_leaves() {
        let gate = Gate::new(1);
        let first = gate.pass().await;
        let second = tokio::time::timeout(Duration::ZERO, gate.pass()).await;
        assert!(second.is_err());
        drop(first);
        drop(gate.pass().await);
    }
}
