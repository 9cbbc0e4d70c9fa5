//! `image_resizer`: how an image gets the size that a model wants (`image_resizer_builder.build`).

use coati_proto::object_detection::protos as config;
use config::image_resizer::ImageResizerOneof;

use super::LARGEST;
use super::method::{Method, resize};
use crate::pixels::Pixels;

/// One of the five resizers.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageResizer {
    /// `fixed_shape_resizer`: one size, whatever the aspect ratio.
    FixedShape {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Interpolation.
        method: Method,
        /// One channel is left.
        grayscale: bool,
    },
    /// `keep_aspect_ratio_resizer`: until the short side is `min` or the long one `max`.
    KeepAspectRatio {
        /// Of the short side.
        min: usize,
        /// Of the long side.
        max: usize,
        /// Interpolation.
        method: Method,
        /// Filled up to `max` x `max` at the bottom and right.
        pad: bool,
        /// A value a channel; empty for zeros.
        pad_value: Vec<f32>,
        /// One channel is left.
        grayscale: bool,
    },
    /// `identity_resizer`.
    Identity,
    /// `conditional_shape_resizer`: only images beyond (or below) a size; the aspect ratio stays.
    Conditional {
        /// What happens to which images.
        condition: Condition,
        /// Of the long side, or the short one.
        threshold: usize,
        /// Interpolation.
        method: Method,
        /// One channel is left.
        grayscale: bool,
    },
    /// `pad_to_multiple_resizer`: zeros at the bottom and right.
    PadToMultiple {
        /// Both sides become multiples of this.
        multiple: usize,
        /// One channel is left.
        grayscale: bool,
    },
}

/// Which images a conditional resizer changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Shrinks until the long side is no longer than the threshold.
    Greater,
    /// Enlarges until the short side is no shorter than the threshold.
    Smaller,
}

/// A value of `image_resizer` that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image_resizer.{field}: {value} must be {right}")]
pub struct ConfigError {
    /// The path of the field below `image_resizer`.
    pub field: &'static str,
    /// As configured.
    pub value: String,
    /// What would be right.
    pub right: &'static str,
}

/// What a resizer made.
#[derive(Debug, Clone, PartialEq)]
pub struct Resized {
    /// `[height, width, channels]`.
    pub image: Pixels,
    /// As large as the image; from their nearest pixels.
    pub masks: Vec<Pixels>,
    /// Height, width and channels of what is picture and not padding (`true_image_shape`).
    pub true_shape: [usize; 3],
}

fn side(value: i32, field: &'static str) -> Result<usize, ConfigError> {
    let found = usize::try_from(value).unwrap_or(0);
    if (1..=LARGEST).contains(&found) {
        return Ok(found);
    }
    Err(ConfigError {
        field,
        value: value.to_string(),
        right: "from 1 to 16384",
    })
}

impl ImageResizer {
    /// Bilinear, three channels.
    pub fn fixed(height: usize, width: usize) -> Self {
        Self::FixedShape {
            height,
            width,
            method: Method::Bilinear,
            grayscale: false,
        }
    }

    /// As configured.
    pub fn from_config(resizer: &config::ImageResizer) -> Result<Self, ConfigError> {
        Ok(match &resizer.image_resizer_oneof {
            None => {
                return Err(ConfigError {
                    field: "image_resizer_oneof",
                    value: "nothing".to_owned(),
                    right: "one resizer, for example fixed_shape_resizer { height: 300 width: 300 }",
                });
            }
            Some(ImageResizerOneof::FixedShapeResizer(fixed)) => Self::FixedShape {
                height: side(fixed.height(), "fixed_shape_resizer.height")?,
                width: side(fixed.width(), "fixed_shape_resizer.width")?,
                method: fixed.resize_method().into(),
                grayscale: fixed.convert_to_grayscale(),
            },
            Some(ImageResizerOneof::KeepAspectRatioResizer(keep)) => {
                let min = side(keep.min_dimension(), "keep_aspect_ratio_resizer.min_dimension")?;
                let max = side(keep.max_dimension(), "keep_aspect_ratio_resizer.max_dimension")?;
                if min > max {
                    return Err(ConfigError {
                        field: "keep_aspect_ratio_resizer.min_dimension",
                        value: min.to_string(),
                        right: "at most max_dimension",
                    });
                }
                if !matches!(keep.per_channel_pad_value.len(), 0 | 3) {
                    return Err(ConfigError {
                        field: "keep_aspect_ratio_resizer.per_channel_pad_value",
                        value: format!("{} values", keep.per_channel_pad_value.len()),
                        right: "three values, one a channel, or none",
                    });
                }
                Self::KeepAspectRatio {
                    min,
                    max,
                    method: keep.resize_method().into(),
                    pad: keep.pad_to_max_dimension(),
                    pad_value: keep.per_channel_pad_value.clone(),
                    grayscale: keep.convert_to_grayscale(),
                }
            }
            Some(ImageResizerOneof::IdentityResizer(_)) => Self::Identity,
            Some(ImageResizerOneof::ConditionalShapeResizer(conditional)) => Self::Conditional {
                condition: match conditional.condition() {
                    config::conditional_shape_resizer::ResizeCondition::Greater => Condition::Greater,
                    config::conditional_shape_resizer::ResizeCondition::Smaller => Condition::Smaller,
                    config::conditional_shape_resizer::ResizeCondition::Invalid => {
                        return Err(ConfigError {
                            field: "conditional_shape_resizer.condition",
                            value: "INVALID".to_owned(),
                            right: "GREATER or SMALLER",
                        });
                    }
                },
                threshold: side(conditional.size_threshold(), "conditional_shape_resizer.size_threshold")?,
                method: conditional.resize_method().into(),
                grayscale: conditional.convert_to_grayscale(),
            },
            Some(ImageResizerOneof::PadToMultipleResizer(pad)) => Self::PadToMultiple {
                multiple: side(pad.multiple(), "pad_to_multiple_resizer.multiple")?,
                grayscale: pad.convert_to_grayscale(),
            },
        })
    }

