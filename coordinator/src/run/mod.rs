//! Runs a job's coordinator: forms the cluster, commits steps, saves, ends.

mod claim;
mod farewell;
mod formation;
mod options;
mod preflight;
mod recovery;
mod replication;
mod saving;
mod shards;
mod training;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coati_checkpoint::manifest::DataPosition;
use coati_common::rpc::{self, ErrorCode, InProcess, SMALL_MESSAGE_LIMIT_BYTES, Security};
use coati_param_server::PsGroup;
use coati_proto::coati::v1::JobRef;
use coati_proto::coati::v1::coordinator_server::CoordinatorServer;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

pub use options::{Event, Init, Limits, Options, Outcome};

use crate::clock::{self, Clock};
use crate::ledger::{self, Ledger};
use crate::membership::Membership;
use crate::service::Service;
use crate::state::{Inner, Phase, State, task_of};
use crate::step_log::{self, Log, StepLog};
use crate::task::Task;
use crate::troubles::Troubles;
pub(crate) use recovery::ask_for_restart;
use recovery::{Progress, Source};

/// A running coordinator.
pub struct Handle {
    state: Arc<State>,
    address: String,
    outcome: JoinHandle<Outcome>,
    server: Option<Server>,
}

/// What answers on the port.
struct Server {
    task: JoinHandle<Result<(), tonic::transport::Error>>,
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
        self.state.fail(reason);
    }

    /// Waits for the end: last checkpoint, replicas and servers told.
    pub async fn finish(self) -> Outcome {
        let outcome = self
            .outcome
            .await
            .unwrap_or_else(|error| Outcome::Failed(format!("the coordinator ended unexpectedly: {error}")));
        if let Some(server) = self.server {
            server.close.send_replace(true);
            let _ = tokio::time::timeout(Duration::from_secs(2), server.task).await;
        }
        outcome
    }

    /// Ends it as a kill would end its process, but for the port: nobody is told and nothing is written.
    pub fn abort_handle(&self) -> AbortHandle {
        self.outcome.abort_handle()
    }
}

/// Can stop a job in order. Cloneable.
#[derive(Clone)]
pub struct Stopper(Arc<State>);

impl Stopper {
    /// Asks for a checkpoint after the current step, and the end.
    pub fn stop(&self, reason: &str) {
        self.0.stop(reason);
    }
}

/// Listens and starts to form the cluster, with the credentials of this process. Errors later on come with
/// [`Handle::finish`].
pub async fn start(options: Options, events: mpsc::UnboundedSender<Event>) -> Result<Handle, rpc::Error> {
    start_as(&Security::of_this_process(), options, events).await
}

/// As [`start`], letting in whom `security` says.
pub async fn start_as(
    security: &Security,
    options: Options,
    events: mpsc::UnboundedSender<Event>,
) -> Result<Handle, rpc::Error> {
    let mut server = rpc::server(security)?;
    let listener = rpc::bind(&options.listen).await?;
    let (mut handle, service) = begin(options, events);
    handle.address = listener.address.to_string();
    let (close, mut closed) = watch::channel(false);
    let task = tokio::spawn(
        server
            .add_service(service)
            .serve_with_incoming_shutdown(listener.incoming, async move {
                let _ = closed.wait_for(|closed| *closed).await;
            }),
    );
    handle.server = Some(Server { task, close });
    Ok(handle)
}

/// As [`start`], for callers in this process: listens nowhere.
pub fn start_in_process(options: Options, events: mpsc::UnboundedSender<Event>) -> (Handle, InProcess) {
    let (handle, service) = begin(options, events);
    (handle, InProcess::serving(service))
}

fn begin(mut options: Options, events: mpsc::UnboundedSender<Event>) -> (Handle, CoordinatorServer<Service>) {
    let log = step_log::read(&options.model_dir).filter(|log| log.job.job_id == options.job.job_id);
    if let Some(log) = &log {
        // Incarnations that the job took while it ran.
        options.job.incarnation = options.job.incarnation.max(log.job.incarnation.saturating_add(1));
    }
    match claim::first(&options.model_dir, options.job.incarnation) {
        Ok(number) => options.job.incarnation = number,
        // Whoever writes there first will say more.
        Err(error) => tracing::warn!(%error, "nothing but the folder's lock keeps a second coordinator away"),
    }
    let (version, data) = options.init.position();
    let expected = (0..=options.workers).map(task_of).collect();
    let inner = incarnation(&options, options.job.clone(), version, &data, expected);
    let state = Arc::new(State::new(inner, events));
    let service = Service {
        state: Arc::clone(&state),
        heartbeat_interval: options.limits.heartbeat_interval,
    };
    let service = CoordinatorServer::new(service).max_decoding_message_size(SMALL_MESSAGE_LIMIT_BYTES);
    let run = Run {
        state: Arc::clone(&state),
        steps: Mutex::new(StepLog::new(&options.model_dir)),
        options,
        saving: tokio::sync::Mutex::default(),
    };
    let address = run.options.listen.clone();
    let outcome = tokio::spawn(run.run(log));
    let handle = Handle {
        state,
        address,
        outcome,
        server: None,
    };
    (handle, service)
}

