//! What a process of a job without parameter servers keeps: the variables and their slots, which records were used, when to save.
//!
//! With one process ([`crate::local`]) there is one book; with several that sum their gradients ([`crate::ranks`]) each has the same one,
//! and makes the same entries.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coati_checkpoint::manifest::{self, DataPosition, Manifest};
use coati_checkpoint::{keep, saver};
use coati_common::cluster::OnNan;
use coati_common::rpc::ServiceError;
use coati_common::variables::VariableSpec;
use coati_coordinator::launcher::progress::{self, Progress};
use coati_coordinator::ledger::{self, Ledger};
use coati_coordinator::timing;
use coati_detection::accelerator::resident::{Resident, Vectors};
use coati_param_server::store::{Committed, Push};
use coati_param_server::{Contributor, Layout, OptimizerConfig, Store, Strategy, Tag, plan, store};
use coati_proto::coati::v1::JobRef;
use tokio::time::Instant;

use crate::exchange::{Error, Lease};
use crate::observe::StepRecord;
use crate::residence::{self, Residence};

/// So many gradients in a row that are not finite are no accident of a batch, as in a cluster.
pub(crate) const MOST_SKIPPED: usize = 100;

/// Elements that are handed to the store at a time: they stay in the cache.
const AT_ONCE: usize = 16 << 10;

/// What a job without servers is.
#[derive(Clone, Debug)]
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
    /// Processes that train.
    pub replicas: u32,
    /// Examples of each of them in a step.
    pub batch_size: u32,
    /// Records of the training set.
    pub record_count: u64,
    /// Of the effective configuration, for the manifest.
    pub config_digest: String,
    /// Of order and augmentation, for the manifest.
    pub seed: u64,
    /// When to save and what to keep.
    pub saving: Saving,
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
#[derive(Clone, Debug)]
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
    /// What another book held.
    State(State),
}

/// All that a book holds between two steps.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Variables and slots.
    pub store: store::State,
    /// What of the data was used.
    pub data: DataPosition,
    /// The step of its newest checkpoint.
    pub saved: Option<u64>,
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

