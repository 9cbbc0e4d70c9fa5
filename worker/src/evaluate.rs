//! Evaluation of variables on the evaluation set: detections, the metrics of `metrics_set`, pictures.

mod scores;

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use coati_common::config::PipelineConfig;
use coati_common::config::supported::METRICS;
use coati_dataset::eval::{Example, Examples};
use coati_detection::Detections;
use coati_detection::model::{Ssd, StepLosses};
use coati_evaluation::floor::Floor;
use coati_evaluation::review::Review;
use coati_evaluation::{self as evaluation, coco};
use coati_proto::object_detection::protos::EvalConfig;

use crate::input::{self, Input};
use crate::model;
use crate::observe::EvalReport;
use crate::stop::StopFlag;
use scores::{Scored, Scores};

/// Images that go through the network together, where all have one size.
const BATCH: usize = 8;
/// Those that go first: nothing else is to be done while they are read.
const FIRST_BATCH: usize = 2;
/// Batches that wait for being scored.
const WAITING: usize = 2;

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
    /// None of the records could be used.
    #[error(
        "{files}: no image could be evaluated{first}\nhint: `coati data validate` says what is wrong with the records"
    )]
    Nothing {
        /// The set.
        files: String,
        /// What was wrong with the first record.
        first: String,
    },
    /// Somebody asked to stop.
    #[error("stopped on request")]
    Stopped,
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
    /// Ends it before its time.
    pub stop: StopFlag,
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
///
/// Three stages go on at the same time: reading and decoding, the network (in this thread), and scoring (metrics, pictures).
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
    let reading = input::eval_options(config, input, model)?;
    let many_sizes = reading.fit.many_sizes();
    let examples = Examples::new(input.source.clone(), reading);
    let total = examples.total();
    // Unless it is set, all are, as in the reference, whose own default means nothing any more; so are 0 and more than there are.
    let wanted = match settings.num_examples.map_or(0, u64::from) {
        0 => total,
        n => n.min(total),
    };
    let mut scores = Scores::new(config, input, options)?;
    let mut model_seconds = 0.0;
    let mut losses = Losses::default();
    let sizes = if many_sizes { [1; 2] } else { [FIRST_BATCH, BATCH] };
    let (batches, bad) = ahead(examples, wanted, sizes);
    let mut done = 0;
    let scored = thread::scope(|scope| -> Result<Scores<'_>, Error> {
        let (send, found) = mpsc::sync_channel::<(Vec<Example>, Vec<Detections>)>(WAITING);
        let scoring = scope.spawn(move || -> Result<Scores<'_>, Error> {
            for (batch, detections) in found {
                for (example, found) in batch.iter().zip(&detections) {
                    scores.add(example, found)?;
                }
            }
            Ok(scores)
        });
        let mut stopped = None;
        for batch in &batches {
            let batch = match batch {
                _ if options.stop.raised() => Err(Error::Stopped),
                batch => batch,
            };
            let found = batch.and_then(
                |Batch {
                     examples,
                     size,
                     images,
                     parts,
                 }| {
                    let objects: Vec<coati_detection::Groundtruth> = examples.iter().map(objects).collect();
                    let started = Instant::now();
                    let found = model
                        .set_input_size(size)
                        .and_then(|()| model.evaluate_within(variables, &images, &objects, &parts));
                    model_seconds += started.elapsed().as_secs_f64();
                    let (detections, found) = found.map_err(|error| refused(&error, &examples, input))?;
                    losses.add(&found);
                    Ok((examples, detections))
                },
            );
            match found {
                Ok(found) => {
                    done += found.0.len() as u64;
                    // Where scoring has failed it says why below.
                    if send.send(found).is_err() {
                        break;
                    }
                }
                Err(error) => {
                    stopped = Some(error);
                    break;
                }
            }
            progress(done, wanted);
        }
        drop(send);
        let scored = scoring.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        stopped.map_or(scored, Err)
    })?;
    if done == 0 {
        let files: Vec<String> = input.source.files().map(|path| path.display().to_string()).collect();
        let first = bad.recv().unwrap_or_default().into_iter().next();
        return Err(Error::Nothing {
            files: files.join(", "),
            first: first.map_or_else(String::new, |first| format!("; {first}")),
        });
    }
    let Scored {
        figures,
        floor,
        review,
        mut notes,
        shown,
        pictures,
    } = scored.finish()?;
    // NaN, which JSON does not have, is null: a class without groundtruth has no AP.
    let mut named: serde_json::Map<String, serde_json::Value> =
        figures.into_iter().map(|(name, value)| (name, value.into())).collect();
    losses.report(done, &mut named);
    if settings.num_examples.is_some_and(|wanted| u64::from(wanted) > total) {
        notes.push(format!(
            "eval_config.num_examples is {}, but the set has {total} images; all of them are evaluated",
            settings.num_examples()
        ));
    }
    let report = EvalReport {
        global_step,
        images: done,
        metrics: named,
        seconds: begun.elapsed().as_secs_f64(),
        model_seconds,
        bad_records: bad.recv().unwrap_or_default(),
        notes,
        pictures,
        shown,
    };
    Ok(Outcome { report, floor, review })
}

