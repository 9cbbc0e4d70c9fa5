//! Larger canvases (`random_pad_image`, `random_absolute_pad_image`).

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::window::change_frame;
use super::{Failure, Operation, Sample, check_size};
use crate::random::Stream;

/// Colour of what is added: a value a channel, or one for all; empty for the image's mean.
pub(super) type PadColor = Vec<f32>;

pub(super) fn pad_color(at: &At, color: &[f32]) -> Result<PadColor, Error> {
    let fits = color.len() <= 1 || color.len() == at.channels();
    let good = fits && color.iter().all(|value| value.is_finite());
    at.check(
        "pad_color",
        format!("{color:?} for images of {} channels", at.channels()),
        good,
        "a value a channel, or none for the image's mean",
    )?;
    Ok(color.to_vec())
}

/// Puts the image somewhere on a canvas between two sizes, each `(height, width)` and neither smaller than the image.
pub(super) fn pad_between(
    step: &'static str,
    sample: &mut Sample<'_>,
    least: (usize, usize),
    most: (usize, usize),
    color: &[f32],
    random: &mut Stream,
) -> Result<(), Failure> {
    let (height, width) = sample.picture.size();
    // The reference's ranges are half open: the largest size and the last place are never drawn.
    let mut target = |size: usize, least: usize, most: usize| {
        let (least, most) = (least.max(size), most.max(size));
        if most > least {
            least + random.below((most - least) as u64) as usize
        } else {
            most
        }
    };
    let rows = target(height, least.0, most.0);
    let columns = target(width, least.1, most.1);
    let top = random.below((rows - height) as u64) as usize;
    let left = random.below((columns - width) as u64) as usize;
    put(step, sample, (top, left), (rows, columns), color)
}

/// Puts the image at a place of a canvas.
pub(super) fn put(
    step: &'static str,
    sample: &mut Sample<'_>,
    (top, left): (usize, usize),
    (rows, columns): (usize, usize),
    color: &[f32],
) -> Result<(), Failure> {
    let (height, width) = sample.picture.size();
    if (rows, columns) == (height, width) {
        return Ok(());
    }
    check_size(step, rows, columns)?;
    let pixels = sample.picture.pixels()?;
    if color.is_empty() {
        let mean = pixels.mean();
        pixels.pad(top, left, rows, columns, &mean);
    } else {
        pixels.pad(top, left, rows, columns, color);
    }
    let (h, w) = (height as f32, width as f32);
    let frame = [
        -(top as f32) / h,
        -(left as f32) / w,
        (rows as f32 - top as f32) / h,
        (columns as f32 - left as f32) / w,
    ];
    change_frame(&mut sample.objects, &frame);
    for mask in &mut sample.objects.masks {
        mask.pad(top, left, rows, columns, &[]);
    }
    Ok(())
}

/// `random_pad_image`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RandomPadImage {
    least: Option<(usize, usize)>,
    most: Option<(usize, usize)>,
    color: PadColor,
}

impl RandomPadImage {
    pub(super) fn from_config(pad: &config::RandomPadImage, at: &At) -> Result<Self, Error> {
        let size = |fields: [&str; 2], (height, width): (Option<i32>, Option<i32>), right| match (height, width) {
            (None, None) => Ok(None),
            (Some(height), Some(width)) => Ok(Some((at.count(fields[0], height, 0)?, at.count(fields[1], width, 0)?))),
            (None, Some(_)) => at
                .check(fields[0], "nothing", false, "set where the width is")
                .map(|()| None),
            (Some(_), None) => at.check(fields[1], "nothing", false, right).map(|()| None),
        };
        let least = (pad.min_image_height, pad.min_image_width);
        let most = (pad.max_image_height, pad.max_image_width);
        Ok(Self {
            least: size(
                ["min_image_height", "min_image_width"],
                least,
                "set where min_image_height is",
            )?,
            most: size(
                ["max_image_height", "max_image_width"],
                most,
                "set where max_image_height is",
            )?,
            color: pad_color(at, &pad.pad_color)?,
        })
    }
}

impl Operation for RandomPadImage {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let (height, width) = sample.picture.size();
        let least = self.least.unwrap_or((height, width));
        let most = self.most.unwrap_or((2 * height, 2 * width));
        pad_between("random_pad_image", sample, least, most, &self.color, random)
    }
}

/// `random_absolute_pad_image`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RandomAbsolutePadImage {
    most: (usize, usize),
    color: PadColor,
}

impl RandomAbsolutePadImage {
    pub(super) fn from_config(pad: &config::RandomAbsolutePadImage, at: &At) -> Result<Self, Error> {
        // 0 counts as 1, and so does a field that is not set.
        let most = (
            at.count("max_height_padding", pad.max_height_padding(), 0)?.max(1),
            at.count("max_width_padding", pad.max_width_padding(), 0)?.max(1),
        );
        Ok(Self {
            most,
            color: pad_color(at, &pad.pad_color)?,
        })
    }
}

impl Operation for RandomAbsolutePadImage {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let (height, width) = sample.picture.size();
        let most = (height + self.most.0, width + self.most.1);
        pad_between(
            "random_absolute_pad_image",
            sample,
            (height, width),
            most,
            &self.color,
            random,
        )
    }
}
