//! Boxes within a tensor.

use std::fmt;

use super::elements;

/// A box within a tensor: start and length of each dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// First index of each dimension.
    pub start: Vec<i64>,
    /// Number of indices of each dimension.
    pub length: Vec<i64>,
}

/// A run of elements that is contiguous in the slice and in the whole tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// First element within the slice, in C order.
    pub(super) slice: u64,
    /// First element within the whole tensor.
    pub(super) full: u64,
    /// Number of elements.
    pub(super) length: u64,
}

impl Slice {
    /// The box that is the whole tensor.
    pub fn whole(shape: &[i64]) -> Self {
        Self {
            start: vec![0; shape.len()],
            length: shape.to_vec(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        elements(&self.length).unwrap_or(0)
    }

    /// True when it is all of a tensor of this shape.
    pub fn is_whole(&self, shape: &[i64]) -> bool {
        self.start.iter().all(|&start| start == 0) && self.length == shape
    }

    /// Says why this is no part of a tensor of this shape, if it is not.
    pub(super) fn complaint(&self, shape: &[i64]) -> Option<String> {
        if self.start.len() != shape.len() || self.length.len() != shape.len() {
            return Some(format!(
                "slice {self} has not the {} dimensions of shape {shape:?}",
                shape.len()
            ));
        }
        let fits = self
            .start
            .iter()
            .zip(&self.length)
            .zip(shape)
            .all(|((&start, &length), &size)| {
                start >= 0 && length > 0 && start.checked_add(length).is_some_and(|end| end <= size)
            });
        (!fits).then(|| format!("slice {self} is not within shape {shape:?}"))
    }

    /// True when an element lies in both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.start
            .iter()
            .zip(&self.length)
            .zip(other.start.iter().zip(&other.length))
            .all(|((&a, &a_length), (&b, &b_length))| a < b + b_length && b < a + a_length)
    }

    /// Contiguous runs in C order. The slice must lie within `shape`.
    pub(super) fn runs(&self, shape: &[i64]) -> Vec<Run> {
        // Dimensions after the last one that is cut belong to one run together with it.
        let cut = (0..shape.len())
            .rev()
            .find(|&axis| self.length[axis] != shape[axis])
            .unwrap_or(0);
        let stride = |axis: usize| shape[axis + 1..].iter().product::<i64>() as u64;
        let length = self.length.iter().skip(cut).product::<i64>() as u64;
        let count = self.length.iter().take(cut).product::<i64>() as u64;
        let base: u64 = self
            .start
            .iter()
            .enumerate()
            .map(|(axis, &start)| start as u64 * stride(axis))
            .sum();
        let run = |number: u64| {
            let mut rest = number;
            let mut full = base;
            for axis in (0..cut).rev() {
                let size = self.length[axis] as u64;
                full += rest % size * stride(axis);
                rest /= size;
            }
            Run {
                slice: number * length,
                full,
                length,
            }
        };
        (0..count).map(run).collect()
    }
}

impl fmt::Display for Slice {
    /// As TensorFlow prints slices: `start,length` of each dimension.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (axis, (start, length)) in self.start.iter().zip(&self.length).enumerate() {
            let separator = if axis == 0 { "" } else { ":" };
            write!(formatter, "{separator}{start},{length}")?;
        }
        Ok(())
    }
}

/// Cuts a run of elements (C order) of a tensor into boxes, in order, each of them contiguous; at most two a dimension,
/// less one. A checkpoint knows only boxes, a parameter server's piece is any run.
///
/// Empty when the run is empty or not within the tensor.
pub fn flat_range_slices(shape: &[i64], start: u64, length: u64) -> Vec<Slice> {
    let Some(total) = elements(shape) else {
        return Vec::new();
    };
    let Some(end) = start.checked_add(length).filter(|&end| end <= total && length > 0) else {
        return Vec::new();
    };
    let mut slices = Vec::new();
    let mut at = start;
    while at < end {
        slices.push(largest_box(shape, at, end));
        at += slices.last().map_or(end, Slice::elements);
    }
    slices
}

/// The largest contiguous box that starts at element `at` and ends at or before `end`.
fn largest_box(shape: &[i64], at: u64, end: u64) -> Slice {
    let mut start = vec![0; shape.len()];
    let mut length = vec![1; shape.len()];
    let mut rest = at;
    let mut stride = 1;
    for axis in (0..shape.len()).rev() {
        let size = shape[axis] as u64;
        start[axis] = (rest % size) as i64;
        rest /= size;
        stride *= size;
    }
    // From the outermost dimension: the first whose inner indices all start at zero and of which a whole unit fits.
    for axis in 0..shape.len() {
        stride /= shape[axis] as u64;
        let aligned = at.is_multiple_of(stride);
        if aligned && end - at >= stride {
            let left = (shape[axis] - start[axis]) as u64;
            length[axis] = left.min((end - at) / stride) as i64;
            length[axis + 1..].copy_from_slice(&shape[axis + 1..]);
            break;
        }
    }
    Slice { start, length }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_follow_c_order() {
        let slice = Slice {
            start: vec![1, 2, 0],
            length: vec![2, 2, 5],
        };
        let run = |slice, full| Run {
            slice,
            full,
            length: 10,
        };
        assert_eq!(slice.runs(&[3, 4, 5]), [run(0, 30), run(10, 50)]);
        assert_eq!(
            Slice::whole(&[3, 4]).runs(&[3, 4]),
            [Run {
                slice: 0,
                full: 0,
                length: 12
            }]
        );
        assert_eq!(
            Slice::whole(&[]).runs(&[]),
            [Run {
                slice: 0,
                full: 0,
                length: 1
            }]
        );
    }

    #[test]
    fn a_run_becomes_few_boxes() {
        let slices = flat_range_slices(&[4, 5], 3, 14);
        let text: Vec<_> = slices.iter().map(Slice::to_string).collect();
        assert_eq!(text, ["0,1:3,2", "1,2:0,5", "3,1:0,2"]);
        assert_eq!(flat_range_slices(&[4, 5], 0, 20), [Slice::whole(&[4, 5])]);
        assert!(flat_range_slices(&[4, 5], 10, 11).is_empty());
        assert!(flat_range_slices(&[4, 5], u64::MAX, 2).is_empty());
    }

    proptest! {
        #[test]
        fn boxes_cover_exactly_the_run(shape in proptest::collection::vec(1i64..5, 0..5), a in 0.0..1.0f64, b in 0.0..1.0f64) {
            let total = shape.iter().product::<i64>() as u64;
            let start = (a * total as f64) as u64;
            let length = (b * (total - start) as f64) as u64;
            let slices = flat_range_slices(&shape, start, length);
            prop_assert!(slices.len() < (2 * shape.len()).max(2));
            let mut at = start;
            for slice in &slices {
                prop_assert_eq!(slice.complaint(&shape), None);
                let runs = slice.runs(&shape);
                for run in &runs {
                    prop_assert_eq!(run.full, at);
                    at += run.length;
                }
            }
            prop_assert_eq!(at, start + length);
        }
    }
}
