//! Greedy suppression of boxes that overlap better ones.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

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

/// The boxes that survive and their new scores, best first: nothing is dropped for its overlap, but a box's score is multiplied by
/// `exp(-overlap^2 / (2 sigma))` for each better one (arXiv:1704.04503); TensorFlow's `non_max_suppression_with_scores` with a
/// `soft_nms_sigma`. `iou_threshold` means nothing here. Of equal scores the lower index is taken first.
pub fn soft(boxes: &[Corners], scores: &[f32], options: Options, sigma: f32) -> Vec<(usize, f32)> {
    let weight = |overlap: f32| (-0.5 / sigma * overlap * overlap).exp();
    let mut waiting: BinaryHeap<Waiting> = scores
        .iter()
        .enumerate()
        .filter(|&(index, &score)| score > options.score_threshold && index < boxes.len())
        .map(|(index, &score)| Waiting { score, index, seen: 0 })
        .collect();
    let mut kept: Vec<(usize, f32)> = Vec::new();
    while let Some(next) = waiting.pop() {
        if kept.len() >= options.max {
            break;
        }
        let mut score = next.score;
        for &(other, _) in kept[next.seen..].iter().rev() {
            score *= weight(overlap_of(boxes[next.index], boxes[other]));
            if score <= options.score_threshold {
                break;
            }
        }
        if score == next.score {
            kept.push((next.index, score));
        } else if score > options.score_threshold {
            waiting.push(Waiting {
                score,
                index: next.index,
                seen: kept.len(),
            });
        }
    }
    kept
}

/// A box that waits for its turn.
struct Waiting {
    score: f32,
    index: usize,
    /// How many of the kept boxes its score takes into account.
    seen: usize,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.index.cmp(&self.index))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}

/// 0 for boxes without a finite area above 0.
fn overlap_of(a: Corners, b: Corners) -> f32 {
    proper(a).zip(proper(b)).map_or(0.0, |(a, b)| overlap(a, b))
}

/// Calls `take` with numbers of candidates by their scores, best first, then lowest number first, until it returns false. Scores not
/// above `threshold` never come. Ranks no more of them than are asked for: of many candidates few are looked at.
pub(crate) fn each_ranked(
    scores: impl Iterator<Item = (usize, f32)>,
    threshold: f32,
    mut take: impl FnMut(usize) -> bool,
) {
    let keys = scores.filter(|&(_, score)| score > threshold);
    let mut keys: Vec<u64> = keys
        .map(|(number, score)| u64::from(descending(score)) << 32 | number as u64)
        .collect();
    let (mut rest, mut size) = (&mut keys[..], 1024);
    while !rest.is_empty() {
        let some = size.min(rest.len());
        if some < rest.len() {
            rest.select_nth_unstable(some);
        }
        let (first, others) = rest.split_at_mut(some);
        first.sort_unstable();
        for key in first {
            if !take((*key & u64::from(u32::MAX)) as usize) {
                return;
            }
        }
        rest = others;
        size *= 4;
    }
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
#[derive(Clone)]
pub(crate) struct Kept {
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
    pub(crate) fn new(threshold: f32) -> Self {
        Self {
            threshold,
            edges: Vec::new(),
            boxes: Vec::new(),
        }
    }

    /// Keeps the box unless it is suppressed; says whether it was kept.
    pub(crate) fn insert(&mut self, corners: Corners) -> bool {
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
    fn scores_sink_instead_of_boxes_going() {
        let boxes = [
            [0.0, 0.0, 1.0, 1.0],
            [0.0, 0.0, 1.0, 0.5],
            [2.0, 2.0, 3.0, 3.0],
            [0.0, 0.0, 1.0, 1.0],
        ];
        let options = Options {
            score_threshold: 0.1,
            ..ALL
        };
        let found = soft(&boxes, &[0.9, 0.8, 0.3, 0.7], options, 0.5);
        // The second one overlaps by a half, the last one by all: exp(-1).
        let expected = [
            (0, 0.9),
            (1, 0.8 * (-0.25_f32).exp()),
            (2, 0.3),
            (3, 0.7 * (-1.0_f32).exp() * (-0.25_f32).exp()),
        ];
        assert_eq!(found.len(), 4);
        for ((index, score), (i, s)) in found.iter().zip(expected) {
            assert!(*index == i && (score - s).abs() < 1e-6, "{found:?}");
        }
        let few = Options { max: 1, ..options };
        assert_eq!(soft(&boxes, &[0.9, 0.9, f32::NAN, 0.7], few, 0.5), [(0, 0.9)]);
    }

    #[test]
    fn ranks_come_in_order_however_many_there_are() {
        let scores: Vec<f32> = (0..9000_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) % 997) as f32)
            .collect();
        let mut found = Vec::new();
        each_ranked(scores.iter().copied().enumerate(), 10.0, |number| {
            found.push(number);
            found.len() < 7000
        });
        let mut expected: Vec<usize> = (0..9000).filter(|&i| scores[i] > 10.0).collect();
        expected.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        assert_eq!(found, expected[..7000]);
    }

    #[test]
    fn flipped_corners_mean_the_same_box() {
        let boxes = [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]];
        assert_eq!(greedy(&boxes, &[0.5, 0.4], ALL), [0]);
    }
}