/// The state of a new incarnation of the job, from this version on.
fn incarnation(options: &Options, job: JobRef, version: u64, data: &DataPosition, expected: Vec<String>) -> Inner {
    let replicas = options.workers + 1;
    let aggregate = if options.replicas_to_aggregate >= replicas {
        0
    } else {
        options.replicas_to_aggregate
    };
    let lockstep = options.synchronous && aggregate == 0;
    let clock = clock::Options {
        aggregate,
        synchronous: options.synchronous,
        max_staleness: options.consistency.max_staleness,
    };
    let ledger = ledger::Options {
        replicas,
        batch: options.batch_size,
        lockstep,
    };
    Inner {
        job,
        phase: Phase::Forming("the parameter servers".to_owned()),
        membership: Membership::new(expected, options.identity.clone(), options.limits.heartbeat_timeout),
        clock: Clock::new(clock, version, 0..replicas),
        ledger: Ledger::new(ledger, data),
        plan: None,
        decided: BTreeMap::new(),
        details: BTreeMap::new(),
        stop: None,
        servers_lost: None,
        without_copy: None,
        // Until somebody has looked.
        copies_under_way: options.replication,
        moving_home: None,
        told: BTreeSet::new(),
        looked: Instant::now(),
        troubles: Troubles::default(),
        last_checkpoint: version,
        num_steps: options.num_steps,
        lockstep,
        start_version: version,
        record_count: options.identity.record_count,
    }
}

struct Run {
    state: Arc<State>,
    steps: Mutex<StepLog>,
    options: Options,
    /// The checkpoint that is being written while training goes on.
    saving: tokio::sync::Mutex<Option<Task>>,
}

/// How an incarnation ended.
enum Term {
    /// With the job.
    Over(Outcome),
    /// Servers are gone, or hold other variables; why.
    ServersLost(String),
}

/// Why the servers cannot be used.
enum Trouble {
    /// It may pass: a server is not there, or was started again.
    Lost(String),
    /// Another attempt would not help.
    Final(String),
    /// Another coordinator runs the job now: this one leaves everything as it is.
    TakenOver(String),
}

impl Trouble {
    /// The same, in other words.
    fn said(self, words: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Lost(reason) => Self::Lost(words(reason)),
            Self::Final(reason) => Self::Final(words(reason)),
            Self::TakenOver(reason) => Self::TakenOver(words(reason)),
        }
    }
}

/// What a coordinator says last that finds another one in its place.
const TAKEN_OVER: &str = "another coordinator has taken this job over\nhint: let only one run";

impl From<coati_param_server::client::Error> for Trouble {
    fn from(error: coati_param_server::client::Error) -> Self {
        match error.rpc() {
            Some(rpc) if rpc.is_absence() => Self::Lost(error.to_string()),
            Some(rpc) if rpc.code() == Some(ErrorCode::StaleIncarnation) => {
                Self::TakenOver(format!("{error}: {TAKEN_OVER}"))
            }
            _ => Self::Final(error.to_string()),
        }
    }
}

impl Run {
    async fn run(self, log: Option<Log>) -> Outcome {
        let mut servers = None;
        let mut watches = Vec::new();
        let mut source = Source::new(&self.options.init, log);
        let mut progress = Progress::new(self.options.limits.rejoin);
        let outcome = loop {
            match self.incarnation(&source, &mut servers, &mut watches).await {
                Term::Over(outcome) => break outcome,
                Term::ServersLost(reason) => {
                    let next = match progress.look(Instant::now(), self.stepped(), &reason) {
                        Ok(()) => self.go_back(&source, &reason).await,
                        Err(reason) => Err(reason),
                    };
                    match next {
                        Ok(next) => source = next,
                        Err(reason) => {
                            let outcome = Outcome::Failed(reason);
                            self.announce(&outcome);
                            break outcome;
                        }
                    }
                }
            }
        };
        drop(watches);
        self.farewell(servers.as_ref(), outcome.reason()).await;
        // The servers are gone: there is nothing that the log could go with.
        let incarnation = self.state.lock().job.incarnation;
        self.steps().end(incarnation);
        outcome
    }

