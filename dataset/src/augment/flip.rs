//! Mirrors and quarter turns (`random_horizontal_flip`, `random_vertical_flip`, `random_rotation90`).

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::groundtruth::Groundtruth;
use crate::pixels::Pixels;
use crate::random::Stream;

/// `random_horizontal_flip`.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomHorizontalFlip {
    probability: f32,
    permutation: Vec<usize>,
}

/// `random_vertical_flip`.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomVerticalFlip {
    probability: f32,
    permutation: Vec<usize>,
}

/// `random_rotation90`: counter-clockwise.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RandomRotation90 {
    probability: f32,
    permutation: Vec<usize>,
}

impl RandomHorizontalFlip {
    /// Mirrors left and right with that probability; for records without keypoints.
    pub fn new(probability: f32) -> Self {
        Self {
            probability,
            permutation: Vec::new(),
        }
    }

    pub(super) fn from_config(flip: &config::RandomHorizontalFlip, at: &At) -> Result<Self, Error> {
        Ok(Self {
            probability: at.share("probability", flip.probability())?,
            permutation: at.permutation("keypoint_flip_permutation", &flip.keypoint_flip_permutation)?,
        })
    }
}

impl Operation for RandomHorizontalFlip {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        if random.unit() >= self.probability {
            return Ok(());
        }
        let objects = &mut sample.objects;
        let names = ("random_horizontal_flip", "keypoint_flip_permutation");
        permute(objects, &self.permutation, names)?;
        sample.picture.flip_left_right();
        for [_, xmin, _, xmax] in &mut objects.boxes {
            (*xmin, *xmax) = (1.0 - *xmax, 1.0 - *xmin);
        }
        objects.masks.iter_mut().for_each(Pixels::flip_left_right);
        for [_, x] in objects.keypoints.iter_mut().flatten() {
            *x = 1.0 - *x;
        }
        Ok(())
    }
}

impl RandomVerticalFlip {
    pub(super) fn from_config(flip: &config::RandomVerticalFlip, at: &At) -> Result<Self, Error> {
        Ok(Self {
            probability: at.share("probability", flip.probability())?,
            permutation: at.permutation("keypoint_flip_permutation", &flip.keypoint_flip_permutation)?,
        })
    }
}

impl Operation for RandomVerticalFlip {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        if random.unit() >= self.probability {
            return Ok(());
        }
        let objects = &mut sample.objects;
        let names = ("random_vertical_flip", "keypoint_flip_permutation");
        permute(objects, &self.permutation, names)?;
        sample.picture.pixels()?.flip_up_down();
        for [ymin, _, ymax, _] in &mut objects.boxes {
            (*ymin, *ymax) = (1.0 - *ymax, 1.0 - *ymin);
        }
        objects.masks.iter_mut().for_each(Pixels::flip_up_down);
        for [y, _] in objects.keypoints.iter_mut().flatten() {
            *y = 1.0 - *y;
        }
        Ok(())
    }
}

impl RandomRotation90 {
    pub(super) fn from_config(turn: &config::RandomRotation90, at: &At) -> Result<Self, Error> {
        Ok(Self {
            probability: at.share("probability", turn.probability())?,
            permutation: at.permutation("keypoint_rot_permutation", &turn.keypoint_rot_permutation)?,
        })
    }
}

impl Operation for RandomRotation90 {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        if random.unit() >= self.probability {
            return Ok(());
        }
        let objects = &mut sample.objects;
        if !self.permutation.is_empty() {
            // Here the reference lets keypoints keep their places when no others are named.
            permute(
                objects,
                &self.permutation,
                ("random_rotation90", "keypoint_rot_permutation"),
            )?;
        }
        sample.picture.pixels()?.rotate_90();
        for object in &mut objects.boxes {
            let [ymin, xmin, ymax, xmax] = *object;
            *object = [1.0 - xmax, ymin, 1.0 - xmin, ymax];
        }
        objects.masks.iter_mut().for_each(Pixels::rotate_90);
        for point in objects.keypoints.iter_mut().flatten() {
            let [y, x] = *point;
            *point = [1.0 - x, y];
        }
        Ok(())
    }
}

/// Puts keypoints and their visibilities into their new places: a left eye becomes a right one.
fn permute(
    objects: &mut Groundtruth,
    permutation: &[usize],
    (step, field): (&'static str, &'static str),
) -> Result<(), Failure> {
    fn gather<T: Copy>(values: &mut Vec<T>, permutation: &[usize]) {
        *values = permutation
            .iter()
            .filter_map(|&index| values.get(index).copied())
            .collect();
    }
    if let Some(keypoints) = objects
        .keypoints
        .iter()
        .map(Vec::len)
        .find(|&count| count != permutation.len())
    {
        return Err(Failure::Permutation {
            step,
            field,
            keypoints,
            found: permutation.len(),
        });
    }
    objects
        .keypoints
        .iter_mut()
        .for_each(|points| gather(points, permutation));
    objects
        .keypoint_visibilities
        .iter_mut()
        .for_each(|visible| gather(visible, permutation));
    Ok(())
}
