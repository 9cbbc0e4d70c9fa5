//! How much two objects have in common (the reference's `np_box_ops` and `np_mask_ops`).

use crate::mask::Mask;

/// Keeps quotients of masks finite, as in the reference.
const EPSILON: f32 = 1e-7;

fn area([ymin, xmin, ymax, xmax]: [f64; 4]) -> f64 {
    (ymax - ymin) * (xmax - xmin)
}

fn intersection(a: [f64; 4], b: [f64; 4]) -> f64 {
    (a[2].min(b[2]) - a[0].max(b[0])).max(0.0) * (a[3].min(b[3]) - a[1].max(b[1])).max(0.0)
}

/// Intersection over union of two boxes `[ymin, xmin, ymax, xmax]`; NaN for two boxes without area.
pub(crate) fn iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let common = intersection(a, b);
    common / (area(a) + area(b) - common)
}

/// Intersection over the area of `detection`.
pub(crate) fn ioa(groundtruth: [f64; 4], detection: [f64; 4]) -> f64 {
    intersection(groundtruth, detection) / area(detection)
}

/// Intersection over union of two masks, in float32 as the reference has it.
pub(crate) fn mask_iou(a: &Mask, b: &Mask) -> f64 {
    let common = a.intersection(b) as f32;
    f64::from(common / (a.area() as f32 + b.area() as f32 - common).max(EPSILON))
}

/// Intersection over the area of `detection`, in float32 as the reference has it: there a half is a half in spite of the epsilon.
pub(crate) fn mask_ioa(groundtruth: &Mask, detection: &Mask) -> f64 {
    f64::from(groundtruth.intersection(detection) as f32 / (detection.area() as f32 + EPSILON))
}
