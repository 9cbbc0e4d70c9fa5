//! Plots as pictures: precision-recall curves and the confusion matrix.

mod curves;
mod matrix;

pub use curves::precision_recall;
pub use matrix::confusion;

use image::{Rgb, RgbImage};

use crate::text::{Size, blend};

const WHITE: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([40, 40, 40]);
const FAINT: Rgb<u8> = Rgb([225, 225, 225]);
const TEXT: Size = Size::SMALL;

/// A straight line with smooth edges, `width` pixels wide.
fn line(picture: &mut RgbImage, from: (f64, f64), to: (f64, f64), width: f64, colour: Rgb<u8>) {
    let half = width / 2.0;
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx.hypot(dy);
    let range = |a: f64, b: f64| (a.min(b) - half - 1.0).floor() as i64..=(a.max(b) + half + 1.0).ceil() as i64;
    for y in range(from.1, to.1) {
        for x in range(from.0, to.0) {
            let (px, py) = (x as f64 - from.0, y as f64 - from.1);
            let along = if length > 0.0 {
                ((px * dx + py * dy) / (length * length)).clamp(0.0, 1.0)
            } else {
                0.0
            };
            let distance = (px - along * dx).hypot(py - along * dy);
            let coverage = (half + 0.5 - distance).clamp(0.0, 1.0);
            if coverage > 0.0 {
                blend(picture, x, y, colour, coverage as f32);
            }
        }
    }
}

/// At most `most` letters; what is left out shows as an ellipsis.
fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(2)).chain("..".chars()).collect()
}
