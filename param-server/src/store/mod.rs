//! One server's part of the model, without gRPC: a job on one machine uses it in its own process, the service for others.
//!
//! Each incarnation of a job gets an engine of its own by [`Store::configure`]; whatever still runs on an older one
//! ends there and harms nobody.

mod backups;
mod consistency;
mod engine;
mod ledger;
mod memory;
mod model;
mod persist;
mod replication;
mod snapshot;
mod staging;
mod state;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1;

pub use consistency::{Consistency, DelayCompensation};
pub use engine::Committed;
pub use ledger::{Admit, Contributor, Ledger, Prepared, Tag};
use persist::Written;
pub use persist::{Restored, Saved};
pub use replication::{Incoming, Seed, Update};
pub use snapshot::Snapshot;
pub(crate) use staging::Covered;
pub use staging::{Chunk, Loading, Push, Staging};
pub use state::State;

use crate::optimizer::OptimizerConfig;
use crate::placement::Layout;
use engine::{Engine, Seen};

/// Elements of all contributions of a step that are added up within some ten microseconds.
const LIGHT: usize = 32 << 10;

/// What a server can be told once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Threads that one commit may use; all cores when not given. Small arenas use one in any case.
    pub threads: Option<NonZeroUsize>,
}

/// See the module. All methods but [`Store::wait_for`] block; commits and saves for as long as the work takes.
#[derive(Debug, Default)]
pub struct Store {
    held: Mutex<Held>,
    options: Options,
    /// One save after the other, whatever their incarnation: they may be of the same step. What the last one wrote.
    written: Mutex<Option<Written>>,
}

/// What is held for one server.
#[derive(Debug, Default)]
struct Held {
    engine: Option<Arc<Engine>>,
    /// What an earlier incarnation left, for as long as the copy in `engine` has no values: until then it is the copy.
    former: Option<Arc<Engine>>,
}

impl Held {
    /// Begins anew. `keeps` says that what is held now stays at hand until there is something in its place.
    fn replace(&mut self, engine: Engine, keeps: bool) {
        let old = self.engine.replace(Arc::new(engine));
        let newest = old.into_iter().chain(self.former.take());
        for old in newest {
            if keeps && self.former.is_none() && old.set_aside() {
                self.former = Some(old);
            } else {
                old.retire();
            }
        }
    }

    /// Lets go of what an earlier incarnation left.
    fn settle(&mut self) {
        if let Some(former) = self.former.take() {
            former.retire();
        }
    }
}

