//! What evaluation takes in: groundtruth and detections of one image.

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
    /// Empty, or one a box: pixels of the object; the box's area where absent.
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
