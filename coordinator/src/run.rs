//! Runs a job's coordinator: forms the cluster, commits steps, saves, ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use coati_checkpoint::manifest::{self, DataPosition, Manifest};
use coati_checkpoint::{keep, saver};
use coati_common::rpc::{self, MESSAGE_LIMIT_BYTES};
use coati_common::variables::VariableSpec;
use coati_param_server::{Contributor, PsGroup, Strategy, plan};
use coati_proto::coati::v1;
use coati_proto::coati::v1::coordinator_server::CoordinatorServer;
use coati_proto::coati::v1::report_reply::Outcome as Fate;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::cadence::{self, Last};
use crate::clock::{self, Clock, Decision, Reported};
use crate::invariants::{Invariant, check};
use crate::ledger::{self, Ledger};
use crate::membership::{Identity, Membership};
use crate::service::Service;
use crate::state::{Details, Inner, Phase, State};

/// Where the variables come from.
#[derive(Clone, Debug)]
pub enum Init {
    /// The model's flat vector, at version 0.
    Values(Arc<Vec<f32>>),
    /// A checkpoint that all parameter servers can read.
    Checkpoint {
        /// Its prefix.
        prefix: PathBuf,
        /// Its global step.
        step: u64,
        /// What of the data it has used.
        data: DataPosition,
    },
}

/// A job.
#[derive(Clone, Debug)]
pub struct Options {
    /// The job and this start of it.
    pub job: v1::JobRef,
    /// Folder for checkpoints; parameter servers see it under the same path.
    pub model_dir: PathBuf,
    /// `host:port` to listen on.
    pub listen: String,
    /// `host:port` of each parameter server, by index.
    pub ps_addresses: Vec<String>,
    /// Replicas besides the master.
    pub workers: u32,
    /// The model's variables, in declared order.
    pub variables: Vec<VariableSpec>,
    /// Their values.
    pub init: Init,
    /// Serialised `object_detection.protos.Optimizer`.
    pub optimizer: Bytes,
    /// The step to end at.
    pub num_steps: u64,
    /// Examples a replica and step.
    pub batch_size: u32,
    /// What all replicas must agree on.
    pub identity: Identity,
    /// Of the order of the records.
    pub data_seed: u64,
    /// How variables are spread.
    pub strategy: Strategy,
    /// `train_config.sync_replicas`
    pub synchronous: bool,
    /// `train_config.replicas_to_aggregate`; 0 means all.
    pub replicas_to_aggregate: u32,
    /// Bound in asynchronous training.
    pub max_staleness: u64,
    /// When to save.
    pub cadence: cadence::Options,
    /// What to keep.
    pub keep: keep::Options,
    /// Longest waits.
    pub limits: Limits,
}

/// Longest waits; each ends in an error that names the peer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For everybody to join and the variables to be loaded.
    pub formation: Duration,
    /// Between two signs of life that tasks are asked for.
    pub heartbeat_interval: Duration,
    /// Silence after which a task counts as lost.
    pub heartbeat_timeout: Duration,
    /// For a commit on all servers, retries included.
    pub commit: Duration,
    /// For a checkpoint.
    pub save: Duration,
    /// For replicas and servers to leave at the end.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            formation: Duration::from_secs(60),
            heartbeat_interval: Duration::from_secs(1),
            heartbeat_timeout: Duration::from_secs(30),
            commit: Duration::from_secs(30),
            save: Duration::from_secs(300),
            farewell: Duration::from_secs(10),
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Everybody is there, training starts.
    Formed {
        /// Training replicas.
        replicas: u32,
    },
    /// A step was committed.
    Step {
        /// Its version: `global_step` after it.
        version: u64,
        /// Means over the contributors' samples.
        losses: Vec<(String, f64)>,
        /// Of the update.
        learning_rate: f64,
        /// Examples in it.
        samples: u64,
        /// Epoch of the newest record used.
        epoch: u64,
        /// The slowest contributor's seconds by phase.
        seconds: Vec<(String, f64)>,
        /// Largest staleness among the contributors.
        staleness: u64,
    },
    /// A checkpoint is complete.
    Saved {
        /// Its prefix.
        prefix: PathBuf,
        /// Its step.
        step: u64,
    },
    /// Something that the user should know.
    Warning(String),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The last step is committed and saved.
    Completed,
    /// Stopped on request after saving.
    Interrupted(String),
    /// Failed, with the reason.
    Failed(String),
}