    /// One incarnation from loading the servers to the end. Who watches its servers goes on beyond that: a commit without an
    /// answer may end it before anybody knows that a server hangs.
    async fn incarnation(&self, source: &Source, servers: &mut Option<PsGroup>, watches: &mut Vec<Task>) -> Term {
        let formed = tokio::select! {
            // In a fixed order, so that a simulation can be repeated.
            biased;
            formed = self.form(source, servers) => formed,
            given_up = self.given_up(source) => {
                self.announce(&given_up);
                return Term::Over(given_up);
            }
        };
        let group = match (formed, &servers) {
            (Ok(()), Some(group)) => group.clone(),
            (Err(Trouble::Lost(reason)), _) => return Term::ServersLost(reason),
            (Err(Trouble::Final(reason) | Trouble::TakenOver(reason)), _) => {
                let outcome = Outcome::Failed(format!("the cluster could not form: {reason}"));
                self.announce(&outcome);
                return Term::Over(outcome);
            }
            (Ok(()), None) => {
                let outcome = Outcome::Failed("the cluster formed without parameter servers".to_owned());
                self.announce(&outcome);
                return Term::Over(outcome);
            }
        };
        let job = self.state.lock().job.clone();
        let tending = self.options.replication.then(|| self.tend(&group, &job));
        let watch = farewell::watch_servers(
            Arc::clone(&self.state),
            group.clone(),
            job,
            &self.options.limits,
            self.options.model_dir.clone(),
        );
        watches.retain(|watch| !watch.is_finished());
        watches.push(watch);
        let term = self.train_and_save(&group).await;
        drop(tending);
        term
    }

    async fn train_and_save(&self, servers: &PsGroup) -> Term {
        let replicas = self.state.lock().clock.active().len() as u32;
        self.state.tell(Event::Formed { replicas });
        let ended = match self.train(servers).await {
            Err(Trouble::Lost(reason)) => return Term::ServersLost(reason),
            Err(Trouble::Final(reason)) => Err(reason),
            Err(Trouble::TakenOver(reason)) => {
                let outcome = Outcome::Failed(reason);
                self.announce(&outcome);
                return Term::Over(outcome);
            }
            Ok(stopped) => Ok(stopped),
        };
        // A complete job needs its last checkpoint: replicas stay until it is written, so that the steps can be made again if a
        // server is lost meanwhile. From others they leave while it is written.
        match &ended {
            Ok(None) => {}
            Ok(Some(reason)) => self.announce(&Outcome::Interrupted(reason.clone())),
            Err(reason) => self.announce(&Outcome::Failed(reason.clone())),
        }
        let saved = self.save(servers).await;
        if ended == Ok(None) {
            if saved.is_err()
                && let Some(lost) = self.lost_server(servers).await
            {
                return Term::ServersLost(lost);
            }
            self.announce(&Outcome::Completed);
        }
        Term::Over(match (ended, saved) {
            (Err(reason), Ok(())) => Outcome::Failed(reason),
            (Err(reason), Err(error)) => Outcome::Failed(format!(
                "{reason}; besides, the last checkpoint could not be written: {error}"
            )),
            (Ok(_), Err(error)) => Outcome::Failed(format!(
                "the last checkpoint, of step {}, could not be written; the job goes on from the one before: {error}",
                self.state.lock().clock.version()
            )),
            (Ok(None), Ok(())) => Outcome::Completed,
            (Ok(Some(reason)), Ok(())) => Outcome::Interrupted(reason),
        })
    }

    /// A server that holds the variables no more, or does not answer.
    async fn lost_server(&self, servers: &PsGroup) -> Option<String> {
        let (job, lost) = {
            let inner = self.state.lock();
            (inner.job.clone(), inner.servers_lost.clone())
        };
        if lost.is_some() {
            return lost;
        }
        for client in servers.clients() {
            match client.status(self.options.limits.heartbeat_timeout).await {
                Ok(status) if status.job.as_ref() == Some(&job) => {}
                Ok(_) => return Some(format!("{} was started again and holds no variables", client.peer())),
                Err(error) => return Some(error.to_string()),
            }
        }
        None
    }

    /// Whether this incarnation made a step.
    fn stepped(&self) -> bool {
        let inner = self.state.lock();
        inner.clock.version() > inner.start_version
    }

    /// The write-ahead log.
    fn steps(&self) -> MutexGuard<'_, StepLog> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets everybody know how the job ends.
    fn announce(&self, outcome: &Outcome) {
        let reason = outcome.reason().to_owned();
        self.state.lock().phase = match outcome {
            Outcome::Failed(_) => Phase::Failed(reason),
            Outcome::Completed | Outcome::Interrupted(_) => Phase::Draining(reason),
        };
        self.state.changed();
    }
}
