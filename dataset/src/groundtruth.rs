//! The objects of one image.

/// The objects of one image; all lists are equally long.
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
    }

    /// Keeps the first `count` objects; returns how many were cut off.
    pub fn truncate(&mut self, count: usize) -> usize {
        let cut = self.len().saturating_sub(count);
        if cut > 0 {
            self.retain(|index| index < count);
        }
        cut
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
