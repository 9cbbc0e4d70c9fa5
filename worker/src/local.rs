//! One process, no servers: the same store and the same rules, called directly.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coati_checkpoint::manifest::{self, DataPosition, Manifest};
use coati_checkpoint::{keep, saver};
use coati_common::cluster::OnNan;
use coati_common::rpc::{ErrorCode, ServiceError};
use coati_common::variables::VariableSpec;
use coati_coordinator::ledger::{self, Ledger};
use coati_coordinator::timing;
use coati_param_server::{Contributor, Layout, OptimizerConfig, Store, Strategy, Tag, plan, store};
use coati_proto::coati::v1::JobRef;
use tokio::time::Instant;

use crate::exchange::{Contribution, Error, Exchange, Fate, Lease};
use crate::observe::StepRecord;
use crate::stop::StopFlag;

/// So many gradients in a row that are not finite are no accident of a batch, as in a cluster.
const MOST_SKIPPED: usize = 100;

/// What a job in one process starts from.
#[derive(Debug)]
pub(crate) struct Options {
    /// Folder for checkpoints.
    pub model_dir: PathBuf,
    /// The job and this start of it.
    pub job: JobRef,
    /// The model's variables.
    pub variables: Vec<VariableSpec>,
    /// Optimiser and schedule.
    pub optimizer: OptimizerConfig,
    /// The step to end at.
    pub num_steps: u64,
    /// Examples a step.
    pub batch_size: u32,
    /// Records of the training set.
    pub record_count: u64,
    /// Of the effective configuration, for the manifest.
    pub config_digest: String,
    /// Of order and augmentation, for the manifest.
    pub seed: u64,
    /// When to save and what to keep.
    pub saving: Saving,
    /// Ctrl-C.
    pub stop: StopFlag,
    /// What becomes of gradients with NaN or infinity.
    pub on_nan: OnNan,
}

/// When to save and what to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Saving {
    /// Time between checkpoints …
    pub every: Duration,
    /// … or steps, instead.
    pub every_steps: Option<u64>,
    /// What to keep.
    pub keep: keep::Options,
}

/// Where training starts from.
#[derive(Debug)]
pub(crate) enum Start<'a> {
    /// These values, at step 0.
    Values(&'a [f32]),
    /// A checkpoint, and what of the data it has used.
    Checkpoint {
        /// Its prefix.
        prefix: &'a Path,
        /// Its global step.
        step: u64,
        /// From its manifest.
        data: DataPosition,
    },
}

/// The exchange of a job in one process.
#[derive(Debug)]
pub(crate) struct Local {
    options: Options,
    store: Store,
    layout: Layout,
    version: u64,
    sequence: u64,
    ledger: Ledger,
    /// Batches handed out and not used yet.
    outstanding: u64,
    arena: Vec<f32>,
    committed_at: Instant,
    saved_at: Instant,
    saved_step: Option<u64>,
    events: Vec<Event>,
    /// Gradients in a row that were not finite.
    skipped: usize,
}

/// What happened since the last look.
#[derive(Debug)]
pub(crate) enum Event {
    /// A step was committed.
    Step(StepRecord),
    /// A checkpoint is complete.
    Saved {
        /// Its prefix.
        prefix: PathBuf,
        /// Its step.
        step: u64,
    },
    /// A checkpoint could not be written; training goes on.
    SaveFailed(String),
    /// A gradient was not finite: the step is made of other records.
    Skipped(String),
}

impl Local {
    /// Loads the variables into the store.
    pub(crate) fn new(options: Options, start: &Start<'_>) -> Result<Self, Error> {
        let placement = plan(&options.variables, 1, Strategy::Balanced).map_err(Error::new)?;
        let layout = Layout::new(&placement).map_err(Error::new)?;
        let store = Store::new(store::Options::default());
        store
            .configure(&options.job, 0, &placement, options.optimizer.clone(), 0)
            .map_err(Error::new)?;
        let accept = options.on_nan == OnNan::Apply;
        store.accept_non_finite(&options.job, accept).map_err(Error::new)?;
        let (version, data) = match start {
            Start::Values(values) => {
                let mut arena = Vec::new();
                layout.gather(0, values, &mut arena);
                store.load(&options.job, arena, 0).map_err(Error::new)?;
                (0, DataPosition::default())
            }
            Start::Checkpoint { prefix, step, data } => {
                store
                    .restore(&options.job, &prefix.display().to_string(), *step, false)
                    .map_err(Error::new)?;
                (*step, data.clone())
            }
        };
        let ledger = ledger::Options {
            replicas: 1,
            batch: options.batch_size,
            lockstep: true,
        };
        Ok(Self {
            store,
            layout,
            version,
            sequence: 0,
            ledger: Ledger::new(ledger, &data),
            outstanding: 0,
            arena: Vec::new(),
            committed_at: Instant::now(),
            saved_at: Instant::now(),
            saved_step: None,
            events: Vec::new(),
            skipped: 0,
            options,
        })
    }

