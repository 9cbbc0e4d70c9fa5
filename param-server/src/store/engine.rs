use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1;
use tokio::sync::watch;

use super::backups::{Backups, Values};
use super::consistency::{Consistency, scaled};
use super::ledger::{Admit, Contributor, Ledger, Prepared, Tag};
use super::model::{Model, threads_for};
use super::replication::Update;
use super::{Snapshot, Status, lock};
use crate::optimizer::OptimizerConfig;
use crate::placement::{Layout, ServerLayout};
use crate::pool::{Buffer, Pool, Shelf};
use crate::schedule::learning_rate;

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Committed {
    /// Of the variables now.
    pub version: u64,
    /// Of the update.
    pub learning_rate: f32,
}

/// What waiters see.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen {
    Loading,
    At(u64),
    Retired,
}

impl Seen {
    pub(crate) fn is_retired(self) -> bool {
        matches!(self, Self::Retired)
    }

    pub(crate) fn version(self) -> Option<u64> {
        match self {
            Self::At(version) => Some(version),
            _ => None,
        }
    }
}

/// A complete contribution.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) buffer: Buffer,
    /// What it was computed from, when delays are compensated and this server knows.
    pub(crate) pulled: Option<Values>,
}

/// One incarnation's state. Lock order: model, then ledger, then backups; `ready` by itself.
#[derive(Debug)]
pub(crate) struct Engine {
    job_id: String,
    /// Grows when a coordinator that was started again takes over.
    incarnation: AtomicU64,
    pub(crate) ps: u32,
    pub(crate) layout: Layout,
    pub(crate) optimizer: OptimizerConfig,
    placement: v1::Placement,
    consistency: Consistency,
    /// `coati.on_nan: apply`
    accept_non_finite: AtomicBool,
    /// Keeps the variables of another server, until it is adopted.
    copy: AtomicBool,
    pub(super) threads: usize,
    pub(crate) pool: Arc<Pool>,
    /// Held for as long as a commit computes.
    pub(super) model: Mutex<Option<Model>>,
    /// Only for whoever holds the model.
    shelf: Mutex<Shelf>,
    /// Held for moments only.
    pub(super) ledger: Mutex<Option<Ledger<Staged>>>,
    /// The step that is prepared from the variables' version, if one is. Changed only under the model's lock.
    pub(super) ready: Mutex<Option<Arc<Update>>>,
    /// Empty unless delays are compensated. Held for moments only.
    backups: Mutex<Backups>,
    /// For a checkpoint.
    kept: Mutex<Option<(Model, u64)>>,
    versions: watch::Sender<Seen>,
}

impl Engine {
    pub(crate) fn new(
        job: v1::JobRef,
        ps: u32,
        placement: v1::Placement,
        layout: Layout,
        optimizer: OptimizerConfig,
        consistency: Consistency,
        threads: usize,
    ) -> Self {
        let pool = Pool::new(layout.server(ps).map_or(0, |server| server.pushed_len));
        Self {
            job_id: job.job_id,
            incarnation: AtomicU64::new(job.incarnation),
            ps,
            layout,
            optimizer,
            placement,
            consistency,
            accept_non_finite: AtomicBool::new(false),
            copy: AtomicBool::new(false),
            threads,
            pool,
            model: Mutex::default(),
            shelf: Mutex::default(),
            ledger: Mutex::default(),
            ready: Mutex::default(),
            backups: Mutex::default(),
            kept: Mutex::default(),
            versions: watch::Sender::new(Seen::Loading),
        }
    }

    /// The job and the incarnation that this engine serves now.
    pub(crate) fn job(&self) -> v1::JobRef {
        v1::JobRef {
            job_id: self.job_id.clone(),
            incarnation: self.incarnation.load(Ordering::SeqCst),
        }
    }

