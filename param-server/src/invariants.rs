//! What must hold, named once. Debug builds panic where it does not; release builds count and go on.

use std::sync::atomic::{AtomicU64, Ordering};

/// Something that must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Invariant {
    /// A commit moves the version on by exactly one.
    VersionGrowsByOne,
    /// No contribution is applied twice.
    AppliedOnce,
    /// A contribution is staged with as many elements as the arena's pushed part has.
    StagedComplete,
    /// No gradient older than the staleness bound is applied.
    StalenessBounded,
}

const COUNT: usize = 4;
static BROKEN: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];

/// Checks one; `detail` is made only when it is broken.
pub fn check(invariant: Invariant, holds: bool, detail: impl FnOnce() -> String) {
    if !holds {
        broken(invariant, &detail());
    }
}

#[cold]
fn broken(invariant: Invariant, detail: &str) {
    BROKEN[invariant as usize].fetch_add(1, Ordering::Relaxed);
    tracing::error!(?invariant, detail, "invariant broken");
    debug_assert!(false, "invariant {invariant:?} broken: {detail}");
}

/// How often this process found it broken.
pub fn broken_count(invariant: Invariant) -> u64 {
    BROKEN[invariant as usize].load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(debug_assertions, should_panic = "invariant AppliedOnce broken: twice")]
    fn a_broken_one_panics_in_debug_and_counts_in_release() {
        check(Invariant::AppliedOnce, true, || unreachable!());
        check(Invariant::AppliedOnce, false, || "twice".to_owned());
        assert_eq!(broken_count(Invariant::AppliedOnce), 1);
    }
}
