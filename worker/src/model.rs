//! The detector as the training loop wants it, and its variables in checkpoints.

use std::ops::Range;
use std::path::Path;

use coati_checkpoint::bundle::{self, Reader};
use coati_checkpoint::rescue;
use coati_common::cluster::{Numerics, Precision};
use coati_common::config::PipelineConfig;
use coati_common::variables::{VariableKind, VariableSpec};
use coati_dataset::batch::Batch;
use coati_detection::accelerator::Device;
use coati_detection::accelerator::resident::{Residence, Resident, Summing, Vectors};
use coati_detection::model::{self, Options, ResidentStep, Ssd, StepLosses};
use coati_detection::{Groundtruth, gradients};
use coati_param_server::OptimizerConfig;

use crate::book::Book;
use crate::replica::{Model, Ready};
use crate::{exchange, input};

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration has none.
    #[error("{0}: no model\nhint: a pipeline.config has a section `model {{ ssd {{ … }} }}`")]
    Missing(String),
    /// It cannot be built.
    #[error(transparent)]
    Build(#[from] model::Error),
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] coati_checkpoint::bundle::Error),
    /// The checkpoint's files are damaged.
    #[error("{0}")]
    Damaged(String),
    /// The checkpoint is of another model.
    #[error("{prefix}: {what}\nhint: is it a checkpoint of this pipeline.config's model?")]
    Other {
        /// The checkpoint.
        prefix: String,
        /// What does not fit.
        what: String,
    },
}

/// Builds the detector that the configuration describes, for inference; it may be trained in float32.
pub fn build(config: &PipelineConfig, threads: Option<usize>) -> Result<Ssd, Error> {
    let numerics = Numerics {
        precision: Precision::Float32,
        tf32: false,
    };
    build_for_training(config, threads, numerics, Device::Auto)
}

/// Builds the detector that the configuration describes, to be trained with these numbers on this device.
pub fn build_for_training(
    config: &PipelineConfig,
    threads: Option<usize>,
    numerics: Numerics,
    device: Device,
) -> Result<Ssd, Error> {
    let model = config.model().ok_or_else(|| Error::Missing(config.name().to_owned()))?;
    let options = Options {
        threads,
        device,
        image_channels: input::image_channels(config),
        numerics,
        ..Options::from(config.train_config())
    };
    Ok(Ssd::new(model, &options)?)
}

/// Reads the model's variables from a checkpoint, whoever wrote it. With `averages`, moving averages in place of trainable
/// variables (`eval_config.use_moving_averages`).
pub fn read_variables(model: &Ssd, prefix: &Path, averages: bool) -> Result<Vec<f32>, Error> {
    let reader = Reader::open(prefix).map_err(|error| unreadable(prefix, error))?;
    let mut flat = Vec::with_capacity(coati_common::variables::flat_elements(model.variables()));
    for spec in model.variables() {
        let name = if averages && spec.kind == VariableKind::Trainable {
            format!("{}/ExponentialMovingAverage", spec.name)
        } else {
            spec.name.clone()
        };
        flat.extend(read_one(&reader, &name, spec, prefix)?);
    }
    Ok(flat)
}

fn read_one(reader: &Reader, name: &str, spec: &VariableSpec, prefix: &Path) -> Result<Vec<f32>, Error> {
    let other = |what: String| Error::Other {
        prefix: prefix.display().to_string(),
        what,
    };
    match reader.entries().find(|entry| entry.name == name) {
        None => Err(other(format!("has no variable `{name}`"))),
        Some(entry) if entry.shape != spec.shape => Err(other(format!(
            "`{name}` has shape {:?}, the model's has {:?}",
            entry.shape, spec.shape
        ))),
        Some(_) => reader.read_f32(name).map_err(|error| unreadable(prefix, error)),
    }
}

/// Where the files are damaged, the hint names an older checkpoint that is whole.
fn unreadable(prefix: &Path, error: bundle::Error) -> Error {
    if !error.is_damage() {
        return Error::Checkpoint(error);
    }
    let (message, hint) = rescue::explain(prefix, &error);
    Error::Damaged(match hint {
        Some(hint) => format!("{message}\nhint: {hint}"),
        None => message,
    })
}

