//! Steps that work on the content of each box; the boxes stay where they are.

use super::policies::Kind;
use super::{Action, action, geometry, happens};
use crate::decode::Image;
use crate::random::Stream;

/// Applies a step to the content of boxes, each with that probability, one after the other in a random order.
pub(super) fn each(
    kind: Kind,
    probability: f32,
    level: f32,
    image: &mut Image,
    boxes: &[[f32; 4]],
    random: &mut Stream,
) {
    // The sign of a level is drawn once for all boxes, as the reference's graph does within one step.
    let action = action(kind, level, random);
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    for index in order {
        if happens(probability, random) {
            content(&action, image, &boxes[index], random);
        }
    }
}

fn content(action: &Action, image: &mut Image, bounds: &[f32; 4], random: &mut Stream) {
    let pixel = |value: f32, side: usize| ((value * side as f32) as usize).min(side - 1);
    let (top, bottom) = (pixel(bounds[0], image.height), pixel(bounds[2], image.height));
    let (left, right) = (pixel(bounds[1], image.width), pixel(bounds[3], image.width));
    if top > bottom || left > right {
        return;
    }
    let stride = image.width * 3;
    let (height, width) = (bottom - top + 1, right - left + 1);
    let span = |row: usize| row * stride + left * 3..row * stride + (left + width) * 3;
    let mut part = Image {
        height,
        width,
        pixels: (top..=bottom)
            .flat_map(|row| image.pixels[span(row)].iter().copied())
            .collect(),
    };
    match action {
        Action::Color(change) => change.apply(&mut part),
        Action::Cutout(half) => geometry::cutout(&mut part, *half, random),
        Action::Move(motion) => motion.apply(&mut part),
        Action::Flip => {
            for row in part.pixels.chunks_exact_mut(width * 3) {
                row.reverse();
                row.chunks_exact_mut(3).for_each(<[u8]>::reverse);
            }
        }
        Action::CutoutInBox(_) => {}
    }
    for (row, pixels) in (top..=bottom).zip(part.pixels.chunks_exact(width * 3)) {
        image.pixels[span(row)].copy_from_slice(pixels);
    }
}