    /// Rows and columns, where all images get the same.
    pub fn size(&self) -> Option<(usize, usize)> {
        match *self {
            Self::FixedShape { height, width, .. } => Some((height, width)),
            Self::KeepAspectRatio { max, pad: true, .. } => Some((max, max)),
            _ => None,
        }
    }

    /// Rows and columns of the result for an image of (`height`, `width`) pixels, with what is padding.
    pub fn size_of(&self, (height, width): (usize, usize)) -> (usize, usize) {
        match *self {
            Self::FixedShape { height, width, .. } => (height, width),
            Self::KeepAspectRatio { max, pad: true, .. } => (max, max),
            Self::KeepAspectRatio { min, max, .. } => keep_aspect_ratio(height, width, min, max),
            Self::Identity => (height, width),
            Self::Conditional {
                condition, threshold, ..
            } => conditional(height, width, condition, threshold),
            Self::PadToMultiple { multiple, .. } => {
                let up = |side: usize| side.div_ceil(multiple.max(1)) * multiple.max(1);
                (up(height), up(width))
            }
        }
    }

    /// Whether colours are left out.
    pub fn grayscale(&self) -> bool {
        match *self {
            Self::FixedShape { grayscale, .. }
            | Self::KeepAspectRatio { grayscale, .. }
            | Self::Conditional { grayscale, .. }
            | Self::PadToMultiple { grayscale, .. } => grayscale,
            Self::Identity => false,
        }
    }

    /// Channels of the result for an image of `before` channels.
    pub fn channels(&self, before: usize) -> usize {
        if self.grayscale() && before >= 3 { 1 } else { before }
    }

    /// Resizes an image and its masks.
    #[must_use]
    pub fn apply(&self, image: &Pixels, masks: &[Pixels]) -> Resized {
        let sizes = |(height, width), method, align_corners| {
            let nearest = |mask: &Pixels| resize(mask, height, width, Method::NearestNeighbor, align_corners);
            Resized {
                image: resize(image, height, width, method, align_corners),
                masks: masks.iter().map(nearest).collect(),
                true_shape: [height, width, image.channels],
            }
        };
        let unchanged = || Resized {
            image: image.clone(),
            masks: masks.to_vec(),
            true_shape: [image.height, image.width, image.channels],
        };
        let mut resized = match *self {
            Self::Identity => unchanged(),
            Self::FixedShape {
                height, width, method, ..
            } => sizes((height, width), method, false),
            Self::KeepAspectRatio {
                min,
                max,
                method,
                pad,
                ref pad_value,
                ..
            } => {
                let mut resized = sizes(keep_aspect_ratio(image.height, image.width, min, max), method, false);
                if pad {
                    resized.pad(max, max, pad_value);
                }
                resized
            }
            Self::Conditional {
                condition,
                threshold,
                method,
                ..
            } => sizes(
                conditional(image.height, image.width, condition, threshold),
                method,
                true,
            ),
            Self::PadToMultiple { .. } => {
                let mut resized = unchanged();
                let (height, width) = self.size_of((image.height, image.width));
                resized.pad(height, width, &[]);
                resized
            }
        };
        if self.grayscale() {
            resized.image = resized.image.to_gray();
            resized.true_shape[2] = resized.image.channels;
        }
        resized
    }
}

impl Resized {
    fn pad(&mut self, height: usize, width: usize, value: &[f32]) {
        self.image.pad(0, 0, height, width, value);
        for mask in &mut self.masks {
            mask.pad(0, 0, height, width, &[]);
        }
    }
}

/// `tf.image.resize_images` with `preserve_aspect_ratio`, as `resize_to_range` calls it.
fn keep_aspect_ratio(height: usize, width: usize, min: usize, max: usize) -> (usize, usize) {
    let (most_rows, most_columns) = if height < width { (min, max) } else { (max, min) };
    let (rows, columns) = (height as f32, width as f32);
    let scale = (most_rows as f32 / rows).min(most_columns as f32 / columns);
    let side = |size: f32| ((scale * size).round_ties_even() as usize).clamp(1, max);
    (side(rows), side(columns))
}

/// `resize_to_max_dimension` and `resize_to_min_dimension`.
fn conditional(height: usize, width: usize, condition: Condition, threshold: usize) -> (usize, usize) {
    let (side, target) = match condition {
        Condition::Greater => (height.max(width), height.max(width).min(threshold)),
        Condition::Smaller => (height.min(width), height.min(width).max(threshold)),
    };
    let ratio = target as f32 / side as f32;
    let scaled = |side: usize| ((side as f32 * ratio) as usize).max(1);
    (scaled(height), scaled(width))
}

#[cfg(test)]
mod tests;
