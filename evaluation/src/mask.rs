//! Instance masks as run lengths, column by column, as COCO stores them.

use hotcoco::{Rle, mask};

use crate::error::Error;

/// One instance's pixels. An empty mask stands for a box that nobody has segmented.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask(Rle);

impl Mask {
    /// From one byte a pixel, row by row; everything but 0 belongs to the instance. `None` where `pixels` is not `height * width` long.
    pub fn from_rows(pixels: &[u8], height: u32, width: u32) -> Option<Self> {
        let (rows, columns) = (height as usize, width as usize);
        if pixels.len() != rows.checked_mul(columns)? {
            return None;
        }
        let by_column: Vec<u8> = (0..columns)
            .flat_map(|x| (0..rows).map(move |y| pixels[y * columns + x]))
            .collect();
        mask::encode(&by_column, height, width).ok().map(Self)
    }

    /// From COCO's compressed string (`counts`).
    pub fn from_coco_string(counts: &str, height: u32, width: u32) -> Result<Self, Error> {
        let rle = mask::rle_from_string(counts, height, width).map_err(|error| {
            Error::BadMask(format!(
                "a mask of {height} x {width} pixels: {error}\nhint: `counts` is COCO's run-length string for exactly this size"
            ))
        })?;
        Self::from_counts(rle.counts, height, width)
    }

    /// From run lengths that begin with background (COCO's uncompressed form).
    pub fn from_counts(counts: Vec<u32>, height: u32, width: u32) -> Result<Self, Error> {
        let (sum, wanted) = (
            counts.iter().map(|&count| u64::from(count)).sum::<u64>(),
            u64::from(height) * u64::from(width),
        );
        if sum != wanted {
            return Err(Error::BadMask(format!(
                "a mask of {height} x {width} pixels whose run lengths add up to {sum}\nhint: they add up to height times width, {wanted}"
            )));
        }
        Ok(Self(Rle {
            h: height,
            w: width,
            counts,
        }))
    }

    /// From polygons `[x, y, x, y, …]` in pixels, as COCO's tools fill them.
    pub fn from_polygons(polygons: &[Vec<f64>], height: u32, width: u32) -> Result<Self, Error> {
        let corners = |polygon: &Vec<f64>| {
            polygon.len() >= 6 && polygon.len().is_multiple_of(2) && polygon.iter().all(|v| v.is_finite())
        };
        if let Some(index) = polygons.iter().position(|polygon| !corners(polygon)) {
            return Err(Error::BadMask(format!(
                "polygon {index} has {} numbers\nhint: each has at least three corners x, y in pixels",
                polygons[index].len()
            )));
        }
        mask::fr_polys(polygons, height, width).map(Self).map_err(|error| {
            Error::BadMask(format!(
                "polygons: {error}\nhint: each has at least three corners x, y in pixels"
            ))
        })
    }

    /// No pixel at all.
    pub fn empty(height: u32, width: u32) -> Self {
        Self(Rle {
            h: height,
            w: width,
            counts: vec![height.saturating_mul(width)],
        })
    }

    /// Height and width in pixels.
    pub fn size(&self) -> [u32; 2] {
        [self.0.h, self.0.w]
    }

    /// Pixels of the instance.
    pub fn area(&self) -> u64 {
        mask::area(&self.0)
    }

    /// Pixels that both have.
    pub fn intersection(&self, other: &Self) -> u64 {
        let (mut ours, mut theirs) = (self.foreground(), other.foreground());
        let (mut a, mut b) = (ours.next(), theirs.next());
        let mut sum = 0;
        while let (Some((from_a, to_a)), Some((from_b, to_b))) = (a, b) {
            sum += to_a.min(to_b).saturating_sub(from_a.max(from_b));
            if to_a <= to_b {
                a = ours.next();
            } else {
                b = theirs.next();
            }
        }
        sum
    }

    /// `[ymin, xmin, ymax, xmax]` as fractions, the last row and column included; zeros for an empty mask
    /// (`oid_challenge_evaluation_utils._to_normalized_box`).
    pub fn normalized_box(&self) -> [f64; 4] {
        if self.area() == 0 {
            return [0.0; 4];
        }
        let [x, y, width, height] = mask::to_bbox(&self.0);
        let (rows, columns) = (f64::from(self.0.h), f64::from(self.0.w));
        [y / rows, x / columns, (y + height) / rows, (x + width) / columns]
    }

    pub(crate) fn counts(&self) -> &[u32] {
        &self.0.counts
    }

    /// Runs of the instance's pixels: first, and one behind the last.
    pub(crate) fn foreground(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = 0_u64;
        self.0.counts.iter().enumerate().filter_map(move |(index, &count)| {
            let from = at;
            at += u64::from(count);
            (index % 2 == 1 && count > 0).then_some((from, at))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_counted_as_they_lie() {
        // 2 rows, 3 columns.
        let one = Mask::from_rows(&[1, 1, 0, 0, 1, 0], 2, 3).unwrap();
        let two = Mask::from_rows(&[0, 1, 1, 0, 1, 1], 2, 3).unwrap();
        assert_eq!((one.area(), two.area(), one.intersection(&two)), (3, 4, 2));
        assert_eq!(two.intersection(&one), 2);
        assert_eq!(two.normalized_box(), [0.0, 1.0 / 3.0, 1.0, 1.0]);
        assert_eq!(Mask::empty(2, 3).area(), 0);
        assert_eq!(Mask::empty(2, 3).intersection(&one), 0);
        assert_eq!(Mask::empty(2, 3).normalized_box(), [0.0; 4]);
    }

    #[test]
    fn refuses_what_is_no_mask() {
        assert!(Mask::from_rows(&[1, 0], 2, 3).is_none());
        assert!(Mask::from_counts(vec![3, 2], 2, 3).is_err());
        assert!(Mask::from_coco_string("not counts", 2, 3).is_err());
        assert!(Mask::from_polygons(&[vec![1.0]], 2, 3).is_err());
    }
}
