//! Steps that move an image or cover parts of it.

use super::REPLACE;
use crate::augment::window::prune_keypoints;
use crate::decode::Image;
use crate::groundtruth::Groundtruth;
use crate::pixels::Pixels;
use crate::random::Stream;

/// A way to move an image; sizes in pixels, angles in degrees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Motion {
    Rotate(f32),
    TranslateX(f32),
    TranslateY(f32),
    ShearX(f32),
    ShearY(f32),
}

/// Where an output pixel comes from: `x = t[0] x' + t[1] y' + t[2]`, `y = t[3] x' + t[4] y' + t[5]`.
pub(super) type Transform = [f32; 6];

impl Motion {
    pub(super) fn transform(self, height: usize, width: usize) -> Transform {
        match self {
            Self::Rotate(degrees) => {
                let radians = degrees * (std::f64::consts::PI / 180.0) as f32;
                let (sin, cos) = radians.sin_cos();
                let (right, bottom) = (width as f32 - 1.0, height as f32 - 1.0);
                let x = (right - (cos * right - sin * bottom)) / 2.0;
                let y = (bottom - (sin * right + cos * bottom)) / 2.0;
                [cos, -sin, x, sin, cos, y]
            }
            Self::TranslateX(pixels) => [1.0, 0.0, pixels, 0.0, 1.0, 0.0],
            Self::TranslateY(pixels) => [1.0, 0.0, 0.0, 0.0, 1.0, pixels],
            Self::ShearX(level) => [1.0, level, 0.0, 0.0, 1.0, 0.0],
            Self::ShearY(level) => [1.0, 0.0, 0.0, level, 1.0, 0.0],
        }
    }

    /// Moves an image; grey comes in from outside.
    pub(super) fn apply(self, image: &mut Image) {
        let before = image.clone();
        let transform = self.transform(image.height, image.width);
        let (pixels, _) = image.pixels.as_chunks_mut::<3>();
        for (index, pixel) in pixels.iter_mut().enumerate() {
            let (row, column) = (index / before.width, index % before.width);
            let from = source(&transform, row, column, before.height, before.width);
            *pixel = from.map_or(REPLACE, |(y, x)| {
                let start = (y * before.width + x) * 3;
                before.pixels[start..].first_chunk::<3>().copied().unwrap_or(REPLACE)
            });
        }
    }

    /// Where a box goes (`_rotate_bbox`, `_shift_bbox`, `_shear_bbox`); fractions of pixels are cut off as there.
    pub(super) fn moved_box(self, bounds: &[f32; 4], height: usize, width: usize) -> [f32; 4] {
        let (h, w) = (height as f32, width as f32);
        let [ymin, xmin, ymax, xmax] = *bounds;
        let cut = |value: f32| value.trunc();
        let (top, left, bottom, right) = (cut(h * ymin), cut(w * xmin), cut(h * ymax), cut(w * xmax));
        let moved = match self {
            Self::TranslateX(pixels) => {
                let pixels = cut(pixels);
                [
                    top / h,
                    (left - pixels).max(0.0) / w,
                    bottom / h,
                    (right - pixels).min(w) / w,
                ]
            }
            Self::TranslateY(pixels) => {
                let pixels = cut(pixels);
                [
                    (top - pixels).max(0.0) / h,
                    left / w,
                    (bottom - pixels).min(h) / h,
                    right / w,
                ]
            }
            Self::ShearX(level) => {
                let corners = corners([top, left, bottom, right], |y, x| (cut(y), cut(x - level * y)));
                [corners[0] / h, corners[1] / w, corners[2] / h, corners[3] / w]
            }
            Self::ShearY(level) => {
                let corners = corners([top, left, bottom, right], |y, x| (cut(y - level * x), cut(x)));
                [corners[0] / h, corners[1] / w, corners[2] / h, corners[3] / w]
            }
            Self::Rotate(degrees) => {
                let radians = degrees * (std::f64::consts::PI / 180.0) as f32;
                let (sin, cos) = radians.sin_cos();
                // About the centre, y upwards.
                let y = |value: f32| -cut(h * (value - 0.5));
                let x = |value: f32| cut(w * (value - 0.5));
                let turned = corners([y(ymin), x(xmin), y(ymax), x(xmax)], |y, x| {
                    (cut(cos * y + sin * x), cut(-sin * y + cos * x))
                });
                [
                    -(turned[2] / h - 0.5),
                    turned[1] / w + 0.5,
                    -(turned[0] / h - 0.5),
                    turned[3] / w + 0.5,
                ]
            }
        };
        with_area(moved.map(|side| side.clamp(0.0, 1.0)))
    }

