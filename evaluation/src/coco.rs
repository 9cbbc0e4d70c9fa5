//! The twelve COCO metrics of boxes and of masks under the reference's names (`CocoDetectionEvaluator`, `CocoMaskEvaluator`).
//!
//! Matching and averaging are hotcoco's, whose numbers equal pycocotools'; what is ours is the way in (pixels, label-map
//! ids, checks), the figures of each class and the names out.

mod files;

use std::collections::HashMap;

use hotcoco::{Annotation, COCO, COCOeval, Dataset, Image, Segmentation, params::IouType};
use serde::Serialize;

pub use crate::error::Error;
pub use files::groundtruth_path;

use crate::evaluator::{self, Metric};
use crate::mask::Mask;
use crate::sample::{Category, ImageDetections, ImageGroundtruth, Sample, xywh};

/// The reference's metric names, in the order of COCO's summary.
pub const METRIC_NAMES: [&str; 12] = [
    "DetectionBoxes_Precision/mAP",
    "DetectionBoxes_Precision/mAP@.50IOU",
    "DetectionBoxes_Precision/mAP@.75IOU",
    "DetectionBoxes_Precision/mAP (small)",
    "DetectionBoxes_Precision/mAP (medium)",
    "DetectionBoxes_Precision/mAP (large)",
    "DetectionBoxes_Recall/AR@1",
    "DetectionBoxes_Recall/AR@10",
    "DetectionBoxes_Recall/AR@100",
    "DetectionBoxes_Recall/AR@100 (small)",
    "DetectionBoxes_Recall/AR@100 (medium)",
    "DetectionBoxes_Recall/AR@100 (large)",
];

/// COCO's summary of a detection run; -1 where no groundtruth of that size exists.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// In the order of [`METRIC_NAMES`].
    #[serde(skip)]
    pub values: [f64; 12],
    /// AP (`IoU` 0.50 to 0.95) of each category that has groundtruth, by name.
    pub ap_by_category: Vec<(String, f64)>,
    /// All twelve of each category, by ascending id; -1 where no groundtruth of that size exists.
    #[serde(skip)]
    pub by_category: Vec<(String, [f64; 12])>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `coco_detection_metrics`.
    Boxes,
    /// `coco_mask_metrics`.
    Masks,
}

/// What else is reported, and of which detections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Detail {
    /// mAP of each class.
    pub per_category: bool,
    /// All twelve figures of each class, if `per_category`.
    pub all_per_category: bool,
    /// Leave out detections of classes that were not verified in their image, where it says which were.
    pub skip_unlabelled: bool,
}

impl Metrics {
    /// `(name, value)` in COCO's order.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        METRIC_NAMES.iter().copied().zip(self.values.iter().copied())
    }

    /// mAP over `IoU` 0.50 to 0.95.
    pub fn ap(&self) -> f64 {
        self.values[0]
    }

    /// mAP at `IoU` 0.50.
    pub fn ap50(&self) -> f64 {
        self.values[1]
    }
}

/// Collects groundtruth and detections image by image.
#[derive(Debug)]
pub struct Evaluator {
    shape: Shape,
    detail: Detail,
    categories: Vec<Category>,
    ids: HashMap<String, u64>,
    names: Vec<String>,
    has_detections: Vec<bool>,
    groundtruth: Vec<Annotation>,
    detections: Vec<Annotation>,
}

impl Evaluator {
    /// An empty evaluation of boxes over these classes.
    pub fn new(categories: Vec<Category>) -> Self {
        Self::with(Shape::Boxes, categories, Detail::default())
    }

    /// An empty evaluation over these classes.
    pub fn with(shape: Shape, categories: Vec<Category>, detail: Detail) -> Self {
        Self {
            shape,
            detail,
            categories,
            ids: HashMap::new(),
            names: Vec::new(),
            has_detections: Vec::new(),
            groundtruth: Vec::new(),
            detections: Vec::new(),
        }
    }

    /// Number of images added.
    pub fn images(&self) -> usize {
        self.names.len()
    }

