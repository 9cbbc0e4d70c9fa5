//! A training job from its options: in one process, or as one task of a cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coati_checkpoint::keep;
use coati_checkpoint::state::{self, Latest};
use coati_common::cluster::{Numerics, OnNan};
use coati_common::config::PipelineConfig;
use coati_common::variables::VariableKind;
use coati_coordinator::membership::Identity;
use coati_dataset::batch::{self, Loader};
pub use coati_detection::accelerator::Device;
use coati_param_server::OptimizerConfig;
use coati_proto::coati::v1::JobRef;

use crate::best::KeepBest;
use crate::book::{self, Saving, Start};
use crate::fine_tune::{self, Restored};
use crate::input::{self, Input, Which};
use crate::job::{self, Job};
use crate::local::Local;
use crate::model::{self, Trainer};
use crate::observe::{Observer, Started, Summary};
use crate::replica;
use crate::session::Session;
use crate::stop::{STOPPED, StopFlag};

/// What to train and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration, overrides applied.
    pub config: PipelineConfig,
    /// The job's folder.
    pub model_dir: PathBuf,
    /// Of weights, order and augmentation.
    pub seed: u64,
    /// Time between checkpoints.
    pub save_every: Duration,
    /// Steps between checkpoints, instead.
    pub save_every_steps: Option<u64>,
    /// Checkpoints to keep.
    pub keep: usize,
    /// Evaluate while training.
    pub eval: bool,
    /// Compute threads of this replica.
    pub threads: Option<usize>,
    /// JPEGs are decoded at a half, a quarter or an eighth of their size where they are larger than the network's input.
    pub scaled_decode: bool,
    /// Ctrl-C.
    pub stop: StopFlag,
    /// When the user's command started.
    pub started_at: SystemTime,
    /// `coati.on_nan` of a job in this process; a cluster's is in its own settings.
    pub on_nan: OnNan,
    /// Where the network computes.
    pub device: Device,
    /// `coati.keep_best`, or `--keep_best`.
    pub keep_best: Option<KeepBest>,
    /// What training computes with: `--precision`, `--tf32`, or `coati.precision` and `coati.tf32`.
    pub numerics: Numerics,
}

impl Options {
    /// What to keep of checkpoints.
    pub(crate) fn keep_options(&self) -> keep::Options {
        let hours = self.config.train_config().keep_checkpoint_every_n_hours();
        keep::Options {
            max_to_keep: self.keep,
            keep_every_n_hours: f64::from(hours),
        }
    }
}

/// How training ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The last step is committed and saved.
    Completed(Summary),
    /// Stopped on request, after a checkpoint.
    Interrupted(Summary, String),
}

/// Why it did not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user's files or flags.
    #[error("{0}")]
    User(String),
    /// The job.
    #[error("{0}")]
    Job(String),
}

impl Error {
    pub(crate) fn user(error: impl std::fmt::Display) -> Self {
        Self::User(error.to_string())
    }

    pub(crate) fn job(error: impl std::fmt::Display) -> Self {
        Self::Job(error.to_string())
    }
}

/// What every training replica opens.
pub(crate) struct Setup {
    pub trainer: Trainer,
    pub input: Input,
    loading: batch::Options,
    /// Made at once, so that what is wrong with the options is found before anything starts.
    first_loader: Option<Loader>,
    pub optimizer: OptimizerConfig,
    pub identity: Identity,
    pub num_steps: u64,
    pub batch_size: u32,
}

