//! From the configuration's input readers to data sets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coati_common::config::PipelineConfig;
use coati_common::label_map::LabelMap;
use coati_dataset::example::{self, Classes, MaskType, Prefer};
use coati_dataset::order::Selection;
use coati_dataset::resize::{ImageResizer, Limits};
use coati_dataset::shards::Source;
use coati_dataset::{augment, batch, eval, fit};
use coati_detection::model::Ssd;
use coati_evaluation::Category;
use coati_proto::object_detection::protos::{InputReader, InstanceMaskType, input_reader};

/// Why there is no input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reader has no paths.
    #[error("{file}: {reader} names no input\nhint: add tf_record_input_reader {{ input_path: \"…\" }}")]
    NoPath {
        /// The configuration.
        file: String,
        /// Which reader.
        reader: &'static str,
    },
    /// The label map is missing or wrong.
    #[error(transparent)]
    LabelMap(#[from] coati_common::label_map::Error),
    /// The reader names no label map.
    #[error("{file}: {reader} has no label_map_path\nhint: add label_map_path: \"label_map.pbtxt\"")]
    NoLabelMap {
        /// The configuration.
        file: String,
        /// Which reader.
        reader: &'static str,
    },
    /// The label map does not fit the model.
    #[error("{0}")]
    Classes(String),
    /// The records cannot be opened.
    #[error(transparent)]
    Source(#[from] coati_dataset::shards::Error),
    /// The resizer cannot be used.
    #[error("{file}: model.ssd.{problem}")]
    Resizer {
        /// The configuration.
        file: String,
        /// What is wrong.
        problem: coati_dataset::resize::ConfigError,
    },
    /// Weights that fit no data sets.
    #[error(
        "{file}: train_input_reader.sample_from_datasets_weights: {problem}\nhint: give one weight for each input_path, in their order"
    )]
    Weights {
        /// The configuration.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The images have other channels than the network.
    #[error("{file}: {after}, images have {found} channels; the network takes {expected}\nhint: {hint}")]
    Channels {
        /// The configuration.
        file: String,
        /// What made them.
        after: &'static str,
        /// How many there are.
        found: usize,
        /// Of the network ([`image_channels`]).
        expected: usize,
        /// What would be right.
        hint: &'static str,
    },
    /// An augmentation cannot be used.
    #[error(transparent)]
    Augmentation(#[from] augment::Error),
}

/// Which input of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `train_input_reader`
    Train,
    /// `eval_input_reader`
    Eval,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train_input_reader",
            Self::Eval => "eval_input_reader",
        }
    }

    fn reader(self, config: &PipelineConfig) -> &InputReader {
        match self {
            Self::Train => config.train_input_reader(),
            Self::Eval => config.eval_input_reader(),
        }
    }
}

/// Records and the classes in them.
#[derive(Clone, Debug)]
pub struct Input {
    /// The records.
    pub source: Arc<Source>,
    /// Their classes.
    pub labels: LabelMap,
}

/// Where a job keeps the indexes of its records: they are made once for all its processes and starts.
pub fn index_folder(model_dir: &Path) -> PathBuf {
    model_dir.join("index")
}

impl Input {
    /// Keeps where the records lie in the job's folder. Only once the job's files are known to be good: one that is refused
    /// leaves no folder behind.
    pub fn keep_index(&self, model_dir: &Path) {
        self.source.keep(&index_folder(model_dir));
    }
}

/// Opens a reader's records and its label map, and checks that the map fits the model.
pub fn open(config: &PipelineConfig, which: Which) -> Result<Input, Error> {
    open_either(config, which, None)
}

/// As [`open`], for a job: its folder may know where the records lie ([`Input::keep_index`]).
pub fn open_for_job(config: &PipelineConfig, which: Which, model_dir: &Path) -> Result<Input, Error> {
    open_either(config, which, Some(&index_folder(model_dir)))
}

fn open_either(config: &PipelineConfig, which: Which, index: Option<&Path>) -> Result<Input, Error> {
    let reader = which.reader(config);
    let file = || config.name().to_owned();
    let paths = paths(config, reader);
    if paths.is_empty() {
        return Err(Error::NoPath {
            file: file(),
            reader: which.name(),
        });
    }
    let map = reader.label_map_path.as_deref().filter(|path| !path.is_empty());
    let map = map.ok_or_else(|| Error::NoLabelMap {
        file: file(),
        reader: which.name(),
    })?;
    let labels = LabelMap::load(&config.resolve_path(map))?;
    let unused = || {
        (which == Which::Train)
            .then(|| unused_classes(config, &labels))
            .flatten()
    };
    if let Some(problem) = label_map_problem(config, &labels).or_else(unused) {
        return Err(Error::Classes(problem));
    }
    let source = match index {
        Some(folder) => Source::open_kept(&paths, folder)?,
        None => Source::open(&paths)?,
    };
    Ok(Input {
        source: Arc::new(source),
        labels,
    })
}

