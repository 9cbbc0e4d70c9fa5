//! What happens to objects when a part of their image is kept.

use super::sample::Window;
use crate::groundtruth::Groundtruth;

/// A part of an image in its normalised coordinates, `[ymin, xmin, ymax, xmax]`.
pub(super) type Bounds = [f32; 4];

/// All that there is.
pub(super) const WHOLE: Bounds = [0.0, 0.0, 1.0, 1.0];

/// A window of whole pixels in the normalised coordinates of an image.
pub(super) fn bounds(window: Window, height: usize, width: usize) -> Bounds {
    let (height, width) = (height as f32, width as f32);
    [
        window.top as f32 / height,
        window.left as f32 / width,
        (window.top + window.height) as f32 / height,
        (window.left + window.width) as f32 / width,
    ]
}

/// The share of `object` that lies within `bounds` (`ioa`); NaN for a box without area.
fn share_inside(object: &Bounds, bounds: &Bounds) -> f32 {
    let side = |axis: usize| (object[axis + 2].min(bounds[axis + 2]) - object[axis].max(bounds[axis])).max(0.0);
    side(0) * side(1) / ((object[2] - object[0]) * (object[3] - object[1]))
}

/// Drops objects that lie beyond the bounds or only touch them (`prune_completely_outside_window`).
pub(super) fn prune_outside(objects: &mut Groundtruth, bounds: &Bounds) {
    let inside = |object: &Bounds| {
        object[0] < bounds[2] && object[1] < bounds[3] && object[2] > bounds[0] && object[3] > bounds[1]
    };
    let keep: Vec<_> = objects.boxes.iter().map(inside).collect();
    objects.retain(|index| keep[index]);
}

/// Drops objects of which less than `threshold` lies inside (`prune_non_overlapping_boxes`); boxes without area go, too.
pub(super) fn prune_overlap(objects: &mut Groundtruth, bounds: &Bounds, threshold: f32) {
    let enough = |object: &Bounds| share_inside(object, bounds) >= threshold;
    let keep: Vec<_> = objects.boxes.iter().map(enough).collect();
    objects.retain(|index| keep[index]);
}

/// Boxes and keypoints become relative to the bounds (`change_coordinate_frame`).
pub(super) fn change_frame(objects: &mut Groundtruth, bounds: &Bounds) {
    let scales = [bounds[2] - bounds[0], bounds[3] - bounds[1]];
    for object in &mut objects.boxes {
        for (side, value) in object.iter_mut().enumerate() {
            *value = (*value - bounds[side % 2]) / scales[side % 2];
        }
    }
    for point in objects.keypoints.iter_mut().flatten() {
        for (axis, value) in point.iter_mut().enumerate() {
            *value = (*value - bounds[axis]) / scales[axis];
        }
    }
}

/// Cuts boxes at the image.
pub(super) fn clip_boxes(objects: &mut Groundtruth) {
    for object in &mut objects.boxes {
        *object = object.map(|side| side.clamp(0.0, 1.0));
    }
}

/// Keypoints outside the image become NaN and are no longer visible (`prune_outside_window`,
/// `set_keypoint_visibilities`).
pub(super) fn prune_keypoints(objects: &mut Groundtruth) {
    for point in objects.keypoints.iter_mut().flatten() {
        if !point.iter().all(|value| (0.0..=1.0).contains(value)) {
            *point = [f32::NAN; 2];
        }
    }
    for (points, visible) in objects.keypoints.iter().zip(&mut objects.keypoint_visibilities) {
        for (point, visible) in points.iter().zip(visible) {
            *visible &= !point[0].is_nan() && !point[1].is_nan();
        }
    }
}

/// Cuts masks.
pub(super) fn crop_masks(objects: &mut Groundtruth, window: Window) {
    for mask in &mut objects.masks {
        mask.crop(window.top, window.left, window.height, window.width);
    }
}
