//! What must always hold, by name: a violation panics in debug builds and is counted and logged in release builds.

use std::sync::atomic::{AtomicU64, Ordering};

/// Promises of the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// A leased range of records is committed once.
    LeaseCommittedOnce,
    /// Versions grow by one a commit.
    VersionsAreConsecutive,
}

static VIOLATIONS: AtomicU64 = AtomicU64::new(0);

/// Checks a promise.
pub fn check(invariant: Invariant, holds: bool, details: impl FnOnce() -> String) {
    if holds {
        return;
    }
    VIOLATIONS.fetch_add(1, Ordering::Relaxed);
    let details = details();
    tracing::error!(?invariant, details, "invariant violated");
    debug_assert!(holds, "{invariant:?} violated: {details}");
}

/// Violations since the process started.
pub fn violations() -> u64 {
    VIOLATIONS.load(Ordering::Relaxed)
}