    pub(super) fn move_masks(self, masks: &mut [Pixels]) {
        for mask in masks {
            *mask = super::moved_mask(mask, self);
        }
    }

    /// Keypoints go with their pixels; those that leave the image become NaN.
    pub(super) fn move_keypoints(self, objects: &mut Groundtruth, height: usize, width: usize) {
        let (h, w) = (height as f32, width as f32);
        let [a, b, c, d, e, f] = self.transform(height, width);
        let determinant = a * e - b * d;
        for point in objects.keypoints.iter_mut().flatten() {
            let (x, y) = (point[1] * w - c, point[0] * h - f);
            *point = [(a * y - d * x) / determinant / h, (e * x - b * y) / determinant / w];
        }
        prune_keypoints(objects);
    }
}

/// The pixel (row, column) of the input that an output pixel shows; the nearest one.
pub(super) fn source(
    transform: &Transform,
    row: usize,
    column: usize,
    height: usize,
    width: usize,
) -> Option<(usize, usize)> {
    let (y, x) = (row as f32, column as f32);
    let from_x = (transform[0] * x + transform[1] * y + transform[2]).round();
    let from_y = (transform[3] * x + transform[4] * y + transform[5]).round();
    let inside = from_x >= 0.0 && from_x < width as f32 && from_y >= 0.0 && from_y < height as f32;
    inside.then_some((from_y as usize, from_x as usize))
}

/// Least and most of where the corners go, `[ymin, xmin, ymax, xmax]`.
fn corners([top, left, bottom, right]: [f32; 4], go: impl Fn(f32, f32) -> (f32, f32)) -> [f32; 4] {
    let moved = [go(top, left), go(top, right), go(bottom, left), go(bottom, right)];
    let fold =
        |pick: fn(&(f32, f32)) -> f32, better: fn(f32, f32) -> f32, start| moved.iter().map(pick).fold(start, better);
    [
        fold(|corner| corner.0, f32::min, f32::INFINITY),
        fold(|corner| corner.1, f32::min, f32::INFINITY),
        fold(|corner| corner.0, f32::max, f32::NEG_INFINITY),
        fold(|corner| corner.1, f32::max, f32::NEG_INFINITY),
    ]
}

/// A box that was moved out of the image keeps a little of its border (`_check_bbox_area`).
fn with_area(mut bounds: [f32; 4]) -> [f32; 4] {
    const DELTA: f32 = 0.05;
    for axis in 0..2 {
        if bounds[axis] >= bounds[axis + 2] {
            bounds[axis + 2] = bounds[axis + 2].max(DELTA);
            bounds[axis] = bounds[axis].min(1.0 - DELTA);
        }
    }
    bounds
}

/// Covers rows and columns, `low..high` each, clamped to the image.
fn cover(image: &mut Image, rows: (i64, i64), columns: (i64, i64)) {
    let clamp = |(low, high): (i64, i64), side: usize| {
        let most = side as i64;
        (low.clamp(0, most) as usize, high.clamp(0, most) as usize)
    };
    let ((top, bottom), (left, right)) = (clamp(rows, image.height), clamp(columns, image.width));
    let stride = image.width * 3;
    if top < bottom && left < right {
        for row in image.pixels[top * stride..bottom * stride].chunks_exact_mut(stride) {
            row[left * 3..right * 3].fill(REPLACE[0]);
        }
    }
}

/// Covers a square about a random pixel.
pub(super) fn cutout(image: &mut Image, half: usize, random: &mut Stream) {
    let row = random.below(image.height as u64) as i64;
    let column = random.below(image.width as u64) as i64;
    let half = half as i64;
    cover(image, (row - half, row + half), (column - half, column + half));
}

/// Covers a part of one box, chosen at random.
pub(super) fn cutout_in_box(image: &mut Image, boxes: &[[f32; 4]], share: f32, random: &mut Stream) {
    let Some(chosen) = boxes.get(random.below(boxes.len() as u64) as usize) else {
        return;
    };
    let (h, w) = (image.height as f32, image.width as f32);
    let [ymin, xmin, ymax, xmax] = *chosen;
    let mut side = |low: f32, high: f32| {
        let (low, high) = (low as i64, high as i64);
        let half = (share * (high - low + 1) as f32 / 2.0) as i64;
        let center = random.integer(low, high + 1);
        (center - half, center + half)
    };
    let (rows, columns) = (side(h * ymin, h * ymax), side(w * xmin, w * xmax));
    cover(image, rows, columns);
}
