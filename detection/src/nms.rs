//! Greedy suppression of boxes that overlap better ones.

use crate::Corners;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Boxes at most.
    pub max: usize,
    /// A box is dropped if its overlap (intersection over union) with a better one is above this.
    pub iou_threshold: f32,
    /// Only scores above this.
    pub score_threshold: f32,
}

/// Indices of the boxes that survive, best first; TensorFlow's `non_max_suppression`. Equal scores are taken in the order of their
/// indices; scores that are NaN never. Boxes without a finite area above 0 overlap nothing.
pub fn greedy(boxes: &[Corners], scores: &[f32], options: Options) -> Vec<usize> {
    let mut kept = Kept::new(options.iou_threshold);
    let mut survivors = Vec::new();
    for index in ranked(scores, options.score_threshold) {
        if survivors.len() >= options.max {
            break;
        }
        if boxes.get(index).is_some_and(|&corners| kept.insert(corners)) {
            survivors.push(index);
        }
    }
    survivors
}

/// Indices of the scores above `threshold`, best first, then lowest index first.
fn ranked(scores: &[f32], threshold: f32) -> impl Iterator<Item = usize> {
    let mut keys: Vec<u64> = scores
        .iter()
        .enumerate()
        .filter(|&(_, &score)| score > threshold)
        .map(|(index, &score)| u64::from(descending(score)) << 32 | index as u64)
        .collect();
    keys.sort_unstable();
    keys.into_iter().map(|key| (key & u64::from(u32::MAX)) as usize)
}

/// Integers in the opposite order of the numbers. Both zeros are one.
fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

/// The boxes kept so far, by their upper edge: boxes that overlap much have nearly the same, so few need a look.
struct Kept {
    threshold: f32,
    /// (upper edge, place in `boxes`), by the first.
    edges: Vec<(f32, u32)>,
    boxes: Vec<Proper>,
}

/// A box with its corners in order and an area above 0.
#[derive(Clone, Copy)]
struct Proper {
    corners: Corners,
    area: f32,
}

impl Kept {
    fn new(threshold: f32) -> Self {
        Self {
            threshold,
            edges: Vec::new(),
            boxes: Vec::new(),
        }
    }

    /// Keeps the box unless it is suppressed; says whether it was kept.
    fn insert(&mut self, corners: Corners) -> bool {
        let Some(new) = proper(corners) else { return true };
        let [ymin, _, ymax, _] = new.corners;
        // An overlap above t means that the intersection's height is above t times each box's height (the overlap is at most the ratio
        // of the two). So the upper edges differ by less than (1 - t) times the taller height, which is below 1 / t times the other.
        // A little more makes up for rounding.
        let reach = (1.0 - self.threshold) / self.threshold * (ymax - ymin) * 1.001 + 1e-5 * (ymin.abs() + ymax.abs());
        let reach = if reach.is_nan() { f32::INFINITY } else { reach };
        let first = self.edges.partition_point(|&(edge, _)| edge < ymin - reach);
        let suppressed = self.edges[first..]
            .iter()
            .take_while(|&&(edge, _)| edge <= ymin + reach)
            .any(|&(_, place)| overlap(new, self.boxes[place as usize]) > self.threshold);
        if !suppressed {
            let at = first + self.edges[first..].partition_point(|&(edge, _)| edge < ymin);
            self.edges.insert(at, (ymin, self.boxes.len() as u32));
            self.boxes.push(new);
        }
        !suppressed
    }
}

fn proper([y1, x1, y2, x2]: Corners) -> Option<Proper> {
    let corners = [y1.min(y2), x1.min(x2), y1.max(y2), x1.max(x2)];
    let area = (corners[2] - corners[0]) * (corners[3] - corners[1]);
    let finite = [y1, x1, y2, x2, area].iter().all(|value| value.is_finite());
    (finite && area > 0.0).then_some(Proper { corners, area })
}

fn overlap(a: Proper, b: Proper) -> f32 {
    let height = (a.corners[2].min(b.corners[2]) - a.corners[0].max(b.corners[0])).max(0.0);
    let width = (a.corners[3].min(b.corners[3]) - a.corners[1].max(b.corners[1])).max(0.0);
    let intersection = height * width;
    intersection / (a.area + b.area - intersection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: Options = Options {
        max: usize::MAX,
        iou_threshold: 0.5,
        score_threshold: f32::NEG_INFINITY,
    };

    /// The definition, without the short cuts.
    fn plain(boxes: &[Corners], scores: &[f32], options: Options) -> Vec<usize> {
        let mut order: Vec<usize> = (0..scores.len())
            .filter(|&i| scores[i] > options.score_threshold)
            .collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let mut kept: Vec<usize> = Vec::new();
        for i in order {
            let free = kept.iter().all(|&j| match (proper(boxes[i]), proper(boxes[j])) {
                (Some(a), Some(b)) => overlap(a, b) <= options.iou_threshold,
                _ => true,
            });
            if free && kept.len() < options.max {
                kept.push(i);
            }
        }
        kept
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            values in prop::collection::vec((0.0_f32..1.0, 0.0_f32..1.0, -0.02_f32..0.5, 0.0_f32..0.5, 0_u8..20), 0..80),
            twins in 0_usize..40,
            max in 0_usize..90,
            threshold in prop::sample::select(vec![0.0_f32, 0.1, 0.5, 0.6, 0.9, 0.99, 1.0]),
        ) {
            let mut boxes: Vec<Corners> = values.iter().map(|&(y, x, h, w, _)| [y, x, y + h, x + w]).collect();
            for i in 0..twins.min(boxes.len() / 2) {
                boxes[2 * i + 1] = boxes[2 * i].map(|value| value + 1e-4 * i as f32);
            }
            let scores: Vec<f32> = values.iter().map(|value| f32::from(value.4) / 10.0 - 0.5).collect();
            let options = Options { max, iou_threshold: threshold, score_threshold: -0.3 };
            prop_assert_eq!(greedy(&boxes, &scores, options), plain(&boxes, &scores, options));
        }
    }

    #[test]
    fn odd_values_neither_panic_nor_suppress() {
        let nan = f32::NAN;
        let boxes = [
            [nan; 4],
            [0.0, 0.0, 1.0, 1.0],
            [0.0, 0.0, f32::INFINITY, 1.0],
            [0.5; 4],
            [0.5; 4],
        ];
        assert_eq!(greedy(&boxes, &[0.5, 0.4, 0.3, 0.2, nan], ALL), [0, 1, 2, 3]);
        assert!(greedy(&boxes, &[], ALL).is_empty());
        assert!(greedy(&[], &[1.0], ALL).is_empty());
    }

    #[test]
    fn flipped_corners_mean_the_same_box() {
        let boxes = [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]];
        assert_eq!(greedy(&boxes, &[0.5, 0.4], ALL), [0]);
    }
}
