//! What becomes of detections: metrics, pictures, curves, and what is odd about the set.

use std::collections::HashSet;
use std::path::PathBuf;
use std::thread;

use coati_common::config::PipelineConfig;
use coati_dataset::eval::Example;
use coati_detection::Detections;
use coati_evaluation::coco::Evaluator;
use coati_evaluation::floor::{self, Floor};
use coati_evaluation::review::{self, Review};
use coati_evaluation::{
    self as evaluation, Category, Evaluation, ImageDetections, ImageGroundtruth, Metric, Sample, plot, report,
};

use super::{Error, Options, metric_options, names};
use crate::gallery::{Gallery, Shown};
use crate::input::{self, Input};

/// Width of a report's pictures in pixels.
const THUMBNAIL: u32 = 1000;

/// Takes detections image by image.
pub(super) struct Scores<'a> {
    input: &'a Input,
    options: &'a Options,
    categories: Vec<Category>,
    /// `image_classes_field_map_empty_to_ones`: an image that names no verified class has all of them verified.
    empty_means_all: bool,
    metrics: Evaluation,
    collected: Option<Evaluator>,
    gallery: Gallery<'a>,
    review: Review,
    /// For the constant box.
    sized: Vec<(String, [f32; 2], ImageGroundtruth)>,
    ids: HashSet<String>,
    /// Records with another one's id.
    shared: Vec<String>,
}

/// All of it.
pub(super) struct Scored {
    pub figures: Vec<Metric>,
    pub floor: Option<Floor>,
    pub review: Review,
    pub notes: Vec<String>,
    pub shown: Vec<Shown>,
    pub pictures: Vec<PathBuf>,
}

impl<'a> Scores<'a> {
    /// Nothing yet.
    pub(super) fn new(config: &'a PipelineConfig, input: &'a Input, options: &'a Options) -> Result<Self, Error> {
        let settings = config.eval_config();
        let categories = input::categories(&input.labels);
        let metrics = Evaluation::new(&names(settings), &categories, &metric_options(settings))?;
        let export = settings
            .visualization_export_dir
            .as_deref()
            .filter(|folder| !folder.is_empty());
        let gallery = Gallery::new(
            options.pictures_dir.as_deref(),
            export.map(PathBuf::from),
            settings,
            categories.clone(),
        );
        let review = Review::new(
            categories.clone(),
            review::Options {
                score_threshold: settings.min_score_threshold().into(),
                worst_images: options.worst_images,
            },
        );
        let collected = options.detections_path.as_ref();
        Ok(Self {
            input,
            options,
            collected: collected.map(|_| Evaluator::new(categories.clone())),
            categories,
            empty_means_all: settings.image_classes_field_map_empty_to_ones(),
            metrics,
            gallery,
            review,
            sized: Vec::new(),
            ids: HashSet::new(),
            shared: Vec::new(),
        })
    }

    /// Adds an image.
    pub(super) fn add(&mut self, example: &Example, found: &Detections) -> Result<(), Error> {
        let place = || self.input.source.location(example.record);
        let id = unique(&mut self.ids, example);
        if id != example.source_id && !example.source_id.is_empty() {
            self.shared.push(place().to_string());
        }
        let (groundtruth, found_px) = (groundtruth(example), absolute(example, found));
        let verified = verified(&example.image_classes, &self.categories, self.empty_means_all);
        let sample = sample(&id, example, &groundtruth, &found_px, verified);
        let added = self.metrics.add(&sample);
        added.map_err(|source| Error::Record { place: place(), source })?;
        if let Some(collected) = &mut self.collected {
            collected.add_groundtruth(&id, &groundtruth)?;
            collected.add_detections(&id, &found_px)?;
        }
        self.gallery.add(example, found)?;
        let name = if example.filename.is_empty() {
            &id
        } else {
            &example.filename
        };
        let gallery = &self.gallery;
        self.review
            .add(&sample, name, &mut || thumbnail(gallery, example, found));
        if self.options.constant_box {
            let size = [example.image.height as f32, example.image.width as f32];
            self.sized.push((id, size, groundtruth));
        }
        Ok(())
    }

