//! Sums of what already lies in shared memory: nothing is copied on the way.

use std::ops::Range;
use std::sync::Arc;

use super::Shared;
use crate::memory::Mapping;
use crate::operation::{Kind, Operation, Wire};
use crate::{Error, Part, slices, sums};

impl Shared {
    /// Memory of the shared file for all ranks' values: rank 0 makes room, everybody maps it.
    pub(super) fn shared_parts(&mut self, lengths: &[usize]) -> Result<Vec<Part>, Error> {
        let elements: usize = lengths.iter().sum();
        let (at, bytes) = (self.end, Mapping::bytes_for(elements, self.world()));
        if self.rank == 0
            && let Err(error) = self.region.extend(at, bytes)
        {
            self.region.abort(0, &error.to_string());
            return Err(error);
        }
        self.meet(Kind::Barrier)?;
        let mapped = self.region.map_more(at, bytes);
        if let Err(error) = &mapped {
            self.region.abort(self.rank, &error.to_string());
        }
        // SAFETY: mapped just now, with as many bytes.
        let mapping = unsafe { Mapping::new(mapped?, elements, self.world(), self.rank) };
        self.end = at + bytes;
        Ok(Arc::new(mapping).cut(lengths))
    }

    /// Adds up the own slice of `range` and writes the sums to everybody's.
    pub(super) fn reduce_in_place(&mut self, mapping: &Mapping, range: &Range<usize>, wire: Wire) -> Result<(), Error> {
        let call = Operation {
            kind: Kind::AllReduce,
            wire,
            count: range.len() as u64,
            ..Operation::NONE
        };
        self.operation(call, |this, call| {
            let round = this.round;
            // Everybody's values are in place …
            this.deposits(round, true, call)?;
            let own = slices::own(&(0..range.len()), this.world(), this.rank);
            let own = range.start + own.start..range.start + own.end;
            let places: Vec<*mut f32> = (0..this.world()).map(|rank| mapping.of(rank, &own)).collect();
            // SAFETY: until all have said that they have reduced, nobody but this rank is at its slice of anybody's values.
            unsafe { sums::add_in_place(&places, own.len(), wire) };
            // … and now everybody's sums.
            this.finish(round)?;
            this.round = round.wrapping_add(1);
            Ok(())
        })
    }
}