impl Setup {
    pub(crate) fn open(options: &Options) -> Result<Self, Error> {
        let config = &options.config;
        let input = input::open_for_job(config, Which::Train, &options.model_dir).map_err(Error::user)?;
        let ssd = model::build_for_training(config, options.threads, options.numerics, options.device)
            .map_err(Error::user)?;
        // Reading and decoding takes a tenth of what a step computes: one thread keeps up.
        let mut loading = input::train_options(config, &input, &ssd, options.seed, 1).map_err(Error::user)?;
        loading.decode.scaled = options.scaled_decode;
        let first_loader = Some(Loader::new(Arc::clone(&input.source), loading.clone()).map_err(Error::user)?);
        let train = config.train_config();
        let optimizer = train.optimizer.clone().unwrap_or_default();
        let optimizer = OptimizerConfig::try_from(&optimizer).map_err(Error::user)?;
        let identity = Identity {
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            config_digest: config.digest(),
            dataset_digest: input.source.digest(),
            record_count: loading.selection.epoch_len(input.source.record_count()),
        };
        let num_steps = u64::from(train.num_steps());
        if num_steps == 0 {
            return Err(Error::User(format!(
                "{}: train_config.num_steps is 0, which the reference takes as endless\nhint: give --num_train_steps N, or set num_steps",
                config.name()
            )));
        }
        let batch_size = train.batch_size();
        if batch_size == 0 {
            return Err(Error::User(format!(
                "{}: train_config.batch_size is 0; at least 1 is needed",
                config.name()
            )));
        }
        let mut trainer = Trainer::new(ssd, config);
        trainer.skip_not_finite(options.on_nan == OnNan::Skip);
        trainer.seed(options.seed);
        Ok(Self {
            trainer,
            input,
            loading,
            first_loader,
            optimizer,
            identity,
            num_steps,
            batch_size,
        })
    }

    /// What the variables begin with: made up from the seed, then what `fine_tune_checkpoint` holds.
    pub(crate) fn first_values(&mut self, options: &Options) -> Result<First, Error> {
        let source = fine_tune::open(&options.config).map_err(Error::user)?;
        let ssd = self.trainer.ssd();
        let mut values = ssd.init_values(options.seed);
        let restored = match source {
            Some(source) => Some(source.restore(ssd.variables(), &mut values).map_err(Error::user)?),
            None => None,
        };
        Ok(First { values, restored })
    }

    /// As [`Setup::first_values`], before the job's folder is touched; none where it has a checkpoint to go on from.
    pub(crate) fn first_values_early(&mut self, options: &Options) -> Result<Option<First>, Error> {
        match state::latest(&options.model_dir) {
            Ok(Some(_)) => Ok(None),
            _ => self.first_values(options).map(Some),
        }
    }

    /// Reads and decodes ahead; nothing is requested yet.
    pub(crate) fn loader(&mut self) -> Result<Loader, Error> {
        match self.first_loader.take() {
            Some(loader) => Ok(loader),
            None => Loader::new(Arc::clone(&self.input.source), self.loading.clone()).map_err(Error::user),
        }
    }

    /// What a job without servers writes down, with so many processes that train.
    pub(crate) fn book_options(&mut self, options: &Options, job: JobRef, replicas: u32) -> book::Options {
        book::Options {
            model_dir: options.model_dir.clone(),
            job,
            variables: self.trainer.ssd().variables().to_vec(),
            optimizer: self.optimizer.clone(),
            num_steps: self.num_steps,
            replicas,
            batch_size: self.batch_size,
            record_count: self.identity.record_count,
            config_digest: self.identity.config_digest.clone(),
            seed: options.seed,
            saving: Saving {
                every: options.save_every,
                every_steps: options.save_every_steps,
                keep: options.keep_options(),
            },
            on_nan: options.on_nan,
        }
    }

    /// What observers hear first.
    pub(crate) fn started(
        &mut self,
        start_step: u64,
        latest: Option<&Latest>,
        replicas: u32,
        parameter_servers: u32,
    ) -> Started {
        let parameters: usize = self
            .trainer
            .ssd()
            .variables()
            .iter()
            .filter(|spec| spec.kind == VariableKind::Trainable)
            .map(coati_common::variables::VariableSpec::elements)
            .sum();
        Started {
            start_step,
            resumed_from: latest.map(|latest| latest.prefix.clone()),
            num_steps: self.num_steps,
            replicas,
            parameter_servers,
            batch_size: self.batch_size,
            records: self.identity.record_count,
            parameters: parameters as u64,
        }
    }
}

