//! What training sees of the other ranks.

use std::sync::Arc;

use crate::{Error, Member, Part, Wire};

/// Ends a communicator from another thread than the one that is in a call of it: see [`Communicator::abort`].
#[derive(Clone)]
pub struct Aborter(Arc<dyn Fn(&str) + Send + Sync>);

impl Aborter {
    pub(crate) fn new(abort: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(abort))
    }

    /// Tells all ranks that it is over and why; a call under way ends soon.
    pub fn abort(&self, reason: &str) {
        (self.0)(reason);
    }
}

/// The ranks `0..world_size`, seen from one of them.
///
/// All ranks call the same operations in the same order with the same lengths; who does not is found out, and named to all. After an
/// error the communicator is of no use: all later calls fail, on every rank, and tell the first reason.
pub trait Communicator: Send {
    /// This process among the ranks.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world_size(&self) -> usize;

    /// Who they are, in rank order.
    fn members(&self) -> &[Member];

    /// Replaces `values` by their sum over all ranks, elementwise. A mean is the caller's: scale by the own samples before and divide
    /// by the samples of all afterwards.
    ///
    /// On CPUs the bits are those of [`crate::sums::reference`]: a float32 sum in rank order, whatever the timing, and the same on all
    /// ranks. NCCL's sum is the same on all ranks, but its order is its own.
    ///
    /// # Errors
    /// A rank that is late, lost, or elsewhere; after it the contents of `values` mean nothing.
    fn all_reduce_sum(&mut self, values: &mut [f32], wire: Wire) -> Result<(), Error>;

    /// Memory of these lengths in which [`Self::all_reduce`] sums without further copies, where the transport can; zeros at first.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`], and no room.
    fn parts(&mut self, lengths: &[usize]) -> Result<Vec<Part>, Error> {
        Ok(lengths.iter().map(|&length| vec![0.0; length].into()).collect())
    }

    /// As [`Self::all_reduce_sum`], of a part that [`Self::parts`] gave, the same one on all ranks, or of any other memory.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`].
    fn all_reduce(&mut self, part: &mut Part, wire: Wire) -> Result<(), Error> {
        self.all_reduce_sum(part, wire)
    }

    /// Replaces `values` by those of rank `root`, bit for bit.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`], and a root that is no rank.
    fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<(), Error>;

    /// Everybody's `bytes` in rank order; lengths may differ, up to [`crate::sums::GATHER_LIMIT`].
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`], and bytes beyond the limit.
    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error>;

    /// Returns when all ranks have come here.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`].
    fn barrier(&mut self) -> Result<(), Error>;

    /// Whether all are still there and nobody has given up, without waiting for anybody: for those who wait for something else, such
    /// as a GPU.
    ///
    /// # Errors
    /// A rank that is lost or gave up.
    fn check(&mut self) -> Result<(), Error>;

    /// Tells all ranks that it is over and why; those that wait for this one hear it at once. The first reason counts.
    fn abort(&mut self, reason: &str);

    /// For other threads.
    fn aborter(&self) -> Aborter;

    /// Leaves together with all others. A communicator that is dropped instead aborts.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`].
    fn close(&mut self) -> Result<(), Error>;
}

/// Before anything is sent, so that only the caller hears.
pub(crate) fn check_gathered(bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() > crate::sums::GATHER_LIMIT {
        return Err(Error::Setting {
            what: format!(
                "{} bytes to gather; at most {} fit",
                bytes.len(),
                crate::sums::GATHER_LIMIT
            ),
            hint: "broadcast what is large",
        });
    }
    Ok(())
}

/// As above.
pub(crate) fn check_root(root: usize, world: usize) -> Result<(), Error> {
    if root >= world {
        return Err(Error::Setting {
            what: format!("broadcast from rank {root}; there are ranks 0 to {}", world - 1),
            hint: "ranks are counted from 0",
        });
    }
    Ok(())
}
