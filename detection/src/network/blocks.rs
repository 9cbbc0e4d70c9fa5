//! How a layer is cut into tasks. Everything here depends on shapes alone, never on the number of threads: that is what makes results equal
//! bit for bit on any number of them.

use std::ops::Range;

/// Rows of a matrix product cut into blocks that stay in a core's second-level cache, in groups that are tasks of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowBlocks {
    pub(crate) rows: usize,
    pub(crate) groups: usize,
    pub(crate) blocks_per_group: usize,
    /// Rows of a block; the last of a group may be smaller.
    pub(crate) block: usize,
    group: usize,
}

/// Elements of a block's operands together.
const BLOCK_ELEMENTS: usize = 112 * 1024;
/// Elements of all partial weight gradients of a layer together.
const PARTIAL_ELEMENTS: usize = 2 * 1024 * 1024;

impl RowBlocks {
    fn new(rows: usize, groups: usize, width: usize) -> Self {
        let groups = groups.clamp(1, rows.max(1));
        let group = rows.div_ceil(groups).max(1);
        let limit = (BLOCK_ELEMENTS / width.max(1)).clamp(24, 384);
        let blocks_per_group = group.div_ceil(limit);
        let block = group.div_ceil(blocks_per_group).next_multiple_of(4);
        Self {
            rows,
            groups,
            blocks_per_group: group.div_ceil(block),
            block,
            group,
        }
    }

    /// For a forward pass: each block is a task; `width` is the sum of both operands' columns.
    pub(crate) fn forward(rows: usize, width: usize) -> Self {
        let limit = (BLOCK_ELEMENTS / width.max(1)).clamp(24, 384);
        let tasks = rows.div_ceil(limit).max(rows.div_ceil(48).min(8));
        // A multiple of eight, so that the last round of tasks finds all threads busy.
        let tasks = if tasks > 8 { tasks.next_multiple_of(8) } else { tasks };
        Self::new(rows, tasks, width)
    }

    /// For a backward pass: each group sums its own part of a weight gradient of `weights` elements.
    pub(crate) fn backward(rows: usize, width: usize, weights: usize) -> Self {
        let groups = (PARTIAL_ELEMENTS / weights.max(1)).clamp(2, 32).min(rows.div_ceil(48));
        Self::new(rows, groups, width)
    }

    /// Blocks of all groups, counting those that turn out empty.
    pub(crate) fn blocks(&self) -> usize {
        self.groups * self.blocks_per_group
    }

    /// Rows of block `block` of group `group`.
    pub(crate) fn at(&self, group: usize, block: usize) -> Range<usize> {
        let end = ((group + 1) * self.group).min(self.rows);
        let start = (group * self.group + block * self.block).min(end);
        start..(start + self.block).min(end)
    }
}

/// Some columns of the matrix of patches: channels of one place of the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// Which place, counted row by row.
    pub(crate) place: usize,
    pub(crate) channels: Range<usize>,
}

/// Most channels of a slice: a tile of rows and a panel of weights lie in the first-level cache together.
const SLICE_CHANNELS: usize = 384;
/// Elements of a block's part of a slice and of its results together: half of a second-level cache of a megabyte.
const SLICE_ELEMENTS: usize = 160 * 1024;

impl Slice {
    pub(crate) fn len(&self) -> usize {
        self.channels.len()
    }

    /// First column, where each place has `channels`.
    pub(crate) fn at(&self, channels: usize) -> usize {
        self.place * channels + self.channels.start
    }
}

/// The columns of `area` places of `channels` (a multiple of 16) each, in order.
pub(crate) fn slices(area: usize, channels: usize) -> Vec<Slice> {
    let parts = channels.div_ceil(SLICE_CHANNELS).max(1);
    let part = channels.div_ceil(parts).next_multiple_of(16).max(16);
    let places = (0..area).flat_map(|place| {
        (0..channels).step_by(part).map(move |first| Slice {
            place,
            channels: first..(first + part).min(channels),
        })
    });
    places.collect()
}

/// Rows of each task over `rows` of them, where a row takes `width` elements of the cache.
pub(crate) fn slice_rows(rows: usize, width: usize) -> usize {
    let most = (SLICE_ELEMENTS / width.max(1)).clamp(48, 384);
    let tasks = rows.div_ceil(most).max(rows.div_ceil(48).min(8)).max(1);
    // As in `RowBlocks::forward`.
    let tasks = if tasks > 8 { tasks.next_multiple_of(8) } else { tasks };
    rows.div_ceil(tasks).next_multiple_of(4).max(4)
}

/// Rows of images cut into tasks of whole rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageBlocks {
    rows: usize,
    parts: usize,
    batch: usize,
}

impl ImageBlocks {
    /// At least some thirty tasks where the images have rows enough.
    pub(crate) fn new(batch: usize, rows: usize) -> Self {
        Self {
            rows,
            parts: 32_usize.div_ceil(batch.max(1)).min(rows.div_ceil(5)).max(1),
            batch,
        }
    }

    /// One task an image.
    pub(crate) fn whole(batch: usize, rows: usize) -> Self {
        Self { rows, parts: 1, batch }
    }

    pub(crate) fn count(&self) -> usize {
        self.batch * self.parts
    }

    /// (image, rows) of a task.
    pub(crate) fn at(&self, task: usize) -> (usize, Range<usize>) {
        let (image, part) = (task / self.parts, task % self.parts);
        (
            image,
            self.rows * part / self.parts..self.rows * (part + 1) / self.parts,
        )
    }
}

/// A leading dimension for `width` columns (a multiple of 16) that spreads rows over the cache's sets.
pub(crate) fn leading(width: usize) -> usize {
    if (width / 16).is_multiple_of(2) {
        width + 16
    } else {
        width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_every_column_once() {
        for (area, channels) in [(1, 16), (9, 256), (9, 512), (1, 1024), (9, 400), (25, 2048)] {
            let mut next = 0;
            for slice in slices(area, channels) {
                assert_eq!(slice.at(channels), next);
                assert!(slice.len().is_multiple_of(16) && slice.len() <= SLICE_CHANNELS);
                next += slice.len();
            }
            assert_eq!(next, area * channels);
        }
    }

    #[test]
    fn blocks_cover_every_row_once() {
        for rows in [1, 2, 7, 47, 48, 200, 800, 2888, 11_552, 180_000] {
            for width in [32, 96, 1024, 2048, 6000] {
                for blocks in [
                    RowBlocks::forward(rows, width),
                    RowBlocks::backward(rows, width, width * 64),
                ] {
                    let mut next = 0;
                    for group in 0..blocks.groups {
                        for block in 0..blocks.blocks_per_group {
                            let range = blocks.at(group, block);
                            assert!(range.len() <= blocks.block);
                            if !range.is_empty() {
                                assert_eq!(range.start, next);
                                next = range.end;
                            }
                        }
                    }
                    assert_eq!(next, rows, "{blocks:?}");
                }
            }
        }
        for (batch, rows) in [(1, 1), (1, 150), (8, 19), (3, 7), (40, 150)] {
            let blocks = ImageBlocks::new(batch, rows);
            let mut seen = vec![0; batch * rows];
            for task in 0..blocks.count() {
                let (image, range) = blocks.at(task);
                range.for_each(|row| seen[image * rows + row] += 1);
            }
            assert!(seen.iter().all(|&n| n == 1));
        }
    }
}
