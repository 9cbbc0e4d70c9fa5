//! True and false positives of one class in one image (the reference's `PerImageEvaluation`).

use crate::average_precision::descending;
use crate::mask::Mask;
use crate::overlap;

/// More detections of a class in an image than these are not looked at (`nms_max_output_boxes`).
const MOST: usize = 10_000;

/// What counts as found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    /// Least overlap of a match.
    pub matching_iou: f64,
    /// What a group-of box in which something was found adds to the true positives; 0: detections inside are ignored.
    pub group_of_weight: f64,
    /// Compare masks where there are any.
    pub masks: bool,
}

/// An object that is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object<'a> {
    pub corners: [f64; 4],
    pub mask: Option<&'a Mask>,
    pub difficult: bool,
    pub group_of: bool,
}

impl Object<'_> {
    /// Whether it takes part with its mask; one that nobody has segmented takes part with its box.
    fn segmented(&self, rule: Rule) -> bool {
        rule.masks && self.mask.is_some_and(|mask| mask.area() > 0)
    }
}

/// A detection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    pub corners: [f64; 4],
    pub mask: Option<&'a Mask>,
    pub score: f64,
}

/// What the detections of one class in one image are worth.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Labels {
    /// Of those that count.
    pub scores: Vec<f64>,
    /// Weights of true positives, 0 for false ones.
    pub weights: Vec<f64>,
}

#[derive(Clone, Copy, Default)]
struct State {
    right: bool,
    difficult: bool,
    group_of: bool,
    by_box: bool,
}

impl State {
    fn open(self) -> bool {
        !self.right && !self.difficult && !self.group_of
    }
}

/// First, detections are matched to ordinary objects: the surest first, each to the object that it overlaps most; a second match of an
/// object is a false positive, a match with a difficult one counts neither way. What is left is matched to group-of boxes by
/// intersection over the detection's own area. With masks, objects that have one come first; boxes of the others follow, and what
/// matches those counts neither way.
pub(crate) fn label(found: &[Found], objects: &[Object], rule: Rule) -> Labels {
    let scores: Vec<f64> = found.iter().map(|one| one.score).collect();
    let sorted: Vec<&Found> = descending(&scores)
        .into_iter()
        .take(MOST)
        .map(|index| &found[index])
        .collect();
    let mut states = vec![State::default(); sorted.len()];
    let mut groups = Labels::default();
    for by_box in [false, true] {
        let of = |group_of: bool| -> Vec<&Object> {
            objects
                .iter()
                .filter(|object| object.segmented(rule) != by_box && object.group_of == group_of)
                .collect()
        };
        match_objects(&sorted, &of(false), rule, by_box, &mut states);
        match_groups(&sorted, &of(true), rule, by_box, &mut states, &mut groups);
    }
    let mut labels = Labels::default();
    for (one, state) in sorted.iter().zip(&states) {
        if !state.difficult && !state.group_of && !(rule.masks && state.by_box) {
            labels.scores.push(one.score);
            labels.weights.push(f64::from(u8::from(state.right)));
        }
    }
    labels.scores.append(&mut groups.scores);
    labels.weights.append(&mut groups.weights);
    labels
}

fn match_objects(sorted: &[&Found], objects: &[&Object], rule: Rule, by_box: bool, states: &mut [State]) {
    let mut taken = vec![false; objects.len()];
    for (one, state) in sorted.iter().zip(states) {
        let Some((best, overlap)) = largest(objects.iter().map(|object| iou(one, object, by_box))) else {
            return;
        };
        if !state.open() || overlap.is_nan() || overlap < rule.matching_iou {
            continue;
        }
        if objects[best].difficult {
            state.difficult = true;
        } else if !taken[best] {
            taken[best] = true;
            state.right = true;
            state.by_box = by_box;
        }
    }
}

fn match_groups(
    sorted: &[&Found],
    groups: &[&Object],
    rule: Rule,
    by_box: bool,
    states: &mut [State],
    labels: &mut Labels,
) {
    let mut best_scores = vec![0.0_f64; groups.len()];
    for (one, state) in sorted.iter().zip(states) {
        let Some((best, overlap)) = largest(groups.iter().map(|object| ioa(one, object, by_box))) else {
            return;
        };
        if state.open() && overlap >= rule.matching_iou {
            state.group_of = true;
            state.by_box = by_box;
            best_scores[best] = best_scores[best].max(one.score);
        }
    }
    if rule.group_of_weight > 0.0 {
        for score in best_scores.into_iter().filter(|&score| score > 0.0) {
            labels.scores.push(score);
            labels.weights.push(rule.group_of_weight);
        }
    }
}

