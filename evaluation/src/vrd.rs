//! Open Images' visual relationships: triples subject, relation, object with a box each for subject and object (the reference's
//! `VRDRelationDetectionEvaluator` and `VRDPhraseDetectionEvaluator`).

use std::collections::{BTreeMap, HashSet};

use crate::average_precision::{average_precision, descending, nan_mean, precision_recall, recall_at_k};
use crate::error::Error;
use crate::evaluator::Metric;
use crate::overlap::iou;

/// What has to overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Both boxes, each with its own.
    Relations,
    /// The box around both.
    Phrases,
}

/// Subject, object and their relation; the classes' ids as the two label maps have them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Triple {
    /// `[ymin, xmin, ymax, xmax]`, float32 in the reference.
    pub subject: [f32; 4],
    /// As `subject`.
    pub object: [f32; 4],
    /// Subject's class, object's class, relation.
    pub classes: [u32; 3],
}

/// One image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its id, unique in the set.
    pub image: String,
    /// What is there.
    pub groundtruth: Vec<Triple>,
    /// What was found, with scores.
    pub detections: Vec<(Triple, f64)>,
    /// Classes of objects whose presence or absence in the image was verified.
    pub image_classes: Vec<u32>,
}

/// Collects image by image.
#[derive(Clone, Debug)]
pub struct Evaluator {
    target: Target,
    matching_iou: f64,
    images: HashSet<String>,
    /// By relation: number of triples.
    groundtruth: BTreeMap<u32, usize>,
    /// One list an image, from the highest score down: score, whether it is right, relation.
    found: Vec<Vec<(f64, bool, u32)>>,
}

impl Evaluator {
    /// An empty evaluation; the reference matches at an `IoU` of 0.5.
    pub fn new(target: Target, matching_iou: f64) -> Self {
        Self {
            target,
            matching_iou,
            images: HashSet::new(),
            groundtruth: BTreeMap::new(),
            found: Vec::new(),
        }
    }

    /// Adds one image. Detections take part if both classes were verified or are in the image's triples, or if one of them was
    /// verified to be absent.
    pub fn add(&mut self, sample: &Sample) -> Result<(), Error> {
        if !self.images.insert(sample.image.clone()) {
            return Err(Error::DuplicateImage(sample.image.clone()));
        }
        let corners = |triple: &Triple| triple.subject.iter().chain(&triple.object).all(|v| v.is_finite());
        let all = sample
            .groundtruth
            .iter()
            .chain(sample.detections.iter().map(|(triple, _)| triple));
        if let Some((index, triple)) = all.enumerate().find(|(_, triple)| !corners(triple)) {
            let value = if triple.subject.iter().all(|v| v.is_finite()) {
                triple.object
            } else {
                triple.subject
            };
            return Err(Error::BadBox {
                image: sample.image.clone(),
                index,
                value: value.map(f64::from),
            });
        }
        if let Some(index) = sample.detections.iter().position(|(_, score)| score.is_nan()) {
            return Err(Error::BadScore {
                image: sample.image.clone(),
                index,
            });
        }
        let present: HashSet<u32> = sample
            .groundtruth
            .iter()
            .flat_map(|triple| [triple.classes[0], triple.classes[1]])
            .collect();
        let verified: HashSet<u32> = sample.image_classes.iter().copied().collect();
        let known = |class: u32| present.contains(&class) || verified.contains(&class);
        let absent = |class: u32| verified.contains(&class) && !present.contains(&class);
        let taking_part: Vec<(Triple, f64)> = sample
            .detections
            .iter()
            .filter(
                |(
                    Triple {
                        classes: [subject, object, _],
                        ..
                    },
                    _,
                )| { (known(*subject) && known(*object)) || absent(*subject) || absent(*object) },
            )
            .copied()
            .collect();
        for triple in &sample.groundtruth {
            *self.groundtruth.entry(triple.classes[2]).or_default() += 1;
        }
        self.found.push(self.label(&taking_part, &sample.groundtruth));
        Ok(())
    }

    /// The figures: AP of all triples together (`weightedAP`), mean over relations, recall among the first 50 and 100 detections of each
    /// image, AP of each relation under the name that `relation` gives it.
    pub fn evaluate(&self, relation: &dyn Fn(u32) -> String) -> Result<Vec<Metric>, Error> {
        if self.images.is_empty() {
            return Err(Error::Empty);
        }
        let prefix = match self.target {
            Target::Relations => "VRDMetric_Relationships_",
            Target::Phrases => "VRDMetric_Phrases_",
        };
        let total: usize = self.groundtruth.values().sum();
        let ap = |of: Option<u32>, groundtruth: usize| {
            if groundtruth == 0 {
                return f64::NAN;
            }
            let chosen = self
                .found
                .iter()
                .flatten()
                .filter(|one| of.is_none_or(|id| id == one.2));
            let (scores, labels): (Vec<f64>, Vec<f64>) = chosen
                .map(|&(score, right, _)| (score, f64::from(u8::from(right))))
                .unzip();
            let (precision, recall) = precision_recall(&scores, &labels, groundtruth as f64);
            average_precision(&precision, &recall)
        };
        let by_relation: Vec<(u32, f64)> = self
            .groundtruth
            .iter()
            .map(|(&id, &count)| (id, ap(Some(id), count)))
            .collect();
        let labels: Vec<Vec<bool>> = self
            .found
            .iter()
            .map(|image| image.iter().map(|one| one.1).collect())
            .collect();
        let threshold = self.matching_iou;
        let mut metrics = vec![
            (format!("{prefix}weightedAP@{threshold:?}IOU"), ap(None, total)),
            (
                format!("{prefix}mAP@{threshold:?}IOU"),
                nan_mean(by_relation.iter().map(|&(_, ap)| ap)),
            ),
            (
                format!("{prefix}Recall@50@{threshold:?}IOU"),
                recall_at_k(&labels, total, 50),
            ),
            (
                format!("{prefix}Recall@100@{threshold:?}IOU"),
                recall_at_k(&labels, total, 100),
            ),
        ];
        for (id, ap) in by_relation {
            metrics.push((format!("{prefix}AP@{threshold:?}IOU/{}", relation(id)), ap));
        }
        Ok(metrics)
    }

