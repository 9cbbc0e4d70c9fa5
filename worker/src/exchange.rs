//! How a replica gets variables and records, and gives gradients: one trait, whatever carries them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use coati_common::rpc::{ErrorCode, ServiceError};

/// The right to use `count` records from `first_position` of the endless record sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Named in the contribution that used it.
    pub id: u64,
    /// Position of the first record.
    pub first_position: u64,
    /// Number of records: the batch size.
    pub count: u32,
}

/// Where a replica's time of one step went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Phases {
    /// Waiting for the batch to be decoded.
    pub input: Duration,
    /// Forward, loss, backward.
    pub compute: Duration,
}

/// What a replica has to give for one step.
#[derive(Debug)]
pub struct Contribution<'a> {
    /// Version of the variables that the gradients were computed from.
    pub version: u64,
    /// The batch that was used.
    pub lease: Lease,
    /// Examples that the gradients are a mean over.
    pub samples: u32,
    /// Flat vector: gradients of trainable variables, batch statistics in the places of moving ones.
    /// Shared, so that a connection can send it from where it is. Empty where gradients stay on an accelerator.
    pub gradients: &'a Arc<Vec<f32>>,
    /// Loss parts by the reference's names (`Loss/classification_loss`, …).
    pub losses: Vec<(&'static str, f64)>,
    /// Where the time went so far.
    pub phases: Phases,
    /// Records that were replaced, in words.
    pub bad_records: Vec<String>,
}

impl Contribution<'_> {
    /// Refuses losses that are not finite: of a gradient on an accelerator nothing else tells that its batch is to be left out.
    pub(crate) fn finite(&self) -> Result<(), ServiceError> {
        match self.losses.iter().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((name, value)) => Err(ServiceError::new(
                ErrorCode::NonFiniteGradient,
                format!("{name} is {value}"),
            )),
        }
    }
}

/// What became of a contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Part of the step to `version`.
    Committed {
        /// The version to pull next.
        version: u64,
        /// No step follows.
        last: bool,
    },
    /// Too late or too stale: not used, its records went back.
    Dropped {
        /// The version to pull next.
        version: u64,
    },
    /// The job ended meanwhile.
    Ended,
}

/// An exchange that failed; the message names the peer and ends in a hint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// For good.
    #[error("{0}")]
    Failed(String),
    /// The others went on without this replica, or are away: it may join again.
    #[error("{0}")]
    CutOff(String),
    /// The job is over, in order.
    #[error("{0}")]
    Ended(String),
}

impl Error {
    /// From any displayable error: one for good.
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What the training loop needs from the rest of the job. Calls wait, with deadlines of the implementation.
pub trait Exchange {
    /// The next batches, in the order in which they must be used; `true` when no further ones will come.
    fn lease(&mut self, batches: u32) -> Result<(Vec<Lease>, bool), Error>;

    /// Waits for a version of at least `min_version` and copies it into the flat vector, unless [`Exchange::contribute`] has
    /// done so.
    fn pull(&mut self, min_version: u64, variables: &mut [f32]) -> Result<u64, Error>;

    /// Elements of the next contribution's gradients, computed from `version`, that are complete while others are not: they may
    /// leave. The contribution has the same values. Does not wait. No values: they lie on the
    /// accelerator, where they are summed; to begin that may take until all ranks have begun theirs.
    fn ready(&mut self, version: u64, elements: Range<usize>, values: &[f32]) {
        let _ = (version, elements, values);
    }

    /// Pushes the gradients and waits for the step's outcome. May receive the next version into `variables` meanwhile: the
    /// same vector must be given to the next [`Exchange::pull`].
    fn contribute(&mut self, contribution: &Contribution<'_>, variables: &mut [f32]) -> Result<Fate, Error>;

    /// Whether the job asks this replica to leave in order, with the reason. An error when the job failed.
    fn asked_to_leave(&self) -> Result<Option<String>, Error>;

    /// Tells the others what this replica is doing (`computing`, `evaluating`, …).
    fn activity(&self, what: &'static str);
}
