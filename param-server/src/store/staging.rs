use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1::Encoding;

use super::engine::Engine;
use super::ledger::{Admit, Tag};
use crate::pool::Buffer;
use crate::wire::{PAIR_BYTES, from_bf16, unpack_topk};

/// Whether a contribution's data is wanted.
#[derive(Debug)]
pub enum Push {
    /// Send it.
    Wanted(Staging),
    /// It is known, or too old: acknowledged without its data.
    Ignored(Admit),
}

/// What a chunk of a contribution is.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// First element within the arena.
    pub offset: u64,
    /// How its elements are written.
    pub encoding: Encoding,
    /// With [`Encoding::Topk`], the number of elements that it stands for.
    pub elements: u32,
    /// Bytes of data.
    pub bytes: usize,
}

/// A contribution under way. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Staging {
    engine: Arc<Engine>,
    tag: Tag,
    /// `[pushed_len]`; holds some older contribution where nothing has been written.
    buffer: Buffer,
    covered: Covered,
    open: Option<Open>,
}

/// The chunk whose data comes now.
#[derive(Debug)]
struct Open {
    elements: Range<usize>,
    encoding: Encoding,
    bytes: usize,
    done: usize,
    /// Data that cannot be put in its place before it is whole.
    held: Vec<u8>,
}

impl Staging {
    pub(super) fn begin(engine: Arc<Engine>, tag: Tag) -> Result<Push, ServiceError> {
        Ok(match engine.admit(tag)? {
            Admit::Fresh => {
                let buffer = engine.pool.take_whole();
                Push::Wanted(Self {
                    engine,
                    tag,
                    buffer,
                    covered: Covered::default(),
                    open: None,
                })
            }
            ignored => Push::Ignored(ignored),
        })
    }

    /// Begins a chunk, after the data of the one before. Chunks come in any order and do not overlap.
    pub fn chunk(&mut self, chunk: Chunk) -> Result<(), ServiceError> {
        let elements = elements(chunk)
            .and_then(|count| within(chunk.offset, count, self.buffer.data.len()))
            .and_then(|range| {
                self.covered.add(range.clone())?;
                Ok(range)
            })
            .map_err(|what| self.refused(&what))?;
        if self.open.is_some() {
            return Err(self.refused("a chunk begins before the one before is complete"));
        }
        let open = Open {
            elements,
            encoding: chunk.encoding,
            bytes: chunk.bytes,
            done: 0,
            held: Vec::new(),
        };
        if open.bytes == 0 {
            self.close(open)
        } else {
            self.open = Some(open);
            Ok(())
        }
    }

    /// Where the next bytes of the chunk's data belong; empty when it has all of them. [`Staging::filled`] says how many are
    /// there.
    pub fn room(&mut self) -> &mut [u8] {
        match &mut self.open {
            None => &mut [],
            Some(open) if open.encoding == Encoding::Float32 => {
                let place = &mut self.buffer.data[open.elements.clone()];
                &mut bytemuck::cast_slice_mut(place)[open.done..]
            }
            Some(open) => {
                open.held.resize(open.bytes, 0);
                &mut open.held[open.done..]
            }
        }
    }

    /// So many bytes of [`Staging::room`] have come. Looks at them while they are in the cache.
    pub fn filled(&mut self, bytes: usize) -> Result<(), ServiceError> {
        let accepts = self.engine.accepts_non_finite();
        let Some(open) = self.open.as_mut().filter(|open| bytes <= open.bytes - open.done) else {
            return Err(self.refused("data that belongs to no chunk"));
        };
        let done = open.done + bytes;
        if open.encoding == Encoding::Float32 && !accepts {
            let found = completed_broken(&self.buffer.data[open.elements.clone()], open.done..done);
            if let Some(index) = found {
                let index = open.elements.start + index;
                return Err(self.non_finite(index));
            }
        }
        open.done = done;
        if open.done == open.bytes {
            self.open.take().map_or(Ok(()), |open| self.close(open))
        } else {
            Ok(())
        }
    }

