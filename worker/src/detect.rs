//! A trained detector for images that have no groundtruth.

mod ahead;

use std::path::{Path, PathBuf};

use coati_checkpoint::bundle;
use coati_checkpoint::state;
use coati_common::config::supported::{self, Mode, Unsupported};
use coati_common::config::{self, PipelineConfig};
use coati_common::label_map::LabelMap;
use coati_dataset::decode::Image;
use coati_dataset::fit::{self, Fitted};
use coati_detection::Detections;
use coati_detection::model::Ssd;
use coati_evaluation::Category;
use sha2::{Digest as _, Sha256};

use crate::{input, model};

pub(crate) use ahead::{Ahead, ahead};
pub use ahead::{Files, Prepared, Preparer};

/// Why there is no detector, or why it found nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The model is not built.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// No configuration was given, and none lies beside the checkpoint.
    #[error("{}: no such file\nhint: --pipeline_config_path names the configuration that the model was trained with", .0.display())]
    NoConfig(PathBuf),
    /// There is no checkpoint.
    #[error("{}: no complete checkpoint\nhint: --model_dir is the folder of a job that has saved, or a prefix such as …/model.ckpt-2000", .0.display())]
    NoCheckpoint(PathBuf),
    /// The folder cannot be searched.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The model or its variables.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The label map given is missing or wrong.
    #[error(transparent)]
    LabelMap(#[from] coati_common::label_map::Error),
    /// The resizer.
    #[error(transparent)]
    Input(#[from] input::Error),
    /// The label map has more classes than the model.
    #[error("{0}")]
    Classes(String),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The model refused.
    #[error("{0}")]
    Detect(String),
    /// There is no network for an image of this size; another might do.
    #[error("{0}")]
    Size(String),
}

/// Where a detector comes from.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A job's folder, or a checkpoint's prefix.
    pub model_dir: PathBuf,
    /// `pipeline.config` in the folder where absent.
    pub pipeline_config_path: Option<PathBuf>,
    /// The configuration's where absent.
    pub label_map_path: Option<PathBuf>,
}

/// A model with its variables.
#[derive(Debug)]
pub struct Detector {
    model: Ssd,
    fit: fit::Options,
    variables: Vec<f32>,
    config: PipelineConfig,
    categories: Vec<Category>,
    checkpoint: PathBuf,
    step: u64,
    warnings: Vec<String>,
}

impl Detector {
    /// Reads the newest complete checkpoint of a folder, or the one named.
    pub fn open(options: &Options) -> Result<Self, Error> {
        // First, since the folder of a mistyped name's parent has no configuration either.
        let (checkpoint, step) = newest(&options.model_dir)?;
        let folder = folder_of(&options.model_dir);
        let path = options
            .pipeline_config_path
            .clone()
            .unwrap_or_else(|| folder.join("pipeline.config"));
        if options.pipeline_config_path.is_none() && !coati_storage::is_file(&path) {
            return Err(Error::NoConfig(path));
        }
        let config = PipelineConfig::load(&path)?;
        // How it was trained and evaluated does not matter here.
        let survey = supported::survey(&config, Mode::Eval)?;
        let of_model = |path: &str| path == "model" || path.starts_with("model.");
        let refused: Vec<_> = survey
            .refused
            .into_iter()
            .filter(|refusal| of_model(&refusal.path))
            .collect();
        if !refused.is_empty() {
            return Err(Unsupported(refused).into());
        }
        let mut warnings = Vec::new();
        let categories = categories(options, &config, &mut warnings)?;
        let model = model::build(&config, None)?;
        let fit = input::fit_options(&config, &model)?;
        let variables = model::read_variables(&model, &checkpoint, config.eval_config().use_moving_averages())?;
        Ok(Self {
            model,
            fit,
            variables,
            config,
            categories,
            checkpoint,
            step,
            warnings,
        })
    }

    /// The classes; empty where no label map is known.
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// The prefix that the variables were read from.
    pub fn checkpoint(&self) -> &Path {
        &self.checkpoint
    }

    /// Of the checkpoint.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// What the user should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Tells detectors apart: SHA-256 (hex) of the configuration and of the checkpoint's index, which holds a checksum of every tensor.
    pub fn digest(&self) -> Result<String, Error> {
        let path = bundle::index_path(&self.checkpoint);
        let index = coati_storage::read(&path).map_err(|source| Error::Read { path, source })?;
        let mut digest = Sha256::new();
        digest.update(self.config.digest());
        digest.update(index);
        Ok(coati_common::hex(&digest.finalize()))
    }

    /// What the network wants of images.
    pub fn fit(&self) -> &fit::Options {
        &self.fit
    }

