//! Steps that leave the image alone (`drop_label_probabilistically`, `remap_labels`,
//! `convert_class_logits_to_softmax`, `scale_boxes_to_pixel_coordinates`).

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::random::Stream;

/// `drop_label_probabilistically`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DropLabel {
    /// From 0.
    class: i64,
    probability: f32,
}

/// Labels in the configuration are the label map's, from 1.
fn class(at: &At, field: &str, label: i32) -> Result<i64, Error> {
    at.check(field, label, label >= 1, "an id of the label map; ids start at 1")?;
    Ok(i64::from(label) - 1)
}

impl DropLabel {
    pub(super) fn from_config(drop: &config::DropLabelProbabilistically, at: &At) -> Result<Self, Error> {
        Ok(Self {
            class: class(at, "label", drop.label())?,
            probability: at.share("drop_probability", drop.drop_probability())?,
        })
    }
}

impl Operation for DropLabel {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let keep: Vec<_> = sample
            .objects
            .classes
            .iter()
            .map(|&class| random.unit() >= self.probability || class != self.class)
            .collect();
        sample.objects.retain(|index| keep[index]);
        Ok(())
    }
}

/// `remap_labels`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RemapLabels {
    /// From 0, as the next one.
    from: Vec<i64>,
    to: i64,
}

impl RemapLabels {
    pub(super) fn from_config(remap: &config::RemapLabels, at: &At) -> Result<Self, Error> {
        let from = remap
            .original_labels
            .iter()
            .map(|&label| class(at, "original_labels", label));
        Ok(Self {
            from: from.collect::<Result<_, _>>()?,
            to: class(at, "new_label", remap.new_label())?,
        })
    }
}

impl Operation for RemapLabels {
    fn apply(&self, sample: &mut Sample<'_>, _: &mut Stream) -> Result<(), Failure> {
        for class in &mut sample.objects.classes {
            if self.from.contains(class) {
                *class = self.to;
            }
        }
        Ok(())
    }
}

/// `convert_class_logits_to_softmax`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ClassLogitsToSoftmax {
    temperature: f32,
}

impl ClassLogitsToSoftmax {
    pub(super) fn from_config(convert: &config::ConvertClassLogitsToSoftmax, at: &At) -> Result<Self, Error> {
        let temperature = convert.temperature();
        at.check(
            "temperature",
            temperature,
            temperature != 0.0 && temperature.is_finite(),
            "another number than 0",
        )?;
        Ok(Self { temperature })
    }
}

impl Operation for ClassLogitsToSoftmax {
    fn apply(&self, sample: &mut Sample<'_>, _: &mut Stream) -> Result<(), Failure> {
        for scores in &mut sample.objects.multiclass_scores {
            let scaled: Vec<f32> = scores.iter().map(|score| score / self.temperature).collect();
            let largest = scaled.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = scaled.iter().map(|score| (score - largest).exp()).collect();
            let sum: f32 = powers.iter().sum();
            *scores = powers.into_iter().map(|power| power / sum).collect();
        }
        Ok(())
    }
}

/// `scale_boxes_to_pixel_coordinates`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ScaleBoxesToPixelCoordinates;

impl Operation for ScaleBoxesToPixelCoordinates {
    fn apply(&self, sample: &mut Sample<'_>, _: &mut Stream) -> Result<(), Failure> {
        let (height, width) = sample.picture.size();
        let objects = &mut sample.objects;
        objects.boxes = objects.boxes_px(height, width);
        for [y, x] in objects.keypoints.iter_mut().flatten() {
            *y *= height as f32;
            *x *= width as f32;
        }
        Ok(())
    }
}
