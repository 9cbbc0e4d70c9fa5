//! The engine behind the Pascal VOC and Open Images metrics (the reference's `ObjectDetectionEvaluator`): each image is reduced to scores
//! and labels when it is added, and at the end each class has a curve.

use crate::average_precision::{average_precision, nan_mean, precision_recall};
use crate::error::Error;
use crate::evaluator::{Evaluator, Metric};
use crate::per_image::{self, Found, Object, Rule};
use crate::sample::{Category, Sample};

/// Which detections take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlabelled {
    /// All of them.
    Keep,
    /// Those of classes that were verified in the image, where it says which (`skip_predictions_for_unlabeled_class`).
    SkipIfKnown,
    /// Those of classes that were verified in the image or have a box in it (Open Images Challenge).
    Skip,
}

/// What tells the metrics of this family apart.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// In `metrics_set`.
    pub name: &'static str,
    /// Begins each figure's name.
    pub prefix: &'static str,
    /// Least overlap of a match.
    pub matching_iou: f64,
    /// Recalls between which precision counts.
    pub recall_bounds: [f64; 2],
    /// The overall figure is the AP of all classes' detections together, not the mean of theirs.
    pub weighted: bool,
    /// Compare masks.
    pub masks: bool,
    /// Also report in how many images of a class its surest detection is right.
    pub corloc: bool,
    /// See [`Rule`]: 0 ignores detections inside group-of boxes.
    pub group_of_weight: f64,
    /// Honour `difficult`.
    pub difficult: bool,
    /// Honour `group_of`.
    pub group_of: bool,
    /// Which detections take part.
    pub unlabelled: Unlabelled,
}

impl Protocol {
    /// Pascal VOC's, which the others differ from.
    pub const fn pascal(name: &'static str, prefix: &'static str) -> Self {
        Self {
            name,
            prefix,
            matching_iou: 0.5,
            recall_bounds: [0.0, 1.0],
            weighted: false,
            masks: false,
            corloc: false,
            group_of_weight: 0.0,
            difficult: true,
            group_of: false,
            unlabelled: Unlabelled::Keep,
        }
    }
}

/// What is known of a class so far.
#[derive(Clone, Debug, Default)]
struct Class {
    /// Objects that can be found; group-of boxes by their weight.
    groundtruth: f64,
    images: usize,
    located: usize,
    scores: Vec<f64>,
    labels: Vec<f64>,
}

/// Figures of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassFigures {
    /// Average precision; NaN without groundtruth.
    pub ap: f64,
    /// `CorLoc`; NaN for a class that no image shows.
    pub corloc: f64,
    /// Within the recall bounds, from the surest detection on.
    pub precision: Vec<f64>,
    /// Beside each precision.
    pub recall: Vec<f64>,
}

/// An evaluator of this family.
#[derive(Clone, Debug)]
pub struct Detection {
    protocol: Protocol,
    categories: Vec<Category>,
    /// In the order of `categories`.
    classes: Vec<Class>,
}

impl Detection {
    /// An empty evaluation over these classes, which are reported by ascending id as in the reference.
    pub fn new(protocol: Protocol, mut categories: Vec<Category>) -> Self {
        categories.sort_by_key(|category| category.id);
        Self {
            classes: vec![Class::default(); categories.len()],
            protocol,
            categories,
        }
    }

    /// Curves and figures of each class, by ascending id.
    pub fn by_class(&self) -> Vec<(&Category, ClassFigures)> {
        let figures = self.classes.iter().map(|class| self.figures(class));
        self.categories.iter().zip(figures).collect()
    }

    fn figures(&self, class: &Class) -> ClassFigures {
        let corloc = class.located as f64 / class.images as f64;
        if class.groundtruth == 0.0 {
            return ClassFigures {
                ap: f64::NAN,
                corloc,
                precision: Vec::new(),
                recall: Vec::new(),
            };
        }
        let (precision, recall) = self.curve(&class.scores, &class.labels, class.groundtruth);
        ClassFigures {
            ap: average_precision(&precision, &recall),
            corloc,
            precision,
            recall,
        }
    }

    fn curve(&self, scores: &[f64], labels: &[f64], groundtruth: f64) -> (Vec<f64>, Vec<f64>) {
        let (precision, recall) = precision_recall(scores, labels, groundtruth);
        let [low, high] = self.protocol.recall_bounds;
        precision
            .into_iter()
            .zip(recall)
            .filter(|&(_, recall)| recall >= low && recall <= high)
            .unzip()
    }

    fn weighted_ap(&self) -> f64 {
        let with = || self.classes.iter().filter(|class| class.groundtruth != 0.0);
        let groundtruth: f64 = with().map(|class| class.groundtruth).sum();
        if groundtruth == 0.0 {
            return f64::NAN;
        }
        let scores: Vec<f64> = with().flat_map(|class| class.scores.iter().copied()).collect();
        let labels: Vec<f64> = with().flat_map(|class| class.labels.iter().copied()).collect();
        let (precision, recall) = self.curve(&scores, &labels, groundtruth);
        average_precision(&precision, &recall)
    }

