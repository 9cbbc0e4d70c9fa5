//! Precision and recall of a class over all score thresholds.

/// One class.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Its name.
    pub class: String,
    /// Objects of it.
    pub objects: usize,
    /// Detections of it that count.
    pub detections: usize,
    /// `(recall, precision)` with falling scores; precision is the best at this recall or beyond, as average precision takes it.
    pub points: Vec<(f64, f64)>,
    /// Area under the curve; `None` without objects.
    pub average_precision: Option<f64>,
    /// Where 2PR / (P + R) is largest.
    pub best: Option<Best>,
}

/// The threshold that balances precision and recall.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Detections from this score on.
    pub score: f64,
    /// Share of them that is right.
    pub precision: f64,
    /// Share of the objects that they find.
    pub recall: f64,
    /// 2PR / (P + R)
    pub f1: f64,
}

impl Curve {
    /// From (score, right) of all detections, in any order.
    pub(super) fn new(class: &str, detections: &[(f64, bool)], objects: usize) -> Self {
        let mut sorted = detections.to_vec();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut points = Vec::with_capacity(sorted.len());
        let mut best: Option<Best> = None;
        let mut right = 0_usize;
        for (index, &(score, is_right)) in sorted.iter().enumerate() {
            right += usize::from(is_right);
            let precision = right as f64 / (index + 1) as f64;
            let recall = right as f64 / objects.max(1) as f64;
            points.push((recall, precision));
            // A threshold cannot part detections of equal scores.
            let last_of_score = sorted.get(index + 1).is_none_or(|next| next.0 < score);
            let f1 = 2.0 * right as f64 / (index + 1 + objects) as f64;
            if last_of_score && right > 0 && best.is_none_or(|best| f1 > best.f1) {
                best = Some(Best {
                    score,
                    precision,
                    recall,
                    f1,
                });
            }
        }
        let mut envelope = 0.0_f64;
        for point in points.iter_mut().rev() {
            envelope = envelope.max(point.1);
            point.1 = envelope;
        }
        let mut before = 0.0;
        let area: f64 = points
            .iter()
            .map(|&(recall, precision)| {
                let part = (recall - before) * precision;
                before = recall;
                part
            })
            .sum();
        Self {
            class: class.to_owned(),
            objects,
            detections: detections.len(),
            points,
            average_precision: (objects > 0).then_some(area),
            best: best.filter(|_| objects > 0),
        }
    }

    /// Precision at a recall; 0 where it is not reached.
    pub fn precision_at(&self, recall: f64) -> f64 {
        let at = self.points.partition_point(|point| point.0 < recall);
        self.points.get(at).map_or(0.0, |point| point.1)
    }
}

/// The mean precision of classes with objects at 101 recalls from 0 to 1, as `(recall, precision)`; empty without such classes.
pub fn mean(curves: &[Curve]) -> Vec<(f64, f64)> {
    let with_objects: Vec<&Curve> = curves.iter().filter(|curve| curve.objects > 0).collect();
    if with_objects.is_empty() {
        return Vec::new();
    }
    (0..=100)
        .map(|percent| {
            let recall = f64::from(percent) / 100.0;
            let sum: f64 = with_objects.iter().map(|curve| curve.precision_at(recall)).sum();
            (recall, sum / with_objects.len() as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_what_one_computes_by_hand() {
        // Right, wrong, right of three objects: (1/3, 1), (1/3, 1/2), (2/3, 2/3).
        let curve = Curve::new("x", &[(0.7, true), (0.9, true), (0.8, false)], 3);
        assert_eq!(
            curve.points,
            [(1.0 / 3.0, 1.0), (1.0 / 3.0, 2.0 / 3.0), (2.0 / 3.0, 2.0 / 3.0)]
        );
        let expected = 1.0 / 3.0 + 1.0 / 3.0 * 2.0 / 3.0;
        assert!((curve.average_precision.unwrap() - expected).abs() < 1e-12);
        let best = curve.best.unwrap();
        assert_eq!((best.score, best.precision, best.recall), (0.7, 2.0 / 3.0, 2.0 / 3.0));
        assert_eq!(
            [
                curve.precision_at(0.0),
                curve.precision_at(0.5),
                curve.precision_at(0.9)
            ],
            [1.0, 2.0 / 3.0, 0.0]
        );
    }

    #[test]
    fn classes_without_objects_have_no_figures() {
        let nothing = Curve::new("x", &[(0.9, false)], 0);
        assert_eq!((nothing.average_precision, nothing.best), (None, None));
        assert_eq!(mean(&[nothing.clone()]), []);
        let half = Curve::new("y", &[(0.9, true)], 2);
        let mean = mean(&[nothing, half]);
        assert_eq!((mean[50], mean[51]), ((0.5, 1.0), (0.51, 0.0)));
    }
}
