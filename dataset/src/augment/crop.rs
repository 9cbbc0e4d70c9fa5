//! Crops that keep objects in sight (`random_crop_image`, `ssd_random_crop`).

use super::sample::{Constraints, sample_window};
use crate::groundtruth::Groundtruth;
use crate::random::Stream;
use crate::resize::View;

/// One way to crop.
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
    let shares = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0];
    let operation = |share| CropOperation {
        constraints: Constraints {
            min_object_covered: share,
            aspect_ratio: (0.5, 2.0),
            area: (0.1, 1.0),
        },
        overlap_thresh: share,
        clip_boxes: true,
        random_coef: 0.15,
    };
    shares.into_iter().map(operation).collect()
}

impl CropOperation {
    /// Crops the view and changes the boxes accordingly.
    pub(super) fn apply(&self, view: View, objects: &mut Groundtruth, random: &mut Stream) -> View {
        // With no chance of leaving the image as it is, the reference draws no number.
        if self.random_coef >= f32::MIN_POSITIVE && random.unit() <= self.random_coef {
            return view;
        }
        let window = sample_window(view.height, view.width, &objects.boxes, &self.constraints, random);
        let (height, width) = (view.height as f32, view.width as f32);
        let bounds = [
            window.top as f32 / height,
            window.left as f32 / width,
            (window.top + window.height) as f32 / height,
            (window.left + window.width) as f32 / width,
        ];
        let shares: Vec<_> = objects
            .boxes
            .iter()
            .map(|object| share_inside(object, &bounds))
            .collect();
        // A box that only touches the window has no share, but 0 passes a threshold of 0: it must go all the same.
        let touches = |object: &[f32; 4]| {
            object[0] < bounds[2] && object[1] < bounds[3] && object[2] > bounds[0] && object[3] > bounds[1]
        };
        let keep: Vec<_> = objects
            .boxes
            .iter()
            .zip(shares)
            .map(|(object, share)| touches(object) && share >= self.overlap_thresh)
            .collect();
        objects.retain(|index| keep.get(index).copied().unwrap_or(false));
        for object in &mut objects.boxes {
            *object = change_frame(object, &bounds);
            if self.clip_boxes {
                *object = object.map(|side| side.clamp(0.0, 1.0));
            }
        }
        view.crop(window.top, window.left, window.height, window.width)
    }
}

/// The share of `object` that lies within `bounds` (`ioa`); NaN for a box without area.
fn share_inside(object: &[f32; 4], bounds: &[f32; 4]) -> f32 {
    let side = |axis: usize| (object[axis + 2].min(bounds[axis + 2]) - object[axis].max(bounds[axis])).max(0.0);
    side(0) * side(1) / ((object[2] - object[0]) * (object[3] - object[1]))
}

/// Coordinates relative to a window (`change_coordinate_frame`).
fn change_frame(object: &[f32; 4], window: &[f32; 4]) -> [f32; 4] {
    let scales = [window[2] - window[0], window[3] - window[1]];
    let mut moved = *object;
    for (side, value) in moved.iter_mut().enumerate() {
        *value = (*value - window[side % 2]) / scales[side % 2];
    }
    moved
}
