//! `autoaugment_image`: learned policies (Zoph et al., arXiv:1906.11172; `utils/autoaugment_utils.py`).
//!
//! A policy is a list of sub-policies, of which one is chosen for each image; a sub-policy is a few steps, each with a
//! probability and a level from 0 to 10. Steps work on bytes. Otherwise than in the reference, masks and keypoints move
//! when the whole image does.

mod boxes;
mod color;
mod geometry;
mod policies;

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::decode::Image;
use crate::groundtruth::Groundtruth;
use crate::pixels::Pixels;
use crate::random::Stream;
use geometry::Motion;
use policies::{Kind, Policy};

/// What takes the place of pixels that moved away.
const REPLACE: [u8; 3] = [128; 3];

/// `autoaugment_image`.
#[derive(Debug, Clone, Copy)]
pub(super) struct AutoAugment {
    policy: &'static Policy,
}

impl AutoAugment {
    pub(super) fn from_config(auto: &config::AutoAugmentImage, at: &At) -> Result<Self, Error> {
        let policy = policies::named(auto.policy_name());
        at.check(
            "policy_name",
            auto.policy_name(),
            policy.is_some(),
            "v0, v1, v2, v3 or test",
        )?;
        Ok(Self {
            policy: policy.unwrap_or_default(),
        })
    }
}

impl Operation for AutoAugment {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let chosen = random.below(self.policy.len() as u64) as usize;
        let steps = self.policy.get(chosen).copied().unwrap_or_default();
        let pixels = sample.picture.pixels()?;
        let mut image = pixels.to_image();
        for &(kind, probability, level) in steps {
            // A step that works on boxes draws for each of them.
            if kind.boxes_alone() {
                boxes::each(
                    kind,
                    probability / 3.0,
                    level,
                    &mut image,
                    &sample.objects.boxes,
                    random,
                );
            } else if happens(probability, random) {
                step(kind, level, &mut image, &mut sample.objects, random);
            }
        }
        let taken = pixels.channels.min(3);
        for (pixel, color) in pixels
            .values
            .chunks_exact_mut(pixels.channels)
            .zip(image.pixels.chunks_exact(3))
        {
            for (value, &byte) in pixel[..taken].iter_mut().zip(color) {
                *value = f32::from(byte);
            }
        }
        Ok(())
    }
}

fn happens(probability: f32, random: &mut Stream) -> bool {
    random.unit() + probability >= 1.0
}

/// Sizes of steps at the highest level (`augmentation_hparams`), in pixels but for the last.
const CUTOUT: f32 = 100.0;
const TRANSLATE: f32 = 250.0;
const CUTOUT_BOX: f32 = 50.0;
const TRANSLATE_BOX: f32 = 120.0;
const CUTOUT_SHARE: f32 = 0.75;

/// Levels go up to this.
const MAX_LEVEL: f32 = 10.0;

fn negate(value: f32, random: &mut Stream) -> f32 {
    if happens(0.5, random) { value } else { -value }
}

/// What a step does to a whole image, or to the content of a box, at a level.
enum Action {
    /// Bytes change where they are.
    Color(color::Change),
    /// A square of that half size is covered.
    Cutout(usize),
    /// All moves.
    Move(Motion),
    /// Left and right change places.
    Flip,
    /// A part of a random box is covered: this share of it.
    CutoutInBox(f32),
}

fn action(kind: Kind, level: f32, random: &mut Stream) -> Action {
    use color::Change;
    let share = level / MAX_LEVEL;
    let enhance = share * 1.8 + 0.1;
    match kind {
        Kind::AutoContrast => Action::Color(Change::AutoContrast),
        Kind::Equalize | Kind::EqualizeBoxes => Action::Color(Change::Equalize),
        Kind::Posterize => Action::Color(Change::Posterize((share * 4.0) as u32)),
        Kind::Solarize => Action::Color(Change::Solarize((share * 256.0) as u32)),
        Kind::SolarizeAdd => Action::Color(Change::SolarizeAdd((share * 110.0) as u8)),
        Kind::Color => Action::Color(Change::Color(enhance)),
        Kind::Contrast => Action::Color(Change::Contrast(enhance)),
        Kind::Brightness => Action::Color(Change::Brightness(enhance)),
        Kind::Sharpness => Action::Color(Change::Sharpness(enhance)),
        Kind::Cutout => Action::Cutout((share * CUTOUT) as usize),
        Kind::CutoutBoxes => Action::Cutout((share * CUTOUT_BOX) as usize),
        Kind::BoxCutout => Action::CutoutInBox(share * CUTOUT_SHARE),
        Kind::Rotate => Action::Move(Motion::Rotate(negate(share * 30.0, random))),
        Kind::TranslateX => Action::Move(Motion::TranslateX(negate(share * TRANSLATE, random))),
        Kind::TranslateY => Action::Move(Motion::TranslateY(negate(share * TRANSLATE, random))),
        Kind::TranslateYBoxes => Action::Move(Motion::TranslateY(negate(share * TRANSLATE_BOX, random))),
        Kind::ShearX | Kind::ShearXBoxes => Action::Move(Motion::ShearX(negate(share * 0.3, random))),
        Kind::ShearY | Kind::ShearYBoxes => Action::Move(Motion::ShearY(negate(share * 0.3, random))),
        Kind::FlipBoxes => Action::Flip,
    }
}

/// Applies a step to the whole image.
fn step(kind: Kind, level: f32, image: &mut Image, objects: &mut Groundtruth, random: &mut Stream) {
    match action(kind, level, random) {
        Action::Color(change) => change.apply(image),
        Action::Cutout(half) => geometry::cutout(image, half, random),
        Action::CutoutInBox(share) => geometry::cutout_in_box(image, &objects.boxes, share, random),
        Action::Flip => {}
        Action::Move(motion) => {
            let (height, width) = (image.height, image.width);
            motion.apply(image);
            for object in &mut objects.boxes {
                *object = motion.moved_box(object, height, width);
            }
            motion.move_masks(&mut objects.masks);
            motion.move_keypoints(objects, height, width);
        }
    }
}

/// A mask as bytes that a motion can move, and back.
fn moved_mask(mask: &Pixels, motion: Motion) -> Pixels {
    let mut moved = mask.clone();
    let transform = motion.transform(mask.height, mask.width);
    for (row, values) in moved.rows_mut().enumerate() {
        for (column, value) in values.iter_mut().enumerate() {
            let source = geometry::source(&transform, row, column, mask.height, mask.width);
            *value = source.map_or(0.0, |(y, x)| mask.values[y * mask.width + x]);
        }
    }
    moved
}

#[cfg(test)]
mod tests;