    /// Whether detections of a class take part in this image.
    fn takes_part(&self, sample: &Sample, class: u32) -> bool {
        let verified = sample.groundtruth.image_classes.as_deref();
        match self.protocol.unlabelled {
            Unlabelled::Keep => true,
            Unlabelled::SkipIfKnown => verified.is_none_or(|classes| classes.contains(&class)),
            Unlabelled::Skip => {
                verified.is_some_and(|classes| classes.contains(&class)) || sample.groundtruth.classes.contains(&class)
            }
        }
    }

    fn masks_are_there(&self, sample: &Sample) -> Result<(), Error> {
        let counts = [
            (
                "groundtruth",
                sample.groundtruth.boxes.len(),
                sample.groundtruth.masks.len(),
            ),
            (
                "detection",
                sample.detections.boxes.len(),
                sample.detections.masks.len(),
            ),
        ];
        match counts.into_iter().find(|&(_, boxes, masks)| boxes != masks) {
            Some((what, boxes, _)) if self.protocol.masks => Err(Error::NoMasks {
                image: sample.image.clone(),
                what,
                boxes,
                metric: self.protocol.name,
            }),
            _ => Ok(()),
        }
    }
}

impl Evaluator for Detection {
    fn name(&self) -> &'static str {
        self.protocol.name
    }

    fn add(&mut self, sample: &Sample) -> Result<(), Error> {
        self.masks_are_there(sample)?;
        let rule = Rule {
            matching_iou: self.protocol.matching_iou,
            group_of_weight: self.protocol.group_of_weight,
            masks: self.protocol.masks,
        };
        let (truth, seen) = (&sample.groundtruth, &sample.detections);
        let flag = |honoured: bool, flags: &[bool], index: usize| honoured && flags.get(index) == Some(&true);
        for k in 0..self.categories.len() {
            let id = self.categories[k].id;
            let objects: Vec<Object> = (0..truth.boxes.len())
                .filter(|&index| truth.classes[index] == id)
                .map(|index| Object {
                    corners: truth.boxes[index],
                    mask: truth.masks.get(index).filter(|_| rule.masks),
                    difficult: flag(self.protocol.difficult, &truth.difficult, index),
                    group_of: flag(self.protocol.group_of, &truth.group_of, index),
                })
                .collect();
            // A box without height or width is left out, as in the reference.
            let found: Vec<Found> = (0..seen.boxes.len())
                .filter(|&index| seen.classes[index] == id)
                .map(|index| Found {
                    corners: seen.boxes[index],
                    mask: seen.masks.get(index).filter(|_| rule.masks),
                    score: seen.scores[index],
                })
                .filter(|one| one.corners[0] < one.corners[2] && one.corners[1] < one.corners[3])
                .collect();
            if objects.is_empty() && (found.is_empty() || !self.takes_part(sample, id)) {
                continue;
            }
            let found = if self.takes_part(sample, id) { found } else { Vec::new() };
            let labels = per_image::label(&found, &objects, rule);
            let class = &mut self.classes[k];
            class.scores.extend(labels.scores);
            class.labels.extend(labels.weights);
            class.images += usize::from(!objects.is_empty());
            class.located += usize::from(per_image::located(&found, &objects, rule));
            class.groundtruth += objects
                .iter()
                .filter(|object| !object.difficult)
                .filter(|object| !rule.masks || object.mask.is_some_and(|mask| mask.area() > 0))
                .map(|object| if object.group_of { rule.group_of_weight } else { 1.0 })
                .sum::<f64>();
        }
        Ok(())
    }

    fn evaluate(&self) -> Result<Vec<Metric>, Error> {
        let Protocol {
            prefix,
            matching_iou,
            recall_bounds: [low, high],
            ..
        } = self.protocol;
        let by_class = self.by_class();
        let bounds = if low > 0.0 || high < 1.0 {
            format!("@[{low:.1},{high:.1}]Recall")
        } else {
            String::new()
        };
        let mean = if self.protocol.weighted {
            self.weighted_ap()
        } else {
            nan_mean(by_class.iter().map(|(_, figures)| figures.ap))
        };
        // The reference writes the threshold as Python does: 0.5, 1.0.
        let mut metrics = vec![(format!("{prefix}Precision/mAP@{matching_iou:?}IOU{bounds}"), mean)];
        if self.protocol.corloc {
            let mean = nan_mean(by_class.iter().map(|(_, figures)| figures.corloc));
            metrics.push((format!("{prefix}Precision/meanCorLoc@{matching_iou:?}IOU"), mean));
        }
        for (Category { name, .. }, figures) in by_class {
            let of = |what: &str| format!("{prefix}PerformanceByCategory/{what}@{matching_iou:?}IOU/{name}");
            metrics.push((of("AP"), figures.ap));
            if self.protocol.corloc {
                metrics.push((of("CorLoc"), figures.corloc));
            }
        }
        Ok(metrics)
    }
}
