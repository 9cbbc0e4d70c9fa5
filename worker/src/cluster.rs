//! One task of a cluster: the master (coordinator and replica 0) or a worker.

use std::sync::Arc;
use std::time::Duration;

use coati_common::cluster::{ClusterSpec, TaskId, TaskType};
use coati_common::rpc::Peer;
use coati_coordinator::{self as coordinator, Client, Event, Init, cadence};
use coati_param_server::{PsGroup, Strategy};
use coati_proto::coati::v1;
use prost::Message as _;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::observe::{Observer, StepRecord};
use crate::remote::Remote;
use crate::replica::{self, End};
use crate::session::{Checkpoint, Session};
use crate::stop::{STOPPED, StopFlag};
use crate::train::{Error, Options, Outcome, Setup, already_done, open_job, resume_point};

/// A cluster job's settings beside [`Options`].
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Everybody.
    pub spec: ClusterSpec,
    /// This task.
    pub task: TaskId,
    /// `coati.placement`
    pub strategy: Strategy,
    /// `coati.consistency.max_staleness`
    pub max_staleness: Option<u64>,
    /// `coati.compression`
    pub compression: v1::Compression,
    /// Longest waits.
    pub limits: coordinator::run::Limits,
}

/// How often the stop flag is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn runtime() -> Result<Runtime, Error> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::job)
}

impl Cluster {
    fn addresses(&self, kind: TaskType) -> Vec<String> {
        self.spec.list(kind).iter().map(ToString::to_string).collect()
    }

    fn wire_task(&self) -> v1::Task {
        v1::Task {
            r#type: self.task.kind.name().to_owned(),
            index: self.task.index,
        }
    }

    /// Joins, waits for the plan, connects to the servers.
    async fn join(
        &self,
        master: &str,
        setup: &Setup,
        stop: &StopFlag,
    ) -> Result<(Client, v1::JobPlan, PsGroup), Error> {
        let own = self
            .addresses(self.task.kind)
            .get(self.task.index as usize)
            .cloned()
            .unwrap_or_default();
        let limits = &self.limits;
        let joining = async {
            let mut client = Client::join(
                master,
                self.wire_task(),
                &own,
                &setup.identity,
                limits.formation,
                limits.heartbeat_timeout,
            )
            .await
            .map_err(Error::job)?;
            let say = |who: &str| tracing::warn!("waiting for the cluster to form: {who}");
            let plan = client.plan(limits.formation * 2, say).await.map_err(Error::job)?;
            let placement = plan.placement.clone().unwrap_or_default();
            let servers = PsGroup::connect(placement, &plan.ps_addresses, client.job(), limits.formation)
                .await
                .map_err(Error::job)?;
            Ok((client, plan, servers))
        };
        tokio::select! {
            joined = joining => joined,
            () = raised(stop) => Err(Error::Job(format!("stopped while joining the job of {}", Peer::new("master", master)))),
        }
    }
}

