//! One task of a cluster: the master (coordinator and replica 0) or a worker.

mod names;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coati_collective::Error as Trouble;
use coati_common::cluster::{ClusterSpec, Consistency, OnNan, TaskId, TaskType};
use coati_common::rpc::{self, Peer};
use coati_coordinator::membership::Identity;
use coati_coordinator::{self as coordinator, Client, Event, Init, cadence};
use coati_param_server::{self as param_server, PsGroup, Strategy};
use coati_proto::coati::v1;
use prost::Message as _;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::exchange;
use crate::model::Trainer;
use crate::observe::{Observer, StepRecord};
use crate::ranks::{FORMATION, Grouped, Ranks};
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
    /// `coati.consistency`
    pub consistency: Consistency,
    /// `coati.replication`
    pub replication: bool,
    /// `coati.on_nan`
    pub on_nan: OnNan,
    /// `coati.compression`
    pub compression: v1::Compression,
    /// `coati.local_reduce`: replicas of one host sum among themselves, and the first of each host talks to the servers.
    pub local_reduce: Option<Ranks>,
    /// Longest waits.
    pub limits: coordinator::run::Limits,
}

/// Waiting for others is said so often.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A task that does not join tries for so long to tell why.
const TELL: Duration = Duration::from_secs(5);

/// Before joining again.
const PAUSE: Duration = Duration::from_millis(200);

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

    /// Who this is for the coordinator: a host is one replica, where its replicas sum among themselves.
    fn wire_task(&self) -> v1::Task {
        let mut index = self.task.index;
        if let Some(ranks) = &self.local_reduce {
            index = (ranks.hosts().1 as u32).saturating_sub(1);
        }
        v1::Task {
            r#type: self.task.kind.name().to_owned(),
            index,
        }
    }

    /// The replicas of this host, where they sum among themselves and there are several.
    fn host(&self) -> Option<Ranks> {
        let host = self.local_reduce.as_ref()?.of_host();
        (host.world() > 1).then_some(host)
    }

    /// With the other replicas of this host, if it sums with them.
    fn with_host(
        &self,
        lead: Option<Remote>,
        setup: &mut Setup,
        limit: Duration,
        stop: &StopFlag,
    ) -> Result<Grouped<Remote>, Trouble> {
        match (self.host(), lead) {
            (Some(host), lead) => host.meet_on_host(lead, setup, limit, stop),
            (None, Some(lead)) => Ok(Grouped::alone(lead)),
            (None, None) => Err(Trouble::Refused("a host without others has no leader".to_owned())),
        }
    }

    /// Before the job begins: whether this host reaches the parameter servers. Nobody but this task can know; where it does not,
    /// the master is told.
    async fn reach_servers(&self, master: &str, own: &str) -> Result<(), exchange::Error> {
        // The master is dialled first, so that the servers' time does not begin before the job's.
        let formation = self.limits.formation;
        drop(
            rpc::connect(&Peer::new("master", master), formation)
                .await
                .map_err(exchange::Error::new)?,
        );
        let addresses = self.addresses(TaskType::Ps);
        let dial = |(index, address)| {
            let peer = Peer::ps(index, address);
            tokio::spawn(async move { rpc::connect(&peer, formation / 2).await.err() })
        };
        let dialling: Vec<_> = (0..).zip(addresses).map(dial).collect();
        let mut problems = Vec::new();
        for dialled in dialling {
            problems.extend(
                dialled
                    .await
                    .map_err(exchange::Error::new)?
                    .map(|error| error.to_string()),
            );
        }
        if problems.is_empty() {
            return Ok(());
        }
        let problem = problems.join("\n");
        self.say_that_it_cannot(master, own, &problem).await;
        Err(exchange::Error::Failed(problem))
    }

    /// Lets the master know why this task does not join.
    async fn say_that_it_cannot(&self, master: &str, own: &str, problem: &str) {
        let told = Client::cannot(master, self.wire_task(), own, problem, TELL).await;
        if let Err(error) = told {
            tracing::warn!(%error, "the master does not hear why this task does not join");
        }
    }

    fn own_address(&self) -> String {
        let addresses = self.addresses(self.task.kind);
        addresses.get(self.task.index as usize).cloned().unwrap_or_default()
    }

    /// Joins, waits for the plan, connects to the servers. Who was not there before, with the master's process `again`, gives up
    /// where it finds nobody; the `first` time it looks whether the servers can be reached.
    #[allow(clippy::too_many_arguments, reason = "one caller")]
    async fn join(
        &self,
        master: &str,
        job_dir: &Path,
        identity: &Identity,
        again: Option<u64>,
        first: bool,
        stop: &StopFlag,
        idle: &mut dyn FnMut(),
    ) -> Result<(Client, v1::JobPlan, PsGroup), exchange::Error> {
        let limit = if again.is_some() {
            self.limits.rejoin
        } else {
            self.limits.formation
        };
        let found = |error| match error {
            exchange::Error::CutOff(reason) if again.is_none() => exchange::Error::Failed(reason),
            error => error,
        };
        let own = self.own_address();
        let silence = self.limits.heartbeat_timeout;
        let joining = async {
            if first {
                self.reach_servers(master, &own).await?;
            }
            let is_master = self.task.kind == TaskType::Master;
            let join = Client::join(master, self.wire_task(), &own, identity, limit, silence);
            let joined = match again.filter(|_| !is_master) {
                None => join.await,
                // It may hang since before there was a connection to notice it by.
                Some(pid) => tokio::select! {
                    joined = join => joined,
                    never = coordinator::client::replace_when_absent(job_dir.to_owned(), pid, silence) => match never {},
                },
            };
            let mut client = joined.map_err(|error| found(error.into()))?;
            if !is_master {
                client.replace_when_silent(job_dir.to_owned());
            }
            let mut said = Instant::now();
            let say = |who: &str| {
                idle();
                if said.elapsed() >= SAY_EVERY {
                    said = Instant::now();
                    tracing::warn!("waiting for the cluster to form: {who}");
                }
            };
            let plan = client.plan(limit * 2, say).await?;
            let placement = plan.placement.clone().unwrap_or_default();
            // The plan may be of an incarnation that ends for the loss of just these servers.
            let servers = tokio::select! {
                servers = PsGroup::connect(placement, &plan.ps_addresses, client.job(), self.limits.formation) => {
                    servers.map_err(|error| found(error.into()))?
                }
                error = client.cut_off() => return Err(error.into()),
            };
            let replica = plan.replica;
            Ok((client, plan, servers.for_replica(replica)))
        };
        tokio::select! {
            joined = joining => joined,
            () = raised(stop) => {
                let reason = format!("stopped while joining the job of {}", Peer::new("master", master));
                // A job that is done already ends its workers before they have found anybody.
                Err(if self.task.kind == TaskType::Master {
                    exchange::Error::Failed(reason)
                } else {
                    exchange::Error::Ended(reason)
                })
            }
        }
    }

    /// Takes part until the job ends: joins, trains, and joins again when the others went on without this replica or were
    /// away. `started` is called each time it has joined; `between` after each step, `idle` now and then while it waits to train.
    #[allow(clippy::too_many_arguments, reason = "the callbacks borrow different parts")]
    fn take_part(
        &self,
        runtime: &Runtime,
        master: &str,
        job_dir: &Path,
        setup: &mut Setup,
        stop: &StopFlag,
        started: &mut dyn FnMut(&mut Setup, &v1::JobPlan) -> Result<(), Error>,
        between: &mut replica::Between<'_, Trainer, Grouped<Remote>>,
        idle: &mut dyn FnMut(),
    ) -> Result<End, Error> {
        let mut away: Option<Instant> = None;
        let mut coordinator = None;
        // The coordinator in this process looks at the servers itself.
        let mut first = self.task.kind != TaskType::Master;
        loop {
            let identity = setup.identity.clone();
            let cut_off = match runtime.block_on(self.join(
                master,
                job_dir,
                &identity,
                away.map(|_| coordinator.unwrap_or(0)),
                std::mem::take(&mut first),
                stop,
                idle,
            )) {
                Err(exchange::Error::Ended(reason)) => return Ok(End::Left(reason)),
                // Others were lost while the cluster formed, or it was not found again.
                Err(exchange::Error::CutOff(reason)) => reason,
                Err(error) => return Err(Error::job(error)),
                Ok((client, plan, servers)) => {
                    started(setup, &plan)?;
                    coordinator = Some(client.coordinator());
                    tracing::info!(
                        replica = plan.replica,
                        of = plan.replicas,
                        step = plan.start_version,
                        "training"
                    );
                    let first = plan.start_version;
                    let leave = if self.task.kind == TaskType::Master {
                        // The coordinator ends the job for all replicas at the same step.
                        StopFlag::default()
                    } else {
                        stop.clone()
                    };
                    let remote = Remote::new(runtime.handle().clone(), client, servers, &plan, leave);
                    match self.with_host(Some(remote), setup, self.limits.formation.max(FORMATION), stop) {
                        Err(error) if error.is_final() && !matches!(error, Trouble::Stopped) => {
                            return Err(Error::Job(error.for_people()));
                        }
                        Err(error) => error.to_string(),
                        Ok(mut exchange) => {
                            let mut reached = first;
                            let ended = run(setup, &mut exchange, first, stop, &mut |model, exchange| {
                                reached += 1;
                                between(model, exchange)
                            })?;
                            match ended {
                                Err(replica::Error::Exchange(exchange::Error::CutOff(reason))) => {
                                    exchange.abort(false, &reason);
                                    if reached > first {
                                        away = None;
                                    }
                                    reason
                                }
                                Err(replica::Error::Exchange(exchange::Error::Ended(reason))) => {
                                    return Ok(End::Left(reason));
                                }
                                Err(error) => {
                                    // Another start of it would fail in the same way: the job ends, and says why.
                                    let why = error.to_string();
                                    exchange.abort(true, &why);
                                    if let Some(remote) = exchange.lead() {
                                        remote.leave(true, &why);
                                    }
                                    return Err(Error::job(error));
                                }
                                Ok(end) => {
                                    if stop.raised()
                                        && self.task.kind != TaskType::Master
                                        && let Some(remote) = exchange.lead()
                                    {
                                        remote.leave(false, "asked to leave");
                                    }
                                    return Ok(end);
                                }
                            }
                        }
                    }
                }
            };
            let since = *away.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.limits.rejoin {
                return Err(Error::Job(format!(
                    "{cut_off}\nhint: could not take part again for {:.0} s; look into the master's log",
                    since.elapsed().as_secs_f64()
                )));
            }
            idle();
            tracing::warn!("{cut_off}: joining again");
            std::thread::sleep(PAUSE);
        }
    }
}

