//! `random_self_concat_image`: the image beside itself, or below.

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample, check_size};
use crate::pixels::Pixels;
use crate::random::Stream;

/// `random_self_concat_image`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomSelfConcatImage {
    vertical: f32,
    horizontal: f32,
}

impl RandomSelfConcatImage {
    pub(super) fn from_config(concat: &config::RandomSelfConcatImage, at: &At) -> Result<Self, Error> {
        Ok(Self {
            vertical: at.share("concat_vertical_probability", concat.concat_vertical_probability())?,
            horizontal: at.share("concat_horizontal_probability", concat.concat_horizontal_probability())?,
        })
    }
}

impl Operation for RandomSelfConcatImage {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let chosen = [random.unit() < self.vertical, random.unit() < self.horizontal];
        for (axis, repeat) in [Pixels::repeat_down as fn(&mut Pixels), Pixels::repeat_right]
            .into_iter()
            .enumerate()
        {
            if !chosen[axis] {
                continue;
            }
            let (height, width) = sample.picture.size();
            check_size("random_self_concat_image", 2 * height, width)?;
            repeat(sample.picture.pixels()?);
            let objects = &mut sample.objects;
            let count = objects.len();
            objects.repeat();
            objects.masks.iter_mut().for_each(repeat);
            // The second copy of each object lies in the second half. A mask shows both copies of its object; each box's
            // mask keeps its own half.
            for (index, object) in objects.boxes.iter_mut().enumerate() {
                let shift = if index < count { 0.0 } else { 0.5 };
                for side in [axis, axis + 2] {
                    object[side] = object[side] * 0.5 + shift;
                }
            }
            for (index, points) in objects.keypoints.iter_mut().enumerate() {
                let shift = if index < count { 0.0 } else { 0.5 };
                points
                    .iter_mut()
                    .for_each(|point| point[axis] = point[axis] * 0.5 + shift);
            }
            for (index, mask) in objects.masks.iter_mut().enumerate() {
                clear_half(mask, axis, index < count);
            }
        }
        Ok(())
    }
}

/// Sets the second half (or the first) of a mask to 0.
fn clear_half(mask: &mut Pixels, axis: usize, second: bool) {
    let (rows, columns) = (mask.height / 2, mask.width / 2);
    for (row, values) in mask.rows_mut().enumerate() {
        if axis == 0 {
            if (row >= rows) == second {
                values.fill(0.0);
            }
        } else if second {
            values[columns..].fill(0.0);
        } else {
            values[..columns].fill(0.0);
        }
    }
}