    /// Serves another incarnation from now on, with all that is held. Only under the store's lock.
    pub(crate) fn adopt(&self, incarnation: u64, reached: u64) -> Result<u64, ServiceError> {
        if self.is_copy() {
            let mut held = lock(&self.model);
            let model = held.as_mut().ok_or_else(not_loaded)?;
            let decided = lock(&self.ready).take_if(|ready| ready.version.checked_add(1) == Some(reached));
            if let Some(decided) = decided {
                self.apply_ready(model, decided, false)?;
            }
        }
        let version = self.version()?;
        self.incarnation.store(incarnation, Ordering::SeqCst);
        self.copy.store(false, Ordering::SeqCst);
        // Whoever waits for a version in the incarnation before hears that it is over.
        self.versions.send_modify(|_| {});
        Ok(version)
    }

    /// Keeps a copy from now on: takes its values from its original alone, and serves nobody until it is adopted. Refused once
    /// it holds variables of its own.
    pub(crate) fn become_copy(&self) -> Result<(), ServiceError> {
        if !self.has_values() {
            self.copy.store(true, Ordering::SeqCst);
        } else if !self.is_copy() {
            let message = format!("these are the variables of ps-{} themselves, not their copy", self.ps);
            return Err(ServiceError::new(ErrorCode::Conflict, message));
        }
        Ok(())
    }

    pub(crate) fn has_values(&self) -> bool {
        lock(&self.ledger).is_some()
    }

    /// Another incarnation begins in its place, and it is kept in case that does not come about; false when it holds nothing.
    /// Whoever waits for a version hears that it will not come.
    pub(crate) fn set_aside(&self) -> bool {
        let holds = self.has_values();
        if holds {
            self.versions.send_replace(Seen::Retired);
        }
        holds
    }

    /// After [`Engine::set_aside`]: it is needed after all.
    pub(crate) fn take_up(&self) {
        let version = lock(&self.ledger).as_ref().map(Ledger::version);
        self.versions.send_replace(version.map_or(Seen::Loading, Seen::At));
    }

    pub(crate) fn is_copy(&self) -> bool {
        self.copy.load(Ordering::SeqCst)
    }

    pub(crate) fn is_configured_as(
        &self,
        ps: u32,
        placement: &v1::Placement,
        optimizer: &OptimizerConfig,
        consistency: &Consistency,
    ) -> bool {
        self.ps == ps
            && self.placement == *placement
            && self.optimizer == *optimizer
            && self.consistency == *consistency
    }

    pub(crate) fn accept_non_finite(&self, accept: bool) {
        self.accept_non_finite.store(accept, Ordering::Relaxed);
    }

    pub(crate) fn accepts_non_finite(&self) -> bool {
        self.accept_non_finite.load(Ordering::Relaxed)
    }

    pub(crate) fn retire(&self) {
        self.versions.send_replace(Seen::Retired);
        *lock(&self.model) = None;
        *lock(&self.ledger) = None;
        *lock(&self.ready) = None;
        *lock(&self.backups) = Backups::default();
        *lock(&self.kept) = None;
    }

    pub(crate) fn versions(&self) -> watch::Receiver<Seen> {
        self.versions.subscribe()
    }

    pub(crate) fn server(&self) -> Result<&ServerLayout, ServiceError> {
        self.layout
            .server(self.ps)
            .ok_or_else(|| ServiceError::new(ErrorCode::Internal, "no layout for this server"))
    }

    pub(crate) fn status(&self) -> Status {
        // Not the model's lock: a status must not wait for a commit.
        let (version, staged) = lock(&self.ledger)
            .as_ref()
            .map_or((None, 0), |l| (Some(l.version()), l.staged()));
        let server = self.layout.server(self.ps);
        let vectors = self.optimizer.rule.slots().len()
            + usize::from(self.optimizer.moving_average_decay.is_some())
            + usize::from(self.is_adaptive());
        let backups = version.map_or(0, |newest| self.remembered(newest));
        let elements = server.map_or(0, |s| {
            (1 + backups) * s.arena_len + vectors * s.slotted_len + staged * s.pushed_len
        });
        let held_bytes = if version.is_some() { elements as u64 * 4 } else { 0 };
        Status {
            job: Some(self.job()),
            version,
            held_bytes,
            staged,
            copy: self.is_copy(),
            in_hand: lock(&self.ready)
                .as_ref()
                .map(|ready| ready.contributors.clone())
                .unwrap_or_default(),
        }
    }