/// A running coordinator.
pub struct Handle {
    state: Arc<State>,
    address: String,
    outcome: JoinHandle<Outcome>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    close: watch::Sender<bool>,
}

impl Handle {
    /// Where replicas find it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// For those who may stop the job.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.state))
    }

    /// Ends the job as failed: the master itself cannot go on.
    pub fn fail(&self, reason: &str) {
        let mut inner = self.state.lock();
        if !inner.is_over() {
            inner.phase = Phase::Failed(reason.to_owned());
        }
        drop(inner);
        self.state.work.notify_one();
        self.state.changed();
    }

    /// Waits for the end: last checkpoint, replicas and servers told.
    pub async fn finish(self) -> Outcome {
        let outcome = self
            .outcome
            .await
            .unwrap_or_else(|error| Outcome::Failed(format!("the coordinator ended unexpectedly: {error}")));
        self.close.send_replace(true);
        let _ = tokio::time::timeout(Duration::from_secs(2), self.server).await;
        outcome
    }
}

/// Can stop a job in order. Cloneable.
#[derive(Clone)]
pub struct Stopper(Arc<State>);

impl Stopper {
    /// Asks for a checkpoint after the current step, and the end.
    pub fn stop(&self, reason: &str) {
        self.0.lock().stop.get_or_insert_with(|| reason.to_owned());
        self.0.work.notify_one();
    }
}

/// Listens and starts to form the cluster. Errors later on come with [`Handle::finish`].
pub async fn start(options: Options, events: mpsc::UnboundedSender<Event>) -> Result<Handle, rpc::Error> {
    let listener = rpc::bind(&options.listen).await?;
    let replicas = options.workers + 1;
    let aggregate = if options.replicas_to_aggregate == 0 {
        replicas
    } else {
        options.replicas_to_aggregate.min(replicas)
    };
    let lockstep = options.synchronous && aggregate == replicas;
    let (start_version, data) = match &options.init {
        Init::Values(_) => (0, DataPosition::default()),
        Init::Checkpoint { step, data, .. } => (*step, data.clone()),
    };
    let clock = clock::Options {
        replicas,
        aggregate,
        synchronous: options.synchronous,
        max_staleness: options.max_staleness,
    };
    let ledger = ledger::Options {
        replicas,
        batch: options.batch_size,
        lockstep,
    };
    let expected = (0..replicas).map(Inner::task_of).collect();
    let inner = Inner {
        phase: Phase::Forming("the parameter servers".to_owned()),
        membership: Membership::new(expected, options.identity.clone(), options.limits.heartbeat_timeout),
        clock: Clock::new(clock, start_version),
        ledger: Ledger::new(ledger, &data),
        plan: None,
        decided: std::collections::BTreeMap::new(),
        details: std::collections::BTreeMap::new(),
        leases: std::collections::BTreeMap::new(),
        stop: None,
        told: std::collections::BTreeSet::new(),
        last_checkpoint: start_version,
        num_steps: options.num_steps,
        lockstep,
        replicas,
        start_version,
        record_count: options.identity.record_count,
    };
    let state = Arc::new(State::new(options.job.clone(), inner));
    let service = Service {
        state: Arc::clone(&state),
        heartbeat_interval: options.limits.heartbeat_interval,
    };
    let service = CoordinatorServer::new(service).max_decoding_message_size(MESSAGE_LIMIT_BYTES);
    let (close, mut closed) = watch::channel(false);
    let server = tokio::spawn(rpc::server().add_service(service).serve_with_incoming_shutdown(
        listener.incoming,
        async move {
            let _ = closed.wait_for(|closed| *closed).await;
        },
    ));
    let run = Run {
        state: Arc::clone(&state),
        events,
        options,
    };
    let outcome = tokio::spawn(run.run());
    Ok(Handle {
        state,
        address: listener.address.to_string(),
        outcome,
        server,
        close,
    })
}