/// From joining to the end, and the end of the host's communicator. The outer error is no input.
fn run(
    setup: &mut Setup,
    exchange: &mut Grouped<Remote>,
    first: u64,
    stop: &StopFlag,
    between: &mut replica::Between<'_, Trainer, Grouped<Remote>>,
) -> Result<Result<End, replica::Error>, Error> {
    let loader = setup.loader()?;
    let ended = match exchange.first(first) {
        Ok(first) => replica::train(&mut setup.trainer, &loader, exchange, first, stop, between),
        Err(error) => Err(error.into()),
    };
    if ended.is_ok()
        && let Err(error) = exchange.close()
    {
        tracing::warn!(%error, "the replicas of this host do not leave together");
    }
    Ok(ended)
}

/// A replica that is not the first one of its host: what it needs of the servers, it hears of that one.
fn follow(options: &Options, cluster: &Cluster, setup: &mut Setup) -> Result<End, Error> {
    let mut away: Option<Instant> = None;
    loop {
        let limit = away.map_or(cluster.limits.formation.max(FORMATION), |since| {
            cluster.limits.rejoin.saturating_sub(since.elapsed()).max(PAUSE)
        });
        let cut_off = match cluster.with_host(None, setup, limit, &options.stop) {
            Err(Trouble::Stopped) => return Ok(End::Left(STOPPED.to_owned())),
            Err(error) if error.is_refusal() => return Err(Error::User(error.for_people())),
            Err(error) if error.is_final() => return Err(Error::Job(error.for_people())),
            Err(error @ Trouble::NeverCame { .. }) => return Err(Error::Job(error.to_string())),
            Err(error) => error.to_string(),
            Ok(mut exchange) => match run(setup, &mut exchange, 0, &options.stop, &mut |_, _| Ok(()))? {
                Err(replica::Error::Exchange(exchange::Error::CutOff(reason))) => {
                    exchange.abort(false, &reason);
                    away = None;
                    reason
                }
                Err(replica::Error::Exchange(exchange::Error::Ended(reason))) => return Ok(End::Left(reason)),
                Err(error) => {
                    exchange.abort(true, &error.to_string());
                    return Err(Error::job(error));
                }
                Ok(end) => return Ok(end),
            },
        };
        let since = *away.get_or_insert_with(Instant::now);
        if since.elapsed() >= cluster.limits.rejoin {
            return Err(Error::Job(format!(
                "{cut_off}\nhint: look into the log of this host's first replica"
            )));
        }
        tracing::warn!("{cut_off}: meeting the replicas of this host again");
        std::thread::sleep(PAUSE);
    }
}