    /// Number of arenas that delay compensation holds besides that of version `newest`, which is the model's own.
    fn remembered(&self, newest: u64) -> usize {
        let mut versions = BTreeSet::new();
        if let Some(ledger) = lock(&self.ledger).as_ref() {
            let staged = ledger.staged_data().filter_map(|staged| staged.pulled.as_ref());
            versions.extend(staged.map(|(version, _)| *version));
        }
        versions.append(&mut lock(&self.backups).versions());
        versions.remove(&newest);
        versions.len()
    }

    /// Checks that values may be (re)placed: not after training has begun from them.
    pub(crate) fn check_loadable(&self) -> Result<(), ServiceError> {
        match lock(&self.ledger).as_ref() {
            Some(ledger) if ledger.has_committed() => Err(ServiceError::new(
                ErrorCode::Conflict,
                format!(
                    "steps were committed in this incarnation, the variables are at version {}",
                    ledger.version()
                ),
            )
            .with_hint("begin a new incarnation to replace the variables")),
            // A load that is repeated after its answer was lost may arrive late.
            Some(ledger) if ledger.staged() > 0 => Err(ServiceError::new(
                ErrorCode::Conflict,
                format!(
                    "{} contributions are staged for the variables of version {}",
                    ledger.staged(),
                    ledger.version()
                ),
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn load(&self, values: Vec<f32>, version: u64) -> Result<(), ServiceError> {
        let server = self.server()?;
        if values.len() != server.arena_len {
            let message = format!("{} values loaded into an arena of {}", values.len(), server.arena_len);
            return Err(ServiceError::new(ErrorCode::LayoutMismatch, message));
        }
        self.install(self.new_model(values)?, version)
    }

    /// Slots as before the first step.
    pub(crate) fn new_model(&self, values: Vec<f32>) -> Result<Model, ServiceError> {
        let mut model = Model::new(values, self.server()?, &self.optimizer);
        if self.is_adaptive() {
            model.mean_squares = Some(Arc::new(vec![0.0; self.server()?.slotted_len]));
        }
        Ok(model)
    }

    pub(super) fn is_adaptive(&self) -> bool {
        let compensation = self.consistency.delay_compensation;
        compensation.is_some_and(|compensation| compensation.mean_square_decay.is_some())
    }

    pub(crate) fn install(&self, model: Model, version: u64) -> Result<(), ServiceError> {
        let mut held = lock(&self.model);
        self.check_loadable()?;
        self.replace(&mut held, model, version);
        Ok(())
    }

    /// Begins anew with this model. Under the model's lock, so that no waiter misses or overtakes a commit.
    pub(super) fn replace(&self, held: &mut Option<Model>, model: Model, version: u64) {
        *held = Some(model);
        *lock(&self.ledger) = Some(Ledger::new(version, self.consistency.max_staleness));
        *lock(&self.ready) = None;
        *lock(&self.backups) = Backups::default();
        self.announce(version);
    }

    fn announce(&self, version: u64) {
        self.versions.send_if_modified(|seen| {
            let changes = !seen.is_retired();
            if changes {
                *seen = Seen::At(version);
            }
            changes
        });
    }

    pub(crate) fn admit(&self, tag: Tag) -> Result<Admit, ServiceError> {
        lock(&self.ledger).as_ref().ok_or_else(not_loaded)?.admit(tag)
    }

    pub(crate) fn stage(&self, tag: Tag, data: Buffer) -> Result<Admit, ServiceError> {
        // Here and not with the commit: the replica may pull again before that.
        let compensates = self.consistency.delay_compensation.is_some();
        let mut ledger = lock(&self.ledger);
        let pulled = compensates
            .then(|| lock(&self.backups).of(tag.replica, tag.version))
            .flatten();
        let staged = Staged { buffer: data, pulled };
        let outcome = ledger.as_mut().ok_or_else(not_loaded)?.stage(tag, staged);
        drop(ledger);
        match outcome {
            Ok((admit, _unwanted)) => Ok(admit),
            Err((error, _unwanted)) => Err(error),
        }
    }

    pub(crate) fn commit(
        &self,
        version: u64,
        contributors: &[Contributor],
        drop_others: bool,
    ) -> Result<Committed, ServiceError> {
        let mut held = lock(&self.model);
        let model = held.as_mut().ok_or_else(not_loaded)?;
        let server = self.server()?;
        let ready = lock(&self.ready).take_if(|ready| ready.is(version, contributors));
        if let Some(ready) = ready {
            let learning_rate = ready.rate;
            self.apply_ready(model, ready, drop_others)?;
            return Ok(Committed {
                version: version + 1,
                learning_rate,
            });
        }
        let prepared = lock(&self.ledger)
            .as_mut()
            .ok_or_else(not_loaded)?
            .prepare(version, contributors)?;
        let (staged, staleness) = match prepared {
            Prepared::Repeat(learning_rate) => {
                return Ok(Committed {
                    version: version + 1,
                    learning_rate,
                });
            }
            Prepared::Apply {
                contributions,
                staleness,
            } => (contributions, staleness),
        };
        let rate = self.rate(learning_rate(&self.optimizer.learning_rate, version), staleness);
        let mut contributions = self.compensated(&model.values, model.mean_squares.as_mut(), server, staged);
        let threads = threads_for(server.pushed_len, self.threads);
        model.apply(
            server,
            &self.optimizer,
            rate,
            &mut contributions,
            &mut lock(&self.shelf),
            threads,
        );
        let released = self.applied(version, contributors, rate, drop_others);
        drop(held);
        drop((contributions, released));
        Ok(Committed {
            version: version + 1,
            learning_rate: rate,
        })
    }

    /// Applies a step that was prepared.
    pub(super) fn apply_ready(
        &self,
        model: &mut Model,
        ready: Arc<Update>,
        drop_others: bool,
    ) -> Result<(), ServiceError> {
        let server = self.server()?;
        let (version, rate) = (ready.version, ready.rate);
        let contributors = ready.contributors.clone();
        if ready.mean_squares.is_some() {
            model.mean_squares.clone_from(&ready.mean_squares);
        }
        let mean = match Arc::try_unwrap(ready) {
            Ok(ready) => ready.mean,
            // It is still on its way to the copy.
            Err(shared) => self.pool.copy(&shared.mean),
        };
        let threads = threads_for(server.pushed_len, self.threads);
        let (rule, shelf) = (&self.optimizer, &mut lock(&self.shelf));
        model.apply(server, rule, rate, &mut [(mean, 1)], shelf, threads);
        drop(self.applied(version, &contributors, rate, drop_others));
        Ok(())
    }

    /// Records what was applied; gives back what is of no use any more.
    fn applied(&self, version: u64, contributors: &[Contributor], rate: f32, drop_others: bool) -> Vec<Staged> {
        // What was prepared from this version and is not this step will never be one.
        *lock(&self.ready) = None;
        let released = lock(&self.ledger)
            .as_mut()
            .map(|ledger| ledger.applied(version, contributors, rate, drop_others));
        lock(&self.backups).forget((version + 1).saturating_sub(self.consistency.max_staleness));
        self.announce(version + 1);
        released.unwrap_or_default()
    }

    /// The learning rate of an update with gradients of this age.
    pub(super) fn rate(&self, scheduled: f32, staleness: u64) -> f32 {
        if self.consistency.scale_learning_rate {
            scaled(scheduled, staleness)
        } else {
            scheduled
        }
    }

    /// The contributions as they are to be applied: with what the variables changed since they were pulled made up for.
    pub(super) fn compensated(
        &self,
        now: &Arc<Vec<f32>>,
        mut mean_squares: Option<&mut Arc<Vec<f32>>>,
        server: &ServerLayout,
        staged: Vec<(Staged, u32)>,
    ) -> Vec<(Buffer, u32)> {
        let Some(compensation) = self.consistency.delay_compensation else {
            return staged
                .into_iter()
                .map(|(staged, samples)| (staged.buffer, samples))
                .collect();
        };
        let mut contributions = Vec::with_capacity(staged.len());
        for (Staged { mut buffer, pulled }, samples) in staged {
            // Without knowing, as if nothing had changed: the mean square goes on.
            let pulled = pulled.as_ref().map_or(now, |(_, values)| values);
            let mean_squares = mean_squares.as_deref_mut().map(Arc::make_mut);
            compensation.apply(
                &server.segments,
                &mut buffer.data,
                now,
                pulled,
                mean_squares.map_or(&mut [], Vec::as_mut_slice),
            );
            contributions.push((buffer, samples));
        }
        contributions
    }

    /// The values for `replica`, if it is one that computes from them.
    pub(crate) fn snapshot(
        &self,
        min_version: u64,
        averages: bool,
        replica: Option<u32>,
    ) -> Result<Snapshot, ServiceError> {
        let (model, version) = self.model()?;
        if version < min_version {
            return Err(ServiceError::new(
                ErrorCode::UnknownVersion,
                format!("version {min_version} is asked for, the variables are at version {version}"),
            ));
        }
        if let (Some(replica), false, true) = (replica, averages, self.consistency.delay_compensation.is_some()) {
            lock(&self.backups).pulled(replica, version, &model.values);
        }
        Snapshot::new(&model, self.server()?, version, averages)
    }

    /// Keeps what is held now for a checkpoint of `version`, in place of what was kept before.
    pub(crate) fn keep(&self, version: u64) -> Result<(), ServiceError> {
        if lock(&self.kept).as_ref().is_some_and(|(_, kept)| *kept == version) {
            return Ok(());
        }
        let (model, at) = self.model()?;
        if at != version {
            return Err(not_at(version, at));
        }
        *lock(&self.kept) = Some((model, at));
        Ok(())
    }

    /// What a checkpoint of `version` is written from.
    pub(crate) fn saved_model(&self, version: u64) -> Result<Model, ServiceError> {
        let kept = lock(&self.kept).as_ref().filter(|(_, kept)| *kept == version).cloned();
        if let Some((model, _)) = kept {
            return Ok(model);
        }
        match self.model()? {
            (model, at) if at == version => Ok(model),
            (_, at) => Err(not_at(version, at)),
        }
    }

    /// A checkpoint of `version` is written: nothing needs to be kept for it.
    pub(crate) fn release(&self, version: u64) {
        lock(&self.kept).take_if(|(_, kept)| *kept == version);
    }

    /// One consistent state; cheap, as vectors are shared.
    pub(crate) fn model(&self) -> Result<(Model, u64), ServiceError> {
        let held = lock(&self.model);
        let model = held.clone().ok_or_else(not_loaded)?;
        Ok((model, self.version()?))
    }

    /// Of the variables; that of a model in hand only under its lock.
    pub(super) fn version(&self) -> Result<u64, ServiceError> {
        let ledger = lock(&self.ledger);
        ledger.as_ref().map(Ledger::version).ok_or_else(not_loaded)
    }
}

fn not_at(wanted: u64, at: u64) -> ServiceError {
    let message = format!("a checkpoint of version {wanted} is asked for, the variables are at version {at}");
    let mut error = ServiceError::new(ErrorCode::UnknownVersion, message);
    error.retryable = at < wanted;
    error
}

pub(super) fn not_loaded() -> ServiceError {
    ServiceError::new(
        ErrorCode::NotConfigured,
        "this parameter server is configured but holds no values yet",
    )
}
