//! Crops that keep objects in sight (`random_crop_image`, `ssd_random_crop`, `ssd_random_crop_fixed_aspect_ratio`,
//! `random_crop_to_aspect_ratio`).

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::sample::{Constraints, Window, sample_window};
use super::window::{bounds, change_frame, clip_boxes, crop_masks, prune_keypoints, prune_outside, prune_overlap};
use super::{Failure, Operation, Sample};
use crate::random::Stream;

/// One way to crop (`random_crop_image`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropOperation {
    /// What the window must satisfy.
    pub constraints: Constraints,
    /// A box stays if at least this share of its area lies in the window.
    pub overlap_thresh: f32,
    /// Boxes are cut at the window.
    pub clip_boxes: bool,
    /// How often the image is left as it is.
    pub random_coef: f32,
}

impl Default for CropOperation {
    /// The defaults of `random_crop_image`.
    fn default() -> Self {
        let constraints = Constraints {
            min_object_covered: 1.0,
            aspect_ratio: (0.75, 1.33),
            area: (0.1, 1.0),
        };
        Self {
            constraints,
            overlap_thresh: 0.3,
            clip_boxes: true,
            random_coef: 0.0,
        }
    }
}

/// The table that `ssd_random_crop` uses when the configuration lists no operations.
pub fn ssd_operations() -> Vec<CropOperation> {
    table(&[0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
}

/// A table of SSD's: a row for each share of an object to be covered.
pub(super) fn table(shares: &[f32]) -> Vec<CropOperation> {
    let operation = |&share| CropOperation {
        constraints: Constraints {
            min_object_covered: share,
            aspect_ratio: (0.5, 2.0),
            area: (0.1, 1.0),
        },
        overlap_thresh: share,
        clip_boxes: true,
        random_coef: 0.15,
    };
    shares.iter().map(operation).collect()
}

/// Crops by one of the operations, each as likely (`ssd_random_crop`).
#[derive(Debug, Clone, PartialEq)]
pub struct SsdRandomCrop(pub Vec<CropOperation>);

/// A window of a given aspect ratio, as large as possible, anywhere (`random_crop_to_aspect_ratio`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct CropToAspectRatio {
    aspect_ratio: f32,
    overlap_thresh: f32,
    clip_boxes: bool,
}

/// `ssd_random_crop_fixed_aspect_ratio`: windows of that ratio, and what is rounding in them cut off.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SsdRandomCropFixedAspectRatio {
    crop: SsdRandomCrop,
    then: CropToAspectRatio,
}

/// Takes over a row of any of the tables.
macro_rules! row {
    ($row:expr, $aspect_ratio:expr) => {
        $crate::augment::crop::CropOperation {
            constraints: $crate::augment::sample::Constraints {
                min_object_covered: $row.min_object_covered(),
                aspect_ratio: $aspect_ratio,
                area: ($row.min_area(), $row.max_area()),
            },
            overlap_thresh: $row.overlap_thresh(),
            clip_boxes: $row.clip_boxes(),
            random_coef: $row.random_coef(),
        }
    };
}
pub(super) use row;

impl CropOperation {
    pub(super) fn from_config(crop: &config::RandomCropImage, at: &At) -> Result<Self, Error> {
        let operation = row!(crop, (crop.min_aspect_ratio(), crop.max_aspect_ratio()));
        operation.checked(at)
    }

    /// What TensorFlow demands of `sample_distorted_bounding_box`.
    pub(super) fn checked(self, at: &At) -> Result<Self, Error> {
        let Constraints {
            min_object_covered: covered,
            aspect_ratio,
            area,
        } = self.constraints;
        at.share("min_object_covered", covered)?;
        let (low, high) = aspect_ratio;
        at.check("min_aspect_ratio", low, low > 0.0 && low.is_finite(), "greater than 0")?;
        at.check(
            "max_aspect_ratio",
            high,
            high >= low && high.is_finite(),
            "at least min_aspect_ratio",
        )?;
        let (low, high) = area;
        at.check("min_area", low, low > 0.0 && low <= 1.0, "greater than 0 and at most 1")?;
        at.check("max_area", high, high >= low && high <= 1.0, "from min_area to 1")?;
        at.share("overlap_thresh", self.overlap_thresh)?;
        at.share("random_coef", self.random_coef)?;
        Ok(self)
    }

    /// Whether the image is left as it is this time. With no chance of that, the reference draws no number.
    fn leaves(&self, random: &mut Stream) -> bool {
        self.random_coef >= f32::MIN_POSITIVE && random.unit() <= self.random_coef
    }
}

