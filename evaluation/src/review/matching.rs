//! Which detections are right.

use crate::overlap::{ioa, iou};
use crate::sample::Sample;

/// An object that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub corners: [f64; 4],
    /// Index of its category.
    pub class: usize,
    /// False for crowds, groups and difficult ones: what finds them is neither right nor wrong.
    pub counts: bool,
}

/// A detection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub corners: [f64; 4],
    pub class: usize,
    pub score: f64,
}

/// One image; detections are in the order of their scores. What is of no known class is left out.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub objects: Vec<Object>,
    pub found: Vec<Found>,
}

/// What an image's detections are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    pub found: usize,
    pub missed: usize,
    pub wrong: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Right,
    Wrong,
    Ignored,
}

impl Image {
    /// `place` finds the index of a class.
    pub(super) fn new(sample: &Sample, place: &dyn Fn(u32) -> Option<usize>) -> Self {
        let truth = &sample.groundtruth;
        let flag = |flags: &[bool], index: usize| flags.get(index).copied().unwrap_or(false);
        let objects = truth.boxes.iter().zip(&truth.classes).enumerate();
        let objects = objects.filter_map(|(index, (&corners, &class))| {
            let special = flag(&truth.is_crowd, index) || flag(&truth.group_of, index) || flag(&truth.difficult, index);
            Some(Object {
                corners,
                class: place(class)?,
                counts: !special,
            })
        });
        let detections = &sample.detections;
        let found = detections.boxes.iter().zip(&detections.classes).zip(&detections.scores);
        let mut found: Vec<Found> = found
            .filter_map(|((&corners, &class), &score)| {
                Some(Found {
                    corners,
                    class: place(class)?,
                    score,
                })
            })
            .collect();
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        Self {
            objects: objects.collect(),
            found,
        }
    }

    /// `(class, (score, right))` of each detection that is right or wrong.
    pub(super) fn verdicts(&self, least: f64) -> Vec<(usize, (f64, bool))> {
        let verdicts = self.judge(least, f64::NEG_INFINITY);
        let judged = self.found.iter().zip(verdicts);
        judged
            .filter(|(_, verdict)| *verdict != Verdict::Ignored)
            .map(|(found, verdict)| (found.class, (found.score, verdict == Verdict::Right)))
            .collect()
    }

    /// Counts detections of at least this score.
    pub(super) fn tally(&self, least: f64, score: f64) -> Tally {
        let verdicts = self.judge(least, score);
        let count = |wanted| verdicts.iter().filter(|&&verdict| verdict == wanted).count();
        let found = count(Verdict::Right);
        Tally {
            found,
            missed: self.objects.iter().filter(|object| object.counts).count() - found,
            wrong: count(Verdict::Wrong),
        }
    }

    /// As COCO matches: the surest detection first, each takes the best object of its class that is still free; one that finds nothing else
    /// but lies in a crowd or at a difficult object is ignored.
    fn judge(&self, least: f64, score: f64) -> Vec<Verdict> {
        let mut taken = vec![false; self.objects.len()];
        let considered = self.found.iter().take_while(|found| found.score >= score);
        considered
            .map(|found| {
                let best = self
                    .objects
                    .iter()
                    .enumerate()
                    .filter(|(index, object)| object.counts && object.class == found.class && !taken[*index])
                    .map(|(index, object)| (index, iou(object.corners, found.corners)))
                    .filter(|(_, overlap)| *overlap >= least)
                    .max_by(|a, b| a.1.total_cmp(&b.1));
                if let Some((index, _)) = best {
                    taken[index] = true;
                    return Verdict::Right;
                }
                if self.in_ignored(found, least, true) {
                    Verdict::Ignored
                } else {
                    Verdict::Wrong
                }
            })
            .collect()
    }

    /// Whether a detection lies in an object that counts neither way, of its class or of any.
    pub(super) fn in_ignored(&self, found: &Found, least: f64, same_class: bool) -> bool {
        self.objects.iter().any(|object| {
            !object.counts
                && (!same_class || object.class == found.class)
                && iou(object.corners, found.corners).max(ioa(object.corners, found.corners)) >= least
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    const A: [f64; 4] = [0.0, 0.0, 10.0, 10.0];

    fn image(sample: &Sample) -> Image {
        Image::new(sample, &|class| (class < 3).then_some(class as usize))
    }

    #[test]
    fn each_object_is_found_once_by_the_surest() {
        let near = [0.0, 0.0, 10.0, 9.0];
        let image = image(&sample(
            &[(A, 1)],
            &[((A, 1), 0.5), ((near, 1), 0.7), ((A, 2), 0.9), ((A, 7), 1.0)],
        ));
        assert_eq!(
            image.verdicts(0.5),
            [(2, (0.9, false)), (1, (0.7, true)), (1, (0.5, false))]
        );
        let tally = |score| {
            let tally = image.tally(0.5, score);
            (tally.found, tally.missed, tally.wrong)
        };
        assert_eq!(tally(0.6), (1, 0, 1));
        assert_eq!(tally(0.8), (0, 1, 1));
    }

    #[test]
    fn what_lies_in_a_crowd_is_neither_right_nor_wrong() {
        let mut crowd = sample(&[(A, 1)], &[(([1.0, 1.0, 2.0, 2.0], 1), 0.9), ((A, 2), 0.8)]);
        crowd.groundtruth.is_crowd = vec![true];
        let image = image(&crowd);
        assert_eq!(image.verdicts(0.5), [(2, (0.8, false))]);
        assert_eq!(image.tally(0.5, 0.0).missed, 0);
    }
}
