//! Runs a job's coordinator: forms the cluster, commits steps, saves, ends.

mod farewell;
mod formation;
mod options;
mod saving;
mod training;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use coati_checkpoint::manifest::DataPosition;
use coati_common::rpc::{self, MESSAGE_LIMIT_BYTES};
use coati_param_server::PsGroup;
use coati_proto::coati::v1::coordinator_server::CoordinatorServer;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use options::{Event, Init, Limits, Options, Outcome};

use crate::clock::{self, Clock};
use crate::ledger::{self, Ledger};
use crate::membership::Membership;
use crate::service::Service;
use crate::state::{Inner, Phase, State};

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
        self.state.fail(reason);
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
        self.0.stop(reason);
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
        decided: BTreeMap::new(),
        details: BTreeMap::new(),
        leases: BTreeMap::new(),
        stop: None,
        told: BTreeSet::new(),
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
        saving: tokio::sync::Mutex::default(),
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
    /// The checkpoint that is being written while training goes on.
    saving: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Run {
    async fn run(self) -> Outcome {
        let mut servers = None;
        let formed = tokio::select! {
            formed = self.form(&mut servers) => formed.map_err(Outcome::Failed),
            given_up = self.given_up() => Err(given_up),
        };
        let outcome = match (formed, &servers) {
            (Ok(()), Some(servers)) => self.run_formed(servers).await,
            (Ok(()), None) => Outcome::Failed("the cluster formed without parameter servers".to_owned()),
            (Err(outcome), _) => {
                self.announce(&outcome);
                outcome
            }
        };
        self.farewell(servers.as_ref(), outcome.reason()).await;
        outcome
    }

    async fn run_formed(&self, servers: &PsGroup) -> Outcome {
        let _ = self.events.send(Event::Formed {
            replicas: self.state.lock().replicas,
        });
        let watch = farewell::watch_servers(
            Arc::clone(&self.state),
            servers.clone(),
            self.options.limits.heartbeat_timeout,
        );
        let ended = self.train(servers).await;
        // Replicas leave while the last checkpoint is written.
        self.announce(&match &ended {
            Ok(None) => Outcome::Completed,
            Ok(Some(reason)) => Outcome::Interrupted(reason.clone()),
            Err(reason) => Outcome::Failed(reason.clone()),
        });
        let saved = self.save(servers).await;
        watch.abort();
        match (ended, saved) {
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
        }
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
