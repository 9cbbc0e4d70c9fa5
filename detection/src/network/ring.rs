//! The last few rows of an image, prepared for a window that slides down it.

use crate::kernels::depthwise::LARGEST;

/// Rows with horizontal padding, filled on demand; a row outside the image is zero.
pub(crate) struct Ring {
    slots: *mut f32,
    zero: *const f32,
    /// Elements of a row with its padding.
    stride: usize,
    /// How many rows are kept.
    rows: usize,
    held: [usize; LARGEST],
}

/// No row.
const NONE: usize = usize::MAX;

impl Ring {
    /// Elements of scratch that a ring of `rows` rows of `stride` elements needs.
    pub(crate) fn elements(rows: usize, stride: usize) -> usize {
        (rows + 1) * stride
    }

    /// A ring of at most [`LARGEST`] rows.
    ///
    /// # Safety
    /// `memory` holds [`Ring::elements`] and outlives the ring.
    pub(crate) unsafe fn new(memory: *mut f32, rows: usize, stride: usize) -> Self {
        let zero = memory.wrapping_add(rows * stride);
        unsafe {
            zero.write_bytes(0, stride);
        }
        Self {
            slots: memory,
            zero,
            stride,
            rows,
            held: [NONE; LARGEST],
        }
    }

    /// Row `row` of an image of `height` rows. `fill` writes it, at most once while it stays in the ring.
    pub(crate) fn row(&mut self, row: isize, height: usize, fill: impl FnOnce(usize, *mut f32)) -> *const f32 {
        if row < 0 || row as usize >= height {
            return self.zero;
        }
        let row = row as usize;
        let slot = row % self.rows;
        let to = self.slots.wrapping_add(slot * self.stride);
        if self.held[slot] != row {
            fill(row, to);
            self.held[slot] = row;
        }
        to
    }
}
