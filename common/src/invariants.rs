//! What a job promises, as conditions with names that are checked where they could break. Debug builds panic where one does not
//! hold; release builds log it, count it and go on. The master says how often any task of its job found one broken.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

macro_rules! invariants {
    ($($(#[doc = $doc:literal])+ $name:ident = $promise:literal;)+) => {
        /// Something that must hold, whatever dies.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Invariant {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Invariant {
            /// All of them, by promise.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The number of the promise that it is a part of.
            pub const fn promise(self) -> u8 {
                match self {
                    $(Self::$name => $promise,)+
                }
            }
        }
    };
}

invariants! {
    /// A server applies no contribution twice.
    AppliedOnce = 1;
    /// A server applies contributions with as many elements as its arena's pushed part has.
    StagedComplete = 1;
    /// A commit moves all servers on by exactly one version.
    OneVersionAStep = 1;
    /// A lease is completed by one committed step alone.
    LeaseCommittedOnce = 2;
    /// No record position is used by two committed steps.
    PositionUsedOnce = 2;
    /// Between asking the servers to keep a version and knowing that all of them do, no step is committed.
    CheckpointIsOneInstant = 3;
    /// Servers that are taken over are where the log ends, or one step before that with this step in the log.
    GoesOnWhereTheLogEnds = 4;
    /// A wait for a peer names it, and ends.
    WaitNamesPeerAndEnds = 5;
    /// No gradient older than `max_staleness` is applied.
    StalenessBounded = 6;
    /// What is wrong with flags and files is found before training begins.
    RefusedBeforeTraining = 7;
}

/// How many there are.
const COUNT: usize = Invariant::ALL.len();
static BROKEN: [AtomicU64; COUNT] = [const { AtomicU64::new(0) }; COUNT];
static TRAINS: AtomicBool = AtomicBool::new(false);

/// What a log says of a broken one, for whoever searches it.
pub const WORDS: &str = "invariant broken";

/// Checks one; `detail` is made only when it is broken.
pub fn check(invariant: Invariant, holds: bool, detail: impl FnOnce() -> String) {
    if !holds {
        broken(invariant, &detail());
    }
}

#[cold]
fn broken(invariant: Invariant, detail: &str) {
    BROKEN[invariant as usize].fetch_add(1, Ordering::Relaxed);
    tracing::error!(?invariant, promise = invariant.promise(), detail, "{WORDS}");
    debug_assert!(false, "{WORDS}: {invariant:?}: {detail}");
}

/// How often this process found it broken.
pub fn broken_count(invariant: Invariant) -> u64 {
    BROKEN[invariant as usize].load(Ordering::Relaxed)
}

/// How often this process found any of them broken.
pub fn all_broken() -> u64 {
    Invariant::ALL.iter().map(|invariant| broken_count(*invariant)).sum()
}

/// This process trains from now on: mistakes of the user should have been found before.
pub fn training_begins() {
    TRAINS.store(true, Ordering::Relaxed);
}

/// Whether [`training_begins`] was called.
pub fn trains() -> bool {
    TRAINS.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(debug_assertions, should_panic = "invariant broken: AppliedOnce: twice")]
    fn a_broken_one_panics_in_debug_and_counts_in_release() {
        check(Invariant::AppliedOnce, true, || unreachable!());
        check(Invariant::AppliedOnce, false, || "twice".to_owned());
        assert_eq!(broken_count(Invariant::AppliedOnce), 1);
        assert!(all_broken() >= 1);
    }

    #[test]
    fn every_promise_has_one() {
        let promises: std::collections::BTreeSet<u8> = Invariant::ALL.iter().map(|one| one.promise()).collect();
        assert_eq!(promises.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    }
}