    /// Detections in images that a [`Preparer`] made for [`Self::fit`], best first, one entry an image. They go through the network together, or
    /// one by one where they come in many sizes.
    pub fn detect<'a>(&mut self, inputs: impl IntoIterator<Item = &'a Fitted>) -> Result<Vec<Detections>, Error> {
        let inputs: Vec<&Fitted> = inputs.into_iter().collect();
        let together = if self.fit.many_sizes() { 1 } else { inputs.len().max(1) };
        let mut found = Vec::with_capacity(inputs.len());
        for inputs in inputs.chunks(together) {
            found.extend(self.detect_together(inputs)?);
        }
        Ok(found)
    }

    /// In images of one size.
    fn detect_together(&mut self, inputs: &[&Fitted]) -> Result<Vec<Detections>, Error> {
        let Some(first) = inputs.first() else {
            return Ok(Vec::new());
        };
        let images = inputs
            .iter()
            .map(|fitted| fitted.input.as_slice())
            .collect::<Vec<_>>()
            .concat();
        let parts: Vec<_> = inputs.iter().map(|fitted| fitted.part).collect();
        let many_sizes = self.fit.many_sizes();
        let refused = |error: coati_detection::model::Error| {
            let of_size = many_sizes && error.is_of_size();
            let kind = if of_size { Error::Size } else { Error::Detect };
            kind(error.to_string())
        };
        self.model
            .set_input_size((first.height, first.width))
            .map_err(refused)?;
        self.model
            .detect_within(&self.variables, &images, &parts)
            .map_err(refused)
    }

    /// As [`Self::detect`]; what is wrong with an image of its size is wrong with that image alone.
    fn detect_each<'a>(
        &mut self,
        inputs: impl IntoIterator<Item = &'a Fitted>,
    ) -> Result<Vec<Result<Detections, String>>, Error> {
        if !self.fit.many_sizes() {
            return Ok(self.detect(inputs)?.into_iter().map(Ok).collect());
        }
        let mut one = |input| match self.detect_together(&[input]) {
            Ok(found) => Ok(found.into_iter().map(Ok).next()),
            Err(Error::Size(why)) => Ok(Some(Err(why))),
            Err(error) => Err(error),
        };
        inputs.into_iter().filter_map(|input| one(input).transpose()).collect()
    }

    /// Reads, decodes and resizes `items` on threads of their own, gives the images to the network `batch` at a time (see [`Self::detect`]), and
    /// hands out each item with its image and detections, or with what was wrong, in order.
    pub fn run<T: Send, E: From<Error>>(
        &mut self,
        items: impl Iterator<Item = T> + Send,
        batch: usize,
        read: impl Fn(&T) -> Result<Files, String> + Sync,
        take: &mut dyn FnMut(T, Result<(Image, Detections), String>) -> Result<(), E>,
    ) -> Result<(), E> {
        let options = Ahead {
            batch: batch.max(1),
            fit: self.fit.clone(),
        };
        let prepare = |item: T, preparer: &mut Preparer| {
            let prepared = read(&item).and_then(|files| preparer.prepare(&files));
            (item, prepared)
        };
        ahead(items, options, prepare, &mut |items: Vec<(
            T,
            Result<Prepared, String>,
        )>| {
            let good = items.iter().filter_map(|(_, prepared)| prepared.as_ref().ok());
            let mut found = self.detect_each(good.map(|prepared| &prepared.input))?.into_iter();
            for (item, prepared) in items {
                let outcome = prepared.and_then(|prepared| {
                    let found = found.next().unwrap_or_else(|| Ok(Detections::default()));
                    Ok((prepared.image, found?))
                });
                take(item, outcome)?;
            }
            Ok(())
        })
    }
}

fn folder_of(model_dir: &Path) -> PathBuf {
    if coati_storage::is_dir(model_dir) {
        model_dir.to_owned()
    } else {
        model_dir.parent().unwrap_or(Path::new("")).to_owned()
    }
}

/// A folder's newest checkpoint, or the one with this prefix.
fn newest(path: &Path) -> Result<(PathBuf, u64), Error> {
    if coati_storage::is_dir(path) {
        let latest = state::latest(path)?;
        return latest
            .map(|latest| (latest.prefix, latest.step))
            .ok_or_else(|| Error::NoCheckpoint(path.to_owned()));
    }
    if !coati_storage::is_file(&bundle::index_path(path)) {
        return Err(Error::NoCheckpoint(path.to_owned()));
    }
    // A checkpoint that was exported need not know its step.
    Ok((path.to_owned(), model::step_of(path).unwrap_or(0)))
}

/// The classes of the label map: the one given must be right, the configuration's may be missing.
fn categories(options: &Options, config: &PipelineConfig, warnings: &mut Vec<String>) -> Result<Vec<Category>, Error> {
    let labels = if let Some(path) = &options.label_map_path {
        LabelMap::load(path)?
    } else {
        let readers = [config.eval_input_reader(), config.train_input_reader()];
        let named = readers
            .into_iter()
            .filter_map(|reader| reader.label_map_path.as_deref());
        let Some(path) = named.into_iter().find(|path| !path.is_empty()) else {
            warnings.push(format!(
                "{}: no label_map_path; classes are numbers (--label_map_path names them)",
                config.name()
            ));
            return Ok(Vec::new());
        };
        match LabelMap::load(&config.resolve_path(path)) {
            Ok(labels) => labels,
            Err(error) => {
                warnings.push(format!("{error}; classes are numbers (--label_map_path names them)"));
                return Ok(Vec::new());
            }
        }
    };
    match input::label_map_problem(config, &labels) {
        Some(problem) => Err(Error::Classes(problem)),
        None => Ok(input::categories(&labels)),
    }
}