struct Run {
    state: Arc<State>,
    events: mpsc::UnboundedSender<Event>,
    options: Options,
}

impl Run {
    async fn run(self) -> Outcome {
        let servers = match self.form().await {
            Ok(servers) => servers,
            Err((reason, servers)) => {
                self.end(Phase::Failed(reason.clone()));
                self.farewell(servers.as_ref(), &reason).await;
                return Outcome::Failed(reason);
            }
        };
        let _ = self.events.send(Event::Formed {
            replicas: self.state.lock().replicas,
        });
        let beat = keep_alive(servers.clone(), self.options.limits.heartbeat_timeout / 3);
        let ended = self.train(&servers).await;
        beat.abort();
        let saved = self.save(&servers).await;
        let outcome = match (ended, saved) {
            (Err(reason), Ok(())) => Outcome::Failed(reason),
            (Err(reason), Err(error)) => Outcome::Failed(format!(
                "{reason}; besides, the last checkpoint could not be written: {error}"
            )),
            (Ok(_), Err(error)) => Outcome::Failed(format!("the last checkpoint could not be written: {error}")),
            (Ok(None), Ok(())) => Outcome::Completed,
            (Ok(Some(reason)), Ok(())) => Outcome::Interrupted(reason),
        };
        let (phase, reason) = match &outcome {
            Outcome::Failed(reason) => (Phase::Failed(reason.clone()), reason.clone()),
            Outcome::Interrupted(reason) => (Phase::Draining(reason.clone()), reason.clone()),
            Outcome::Completed => (
                Phase::Draining("the job is complete".to_owned()),
                "the job is complete".to_owned(),
            ),
        };
        self.end(phase);
        self.farewell(Some(&servers), &reason).await;
        outcome
    }

    fn end(&self, phase: Phase) {
        self.state.lock().phase = phase;
        self.state.changed();
    }

    fn waiting(&self, text: String) {
        let mut inner = self.state.lock();
        if matches!(inner.phase, Phase::Forming(_)) {
            inner.phase = Phase::Forming(text);
        }
    }

    /// Connects and loads the servers, waits for the replicas.
    async fn form(&self) -> Result<PsGroup, (String, Option<PsGroup>)> {
        let options = &self.options;
        let deadline = Instant::now() + options.limits.formation;
        let alone = |error: String| (error, None);
        let placement = plan(&options.variables, options.ps_addresses.len() as u32, options.strategy)
            .map_err(|error| alone(error.to_string()))?;
        let servers = PsGroup::connect(
            placement.clone(),
            &options.ps_addresses,
            &options.job,
            options.limits.formation,
        )
        .await
        .map_err(|error| alone(format!("the cluster could not form: {error}")))?;
        let failed = |error: String| (format!("the cluster could not form: {error}"), Some(servers.clone()));
        for client in servers.clients() {
            let status = client
                .status(options.limits.commit)
                .await
                .map_err(|error| failed(error.to_string()))?;
            let own = env!("CARGO_PKG_VERSION");
            if status.software_version != own {
                let reason = format!(
                    "{} runs Coati {}, the master runs {own}\nhint: install the same version everywhere",
                    client.peer(),
                    status.software_version
                );
                return Err((reason, Some(servers.clone())));
            }
        }
        let bound = if options.synchronous { 0 } else { options.max_staleness };
        servers
            .configure(options.optimizer.clone(), bound, options.limits.formation)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let start_version = match &options.init {
            Init::Values(values) => {
                servers
                    .load(values, 0, options.limits.formation)
                    .await
                    .map_err(|error| failed(error.to_string()))?;
                0
            }
            Init::Checkpoint { prefix, step, .. } => {
                let prefix = prefix.display().to_string();
                servers
                    .restore(&prefix, *step, false, options.limits.save)
                    .await
                    .map_err(|error| failed(error.to_string()))?;
                *step
            }
        };
        self.await_members(deadline)
            .await
            .map_err(|reason| (reason, Some(servers.clone())))?;
        let mut inner = self.state.lock();
        inner.plan = Some(v1::JobPlan {
            placement: Some(placement),
            ps_addresses: options.ps_addresses.clone(),
            start_version,
            num_steps: options.num_steps,
            replica: 0,
            replicas: inner.replicas,
            synchronous: options.synchronous,
            max_staleness: options.max_staleness,
            data_seed: options.data_seed,
            batch_size: options.batch_size,
        });
        inner.phase = Phase::Training;
        drop(inner);
        self.state.changed();
        Ok(servers)
    }

