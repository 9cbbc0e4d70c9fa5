//! Brightness, contrast, hue, saturation and gamma, on values from 0 to 255 (`random_adjust_*`, `random_distort_color`,
//! `adjust_gamma`). Channels beyond the first three stay as they are; hue and saturation leave grey images alone, which have none.

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::hsv::{scale_saturation, turn_hue};
use super::{Failure, Operation, Sample};
use crate::pixels::Pixels;
use crate::random::Stream;

/// `random_adjust_brightness`: adds a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Brightness {
    max_delta: f32,
}

/// `random_adjust_contrast`: moves values away from their channel's mean, or towards it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Contrast {
    range: (f32, f32),
}

/// `random_adjust_hue`: turns the colour circle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hue {
    max_delta: f32,
}

/// `random_adjust_saturation`: multiplies the saturation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Saturation {
    range: (f32, f32),
}

/// `random_distort_color`: all four, in one of two orders.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DistortColor {
    contrast_last: bool,
}

/// `adjust_gamma`: gain * x ^ gamma.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Gamma {
    gamma: f32,
    gain: f32,
}

/// Changes each value, from 0 to 1, of the channels of colour or of the one of a grey image, and cuts what leaves that range.
/// `one` is told the number of the channel.
fn change_each(pixels: &mut Pixels, one: impl Fn(usize, f32) -> f32) {
    let channels = pixels.channels.max(1);
    for pixel in pixels.values.chunks_exact_mut(channels) {
        for (channel, value) in pixel.iter_mut().take(3).enumerate() {
            *value = (one(channel, *value / 255.0) * 255.0).clamp(0.0, 255.0);
        }
    }
}

/// Changes colours, values from 0 to 1, and cuts what leaves that range.
fn change(pixels: &mut Pixels, mut one: impl FnMut([f32; 3]) -> [f32; 3]) {
    pixels.for_each_rgb(|rgb| {
        *rgb = one(rgb.map(|value| value / 255.0)).map(|value| (value * 255.0).clamp(0.0, 255.0));
    });
}

/// `tf.image.adjust_brightness`.
pub(super) fn adjust_brightness(pixels: &mut Pixels, delta: f32) {
    change_each(pixels, |_, value| value + delta);
}

/// `tf.image.adjust_contrast`.
pub(super) fn adjust_contrast(pixels: &mut Pixels, factor: f32) {
    let means: Vec<f32> = pixels.mean().into_iter().map(|mean| mean / 255.0).collect();
    change_each(pixels, |channel, value| {
        (value - means[channel]) * factor + means[channel]
    });
}

/// `tf.image.adjust_hue`.
pub(super) fn adjust_hue(pixels: &mut Pixels, delta: f32) {
    change(pixels, |rgb| turn_hue(rgb, delta));
}

/// `tf.image.adjust_saturation`.
pub(super) fn adjust_saturation(pixels: &mut Pixels, factor: f32) {
    change(pixels, |rgb| scale_saturation(rgb, factor));
}

impl Brightness {
    pub(super) fn from_config(adjust: &config::RandomAdjustBrightness, at: &At) -> Result<Self, Error> {
        let max_delta = at.finite("max_delta", adjust.max_delta())?;
        Ok(Self { max_delta })
    }
}

impl Operation for Brightness {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let delta = random.between((-self.max_delta, self.max_delta));
        adjust_brightness(sample.picture.pixels()?, delta);
        Ok(())
    }
}

impl Contrast {
    pub(super) fn from_config(adjust: &config::RandomAdjustContrast, at: &At) -> Result<Self, Error> {
        let range = at.range(
            ["min_delta", "max_delta"],
            (adjust.min_delta(), adjust.max_delta()),
            0.0,
        )?;
        Ok(Self { range })
    }
}

impl Operation for Contrast {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let factor = random.between(self.range);
        adjust_contrast(sample.picture.pixels()?, factor);
        Ok(())
    }
}

impl Hue {
    pub(super) fn from_config(adjust: &config::RandomAdjustHue, at: &At) -> Result<Self, Error> {
        let max_delta = adjust.max_delta();
        at.check(
            "max_delta",
            max_delta,
            (-1.0..=1.0).contains(&max_delta),
            "from -1 to 1",
        )?;
        Ok(Self { max_delta })
    }
}

