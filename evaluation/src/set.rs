//! `eval_config.metrics_set`: which metrics there are, several of them at once, and the checks that all of them rely on.

use std::collections::{HashMap, HashSet};

use crate::coco;
use crate::detection::Detection;
use crate::error::Error;
use crate::evaluator::{Evaluator, Metric};
use crate::mask::Mask;
use crate::sample::{Category, Sample};
use crate::{open_images, pascal, precision_at_recall};

/// What `metrics_set` may name.
pub const NAMES: [&str; 10] = [
    "coco_detection_metrics",
    "coco_mask_metrics",
    "pascal_voc_detection_metrics",
    "weighted_pascal_voc_detection_metrics",
    "pascal_voc_instance_segmentation_metrics",
    "weighted_pascal_voc_instance_segmentation_metrics",
    "oid_V2_detection_metrics",
    "oid_challenge_detection_metrics",
    "oid_challenge_segmentation_metrics",
    "precision_at_recall_detection_metrics",
];

/// Older names of the reference, and what they are called now.
pub const DEPRECATED: [(&str, &str); 2] = [
    ("open_images_V2_detection_metrics", "oid_V2_detection_metrics"),
    (
        "oid_challenge_object_detection_metrics",
        "oid_challenge_detection_metrics",
    ),
];

/// What `eval_config` says about metrics beside their names.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// COCO's mAP of each class.
    pub include_metrics_per_category: bool,
    /// All twelve of COCO's figures of each class; only together with the former, as in the reference.
    pub all_metrics_per_category: bool,
    /// Leave out detections of classes that were not verified in their image, where it says which were.
    pub skip_predictions_for_unlabeled_class: bool,
    /// For `precision_at_recall_detection_metrics`.
    pub recall_bounds: [f64; 2],
    /// Least overlap of a match, for metrics other than COCO's.
    pub matching_iou: f64,
    /// Also `CorLoc`, for metrics other than COCO's.
    pub corloc: bool,
    /// What a group-of box in which something was found counts, instead of what the metric says: the reference's
    /// `oid_challenge_evaluation` says 1 for masks, where `oid_challenge_segmentation_metrics` says 0.
    pub group_of_weight: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            include_metrics_per_category: false,
            all_metrics_per_category: false,
            skip_predictions_for_unlabeled_class: false,
            recall_bounds: [0.0, 1.0],
            matching_iou: 0.5,
            corloc: false,
            group_of_weight: None,
        }
    }
}

/// The present name of a metric.
pub fn resolve(name: &str) -> Result<&'static str, Error> {
    let old = DEPRECATED.iter().find(|(old, _)| *old == name).map(|&(_, new)| new);
    if let Some(known) = old.or_else(|| NAMES.into_iter().find(|known| *known == name)) {
        return Ok(known);
    }
    let same_letters =
        |known: &&str| known.to_lowercase().replace('_', "") == name.to_lowercase().replace(['_', '-'], "");
    let begins_alike = |known: &&str| name.len() >= 4 && known.starts_with(name.trim_end_matches('s'));
    let near = NAMES
        .into_iter()
        .find(same_letters)
        .or_else(|| NAMES.into_iter().find(begins_alike));
    Err(Error::UnknownMetric {
        name: name.to_owned(),
        near: near.map_or_else(String::new, |near| format!("; did you mean `{near}`?")),
        known: NAMES.join(", "),
    })
}

/// Whether a metric of this present name compares masks.
pub fn compares_masks(name: &str) -> bool {
    name.contains("mask") || name.contains("segmentation")
}

/// Names of the figures that these metrics give, in their order.
pub fn figure_names<S: AsRef<str>>(
    names: &[S],
    categories: &[Category],
    options: &Options,
) -> Result<Vec<String>, Error> {
    let mut evaluation = Evaluation::new(names, categories, options)?;
    evaluation.add(&Sample::default())?;
    Ok(evaluation.evaluate()?.into_iter().map(|(name, _)| name).collect())
}

/// The evaluator of a name.
fn evaluator(name: &'static str, categories: &[Category], options: &Options) -> Box<dyn Evaluator> {
    let coco = |shape| {
        Box::new(coco::Evaluator::with(
            shape,
            categories.to_vec(),
            coco::Detail {
                per_category: options.include_metrics_per_category,
                all_per_category: options.all_metrics_per_category,
                skip_unlabelled: options.skip_predictions_for_unlabeled_class,
            },
        ))
    };
    let mut protocol = match name {
        "coco_detection_metrics" => return coco(coco::Shape::Boxes),
        "coco_mask_metrics" => return coco(coco::Shape::Masks),
        "weighted_pascal_voc_detection_metrics" => pascal::WEIGHTED_BOXES,
        "pascal_voc_instance_segmentation_metrics" => pascal::MASKS,
        "weighted_pascal_voc_instance_segmentation_metrics" => pascal::WEIGHTED_MASKS,
        "oid_V2_detection_metrics" => open_images::V2,
        "oid_challenge_detection_metrics" => open_images::CHALLENGE,
        "oid_challenge_segmentation_metrics" => open_images::CHALLENGE_MASKS,
        "precision_at_recall_detection_metrics" => {
            precision_at_recall::protocol(options.recall_bounds, options.skip_predictions_for_unlabeled_class)
        }
        _ => pascal::BOXES,
    };
    protocol.matching_iou = options.matching_iou;
    protocol.corloc = options.corloc;
    protocol.group_of_weight = options.group_of_weight.unwrap_or(protocol.group_of_weight);
    Box::new(Detection::new(protocol, categories.to_vec()))
}