    /// Adds one image's groundtruth. An image without boxes counts: its detections are false positives.
    pub fn add_groundtruth(&mut self, image: &str, groundtruth: &ImageGroundtruth) -> Result<(), Error> {
        if self.ids.contains_key(image) {
            return Err(Error::DuplicateImage(image.to_owned()));
        }
        let count = groundtruth.boxes_px.len();
        same_length(image, count, "classes", groundtruth.classes.len())?;
        if !groundtruth.is_crowd.is_empty() {
            same_length(image, count, "crowd flags", groundtruth.is_crowd.len())?;
        }
        if !groundtruth.area.is_empty() {
            same_length(image, count, "areas", groundtruth.area.len())?;
        }
        let image_id = self.names.len() as u64 + 1;
        let mut added = Vec::with_capacity(count);
        for (index, (&value, &class)) in groundtruth.boxes_px.iter().zip(&groundtruth.classes).enumerate() {
            let bbox = self.checked(image, index, value, class)?;
            let area = groundtruth
                .area
                .get(index)
                .filter(|&&area| area > 0.0)
                .map_or(bbox[2] * bbox[3], |&area| f64::from(area));
            added.push(Annotation {
                id: (self.groundtruth.len() + index + 1) as u64,
                image_id,
                category_id: u64::from(class),
                bbox: Some(bbox),
                area: Some(area),
                iscrowd: groundtruth.is_crowd.get(index).copied().unwrap_or(false),
                ..Annotation::default()
            });
        }
        self.groundtruth.extend(added);
        self.ids.insert(image.to_owned(), image_id);
        self.names.push(image.to_owned());
        self.has_detections.push(false);
        Ok(())
    }

    /// Adds one image's detections; its groundtruth comes first.
    pub fn add_detections(&mut self, image: &str, detections: &ImageDetections) -> Result<(), Error> {
        let &image_id = self
            .ids
            .get(image)
            .ok_or_else(|| Error::UnknownImage(image.to_owned()))?;
        let index = (image_id - 1) as usize;
        if self.has_detections[index] {
            return Err(Error::DuplicateImage(image.to_owned()));
        }
        let count = detections.boxes_px.len();
        same_length(image, count, "classes", detections.classes.len())?;
        same_length(image, count, "scores", detections.scores.len())?;
        let mut added = Vec::with_capacity(count);
        for index in 0..count {
            let class = detections.classes[index];
            let bbox = self.checked(image, index, detections.boxes_px[index], class)?;
            let score = detections.scores[index];
            if score.is_nan() {
                return Err(Error::BadScore {
                    image: image.to_owned(),
                    index,
                });
            }
            added.push(Annotation {
                image_id,
                category_id: u64::from(class),
                bbox: Some(bbox),
                score: Some(f64::from(score)),
                ..Annotation::default()
            });
        }
        self.detections.extend(added);
        self.has_detections[index] = true;
        Ok(())
    }

    /// The twelve metrics over everything that was added.
    pub fn evaluate(&self) -> Result<Metrics, Error> {
        if self.names.is_empty() {
            return Err(Error::Empty);
        }
        let dataset = Dataset {
            images: self
                .names
                .iter()
                .enumerate()
                .map(|(index, name)| Image {
                    id: index as u64 + 1,
                    file_name: name.clone(),
                    ..Image::default()
                })
                .collect(),
            annotations: self.groundtruth.clone(),
            categories: self
                .categories
                .iter()
                .map(|category| hotcoco::Category {
                    id: u64::from(category.id),
                    name: category.name.clone(),
                    ..hotcoco::Category::default()
                })
                .collect(),
            ..Dataset::default()
        };
        let groundtruth = COCO::from_dataset(dataset);
        let detections = groundtruth.load_res_anns(self.detections.clone())?;
        let kind = match self.shape {
            Shape::Boxes => IouType::Bbox,
            Shape::Masks => IouType::Segm,
        };
        let mut evaluation = COCOeval::new(groundtruth, detections, kind);
        evaluation.evaluate()?;
        evaluation.accumulate();
        // Not `run()` or `summarize()`: they print.
        evaluation.summarize_lines();
        let mut values = [-1.0; 12];
        for (value, &stat) in values.iter_mut().zip(evaluation.stats().unwrap_or_default()) {
            *value = stat;
        }
        let by_category = self.by_category(&evaluation);
        Ok(Metrics {
            values,
            ap_by_category: by_category
                .iter()
                .filter(|(_, values)| values[0] > -1.0)
                .map(|(name, values)| (name.clone(), values[0]))
                .collect(),
            by_category,
        })
    }

