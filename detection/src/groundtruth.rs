//! What a training image shows.

use crate::Corners;

/// The objects of one image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Groundtruth {
    /// Names the image in errors: `image/source_id`, or file and record.
    pub source_id: String,
    /// Normalised to the image.
    pub boxes: Vec<Corners>,
    /// From 0, one a box.
    pub classes: Vec<i64>,
    /// How much each box counts in the loss; empty: 1 each.
    pub weights: Vec<f32>,
}

impl Groundtruth {
    /// The weight of box `index`.
    pub fn weight(&self, index: usize) -> f32 {
        self.weights.get(index).copied().unwrap_or(1.0)
    }

    /// Refuses lists of different lengths and classes that the model does not have.
    pub fn check(&self, num_classes: usize) -> Result<(), Error> {
        let boxes = self.boxes.len();
        let lists = [
            ("classes", self.classes.len(), false),
            ("weights", self.weights.len(), self.weights.is_empty()),
        ];
        if let Some((list, found, _)) = lists
            .into_iter()
            .find(|&(_, found, optional)| found != boxes && !optional)
        {
            return Err(Error::Lengths {
                source_id: self.source_id.clone(),
                list,
                found,
                boxes,
            });
        }
        let outside = |class: i64| usize::try_from(class).map_or(true, |class| class >= num_classes);
        match self.classes.iter().copied().find(|&class| outside(class)) {
            Some(class) => Err(Error::Class {
                source_id: self.source_id.clone(),
                class,
                num_classes,
            }),
            None => Ok(()),
        }
    }
}

/// Why groundtruth cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Lists that belong together differ in length.
    #[error("image {source_id:?}: {found} {list} for {boxes} boxes")]
    Lengths {
        /// The image.
        source_id: String,
        /// Which list.
        list: &'static str,
        /// Its length.
        found: usize,
        /// The number of boxes.
        boxes: usize,
    },
    /// A class that the model does not have.
    #[error(
        "image {source_id:?}: class {class} (from 0), but the model has {num_classes} classes\nhint: num_classes must be the number of items of the label map"
    )]
    Class {
        /// The image.
        source_id: String,
        /// From 0.
        class: i64,
        /// Of the model.
        num_classes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groundtruth(classes: Vec<i64>) -> Groundtruth {
        let boxes = vec![[0.0, 0.0, 1.0, 1.0]; 2];
        Groundtruth {
            source_id: "7.jpg".to_owned(),
            boxes,
            classes,
            weights: Vec::new(),
        }
    }

    #[test]
    fn classes_outside_the_model_are_named() {
        assert_eq!(groundtruth(vec![0, 2]).check(3), Ok(()));
        for class in [3, -1] {
            let error = groundtruth(vec![0, class]).check(3).unwrap_err().to_string();
            assert!(error.contains("7.jpg") && error.contains(&class.to_string()), "{error}");
        }
    }

    #[test]
    fn lists_must_be_equally_long() {
        assert!(matches!(
            groundtruth(vec![0]).check(3),
            Err(Error::Lengths {
                list: "classes",
                found: 1,
                ..
            })
        ));
        let weighted = Groundtruth {
            weights: vec![1.0],
            ..groundtruth(vec![0, 1])
        };
        assert!(matches!(weighted.check(3), Err(Error::Lengths { list: "weights", .. })));
    }
}