/// Several metrics over one set of images.
pub struct Evaluation {
    evaluators: Vec<Box<dyn Evaluator>>,
    categories: Vec<Category>,
    images: HashSet<String>,
    /// Groundtruth boxes by class.
    counts: HashMap<u32, usize>,
    groundtruth: Unit,
    detections: Unit,
    outside: Outside,
    backward: Backward,
}

/// Whether boxes are pixels or fractions.
#[derive(Default)]
struct Unit {
    boxes: usize,
    largest: f64,
    first: String,
    /// The least side of an image with such boxes, where known.
    side: Option<f64>,
}

/// Boxes that do not touch their image, or reach far beyond it.
#[derive(Default)]
struct Outside {
    /// Of images whose size is known.
    all: usize,
    /// More than a tenth of the image's side beyond its end.
    beyond: usize,
    boxes: usize,
    images: usize,
    first: String,
}

/// Detections that end before they begin: no metric takes them for a match, and some leave them out.
#[derive(Default)]
struct Backward {
    boxes: usize,
    first: String,
}

impl Evaluation {
    /// By the names in `metrics_set`; none means COCO's box metrics, as in the reference. Naming one twice is naming it once.
    pub fn new<S: AsRef<str>>(names: &[S], categories: &[Category], options: &Options) -> Result<Self, Error> {
        let mut chosen: Vec<&'static str> = Vec::new();
        for name in names {
            let name = resolve(name.as_ref())?;
            if !chosen.contains(&name) {
                chosen.push(name);
            }
        }
        if chosen.is_empty() {
            chosen.push(NAMES[0]);
        }
        Ok(Self {
            evaluators: chosen
                .into_iter()
                .map(|name| evaluator(name, categories, options))
                .collect(),
            categories: categories.to_vec(),
            images: HashSet::new(),
            counts: HashMap::new(),
            groundtruth: Unit::default(),
            detections: Unit::default(),
            outside: Outside::default(),
            backward: Backward::default(),
        })
    }

