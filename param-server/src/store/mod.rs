//! One server's part of the model, without gRPC: a job on one machine uses it in its own process, the service for others.
//!
//! Each incarnation of a job gets an engine of its own by [`Store::configure`]; whatever still runs on an older one
//! ends there and harms nobody.

mod engine;
mod ledger;
mod model;
mod persist;
mod snapshot;
mod staging;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1;

pub use engine::Committed;
pub use ledger::{Admit, Contributor, Ledger, Prepared, Tag};
pub use persist::{Restored, Saved};
pub use snapshot::Snapshot;
pub(crate) use staging::Covered;
pub use staging::{Chunk, Loading, Push, Staging};

use crate::optimizer::OptimizerConfig;
use crate::placement::Layout;
use engine::Engine;

/// What a server can be told once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Threads that one commit may use; all cores when not given. Small arenas use one in any case.
    pub threads: Option<NonZeroUsize>,
}

/// See the module. All methods but [`Store::wait_for`] block; commits and saves for as long as the work takes.
#[derive(Debug, Default)]
pub struct Store {
    engine: Mutex<Option<Arc<Engine>>>,
    options: Options,
}

/// What a status line shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Of the engine, if it is configured.
    pub job: Option<v1::JobRef>,
    /// Version of the variables, once they are loaded.
    pub version: Option<u64>,
    /// Bytes of variables, slots, averages and staged contributions.
    pub held_bytes: u64,
    /// Contributions staged.
    pub staged: usize,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere is reported there; the data is consistent at every point where a lock is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Not configured, holds nothing.
    pub fn new(options: Options) -> Self {
        Self {
            engine: Mutex::default(),
            options,
        }
    }

    /// Takes the placement and the optimiser for this incarnation and forgets what was held for an older one. The same
    /// again changes nothing.
    pub fn configure(
        &self,
        job: &v1::JobRef,
        ps: u32,
        placement: &v1::Placement,
        optimizer: OptimizerConfig,
        max_staleness: u64,
    ) -> Result<(), ServiceError> {
        let mut slot = lock(&self.engine);
        if let Some(engine) = slot.as_ref() {
            if engine.job.job_id != job.job_id {
                return Err(wrong_job(&engine.job, job));
            }
            if job.incarnation < engine.job.incarnation {
                return Err(stale(&engine.job, job));
            }
            if job.incarnation == engine.job.incarnation {
                return if engine.is_configured_as(ps, placement, &optimizer, max_staleness) {
                    Ok(())
                } else {
                    let message = format!("incarnation {} was configured otherwise before", job.incarnation);
                    Err(ServiceError::new(ErrorCode::Conflict, message).with_hint("begin a new incarnation"))
                };
            }
        }
        let layout =
            Layout::new(placement).map_err(|error| ServiceError::new(ErrorCode::LayoutMismatch, error.to_string()))?;
        if layout.server(ps).is_none() {
            let message = format!(
                "ps-{ps} is not one of the placement's {} servers",
                layout.servers().len()
            );
            return Err(ServiceError::new(ErrorCode::LayoutMismatch, message));
        }
        let threads = self.options.threads.map_or_else(
            || available_parallelism().map_or(1, NonZeroUsize::get),
            NonZeroUsize::get,
        );
        let engine = Engine::new(
            job.clone(),
            ps,
            placement.clone(),
            layout,
            optimizer,
            max_staleness,
            threads,
        );
        if let Some(old) = slot.replace(Arc::new(engine)) {
            old.retire();
        }
        Ok(())
    }

    /// The engine of exactly this incarnation.
    pub(crate) fn engine(&self, job: &v1::JobRef) -> Result<Arc<Engine>, ServiceError> {
        let slot = lock(&self.engine);
        let engine = slot.as_ref().ok_or_else(|| {
            ServiceError::new(
                ErrorCode::NotConfigured,
                "this parameter server has not been configured yet",
            )
        })?;
        if engine.job.job_id != job.job_id {
            return Err(wrong_job(&engine.job, job));
        }
        match job.incarnation.cmp(&engine.job.incarnation) {
            std::cmp::Ordering::Less => Err(stale(&engine.job, job)),
            std::cmp::Ordering::Greater => Err(ServiceError::new(
                ErrorCode::NotConfigured,
                format!(
                    "this parameter server is configured for incarnation {}, not yet for {}",
                    engine.job.incarnation, job.incarnation
                ),
            )),
            std::cmp::Ordering::Equal => Ok(Arc::clone(engine)),
        }
    }

    /// What is held now.
    pub fn status(&self) -> Status {
        let engine = lock(&self.engine).clone();
        engine.map_or_else(Status::default, |engine| engine.status())
    }

    /// Begins to take initial values, chunk by chunk.
    pub fn begin_load(&self, job: &v1::JobRef) -> Result<Loading, ServiceError> {
        Loading::new(self.engine(job)?)
    }

    /// Takes this server's arena `[arena_len]`; slots start as the optimiser defines.
    pub fn load(&self, job: &v1::JobRef, values: Vec<f32>, version: u64) -> Result<(), ServiceError> {
        self.engine(job)?.load(values, version)
    }

    /// Begins to stage a contribution, chunk by chunk.
    pub fn begin_push(&self, job: &v1::JobRef, tag: Tag) -> Result<Push, ServiceError> {
        Staging::begin(self.engine(job)?, tag)
    }

    /// Stages a whole contribution: this server's arena without its tail of constants, `[pushed_len]`.
    pub fn push(&self, job: &v1::JobRef, tag: Tag, data: &[f32]) -> Result<Admit, ServiceError> {
        match self.begin_push(job, tag)? {
            Push::Ignored(admit) => Ok(admit),
            Push::Wanted(mut staging) => {
                staging.take(0, data)?;
                staging.finish()
            }
        }
    }

    /// Applies exactly these contributions to `version`, or nothing. Repeating it answers the same.
    pub fn commit(
        &self,
        job: &v1::JobRef,
        version: u64,
        contributors: &[Contributor],
        drop_others: bool,
    ) -> Result<Committed, ServiceError> {
        self.engine(job)?.commit(version, contributors, drop_others)
    }

    /// The newest values, if they are at `min_version` at least. Cheap; never changes afterwards.
    pub fn pull(&self, job: &v1::JobRef, min_version: u64) -> Result<Snapshot, ServiceError> {
        self.engine(job)?.snapshot(min_version, false)
    }

    /// As [`Store::pull`], with moving averages in place of trainable variables.
    pub fn pull_averages(&self, job: &v1::JobRef, min_version: u64) -> Result<Snapshot, ServiceError> {
        self.engine(job)?.snapshot(min_version, true)
    }

    /// How many of the arena's first elements belong to trainable variables alone.
    pub fn trainable(&self, job: &v1::JobRef) -> Result<usize, ServiceError> {
        self.engine(job)?.server().map(|server| server.slotted_len)
    }

    /// Waits until the variables are at `version` at least, or this incarnation is over. Has no deadline of its own.
    pub async fn wait_for(&self, job: &v1::JobRef, version: u64) -> Result<(), ServiceError> {
        let engine = self.engine(job)?;
        let mut versions = engine.versions();
        // Closed or retired: the next look at the engine says which incarnation took over.
        let reached = versions
            .wait_for(|seen| seen.is_retired() || seen.version().is_some_and(|v| v >= version))
            .await;
        if reached.is_ok_and(|seen| !seen.is_retired()) {
            Ok(())
        } else {
            self.engine(job).map(|_| ())
        }
    }

    /// Reads this server's pieces, slots included, from checkpoint `prefix`.
    pub fn restore(
        &self,
        job: &v1::JobRef,
        prefix: &str,
        version: u64,
        slots_optional: bool,
    ) -> Result<Restored, ServiceError> {
        persist::restore(self.engine(job)?.as_ref(), prefix, version, slots_optional)
    }

    /// Keeps the current version, which must be `version`, for a [`Store::save`] that comes later. Waits for a commit
    /// under way and takes moments otherwise: vectors are shared, and copied by the next commit. One version is kept.
    pub fn snapshot(&self, job: &v1::JobRef, version: u64) -> Result<(), ServiceError> {
        self.engine(job)?.keep(version)
    }

    /// Writes this server's data file of a checkpoint of the version that [`Store::snapshot`] kept, which is kept no
    /// longer then, or else of the current one. Commits may go on meanwhile.
    pub fn save(
        &self,
        job: &v1::JobRef,
        prefix: &str,
        shard: u32,
        shard_count: u32,
        version: u64,
    ) -> Result<Saved, ServiceError> {
        persist::save(self.engine(job)?.as_ref(), prefix, shard, shard_count, version)
    }
}

fn wrong_job(own: &v1::JobRef, job: &v1::JobRef) -> ServiceError {
    let message = format!(
        "this parameter server belongs to job `{}`, the request to job `{}`",
        own.job_id, job.job_id
    );
    ServiceError::new(ErrorCode::WrongJob, message).with_hint("two jobs use the same address; give one of them others")
}

fn stale(own: &v1::JobRef, job: &v1::JobRef) -> ServiceError {
    ServiceError::new(
        ErrorCode::StaleIncarnation,
        format!("incarnation {} is over, this is {}", job.incarnation, own.incarnation),
    )
}