    /// What `summarize` does over all classes, for each (the reference's `category_stats`).
    fn by_category(&self, evaluation: &COCOeval) -> Vec<(String, [f64; 12])> {
        let Some(accumulated) = evaluation.accumulated() else {
            return Vec::new();
        };
        let shape = &accumulated.shape;
        // Area ranges are all, small, medium, large; limits are 1, 10 and 100 detections an image.
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (mut sum, mut count) = (0.0, 0_usize);
            for value in values.filter(|&value| value > -1.0) {
                sum += value;
                count += 1;
            }
            if count == 0 { -1.0 } else { sum / count as f64 }
        };
        let of = |k: usize| {
            let precision = |thresholds: std::ops::Range<usize>, a: usize| {
                mean(
                    &mut thresholds
                        .flat_map(|t| (0..shape.r).map(move |r| (t, r)))
                        .map(|(t, r)| accumulated.precision[accumulated.precision_idx(t, r, k, a, shape.m - 1)]),
                )
            };
            let recall = |a: usize, m: usize| {
                mean(&mut (0..shape.t).map(|t| accumulated.recall[accumulated.recall_idx(t, k, a, m)]))
            };
            let last = shape.m - 1;
            [
                precision(0..shape.t, 0),
                precision(0..1, 0),
                precision(5..6, 0),
                precision(0..shape.t, 1),
                precision(0..shape.t, 2),
                precision(0..shape.t, 3),
                recall(0, 0),
                recall(0, 1),
                recall(0, last),
                recall(1, last),
                recall(2, last),
                recall(3, last),
            ]
        };
        let name = |id: u64| self.categories.iter().find(|category| u64::from(category.id) == id);
        accumulated
            .cat_ids
            .iter()
            .enumerate()
            .take(shape.k)
            .filter_map(|(k, &id)| name(id).map(|category| (category.name.clone(), of(k))))
            .collect()
    }

    /// COCO's `[x, y, width, height]` of a box.
    fn checked(&self, image: &str, index: usize, value: [f32; 4], class: u32) -> Result<[f64; 4], Error> {
        if value.iter().any(|coordinate| !coordinate.is_finite()) {
            return Err(Error::BadBox {
                image: image.to_owned(),
                index,
                value: value.map(f64::from),
            });
        }
        if !self.categories.iter().any(|category| category.id == class) {
            return Err(Error::UnknownClass {
                image: image.to_owned(),
                class,
            });
        }
        Ok(xywh(value.map(f64::from)))
    }
}