async fn raised(stop: &StopFlag) {
    while !stop.raised() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A host is one replica with one batch: all of them must be alike.
fn check_hosts(cluster: &Cluster) -> Result<(), Error> {
    let Some(ranks) = &cluster.local_reduce else {
        return Ok(());
    };
    let (hosts, _) = ranks.hosts();
    if hosts.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(());
    }
    let counts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    Err(Error::User(format!(
        "coati.local_reduce: the hosts have {} replicas\nhint: give each host as many, or leave local_reduce out",
        counts.join(", ")
    )))
}

/// What a replica of parameter servers opens.
fn opened(options: &Options) -> Result<Setup, Error> {
    let mut setup = Setup::open(options)?;
    if setup.trainer.ssd().is_synchronised() {
        return Err(Error::User(format!(
            "{}: sync_batch_norm needs replicas that sum among themselves, and these come and go by parameter servers\nhint: train without parameter servers (`--devices`, or parameterServerCount: 0), or write batch_norm",
            options.config.name()
        )));
    }
    Ok(setup)
}

/// Runs a worker until the job ends.
pub fn run_worker(options: &Options, cluster: &Cluster) -> Result<(), Error> {
    let runtime = runtime()?;
    let master = cluster.addresses(TaskType::Master).first().cloned().unwrap_or_default();
    let mut setup = opened(options).inspect_err(|error| {
        let (own, problem) = (cluster.own_address(), error.to_string());
        runtime.block_on(cluster.say_that_it_cannot(&master, &own, &problem));
    })?;
    let ended = if cluster.host().is_some_and(|host| host.rank() > 0) {
        follow(options, cluster, &mut setup)
    } else {
        cluster.take_part(
            &runtime,
            &master,
            &options.model_dir,
            &mut setup,
            &options.stop,
            &mut |_, _| Ok(()),
            &mut |_, _| Ok(()),
            &mut || (),
        )
    };
    match ended? {
        End::Finished => tracing::info!("the job is complete"),
        End::Left(reason) => tracing::info!(reason, "leaving"),
    }
    Ok(())
}