fn paths(config: &PipelineConfig, reader: &InputReader) -> Vec<String> {
    let Some(input_reader::InputReader::TfRecordInputReader(records)) = &reader.input_reader else {
        return Vec::new();
    };
    records
        .input_path
        .iter()
        .map(|path| config.resolve_path(path).display().to_string())
        .collect()
}

/// What `coati check` says of a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Number of records.
    pub records: u64,
    /// Number of files.
    pub files: usize,
}

/// Opens a reader's records and counts them.
pub fn describe(config: &PipelineConfig, which: Which) -> Result<Found, Error> {
    let input = open(config, which)?;
    Ok(Found {
        records: input.source.record_count(),
        files: input.source.files().len(),
    })
}

/// Ids beyond the model's classes would be trained into nothing.
pub fn label_map_problem(config: &PipelineConfig, labels: &LabelMap) -> Option<String> {
    let classes = u32::try_from(config.ssd()?.num_classes()).unwrap_or(0);
    let largest = labels.max_id();
    (largest > classes).then(|| {
        format!(
            "{}: model.ssd.num_classes is {classes}, but the label map has id {largest}\nhint: set num_classes: {largest}",
            config.name()
        )
    })
}

/// A head with more classes than the label map was made for another data set. Evaluation may look at some classes only; training
/// would spend itself on classes that never come.
pub fn unused_classes(config: &PipelineConfig, labels: &LabelMap) -> Option<String> {
    let classes = u32::try_from(config.ssd()?.num_classes()).unwrap_or(0);
    let largest = labels.max_id();
    (largest < classes).then(|| {
        format!(
            "{}: model.ssd.num_classes is {classes}, but the label map's largest id is {largest}: classes {} to {classes} would never be trained\nhint: set num_classes: {largest}, or use the label map that belongs to this configuration",
            config.name(),
            largest + 1
        )
    })
}

/// The classes as evaluation wants them.
pub fn categories(labels: &LabelMap) -> Vec<Category> {
    let shown = |item: &coati_common::label_map::Item| {
        if item.display_name.is_empty() {
            item.name.clone()
        } else {
            item.display_name.clone()
        }
    };
    labels
        .items
        .iter()
        .map(|item| Category {
            id: item.id,
            name: shown(item),
        })
        .collect()
}

/// How training batches for `model` are made.
pub fn train_options(
    config: &PipelineConfig,
    input: &Input,
    model: &Ssd,
    seed: u64,
    threads: usize,
) -> Result<batch::Options, Error> {
    let reader = config.train_input_reader();
    let extras = extras(reader);
    let steps = &config.train_config().data_augmentation_options;
    let (height, width) = model.input_size();
    let options = batch::Options {
        height,
        width,
        resizer: resizer(config)?,
        limits: Limits::new(model.sides()),
        augmentations: augment::from_config(steps, 3 + extras.additional_channels)?,
        example: example_options(reader, input),
        extras,
        seed,
        shuffle: reader.shuffle(),
        selection: selection(config, input, reader)?,
        max_number_of_boxes: max_number_of_boxes(config, reader),
        threads,
        prefetch: PREFETCH,
        ..batch::Options::default()
    };
    let expected = image_channels(config);
    if options.channels() != expected {
        return Err(Error::Channels {
            file: config.name().to_owned(),
            after: "after train_config.data_augmentation_options and image_resizer",
            found: options.channels(),
            expected,
            hint: "write random_rgb_to_gray { probability: 1.0 } for grey images of three channels, or convert_to_grayscale: true in image_resizer for a network of one",
        });
    }
    Ok(options)
}

/// Channels of the network's images: red, green, blue and as many more as `num_additional_channels` says, or one with
/// `image_resizer`'s `convert_to_grayscale`.
pub fn image_channels(config: &PipelineConfig) -> usize {
    let resizer = config.ssd().and_then(|ssd| ssd.image_resizer.as_ref());
    let grayscale = resizer
        .and_then(|resizer| ImageResizer::from_config(resizer).ok())
        .is_some_and(|resizer| resizer.grayscale());
    // A configuration for evaluation alone need not have a training reader.
    let readers = [config.train_input_reader(), config.eval_input_reader()];
    let additional = readers.iter().find_map(|reader| reader.num_additional_channels);
    if grayscale {
        1
    } else {
        3 + usize::try_from(additional.unwrap_or(0)).unwrap_or(0)
    }
}