    /// Detections of equal classes are matched to groundtruth of these, the surest first; a triple is found once.
    fn label(&self, found: &[(Triple, f64)], groundtruth: &[Triple]) -> Vec<(f64, bool, u32)> {
        let mut by_classes: BTreeMap<[u32; 3], Vec<(Triple, f64)>> = BTreeMap::new();
        for &(triple, score) in found {
            by_classes.entry(triple.classes).or_default().push((triple, score));
        }
        let mut labelled = Vec::new();
        for (classes, found) in by_classes {
            let there: Vec<&Triple> = groundtruth.iter().filter(|triple| triple.classes == classes).collect();
            let mut taken = vec![false; there.len()];
            let scores: Vec<f64> = found.iter().map(|one| one.1).collect();
            for index in descending(&scores) {
                let (triple, score) = found[index];
                let mut best: Option<(usize, f64)> = None;
                for (g, other) in there.iter().enumerate() {
                    let overlap = self.overlap(&triple, other);
                    if best.is_none_or(|(_, largest)| overlap > largest) {
                        best = Some((g, overlap));
                    }
                }
                let right = best.is_some_and(|(g, overlap)| {
                    overlap >= self.matching_iou && !std::mem::replace(&mut taken[g], true)
                });
                labelled.push((score, right, classes[2]));
            }
        }
        let scores: Vec<f64> = labelled.iter().map(|one| one.0).collect();
        descending(&scores).into_iter().map(|index| labelled[index]).collect()
    }

    fn overlap(&self, a: &Triple, b: &Triple) -> f64 {
        let wide = |corners: [f32; 4]| corners.map(f64::from);
        match self.target {
            Target::Relations => iou(wide(a.subject), wide(b.subject)).min(iou(wide(a.object), wide(b.object))),
            Target::Phrases => iou(wide(around(a)), wide(around(b))),
        }
    }
}

fn around(triple: &Triple) -> [f32; 4] {
    let (s, o) = (triple.subject, triple.object);
    [s[0].min(o[0]), s[1].min(o[1]), s[2].max(o[2]), s[3].max(o[3])]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HAND: [f32; 4] = [0.0, 0.0, 1.0, 1.0];
    const CUP: [f32; 4] = [2.0, 2.0, 3.0, 3.0];

    fn triple(subject: [f32; 4], object: [f32; 4], classes: [u32; 3]) -> Triple {
        Triple {
            subject,
            object,
            classes,
        }
    }

    fn figure(metrics: &[Metric], name: &str) -> f64 {
        metrics.iter().find(|(known, _)| known.ends_with(name)).unwrap().1
    }

    #[test]
    fn both_boxes_or_the_box_around_them() {
        // The object's box is off, the box around both is not.
        let sample = Sample {
            image: "a".into(),
            groundtruth: vec![triple(HAND, CUP, [1, 2, 1])],
            detections: vec![(triple(HAND, [1.5, 1.5, 3.0, 3.0], [1, 2, 1]), 0.5)],
            image_classes: vec![],
        };
        for (target, wanted) in [(Target::Relations, 0.0), (Target::Phrases, 1.0)] {
            let mut evaluator = Evaluator::new(target, 0.5);
            evaluator.add(&sample).unwrap();
            let metrics = evaluator.evaluate(&|id| format!("relation {id}")).unwrap();
            for name in [
                "weightedAP@0.5IOU",
                "_mAP@0.5IOU",
                "Recall@50@0.5IOU",
                "Recall@100@0.5IOU",
                "/relation 1",
            ] {
                assert_eq!(figure(&metrics, name), wanted, "{target:?} {name}");
            }
        }
    }

    #[test]
    fn only_verified_classes_take_part() {
        let mut sample = Sample {
            image: "a".into(),
            groundtruth: vec![triple(HAND, CUP, [1, 2, 1])],
            detections: vec![
                (triple(HAND, CUP, [1, 2, 1]), 0.5),
                (triple(HAND, CUP, [1, 3, 1]), 0.9), // nobody looked for 3
            ],
            image_classes: vec![],
        };
        let ap = |sample: &Sample| {
            let mut evaluator = Evaluator::new(Target::Relations, 0.5);
            evaluator.add(sample).unwrap();
            figure(&evaluator.evaluate(&|id| id.to_string()).unwrap(), "weightedAP@0.5IOU")
        };
        assert_eq!(ap(&sample), 1.0);
        sample.image_classes = vec![3];
        assert_eq!(ap(&sample), 0.5, "3 was verified to be absent");
    }

    #[test]
    fn refuses_what_is_no_box() {
        let mut evaluator = Evaluator::new(Target::Relations, 0.5);
        assert!(matches!(evaluator.evaluate(&|_| String::new()), Err(Error::Empty)));
        let sample = Sample {
            image: "a".into(),
            groundtruth: vec![triple(HAND, [f32::NAN; 4], [1, 2, 1])],
            ..Sample::default()
        };
        assert!(matches!(evaluator.add(&sample), Err(Error::BadBox { .. })));
        assert!(matches!(
            evaluator.add(&Sample {
                image: "a".into(),
                ..Sample::default()
            }),
            Err(Error::DuplicateImage(_))
        ));
    }
}