    /// Takes the next bytes of the chunk's data.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ServiceError> {
        let room = self.room();
        if bytes.len() > room.len() {
            return Err(self.refused("data that belongs to no chunk"));
        }
        room[..bytes.len()].copy_from_slice(bytes);
        self.filled(bytes.len())
    }

    /// Puts the chunk in its place and checks it, where that is not done yet.
    fn close(&mut self, open: Open) -> Result<(), ServiceError> {
        let place = &mut self.buffer.data[open.elements.clone()];
        match open.encoding {
            Encoding::Float32 => return Ok(()),
            Encoding::Bfloat16 => from_bf16(&open.held, place),
            Encoding::Topk => {
                if let Err(what) = unpack_topk(&open.held, place) {
                    return Err(self.refused(&what));
                }
            }
        }
        match not_finite(place).filter(|_| !self.engine.accepts_non_finite()) {
            None => Ok(()),
            Some(index) => Err(self.non_finite(open.elements.start + index)),
        }
    }

    /// Takes a chunk of float32 as a whole.
    pub fn take(&mut self, offset: u64, values: &[f32]) -> Result<(), ServiceError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.chunk(Chunk {
            offset,
            encoding: Encoding::Float32,
            elements: 0,
            bytes: bytes.len(),
        })?;
        if bytes.is_empty() { Ok(()) } else { self.write(bytes) }
    }

    #[cold]
    fn refused(&self, what: &str) -> ServiceError {
        ServiceError::new(ErrorCode::LayoutMismatch, format!("{}: {what}", self.name()))
    }

    /// Whose gradient, and where it is refused.
    fn name(&self) -> String {
        let (tag, ps) = (self.tag, self.engine.ps);
        format!(
            "gradient of replica {} for version {} on ps-{ps}",
            tag.replica, tag.version
        )
    }

    fn variable(&self, index: usize) -> &str {
        let variable = self.engine.layout.variable_at(self.engine.ps, index);
        variable.map_or("?", |spec| spec.name.as_str())
    }

    #[cold]
    fn non_finite(&self, index: usize) -> ServiceError {
        let (value, variable) = (self.buffer.data[index], self.variable(index));
        let message = format!("{} holds {value} in `{variable}`", self.name());
        ServiceError::new(ErrorCode::NonFiniteGradient, message).with_hint(
            "lower the learning rate or set gradient_clipping_by_norm, and check the data; `coati.on_nan` says what becomes of such a gradient",
        )
    }

    /// Stages what was written, if it is complete.
    pub fn finish(self) -> Result<Admit, ServiceError> {
        let (have, want) = (self.covered.elements, self.buffer.data.len());
        if have != want || self.open.is_some() {
            let message = format!(
                "{} ended after {have} of {want} elements; the first that is missing is in `{}`",
                self.name(),
                self.variable(self.covered.first_gap())
            );
            return Err(ServiceError::new(ErrorCode::LayoutMismatch, message));
        }
        self.engine.stage(self.tag, self.buffer)
    }
}

/// The first element that is complete since these of the `values`' bytes have come, and not finite.
fn completed_broken(values: &[f32], bytes: Range<usize>) -> Option<usize> {
    // The first of them may have been cut in two.
    let complete = bytes.start / 4..bytes.end / 4;
    not_finite(&values[complete.clone()]).map(|index| complete.start + index)
}

fn not_finite(values: &[f32]) -> Option<usize> {
    if values.iter().fold(true, |finite, value| finite & value.is_finite()) {
        return None;
    }
    values.iter().position(|value| !value.is_finite())
}

/// Number of arena elements that a chunk stands for.
fn elements(chunk: Chunk) -> Result<usize, String> {
    let whole = |bytes: usize, what: &str| {
        if chunk.bytes.is_multiple_of(bytes) {
            Ok(chunk.bytes / bytes)
        } else {
            Err(format!("a chunk of {} bytes is no whole number of {what}", chunk.bytes))
        }
    };
    match chunk.encoding {
        Encoding::Float32 => whole(4, "float32"),
        Encoding::Bfloat16 => whole(2, "bfloat16"),
        Encoding::Topk => {
            let pairs = whole(PAIR_BYTES, "pairs")?;
            if pairs <= chunk.elements as usize {
                Ok(chunk.elements as usize)
            } else {
                Err(format!("{pairs} pairs for {} elements", chunk.elements))
            }
        }
    }
}

fn within(offset: u64, count: usize, limit: usize) -> Result<Range<usize>, String> {
    let end = offset.checked_add(count as u64).filter(|&end| end <= limit as u64);
    end.map(|end| offset as usize..end as usize).ok_or_else(|| {
        format!(
            "elements {offset} to {} are beyond the arena's {limit}",
            offset.saturating_add(count as u64)
        )
    })
}

/// Which elements have come.
#[derive(Debug, Default)]
pub(crate) struct Covered {
    /// First element and end of runs that do not touch.
    runs: BTreeMap<usize, usize>,
    elements: usize,
}

impl Covered {
    /// The first element that has not come.
    fn first_gap(&self) -> usize {
        self.runs
            .first_key_value()
            .map_or(0, |(&start, &end)| if start == 0 { end } else { 0 })
    }

    pub(crate) fn add(&mut self, range: Range<usize>) -> Result<(), String> {
        let Range { mut start, mut end } = range;
        if start == end {
            return Ok(());
        }
        let before = self.runs.range(..end).next_back().map(|(&first, &last)| (first, last));
        if let Some((first, last)) = before {
            if last > start {
                return Err(format!("elements {} to {} come twice", start.max(first), end.min(last)));
            }
            if last == start {
                self.runs.remove(&first);
                start = first;
            }
        }
        self.elements += end - start.max(range.start);
        if let Some(last) = self.runs.remove(&end) {
            end = last;
        }
        self.runs.insert(start, end);
        Ok(())
    }
}