impl Operation for CropOperation {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        if self.leaves(random) {
            return Ok(());
        }
        let (height, width) = sample.picture.size();
        let window = sample_window(height, width, &sample.objects.boxes, &self.constraints, random);
        let frame = bounds(window, height, width);
        // A box that only touches the window has no share, but 0 passes a threshold of 0: it must go all the same.
        prune_outside(&mut sample.objects, &frame);
        keep_window(sample, window, self.overlap_thresh, self.clip_boxes);
        Ok(())
    }
}

/// Crops; objects of which enough is inside go with the window.
fn keep_window(sample: &mut Sample<'_>, window: Window, overlap_thresh: f32, clip: bool) {
    let (height, width) = sample.picture.size();
    let frame = bounds(window, height, width);
    let objects = &mut sample.objects;
    prune_overlap(objects, &frame, overlap_thresh);
    change_frame(objects, &frame);
    if clip {
        clip_boxes(objects);
        prune_keypoints(objects);
    }
    crop_masks(objects, window);
    sample
        .picture
        .crop(window.top, window.left, window.height, window.width);
}

impl SsdRandomCrop {
    pub(super) fn from_config(crop: &config::SsdRandomCrop, at: &At) -> Result<Self, Error> {
        if crop.operations.is_empty() {
            return Ok(Self(ssd_operations()));
        }
        let rows =
            crop.operations.iter().enumerate().map(|(number, row)| {
                row!(row, (row.min_aspect_ratio(), row.max_aspect_ratio())).checked(&at.row(number))
            });
        Ok(Self(rows.collect::<Result<_, _>>()?))
    }
}

impl Operation for SsdRandomCrop {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let chosen = random.below(self.0.len() as u64) as usize;
        self.0
            .get(chosen)
            .map_or(Ok(()), |operation| operation.apply(sample, random))
    }
}

impl CropToAspectRatio {
    pub(super) fn from_config(crop: &config::RandomCropToAspectRatio, at: &At) -> Result<Self, Error> {
        let aspect_ratio = at.positive("aspect_ratio", crop.aspect_ratio())?;
        let overlap_thresh = at.share("overlap_thresh", crop.overlap_thresh())?;
        Ok(Self {
            aspect_ratio,
            overlap_thresh,
            clip_boxes: crop.clip_boxes(),
        })
    }

    /// Rows and columns of the largest window.
    fn target(&self, height: usize, width: usize) -> (usize, usize) {
        let (rows, columns) = (height as f32, width as f32);
        let ratio = columns / rows;
        let side = |size: f32, most: usize| (size.round_ties_even() as usize).clamp(1, most);
        let target_height = if ratio >= self.aspect_ratio {
            height
        } else {
            side(columns / self.aspect_ratio, height)
        };
        let target_width = if ratio <= self.aspect_ratio {
            width
        } else {
            side(rows * self.aspect_ratio, width)
        };
        (target_height, target_width)
    }
}

impl Operation for CropToAspectRatio {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let (height, width) = sample.picture.size();
        let (target_height, target_width) = self.target(height, width);
        let window = Window {
            top: random.below((height - target_height + 1) as u64) as usize,
            left: random.below((width - target_width + 1) as u64) as usize,
            height: target_height,
            width: target_width,
        };
        if self.clip_boxes {
            // `clip_to_window` drops what has no area left, which a threshold of 0 lets pass.
            prune_outside(&mut sample.objects, &bounds(window, height, width));
        }
        keep_window(sample, window, self.overlap_thresh, self.clip_boxes);
        Ok(())
    }
}

impl SsdRandomCropFixedAspectRatio {
    pub(super) fn from_config(crop: &config::SsdRandomCropFixedAspectRatio, at: &At) -> Result<Self, Error> {
        // As in the reference, the ratio of a step without operations is 1, whatever it says.
        let aspect_ratio = if crop.operations.is_empty() {
            1.0
        } else {
            at.positive("aspect_ratio", crop.aspect_ratio())?
        };
        let ratios = (aspect_ratio, aspect_ratio);
        let operations = if crop.operations.is_empty() {
            let mut rows = ssd_operations();
            for row in &mut rows {
                row.constraints.aspect_ratio = ratios;
            }
            rows
        } else {
            let rows = crop.operations.iter().enumerate();
            let rows = rows.map(|(number, row)| row!(row, ratios).checked(&at.row(number)));
            rows.collect::<Result<_, _>>()?
        };
        Ok(Self {
            crop: SsdRandomCrop(operations),
            then: CropToAspectRatio {
                aspect_ratio,
                overlap_thresh: 0.3,
                clip_boxes: true,
            },
        })
    }
}

impl Operation for SsdRandomCropFixedAspectRatio {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        self.crop.apply(sample, random)?;
        self.then.apply(sample, random)
    }
}
