//! Detections as lines, JSON and CSV.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use coati_detection::Detections;
use coati_evaluation::Category;
use coati_worker::detect::Detector;
use coati_worker::gallery::class_name;
use serde_json::{Value, json};

/// A picture's detections.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub image: PathBuf,
    /// Height and width.
    pub size: [usize; 2],
    /// With boxes drawn.
    pub picture: Option<PathBuf>,
    pub detections: Vec<Detection>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Detection {
    label: String,
    label_id: usize,
    score: f32,
    /// `[ymin, xmin, ymax, xmax]`, fractions.
    corners: [f32; 4],
    /// The same in pixels.
    corners_px: [f32; 4],
}

impl Found {
    pub(super) fn new(image: PathBuf, size: [usize; 2], found: &Detections, categories: &[Category]) -> Self {
        let [height, width] = size.map(|side| side as f32);
        let detections = found.boxes.iter().zip(&found.classes).zip(&found.scores);
        let detections = detections.map(|((&corners, &class), &score)| Detection {
            label: class_name(categories, class),
            label_id: class + 1,
            score,
            corners,
            corners_px: [
                corners[0] * height,
                corners[1] * width,
                corners[2] * height,
                corners[3] * width,
            ],
        });
        Self {
            detections: detections.collect(),
            image,
            size,
            picture: None,
        }
    }

    /// `frames/9.jpg: 2 x RBC, 1 x WBC`, the surest classes first.
    pub(super) fn line(&self) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for detection in &self.detections {
            match counts.iter_mut().find(|(label, _)| *label == detection.label) {
                Some((_, count)) => *count += 1,
                None => counts.push((&detection.label, 1)),
            }
        }
        let counts: Vec<String> = counts
            .iter()
            .map(|(label, count)| format!("{count} x {label}"))
            .collect();
        let found = if counts.is_empty() {
            "nothing".to_owned()
        } else {
            counts.join(", ")
        };
        format!("{}: {found}", self.image.display())
    }

    fn json(&self) -> Value {
        let detections = self.detections.iter().map(|detection| {
            json!({"label": detection.label, "label_id": detection.label_id, "score": detection.score,
                "box_px": detection.corners_px, "box": detection.corners})
        });
        json!({
            "image": self.image, "height": self.size[0], "width": self.size[1], "picture": self.picture,
            "detections": detections.collect::<Vec<_>>(),
        })
    }
}

/// Boxes are `[ymin, xmin, ymax, xmax]`, `box_px` in pixels of the picture, `box` in fractions of it.
pub(super) fn json(detector: &Detector, score_threshold: f32, found: &[Found], failed: &[(PathBuf, String)]) -> Value {
    let failed = failed
        .iter()
        .map(|(path, error)| json!({"image": path, "error": error}));
    // As it was given: 0.01 and not the float32's 0.009999999776.
    let threshold: f64 = score_threshold
        .to_string()
        .parse()
        .unwrap_or(f64::from(score_threshold));
    json!({
        "checkpoint": detector.checkpoint(), "global_step": detector.step(), "score_threshold": threshold,
        "images": found.iter().map(Found::json).collect::<Vec<_>>(),
        "failed": failed.collect::<Vec<_>>(),
    })
}

const COLUMNS: [&str; 14] = [
    "image", "height", "width", "label", "label_id", "score", "ymin_px", "xmin_px", "ymax_px", "xmax_px", "ymin",
    "xmin", "ymax", "xmax",
];

/// A line for each detection.
pub(super) fn write_csv(path: &Path, found: &[Found]) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(COLUMNS).with_context(context)?;
    for one in found {
        for detection in &one.detections {
            let mut line = vec![
                one.image.display().to_string(),
                one.size[0].to_string(),
                one.size[1].to_string(),
                detection.label.clone(),
                detection.label_id.to_string(),
                detection.score.to_string(),
            ];
            line.extend(
                detection
                    .corners_px
                    .iter()
                    .chain(&detection.corners)
                    .map(ToString::to_string),
            );
            table.write_record(&line).with_context(context)?;
        }
    }
    let text = table
        .into_inner()
        .map_err(csv::IntoInnerError::into_error)
        .with_context(context)?;
    coati_storage::write(path, &text).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let detections = Detections {
            boxes: vec![[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.25], [0.0, 0.0, 1.0, 1.0]],
            classes: vec![1, 0, 1],
            scores: vec![0.9, 0.75, 0.5],
            anchors: vec![0, 1, 2],
        };
        let category = Category {
            id: 2,
            name: "cat, \"big\"".into(),
        };
        Found::new("a,b.jpg".into(), [100, 200], &detections, &[category])
    }

    #[test]
    fn boxes_are_in_pixels_and_in_fractions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.csv");
        write_csv(&path, &[found()]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split(',').count(), 14);
        assert_eq!(
            lines[1],
            r#""a,b.jpg",100,200,"cat, ""big""",2,0.9,25,100,75,200,0.25,0.5,0.75,1"#
        );
        assert_eq!(lines.len(), 4);
        let json = found().json();
        assert_eq!(json["detections"][1]["box_px"], json!([0.0, 0.0, 50.0, 50.0]));
        assert_eq!(
            json["detections"][1]["label"], "1",
            "a class that the label map lacks is its number"
        );
    }

    #[test]
    fn a_line_counts_classes() {
        assert_eq!(found().line(), "a,b.jpg: 2 x cat, \"big\", 1 x 1");
        let nothing = Found::new("x".into(), [1, 1], &Detections::default(), &[]);
        assert_eq!(nothing.line(), "x: nothing");
    }
}
