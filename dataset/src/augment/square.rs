//! Square pieces (`random_square_crop_by_scale` of `CenterNet`, `random_scale_crop_and_pad_to_square` of `EfficientDet`).

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::window::{WHOLE, change_frame, clip_boxes, prune_keypoints, prune_outside};
use super::{Failure, Operation, Sample, check_size};
use crate::random::Stream;
use crate::resize::method::{Method, resize};

/// `random_square_crop_by_scale`: a square around a random centre; black where it leaves the image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomSquareCropByScale {
    max_border: usize,
    scales: (f32, f32),
    count: usize,
}

impl RandomSquareCropByScale {
    pub(super) fn from_config(crop: &config::RandomSquareCropByScale, at: &At) -> Result<Self, Error> {
        let scales = (crop.scale_min(), crop.scale_max());
        at.positive("scale_min", scales.0)?;
        Ok(Self {
            max_border: at.count("max_border", crop.max_border(), 1)?,
            scales: at.range(["scale_min", "scale_max"], scales, 0.0)?,
            count: at.count("num_scales", crop.num_scales(), 1)?,
        })
    }

    /// How far the centre stays from a border (`_get_crop_border`).
    fn border(&self, size: usize) -> i64 {
        let border = self.max_border as f32;
        let power = (2.0 * border / size as f32).log2().ceil();
        let divisor = power.exp2().clamp(1.0, border) as usize;
        (self.max_border / divisor.max(1)) as i64
    }
}

/// Boxes, masks and keypoints follow; what left the image is dropped.
fn settle(sample: &mut Sample<'_>, frame: [f32; 4]) {
    let objects = &mut sample.objects;
    change_frame(objects, &frame);
    prune_outside(objects, &WHOLE);
    clip_boxes(objects);
    prune_keypoints(objects);
}

impl Operation for RandomSquareCropByScale {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let (height, width) = sample.picture.size();
        let step = if self.count > 1 {
            (self.scales.1 - self.scales.0) / (self.count - 1) as f32
        } else {
            0.0
        };
        let scale = self.scales.0 + step * random.below(self.count as u64) as f32;
        let size = ((scale * height.max(width) as f32) as usize).max(1);
        check_size("random_square_crop_by_scale", size, size)?;
        let mut center = |side: usize| {
            let border = self.border(side);
            random.integer(border, side as i64 - border + 1)
        };
        let (y, x) = (center(height), center(width));
        let half = (size / 2) as i64;
        // What of the square lies in the image. As in the reference, the last row and column are left out.
        let part = |center: i64, side: usize| {
            let (low, high) = ((center - half).max(0), (center + half).min(side as i64 - 1));
            let (low, length) = (low.min(side as i64) as usize, (high - low).max(0) as usize);
            (low, length, (half - center).max(0) as usize)
        };
        let ((top, rows, down), (left, columns, right)) = (part(y, height), part(x, width));
        let pixels = sample.picture.pixels()?;
        pixels.crop(top, left, rows, columns);
        pixels.pad(down, right, size, size, &[0.0]);
        for mask in &mut sample.objects.masks {
            mask.crop(top, left, rows, columns);
            mask.pad(down, right, size, size, &[]);
        }
        let (h, w) = (height as f32, width as f32);
        let (ymin, xmin) = ((y - half) as f32, (x - half) as f32);
        settle(
            sample,
            [ymin / h, xmin / w, (ymin + size as f32) / h, (xmin + size as f32) / w],
        );
        Ok(())
    }
}

/// `random_scale_crop_and_pad_to_square`: large scale jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomScaleCropAndPadToSquare {
    output_size: usize,
    scales: (f32, f32),
}

impl RandomScaleCropAndPadToSquare {
    pub(super) fn from_config(crop: &config::RandomScaleCropAndPadToSquare, at: &At) -> Result<Self, Error> {
        let scales = (crop.scale_min(), crop.scale_max());
        at.positive("scale_min", scales.0)?;
        Ok(Self {
            output_size: at.count("output_size", crop.output_size(), 1)?,
            scales: at.range(["scale_min", "scale_max"], scales, 0.0)?,
        })
    }
}

impl Operation for RandomScaleCropAndPadToSquare {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let (height, width) = sample.picture.size();
        let size = self.output_size;
        let scale = random.between(self.scales);
        let longest = height.max(width) as f32;
        let scaled = |side: usize| ((scale * size as f32 * (side as f32 / longest)) as usize).max(1);
        let (rows, columns) = (scaled(height), scaled(width));
        let mut offset = |side: usize| (side.saturating_sub(size) as f32 * random.unit()) as usize;
        let (top, left) = (offset(rows), offset(columns));
        check_size("random_scale_crop_and_pad_to_square", rows.max(size), columns.max(size))?;
        let pixels = sample.picture.pixels()?;
        // Masks are resized as the image is, so they get soft borders here.
        for image in std::iter::once(pixels).chain(&mut sample.objects.masks) {
            *image = resize(image, rows, columns, Method::Bilinear, false);
            image.crop(top, left, size, size);
            image.pad(0, 0, size, size, &[0.0]);
        }
        let (h, w) = (rows as f32, columns as f32);
        let (bottom, right) = ((top + size) as f32, (left + size) as f32);
        settle(sample, [top as f32 / h, left as f32 / w, bottom / h, right / w]);
        Ok(())
    }
}
