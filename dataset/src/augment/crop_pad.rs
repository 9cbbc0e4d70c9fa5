//! Crops that are padded again (`random_crop_pad_image`, `ssd_random_crop_pad`,
//! `ssd_random_crop_pad_fixed_aspect_ratio`).

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::crop::{CropOperation, SsdRandomCrop, row, ssd_operations, table};
use super::pad::{PadColor, pad_between, pad_color, put};
use super::{Failure, Operation, Sample};
use crate::random::Stream;

/// Sides of the canvas in sides of the image as it was before the crop: `(height, width)`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ratios {
    least: (f32, f32),
    most: (f32, f32),
}

impl Ratios {
    fn from_config(at: &At, least: &[f32], most: &[f32]) -> Result<Self, Error> {
        let one = |field: &str, values: &[f32], default: f32| {
            let good = values.iter().all(|value| *value >= 0.0 && *value <= 100.0);
            let good = good && matches!(values.len(), 0 | 2);
            at.check(
                field,
                format!("{values:?}"),
                good,
                "two values from 0 to 100: of the height, of the width",
            )?;
            Ok(match values {
                [height, width] => (*height, *width),
                _ => (default, default),
            })
        };
        Ok(Self {
            least: one("min_padded_size_ratio", least, 1.0)?,
            most: one("max_padded_size_ratio", most, 2.0)?,
        })
    }
}

/// `random_crop_pad_image`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CropPad {
    crop: CropOperation,
    ratios: Ratios,
    color: PadColor,
}

impl CropPad {
    pub(super) fn from_config(crop: &config::RandomCropPadImage, at: &At) -> Result<Self, Error> {
        Ok(Self {
            crop: row!(crop, (crop.min_aspect_ratio(), crop.max_aspect_ratio())).checked(at)?,
            ratios: Ratios::from_config(at, &crop.min_padded_size_ratio, &crop.max_padded_size_ratio)?,
            color: pad_color(at, &crop.pad_color)?,
        })
    }
}

impl Operation for CropPad {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let (height, width) = sample.picture.size();
        let scaled = |(rows, columns): (f32, f32)| ((height as f32 * rows) as usize, (width as f32 * columns) as usize);
        self.crop.apply(sample, random)?;
        let Ratios { least, most } = self.ratios;
        pad_between(
            "random_crop_pad_image",
            sample,
            scaled(least),
            scaled(most),
            &self.color,
            random,
        )
    }
}

/// `ssd_random_crop_pad`: one of the operations, each as likely.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SsdRandomCropPad(Vec<CropPad>);

impl SsdRandomCropPad {
    pub(super) fn from_config(crop: &config::SsdRandomCropPad, at: &At) -> Result<Self, Error> {
        if crop.operations.is_empty() {
            let whole = Ratios {
                least: (1.0, 1.0),
                most: (2.0, 2.0),
            };
            // Without a row for a share of 0, otherwise than `ssd_random_crop`.
            let rows = table(&[0.1, 0.3, 0.5, 0.7, 0.9, 1.0]).into_iter().map(|crop| CropPad {
                crop,
                ratios: whole,
                color: Vec::new(),
            });
            return Ok(Self(rows.collect()));
        }
        let rows = crop.operations.iter().enumerate().map(|(number, row)| {
            let at = &at.row(number);
            // Black, the default, is black whatever the number of channels.
            let color = [row.pad_color_r(), row.pad_color_g(), row.pad_color_b()];
            let color = if color == [0.0; 3] { &color[..1] } else { &color };
            Ok(CropPad {
                crop: row!(row, (row.min_aspect_ratio(), row.max_aspect_ratio())).checked(at)?,
                ratios: Ratios::from_config(at, &row.min_padded_size_ratio, &row.max_padded_size_ratio)?,
                color: pad_color(at, color)?,
            })
        });
        Ok(Self(rows.collect::<Result<_, _>>()?))
    }
}

impl Operation for SsdRandomCropPad {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let chosen = random.below(self.0.len() as u64) as usize;
        self.0
            .get(chosen)
            .map_or(Ok(()), |operation| operation.apply(sample, random))
    }
}

/// `ssd_random_crop_pad_fixed_aspect_ratio`: crops of any ratio, padded at the bottom and right to the one wanted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SsdRandomCropPadFixedAspectRatio {
    crop: SsdRandomCrop,
    aspect_ratio: f32,
    ratios: Ratios,
}

impl SsdRandomCropPadFixedAspectRatio {
    pub(super) fn from_config(crop: &config::SsdRandomCropPadFixedAspectRatio, at: &At) -> Result<Self, Error> {
        let rows =
            crop.operations.iter().enumerate().map(|(number, row)| {
                row!(row, (row.min_aspect_ratio(), row.max_aspect_ratio())).checked(&at.row(number))
            });
        let mut operations: Vec<_> = rows.collect::<Result<_, _>>()?;
        if operations.is_empty() {
            operations = ssd_operations();
        }
        Ok(Self {
            crop: SsdRandomCrop(operations),
            aspect_ratio: at.positive("aspect_ratio", crop.aspect_ratio())?,
            ratios: Ratios::from_config(at, &crop.min_padded_size_ratio, &crop.max_padded_size_ratio)?,
        })
    }

    /// The size of the canvas (`random_pad_to_aspect_ratio`).
    fn canvas(&self, height: usize, width: usize, random: &mut Stream) -> (usize, usize) {
        let (rows, columns) = (height as f32, width as f32);
        let ratio = columns / rows;
        let target_height = if ratio <= self.aspect_ratio {
            rows
        } else {
            columns / self.aspect_ratio
        };
        let target_width = if ratio >= self.aspect_ratio {
            columns
        } else {
            rows * self.aspect_ratio
        };
        let Ratios { least, most } = self.ratios;
        let scales = |factors: (f32, f32)| {
            let high = (factors.0 * rows).max(target_height) / target_height;
            let wide = (factors.1 * columns).max(target_width) / target_width;
            (high, wide)
        };
        let (high, wide) = scales(most);
        let largest = high.min(wide);
        let (high, wide) = scales(least);
        let smallest = largest.min(high.max(wide));
        let scale = random.between((smallest, largest));
        let side = |target: f32, size: usize| ((scale * target).round_ties_even() as usize).max(size);
        (side(target_height, height), side(target_width, width))
    }
}

impl Operation for SsdRandomCropPadFixedAspectRatio {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        self.crop.apply(sample, random)?;
        let (height, width) = sample.picture.size();
        let canvas = self.canvas(height, width, random);
        put("ssd_random_crop_pad_fixed_aspect_ratio", sample, (0, 0), canvas, &[0.0])
    }
}
