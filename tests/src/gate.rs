//! Keeps jobs from running all at once: a cluster of six processes fills a small machine by itself.

use std::sync::{Condvar, Mutex, PoisonError};

/// Jobs at a time.
const JOBS: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

/// A place among the running jobs, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place(());

impl Place {
    /// Waits for a place.
    pub(crate) fn take() -> Self {
        // A test that panicked has given its place back all the same.
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = LEFT
            .wait_while(running, |running| *running >= JOBS)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        LEFT.notify_one();
    }
}
