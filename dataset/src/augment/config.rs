//! From `train_config.data_augmentation_options` to [`Augmentation`]s (`preprocessor_builder.build`).

use coati_proto::object_detection::protos::PreprocessingStep;
use coati_proto::object_detection::protos::preprocessing_step::PreprocessingStep as Step;

use super::{
    Augmentation, Operation, autoaugment, black_patches, color, concat, crop, crop_pad, flip, gray, jitter, jpeg,
    labels, normalize, pad, patch_gaussian, pixel_scale, scale, square,
};

/// Why a step cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing is chosen.
    #[error(
        "train_config.data_augmentation_options[{index}] is empty\nhint: name a step, for example random_horizontal_flip {{ }}"
    )]
    EmptyStep {
        /// Which of the options, from 0.
        index: usize,
    },
    /// A value that makes no sense.
    #[error("train_config.data_augmentation_options[{index}].{field}: {value} must be {right}")]
    BadValue {
        /// Which of the options, from 0.
        index: usize,
        /// The path of the field below it.
        field: String,
        /// As configured.
        value: String,
        /// What would be right.
        right: &'static str,
    },
}

/// The steps that a configuration asks for, in order. Images have so many channels, additional ones included, before the first.
pub fn from_config(steps: &[PreprocessingStep], mut channels: usize) -> Result<Vec<Augmentation>, Error> {
    let mut built = Vec::with_capacity(steps.len());
    for (index, step) in steps.iter().enumerate() {
        let step = one(index, channels, step.preprocessing_step.as_ref())?;
        channels = step.0.channels(channels);
        built.push(step);
    }
    Ok(built)
}

fn done<T: Operation + 'static>(operation: T) -> Result<Augmentation, Error> {
    Ok(operation.into())
}

fn one(index: usize, channels: usize, step: Option<&Step>) -> Result<Augmentation, Error> {
    let at = |step: &str| At::new(index, channels, step);
    match step {
        None => Err(Error::EmptyStep { index }),
        Some(Step::NormalizeImage(c)) => done(normalize::NormalizeImage::from_config(c, &at("normalize_image"))?),
        Some(Step::RandomHorizontalFlip(c)) => done(flip::RandomHorizontalFlip::from_config(
            c,
            &at("random_horizontal_flip"),
        )?),
        Some(Step::RandomPixelValueScale(c)) => done(pixel_scale::RandomPixelValueScale::from_config(
            c,
            &at("random_pixel_value_scale"),
        )?),
        Some(Step::RandomImageScale(c)) => done(scale::RandomImageScale::from_config(c, &at("random_image_scale"))?),
        Some(Step::RandomRgbToGray(c)) => done(gray::RandomRgbToGray::from_config(c, &at("random_rgb_to_gray"))?),
        Some(Step::RandomAdjustBrightness(c)) => {
            done(color::Brightness::from_config(c, &at("random_adjust_brightness"))?)
        }
        Some(Step::RandomAdjustContrast(c)) => done(color::Contrast::from_config(c, &at("random_adjust_contrast"))?),
        Some(Step::RandomAdjustHue(c)) => done(color::Hue::from_config(c, &at("random_adjust_hue"))?),
        Some(Step::RandomAdjustSaturation(c)) => {
            done(color::Saturation::from_config(c, &at("random_adjust_saturation"))?)
        }
        Some(Step::RandomDistortColor(c)) => done(color::DistortColor::from_config(c, &at("random_distort_color"))?),
        Some(Step::RandomJitterBoxes(c)) => {
            done(jitter::RandomJitterBoxes::from_config(c, &at("random_jitter_boxes"))?)
        }
        Some(Step::RandomCropImage(c)) => done(crop::CropOperation::from_config(c, &at("random_crop_image"))?),
        Some(Step::RandomPadImage(c)) => done(pad::RandomPadImage::from_config(c, &at("random_pad_image"))?),
        Some(Step::RandomCropPadImage(c)) => done(crop_pad::CropPad::from_config(c, &at("random_crop_pad_image"))?),
        Some(Step::RandomCropToAspectRatio(c)) => done(crop::CropToAspectRatio::from_config(
            c,
            &at("random_crop_to_aspect_ratio"),
        )?),
        Some(Step::RandomBlackPatches(c)) => done(black_patches::RandomBlackPatches::from_config(
            c,
            &at("random_black_patches"),
        )?),
        Some(Step::RandomResizeMethod(c)) => {
            done(scale::RandomResizeMethod::from_config(c, &at("random_resize_method"))?)
        }
        Some(Step::ScaleBoxesToPixelCoordinates(_)) => done(labels::ScaleBoxesToPixelCoordinates),
        Some(Step::ResizeImage(c)) => done(scale::ResizeImage::from_config(c, &at("resize_image"))?),
        Some(Step::SubtractChannelMean(c)) => done(normalize::SubtractChannelMean::from_config(
            c,
            &at("subtract_channel_mean"),
        )?),
        Some(Step::SsdRandomCrop(c)) => done(crop::SsdRandomCrop::from_config(c, &at("ssd_random_crop"))?),
        Some(Step::SsdRandomCropPad(c)) => {
            done(crop_pad::SsdRandomCropPad::from_config(c, &at("ssd_random_crop_pad"))?)
        }
        Some(Step::SsdRandomCropFixedAspectRatio(c)) => {
            let at = at("ssd_random_crop_fixed_aspect_ratio");
            done(crop::SsdRandomCropFixedAspectRatio::from_config(c, &at)?)
        }
        Some(Step::SsdRandomCropPadFixedAspectRatio(c)) => {
            let at = at("ssd_random_crop_pad_fixed_aspect_ratio");
            done(crop_pad::SsdRandomCropPadFixedAspectRatio::from_config(c, &at)?)
        }
        Some(Step::RandomVerticalFlip(c)) => {
            done(flip::RandomVerticalFlip::from_config(c, &at("random_vertical_flip"))?)
        }
        Some(Step::RandomRotation90(c)) => done(flip::RandomRotation90::from_config(c, &at("random_rotation90"))?),
        Some(Step::RgbToGray(_)) => done(gray::RgbToGray),
        Some(Step::ConvertClassLogitsToSoftmax(c)) => done(labels::ClassLogitsToSoftmax::from_config(
            c,
            &at("convert_class_logits_to_softmax"),
        )?),
        Some(Step::RandomAbsolutePadImage(c)) => done(pad::RandomAbsolutePadImage::from_config(
            c,
            &at("random_absolute_pad_image"),
        )?),
        Some(Step::RandomSelfConcatImage(c)) => done(concat::RandomSelfConcatImage::from_config(
            c,
            &at("random_self_concat_image"),
        )?),
        Some(Step::AutoaugmentImage(c)) => done(autoaugment::AutoAugment::from_config(c, &at("autoaugment_image"))?),
        Some(Step::DropLabelProbabilistically(c)) => {
            done(labels::DropLabel::from_config(c, &at("drop_label_probabilistically"))?)
        }
        Some(Step::RemapLabels(c)) => done(labels::RemapLabels::from_config(c, &at("remap_labels"))?),
        Some(Step::RandomJpegQuality(c)) => done(jpeg::RandomJpegQuality::from_config(c, &at("random_jpeg_quality"))?),
        Some(Step::RandomDownscaleToTargetPixels(c)) => {
            let at = at("random_downscale_to_target_pixels");
            done(scale::RandomDownscaleToTargetPixels::from_config(c, &at)?)
        }
        Some(Step::RandomPatchGaussian(c)) => done(patch_gaussian::RandomPatchGaussian::from_config(
            c,
            &at("random_patch_gaussian"),
        )?),
        Some(Step::RandomSquareCropByScale(c)) => done(square::RandomSquareCropByScale::from_config(
            c,
            &at("random_square_crop_by_scale"),
        )?),
        Some(Step::RandomScaleCropAndPadToSquare(c)) => {
            let at = at("random_scale_crop_and_pad_to_square");
            done(square::RandomScaleCropAndPadToSquare::from_config(c, &at)?)
        }
        Some(Step::AdjustGamma(c)) => done(color::Gamma::from_config(c, &at("adjust_gamma"))?),
    }
}

