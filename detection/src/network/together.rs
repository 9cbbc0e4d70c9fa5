//! Batch norm's statistics over the batches of all replicas (`sync_batch_norm`).

use std::fmt;

/// The replicas of a job, as batch norm sees them.
pub trait Together: Send {
    /// Replaces `values` by their sums over all replicas, added up in rank order: the same bits on all of them. All replicas call it alike.
    ///
    /// # Errors
    /// A replica that is lost, in words.
    fn sum(&mut self, values: &mut [f64]) -> Result<(), String>;
}

/// The others, if there are any.
#[derive(Default)]
pub(crate) struct Hook(Option<Box<dyn Together>>);

// SAFETY: nothing of it can be reached through `&self` but whether it is set.
unsafe impl Sync for Hook {}

impl Hook {
    pub(crate) fn new(together: Option<Box<dyn Together>>) -> Self {
        Self(together)
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn sum(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.0.as_mut().map_or(Ok(()), |together| together.sum(values))
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "together" } else { "alone" })
    }
}