    /// What is measured, by the names in `metrics_set`.
    pub fn names(&self) -> Vec<&'static str> {
        self.evaluators.iter().map(|evaluator| evaluator.name()).collect()
    }

    /// Number of images added.
    pub fn images(&self) -> usize {
        self.images.len()
    }

    /// Adds one image to all metrics. An image without boxes counts: what is detected there is wrong.
    pub fn add(&mut self, sample: &Sample) -> Result<(), Error> {
        if self.images.contains(&sample.image) {
            return Err(Error::DuplicateImage(sample.image.clone()));
        }
        self.check(sample)?;
        for evaluator in &mut self.evaluators {
            evaluator.add(sample)?;
        }
        self.images.insert(sample.image.clone());
        for &class in &sample.groundtruth.classes {
            *self.counts.entry(class).or_default() += 1;
        }
        self.groundtruth.note(sample, &sample.groundtruth.boxes);
        self.detections.note(sample, &sample.detections.boxes);
        self.outside.note(sample);
        self.backward.note(sample);
        Ok(())
    }

    /// All figures, metric by metric.
    pub fn evaluate(&self) -> Result<Vec<Metric>, Error> {
        if self.images.is_empty() {
            return Err(Error::Empty);
        }
        self.groundtruth.check("groundtruth")?;
        self.detections.check("detection")?;
        let mut all = Vec::new();
        for evaluator in &self.evaluators {
            all.extend(evaluator.evaluate()?);
        }
        Ok(all)
    }

    /// What is allowed and may still be a mistake, in words: classes without groundtruth, boxes outside of their images, detections that end
    /// before they begin.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let absent: Vec<&str> = self
            .categories
            .iter()
            .filter(|category| !self.counts.contains_key(&category.id))
            .map(|category| category.name.as_str())
            .collect();
        if !absent.is_empty() {
            let shown = absent.iter().take(10).copied().collect::<Vec<_>>().join(", ");
            let more = match absent.len() {
                0..=10 => String::new(),
                n => format!(" and {} more", n - 10),
            };
            notes.push(format!(
                "{} of {} classes have no groundtruth and are left out of the means: {shown}{more}",
                absent.len(),
                self.categories.len()
            ));
        }
        if self.outside.boxes > 0 {
            notes.push(format!(
                "{} boxes do not touch their image, in {} images, the first `{}`: are x and y swapped, or do the boxes belong to other images?",
                self.outside.boxes, self.outside.images, self.outside.first
            ));
        }
        if self.backward.boxes > 0 {
            notes.push(format!(
                "{} detections end before they begin and match nothing, the first in image `{}`: the order is [ymin, xmin, ymax, xmax]; are corners mixed up?",
                self.backward.boxes, self.backward.first
            ));
        }
        // A few boxes may leave their image; what a third of them does is a habit of their maker.
        if self.outside.beyond * 3 >= self.outside.all && self.outside.beyond > 0 {
            notes.push(format!(
                "{} of {} boxes end far beyond their image: are some of them [x, y, x, y] where [x, y, width, height] is due, or pixels of larger images?",
                self.outside.beyond, self.outside.all
            ));
        }
        notes
    }

    fn check(&self, sample: &Sample) -> Result<(), Error> {
        let (truth, found) = (&sample.groundtruth, &sample.detections);
        let image = || sample.image.clone();
        let same = |boxes: usize, what: &'static str, other: usize, may_lack: bool| {
            if boxes == other || (may_lack && other == 0) {
                return Ok(());
            }
            Err(Error::Lengths {
                image: image(),
                boxes,
                what,
                other,
            })
        };
        let count = truth.boxes.len();
        same(count, "classes", truth.classes.len(), false)?;
        same(count, "difficult flags", truth.difficult.len(), true)?;
        same(count, "group-of flags", truth.group_of.len(), true)?;
        same(count, "crowd flags", truth.is_crowd.len(), true)?;
        same(count, "areas", truth.area.len(), true)?;
        same(count, "masks", truth.masks.len(), true)?;
        same(count, "boxes [x, y, width, height]", truth.xywh.len(), true)?;
        let count = found.boxes.len();
        same(count, "classes", found.classes.len(), false)?;
        same(count, "scores", found.scores.len(), false)?;
        same(count, "masks", found.masks.len(), true)?;
        same(count, "boxes [x, y, width, height]", found.xywh.len(), true)?;
        for boxes in [&truth.boxes, &found.boxes] {
            let bad = boxes.iter().position(|value| value.iter().any(|v| !v.is_finite()));
            if let Some(index) = bad {
                return Err(Error::BadBox {
                    image: image(),
                    index,
                    value: boxes[index],
                });
            }
        }
        if let Some(index) = truth.boxes.iter().position(|b| b[0] > b[2] || b[1] > b[3]) {
            return Err(Error::Inverted {
                image: image(),
                index,
                value: truth.boxes[index],
            });
        }
        if let Some(index) = found.scores.iter().position(|score| score.is_nan()) {
            return Err(Error::BadScore { image: image(), index });
        }
        let known = |class: &&u32| self.categories.iter().any(|category| category.id == **class);
        let mut classes = truth.classes.iter().chain(&found.classes);
        if let Some(&class) = classes.find(|class| !known(class)) {
            return Err(Error::UnknownClass { image: image(), class });
        }
        let mut sizes = truth.masks.iter().chain(&found.masks).map(Mask::size);
        if let Some(wanted) = sizes.next()
            && let Some(found) = sizes.find(|&size| size != wanted)
        {
            return Err(Error::MaskSize {
                image: image(),
                wanted,
                found,
            });
        }
        Ok(())
    }
}

impl Unit {
    fn note(&mut self, sample: &Sample, boxes: &[[f64; 4]]) {
        if boxes.is_empty() {
            return;
        }
        if self.boxes == 0 {
            self.first.clone_from(&sample.image);
        }
        self.boxes += boxes.len();
        self.largest = boxes.iter().flatten().fold(self.largest, |a, b| a.max(b.abs()));
        if let Some([height, width]) = sample.size {
            self.side = Some(self.side.unwrap_or(f64::MAX).min(height).min(width));
        }
    }

    /// Pixels of images that are larger than a thumbnail reach beyond 2; fractions do not, even where boxes leave the image.
    fn check(&self, what: &'static str) -> Result<(), Error> {
        if self.boxes > 0 && self.largest > 0.0 && self.largest <= 2.0 && self.side.is_some_and(|side| side > 8.0) {
            return Err(Error::Fractions {
                what,
                boxes: self.boxes,
                largest: self.largest,
                image: self.first.clone(),
            });
        }
        Ok(())
    }
}

impl Backward {
    fn note(&mut self, sample: &Sample) {
        let boxes = &sample.detections.boxes;
        let count = boxes.iter().filter(|b| b[0] > b[2] || b[1] > b[3]).count();
        if self.boxes == 0 && count > 0 {
            self.first.clone_from(&sample.image);
        }
        self.boxes += count;
    }
}

impl Outside {
    fn note(&mut self, sample: &Sample) {
        let Some([height, width]) = sample.size else {
            return;
        };
        let all = sample.groundtruth.boxes.iter().chain(&sample.detections.boxes);
        self.all += all.clone().count();
        self.beyond += all
            .clone()
            .filter(|b| b[2] > 1.1 * height || b[3] > 1.1 * width)
            .count();
        let count = all
            .filter(|b| b[2] < 0.0 || b[3] < 0.0 || b[0] > height || b[1] > width)
            .count();
        if count > 0 {
            if self.boxes == 0 {
                self.first.clone_from(&sample.image);
            }
            self.boxes += count;
            self.images += 1;
        }
    }
}
