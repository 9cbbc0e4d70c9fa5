//! Evaluation of variables on the evaluation set: detections, the metrics of `metrics_set`, pictures.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;

use coati_common::config::PipelineConfig;
use coati_common::config::supported::METRICS;
use coati_dataset::eval::{Example, Examples};
use coati_detection::Detections;
use coati_detection::model::{Ssd, StepLosses};
use coati_evaluation::coco::{self, Evaluator};
use coati_evaluation::floor::{self, Floor};
use coati_evaluation::review::{self, Review};
use coati_evaluation::{self as evaluation, Evaluation, ImageDetections, ImageGroundtruth, Sample, plot, report};
use coati_proto::object_detection::protos::EvalConfig;

use crate::gallery::{Gallery, Shown};
use crate::input::{self, Input};
use crate::model;
use crate::observe::EvalReport;

/// Images that go through the network together.
const BATCH: usize = 8;
/// Width of a report's pictures in pixels.
const THUMBNAIL: u32 = 1000;

/// What evaluation can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Detections and groundtruth do not go together.
    #[error(transparent)]
    Metrics(#[from] coco::Error),
    /// A record's detections or groundtruth cannot be evaluated.
    #[error("{place}: {source}")]
    Record {
        /// Which record of which file.
        place: coati_dataset::shards::Location,
        /// What is wrong.
        source: evaluation::Error,
    },
    /// Too many records cannot be used.
    #[error(transparent)]
    Input(#[from] coati_dataset::bad::TooMany),
    /// The configuration's input cannot be.
    #[error(transparent)]
    Options(#[from] input::Error),
    /// The model refused.
    #[error("{0}")]
    Model(String),
    /// A picture could not be written.
    #[error("cannot write picture {path}: {message}")]
    Picture {
        /// Which file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// What to do besides the metrics.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Write pictures of the first `num_visualizations` images here.
    pub pictures_dir: Option<PathBuf>,
    /// Also find the best constant box.
    pub constant_box: bool,
    /// Write the detections here and the groundtruth beside them, as COCO's tools read them.
    pub detections_path: Option<PathBuf>,
    /// Keep pictures of so many of the worst images for the report.
    pub worst_images: usize,
}

/// Metrics and, if asked for, the floor.
#[derive(Debug)]
pub struct Outcome {
    /// As reported.
    pub report: EvalReport,
    /// The best constant box.
    pub floor: Option<Floor>,
    /// Curves, confusion and, if asked for, the worst images.
    pub review: Review,
}

/// Evaluates `variables` (flat vector) of step `global_step`. `progress` hears of done and total images.
pub fn evaluate(
    model: &mut Ssd,
    variables: &[f32],
    global_step: u64,
    config: &PipelineConfig,
    input: &Input,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Outcome, Error> {
    let begun = Instant::now();
    let settings = config.eval_config();
    let categories = input::categories(&input.labels);
    let mut metrics = Evaluation::new(&names(settings), &categories, &metric_options(settings))?;
    let mut collected = options
        .detections_path
        .as_ref()
        .map(|_| Evaluator::new(categories.clone()));
    let examples = Examples::new(
        input.source.clone(),
        input::eval_options(config, input, model.input_size(), model.image_channels())?,
    );
    let total = examples.total();
    // As in the reference, 0 means all; more than there are is all, too.
    let wanted = match u64::from(settings.num_examples()) {
        0 => total,
        n => n.min(total),
    };
    let export = settings
        .visualization_export_dir
        .as_deref()
        .filter(|folder| !folder.is_empty());
    let mut gallery = Gallery::new(
        options.pictures_dir.as_deref(),
        export.map(PathBuf::from),
        settings,
        &categories,
    );
    let mut review = Review::new(
        categories.clone(),
        review::Options {
            score_threshold: settings.min_score_threshold().into(),
            worst_images: options.worst_images,
        },
    );
    let mut sized = Vec::new();
    let (mut model_seconds, mut done) = (0.0, 0);
    let mut losses = Losses::default();
    let (mut ids, mut shared) = (HashSet::new(), Vec::new());

    let (batches, bad) = ahead(examples, wanted);
    for batch in &batches {
        let batch = batch?;
        let images: Vec<f32> = batch
            .iter()
            .flat_map(|example| example.input.input.iter().copied())
            .collect();
        let parts: Vec<[f32; 2]> = batch.iter().map(|example| example.input.part).collect();
        let started = Instant::now();
        let objects: Vec<coati_detection::Groundtruth> = batch.iter().map(objects).collect();
        let (detections, found) = model
            .evaluate_within(variables, &images, &objects, &parts)
            .map_err(|error| Error::Model(error.to_string()))?;
        losses.add(&found);
        model_seconds += started.elapsed().as_secs_f64();
        for (example, found) in batch.iter().zip(&detections) {
            let id = unique(&mut ids, example);
            if id != example.source_id && !example.source_id.is_empty() {
                shared.push(input.source.location(example.record).to_string());
            }
            let (groundtruth, found_px) = (groundtruth(example), absolute(example, found));
            let sample = sample(&id, example, &groundtruth, &found_px);
            metrics.add(&sample).map_err(|source| Error::Record {
                place: input.source.location(example.record),
                source,
            })?;
            if let Some(collected) = &mut collected {
                collected.add_groundtruth(&id, &groundtruth)?;
                collected.add_detections(&id, &found_px)?;
            }
            gallery.add(example, found)?;
            let name = if example.filename.is_empty() {
                &id
            } else {
                &example.filename
            };
            review.add(&sample, name, &mut || thumbnail(&gallery, example, found));
            if options.constant_box {
                sized.push((
                    id,
                    [example.image.height as f32, example.image.width as f32],
                    groundtruth,
                ));
            }
            done += 1;
        }
        progress(done, wanted);
    }
    if let (Some(path), Some(collected)) = (&options.detections_path, &collected) {
        collected.write_files(path)?;
    }
    let figures = metrics.evaluate()?;
    let floor = options
        .constant_box
        .then(|| floor::best_constant_box(&categories, &sized))
        .transpose()?;
    // NaN, which JSON does not have, is null: a class without groundtruth has no AP.
    let mut named: serde_json::Map<String, serde_json::Value> =
        figures.into_iter().map(|(name, value)| (name, value.into())).collect();
    losses.report(done, &mut named);
    let bad_records = bad.recv().unwrap_or_default();
    let mut notes = metrics.notes();
    if let Some(first) = shared.first() {
        notes.push(format!(
            "{} images have the id (image/source_id) of another one, the first is {first}; they are told apart by their records' numbers",
            shared.len()
        ));
    }
    if u64::from(settings.num_examples()) > total {
        notes.push(format!(
            "eval_config.num_examples is {}, but the set has {total} images; all of them are evaluated",
            settings.num_examples()
        ));
    }
    let (mut shown, pictures) = gallery.finish();
    if !shown.is_empty() {
        shown.extend(plots(&review)?);
    }
    let report = EvalReport {
        global_step,
        images: done,
        metrics: named,
        seconds: begun.elapsed().as_secs_f64(),
        model_seconds,
        bad_records,
        notes,
        pictures,
        shown,
    };
    Ok(Outcome { report, floor, review })
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

/// What `metrics_set` asks for and this model can give: masks are for models that predict them, and checking the configuration has warned.
fn names(settings: &EvalConfig) -> Vec<&str> {
    let names = settings.metrics_set.iter().map(String::as_str);
    names.filter(|name| METRICS.contains(name)).collect()
}

fn metric_options(settings: &EvalConfig) -> evaluation::Options {
    evaluation::Options {
        include_metrics_per_category: settings.include_metrics_per_category(),
        all_metrics_per_category: settings.all_metrics_per_category(),
        recall_bounds: [
            f64::from(settings.recall_lower_bound()),
            f64::from(settings.recall_upper_bound()),
        ],
        ..evaluation::Options::default()
    }
}

/// One image with the flags that metrics other than COCO's ask for.
fn sample(id: &str, example: &Example, groundtruth: &ImageGroundtruth, found: &ImageDetections) -> Sample {
    Sample {
        image: id.to_owned(),
        size: Some([example.image.height as f64, example.image.width as f64]),
        groundtruth: evaluation::Groundtruth {
            difficult: example.groundtruth.difficult.clone(),
            group_of: example.groundtruth.group_of.clone(),
            ..groundtruth.into()
        },
        detections: found.into(),
    }
}

/// Sums of the losses of single images; the reference reports their means beside the metrics.
#[derive(Default)]
struct Losses {
    sums: [f64; 4],
}

impl Losses {
    fn add(&mut self, found: &[StepLosses]) {
        for one in found {
            let parts = [one.localization, one.classification, one.regularization, one.total];
            for (sum, part) in self.sums.iter_mut().zip(parts) {
                *sum += f64::from(part);
            }
        }
    }

    fn report(&self, images: u64, named: &mut serde_json::Map<String, serde_json::Value>) {
        let names = ["localization", "classification", "regularization", "total"];
        for (name, sum) in names.into_iter().zip(self.sums) {
            named.insert(format!("Loss/{name}_loss"), (sum / images.max(1) as f64).into());
        }
    }
}

type Batches = mpsc::Receiver<Result<Vec<Example>, Error>>;

/// Reads and decodes on a thread of its own while the network is busy.
fn ahead(mut examples: Examples, wanted: u64) -> (Batches, mpsc::Receiver<Vec<String>>) {
    let (send, batches) = mpsc::sync_channel(2);
    let (tell, bad) = mpsc::channel();
    std::thread::spawn(move || {
        let mut left = wanted as usize;
        loop {
            let batch: Result<Vec<Example>, _> = examples.by_ref().take(BATCH.min(left)).collect();
            let end = batch.as_ref().map_or(true, Vec::is_empty);
            left -= batch.as_ref().map_or(0, Vec::len);
            if batch.as_ref().is_ok_and(Vec::is_empty) || send.send(batch.map_err(Error::from)).is_err() || end {
                break;
            }
        }
        // Nobody listens any more when evaluation failed: fine.
        let _ = tell.send(examples.bad_records());
    });
    (batches, bad)
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

/// What the losses are computed against: objects in the model's input, padding and all.
fn objects(example: &Example) -> coati_detection::Groundtruth {
    let [height, width] = example.input.part;
    let mut objects = example.groundtruth.clone();
    objects.stretch([1.0 / height, 1.0 / width]);
    model::groundtruth(&example.source_id, &objects)
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
        area: Vec::new(),
    }
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
