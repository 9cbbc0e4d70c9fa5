//! The objects of one image.

use crate::pixels::Pixels;

/// The objects of one image; all lists are equally long, but for those that are said to be empty where a record has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Groundtruth {
    /// `[ymin, xmin, ymax, xmax]`, normalised to the image.
    pub boxes: Vec<[f32; 4]>,
    /// From 0, as inside models: the label map's id minus one.
    pub classes: Vec<i64>,
    /// How much each object counts in the loss; 1 where the record says nothing.
    pub weights: Vec<f32>,
    /// The box holds a crowd that is not told apart.
    pub is_crowd: Vec<bool>,
    /// Hard to recognise (Pascal VOC).
    pub difficult: Vec<bool>,
    /// The box holds a group of objects (Open Images).
    pub group_of: Vec<bool>,
    /// Area of the object in pixels of the original image; of the box where the record says nothing.
    pub area: Vec<f32>,
    /// How sure the annotator was (`groundtruth_confidences`); empty where nobody said.
    pub confidences: Vec<f32>,
    /// A score a class (`load_multiclass_scores`); empty unless asked for.
    pub multiclass_scores: Vec<Vec<f32>>,
    /// Which pixels are the object's, as large as the image (`load_instance_masks`); empty unless asked for.
    pub masks: Vec<Pixels>,
    /// How much each mask counts (`image/object/mask/weight`); empty where the record says nothing.
    pub mask_weights: Vec<f32>,
    /// `[y, x]`, normalised to the image, of each object (`num_keypoints`); NaN where a point left the image. Empty unless
    /// asked for.
    pub keypoints: Vec<Vec<[f32; 2]>>,
    /// Whether each point can be seen; empty where there are no keypoints.
    pub keypoint_visibilities: Vec<Vec<bool>>,
}

impl Groundtruth {
    /// The number of objects.
    pub fn len(&self) -> usize {
        self.boxes.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.boxes.is_empty()
    }

    /// Keeps the objects for which `keep` (given the index) is true, in order.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        fn filter<T>(values: &mut Vec<T>, keep: &impl Fn(usize) -> bool) {
            let mut index = 0;
            values.retain(|_| {
                index += 1;
                keep(index - 1)
            });
        }
        filter(&mut self.boxes, &keep);
        filter(&mut self.classes, &keep);
        filter(&mut self.weights, &keep);
        filter(&mut self.is_crowd, &keep);
        filter(&mut self.difficult, &keep);
        filter(&mut self.group_of, &keep);
        filter(&mut self.area, &keep);
        filter(&mut self.confidences, &keep);
        filter(&mut self.multiclass_scores, &keep);
        filter(&mut self.masks, &keep);
        filter(&mut self.mask_weights, &keep);
        filter(&mut self.keypoints, &keep);
        filter(&mut self.keypoint_visibilities, &keep);
    }

    /// Lists every object a second time, behind all others.
    pub fn repeat(&mut self) {
        self.boxes.extend_from_within(..);
        self.classes.extend_from_within(..);
        self.weights.extend_from_within(..);
        self.is_crowd.extend_from_within(..);
        self.difficult.extend_from_within(..);
        self.group_of.extend_from_within(..);
        self.area.extend_from_within(..);
        self.confidences.extend_from_within(..);
        self.multiclass_scores.extend_from_within(..);
        self.masks.extend_from_within(..);
        self.mask_weights.extend_from_within(..);
        self.keypoints.extend_from_within(..);
        self.keypoint_visibilities.extend_from_within(..);
    }

    /// Keeps the first `count` objects; returns how many were cut off.
    pub fn truncate(&mut self, count: usize) -> usize {
        let cut = self.len().saturating_sub(count);
        if cut > 0 {
            self.retain(|index| index < count);
        }
        cut
    }

    /// Boxes and keypoints become relative to a canvas whose sides are so many times the image's, which lies in its upper
    /// left corner.
    pub fn stretch(&mut self, sides: [f32; 2]) {
        if sides == [1.0; 2] {
            return;
        }
        for object in &mut self.boxes {
            for (side, value) in object.iter_mut().enumerate() {
                *value /= sides[side % 2];
            }
        }
        for point in self.keypoints.iter_mut().flatten() {
            *point = [point[0] / sides[0], point[1] / sides[1]];
        }
    }

    /// The boxes in pixels of an image of that size.
    pub fn boxes_px(&self, height: usize, width: usize) -> Vec<[f32; 4]> {
        let (h, w) = (height as f32, width as f32);
        self.boxes
            .iter()
            .map(|[ymin, xmin, ymax, xmax]| [ymin * h, xmin * w, ymax * h, xmax * w])
            .collect()
    }
}