impl evaluator::Evaluator for Evaluator {
    fn name(&self) -> &'static str {
        match self.shape {
            Shape::Boxes => "coco_detection_metrics",
            Shape::Masks => "coco_mask_metrics",
        }
    }

    fn add(&mut self, sample: &Sample) -> Result<(), Error> {
        let (truth, found) = (&sample.groundtruth, &sample.detections);
        let masks = self.shape == Shape::Masks;
        for (what, boxes, given) in [
            ("groundtruth", truth.boxes.len(), truth.masks.len()),
            ("detection", found.boxes.len(), found.masks.len()),
        ] {
            if masks && boxes != given {
                return Err(Error::NoMasks {
                    image: sample.image.clone(),
                    what,
                    boxes,
                    metric: self.name(),
                });
            }
        }
        let image_id = self.names.len() as u64 + 1;
        for (index, &corners) in truth.boxes.iter().enumerate() {
            let bbox = truth.xywh.get(index).copied().unwrap_or_else(|| xywh(corners));
            // As in the reference, also for masks: without an area the box's counts.
            let area = truth.area.get(index).copied().filter(|&area| area > 0.0);
            self.groundtruth.push(Annotation {
                id: self.groundtruth.len() as u64 + 1,
                image_id,
                category_id: u64::from(truth.classes[index]),
                bbox: Some(bbox),
                area: Some(area.unwrap_or(bbox[2] * bbox[3])),
                iscrowd: truth.is_crowd.get(index).copied().unwrap_or(false),
                segmentation: truth.masks.get(index).filter(|_| masks).map(segmentation),
                ..Annotation::default()
            });
        }
        let verified = truth.image_classes.as_ref().filter(|_| self.detail.skip_unlabelled);
        for (index, &corners) in found.boxes.iter().enumerate() {
            let class = found.classes[index];
            if verified.is_some_and(|classes| !classes.contains(&class)) {
                continue;
            }
            self.detections.push(Annotation {
                image_id,
                category_id: u64::from(class),
                bbox: (!masks).then(|| found.xywh.get(index).copied().unwrap_or_else(|| xywh(corners))),
                segmentation: found.masks.get(index).filter(|_| masks).map(segmentation),
                score: Some(found.scores[index]),
                ..Annotation::default()
            });
        }
        self.ids.insert(sample.image.clone(), image_id);
        self.names.push(sample.image.clone());
        self.has_detections.push(true);
        Ok(())
    }

    fn evaluate(&self) -> Result<Vec<Metric>, Error> {
        let metrics = Evaluator::evaluate(self)?;
        let prefix = match self.shape {
            Shape::Boxes => "DetectionBoxes_",
            Shape::Masks => "DetectionMasks_",
        };
        let short = METRIC_NAMES.map(|name| name.trim_start_matches("DetectionBoxes_"));
        let mut named: Vec<Metric> = short
            .iter()
            .zip(metrics.values)
            .map(|(name, value)| (format!("{prefix}{name}"), value))
            .collect();
        for (category, values) in &metrics.by_category {
            if self.detail.per_category {
                named.push((format!("{prefix}PerformanceByCategory/mAP/{category}"), values[0]));
            }
            if self.detail.per_category && self.detail.all_per_category {
                named.extend(
                    short
                        .iter()
                        .zip(values)
                        .map(|(name, &value)| (format!("{prefix}{name} ByCategory/{category}"), value)),
                );
            }
        }
        Ok(named)
    }
}

fn segmentation(mask: &Mask) -> Segmentation {
    Segmentation::UncompressedRle {
        size: mask.size(),
        counts: mask.counts().to_vec(),
    }
}

