//! The gradients of a step on their way: parts of the flat vector that are filled as the backward pass completes them, summed over all
//! ranks as soon as they are full, and read when all are.

use std::ops::Range;

use coati_collective::buckets::{Handle, Reducer};
use coati_collective::{Communicator, Error, Part, Wire, buckets};
use coati_common::variables::VariableSpec;

/// How an own gradient counts in the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Weight {
    /// As it is: all ranks have as many samples.
    One,
    /// Times its samples.
    Samples(f32),
    /// Not at all.
    Nothing,
}

impl Weight {
    fn copy(self, from: &[f32], to: &mut [f32]) {
        match self {
            Self::One => to.copy_from_slice(from),
            Self::Samples(samples) => to.iter_mut().zip(from).for_each(|(to, &from)| *to = from * samples),
            // Adding it changes no bit of anything.
            Self::Nothing => to.fill(-0.0),
        }
    }
}

/// A bucket, and how far it is.
enum State {
    Filling(Part),
    Summing(Handle),
    Summed(Part),
    /// Its memory went with an error.
    Gone,
}

struct Bucket {
    range: Range<usize>,
    state: State,
    /// What of the range is filled: disjoint, ascending.
    filled: Vec<Range<usize>>,
}

/// See the module.
pub(super) struct Buckets {
    /// In the order in which they are summed: the end of the flat vector first.
    all: Vec<Bucket>,
    wire: Wire,
    /// Number of the first bucket of this step.
    first: u64,
}

impl Buckets {
    /// Cuts the flat vector of `variables` into buckets of `bytes`. All ranks do so alike.
    pub(super) fn new(
        communicator: &mut dyn Communicator,
        variables: &[VariableSpec],
        bytes: usize,
        wire: Wire,
    ) -> Result<Self, Error> {
        let lengths: Vec<usize> = variables.iter().map(VariableSpec::elements).collect();
        let ranges = buckets::plan(&lengths, bytes);
        let lengths: Vec<usize> = ranges.iter().map(ExactSizeIterator::len).collect();
        let parts = communicator.parts(&lengths)?;
        let bucket = |(range, part)| Bucket {
            range,
            state: State::Filling(part),
            filled: Vec::new(),
        };
        Ok(Self {
            all: ranges.into_iter().zip(parts).map(bucket).collect(),
            wire,
            first: 0,
        })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Takes elements of the own gradient. Those that were taken before are left as they are.
    pub(super) fn put(&mut self, elements: &Range<usize>, values: &[f32], weight: Weight, reducer: &mut Reducer) {
        for (index, bucket) in self.all.iter_mut().enumerate() {
            let start = elements.start.max(bucket.range.start);
            let end = elements.end.min(bucket.range.end);
            if start >= end {
                continue;
            }
            let State::Filling(part) = &mut bucket.state else {
                continue;
            };
            for gap in gaps(&bucket.filled, &(start..end)) {
                let to = &mut part[gap.start - bucket.range.start..gap.end - bucket.range.start];
                weight.copy(&values[gap.start - elements.start..gap.end - elements.start], to);
                insert(&mut bucket.filled, gap);
            }
            if bucket.filled == [bucket.range.clone()]
                && let State::Filling(part) = std::mem::replace(&mut bucket.state, State::Gone)
            {
                bucket.state = State::Summing(reducer.submit(self.first + index as u64, part, self.wire));
            }
        }
    }

    /// Waits for all sums.
    pub(super) fn wait(&mut self) -> Result<(), Error> {
        for bucket in &mut self.all {
            match std::mem::replace(&mut bucket.state, State::Gone) {
                State::Summing(handle) => bucket.state = State::Summed(handle.wait()?),
                State::Summed(part) => bucket.state = State::Summed(part),
                State::Filling(_) | State::Gone => {
                    return Err(Error::Bucket("a bucket was not filled".to_owned()));
                }
            }
        }
        Ok(())
    }

    /// The sums of these elements, in pieces: where a piece begins in `elements`, and its values. Only after [`Self::wait`].
    pub(super) fn sums(&self, elements: &Range<usize>) -> impl Iterator<Item = (usize, &[f32])> {
        // From the end of the flat vector to its beginning.
        let from = self.all.partition_point(|bucket| bucket.range.start >= elements.end);
        let wanted = elements.clone();
        self.all[from..]
            .iter()
            .take_while(move |bucket| bucket.range.end > wanted.start)
            .filter_map({
                let elements = elements.clone();
                move |bucket| {
                    let State::Summed(part) = &bucket.state else {
                        return None;
                    };
                    let start = elements.start.max(bucket.range.start);
                    let end = elements.end.min(bucket.range.end);
                    let values = &part[start - bucket.range.start..end - bucket.range.start];
                    Some((start - elements.start, values))
                }
            })
    }

    /// Begins with the next step, or this one again; `next` is the number that the first bucket gets.
    pub(super) fn begin(&mut self, next: u64) {
        self.first = next;
        for bucket in &mut self.all {
            bucket.filled.clear();
            bucket.state = match std::mem::replace(&mut bucket.state, State::Gone) {
                // A step that begins again may have filled some.
                State::Summed(part) | State::Filling(part) => State::Filling(part),
                lost => lost,
            };
        }
    }
}

/// What of `wanted` is not in `filled`.
fn gaps(filled: &[Range<usize>], wanted: &Range<usize>) -> Vec<Range<usize>> {
    let mut gaps = Vec::new();
    let mut at = wanted.start;
    for range in filled {
        if range.start >= wanted.end {
            break;
        }
        if range.start > at {
            gaps.push(at..range.start);
        }
        at = at.max(range.end);
    }
    if at < wanted.end {
        gaps.push(at..wanted.end);
    }
    gaps
}

/// Adds a range that overlaps none, and joins neighbours.
fn insert(filled: &mut Vec<Range<usize>>, new: Range<usize>) {
    let at = filled.partition_point(|range| range.start < new.start);
    filled.insert(at, new);
    if at + 1 < filled.len() && filled[at].end == filled[at + 1].start {
        filled[at].end = filled.remove(at + 1).end;
    }
    if at > 0 && filled[at - 1].end == filled[at].start {
        filled[at - 1].end = filled.remove(at).end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_is_known_however_it_comes() {
        let mut filled = Vec::new();
        for part in [6..8, 0..2, 2..3, 9..10] {
            assert_eq!(gaps(&filled, &part), [part.clone()]);
            insert(&mut filled, part);
        }
        assert_eq!(filled, [0..3, 6..8, 9..10]);
        assert_eq!(gaps(&filled, &(0..10)), [3..6, 8..9]);
        assert_eq!(gaps(&filled, &(1..7)).first(), Some(&(3..6)));
        assert!(gaps(&filled, &(0..3)).is_empty());
        for gap in gaps(&filled, &(0..10)) {
            insert(&mut filled, gap);
        }
        assert_eq!(filled.first(), Some(&(0..10)));
    }

    #[test]
    fn a_rank_that_does_not_count_changes_no_bit() {
        let mut nothing = [1.0_f32; 3];
        Weight::Nothing.copy(&[f32::NAN; 3], &mut nothing);
        for (value, zero) in [0.0_f32, -0.0, 1.5].into_iter().zip(nothing) {
            assert_eq!((value + zero).to_bits(), value.to_bits());
            assert_eq!((zero + value).to_bits(), value.to_bits());
        }
        let mut weighted = [0.0; 2];
        Weight::Samples(3.0).copy(&[2.0, -1.0], &mut weighted);
        assert_eq!(weighted, [6.0, -3.0]);
    }
}