impl Operation for Hue {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let delta = random.between((-self.max_delta, self.max_delta));
        adjust_hue(sample.picture.pixels()?, delta);
        Ok(())
    }
}

impl Saturation {
    pub(super) fn from_config(adjust: &config::RandomAdjustSaturation, at: &At) -> Result<Self, Error> {
        let range = at.range(
            ["min_delta", "max_delta"],
            (adjust.min_delta(), adjust.max_delta()),
            0.0,
        )?;
        Ok(Self { range })
    }
}

impl Operation for Saturation {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let factor = random.between(self.range);
        adjust_saturation(sample.picture.pixels()?, factor);
        Ok(())
    }
}

impl DistortColor {
    pub(super) fn from_config(distort: &config::RandomDistortColor, at: &At) -> Result<Self, Error> {
        let ordering = distort.color_ordering();
        at.check("color_ordering", ordering, matches!(ordering, 0 | 1), "0 or 1")?;
        Ok(Self {
            contrast_last: ordering == 0,
        })
    }
}

impl Operation for DistortColor {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        // As in the reference, nothing of this can be configured.
        let brightness = Brightness {
            max_delta: 32.0 / 255.0,
        };
        let contrast = Contrast { range: (0.5, 1.5) };
        let hue = Hue { max_delta: 0.2 };
        let saturation = Saturation { range: (0.5, 1.5) };
        let order: [&dyn Operation; 4] = if self.contrast_last {
            [&brightness, &saturation, &hue, &contrast]
        } else {
            [&brightness, &contrast, &saturation, &hue]
        };
        order.into_iter().try_for_each(|step| step.apply(sample, random))
    }
}

impl Gamma {
    pub(super) fn from_config(adjust: &config::AdjustGamma, at: &At) -> Result<Self, Error> {
        let gamma = adjust.gamma();
        at.check("gamma", gamma, gamma >= 0.0 && gamma.is_finite(), "at least 0")?;
        Ok(Self {
            gamma,
            gain: at.finite("gain", adjust.gain())?,
        })
    }
}

impl Operation for Gamma {
    fn apply(&self, sample: &mut Sample<'_>, _: &mut Stream) -> Result<(), Failure> {
        change_each(sample.picture.pixels()?, |_, value| value.powf(self.gamma) * self.gain);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grey_image_changes_as_one_of_equal_channels() {
        let grey = Pixels {
            height: 2,
            width: 3,
            channels: 1,
            values: vec![0.0, 30.0, 90.0, 128.0, 200.0, 255.0],
        };
        let colours = Pixels {
            channels: 3,
            values: grey.values.iter().flat_map(|&value| [value; 3]).collect(),
            ..grey.clone()
        };
        let gamma = Gamma { gamma: 0.7, gain: 0.9 };
        let changes: [(&str, &dyn Fn(&mut Pixels)); 3] = [
            ("brightness", &|pixels| adjust_brightness(pixels, 0.1)),
            ("contrast", &|pixels| adjust_contrast(pixels, 1.4)),
            ("gamma", &|pixels| {
                let mut stored = crate::decode::Image::default();
                let mut sample = Sample::new(0, 0, &mut stored, crate::groundtruth::Groundtruth::default());
                *sample.picture.pixels().unwrap() = pixels.clone();
                gamma.apply(&mut sample, &mut crate::augment::stream(0, 0, 0)).unwrap();
                *pixels = sample.picture.pixels().unwrap().clone();
            }),
        ];
        for (name, change) in changes {
            let (mut one, mut three) = (grey.clone(), colours.clone());
            change(&mut one);
            change(&mut three);
            assert_ne!(one.values, grey.values, "{name}");
            let first: Vec<f32> = three.values.iter().step_by(3).copied().collect();
            assert_eq!(one.values, first, "{name}");
        }
    }

    #[test]
    fn additional_channels_stay() {
        let before = Pixels {
            height: 1,
            width: 2,
            channels: 4,
            values: vec![10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0],
        };
        for change in [adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation] {
            let mut pixels = before.clone();
            change(&mut pixels, 0.3);
            assert_eq!([pixels.values[3], pixels.values[7]], [40.0, 80.0]);
            assert_ne!(pixels.values[..3], before.values[..3]);
        }
    }
}
