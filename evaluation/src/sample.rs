//! What evaluation takes in: groundtruth and detections of one image.

use crate::mask::Mask;

/// A class as the label map names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// From 1.
    pub id: u32,
    /// Name to show.
    pub name: String,
}

/// Groundtruth of one image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageGroundtruth {
    /// `[ymin, xmin, ymax, xmax]`, absolute pixels of the original image.
    pub boxes_px: Vec<[f32; 4]>,
    /// From 1, one a box.
    pub classes: Vec<u32>,
    /// Empty, or one a box: the box covers a crowd and detections inside it count neither way.
    pub is_crowd: Vec<bool>,
    /// Empty, or one a box: pixels of the object; the box's area where absent or 0.
    pub area: Vec<f32>,
}

/// Detections of one image, in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageDetections {
    /// `[ymin, xmin, ymax, xmax]`, absolute pixels of the original image.
    pub boxes_px: Vec<[f32; 4]>,
    /// One a box.
    pub scores: Vec<f32>,
    /// From 1, one a box.
    pub classes: Vec<u32>,
}

/// One image with all that any metric asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its id, unique in the set.
    pub image: String,
    /// Height and width, in the boxes' unit, where known: then boxes that lie elsewhere are told of.
    pub size: Option<[f64; 2]>,
    /// What is there.
    pub groundtruth: Groundtruth,
    /// What was found.
    pub detections: Detections,
}

/// Objects of one image. Lists other than `boxes` and `classes` may be empty where nothing is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Groundtruth {
    /// `[ymin, xmin, ymax, xmax]` in pixels, or in fractions where everything is (Open Images).
    pub boxes: Vec<[f64; 4]>,
    /// The same as COCO's `[x, y, width, height]`, where the file had that: its sums need not be formed and taken apart again.
    pub xywh: Vec<[f64; 4]>,
    /// From 1, one a box.
    pub classes: Vec<u32>,
    /// Pascal VOC: found or not, it does not count.
    pub difficult: Vec<bool>,
    /// Open Images: one box around five and more.
    pub group_of: Vec<bool>,
    /// COCO: detections inside count neither way.
    pub is_crowd: Vec<bool>,
    /// Pixels of the object; the box's where absent or 0.
    pub area: Vec<f64>,
    /// One a box; empty masks where only the box is known.
    pub masks: Vec<Mask>,
    /// Classes whose presence or absence in the image was verified (`groundtruth_image_classes`); `None` where nobody looked.
    pub image_classes: Option<Vec<u32>>,
}

/// Detections of one image, in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detections {
    /// As in [`Groundtruth`].
    pub boxes: Vec<[f64; 4]>,
    /// As in [`Groundtruth`].
    pub xywh: Vec<[f64; 4]>,
    /// One a box.
    pub scores: Vec<f64>,
    /// From 1, one a box.
    pub classes: Vec<u32>,
    /// Empty, or one a box.
    pub masks: Vec<Mask>,
}

impl From<&ImageGroundtruth> for Groundtruth {
    fn from(from: &ImageGroundtruth) -> Self {
        Self {
            boxes: from.boxes_px.iter().map(|corners| corners.map(f64::from)).collect(),
            classes: from.classes.clone(),
            is_crowd: from.is_crowd.clone(),
            area: from.area.iter().copied().map(f64::from).collect(),
            ..Self::default()
        }
    }
}

impl From<&ImageDetections> for Detections {
    fn from(from: &ImageDetections) -> Self {
        Self {
            boxes: from.boxes_px.iter().map(|corners| corners.map(f64::from)).collect(),
            scores: from.scores.iter().copied().map(f64::from).collect(),
            classes: from.classes.clone(),
            ..Self::default()
        }
    }
}

/// COCO's `[x, y, width, height]` of `[ymin, xmin, ymax, xmax]`.
pub(crate) fn xywh([ymin, xmin, ymax, xmax]: [f64; 4]) -> [f64; 4] {
    [xmin, ymin, xmax - xmin, ymax - ymin]
}