/// One image's objects as the losses want them. `name` stands in messages.
pub(crate) fn groundtruth(name: &str, objects: &coati_dataset::Groundtruth) -> Groundtruth {
    Groundtruth {
        source_id: name.to_owned(),
        boxes: objects.boxes.clone(),
        classes: objects.classes.clone(),
        weights: objects.weights.clone(),
    }
}

/// `global_step` of a checkpoint.
pub fn step_of(prefix: &Path) -> Result<u64, Error> {
    let steps = Reader::open(prefix)?.read_i64("global_step")?;
    Ok(steps
        .first()
        .copied()
        .and_then(|step| u64::try_from(step).ok())
        .unwrap_or(0))
}

/// A detector with the configuration's treatment of gradients.
#[derive(Debug)]
pub struct Trainer {
    ssd: Ssd,
    bias_multiplier: Option<f32>,
    clip: Option<f32>,
    skip_not_finite: bool,
    seed: u64,
    resident: Option<Resident>,
    /// Where the images begin that are on the accelerator before their step.
    staged: Option<u64>,
    position: u64,
}

impl Trainer {
    /// Takes `train_config.bias_grad_multiplier` and `gradient_clipping_by_norm`; 0 means off, as in the reference.
    pub fn new(ssd: Ssd, config: &PipelineConfig) -> Self {
        let train = config.train_config();
        let on = |value: f32| (value != 0.0).then_some(value);
        Self {
            ssd,
            bias_multiplier: on(train.bias_grad_multiplier()),
            clip: on(train.gradient_clipping_by_norm()),
            skip_not_finite: false,
            seed: 0,
            resident: None,
            staged: None,
            position: 0,
        }
    }

    /// The job's seed, on which dropout depends.
    pub fn seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// `coati.on_nan: skip`: a loss that is not finite makes a gradient that is not, which whoever takes gradients then skips with
    /// its records; otherwise it is an error.
    pub fn skip_not_finite(&mut self, skip: bool) {
        self.skip_not_finite = skip;
    }

    /// The detector.
    pub fn ssd(&mut self) -> &mut Ssd {
        &mut self.ssd
    }

    /// Brings the variables of a book to the accelerator, where they stay while this trains. Nothing without one. `sums` says how gradients are
    /// summed over ranks.
    pub(crate) fn reside(
        &mut self,
        book: &mut Book,
        sums: Option<Summing>,
    ) -> Result<Option<Resident>, exchange::Error> {
        let residence = self.residence(&book.options().optimizer, sums);
        book.reside(|vectors| self.bring(&residence, vectors))?;
        Ok(self.resident.clone())
    }

    /// The same without a book: the first values of all variables (flat), for whoever makes the steps by itself.
    pub fn reside_alone(
        &mut self,
        optimizer: &OptimizerConfig,
        values: Vec<f32>,
    ) -> Result<Option<Resident>, exchange::Error> {
        let residence = self.residence(optimizer, None);
        let slots = optimizer.rule.slots().iter();
        let averages = optimizer.moving_average_decay.map(|_| values.clone());
        let vectors = Vectors {
            slots: slots.flat_map(|slot| vec![slot.initial; values.len()]).collect(),
            averages: averages.unwrap_or_default(),
            params: values,
        };
        self.bring(&residence, &vectors)
    }

    fn residence(&self, optimizer: &OptimizerConfig, sums: Option<Summing>) -> Residence {
        Residence {
            rule: optimizer.rule,
            moving_average_decay: optimizer.moving_average_decay,
            variables: self.ssd.roles(),
            bias_multiplier: self.bias_multiplier,
            clip: self.clip,
            sums,
        }
    }

    fn bring(&mut self, residence: &Residence, vectors: &Vectors) -> Result<Option<Resident>, exchange::Error> {
        self.staged = None;
        self.resident = self.ssd.reside(residence, vectors).map_err(exchange::Error::new)?;
        Ok(self.resident.clone())
    }