/// First values of all variables.
pub(crate) struct First {
    pub values: Vec<f32>,
    pub restored: Option<Restored>,
}

impl First {
    /// Says what was restored.
    pub(crate) fn tell(&self, options: &Options, observer: &mut dyn Observer) {
        if let Some(restored) = &self.restored {
            restored.tell(&options.model_dir, observer);
        }
    }
}

pub(crate) fn open_job(options: &Options, observer: &mut dyn Observer) -> Result<Job, Error> {
    let job = job::open(&options.model_dir, &options.config).map_err(Error::user)?;
    for path in &job.cleaned {
        observer.warning(&format!(
            "removed {}: part of a checkpoint that was never finished",
            path.display()
        ));
    }
    Ok(job)
}

/// A checkpoint that training can go on from: ours, with what was used of the data.
pub(crate) fn resume_point(latest: &Latest) -> Result<coati_checkpoint::manifest::DataPosition, Error> {
    latest.manifest.as_ref().map(|manifest| manifest.data.clone()).ok_or_else(|| {
        Error::User(format!(
            "{}: this checkpoint has no manifest of Coati's, so training cannot go on from it\nhint: choose another --model_dir; to start from this checkpoint, name it as train_config.fine_tune_checkpoint",
            latest.prefix.display()
        ))
    })
}

pub(crate) fn already_done(latest: Option<&Latest>, num_steps: u64) -> Option<Summary> {
    latest.filter(|latest| latest.step >= num_steps).map(|latest| Summary {
        step: latest.step,
        ..Summary::default()
    })
}

/// Trains in this process.
pub fn train_here(options: &Options, observer: &mut dyn Observer) -> Result<Outcome, Error> {
    let mut setup = Setup::open(options)?;
    let mut session = Session::new(options, observer)?;
    let first = setup.first_values_early(options)?;
    let job = open_job(options, session.observer())?;
    setup.input.keep_index(&options.model_dir);
    session.keep_index();
    if let Some(summary) = already_done(job.latest.as_ref(), setup.num_steps) {
        session.nothing_to_do(&summary, setup.num_steps);
        return Ok(Outcome::Completed(summary));
    }
    let book = setup.book_options(options, job.job, 1);
    let values;
    let start = if let Some(latest) = &job.latest {
        Start::Checkpoint {
            prefix: &latest.prefix,
            step: latest.step,
            data: resume_point(latest)?,
        }
    } else {
        let first = first.map_or_else(|| setup.first_values(options), Ok)?;
        first.tell(options, session.observer());
        values = first.values;
        Start::Values(&values)
    };
    let mut exchange = Local::new(book, start, options.stop.clone()).map_err(Error::job)?;
    setup.trainer.reside(exchange.book(), None).map_err(Error::job)?;
    let first = exchange.version();
    let started = setup.started(first, job.latest.as_ref(), 1, 0);
    session.start(&started)?;

    let loader = setup.loader()?;
    let ended = replica::train(
        &mut setup.trainer,
        &loader,
        &mut exchange,
        first,
        &options.stop,
        &mut |trainer, exchange| {
            if let Some(checkpoint) = exchange
                .take_events()
                .into_iter()
                .filter_map(|event| session.entry(event))
                .last()
            {
                session.evaluate_if_due(trainer.ssd(), &checkpoint);
            }
            Ok(())
        },
    );
    let saved = exchange.save();
    let last = exchange
        .take_events()
        .into_iter()
        .filter_map(|event| session.entry(event))
        .last();
    ended.map_err(Error::job)?;
    saved.map_err(Error::job)?;
    let interrupted = exchange.version() < setup.num_steps;
    if let Some(last) = last.filter(|_| !interrupted) {
        session.evaluate(setup.trainer.ssd(), &last);
    }
    let summary = session.finish();
    Ok(if interrupted {
        Outcome::Interrupted(summary, STOPPED.to_owned())
    } else {
        Outcome::Completed(summary)
    })
}