/// What a status line shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Of the engine, if it is configured.
    pub job: Option<v1::JobRef>,
    /// Version of the variables, once they are loaded.
    pub version: Option<u64>,
    /// Bytes of variables, slots, averages, staged contributions, and of what delay compensation remembers.
    pub held_bytes: u64,
    /// Contributions staged.
    pub staged: usize,
    /// It keeps the variables of another server.
    pub copy: bool,
    /// Whose step is prepared from this version; nobody's when none is.
    pub in_hand: Vec<Contributor>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere is reported there; the data is consistent at every point where a lock is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Not configured, holds nothing.
    pub fn new(options: Options) -> Self {
        Self {
            held: Mutex::default(),
            options,
            written: Mutex::default(),
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
        consistency: impl Into<Consistency>,
    ) -> Result<(), ServiceError> {
        self.begin(job, ps, placement, optimizer, consistency.into(), false)
    }

    /// As [`Store::configure`], to keep the copy of a server's variables: it takes its values from [`Store::follow`] and serves
    /// nobody until it is adopted. What was held for an older incarnation is not forgotten before the values are there.
    pub fn configure_copy(
        &self,
        job: &v1::JobRef,
        ps: u32,
        placement: &v1::Placement,
        optimizer: OptimizerConfig,
        consistency: impl Into<Consistency>,
    ) -> Result<(), ServiceError> {
        self.begin(job, ps, placement, optimizer, consistency.into(), true)
    }

    fn begin(
        &self,
        job: &v1::JobRef,
        ps: u32,
        placement: &v1::Placement,
        optimizer: OptimizerConfig,
        consistency: Consistency,
        copy: bool,
    ) -> Result<(), ServiceError> {
        let mut held = lock(&self.held);
        if let Some(engine) = &held.engine {
            let own = engine.job();
            belongs(&own, job)?;
            if job.incarnation == own.incarnation {
                if !engine.is_configured_as(ps, placement, &optimizer, &consistency) {
                    let message = format!("incarnation {} was configured otherwise before", job.incarnation);
                    return Err(ServiceError::new(ErrorCode::Conflict, message).with_hint("begin a new incarnation"));
                }
                return if copy { engine.become_copy() } else { Ok(()) };
            }
        }
        let layout =
            Layout::new(placement).map_err(|error| ServiceError::new(ErrorCode::LayoutMismatch, error.to_string()))?;
        let Some(server) = layout.server(ps) else {
            let message = format!(
                "ps-{ps} is not one of the placement's {} servers",
                layout.servers().len()
            );
            return Err(ServiceError::new(ErrorCode::LayoutMismatch, message));
        };
        memory::check(ps, memory::needed(server, &optimizer), memory::of_this_machine())?;
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
            consistency,
            threads,
        );
        if copy {
            engine.become_copy()?;
        }
        held.replace(engine, copy);
        Ok(())
    }

    /// A coordinator that was started again goes on with what is held, staged contributions included: requests of the
    /// incarnation before are refused from now on. Returns the version. The same again changes nothing.
    ///
    /// A copy that is one step behind `reached`, with that step in hand, makes it: the decision is known by then.
    pub fn adopt(&self, job: &v1::JobRef, reached: u64) -> Result<u64, ServiceError> {
        let mut held = lock(&self.held);
        if let Some(engine) = &held.engine {
            belongs(&engine.job(), job)?;
        }
        if held.engine.as_ref().is_none_or(|engine| !engine.has_values())
            && let Some(former) = held.former.take()
        {
            former.take_up();
            if let Some(empty) = held.engine.replace(former) {
                empty.retire();
            }
        }
        let engine = held.engine.as_ref().ok_or_else(|| {
            ServiceError::new(
                ErrorCode::NotConfigured,
                "this parameter server holds nothing to go on with",
            )
        })?;
        engine.adopt(job.incarnation, reached)
    }

    /// Lets go of a copy, and of what earlier incarnations left. What this incarnation serves stays.
    pub fn forget(&self, job: &v1::JobRef) -> Result<(), ServiceError> {
        let mut held = lock(&self.held);
        let Some(engine) = &held.engine else { return Ok(()) };
        let own = engine.job();
        belongs(&own, job)?;
        if engine.is_copy() || own.incarnation < job.incarnation {
            engine.retire();
            held.engine = None;
        }
        held.settle();
        Ok(())
    }

    /// Whether gradients with NaN or infinity are staged like any other (`coati.on_nan: apply`) instead of being refused,
    /// which is how an incarnation begins.
    pub fn accept_non_finite(&self, job: &v1::JobRef, accept: bool) -> Result<(), ServiceError> {
        self.any_engine(job)?.accept_non_finite(accept);
        Ok(())
    }

    /// The engine of exactly this incarnation, which holds the variables themselves and not their copy.
    pub(crate) fn engine(&self, job: &v1::JobRef) -> Result<Arc<Engine>, ServiceError> {
        let engine = self.any_engine(job)?;
        if engine.is_copy() {
            let message = format!("this is the copy of ps-{}, kept for its loss", engine.ps);
            return Err(ServiceError::new(ErrorCode::NotConfigured, message));
        }
        Ok(engine)
    }

    fn any_engine(&self, job: &v1::JobRef) -> Result<Arc<Engine>, ServiceError> {
        let held = lock(&self.held);
        let engine = held.engine.as_ref().ok_or_else(|| {
            ServiceError::new(
                ErrorCode::NotConfigured,
                "this parameter server has not been configured yet",
            )
        })?;
        let own = engine.job();
        if own.job_id != job.job_id {
            return Err(wrong_job(&own, job));
        }
        match job.incarnation.cmp(&own.incarnation) {
            std::cmp::Ordering::Less => Err(stale(&own, job)),
            std::cmp::Ordering::Greater => Err(ServiceError::new(
                ErrorCode::NotConfigured,
                format!(
                    "this parameter server is configured for incarnation {}, not yet for {}",
                    own.incarnation, job.incarnation
                ),
            )),
            std::cmp::Ordering::Equal => Ok(Arc::clone(engine)),
        }
    }

    /// Lets go of everything, and of everybody who waits.
    pub(crate) fn retire(&self) {
        let mut held = lock(&self.held);
        if let Some(engine) = &held.engine {
            engine.retire();
        }
        held.settle();
    }

    /// What is held now.
    pub fn status(&self) -> Status {
        let engine = lock(&self.held).engine.clone();
        engine.map_or_else(Status::default, |engine| engine.status())
    }

    /// What an earlier incarnation left here and a copy has not replaced yet.
    pub fn former(&self) -> Option<Status> {
        let former = lock(&self.held).former.clone();
        former.map(|engine| engine.status())
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

    /// Whether a step of so many contributions takes some microseconds only.
    pub(crate) fn is_light(&self, job: &v1::JobRef, contributions: usize) -> Result<bool, ServiceError> {
        let elements = self.engine(job)?.server()?.pushed_len;
        Ok(elements.saturating_mul(contributions) <= LIGHT)
    }

    /// Forms the mean of these contributions, which the commit that names the same ones applies; nothing when that was
    /// applied before. Hand it to the copy, if there is one.
    pub fn prepare(
        &self,
        job: &v1::JobRef,
        version: u64,
        contributors: &[Contributor],
    ) -> Result<Option<Arc<Update>>, ServiceError> {
        self.engine(job)?.prepare(version, contributors)
    }

    /// Everything as it is now, for a copy to begin with, and the step that is prepared on top of it.
    pub fn all(&self, job: &v1::JobRef) -> Result<(Seed, Option<Arc<Update>>), ServiceError> {
        self.engine(job)?.all()
    }

    /// Begins to take, as a copy, what its original holds or has prepared.
    pub fn follow(&self, begin: v1::FollowBegin) -> Result<Incoming, ServiceError> {
        let job = begin.job.clone().unwrap_or_default();
        Incoming::new(self.any_engine(&job)?, begin)
    }

    /// Takes over what came, if it is complete.
    pub fn followed(&self, incoming: Incoming) -> Result<(), ServiceError> {
        let job = incoming.job();
        incoming.finish()?;
        let mut held = lock(&self.held);
        // Not what was set aside for a later incarnation meanwhile.
        if held.engine.as_ref().is_some_and(|engine| engine.job() == job) {
            held.settle();
        }
        Ok(())
    }

    /// The newest values, if they are at `min_version` at least. Cheap; never changes afterwards.
    pub fn pull(&self, job: &v1::JobRef, min_version: u64) -> Result<Snapshot, ServiceError> {
        self.engine(job)?.snapshot(min_version, false, None)
    }

    /// As [`Store::pull`], for a replica that computes a gradient from them: delay compensation remembers what it got.
    pub fn pull_as(&self, job: &v1::JobRef, replica: u32, min_version: u64) -> Result<Snapshot, ServiceError> {
        self.engine(job)?.snapshot(min_version, false, Some(replica))
    }

    /// As [`Store::pull`], with moving averages in place of trainable variables.
    pub fn pull_averages(&self, job: &v1::JobRef, min_version: u64) -> Result<Snapshot, ServiceError> {
        self.engine(job)?.snapshot(min_version, true, None)
    }

    /// How many of the arena's first elements belong to trainable variables alone.
    pub fn trainable(&self, job: &v1::JobRef) -> Result<usize, ServiceError> {
        self.engine(job)?.server().map(|server| server.slotted_len)
    }

    /// Waits until the variables are at `version` at least, or this incarnation is over. Has no deadline of its own.
    pub async fn wait_for(&self, job: &v1::JobRef, version: u64) -> Result<(), ServiceError> {
        let engine = self.engine(job)?;
        let mut versions = engine.versions();
        let over = |seen: &Seen| seen.is_retired() || engine.job().incarnation != job.incarnation;
        let _ = versions
            .wait_for(|seen| over(seen) || seen.version().is_some_and(|v| v >= version))
            .await;
        // Closed, retired or taken over: this look at the engine says by which incarnation.
        self.engine(job).map(|_| ())
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
        // Held to the end: a request that is repeated because its connection broke waits for the first one.
        let mut written = lock(&self.written);
        persist::save(
            self.engine(job)?.as_ref(),
            &mut written,
            prefix,
            shard,
            shard_count,
            version,
        )
    }
}

/// Refuses a request of another job, or of an older incarnation than the one that is served.
pub(crate) fn belongs(own: &v1::JobRef, asking: &v1::JobRef) -> Result<(), ServiceError> {
    if own.job_id != asking.job_id {
        return Err(wrong_job(own, asking));
    }
    if asking.incarnation < own.incarnation {
        return Err(stale(own, asking));
    }
    Ok(())
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