    /// A step of variables on the accelerator.
    fn resident_step(
        &mut self,
        resident: &Resident,
        batch: &Batch,
        groundtruth: &[Groundtruth],
        next: Option<(u64, &Batch)>,
        ready: Ready<'_>,
    ) -> Result<StepLosses, model::Error> {
        let size = (batch.height, batch.width);
        let next = next.filter(|(_, next)| (next.height, next.width) == size);
        let staged = self.staged.take() == Some(self.position);
        let step = ResidentStep {
            images: &batch.images,
            staged,
            groundtruth,
            next: next.map(|(_, next)| &next.images[..]),
        };
        let trained = self
            .ssd
            .train_resident(&step, resident, &mut |elements| ready(elements, &[]));
        if trained.is_ok() {
            self.staged = next.map(|(position, _)| position);
        }
        trained
    }
}

impl Model for Trainer {
    fn place(&mut self, version: u64, first_position: u64) {
        self.position = first_position;
        self.ssd.set_key(coati_detection::network::dropout::key(
            self.seed,
            version,
            first_position,
        ));
    }

    fn looks_ahead(&self) -> bool {
        self.resident.is_some()
    }

    fn flat_elements(&self) -> usize {
        if self.resident.is_some() {
            return 0;
        }
        coati_common::variables::flat_elements(self.ssd.variables())
    }

    fn step(
        &mut self,
        variables: &[f32],
        batch: &Batch,
        next: Option<(u64, &Batch)>,
        gradients: &mut [f32],
        ready: Ready<'_>,
    ) -> Result<Vec<(&'static str, f64)>, String> {
        // Where sizes differ there is one image, and which it was is told.
        let named = |error: model::Error| match (&batch.filenames[..], error.is_of_size()) {
            ([name], true) => format!("image {name:?}: {error}"),
            _ => error.to_string(),
        };
        self.ssd.set_input_size((batch.height, batch.width)).map_err(named)?;
        let groundtruth: Vec<Groundtruth> = batch
            .groundtruth
            .iter()
            .zip(batch.filenames.iter().zip(&batch.source_ids))
            .map(|(objects, (filename, source_id))| {
                groundtruth(if filename.is_empty() { source_id } else { filename }, objects)
            })
            .collect();
        if let Some(resident) = self.resident.clone() {
            return match self.resident_step(&resident, batch, &groundtruth, next, ready) {
                Err(error) if self.skip_not_finite && error.is_not_finite() => {
                    tracing::warn!(%error, "this batch is skipped");
                    // Whoever makes the step leaves such a batch out.
                    Ok(named_losses(StepLosses {
                        total: f32::NAN,
                        ..StepLosses::default()
                    }))
                }
                trained => trained.map(named_losses).map_err(named),
            };
        }
        let specs = self.ssd.variables().to_vec();
        let (multiplier, whole) = (self.bias_multiplier, self.clip.is_some());
        let mut complete = |elements: Range<usize>, values: &mut [f32]| {
            if let Some(multiplier) = multiplier {
                gradients::multiply_biases_within(values, elements.start, &specs, multiplier);
            }
            // The common norm needs all of them before any can leave.
            if !whole {
                ready(elements, values);
            }
        };
        let trained = self
            .ssd
            .train_step_with(variables, &batch.images, &groundtruth, gradients, &mut complete);
        let losses = match trained {
            Err(error) if self.skip_not_finite && error.is_not_finite() => {
                tracing::warn!(%error, "this batch is skipped");
                gradients.fill(f32::NAN);
                // Not told as a loss: nothing of this batch counts.
                StepLosses::default()
            }
            trained => trained.map_err(named)?,
        };
        if let Some(norm) = self.clip {
            gradients::clip_by_global_norm(gradients, self.ssd.variables(), norm);
        }
        Ok(named_losses(losses))
    }
}

/// By the reference's names.
fn named_losses(losses: StepLosses) -> Vec<(&'static str, f64)> {
    vec![
        ("Loss/classification_loss", f64::from(losses.classification)),
        ("Loss/localization_loss", f64::from(losses.localization)),
        ("Loss/regularization_loss", f64::from(losses.regularization)),
        ("Loss/total_loss", f64::from(losses.total)),
    ]
}