/// What a committed step was made of, for those who watch.
#[derive(Debug)]
pub(crate) struct Made {
    pub losses: Vec<(String, f64)>,
    pub samples: u64,
    pub learning_rate: f32,
    pub spans: Vec<timing::Spans>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Book {
    options: Options,
    store: Store,
    /// The variables, where they live on an accelerator.
    residence: Option<Residence>,
    layout: Layout,
    version: u64,
    sequence: u64,
    ledger: Ledger,
    /// Steps whose batches are handed out and which are not made yet.
    outstanding: u64,
    committed_at: Instant,
    saved_at: Instant,
    saved_step: Option<u64>,
    events: Vec<Event>,
}

impl Book {
    /// Loads the variables into the store.
    pub(crate) fn new(options: Options, start: Start<'_>) -> Result<Self, Error> {
        let placement = plan(&options.variables, 1, Strategy::Balanced).map_err(Error::new)?;
        let layout = Layout::new(&placement).map_err(Error::new)?;
        let store = Store::new(store::Options::default());
        store
            .configure(&options.job, 0, &placement, options.optimizer.clone(), 0)
            .map_err(Error::new)?;
        let accept = options.on_nan == OnNan::Apply;
        store.accept_non_finite(&options.job, accept).map_err(Error::new)?;
        let (version, data, saved_step) = match start {
            Start::Values(values) => {
                let mut arena = Vec::new();
                layout.gather(0, values, &mut arena);
                store.load(&options.job, arena, 0).map_err(Error::new)?;
                (0, DataPosition::default(), None)
            }
            Start::Checkpoint { prefix, step, data } => {
                store
                    .restore(&options.job, &prefix.display().to_string(), step, false)
                    .map_err(Error::new)?;
                (step, data, None)
            }
            Start::State(state) => {
                let version = state.store.version;
                store.take_over(&options.job, state.store).map_err(Error::new)?;
                (version, state.data, state.saved)
            }
        };
        let ledger = ledger::Options {
            replicas: options.replicas,
            batch: options.batch_size,
            lockstep: true,
        };
        Ok(Self {
            store,
            residence: None,
            layout,
            version,
            sequence: 0,
            ledger: Ledger::new(ledger, &data),
            outstanding: 0,
            committed_at: Instant::now(),
            saved_at: Instant::now(),
            saved_step,
            events: Vec::new(),
            options,
        })
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// The newest step.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// What is to be brought to an accelerator. From now on steps are made there, of the gradients that are there: what `bring` returns is
    /// asked for them.
    pub(crate) fn reside(
        &mut self,
        bring: impl FnOnce(&Vectors) -> Result<Option<Resident>, Error>,
    ) -> Result<(), Error> {
        let state = self.store.state(&self.options.job).map_err(Error::new)?;
        let optimizer = &self.options.optimizer;
        let resident = bring(&residence::vectors_of(&state, &self.layout, optimizer))?;
        self.residence = resident.map(|resident| Residence::new(resident, optimizer.clone(), &state));
        Ok(())
    }

    /// The variables on the accelerator, if they are there.
    pub(crate) fn residence(&self) -> Option<&Residence> {
        self.residence.as_ref()
    }

    /// The store holds what the accelerator does.
    fn archive(&self) -> Result<(), Error> {
        if let Some(residence) = &self.residence
            && let Some(state) = residence.newer(self.version, &self.layout)?
        {
            self.store.take_over(&self.options.job, state).map_err(Error::new)?;
            residence.archive(self.version);
        }
        Ok(())
    }

    /// Refuses a step whose gradient, on the accelerator, is not finite, unless it is to be made all the same.
    pub(crate) fn check(&self) -> Result<(), ServiceError> {
        match &self.residence {
            Some(residence) if self.options.on_nan != OnNan::Apply => residence.check(),
            _ => Ok(()),
        }
    }

    /// All that is held now.
    pub(crate) fn state(&self) -> Result<State, Error> {
        self.archive()?;
        Ok(State {
            store: self.store.state(&self.options.job).map_err(Error::new)?,
            data: self.ledger.position(),
            saved: self.saved_step,
        })
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        let position = self.ledger.position();
        Progress {
            version: progress::VERSION,
            step: self.version,
            num_steps: self.options.num_steps,
            epoch: position.position / self.options.record_count.max(1),
            records_seen: position.records_seen(),
            last_checkpoint: self.saved_step.unwrap_or_default(),
        }
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Steps whose batches are not handed out yet.
    pub(crate) fn steps_left(&self) -> u64 {
        self.options.num_steps.saturating_sub(self.version + self.outstanding)
    }

    /// The batches of the next step, one for each replica; nothing when there is none.
    pub(crate) fn lease_step(&mut self) -> Option<Vec<Lease>> {
        if self.steps_left() == 0 {
            return None;
        }
        self.outstanding += 1;
        let lease = |replica| {
            let lease = self.ledger.lease(replica);
            Lease {
                id: lease.id,
                first_position: lease.first,
                count: lease.count as u32,
            }
        };
        Some((0..self.options.replicas).map(lease).collect())
    }

    /// Copies the variables to their places in the flat vector, unless they are on an accelerator.
    pub(crate) fn pull(&self, min_version: u64, variables: &mut [f32]) -> Result<u64, Error> {
        if self.residence.is_some() {
            return Ok(self.version);
        }
        let snapshot = self.store.pull(&self.options.job, min_version).map_err(Error::new)?;
        if let Some(server) = self.layout.server(0) {
            snapshot.scatter(server, variables);
        }
        Ok(snapshot.version())
    }

    /// Stages the gradient of the next step. `write` puts a range of the flat vector into the slice, which is as long. One that is refused
    /// leaves nothing behind.
    pub(crate) fn push(
        &mut self,
        version: u64,
        mut write: impl FnMut(Range<usize>, &mut [f32]),
    ) -> Result<(), ServiceError> {
        let tag = Tag {
            replica: 0,
            sequence: self.sequence,
            version,
        };
        let Push::Wanted(mut staging) = self.store.begin_push(&self.options.job, tag)? else {
            return Ok(());
        };
        let mut scratch = vec![0.0; AT_ONCE];
        if let Some(server) = self.layout.server(0) {
            for piece in server.pieces.iter().filter(|piece| piece.offset < server.pushed_len) {
                for start in (0..piece.length).step_by(AT_ONCE) {
                    let count = AT_ONCE.min(piece.length - start);
                    let flat = piece.flat + start;
                    let values = &mut scratch[..count];
                    write(flat..flat + count, values);
                    staging.take((piece.offset + start) as u64, values)?;
                }
            }
        }
        staging.finish()?;
        Ok(())
    }

    /// Makes the step of the gradient that was pushed, or that lies on the accelerator: there it is a sum, and `divisor` makes a mean of it.
    /// Its batches are `used`; others of the step go back.
    pub(crate) fn commit(
        &mut self,
        version: u64,
        samples: u32,
        divisor: f32,
        used: &[u64],
        returned: &[u64],
    ) -> Result<Committed, Error> {
        let committed = if let Some(residence) = &mut self.residence {
            residence.commit(version, divisor)?
        } else {
            let who = [Contributor {
                replica: 0,
                sequence: self.sequence,
                samples,
            }];
            self.store
                .commit(&self.options.job, version, &who, true)
                .map_err(Error::new)?
        };
        self.version = committed.version;
        for id in used {
            self.ledger.complete(*id);
        }
        self.give_back(returned);
        Ok(committed)
    }

    /// A step's batches go back, or what of them is left.
    pub(crate) fn give_back(&mut self, leases: &[u64]) {
        self.sequence += 1;
        for id in leases {
            self.ledger.give_back(*id);
        }
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// Tells of a step that was just committed.
    pub(crate) fn record(&mut self, made: Made) {
        let began = std::mem::replace(&mut self.committed_at, Instant::now());
        let record = StepRecord {
            step: self.version,
            losses: made.losses,
            learning_rate: f64::from(made.learning_rate),
            samples: made.samples,
            epoch: self.ledger.position().position.saturating_sub(1) / self.options.record_count.max(1),
            seconds: timing::attribute(began, self.committed_at, &made.spans).named(),
            staleness: Vec::new(),
            bytes_pushed: 0,
            bytes_pulled: 0,
        };
        self.events.push(Event::Step(record));
    }

    /// Writes a checkpoint if one is due.
    pub(crate) fn save_if_due(&mut self) {
        let due = match self.options.saving.every_steps {
            Some(steps) => self.version.is_multiple_of(steps.max(1)),
            None => self.saved_at.elapsed() >= self.options.saving.every,
        };
        if due && let Err(error) = self.save() {
            // The previous checkpoint is still there; the next attempt comes with the next due time.
            self.saved_at = Instant::now();
            self.events.push(Event::SaveFailed(error.to_string()));
        }
        self.committed_at = self.committed_at.max(self.saved_at);
    }

    /// Writes a checkpoint of the newest step, unless it has one. The last checkpoint of a job must succeed.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        if self.saved_step == Some(self.version) {
            return Ok(());
        }
        self.archive()?;
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
            replicas: self.options.replicas,
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
}