fn same_length(image: &str, boxes: usize, what: &'static str, other: usize) -> Result<(), Error> {
    if boxes == other {
        Ok(())
    } else {
        Err(Error::Lengths {
            image: image.to_owned(),
            boxes,
            what,
            other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> serde_json::Value {
        let path = format!(
            "{}/../tests/fixtures/golden/components/{name}",
            env!("CARGO_MANIFEST_DIR")
        );
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn boxes(value: &serde_json::Value) -> Vec<[f32; 4]> {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn evaluator(crowd: bool, area: bool) -> Evaluator {
        let input = golden("metrics_input.json");
        let categories = input["categories"].as_array().unwrap().iter().map(|category| Category {
            id: category["id"].as_u64().unwrap() as u32,
            name: category["name"].as_str().unwrap().to_owned(),
        });
        let mut evaluator = Evaluator::new(categories.collect());
        for image in input["images"].as_array().unwrap() {
            let id = image["image_id"].as_str().unwrap();
            let groundtruth = ImageGroundtruth {
                boxes_px: boxes(&image["groundtruth_boxes"]),
                classes: serde_json::from_value(image["groundtruth_classes"].clone()).unwrap(),
                is_crowd: if crowd {
                    serde_json::from_value(image["groundtruth_is_crowd"].clone()).unwrap()
                } else {
                    vec![]
                },
                area: if area {
                    serde_json::from_value(image["groundtruth_area"].clone()).unwrap()
                } else {
                    vec![]
                },
            };
            evaluator.add_groundtruth(id, &groundtruth).unwrap();
            let detections = ImageDetections {
                boxes_px: boxes(&image["detection_boxes"]),
                scores: serde_json::from_value(image["detection_scores"].clone()).unwrap(),
                classes: serde_json::from_value(image["detection_classes"].clone()).unwrap(),
            };
            evaluator.add_detections(id, &detections).unwrap();
        }
        evaluator
    }

    #[test]
    fn equals_the_reference() {
        let expected = golden("metrics_expected.json");
        for (case, crowd, area) in [
            ("coco", true, false),
            ("coco_no_crowd_flag", false, false),
            ("coco_area_field", true, true),
        ] {
            let metrics = evaluator(crowd, area).evaluate().unwrap();
            for (name, value) in metrics.named() {
                let wanted = expected[case]["metrics"][name].as_f64().unwrap();
                assert!(
                    (value - wanted).abs() < 1e-6,
                    "{case}: {name}: {value}, reference {wanted}"
                );
            }
        }
    }

    #[test]
    fn average_over_categories_is_the_map() {
        let metrics = evaluator(true, false).evaluate().unwrap();
        let mean = metrics.ap_by_category.iter().map(|(_, ap)| ap).sum::<f64>() / metrics.ap_by_category.len() as f64;
        assert!((mean - metrics.ap()).abs() < 1e-9);
        assert_eq!(
            metrics.ap_by_category.len(),
            4,
            "the class that was never seen has no AP"
        );
    }

    #[test]
    fn refuses_what_cannot_be_evaluated() {
        let mut evaluator = Evaluator::new(vec![Category {
            id: 1,
            name: "a".into(),
        }]);
        assert!(matches!(evaluator.evaluate(), Err(Error::Empty)));
        let one = ImageGroundtruth {
            boxes_px: vec![[0.0, 0.0, 5.0, 5.0]],
            classes: vec![1],
            ..Default::default()
        };
        evaluator.add_groundtruth("x", &one).unwrap();
        assert!(matches!(
            evaluator.add_groundtruth("x", &one),
            Err(Error::DuplicateImage(_))
        ));
        let nan = ImageDetections {
            boxes_px: vec![[f32::NAN; 4]],
            scores: vec![0.5],
            classes: vec![1],
        };
        assert!(matches!(evaluator.add_detections("x", &nan), Err(Error::BadBox { .. })));
        assert!(matches!(
            evaluator.add_detections("y", &nan),
            Err(Error::UnknownImage(_))
        ));
        let unknown = ImageDetections {
            boxes_px: vec![[0.0; 4]],
            scores: vec![0.5],
            classes: vec![7],
        };
        assert!(matches!(
            evaluator.add_detections("x", &unknown),
            Err(Error::UnknownClass { class: 7, .. })
        ));
    }

    #[test]
    fn an_image_without_detections_costs_recall() {
        let mut evaluator = Evaluator::new(vec![Category {
            id: 1,
            name: "a".into(),
        }]);
        let one = ImageGroundtruth {
            boxes_px: vec![[0.0, 0.0, 50.0, 50.0]],
            classes: vec![1],
            ..Default::default()
        };
        for image in ["x", "y"] {
            evaluator.add_groundtruth(image, &one).unwrap();
        }
        let right = ImageDetections {
            boxes_px: vec![[0.0, 0.0, 50.0, 50.0]],
            scores: vec![0.9],
            classes: vec![1],
        };
        evaluator.add_detections("x", &right).unwrap();
        let metrics = evaluator.evaluate().unwrap();
        assert!(
            (metrics.values[8] - 0.5).abs() < 1e-9,
            "AR@100 is {}",
            metrics.values[8]
        );
    }

    #[test]
    fn no_detection_at_all_is_zero_not_an_error() {
        let mut evaluator = Evaluator::new(vec![Category {
            id: 1,
            name: "a".into(),
        }]);
        let one = ImageGroundtruth {
            boxes_px: vec![[0.0, 0.0, 50.0, 50.0]],
            classes: vec![1],
            ..Default::default()
        };
        evaluator.add_groundtruth("x", &one).unwrap();
        assert_eq!(evaluator.evaluate().unwrap().ap50(), 0.0);
    }
}
