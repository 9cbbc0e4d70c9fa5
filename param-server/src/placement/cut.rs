//! Cutting a variable into contiguous parts that TensorFlow can name as slices.

use coati_common::variables::VariableSpec;

use super::{Error, Part};

/// Cuts a variable into parts of at most `limit` elements, each a slice: the leading dimensions fixed to one index,
/// a range of the next one, all of the rest.
pub(super) fn cut(spec: &VariableSpec, variable: usize, limit: usize, parts: &mut Vec<Part>) {
    let length = spec.elements();
    if length > 0 {
        cut_from(
            &spec.shape,
            Part {
                variable,
                start: 0,
                length,
            },
            limit.max(1),
            parts,
        );
    }
}

fn cut_from(shape: &[i64], whole: Part, limit: usize, parts: &mut Vec<Part>) {
    if whole.length <= limit {
        parts.push(whole);
        return;
    }
    // More than one element is left, so some dimension is larger than one.
    let Some(axis) = shape.iter().position(|&size| size > 1) else {
        parts.push(whole);
        return;
    };
    let rows = shape[axis] as usize;
    let row = whole.length / rows;
    let rest = &shape[axis + 1..];
    if row > limit {
        for index in 0..rows {
            let part = Part {
                start: whole.start + index * row,
                length: row,
                ..whole
            };
            cut_from(rest, part, limit, parts);
        }
    } else {
        let count = rows.div_ceil(limit / row);
        let (each, longer) = (rows / count, rows % count);
        let mut start = whole.start;
        for index in 0..count {
            let length = row * (each + usize::from(index < longer));
            parts.push(Part { start, length, ..whole });
            start += length;
        }
    }
}

/// Joins neighbours in a sorted list where the union is still a slice.
pub(super) fn join(specs: &[VariableSpec], parts: &[Part]) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::with_capacity(parts.len());
    for &part in parts {
        if let Some(last) = joined.last_mut()
            && last.variable == part.variable
            && last.start + last.length == part.start
            && axes(&specs[part.variable].shape, last.start, last.length + part.length).is_some()
        {
            last.length += part.length;
        } else {
            joined.push(part);
        }
    }
    joined
}

/// The slice of a tensor of that shape which holds exactly the elements `start .. start + length` of its C order:
/// first index and count of each dimension (`TensorSliceProto`'s extents).
pub fn slice_of(shape: &[i64], start: u64, length: u64) -> Result<(Vec<i64>, Vec<i64>), Error> {
    axes(shape, start as usize, length as usize).ok_or_else(|| Error::Inconsistent {
        what: format!(
            "elements {start} to {} of shape {shape:?} are not a slice",
            start.saturating_add(length)
        ),
    })
}

fn axes(shape: &[i64], start: usize, length: usize) -> Option<(Vec<i64>, Vec<i64>)> {
    let total = shape.iter().try_fold(1usize, |product, &size| {
        product.checked_mul(usize::try_from(size).ok()?)
    })?;
    if length == 0 || start.checked_add(length)? > total {
        return None;
    }
    let (mut starts, mut counts) = (Vec::with_capacity(shape.len()), Vec::with_capacity(shape.len()));
    let (mut stride, mut first) = (total, start);
    let mut ranged = false;
    for &size in shape {
        stride /= size as usize;
        if ranged {
            starts.push(0);
            counts.push(size);
            continue;
        }
        let index = first / stride;
        first %= stride;
        starts.push(index as i64);
        if length < stride {
            // Lies within one row of this dimension.
            counts.push(1);
        } else {
            if first != 0 || !length.is_multiple_of(stride) || index + length / stride > size as usize {
                return None;
            }
            counts.push((length / stride) as i64);
            ranged = true;
        }
    }
    (counts.iter().product::<i64>() == length as i64).then_some((starts, counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_a_matrix() {
        assert_eq!(slice_of(&[4, 3], 0, 12).unwrap(), (vec![0, 0], vec![4, 3]));
        assert_eq!(slice_of(&[4, 3], 3, 6).unwrap(), (vec![1, 0], vec![2, 3]));
        assert_eq!(slice_of(&[4, 3], 4, 2).unwrap(), (vec![1, 1], vec![1, 2]));
        assert_eq!(
            slice_of(&[1, 1, 4, 3], 3, 6).unwrap(),
            (vec![0, 0, 1, 0], vec![1, 1, 2, 3])
        );
        assert_eq!(slice_of(&[], 0, 1).unwrap(), (vec![], vec![]));
        assert!(slice_of(&[4, 3], 1, 3).is_err());
        assert!(slice_of(&[4, 3], 2, 2).is_err());
        assert!(slice_of(&[4, 3], 9, 6).is_err());
        assert!(slice_of(&[4, 3], 0, 0).is_err());
    }

    #[test]
    fn rows_too_large_are_cut_further_in() {
        let kind = coati_common::variables::VariableKind::Trainable;
        let spec = VariableSpec {
            name: "w".into(),
            shape: vec![3, 1, 10],
            kind,
        };
        let mut parts = Vec::new();
        cut(&spec, 7, 4, &mut parts);
        let lengths: Vec<_> = parts.iter().map(|p| p.length).collect();
        assert_eq!(lengths, [4, 3, 3, 4, 3, 3, 4, 3, 3]);
        for part in parts {
            slice_of(&spec.shape, part.start as u64, part.length as u64).unwrap();
        }
    }
}
