//! The twelve COCO box metrics under the reference's names (`CocoDetectionEvaluator`).
//!
//! Matching and averaging are hotcoco's, whose numbers equal pycocotools'; what is ours is the way in (pixels, label-map
//! ids, checks) and the names out.

mod files;

use std::collections::HashMap;
use std::path::PathBuf;

use hotcoco::{Annotation, COCO, COCOeval, Dataset, Image, params::IouType};
use serde::Serialize;

pub use files::groundtruth_path;

use crate::sample::{Category, ImageDetections, ImageGroundtruth};

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

/// What cannot be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The same image was added before.
    #[error(
        "image `{0}` was added twice\nhint: each image needs an id of its own (`image/source_id`); is a record in two shards?"
    )]
    DuplicateImage(String),
    /// Detections for an image without groundtruth entry.
    #[error("detections for image `{0}`, whose groundtruth was not added")]
    UnknownImage(String),
    /// Parallel lists of different lengths.
    #[error("image `{image}`: {boxes} boxes but {other} {what}")]
    Lengths {
        /// Which image.
        image: String,
        /// Number of boxes.
        boxes: usize,
        /// Which list.
        what: &'static str,
        /// Its length.
        other: usize,
    },
    /// A box that is not one.
    #[error(
        "image `{image}`: box {index} is {value:?}; four finite pixel coordinates [ymin, xmin, ymax, xmax] are needed"
    )]
    BadBox {
        /// Which image.
        image: String,
        /// Index of the box in its list.
        index: usize,
        /// Its coordinates.
        value: [f32; 4],
    },
    /// A score that is not a number.
    #[error("image `{image}`: score {index} is not a number")]
    BadScore {
        /// Which image.
        image: String,
        /// Index in the list.
        index: usize,
    },
    /// A class that the label map does not have.
    #[error("image `{image}`: class {class} is not in the label map")]
    UnknownClass {
        /// Which image.
        image: String,
        /// The class id.
        class: u32,
    },
    /// Nothing was added.
    #[error("no image was evaluated\nhint: is the evaluation set empty?")]
    Empty,
    /// A file could not be written.
    #[error("cannot write {path}: {message}")]
    File {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// From the metrics library.
    #[error("COCO metrics: {0}")]
    Library(#[from] hotcoco::Error),
}

/// COCO's summary of a detection run; -1 where no groundtruth of that size exists.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// In the order of [`METRIC_NAMES`].
    #[serde(skip)]
    pub values: [f64; 12],
    /// AP (`IoU` 0.50 to 0.95) of each category that has groundtruth, by name.
    pub ap_by_category: Vec<(String, f64)>,
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
    categories: Vec<Category>,
    ids: HashMap<String, u64>,
    names: Vec<String>,
    has_detections: Vec<bool>,
    groundtruth: Vec<Annotation>,
    detections: Vec<Annotation>,
}

impl Evaluator {
    /// An empty evaluation over these classes.
    pub fn new(categories: Vec<Category>) -> Self {
        Self {
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
        let mut evaluation = COCOeval::new(groundtruth, detections, IouType::Bbox);
        evaluation.evaluate()?;
        evaluation.accumulate();
        // Not `run()` or `summarize()`: they print.
        evaluation.summarize_lines();
        let mut values = [-1.0; 12];
        for (value, &stat) in values.iter_mut().zip(evaluation.stats().unwrap_or_default()) {
            *value = stat;
        }
        Ok(Metrics {
            values,
            ap_by_category: self.by_category(&evaluation),
        })
    }

    fn by_category(&self, evaluation: &COCOeval) -> Vec<(String, f64)> {
        let Some(accumulated) = evaluation.accumulated() else {
            return Vec::new();
        };
        let shape = &accumulated.shape;
        let mut result = Vec::new();
        for (k, category) in self.categories.iter().enumerate().take(shape.k) {
            let mut sum = 0.0;
            let mut count = 0_usize;
            for t in 0..shape.t {
                for r in 0..shape.r {
                    // Area range 0 is "all"; the last limit is 100 detections an image.
                    let precision = accumulated.precision[accumulated.precision_idx(t, r, k, 0, shape.m - 1)];
                    if precision > -1.0 {
                        sum += precision;
                        count += 1;
                    }
                }
            }
            if count > 0 {
                result.push((category.name.clone(), sum / count as f64));
            }
        }
        result
    }

    /// COCO's `[x, y, width, height]` of a box.
    fn checked(&self, image: &str, index: usize, value: [f32; 4], class: u32) -> Result<[f64; 4], Error> {
        if value.iter().any(|coordinate| !coordinate.is_finite()) {
            return Err(Error::BadBox {
                image: image.to_owned(),
                index,
                value,
            });
        }
        if !self.categories.iter().any(|category| category.id == class) {
            return Err(Error::UnknownClass {
                image: image.to_owned(),
                class,
            });
        }
        let [ymin, xmin, ymax, xmax] = value.map(f64::from);
        Ok([xmin, ymin, xmax - xmin, ymax - ymin])
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
