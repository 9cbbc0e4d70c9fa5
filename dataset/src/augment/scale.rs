//! Other sizes (`random_image_scale`, `resize_image`, `random_resize_method`, `random_downscale_to_target_pixels`).
//! Boxes and keypoints are relative to the image and stay as they are.

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample, check_size};
use crate::random::Stream;
use crate::resize::method::{Method, resize};

/// Resizes image and masks; the latter take their nearest pixels.
fn resize_all(
    step: &'static str,
    sample: &mut Sample<'_>,
    (height, width): (usize, usize),
    method: Method,
    align_corners: bool,
) -> Result<(), Failure> {
    check_size(step, height, width)?;
    let pixels = sample.picture.pixels()?;
    *pixels = resize(pixels, height, width, method, align_corners);
    for mask in &mut sample.objects.masks {
        *mask = resize(mask, height, width, Method::NearestNeighbor, align_corners);
    }
    Ok(())
}

/// `random_image_scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomImageScale {
    range: (f32, f32),
}

impl RandomImageScale {
    pub(super) fn from_config(scale: &config::RandomImageScale, at: &At) -> Result<Self, Error> {
        let range = (scale.min_scale_ratio(), scale.max_scale_ratio());
        at.positive("min_scale_ratio", range.0)?;
        let range = at.range(["min_scale_ratio", "max_scale_ratio"], range, 0.0)?;
        Ok(Self { range })
    }
}

impl Operation for RandomImageScale {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let factor = random.between(self.range);
        let (height, width) = sample.picture.size();
        let side = |size: usize| ((size as f32 * factor) as usize).max(1);
        let size = (side(height), side(width));
        resize_all("random_image_scale", sample, size, Method::Bilinear, true)
    }
}

/// `resize_image`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ResizeImage {
    size: (usize, usize),
    method: Method,
}

impl ResizeImage {
    pub(super) fn from_config(resize: &config::ResizeImage, at: &At) -> Result<Self, Error> {
        let size = (
            at.count("new_height", resize.new_height(), 1)?,
            at.count("new_width", resize.new_width(), 1)?,
        );
        let method = match resize.method() {
            config::resize_image::Method::Area => Method::Area,
            config::resize_image::Method::Bicubic => Method::Bicubic,
            config::resize_image::Method::Bilinear => Method::Bilinear,
            config::resize_image::Method::NearestNeighbor => Method::NearestNeighbor,
        };
        Ok(Self { size, method })
    }
}

impl Operation for ResizeImage {
    fn apply(&self, sample: &mut Sample<'_>, _: &mut Stream) -> Result<(), Failure> {
        resize_all("resize_image", sample, self.size, self.method, false)
    }
}

/// `random_resize_method`: one size, any interpolation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomResizeMethod {
    size: (usize, usize),
}

impl RandomResizeMethod {
    pub(super) fn from_config(resize: &config::RandomResizeMethod, at: &At) -> Result<Self, Error> {
        let size = (
            at.count("target_height", resize.target_height(), 1)?,
            at.count("target_width", resize.target_width(), 1)?,
        );
        Ok(Self { size })
    }
}

impl Operation for RandomResizeMethod {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let methods = [Method::Bilinear, Method::NearestNeighbor, Method::Bicubic, Method::Area];
        let method = methods[random.below(4) as usize % 4];
        resize_all("random_resize_method", sample, self.size, method, false)
    }
}

/// `random_downscale_to_target_pixels`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomDownscaleToTargetPixels {
    random_coef: f32,
    pixels: (usize, usize),
}

impl RandomDownscaleToTargetPixels {
    pub(super) fn from_config(down: &config::RandomDownscaleToTargetPixels, at: &At) -> Result<Self, Error> {
        let least = at.count("min_target_pixels", down.min_target_pixels(), 1)?;
        // The reference hands over only what is set, and its function has another default than its proto.
        let most = at.count("max_target_pixels", down.max_target_pixels.unwrap_or(800_000), 1)?;
        at.check("max_target_pixels", most, most >= least, "at least min_target_pixels")?;
        Ok(Self {
            random_coef: at.share("random_coef", down.random_coef())?,
            pixels: (least, most),
        })
    }
}

impl Operation for RandomDownscaleToTargetPixels {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let chosen = random.unit() >= self.random_coef;
        let target = random.integer(self.pixels.0 as i64, self.pixels.1 as i64) as usize;
        let (height, width) = sample.picture.size();
        if !chosen || height * width <= target {
            return Ok(());
        }
        let factor = (target as f32 / (height * width) as f32).sqrt();
        let side = |size: usize| ((factor * size as f32) as usize).max(1);
        let size = (side(height), side(width));
        resize_all(
            "random_downscale_to_target_pixels",
            sample,
            size,
            Method::Bilinear,
            false,
        )
    }
}