/// How images for `model` are made for evaluation and inference.
pub fn fit_options(config: &PipelineConfig, model: &Ssd) -> Result<fit::Options, Error> {
    let (height, width) = model.input_size();
    Ok(fit::Options {
        height,
        width,
        resizer: resizer(config)?,
        limits: Limits::new(model.sides()),
        // What is grey has no further channels.
        additional_channels: image_channels(config).saturating_sub(3),
    })
}

/// The configuration's resizer where it is not the one that batches are made with anyway.
fn resizer(config: &PipelineConfig) -> Result<Option<ImageResizer>, Error> {
    let Some(resizer) = config.ssd().and_then(|ssd| ssd.image_resizer.as_ref()) else {
        return Ok(None);
    };
    let resizer = ImageResizer::from_config(resizer).map_err(|problem| Error::Resizer {
        file: config.name().to_owned(),
        problem,
    })?;
    let stock = resizer.size().map(|(height, width)| ImageResizer::fixed(height, width));
    Ok((stock.as_ref() != Some(&resizer)).then_some(resizer))
}

/// What is read beyond boxes.
fn extras(reader: &InputReader) -> example::Extras {
    let masks = reader.load_instance_masks().then(|| match reader.mask_type() {
        InstanceMaskType::PngMasks => MaskType::Png,
        InstanceMaskType::Default | InstanceMaskType::NumericalMasks => MaskType::Numerical,
    });
    example::Extras {
        masks,
        multiclass_scores: reader.load_multiclass_scores(),
        num_keypoints: reader.num_keypoints() as usize,
        additional_channels: usize::try_from(reader.num_additional_channels()).unwrap_or(0),
    }
}

/// The reader's, which the reference uses; else the training's, which its predecessor used.
fn max_number_of_boxes(config: &PipelineConfig, reader: &InputReader) -> usize {
    let most = reader
        .max_number_of_boxes
        .unwrap_or_else(|| config.train_config().max_number_of_boxes());
    usize::try_from(most).unwrap_or(100)
}

/// Which records are used, and how often.
fn selection(config: &PipelineConfig, input: &Input, reader: &InputReader) -> Result<Selection, Error> {
    let one_of = u64::from(reader.sample_1_of_n_examples());
    let weights = &reader.sample_from_datasets_weights;
    if weights.is_empty() {
        return Ok(Selection {
            one_of,
            weights: Vec::new(),
        });
    }
    let wrong = |problem: String| Error::Weights {
        file: config.name().to_owned(),
        problem,
    };
    let paths = paths(config, reader);
    if paths.len() != weights.len() {
        return Err(wrong(format!(
            "{} weights for {} input_path entries",
            weights.len(),
            paths.len()
        )));
    }
    if weights.iter().any(|weight| !weight.is_finite() || *weight < 0.0) || weights.iter().sum::<f32>() <= 0.0 {
        return Err(wrong(format!("{weights:?} must be at least 0, and one above 0")));
    }
    // Files are numbered in the order of the paths.
    let mut counts = Vec::with_capacity(paths.len());
    for path in &paths {
        counts.push(Source::open(&[path])?.record_count());
    }
    if counts.iter().sum::<u64>() != input.source.record_count() {
        return Err(wrong("two input_path entries name the same file".to_owned()));
    }
    Ok(Selection {
        one_of,
        weights: counts.into_iter().zip(weights.iter().copied()).collect(),
    })
}

/// Batches prepared ahead of their use.
pub const PREFETCH: usize = 3;

/// How evaluation examples are read for `model`.
pub fn eval_options(config: &PipelineConfig, input: &Input, model: &Ssd) -> Result<eval::Options, Error> {
    let reader = config.eval_input_reader();
    let options = eval::Options {
        fit: fit::Options {
            additional_channels: extras(reader).additional_channels,
            ..fit_options(config, model)?
        },
        extras: example::Extras {
            masks: extras(reader).masks,
            ..example::Extras::default()
        },
        example: example_options(reader, input),
        sample_1_of_n: u64::from(reader.sample_1_of_n_examples()),
        ..eval::Options::default()
    };
    let channels = model.image_channels();
    if options.fit.channels() != channels {
        return Err(Error::Channels {
            file: config.name().to_owned(),
            after: "with eval_input_reader.num_additional_channels",
            found: options.fit.channels(),
            expected: channels,
            hint: "give both readers the same num_additional_channels",
        });
    }
    Ok(options)
}

/// How labels are read.
fn example_options(reader: &InputReader, input: &Input) -> example::Options {
    let prefer = if reader.use_display_name() {
        Prefer::DisplayName
    } else {
        Prefer::Name
    };
    example::Options {
        classes: Classes::of(&input.labels, prefer),
        strict: false,
    }
}
