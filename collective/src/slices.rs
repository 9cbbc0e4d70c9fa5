//! How a bucket is cut: pure arithmetic, the same on all ranks.

use std::ops::Range;

/// A cache line of elements, so that two ranks never write to one.
const LINE: usize = 16;

/// The rounds of an operation on `count` elements, at most `most` each; at least one, so that ranks meet.
pub(crate) fn rounds(count: usize, most: usize) -> usize {
    count.div_ceil(most.max(1)).max(1)
}

/// Where round `index` lies among `count` elements.
pub(crate) fn round(count: usize, most: usize, index: usize) -> Range<usize> {
    let most = most.max(1);
    let start = index.saturating_mul(most).min(count);
    start..start.saturating_add(most).min(count)
}

/// The part of `range` that rank `rank` of `world` adds up.
pub(crate) fn own(range: &Range<usize>, world: usize, rank: usize) -> Range<usize> {
    let part = range.len().div_ceil(world).next_multiple_of(LINE);
    let start = (range.start + rank * part).min(range.end);
    start..(start + part).min(range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once_and_none_is_larger_than_its_share() {
        for count in [0, 1, 15, 16, 17, 100, 1000, 4096, 4097] {
            for world in 1..=5 {
                let most = 64 * world;
                let mut next = 0;
                for index in 0..rounds(count, most) {
                    let whole = round(count, most, index);
                    for rank in 0..world {
                        let part = own(&whole, world, rank);
                        assert_eq!(part.start, next, "{count} {world}");
                        assert!(part.len() <= 64, "{count} {world}: {part:?}");
                        next = part.end;
                    }
                }
                assert_eq!(next, count, "{count} {world}");
            }
        }
    }
}