async fn raised(stop: &StopFlag) {
    while !stop.raised() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Runs a worker until the job ends.
pub fn run_worker(options: &Options, cluster: &Cluster) -> Result<(), Error> {
    let mut setup = Setup::open(options)?;
    let runtime = runtime()?;
    let master = cluster.addresses(TaskType::Master).first().cloned().unwrap_or_default();
    // A signal asks the job to stop, not the worker alone: the master hears of it from the launcher.
    let (client, plan, servers) = runtime.block_on(cluster.join(&master, &setup, &options.stop))?;
    tracing::info!(
        replica = plan.replica,
        of = plan.replicas,
        step = plan.start_version,
        "training"
    );
    let mut exchange = Remote::new(runtime.handle().clone(), client, servers, &plan);
    let ended = replica::train(
        &mut setup.trainer,
        &setup.loader,
        &mut exchange,
        plan.start_version,
        &options.stop,
        &mut |_, _| Ok(()),
    );
    match ended.map_err(Error::job)? {
        End::Finished => tracing::info!("the job is complete"),
        End::Left(reason) => tracing::info!(reason, "leaving"),
    }
    Ok(())
}

/// Runs the master: coordinator and replica 0.
pub fn run_master(options: &Options, cluster: &Cluster, observer: &mut dyn Observer) -> Result<Outcome, Error> {
    let mut setup = Setup::open(options)?;
    let mut session = Session::new(options, observer)?;
    let job = open_job(options, session.observer())?;
    let runtime = runtime()?;
    let ps_addresses = cluster.addresses(TaskType::Ps);
    if let Some(summary) = already_done(job.latest.as_ref(), setup.num_steps) {
        session.nothing_to_do(&summary, setup.num_steps);
        runtime.block_on(dismiss(&ps_addresses, &job.job));
        return Ok(Outcome::Completed(summary));
    }
    let init = match &job.latest {
        Some(latest) => Init::Checkpoint {
            prefix: latest.prefix.clone(),
            step: latest.step,
            data: resume_point(latest)?,
        },
        None => Init::Values(Arc::new(setup.trainer.ssd().init_values(options.seed))),
    };
    let (sender, mut events) = mpsc::unbounded_channel();
    let listen = cluster.addresses(TaskType::Master).first().cloned().unwrap_or_default();
    let handle = runtime
        .block_on(coordinator::start(
            coordinator_options(options, cluster, &mut setup, job.job, init, listen, ps_addresses),
            sender,
        ))
        .map_err(Error::job)?;
    let stopper = handle.stopper();
    let stop = options.stop.clone();
    let watch = runtime.spawn(async move {
        raised(&stop).await;
        stopper.stop(STOPPED);
    });

    let mut last = None;
    let trained = train(
        &runtime,
        options,
        cluster,
        &mut setup,
        &mut session,
        &mut events,
        handle.address(),
        job.latest.as_ref(),
        &mut last,
    );
    if let Err(error) = &trained {
        if options.stop.raised() {
            // Said again, so that a stop before everybody has joined is not taken for a failure.
            handle.stopper().stop(STOPPED);
        }
        handle.fail(&error.to_string());
    }
    let outcome = runtime.block_on(handle.finish());
    watch.abort();
    last = drain(&mut session, &mut events).or(last);
    match outcome {
        coordinator::Outcome::Failed(reason) => Err(Error::Job(reason)),
        coordinator::Outcome::Interrupted(reason) => Ok(Outcome::Interrupted(session.finish(), reason)),
        coordinator::Outcome::Completed => {
            if let Some(last) = &last {
                session.evaluate(setup.trainer.ssd(), last);
            }
            Ok(Outcome::Completed(session.finish()))
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "one caller; the parts are borrowed separately")]
fn train(
    runtime: &Runtime,
    options: &Options,
    cluster: &Cluster,
    setup: &mut Setup,
    session: &mut Session<'_>,
    events: &mut UnboundedReceiver<Event>,
    address: &str,
    latest: Option<&coati_checkpoint::state::Latest>,
    last: &mut Option<Checkpoint>,
) -> Result<End, Error> {
    let (client, plan, servers) = runtime.block_on(cluster.join(address, setup, &options.stop))?;
    let started = setup.started(
        plan.start_version,
        latest,
        plan.replicas,
        plan.ps_addresses.len() as u32,
    );
    session.start(&started)?;
    let mut exchange = Remote::new(runtime.handle().clone(), client, servers, &plan);
    // The stop flag is the coordinator's to act on: it ends the job for all replicas at the same step.
    let ended = replica::train(
        &mut setup.trainer,
        &setup.loader,
        &mut exchange,
        plan.start_version,
        &options.stop,
        &mut |trainer, exchange| {
            if let Some(checkpoint) = drain(session, events) {
                crate::exchange::Exchange::activity(exchange, "evaluating");
                session.evaluate_if_due(trainer.ssd(), &checkpoint);
                *last = Some(checkpoint);
            }
            Ok(())
        },
    );
    ended.map_err(Error::job)
}

/// Passes on what the coordinator tells; returns the newest checkpoint.
fn drain(session: &mut Session<'_>, events: &mut UnboundedReceiver<Event>) -> Option<Checkpoint> {
    let mut newest = None;
    while let Ok(event) = events.try_recv() {
        match event {
            Event::Formed { .. } => {}
            Event::Step {
                version,
                losses,
                learning_rate,
                samples,
                epoch,
                seconds,
                staleness,
                bytes_pushed,
                bytes_pulled,
            } => {
                session.step(&StepRecord {
                    step: version,
                    losses,
                    learning_rate,
                    samples,
                    epoch,
                    seconds,
                    staleness,
                    bytes_pushed,
                    bytes_pulled,
                });
            }
            Event::Saved { prefix, step } => newest = Some(session.saved(prefix, step)),
            Event::Warning(text) => session.warn(&text),
        }
    }
    newest
}

fn coordinator_options(
    options: &Options,
    cluster: &Cluster,
    setup: &mut Setup,
    job: v1::JobRef,
    init: Init,
    listen: String,
    ps_addresses: Vec<String>,
) -> coordinator::Options {
    let train = options.config.train_config();
    let workers = cluster.addresses(TaskType::Worker).len() as u32;
    coordinator::Options {
        job,
        model_dir: options.model_dir.clone(),
        listen,
        ps_addresses,
        workers,
        variables: setup.trainer.ssd().variables().to_vec(),
        init,
        optimizer: train.optimizer.clone().unwrap_or_default().encode_to_vec().into(),
        num_steps: setup.num_steps,
        batch_size: setup.batch_size,
        identity: setup.identity.clone(),
        data_seed: options.seed,
        strategy: cluster.strategy,
        synchronous: train.sync_replicas(),
        replicas_to_aggregate: u32::try_from(train.replicas_to_aggregate()).unwrap_or(0),
        // A replica that computes at half the others' speed is twice the number of replicas behind.
        max_staleness: cluster.max_staleness.unwrap_or(4 * u64::from(workers + 1)),
        compression: cluster.compression,
        cadence: cadence::Options {
            every: options.save_every,
            every_steps: options.save_every_steps,
        },
        keep: options.keep_options(),
        limits: cluster.limits,
    }
}

/// Sends servers home that were started for nothing.
async fn dismiss(addresses: &[String], job: &v1::JobRef) {
    for (index, address) in (0..).zip(addresses) {
        let limit = Duration::from_secs(5);
        let sent = match coati_param_server::PsClient::connect(index, address, job.clone(), limit).await {
            Ok(client) => client
                .shutdown("the job is complete", limit)
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::warn!(error, "a parameter server ends by itself");
        }
    }
}