/// What `metrics_set` asks for and this model can give: masks are for models that predict them, and checking the configuration has warned.
pub(crate) fn names(settings: &EvalConfig) -> Vec<&str> {
    let names = settings.metrics_set.iter().map(String::as_str);
    names.filter(|name| METRICS.contains(name)).collect()
}

pub(crate) fn metric_options(settings: &EvalConfig) -> evaluation::Options {
    evaluation::Options {
        include_metrics_per_category: settings.include_metrics_per_category(),
        all_metrics_per_category: settings.all_metrics_per_category(),
        skip_predictions_for_unlabeled_class: settings.skip_predictions_for_unlabeled_class(),
        recall_bounds: [
            f64::from(settings.recall_lower_bound()),
            f64::from(settings.recall_upper_bound()),
        ],
        ..evaluation::Options::default()
    }
}

/// The parts of [`Losses`], by the reference's names.
pub(crate) const LOSSES: [&str; 4] = ["localization", "classification", "regularization", "total"];

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
        for (name, sum) in LOSSES.into_iter().zip(self.sums) {
            named.insert(format!("Loss/{name}_loss"), (sum / images.max(1) as f64).into());
        }
    }
}

/// Images that go through the network together.
struct Batch {
    /// Their inputs are in `images`.
    examples: Vec<Example>,
    /// (height, width) of each input.
    size: (usize, usize),
    /// `[N, height, width, channels]`
    images: Vec<f32>,
    /// Which part of each is picture and not padding.
    parts: Vec<[f32; 2]>,
}

impl Batch {
    fn new(mut examples: Vec<Example>) -> Self {
        let mut images = Vec::with_capacity(examples.iter().map(|example| example.input.input.len()).sum());
        for example in &mut examples {
            images.extend_from_slice(&std::mem::take(&mut example.input.input));
        }
        let parts = examples.iter().map(|example| example.input.part).collect();
        let size = examples
            .first()
            .map_or((0, 0), |first| (first.input.height, first.input.width));
        Self {
            examples,
            size,
            images,
            parts,
        }
    }
}

type Batches = mpsc::Receiver<Result<Batch, Error>>;

/// What the model refused; for the size of an image, which one that is.
fn refused(error: &coati_detection::model::Error, examples: &[Example], input: &Input) -> Error {
    Error::Model(match examples {
        [one] if error.is_of_size() => format!("{}: {error}", input.source.location(one.record)),
        _ => error.to_string(),
    })
}

/// Reads and decodes on a thread of its own while the network is busy: so many images for the first batch, so many for each other one.
fn ahead(mut examples: Examples, wanted: u64, [first, others]: [usize; 2]) -> (Batches, mpsc::Receiver<Vec<String>>) {
    let (send, batches) = mpsc::sync_channel(2);
    let (tell, bad) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut left, mut size) = (wanted as usize, first);
        loop {
            let batch: Result<Vec<Example>, _> = examples.by_ref().take(size.min(left)).collect();
            size = others;
            let end = batch.as_ref().map_or(true, Vec::is_empty);
            left -= batch.as_ref().map_or(0, Vec::len);
            if batch.as_ref().is_ok_and(Vec::is_empty)
                || send.send(batch.map(Batch::new).map_err(Error::from)).is_err()
                || end
            {
                break;
            }
        }
        // Nobody listens any more when evaluation failed: fine.
        let _ = tell.send(examples.bad_records());
    });
    (batches, bad)
}

/// What the losses are computed against: objects in the model's input, padding and all.
fn objects(example: &Example) -> coati_detection::Groundtruth {
    let [height, width] = example.input.part;
    let mut objects = example.groundtruth.clone();
    objects.stretch([1.0 / height, 1.0 / width]);
    model::groundtruth(&example.source_id, &objects)
}
