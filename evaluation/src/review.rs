//! What people look at to understand a detector: precision-recall curves, which classes are taken for which, the worst images.
//!
//! Fed image by image beside the metrics, with the same samples; [`crate::plot`] draws it, [`crate::report`] makes a page of it.

mod confusion;
mod curve;
mod matching;

pub use confusion::Confusion;
pub use curve::{Best, Curve, mean};

use crate::sample::{Category, Sample};

/// Overlap from which on an object counts as found.
pub const MATCHING_IOU: f64 = 0.5;

/// How a detector is reviewed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Detections below are not counted in the confusion matrix and as mistakes in images; curves use all.
    pub score_threshold: f64,
    /// How many of the worst images are kept.
    pub worst_images: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            score_threshold: 0.5,
            worst_images: 0,
        }
    }
}

/// An image with mistakes.
#[derive(Clone, Debug, PartialEq)]
pub struct WorstImage {
    /// What it is called.
    pub name: String,
    /// Objects that were not found.
    pub missed: usize,
    /// Detections where there is nothing of their class.
    pub wrong: usize,
    /// Objects that were found.
    pub found: usize,
    /// A picture of it, as the bytes of a JPEG or PNG file; empty without one.
    pub picture: Vec<u8>,
}

impl WorstImage {
    /// Mistakes.
    pub fn mistakes(&self) -> usize {
        self.missed + self.wrong
    }
}

/// Collects samples.
#[derive(Clone, Debug)]
pub struct Review {
    categories: Vec<Category>,
    options: Options,
    /// By category: (score, right) of each detection that counts, and the number of objects.
    detections: Vec<Vec<(f64, bool)>>,
    objects: Vec<usize>,
    confusion: Confusion,
    worst: Vec<WorstImage>,
    images: usize,
}

impl Review {
    /// Nothing yet, of these classes.
    pub fn new(categories: Vec<Category>, options: Options) -> Self {
        let count = categories.len();
        Self {
            confusion: Confusion::new(count),
            detections: vec![Vec::new(); count],
            objects: vec![0; count],
            worst: Vec::new(),
            images: 0,
            categories,
            options,
        }
    }

    /// Adds an image. `picture` is asked for one only where the image is among the worst so far.
    pub fn add(&mut self, sample: &Sample, name: &str, picture: &mut dyn FnMut() -> Vec<u8>) {
        self.images += 1;
        let place = |class: u32| self.categories.iter().position(|category| category.id == class);
        let image = matching::Image::new(sample, &place);
        for (class, found) in image.verdicts(MATCHING_IOU) {
            self.detections[class].push(found);
        }
        for object in image.objects.iter().filter(|object| object.counts) {
            self.objects[object.class] += 1;
        }
        self.confusion.add(&image, self.options.score_threshold);
        let tally = image.tally(MATCHING_IOU, self.options.score_threshold);
        let mistakes = tally.missed + tally.wrong;
        // Among equally bad images the first ones stay.
        let at = self.worst.partition_point(|other| other.mistakes() >= mistakes);
        if mistakes > 0 && at < self.options.worst_images {
            self.worst.insert(
                at,
                WorstImage {
                    name: name.to_owned(),
                    missed: tally.missed,
                    wrong: tally.wrong,
                    found: tally.found,
                    picture: picture(),
                },
            );
            self.worst.truncate(self.options.worst_images);
        }
    }

    /// Images added.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The classes, in the order of [`Self::curves`] and [`Self::confusion`].
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// As given.
    pub fn options(&self) -> Options {
        self.options
    }

    /// The curve of each class.
    pub fn curves(&self) -> Vec<Curve> {
        let classes = self.categories.iter().zip(&self.detections).zip(&self.objects);
        classes
            .map(|((category, detections), &objects)| Curve::new(&category.name, detections, objects))
            .collect()
    }

    /// Which classes were taken for which.
    pub fn confusion(&self) -> &Confusion {
        &self.confusion
    }

    /// The images with the most mistakes, the worst first.
    pub fn worst(&self) -> &[WorstImage] {
        &self.worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Detections, Groundtruth};

    pub(super) fn categories() -> Vec<Category> {
        [(1, "cat"), (5, "dog")]
            .map(|(id, name)| Category { id, name: name.into() })
            .into()
    }

    pub(super) type Thing = ([f64; 4], u32);

    pub(super) fn sample(objects: &[Thing], found: &[(Thing, f64)]) -> Sample {
        Sample {
            groundtruth: Groundtruth {
                boxes: objects.iter().map(|object| object.0).collect(),
                classes: objects.iter().map(|object| object.1).collect(),
                ..Groundtruth::default()
            },
            detections: Detections {
                boxes: found.iter().map(|found| found.0.0).collect(),
                classes: found.iter().map(|found| found.0.1).collect(),
                scores: found.iter().map(|found| found.1).collect(),
                ..Detections::default()
            },
            ..Sample::default()
        }
    }

    const A: [f64; 4] = [0.0, 0.0, 10.0, 10.0];
    const B: [f64; 4] = [20.0, 20.0, 40.0, 40.0];

    #[test]
    fn the_worst_images_come_first_and_only_they_are_drawn() {
        let options = Options {
            worst_images: 2,
            ..Options::default()
        };
        let mut review = Review::new(categories(), options);
        let mut drawn = Vec::new();
        let images = [
            ("good", sample(&[(A, 1)], &[((A, 1), 0.9)])),
            ("one missed", sample(&[(A, 1)], &[((A, 1), 0.4)])),
            ("two wrong", sample(&[], &[((A, 1), 0.9), ((B, 5), 0.8), ((B, 1), 0.2)])),
            ("another missed", sample(&[(B, 5)], &[])),
            ("three", sample(&[(A, 1), (B, 5)], &[((B, 1), 0.9)])),
        ];
        for (name, sample) in &images {
            review.add(sample, name, &mut || {
                drawn.push(*name);
                name.as_bytes().to_vec()
            });
        }
        let names: Vec<_> = review.worst().iter().map(|image| image.name.as_str()).collect();
        assert_eq!(names, ["three", "two wrong"]);
        let worst = &review.worst()[0];
        assert_eq!((worst.missed, worst.wrong, worst.found), (2, 1, 0));
        assert_eq!(worst.picture, b"three");
        assert_eq!(drawn, ["one missed", "two wrong", "three"], "drawn when needed only");
        assert_eq!(review.images(), 5);
    }
}