    async fn await_members(&self, deadline: Instant) -> Result<(), String> {
        loop {
            let missing = {
                let inner = self.state.lock();
                if let Phase::Failed(reason) = &inner.phase {
                    return Err(reason.clone());
                }
                inner.membership.missing().join(", ")
            };
            if missing.is_empty() {
                return Ok(());
            }
            if let Some(reason) = self.state.lock().stop.clone() {
                return Err(format!("stopped while the cluster was forming: {reason}"));
            }
            self.waiting(missing.clone());
            let left = deadline.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, self.state.work.notified()).await.is_err() {
                return Err(format!(
                    "the cluster could not form: {missing} did not join within {:.0} s\nhint: look into the task's log; does it reach the master at its address?",
                    self.options.limits.formation.as_secs_f64()
                ));
            }
        }
    }

    /// Commits until the last step; `Some(reason)` when stopped before.
    async fn train(&self, servers: &PsGroup) -> Result<Option<String>, String> {
        let mut last = Last {
            at: Instant::now(),
            version: self.state.lock().clock.version(),
        };
        let check_every = (self.options.limits.heartbeat_timeout / 4).max(Duration::from_millis(50));
        loop {
            let (decision, over) = {
                let inner = self.state.lock();
                match &inner.phase {
                    Phase::Failed(reason) => return Err(reason.clone()),
                    _ if inner.clock.version() >= inner.num_steps => (Decision::Wait(Vec::new()), Some(None)),
                    _ => (inner.clock.decide(), None),
                }
            };
            if let Some(end) = over {
                return Ok(end);
            }
            match &decision {
                Decision::Commit(chosen) => {
                    let (version, last_step) = self.commit(servers, &decision, chosen).await?;
                    if last_step && version < self.options.num_steps {
                        return Ok(self.state.lock().stop.clone());
                    }
                    if version < self.options.num_steps
                        && cadence::is_due(Instant::now(), version, last, self.options.cadence)
                    {
                        if let Err(error) = self.save(servers).await {
                            let _ = self.events.send(Event::Warning(format!(
                                "checkpoint of step {version} failed; the previous one stays: {error}"
                            )));
                        }
                        last = Last {
                            at: Instant::now(),
                            version,
                        };
                    }
                }
                Decision::Drop(late) => {
                    let mut inner = self.state.lock();
                    inner.clock.settle(&decision);
                    inner.decide(late, Fate::Dropped);
                    drop(inner);
                    self.state.changed();
                }
                Decision::Wait(_) => {
                    if tokio::time::timeout(check_every, self.state.work.notified())
                        .await
                        .is_err()
                    {
                        let lost = self.state.lock().lost(Instant::now());
                        if let Some(lost) = lost {
                            return Err(format!(
                                "{lost}\nhint: look into the task's log; the same command goes on from the last checkpoint"
                            ));
                        }
                    }
                    // Nobody will report any more once all are told to stop: a stop between steps ends here.
                    let mut inner = self.state.lock();
                    if let Some(reason) = inner.stop.clone()
                        && inner.leases.is_empty()
                    {
                        return Ok(Some(reason));
                    }
                    if let Phase::Failed(reason) = &mut inner.phase {
                        return Err(reason.clone());
                    }
                }
            }
        }
    }

    async fn commit(&self, servers: &PsGroup, decision: &Decision, chosen: &[Reported]) -> Result<(u64, bool), String> {
        let version = self.state.lock().clock.version();
        let contributors: Vec<Contributor> = chosen
            .iter()
            .map(|reported| Contributor {
                replica: reported.replica,
                sequence: reported.sequence,
                samples: reported.samples,
            })
            .collect();
        let deadline = Instant::now() + self.options.limits.commit;
        // Repeating a commit is safe: servers that have applied it answer the same.
        let committed = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match servers
                .commit(
                    version,
                    &contributors,
                    self.options.synchronous,
                    left.max(Duration::from_millis(100)),
                )
                .await
            {
                Ok(committed) => break committed,
                Err(error) if left.is_zero() || !retryable(&error) => {
                    return Err(format!("step {} could not be committed: {error}", version + 1));
                }
                Err(error) => {
                    tracing::warn!(%error, version, "commit is repeated");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        check(
            Invariant::VersionsAreConsecutive,
            committed.version == version + 1,
            || format!("servers went from version {version} to {}", committed.version),
        );
        let (event, last_step) = {
            let mut inner = self.state.lock();
            inner.clock.settle(decision);
            let last_step = inner.is_last();
            inner.decide(chosen, Fate::Committed);
            let details: Vec<(u32, Details)> = chosen
                .iter()
                .map(|r| (r.samples, inner.details.remove(&r.replica).unwrap_or_default()))
                .collect();
            let epoch = inner.ledger.position().position.saturating_sub(1) / inner.record_count.max(1);
            (
                step_event(
                    committed.version,
                    f64::from(committed.learning_rate),
                    chosen,
                    version,
                    epoch,
                    &details,
                ),
                last_step,
            )
        };
        self.state.changed();
        for (_, details) in &event.1 {
            for record in &details.bad_records {
                let _ = self.events.send(Event::Warning(record.clone()));
            }
        }
        let _ = self.events.send(event.0);
        Ok((committed.version, last_step))
    }

    /// Writes a checkpoint of the newest version. No commit is under way meanwhile, so that it is one instant.
    async fn save(&self, servers: &PsGroup) -> Result<(), String> {
        let (version, data, last) = {
            let inner = self.state.lock();
            (inner.clock.version(), inner.ledger.position(), inner.last_checkpoint)
        };
        let new_job = matches!(self.options.init, Init::Values(_));
        if version == last && !(new_job && version == 0) {
            return Ok(());
        }
        let prefix = saver::prefix(&self.options.model_dir, version);
        let saved = servers
            .save(&prefix.display().to_string(), version, self.options.limits.save)
            .await
            .map_err(|error| {
                // What was written of it must not be mistaken for a checkpoint.
                let _ = keep::delete(&prefix);
                error.to_string()
            })?;
        let manifest = self.manifest(version, data);
        let (folder, keeping, shards) = (
            self.options.model_dir.clone(),
            self.options.keep,
            self.options.ps_addresses.len() as u32,
        );
        let done = prefix.clone();
        tokio::task::spawn_blocking(move || publish(&folder, &done, shards, &saved.tensors, manifest, keeping))
            .await
            .map_err(|error| error.to_string())??;
        self.state.lock().last_checkpoint = version;
        let _ = self.events.send(Event::Saved { prefix, step: version });
        Ok(())
    }

    fn manifest(&self, version: u64, data: DataPosition) -> Manifest {
        let options = &self.options;
        Manifest {
            version: manifest::VERSION,
            job_id: options.job.job_id.clone(),
            incarnation: options.job.incarnation,
            global_step: version,
            config_digest: options.identity.config_digest.clone(),
            seeds: [("data".to_owned(), options.data_seed)].into(),
            data,
            record_count: options.identity.record_count,
            replicas: options.workers + 1,
            batch_size: options.batch_size,
            placement: manifest::Placement {
                strategy: strategy_name(options.strategy).to_owned(),
                version: 1,
                bytes: Vec::new(),
            },
            wall_time: now(),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            files: Vec::new(),
        }
    }

    /// Waits until all replicas know that the job is over, then sends the servers home.
    async fn farewell(&self, servers: Option<&PsGroup>, reason: &str) {
        let deadline = tokio::time::Instant::now() + self.options.limits.farewell;
        let mut changes = self.state.watch();
        loop {
            changes.mark_unchanged();
            let untold: Vec<String> = {
                let inner = self.state.lock();
                let now = Instant::now();
                let silent: Vec<&str> = inner.membership.silent(now).into_iter().map(|(task, _)| task).collect();
                inner
                    .membership
                    .members()
                    .keys()
                    .filter(|task| !inner.told.contains(*task) && !silent.contains(&task.as_str()))
                    .cloned()
                    .collect()
            };
            if untold.is_empty() {
                break;
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                let _ = self
                    .events
                    .send(Event::Warning(format!("{} did not take leave", untold.join(", "))));
                break;
            }
        }
        match servers {
            Some(servers) => {
                if let Err(error) = servers.shutdown(reason, self.options.limits.farewell).await {
                    tracing::warn!(%error, "a parameter server did not take leave; it ends by itself");
                }
            }
            None => tracing::warn!("parameter servers end by themselves"),
        }
    }
}

fn strategy_name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::RoundRobin => "round_robin",
        Strategy::Balanced => "balanced",
    }
}