    /// The newest step.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Writes a checkpoint of the newest step, unless it has one. The last checkpoint of a job must succeed.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        if self.saved_step == Some(self.version) {
            return Ok(());
        }
        let folder = &self.options.model_dir;
        let prefix = saver::prefix(folder, self.version);
        saver::begin(&prefix).map_err(Error::new)?;
        let saved = self
            .store
            .save(&self.options.job, &prefix.display().to_string(), 0, 1, self.version)
            .map_err(Error::new)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64());
        let manifest = Manifest {
            version: manifest::VERSION,
            job_id: self.options.job.job_id.clone(),
            incarnation: self.options.job.incarnation,
            global_step: self.version,
            config_digest: self.options.config_digest.clone(),
            seeds: [("data".to_owned(), self.options.seed)].into(),
            data: self.ledger.position(),
            record_count: self.options.record_count,
            replicas: 1,
            batch_size: self.options.batch_size,
            placement: manifest::Placement::default(),
            wall_time: now,
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            files: Vec::new(),
        };
        saver::publish(&prefix, 1, &saved.tensors, manifest).map_err(Error::new)?;
        keep::update(folder, &prefix, now, self.options.saving.keep).map_err(Error::new)?;
        self.saved_step = Some(self.version);
        self.saved_at = Instant::now();
        self.events.push(Event::Saved {
            prefix,
            step: self.version,
        });
        Ok(())
    }

    /// The records of a gradient that is not finite go back, unless nothing else comes any more.
    fn skip(&mut self, contribution: &Contribution<'_>, error: &ServiceError) -> Result<Fate, Error> {
        self.skipped += 1;
        if self.skipped >= MOST_SKIPPED {
            return Err(Error::Failed(format!(
                "step {}: no finite gradient is left to apply ({} skipped in a row): {error}",
                self.version + 1,
                self.skipped
            )));
        }
        self.sequence += 1;
        self.ledger.give_back(contribution.lease.id);
        self.outstanding = self.outstanding.saturating_sub(1);
        self.events.push(Event::Skipped(format!("skipped: {error}")));
        Ok(Fate::Dropped { version: self.version })
    }

    fn save_is_due(&self) -> bool {
        match self.options.saving.every_steps {
            Some(steps) => self.version.is_multiple_of(steps.max(1)),
            None => self.saved_at.elapsed() >= self.options.saving.every,
        }
    }
}

impl Exchange for Local {
    fn lease(&mut self, batches: u32) -> Result<(Vec<Lease>, bool), Error> {
        let left = self.options.num_steps.saturating_sub(self.version + self.outstanding);
        let leases = (0..u64::from(batches).min(left))
            .map(|_| {
                let lease = self.ledger.lease(0);
                Lease {
                    id: lease.id,
                    first_position: lease.first,
                    count: lease.count as u32,
                }
            })
            .collect::<Vec<_>>();
        self.outstanding += leases.len() as u64;
        Ok((leases, left <= u64::from(batches)))
    }

    fn pull(&mut self, min_version: u64, variables: &mut [f32]) -> Result<u64, Error> {
        let snapshot = self.store.pull(&self.options.job, min_version).map_err(Error::new)?;
        if let Some(server) = self.layout.server(0) {
            snapshot.scatter(server, variables);
        }
        Ok(snapshot.version())
    }

    fn contribute(&mut self, contribution: &Contribution<'_>, _variables: &mut [f32]) -> Result<Fate, Error> {
        let begun = Instant::now();
        let tag = Tag {
            replica: 0,
            sequence: self.sequence,
            version: contribution.version,
        };
        self.arena.clear();
        if let Some(server) = self.layout.server(0) {
            server.gather(0, server.pushed_len, contribution.gradients, &mut self.arena);
        }
        match self.store.push(&self.options.job, tag, &self.arena) {
            Err(error) if error.code == ErrorCode::NonFiniteGradient && self.options.on_nan == OnNan::Skip => {
                return self.skip(contribution, &error);
            }
            pushed => drop(pushed.map_err(Error::new)?),
        }
        self.skipped = 0;
        let pushed = Instant::now();
        let who = [Contributor {
            replica: 0,
            sequence: self.sequence,
            samples: contribution.samples,
        }];
        let committed = self
            .store
            .commit(&self.options.job, contribution.version, &who, true)
            .map_err(Error::new)?;
        self.sequence += 1;
        self.version = committed.version;
        self.ledger.complete(contribution.lease.id);
        self.outstanding = self.outstanding.saturating_sub(1);
        let began = std::mem::replace(&mut self.committed_at, Instant::now());
        let spans = timing::Spans {
            arrived: pushed,
            input: contribution.phases.input,
            compute: contribution.phases.compute,
            push: pushed - begun,
        };
        self.events.push(Event::Step(StepRecord {
            step: self.version,
            losses: contribution
                .losses
                .iter()
                .map(|&(name, value)| (name.to_owned(), value))
                .collect(),
            learning_rate: f64::from(committed.learning_rate),
            samples: u64::from(contribution.samples),
            epoch: self.ledger.position().position.saturating_sub(1) / self.options.record_count.max(1),
            seconds: timing::attribute(began, self.committed_at, &[spans]).named(),
            staleness: Vec::new(),
            bytes_pushed: 0,
            bytes_pulled: 0,
        }));
        let last = self.version >= self.options.num_steps || self.options.stop.raised();
        if !last
            && self.save_is_due()
            && let Err(error) = self.save()
        {
            // The previous checkpoint is still there; the next attempt comes with the next due time.
            self.saved_at = Instant::now();
            self.events.push(Event::SaveFailed(error.to_string()));
        }
        self.committed_at = self.committed_at.max(self.saved_at);
        Ok(Fate::Committed {
            version: self.version,
            last,
        })
    }

    fn asked_to_leave(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    fn activity(&self, _what: &'static str) {}
}