/// Initial values under way. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Loading {
    engine: Arc<Engine>,
    values: Vec<f32>,
}

impl Loading {
    pub(super) fn new(engine: Arc<Engine>) -> Result<Self, ServiceError> {
        engine.check_loadable()?;
        let values = Vec::with_capacity(engine.server()?.arena_len);
        Ok(Self { engine, values })
    }

    /// Takes the next chunk: float32, little endian, from arena element `offset`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ServiceError> {
        append(&mut self.values, self.engine.server()?.arena_len, offset, bytes)
            .map_err(|what| ServiceError::new(ErrorCode::LayoutMismatch, format!("initial values: {what}")))
    }

    /// Makes the values the variables' values at `version`; returns their number.
    pub fn finish(self, version: u64) -> Result<u64, ServiceError> {
        let count = self.values.len() as u64;
        self.engine.load(self.values, version)?;
        Ok(count)
    }
}

pub(super) fn append(data: &mut Vec<f32>, limit: usize, offset: u64, bytes: &[u8]) -> Result<(), String> {
    let (next, count) = (data.len(), bytes.len() / 4);
    if !bytes.len().is_multiple_of(4) {
        return Err(format!(
            "a chunk of {} bytes is no whole number of float32",
            bytes.len()
        ));
    }
    if offset != next as u64 {
        return Err(format!("a chunk begins at element {offset}, {next} is next"));
    }
    if count > limit - next {
        return Err(format!(
            "elements {offset} to {} are beyond the arena's {limit}",
            next + count
        ));
    }
    data.extend(bytes.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_element_counts_once_in_any_order(
            cuts in prop::collection::btree_set(1usize..200, 0..20),
            order in any::<u64>(),
        ) {
            let ends: Vec<usize> = cuts.iter().copied().chain([200]).collect();
            let mut ranges: Vec<Range<usize>> = ends.iter().scan(0, |start, &end| {
                let range = *start..end;
                *start = end;
                Some(range)
            }).collect();
            ranges.sort_by_key(|range| (range.start as u64 + 1).wrapping_mul(order | 1));
            let mut covered = Covered::default();
            let mut count = 0;
            for range in &ranges {
                covered.add(range.clone()).unwrap();
                count += range.len();
                prop_assert_eq!(covered.elements, count);
                prop_assert!(covered.add(range.clone()).is_err());
                prop_assert!(covered.add(range.start.saturating_sub(1)..range.start + 1).is_err());
                prop_assert!(covered.add(range.end - 1..range.end + 5).is_err());
                prop_assert_eq!(covered.elements, count);
            }
            prop_assert_eq!(covered.runs, BTreeMap::from([(0, 200)]));
        }
    }

    #[test]
    fn a_chunk_must_fit_its_encoding_and_the_arena() {
        let chunk = |encoding, bytes, count| {
            elements(Chunk {
                offset: 0,
                encoding,
                elements: count,
                bytes,
            })
        };
        assert_eq!(chunk(Encoding::Float32, 12, 0), Ok(3));
        assert_eq!(chunk(Encoding::Bfloat16, 12, 0), Ok(6));
        assert_eq!(chunk(Encoding::Topk, 16, 1000), Ok(1000));
        assert!(chunk(Encoding::Float32, 13, 0).is_err());
        assert!(chunk(Encoding::Bfloat16, 13, 0).is_err());
        assert!(chunk(Encoding::Topk, 12, 1000).is_err());
        assert!(chunk(Encoding::Topk, 16, 1).is_err());
        assert!(within(u64::MAX, 2, 10).is_err());
        assert!(within(8, 3, 10).is_err());
        assert_eq!(within(8, 2, 10), Ok(8..10));
    }

    #[test]
    fn what_is_not_finite_is_found_however_its_bytes_are_cut() {
        for broken in [None, Some(0), Some(2500), Some(4999)] {
            let mut values: Vec<f32> = (0..5000).map(|i| i as f32).collect();
            if let Some(broken) = broken {
                values[broken] = f32::NEG_INFINITY;
            }
            let bytes: &[u8] = bytemuck::cast_slice(&values);
            for piece in [1, 3, 4, 1001, 8194, bytes.len()] {
                let mut place = vec![f32::NAN; values.len()];
                let mut found = None;
                for (start, piece) in (0..).step_by(piece).zip(bytes.chunks(piece)) {
                    let end = start + piece.len();
                    bytemuck::cast_slice_mut(&mut place)[start..end].copy_from_slice(piece);
                    found = found.or(completed_broken(&place, start..end));
                }
                assert_eq!((found, &place), (broken, &values), "in pieces of {piece} bytes");
            }
        }
    }
}
