//! Memory in which sums are formed: a rank's own, or a place in a mapping that all ranks of a host have.

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

/// Elements of one rank that are summed as one: see [`crate::Communicator::parts`]. Whoever holds it is alone with it, except while
/// [`crate::Communicator::all_reduce`] has it.
pub struct Part(Place);

enum Place {
    Own(Vec<f32>),
    Mapped { mapping: Arc<Mapping>, range: Range<usize> },
}

/// A place for `elements` of each rank, one rank after the other.
pub(crate) struct Mapping {
    base: NonNull<f32>,
    rank: usize,
    world: usize,
    elements: usize,
    stride: usize,
    bytes: usize,
}

// SAFETY: elements are reached through `Part`s alone, which hold disjoint ranges of the own place, and through `Mapping::of`, whose
// callers know from the ranks' counters that nobody else is at them.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Cache lines between two ranks' places beyond whole pages: elements that are added up then do not share a set of the cache.
const SKEW: usize = 16 * 5;

impl Mapping {
    /// Elements from one rank's place to the next one's.
    fn stride(elements: usize) -> usize {
        elements.next_multiple_of(1024) + SKEW
    }

    /// Bytes of a mapping.
    pub(crate) fn bytes_for(elements: usize, world: usize) -> usize {
        (Self::stride(elements) * world * size_of::<f32>()).next_multiple_of(4096)
    }

    /// Takes over `base`, which is unmapped at the end.
    ///
    /// # Safety
    /// `base` is a mapping of [`Self::bytes_for`] these numbers, of this process and nobody else's to unmap.
    pub(crate) unsafe fn new(base: NonNull<f32>, elements: usize, world: usize, rank: usize) -> Self {
        Self {
            base,
            rank,
            world,
            elements,
            stride: Self::stride(elements),
            bytes: Self::bytes_for(elements, world),
        }
    }

    /// A range of a rank's place.
    pub(crate) fn of(&self, rank: usize, range: &Range<usize>) -> *mut f32 {
        assert!(rank < self.world && range.start <= range.end && range.end <= self.elements);
        // SAFETY: within the mapping, which has `world` places of `stride` elements.
        unsafe { self.base.add(rank * self.stride + range.start).as_ptr() }
    }

    /// Parts of these lengths, one after the other; together at most all elements.
    pub(crate) fn cut(self: &Arc<Self>, lengths: &[usize]) -> Vec<Part> {
        let mut start = 0;
        let cut = lengths.iter().map(|length| {
            let range = start..start + length;
            start = range.end;
            let mapping = Arc::clone(self);
            Part(Place::Mapped { mapping, range })
        });
        cut.collect()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

impl Part {
    /// Where it lies among all ranks' places; nothing where it is this process's own.
    pub(crate) fn mapped(&self) -> Option<(&Arc<Mapping>, &Range<usize>)> {
        match &self.0 {
            Place::Own(_) => None,
            Place::Mapped { mapping, range } => Some((mapping, range)),
        }
    }
}

impl From<Vec<f32>> for Part {
    fn from(values: Vec<f32>) -> Self {
        Self(Place::Own(values))
    }
}

impl Deref for Part {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Place::Own(values) => values,
            // SAFETY: parts hold disjoint ranges of the own place. Other processes are at it only within an all-reduce, which borrows the
            // part; memory is zeroed by the system at first.
            Place::Mapped { mapping, range } => unsafe {
                std::slice::from_raw_parts(mapping.of(mapping.rank, range), range.len())
            },
        }
    }
}

impl DerefMut for Part {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Place::Own(values) => values,
            // SAFETY: as above; the part is borrowed for as long.
            Place::Mapped { mapping, range } => unsafe {
                std::slice::from_raw_parts_mut(mapping.of(mapping.rank, range), range.len())
            },
        }
    }
}
