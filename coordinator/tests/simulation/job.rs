//! A whole job on the simulated network, with its launcher, from beginning to end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coati_checkpoint::state;
use coati_coordinator::run::{Limits, Options};
use coati_coordinator::{Event, Init, Outcome, cadence};
use coati_param_server::{Consistency, Layout, Store, Strategy, plan, service, store};
use coati_proto::coati::v1::{self, JobRef};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::history::History;
use super::network::{SimNet, Weather, address};
use super::replica::{End, Replica};
use super::scenario::{Fault, MASTER, Mode, OPTIMIZER, Scenario, server, variables, worker};
use crate::cluster::{identity, optimizer};
use crate::replica::Random;

/// Once nothing goes wrong any more, the job must end within this time.
const BOUND: Duration = Duration::from_secs(180);

/// The launcher's pause before a task that failed is started again.
const AGAIN: Duration = Duration::from_secs(1);

/// Short beside real ones, long beside what the network does in good weather.
pub(crate) fn limits() -> Limits {
    Limits {
        formation: Duration::from_secs(15),
        heartbeat_interval: Duration::from_millis(500),
        heartbeat_timeout: Duration::from_secs(2),
        commit: Duration::from_secs(4),
        save: Duration::from_secs(8),
        farewell: Duration::from_secs(3),
        rejoin: Duration::from_secs(60),
    }
}

/// Something behind a lock.
pub(crate) trait Shared<T> {
    fn held(&self) -> MutexGuard<'_, T>;
}

impl<T> Shared<T> for Mutex<T> {
    fn held(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a run went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// What did not hold.
    pub(crate) broken: Option<String>,
    /// Equal for equal runs.
    pub(crate) digest: u64,
    pub(crate) calls: u64,
    pub(crate) steps_lost: u64,
    pub(crate) coordinators: u64,
}

/// A process ended by itself.
enum Exit {
    Coordinator(u64, Outcome),
    Replica(String, u64, End),
}

struct Process {
    life: u64,
    tasks: Vec<JoinHandle<()>>,
}

struct Job<'a> {
    scenario: &'a Scenario,
    folder: &'a Path,
    network: SimNet,
    history: Arc<Mutex<History>>,
    initial: Arc<Vec<f32>>,
    slowness: Vec<Arc<AtomicU32>>,
    processes: BTreeMap<String, Process>,
    /// Starts of all tasks.
    starts: u64,
    coordinators: u64,
    exits: UnboundedSender<Exit>,
    seed: u64,
}

/// Runs what a seed stands for in `folder`, which is empty; with a trace of all that happens if asked for.
pub(crate) async fn run(seed: u64, scenario: &Scenario, folder: &Path, tracing: bool) -> (Report, Vec<String>) {
    let placement = plan(&variables(), scenario.servers as u32, Strategy::Balanced).unwrap();
    let layout = Layout::new(&placement).unwrap();
    let mut random = Random(seed);
    let initial: Vec<f32> = (0..layout.flat_len())
        .map(|_| random.below(2000) as f32 / 1000.0 - 1.0)
        .collect();
    let history = Arc::new(Mutex::new(History::new(scenario, layout, initial.clone())));
    let witness = Arc::clone(&history);
    let network = SimNet::new(seed, tracing, Arc::new(move |call| witness.held().answered(call)));
    network.set_weather(scenario.weather);
    let _network = coati_common::rpc::line::dial_over(Arc::new(network.clone()));
    let postman = tokio::spawn(network.clone().run());
    let (exits, exited) = mpsc::unbounded_channel();
    let mut job = Job {
        scenario,
        folder,
        network,
        history,
        initial: Arc::new(initial),
        slowness: (0..scenario.replicas).map(|_| Arc::new(AtomicU32::new(1))).collect(),
        processes: BTreeMap::new(),
        starts: 0,
        coordinators: 0,
        exits,
        seed,
    };
    job.run(exited).await;
    postman.abort();
    let names: Vec<String> = job.processes.keys().cloned().collect();
    for name in names {
        job.kill(&name);
    }
    let history = job.history.held();
    let report = Report {
        broken: history.broken.clone(),
        digest: job.network.digest(),
        calls: job.network.calls(),
        steps_lost: history.steps_lost,
        coordinators: job.coordinators,
    };
    (report, job.network.trace())
}

/// What the launcher and the world do at an instant.
enum Act {
    Start(String),
    GoOn(String),
    Heal,
    Calm,
    Do(Fault),
}