    /// The figures over all images, and the plots.
    pub(super) fn finish(self) -> Result<Scored, Error> {
        if let (Some(path), Some(collected)) = (&self.options.detections_path, &self.collected) {
            collected.write_files(path)?;
        }
        let (mut shown, pictures) = self.gallery.finish();
        let (metrics, review) = (&self.metrics, &self.review);
        let (figures, plotted) = thread::scope(|scope| {
            let plotting = (!shown.is_empty()).then(|| scope.spawn(move || plots(review)));
            let figures = metrics.evaluate();
            let joined =
                plotting.map(|plotting| plotting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (figures, joined)
        });
        let figures = figures?;
        shown.extend(plotted.transpose()?.into_iter().flatten());
        let floor = self
            .options
            .constant_box
            .then(|| floor::best_constant_box(&self.categories, &self.sized))
            .transpose()?;
        let mut notes = self.metrics.notes();
        if let Some(first) = self.shared.first() {
            notes.push(format!(
                "{} images have the id (image/source_id) of another one, the first is {first}; they are told apart by their records' numbers",
                self.shared.len()
            ));
        }
        Ok(Scored {
            figures,
            floor,
            review: self.review,
            notes,
            shown,
            pictures,
        })
    }
}

/// The classes of which it is known whether they are in the image.
fn verified(stored: &[i64], categories: &[Category], empty_means_all: bool) -> Vec<u32> {
    let known = categories.iter().map(|category| category.id);
    if stored.is_empty() && empty_means_all {
        return known.collect();
    }
    known.filter(|&id| stored.contains(&i64::from(id))).collect()
}

/// For the report. A picture that cannot be made is left out there.
fn thumbnail(gallery: &Gallery, example: &Example, found: &Detections) -> Vec<u8> {
    gallery
        .picture(example, found)
        .and_then(|picture| report::thumbnail(&picture, THUMBNAIL).ok())
        .unwrap_or_default()
}

/// What TensorBoard shows beside the images.
fn plots(review: &Review) -> Result<[Shown; 2], Error> {
    let curves = review.curves();
    let names: Vec<String> = curves.iter().map(|curve| curve.class.clone()).collect();
    let failed = |error: image::ImageError| Error::Picture {
        path: PathBuf::new(),
        message: error.to_string(),
    };
    Ok([
        Shown::new("PrecisionRecall", &plot::precision_recall(&curves)).map_err(failed)?,
        Shown::new("ConfusionMatrix", &plot::confusion(&names, review.confusion())).map_err(failed)?,
    ])
}

/// One image with the flags that metrics other than COCO's ask for.
fn sample(
    id: &str,
    example: &Example,
    groundtruth: &ImageGroundtruth,
    found: &ImageDetections,
    image_classes: Vec<u32>,
) -> Sample {
    Sample {
        image: id.to_owned(),
        size: Some([example.image.height as f64, example.image.width as f64]),
        groundtruth: evaluation::Groundtruth {
            difficult: example.groundtruth.difficult.clone(),
            group_of: example.groundtruth.group_of.clone(),
            image_classes: Some(image_classes),
            ..groundtruth.into()
        },
        detections: found.into(),
    }
}

/// The image's id: `image/source_id`, told apart by the record's number where it is missing or not unique.
fn unique(names: &mut HashSet<String>, example: &Example) -> String {
    let id = if example.source_id.is_empty() || names.contains(&example.source_id) {
        format!("{}#{}", example.source_id, example.record)
    } else {
        example.source_id.clone()
    };
    names.insert(id.clone());
    id
}

fn groundtruth(example: &Example) -> ImageGroundtruth {
    ImageGroundtruth {
        boxes_px: example.boxes_px.clone(),
        classes: example
            .groundtruth
            .classes
            .iter()
            .map(|class| (class + 1) as u32)
            .collect(),
        is_crowd: example.groundtruth.is_crowd.clone(),
        area: areas(&example.boxes_px, &example.groundtruth.area),
    }
}

/// The objects' areas that records give (`image/object/area`: of a mask, as a rule), by which COCO tells small objects from large ones.
/// 0 stands for the box's own, which is computed where it is compared: rounding must not move an object of 32 x 32 pixels.
fn areas(boxes_px: &[[f32; 4]], stored: &[f32]) -> Vec<f32> {
    let of_box = |corners: &[f32; 4]| (corners[2] - corners[0]) * (corners[3] - corners[1]);
    let pairs = boxes_px.iter().map(of_box).zip(stored);
    pairs
        .map(|(own, &area)| if (area - own).abs() <= own * 1e-3 { 0.0 } else { area })
        .collect()
}

fn absolute(example: &Example, found: &Detections) -> ImageDetections {
    let (height, width) = (example.image.height as f32, example.image.width as f32);
    ImageDetections {
        boxes_px: found
            .boxes
            .iter()
            .map(|b| [b[0] * height, b[1] * width, b[2] * height, b[3] * width])
            .collect(),
        scores: found.scores.clone(),
        classes: found.classes.iter().map(|class| (class + 1) as u32).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_nobody_verified_are_as_the_configuration_says() {
        let categories = [1, 2, 5].map(|id| Category {
            id,
            name: String::new(),
        });
        assert_eq!(verified(&[5, 9], &categories, true), [5]);
        assert_eq!(verified(&[], &categories, true), [1, 2, 5]);
        assert!(verified(&[], &categories, false).is_empty());
    }

    #[test]
    fn areas_are_those_of_the_record_unless_they_are_the_boxs() {
        let boxes = [[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 32.0, 32.0], [5.0, 5.0, 5.0, 9.0]];
        assert_eq!(areas(&boxes, &[1024.0001, 700.0, 0.0]), [0.0, 700.0, 0.0]);
        assert!(areas(&boxes, &[]).is_empty());
    }
}