const SHARE: &str = "from 0 to 1";

/// Where a value stands, for errors.
#[derive(Debug, Clone)]
pub(super) struct At {
    index: usize,
    channels: usize,
    path: String,
}

impl At {
    fn new(index: usize, channels: usize, step: &str) -> Self {
        Self {
            index,
            channels,
            path: step.to_owned(),
        }
    }

    /// Channels of the images that the step is given.
    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// A row of the step's table.
    pub(super) fn row(&self, number: usize) -> Self {
        Self {
            index: self.index,
            channels: self.channels,
            path: format!("{}.operations[{number}]", self.path),
        }
    }

    /// An error unless the value is `good`.
    pub(super) fn check(
        &self,
        field: &str,
        value: impl ToString,
        good: bool,
        right: &'static str,
    ) -> Result<(), Error> {
        if good {
            return Ok(());
        }
        Err(Error::BadValue {
            index: self.index,
            field: format!("{}.{field}", self.path),
            value: value.to_string(),
            right,
        })
    }

    /// A probability or share.
    pub(super) fn share(&self, field: &str, value: f32) -> Result<f32, Error> {
        self.check(field, value, (0.0..=1.0).contains(&value), SHARE)?;
        Ok(value)
    }

    /// A number that is greater than 0.
    pub(super) fn positive(&self, field: &str, value: f32) -> Result<f32, Error> {
        self.check(field, value, value > 0.0 && value.is_finite(), "greater than 0")?;
        Ok(value)
    }

    /// Any number.
    pub(super) fn finite(&self, field: &str, value: f32) -> Result<f32, Error> {
        self.check(field, value, value.is_finite(), "a finite number")?;
        Ok(value)
    }

    /// Two ends of a range, the lower one at least `least`.
    pub(super) fn range(&self, fields: [&str; 2], range: (f32, f32), least: f32) -> Result<(f32, f32), Error> {
        let right = if least == 0.0 { "at least 0" } else { "a finite number" };
        self.check(fields[0], range.0, range.0 >= least && range.0.is_finite(), right)?;
        self.check(
            fields[1],
            range.1,
            range.1 >= range.0 && range.1.is_finite(),
            "no less than the other end of the range",
        )?;
        Ok(range)
    }

    /// A whole number that is at least `least` and no larger than a side of an image can be.
    pub(super) fn count(&self, field: &str, value: i32, least: usize) -> Result<usize, Error> {
        let found = usize::try_from(value)
            .ok()
            .filter(|&found| found >= least && found <= 1 << 26);
        let right = match least {
            0 => "at least 0",
            _ => "at least 1",
        };
        self.check(field, value, found.is_some(), right)?;
        Ok(found.unwrap_or(least))
    }

    /// Permutation of keypoints.
    pub(super) fn permutation(&self, field: &str, permutation: &[i32]) -> Result<Vec<usize>, Error> {
        let found: Vec<_> = permutation
            .iter()
            .filter_map(|&index| usize::try_from(index).ok())
            .collect();
        let mut sorted = found.clone();
        sorted.sort_unstable();
        let good = found.len() == permutation.len() && sorted.into_iter().eq(0..found.len());
        self.check(field, format!("{permutation:?}"), good, "each of 0, 1, …, n - 1 once")?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