fn retryable(error: &coati_param_server::client::Error) -> bool {
    matches!(error, coati_param_server::client::Error::Rpc(error) if error.retryable())
}

fn publish(
    folder: &Path,
    prefix: &Path,
    shards: u32,
    tensors: &[v1::SavedTensor],
    manifest: Manifest,
    keeping: keep::Options,
) -> Result<(), String> {
    saver::publish(prefix, shards, tensors, manifest).map_err(|error| error.to_string())?;
    keep::update(folder, prefix, now(), keeping).map_err(|error| error.to_string())?;
    Ok(())
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Servers leave when nobody speaks to them; while replicas evaluate or wait, the coordinator does.
fn keep_alive(servers: PsGroup, every: Duration) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            for client in servers.clients() {
                if let Err(error) = client.status(every).await {
                    tracing::warn!(%error, "a parameter server does not answer");
                }
            }
        }
    })
}

fn step_event(
    version: u64,
    learning_rate: f64,
    chosen: &[Reported],
    applied_to: u64,
    epoch: u64,
    details: &[(u32, Details)],
) -> (Event, Vec<(u32, Details)>) {
    let samples: u64 = chosen.iter().map(|reported| u64::from(reported.samples)).sum();
    let mut losses: Vec<(String, f64)> = Vec::new();
    for (weight, details) in details {
        for loss in &details.losses {
            let part = loss.value * f64::from(*weight) / samples.max(1) as f64;
            match losses.iter_mut().find(|(name, _)| *name == loss.name) {
                Some((_, sum)) => *sum += part,
                None => losses.push((loss.name.clone(), part)),
            }
        }
    }
    let whole = |details: &Details| details.seconds.iter().map(|scalar| scalar.value).sum::<f64>();
    let slowest = details.iter().max_by(|(_, a), (_, b)| whole(a).total_cmp(&whole(b)));
    let seconds = slowest.map_or_else(Vec::new, |(_, details)| {
        details
            .seconds
            .iter()
            .map(|scalar| (scalar.name.clone(), scalar.value))
            .collect()
    });
    let staleness = chosen
        .iter()
        .map(|reported| applied_to.saturating_sub(reported.version))
        .max()
        .unwrap_or(0);
    (
        Event::Step {
            version,
            losses,
            learning_rate,
            samples,
            epoch,
            seconds,
            staleness,
        },
        details.to_vec(),
    )
}
