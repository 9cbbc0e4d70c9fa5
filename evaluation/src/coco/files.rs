//! Detections and groundtruth as the JSON files that COCO's tools read.

use std::path::{Path, PathBuf};

use hotcoco::Annotation;
use serde_json::{Value, json};

use super::{Error, Evaluator};

/// Where the groundtruth of `detections.json` goes: `detections.groundtruth.json`.
pub fn groundtruth_path(detections: &Path) -> PathBuf {
    detections.with_extension("groundtruth.json")
}

impl Evaluator {
    /// Writes COCO's results file (a list of boxes `[x, y, width, height]` in pixels with their scores) to `detections`, and
    /// beside it the annotation file that its image ids refer to, see [`groundtruth_path`]. Folders are made as needed.
    pub fn write_files(&self, detections: &Path) -> Result<(), Error> {
        let found: Vec<Value> = self
            .detections
            .iter()
            .map(|one| {
                json!({"image_id": one.image_id, "category_id": one.category_id, "bbox": one.bbox, "score": one.score})
            })
            .collect();
        write(detections, &found.into())?;
        let images: Vec<Value> = (1..)
            .zip(&self.names)
            .map(|(id, name)| json!({"id": id, "file_name": name}))
            .collect();
        let categories: Vec<Value> = self
            .categories
            .iter()
            .map(|category| json!({"id": category.id, "name": category.name}))
            .collect();
        let annotation = |one: &Annotation| {
            json!({"id": one.id, "image_id": one.image_id, "category_id": one.category_id, "bbox": one.bbox,
                "area": one.area, "iscrowd": u8::from(one.iscrowd)})
        };
        let annotations: Vec<Value> = self.groundtruth.iter().map(annotation).collect();
        let groundtruth = json!({"images": images, "annotations": annotations, "categories": categories});
        write(&groundtruth_path(detections), &groundtruth)
    }
}

fn write(path: &Path, value: &Value) -> Result<(), Error> {
    coati_storage::write(path, value.to_string().as_bytes()).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::File {
        path: path.to_owned(),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Category, ImageDetections, ImageGroundtruth};

    #[test]
    fn both_files_hold_what_was_added() {
        let name = "cell".to_owned();
        let mut evaluator = Evaluator::new(vec![Category { id: 2, name }]);
        let groundtruth = ImageGroundtruth {
            boxes_px: vec![[10.0, 20.0, 30.0, 60.5]],
            classes: vec![2],
            ..ImageGroundtruth::default()
        };
        evaluator.add_groundtruth("a", &groundtruth).unwrap();
        let found = ImageDetections {
            boxes_px: vec![[1.0, 2.0, 3.0, 5.0]],
            scores: vec![0.5],
            classes: vec![2],
        };
        evaluator.add_detections("a", &found).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/detections.json");
        evaluator.write_files(&path).unwrap();
        let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        assert_eq!(
            read(&path),
            json!([{"image_id": 1, "category_id": 2, "bbox": [2.0, 1.0, 3.0, 2.0], "score": 0.5}])
        );
        assert_eq!(
            read(&folder.path().join("new/detections.groundtruth.json")),
            json!({
                "images": [{"id": 1, "file_name": "a"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [20.0, 10.0, 40.5, 20.0], "area": 810.0, "iscrowd": 0}],
                "categories": [{"id": 2, "name": "cell"}],
            })
        );
    }
}