/// Runs the master: coordinator and replica 0.
pub fn run_master(options: &Options, cluster: &Cluster, observer: &mut dyn Observer) -> Result<Outcome, Error> {
    check_hosts(cluster)?;
    let mut setup = opened(options)?;
    let mut session = Session::new(options, observer)?;
    let first = setup.first_values_early(options)?;
    let job = open_job(options, session.observer())?;
    setup.input.keep_index(&options.model_dir);
    session.keep_index();
    let runtime = runtime()?;
    let ps_addresses = cluster.addresses(TaskType::Ps);
    if let Some(summary) = already_done(job.latest.as_ref(), setup.num_steps) {
        session.nothing_to_do(&summary, setup.num_steps);
        runtime.block_on(dismiss(&ps_addresses, &job.job));
        return Ok(Outcome::Completed(summary));
    }
    let init = if let Some(latest) = &job.latest {
        Init::Checkpoint {
            prefix: latest.prefix.clone(),
            step: latest.step,
            data: resume_point(latest)?,
        }
    } else {
        let first = first.map_or_else(|| setup.first_values(options), Ok)?;
        first.tell(options, session.observer());
        Init::Values(Arc::new(first.values))
    };
    let (sender, mut events) = mpsc::unbounded_channel();
    let listen = cluster.addresses(TaskType::Master).first().cloned().unwrap_or_default();
    let handle = runtime
        .block_on(coordinator::start(
            coordinator_options(options, cluster, &mut setup, job.job, init, listen, ps_addresses),
            sender,
        ))
        .map_err(Error::job)?;
    runtime.spawn(names::look_up(cluster.addresses(TaskType::Worker)));
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
    // The three closures below take turns.
    let shared = RefCell::new((session, events, last));
    let servers = cluster.addresses(TaskType::Ps).len() as u32;
    let mut begun = false;
    cluster.take_part(
        runtime,
        address,
        &options.model_dir,
        setup,
        &options.stop,
        &mut |setup, plan| {
            if std::mem::replace(&mut begun, true) {
                return Ok(());
            }
            let replicas = plan.replicas * cluster.host().map_or(1, |host| host.world() as u32);
            let started = setup.started(plan.start_version, latest, replicas, servers);
            shared.borrow_mut().0.start(&started)
        },
        &mut |trainer, exchange| {
            let (session, events, last) = &mut *shared.borrow_mut();
            if let Some(checkpoint) = drain(session, events) {
                crate::exchange::Exchange::activity(exchange, "evaluating");
                session.evaluate_if_due(trainer.ssd(), &checkpoint);
                **last = Some(checkpoint);
            }
            Ok(())
        },
        &mut || {
            let (session, events, last) = &mut *shared.borrow_mut();
            if let Some(checkpoint) = drain(session, events) {
                **last = Some(checkpoint);
            }
        },
    )
}