/// Whether the surest detection overlaps any object enough (`CorLoc` of one image); difficult and group-of ones are objects here.
pub(crate) fn located(found: &[Found], objects: &[Object], rule: Rule) -> bool {
    let scores = found.iter().map(|one| one.score);
    let Some((surest, _)) = largest(scores) else {
        return false;
    };
    objects
        .iter()
        .any(|object| iou(&found[surest], object, !rule.masks) >= rule.matching_iou)
}

fn iou(found: &Found, object: &Object, by_box: bool) -> f64 {
    match (found.mask, object.mask) {
        (Some(a), Some(b)) if !by_box => overlap::mask_iou(a, b),
        _ => overlap::iou(found.corners, object.corners),
    }
}

fn ioa(found: &Found, object: &Object, by_box: bool) -> f64 {
    match (found.mask, object.mask) {
        (Some(a), Some(b)) if !by_box => overlap::mask_ioa(b, a),
        _ => overlap::ioa(object.corners, found.corners),
    }
}

/// The first of the largest values.
fn largest(values: impl Iterator<Item = f64>) -> Option<(usize, f64)> {
    values.enumerate().fold(None, |best, (index, value)| match best {
        Some((_, largest)) if value.is_nan() || value <= largest => best,
        _ => Some((index, value)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule {
        matching_iou: 0.5,
        group_of_weight: 0.0,
        masks: false,
    };

    fn found(score: f64, corners: [f64; 4]) -> Found<'static> {
        Found {
            corners,
            mask: None,
            score,
        }
    }

    fn object(corners: [f64; 4]) -> Object<'static> {
        Object {
            corners,
            mask: None,
            difficult: false,
            group_of: false,
        }
    }

    #[test]
    fn an_object_is_found_once() {
        let square = [0.0, 0.0, 10.0, 10.0];
        let labels = label(&[found(0.5, square), found(0.9, square)], &[object(square)], RULE);
        assert_eq!(labels.scores, [0.9, 0.5]);
        assert_eq!(labels.weights, [1.0, 0.0]);
        assert!(located(&[found(0.5, square)], &[object(square)], RULE));
    }

    #[test]
    fn difficult_ones_count_neither_way() {
        let square = [0.0, 0.0, 10.0, 10.0];
        let hard = Object {
            difficult: true,
            ..object(square)
        };
        let elsewhere = found(0.2, [20.0, 20.0, 30.0, 30.0]);
        let labels = label(&[found(0.9, square), elsewhere], &[hard], RULE);
        assert_eq!((labels.scores, labels.weights), (vec![0.2], vec![0.0]));
    }

    #[test]
    fn a_group_counts_once_with_its_weight() {
        let group = Object {
            group_of: true,
            ..object([0.0, 0.0, 100.0, 100.0])
        };
        let inside = [found(0.3, [0.0, 0.0, 10.0, 10.0]), found(0.8, [20.0, 20.0, 30.0, 30.0])];
        assert_eq!(label(&inside, &[group], RULE), Labels::default());
        let weighted = Rule {
            group_of_weight: 1.0,
            ..RULE
        };
        let labels = label(&inside, &[group], weighted);
        assert_eq!((labels.scores, labels.weights), (vec![0.8], vec![1.0]));
    }

    #[test]
    fn what_is_not_segmented_is_matched_by_its_box_and_left_out() {
        let (mask, none) = (Mask::from_rows(&[1, 1, 0, 0], 2, 2).unwrap(), Mask::empty(2, 2));
        let rule = Rule { masks: true, ..RULE };
        let segmented = Object {
            mask: Some(&mask),
            ..object([0.0, 0.0, 0.5, 1.0])
        };
        let boxed = Object {
            mask: Some(&none),
            ..object([0.5, 0.0, 1.0, 1.0])
        };
        let lower = Mask::from_rows(&[0, 0, 1, 1], 2, 2).unwrap();
        let detections = [
            Found {
                mask: Some(&mask),
                ..found(0.9, [0.0, 0.0, 0.5, 1.0])
            },
            Found {
                mask: Some(&lower),
                ..found(0.8, [0.5, 0.0, 1.0, 1.0])
            },
        ];
        let labels = label(&detections, &[segmented, boxed], rule);
        assert_eq!((labels.scores, labels.weights), (vec![0.9], vec![1.0]));
    }
}
