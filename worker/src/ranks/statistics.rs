//! Batch norm's statistics over all ranks, over a communicator of their own: gradients are on their way at the same time.

use std::sync::{Arc, Mutex, PoisonError};

use coati_collective::{Aborter, Communicator, Error};
use coati_detection::network::Together;

/// The ranks, as batch norm sees them.
pub(super) struct Statistics {
    communicator: Box<dyn Communicator>,
    trouble: Trouble,
}

/// What went wrong between the ranks; the network itself passes on words alone.
#[derive(Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<Error>>>);

impl Trouble {
    pub(super) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What stays with the training loop.
pub(super) struct Watcher {
    pub(super) trouble: Trouble,
    pub(super) aborter: Aborter,
}

impl Statistics {
    pub(super) fn new(communicator: Box<dyn Communicator>) -> (Self, Watcher) {
        let trouble = Trouble::default();
        let watcher = Watcher {
            trouble: trouble.clone(),
            aborter: communicator.aborter(),
        };
        (Self { communicator, trouble }, watcher)
    }
}

impl Together for Statistics {
    fn sum(&mut self, values: &mut [f64]) -> Result<(), String> {
        let all = self
            .communicator
            .all_gather(bytemuck::cast_slice(values))
            .map_err(|error| {
                let words = error.to_string();
                *self.trouble.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                words
            })?;
        values.fill(0.0);
        for (rank, theirs) in all.iter().enumerate() {
            if theirs.len() != size_of_val(values) {
                return Err(format!(
                    "rank {rank} sums {} bytes, this one {}: the ranks' models differ",
                    theirs.len(),
                    size_of_val(values)
                ));
            }
            for (value, bytes) in values.iter_mut().zip(theirs.chunks_exact(size_of::<f64>())) {
                *value += bytes.try_into().map_or(f64::NAN, f64::from_le_bytes);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::at_once;
    use crate::ranks::testing::communicators;

    #[test]
    fn all_ranks_have_the_sums_in_rank_order() {
        let ranks = communicators(3);
        let sums = at_once(ranks, |communicator| {
            let rank = communicator.rank() as f64;
            let (mut statistics, _watcher) = Statistics::new(communicator);
            let mut values = [0.1 + rank, 1e16 * (rank - 1.0), 1.0];
            statistics.sum(&mut values).unwrap();
            // Nobody leaves before all have what they came for.
            statistics.sum(&mut [0.0]).unwrap();
            values
        });
        let expected = [0.1 + 1.1 + 2.1, (-1e16 + 0.0) + 1e16, 3.0];
        assert_eq!(sums, [expected; 3]);
    }
}