/// Passes on what the coordinator tells; returns the newest checkpoint.
fn drain(session: &mut Session<'_>, events: &mut UnboundedReceiver<Event>) -> Option<Checkpoint> {
    let mut newest = None;
    while let Ok(event) = events.try_recv() {
        match event {
            // That is said in words, too.
            Event::Formed { .. } | Event::WentBack { .. } => {}
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
            Event::Copies { without } => {
                if without.is_empty() {
                    let text = "every parameter server has a copy: losing any one of them loses no step";
                    session.observer().note(text);
                }
            }
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
    let workers = match &cluster.local_reduce {
        Some(ranks) => ranks.hosts().0.len() as u32 - 1,
        None => cluster.addresses(TaskType::Worker).len() as u32,
    };
    let of_one_replica = cluster.host().map_or(1, |host| host.world() as u32);
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
        batch_size: setup.batch_size * of_one_replica,
        identity: setup.identity.clone(),
        data_seed: options.seed,
        strategy: cluster.strategy,
        synchronous: train.sync_replicas(),
        replicas_to_aggregate: u32::try_from(train.replicas_to_aggregate()).unwrap_or(0),
        consistency: consistency(&cluster.consistency, workers + 1),
        replication: cluster.replication,
        on_nan: cluster.on_nan,
        compression: cluster.compression,
        cadence: cadence::Options {
            every: options.save_every,
            every_steps: options.save_every_steps,
        },
        keep: options.keep_options(),
        limits: cluster.limits,
    }
}

/// What the cluster file says, as the parameter servers want it.
fn consistency(from: &Consistency, replicas: u32) -> param_server::Consistency {
    let compensation = from.delay_compensation.map(|from| param_server::DelayCompensation {
        lambda: from.lambda,
        mean_square_decay: from.kind.mean_square_decay(),
    });
    param_server::Consistency {
        // A replica that computes at half the others' speed is twice the number of replicas behind.
        max_staleness: from.max_staleness.unwrap_or(4 * u64::from(replicas)),
        scale_learning_rate: from.scale_learning_rate,
        delay_compensation: compensation,
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
