//! The best constant detector: what a "detector" scores that reports the same boxes on every image, whatever it shows.
//! A trained detector must clear it, or it has learnt the data set's average and nothing else.

use std::collections::BTreeMap;

use crate::coco::{Error, Evaluator, Metrics};
use crate::sample::{Category, ImageDetections, ImageGroundtruth};

/// A way to choose one box for all images.
type Rule = fn(&[[f32; 4]]) -> [f32; 4];

/// One image of the set: id, `[height, width]` in pixels, groundtruth.
pub type Sized = (String, [f32; 2], ImageGroundtruth);

/// The best of the constant detectors tried, and its metrics.
#[derive(Clone, Debug)]
pub struct Floor {
    /// Which rule chose the boxes.
    pub rule: &'static str,
    /// What it scores.
    pub metrics: Metrics,
}

/// Groundtruth boxes that are tried as constant boxes, per class.
const CANDIDATES: usize = 64;

/// Tries, per class, the mean box, the median box, the whole image, and the groundtruth box that overlaps most others by half;
/// returns the rule with the highest AP50.
pub fn best_constant_box(categories: &[Category], images: &[Sized]) -> Result<Floor, Error> {
    let mut by_class: BTreeMap<u32, Vec<[f32; 4]>> = BTreeMap::new();
    for (_, [height, width], groundtruth) in images {
        for (b, &class) in groundtruth.boxes_px.iter().zip(&groundtruth.classes) {
            let normalised = [b[0] / height, b[1] / width, b[2] / height, b[3] / width];
            by_class.entry(class).or_default().push(normalised);
        }
    }
    let rules: [(&'static str, Rule); 4] = [
        ("mean box", mean),
        ("median box", median),
        ("whole image", |_| [0.0, 0.0, 1.0, 1.0]),
        ("most overlapping box", central),
    ];
    let mut best: Option<Floor> = None;
    for (rule, choose) in rules {
        let chosen: Vec<(u32, [f32; 4], f32)> = by_class
            .iter()
            .map(|(&class, boxes)| (class, choose(boxes), boxes.len() as f32 / images.len().max(1) as f32))
            .collect();
        let metrics = score(categories, images, &chosen)?;
        if best.as_ref().is_none_or(|best| metrics.ap50() > best.metrics.ap50()) {
            best = Some(Floor { rule, metrics });
        }
    }
    best.ok_or(Error::Empty)
}

fn score(categories: &[Category], images: &[Sized], chosen: &[(u32, [f32; 4], f32)]) -> Result<Metrics, Error> {
    let mut evaluator = Evaluator::new(categories.to_vec());
    for (id, [height, width], groundtruth) in images {
        evaluator.add_groundtruth(id, groundtruth)?;
        let detections = ImageDetections {
            boxes_px: chosen
                .iter()
                .map(|(_, b, _)| [b[0] * height, b[1] * width, b[2] * height, b[3] * width])
                .collect(),
            scores: chosen.iter().map(|&(_, _, frequency)| frequency.min(1.0)).collect(),
            classes: chosen.iter().map(|&(class, ..)| class).collect(),
        };
        evaluator.add_detections(id, &detections)?;
    }
    evaluator.evaluate()
}

fn mean(boxes: &[[f32; 4]]) -> [f32; 4] {
    std::array::from_fn(|i| boxes.iter().map(|b| b[i]).sum::<f32>() / boxes.len().max(1) as f32)
}

fn median(boxes: &[[f32; 4]]) -> [f32; 4] {
    std::array::from_fn(|i| {
        let mut values: Vec<f32> = boxes.iter().map(|b| b[i]).collect();
        values.sort_by(f32::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    })
}

fn central(boxes: &[[f32; 4]]) -> [f32; 4] {
    let step = boxes.len().div_ceil(CANDIDATES).max(1);
    let overlaps = |candidate: &[f32; 4]| boxes.iter().filter(|b| iou(candidate, b) >= 0.5).count();
    boxes
        .iter()
        .step_by(step)
        .copied()
        .max_by_key(overlaps)
        .unwrap_or([0.0, 0.0, 1.0, 1.0])
}

fn iou(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let height = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let width = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let intersection = height * width;
    let union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection;
    if union > 0.0 { intersection / union } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(boxes: &[[f32; 4]]) -> Vec<Sized> {
        boxes
            .iter()
            .enumerate()
            .map(|(i, &b)| {
                (
                    format!("{i}"),
                    [100.0, 100.0],
                    ImageGroundtruth {
                        boxes_px: vec![b],
                        classes: vec![1],
                        ..Default::default()
                    },
                )
            })
            .collect()
    }

    #[test]
    fn a_constant_set_is_solved_by_a_constant_box() {
        let categories = [Category {
            id: 1,
            name: "a".into(),
        }];
        let floor = best_constant_box(&categories, &set(&[[10.0, 10.0, 60.0, 60.0]; 5])).unwrap();
        assert!(floor.metrics.ap50() > 0.99, "{floor:?}");
    }

    #[test]
    fn scattered_boxes_are_not() {
        let categories = [Category {
            id: 1,
            name: "a".into(),
        }];
        let boxes: Vec<[f32; 4]> = (0..5)
            .flat_map(|y| (0..5).map(move |x| (y, x)))
            .map(|(y, x)| {
                let (y, x) = (y as f32 * 20.0, x as f32 * 20.0);
                [y, x, y + 18.0, x + 18.0]
            })
            .collect();
        let floor = best_constant_box(&categories, &set(&boxes)).unwrap();
        assert!(floor.metrics.ap50() < 0.1, "{floor:?}");
    }
}
