//! Which classes are taken for which.

use super::MATCHING_IOU;
use super::matching::Image;
use crate::overlap::iou;

/// Counts of (what is there, what was detected). Behind the classes stands *nothing*: the last column counts objects that were missed, the last
/// row detections where nothing is.
#[derive(Clone, Debug, PartialEq)]
pub struct Confusion {
    classes: usize,
    counts: Vec<u64>,
}

impl Confusion {
    pub(super) fn new(classes: usize) -> Self {
        Self {
            classes,
            counts: vec![0; (classes + 1) * (classes + 1)],
        }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How often `actual` was taken for `detected`; [`Self::classes`] is nothing.
    pub fn count(&self, actual: usize, detected: usize) -> u64 {
        self.counts[actual * (self.classes + 1) + detected]
    }

    /// Objects of a class, or detections of nothing.
    pub fn row_total(&self, actual: usize) -> u64 {
        (0..=self.classes).map(|detected| self.count(actual, detected)).sum()
    }

    /// The most frequent mistakes between two classes: `(actual, detected, count)`.
    pub fn most_confused(&self, most: usize) -> Vec<(usize, usize, u64)> {
        let pairs = (0..self.classes).flat_map(|actual| (0..self.classes).map(move |detected| (actual, detected)));
        let mut found: Vec<_> = pairs
            .filter(|(actual, detected)| actual != detected)
            .map(|(actual, detected)| (actual, detected, self.count(actual, detected)))
            .filter(|&(.., count)| count > 0)
            .collect();
        found.sort_by_key(|&(.., count)| std::cmp::Reverse(count));
        found.truncate(most);
        found
    }

    /// Pairs of an object and a detection that overlap enough are matched one to one whatever their classes: those of one class first, then those
    /// that overlap most.
    pub(super) fn add(&mut self, image: &Image, score_threshold: f64) {
        let found: Vec<_> = image
            .found
            .iter()
            .take_while(|found| found.score >= score_threshold)
            .collect();
        let mut pairs = Vec::new();
        for (o, object) in image.objects.iter().enumerate().filter(|(_, object)| object.counts) {
            for (d, detection) in found.iter().enumerate() {
                let overlap = iou(object.corners, detection.corners);
                if overlap >= MATCHING_IOU {
                    pairs.push((object.class != detection.class, overlap, o, d));
                }
            }
        }
        pairs.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let mut of_object = vec![None; image.objects.len()];
        let mut used = vec![false; found.len()];
        for (_, _, o, d) in pairs {
            if of_object[o].is_none() && !used[d] {
                of_object[o] = Some(d);
                used[d] = true;
            }
        }
        let nothing = self.classes;
        for (object, match_) in image.objects.iter().zip(of_object).filter(|(object, _)| object.counts) {
            let detected = match_.map_or(nothing, |d: usize| found[d].class);
            self.raise(object.class, detected);
        }
        for (detection, _) in found.iter().zip(used).filter(|(_, used)| !used) {
            if !image.in_ignored(detection, MATCHING_IOU, false) {
                self.raise(nothing, detection.class);
            }
        }
    }

    fn raise(&mut self, actual: usize, detected: usize) {
        self.counts[actual * (self.classes + 1) + detected] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn classes_missed_and_made_up_objects_are_told_apart() {
        let (a, b, c) = ([0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]);
        let mut confusion = Confusion::new(2);
        let near = [0.0, 0.0, 10.0, 8.0];
        let one = sample(
            // Found; taken for class 1; missed.
            &[(a, 0), (b, 0), (c, 1)],
            // The wrong class overlaps more and is surer, the right class takes the object all the same.
            &[((a, 1), 0.9), ((near, 0), 0.8), ((b, 1), 0.7), ((c, 1), 0.3)],
        );
        confusion.add(&Image::new(&one, &|class| Some(class as usize)), 0.5);
        let rows: Vec<Vec<u64>> = (0..3)
            .map(|a| (0..3).map(|d| confusion.count(a, d)).collect())
            .collect();
        assert_eq!(rows, [[1, 1, 0], [0, 0, 1], [0, 1, 0]]);
        assert_eq!(confusion.row_total(0), 2);
        assert_eq!(confusion.most_confused(5), [(0, 1, 1)]);
    }
}