impl Job<'_> {
    async fn run(&mut self, mut exited: UnboundedReceiver<Exit>) {
        let begun = Instant::now();
        for index in 0..self.scenario.servers {
            self.start(&server(index));
        }
        self.start(MASTER);
        for rank in 1..self.scenario.replicas {
            self.start(&worker(rank));
        }
        let mut acts: Vec<(Instant, Act)> = Vec::new();
        for (at, fault) in &self.scenario.faults {
            acts.push((begun + *at, Act::Do(fault.clone())));
        }
        let calm = begun + self.scenario.calm_after();
        acts.push((calm, Act::Calm));
        loop {
            // The earliest, and of several the one that was planned first.
            acts.sort_by_key(|(at, _)| *at);
            let next = acts.first().map_or(calm + BOUND, |(at, _)| *at);
            let exit = tokio::time::timeout_at(next, exited.recv()).await;
            if self.history.held().broken.is_some() {
                return;
            }
            match exit {
                Ok(Some(Exit::Coordinator(life, outcome))) => {
                    if self.is_current(MASTER, life) {
                        return self.ended(&outcome);
                    }
                }
                Ok(Some(Exit::Replica(name, life, end))) => {
                    if self.is_current(&name, life) {
                        self.network.note(format!("{name} ends: {end:?}"));
                        self.kill(&name);
                        if let End::Failed(_) = end {
                            acts.push((Instant::now() + AGAIN, Act::Start(name)));
                        }
                    }
                }
                Ok(None) => return,
                Err(_) if acts.is_empty() => {
                    let silent = self.history.held().broken.is_none();
                    if silent {
                        self.history.held().fail(format!(
                            "the job did not end within {} s after the last fault",
                            BOUND.as_secs()
                        ));
                    }
                    return;
                }
                Err(_) => {
                    let (_, act) = acts.remove(0);
                    if self.act(act, &mut acts) {
                        return;
                    }
                }
            }
        }
    }

    fn is_current(&self, name: &str, life: u64) -> bool {
        self.processes.get(name).is_some_and(|process| process.life == life)
    }

    /// True when the job turns out to be complete.
    fn act(&mut self, act: Act, acts: &mut Vec<(Instant, Act)>) -> bool {
        let now = Instant::now();
        match act {
            Act::Start(name) => {
                if !self.processes.contains_key(&name) {
                    return self.start(&name);
                }
            }
            Act::GoOn(name) => {
                self.network.note(format!("{name} goes on"));
                self.network.go_on(&name);
            }
            Act::Heal => {
                self.network.note("the network is whole");
                self.network.cut(std::collections::BTreeSet::new());
            }
            Act::Calm => {
                self.network.note("calm");
                self.network.set_weather(Weather {
                    quick: 3,
                    ..Weather::default()
                });
            }
            Act::Do(fault) => {
                self.network.note(format!("{fault:?}"));
                match fault {
                    Fault::Kill(name, away) => {
                        if self.processes.contains_key(&name) {
                            self.kill(&name);
                            acts.push((now + away, Act::Start(name)));
                        }
                    }
                    Fault::Stop(name, pause) => {
                        if self.processes.contains_key(&name) && !self.network.is_stopped(&name) {
                            self.network.stop(&name);
                            acts.push((now + pause, Act::GoOn(name)));
                        }
                    }
                    Fault::Cut(side, pause) => {
                        self.network.cut(side);
                        acts.push((now + pause, Act::Heal));
                    }
                    Fault::Slow(rank, times) => {
                        self.slowness[rank as usize].store(times, Ordering::Relaxed);
                    }
                    Fault::Weather(weather) => self.network.set_weather(weather),
                }
            }
        }
        false
    }

    /// A process is killed, or its end is noticed.
    fn kill(&mut self, name: &str) {
        if let Some(process) = self.processes.remove(name) {
            for task in &process.tasks {
                task.abort();
            }
            self.network.kill(name);
        }
    }

    /// True when the job is complete and this start had nothing to do.
    fn start(&mut self, name: &str) -> bool {
        self.starts += 1;
        self.network.note(format!("{name} starts"));
        let life = self.starts;
        if let Some(index) = name.strip_prefix("ps-") {
            let index: usize = index.parse().unwrap_or_default();
            let store = Arc::new(Store::new(store::Options {
                threads: std::num::NonZeroUsize::new(1),
            }));
            self.history.held().server_started(index, Arc::clone(&store));
            self.network.start(name, service::in_process(index as u32, store));
            let process = Process {
                life,
                tasks: Vec::new(),
            };
            self.processes.insert(name.to_owned(), process);
        } else if name == MASTER {
            return self.start_coordinator(life);
        } else {
            let rank = (1..self.scenario.replicas).find(|&rank| worker(rank) == name);
            let task = self.start_replica(rank.unwrap_or_default(), name, life, None);
            let process = Process {
                life,
                tasks: vec![task],
            };
            self.processes.insert(name.to_owned(), process);
        }
        false
    }

    fn start_replica(
        &self,
        rank: u32,
        host: &str,
        life: u64,
        fail: Option<coati_coordinator::Handle>,
    ) -> JoinHandle<()> {
        let replica = Replica {
            rank,
            host: host.to_owned(),
            start: life,
            scenario: self.scenario.clone(),
            slowness: Arc::clone(&self.slowness[rank as usize]),
            history: Arc::clone(&self.history),
            random: Random(self.seed ^ life << 20 ^ u64::from(rank)),
        };
        let (exits, name) = (self.exits.clone(), host.to_owned());
        tokio::spawn(async move {
            let end = replica.run().await;
            match fail {
                None => drop(exits.send(Exit::Replica(name, life, end))),
                // The master cannot do without its own replica.
                Some(handle) => {
                    if let End::Failed(why) = end {
                        handle.fail(&why);
                    }
                    let outcome = handle.finish().await;
                    let _ = exits.send(Exit::Coordinator(life, outcome));
                }
            }
        })
    }

    fn start_coordinator(&mut self, life: u64) -> bool {
        self.coordinators += 1;
        let latest = state::latest(self.folder).unwrap();
        if let Some(latest) = &latest
            && latest.step >= self.scenario.num_steps
        {
            self.history.held().ended(latest.step);
            return true;
        }
        let scenario = self.scenario;
        let options = Options {
            job: JobRef {
                job_id: "simulated".into(),
                incarnation: self.coordinators,
            },
            model_dir: self.folder.to_owned(),
            listen: address("", MASTER),
            ps_addresses: (0..scenario.servers)
                .map(|index| address(MASTER, &server(index)))
                .collect(),
            workers: scenario.replicas - 1,
            variables: variables(),
            init: latest.map_or_else(
                || Init::Values(Arc::clone(&self.initial)),
                |latest| Init::Checkpoint {
                    prefix: latest.prefix,
                    step: latest.step,
                    data: latest.manifest.map(|manifest| manifest.data).unwrap_or_default(),
                },
            ),
            optimizer: optimizer(OPTIMIZER),
            num_steps: scenario.num_steps,
            batch_size: 4,
            identity: identity(),
            data_seed: 7,
            strategy: Strategy::Balanced,
            synchronous: scenario.mode.is_synchronous(),
            replication: false,
            replicas_to_aggregate: match scenario.mode {
                Mode::Backup { aggregate } => aggregate,
                _ => 0,
            },
            consistency: Consistency {
                max_staleness: scenario.mode.max_staleness(),
                scale_learning_rate: matches!(scenario.mode, Mode::Asynchronous { scaled: true, .. }),
                delay_compensation: None,
            },
            on_nan: coati_common::cluster::OnNan::Stop,
            compression: v1::Compression::default(),
            cadence: cadence::Options {
                every: Duration::from_secs(3600),
                every_steps: Some(scenario.save_every),
            },
            keep: coati_checkpoint::keep::Options::default(),
            limits: limits(),
        };
        let (sender, events) = mpsc::unbounded_channel();
        let told = Told {
            folder: self.folder.to_owned(),
            network: self.network.clone(),
            history: Arc::clone(&self.history),
        };
        let listening = tokio::spawn(told.listen(events));
        let (handle, service) = coati_coordinator::start_in_process(options, sender);
        self.network.start(MASTER, service);
        let running = handle.abort_handle();
        let ends_with_the_process = tokio::spawn(async move {
            let _running = AbortOnDrop(running);
            std::future::pending::<()>().await;
        });
        let replica = self.start_replica(0, MASTER, life, Some(handle));
        let process = Process {
            life,
            tasks: vec![ends_with_the_process, listening, replica],
        };
        self.processes.insert(MASTER.to_owned(), process);
        false
    }

    fn ended(&mut self, outcome: &Outcome) {
        self.network.note(format!("the job ends: {outcome:?}"));
        match outcome {
            Outcome::Completed => self.history.held().ended(self.scenario.num_steps),
            // Before it ever formed, a cluster may find that it cannot, and say so.
            Outcome::Failed(why)
                if why.starts_with("the cluster could not form") && !self.history.held().has_begun() => {}
            other => self.history.held().fail(format!("the job ended with {other:?}")),
        }
    }
}

/// Hears what a coordinator tells.
struct Told {
    folder: PathBuf,
    network: SimNet,
    history: Arc<Mutex<History>>,
}

impl Told {
    async fn listen(self, mut events: UnboundedReceiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Saved { step, .. } => {
                    self.network.note(format!("checkpoint of step {step}"));
                    let latest = state::latest(&self.folder).ok().flatten();
                    match latest
                        .filter(|latest| latest.step == step)
                        .and_then(|latest| latest.manifest)
                    {
                        Some(manifest) => self.history.held().published(step, &manifest.data),
                        None => self.history.held().fail(format!("checkpoint {step} is not the newest")),
                    }
                }
                Event::Step { version, staleness, .. } => {
                    self.network.note(format!("step {version} of {staleness:?}"));
                }
                Event::WentBack { from, to } => self.network.note(format!("back from {from} to {to}")),
                Event::Warning(text) => self.network.note(format!("warning: {text}")),
                Event::Copies { without } => self.network.note(format!("without a copy: {without:?}")),
                Event::Formed { replicas } => self.network.note(format!("formed with {replicas}")),
            }
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
