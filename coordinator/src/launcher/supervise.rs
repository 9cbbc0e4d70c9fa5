//! Carries decisions out: starts the tasks, gathers facts, sends signals, reports the end.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coati_common::cluster::{Address, ClusterSpec, TaskId, TaskType, TfConfig, tf_config};
use coati_common::exit::ExitCode;
use nix::sys::signal::Signal as Unix;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::decide::{Cause, Decision, Exit, RUNNING, Signal, State, TaskState, decide};
use super::logs::{self, LogLine, TaskLog};
use super::process::{self, Group, Spawner};
use super::resources::{self, Inventory, Share};
use super::{Error, Failure, JOB_ID_VARIABLE, Options, Outcome, ports, probe};

/// How long to wait for the rest of a dead task's output; a process that it left behind may hold its pipe open.
const REST_OF_OUTPUT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy)]
enum Event {
    Exited(usize, Exit),
    Ready(usize),
}

/// What belongs to one task beside the facts in [`State`].
struct Running {
    address: Address,
    log: Arc<TaskLog>,
    group: Group,
}

/// A cluster that runs.
pub(super) struct Supervisor {
    options: Options,
    state: State,
    tasks: Vec<Running>,
    width: usize,
    events: mpsc::UnboundedReceiver<Event>,
    /// Waiters and probes; dropping them ends them.
    jobs: JoinSet<()>,
    /// Must outlive the children.
    spawner: Spawner,
}

impl Supervisor {
    /// Starts every task. On an error those already started are killed.
    pub(super) async fn start(options: Options) -> Result<Self, Error> {
        let ids = options.plan.tasks();
        let width = logs::width(&ids);
        let inventory = options.inventory.clone().unwrap_or_else(Inventory::detect);
        let division = resources::divide(&options.plan, &inventory)?;
        let directory = options.job_dir.as_deref().map(logs::directory).transpose()?;
        let cluster = cluster(&options)?;
        let spawner = Spawner::new().map_err(|_| Error::Spawner)?;
        let (sender, events) = mpsc::unbounded_channel();
        let started = Instant::now();
        let state = State {
            started,
            tasks: Vec::new(),
            stops: Vec::new(),
            asked_by: String::new(),
        };
        let mut supervisor = Self {
            options,
            state,
            tasks: Vec::new(),
            width,
            events,
            jobs: JoinSet::new(),
            spawner,
        };
        for warning in &division.warnings {
            supervisor.say(&format!("warning: {warning}"));
        }
        supervisor.say(&announcement(&supervisor.options, &cluster, &division.shares));
        for (index, (task, share)) in division.shares.iter().enumerate() {
            let Some(address) = cluster.address(*task).cloned() else {
                continue;
            };
            let options = &supervisor.options;
            let log = TaskLog::open(*task, width, options.on_log.clone(), directory.as_deref())?;
            let command = command(options, &cluster, *task, share);
            let spawn = |source| Error::Spawn {
                task: *task,
                binary: options.binary.clone(),
                source,
            };
            let answer = supervisor.spawner.spawn(command).await.ok_or(Error::Spawner)?;
            let (group, child) = answer.map_err(spawn)?;
            log.mark(&format!(
                "--- {} {task} pid {} on {address}",
                options.job_id,
                group.pid()
            ));
            let log = Arc::new(log);
            supervisor.jobs.spawn(attend(index, child, log.clone(), sender.clone()));
            let probed = supervisor.options.probe && task.kind.serves();
            if probed {
                let (sender, address) = (sender.clone(), address.clone());
                supervisor.jobs.spawn(async move {
                    probe::accepts(&address).await;
                    let _ = sender.send(Event::Ready(index));
                });
            }
            supervisor.state.tasks.push(TaskState {
                id: *task,
                address: address.to_string(),
                probed,
                ready: None,
                exit: None,
                told: None,
            });
            supervisor.tasks.push(Running { address, log, group });
        }
        Ok(supervisor)
    }

    /// Follows the tasks to their end.
    pub(super) async fn run(mut self, mut stops: mpsc::UnboundedReceiver<String>) -> Result<Outcome, Error> {
        let mut said = RUNNING.to_owned();
        let mut stoppable = true;
        loop {
            let decision = decide(Instant::now(), &self.state, &self.options.limits);
            if decision.reason != said {
                if decision.reason != RUNNING {
                    self.say(&decision.reason);
                }
                said.clone_from(&decision.reason);
            }
            self.carry_out(&decision);
            if let Some(exit) = decision.exit {
                return Ok(self.outcome(exit, decision));
            }
            tokio::select! {
                Some(event) = self.events.recv() => self.note(event),
                stop = stops.recv(), if stoppable => match stop {
                    Some(who) => {
                        if self.state.stops.is_empty() {
                            self.state.asked_by = who;
                        }
                        self.state.stops.push(Instant::now());
                    }
                    None => stoppable = false,
                },
                () = sleep_until(decision.wake_at.unwrap_or_else(Instant::now).into()), if decision.wake_at.is_some() => {}
                else => return Err(Error::Spawner),
            }
        }
    }

    fn say(&self, text: &str) {
        for line in text.lines() {
            (self.options.on_log)(LogLine {
                task: None,
                text: line,
                width: self.width,
            });
        }
    }

    fn note(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Exited(index, exit) => {
                if let Some(task) = self.state.tasks.get_mut(index) {
                    task.exit = Some((now, exit));
                }
                if let Some(task) = self.tasks.get_mut(index) {
                    task.group.end();
                }
            }
            Event::Ready(index) => {
                if let Some(task) = self.state.tasks.get_mut(index) {
                    task.ready = Some(now);
                }
                if self.state.tasks.iter().all(|task| !task.probed || task.ready.is_some()) {
                    let seconds = now.saturating_duration_since(self.state.started).as_secs_f64();
                    self.say(&format!("the cluster answers after {seconds:.1} s"));
                }
            }
        }
    }

    fn carry_out(&mut self, decision: &Decision) {
        for order in &decision.orders {
            let (Some(state), Some(task)) = (self.state.tasks.get_mut(order.task), self.tasks.get(order.task)) else {
                continue;
            };
            state.told = Some(order.signal);
            let id = state.id;
            match order.signal {
                Signal::Terminate => task.group.send(Unix::SIGTERM),
                Signal::Kill => {
                    task.group.send(Unix::SIGKILL);
                    self.say(&format!("{id} did not stop in time and is killed"));
                }
            }
        }
    }

    fn failure(&self, index: usize, what: String) -> Option<Failure> {
        let (state, task) = (self.state.tasks.get(index)?, self.tasks.get(index)?);
        Some(Failure {
            task: state.id,
            address: task.address.clone(),
            what,
            last_lines: task.log.last_lines(),
            log: task.log.path().map(ToOwned::to_owned),
        })
    }

    fn outcome(&self, exit: ExitCode, decision: Decision) -> Outcome {
        let mut outcome = Outcome {
            exit,
            reason: decision.reason,
            failures: Vec::new(),
            warnings: Vec::new(),
        };
        let Some((since, cause)) = decision.cause else {
            return outcome;
        };
        if let Cause::NotReady(index) = cause {
            let address = self
                .tasks
                .get(index)
                .map_or_else(String::new, |task| task.address.to_string());
            let limit = coati_common::cluster::duration::format(self.options.limits.ready);
            outcome
                .failures
                .extend(self.failure(index, format!("did not answer on {address} within {limit}")));
        }
        // Those that went down by themselves, in the order in which they did.
        let mut crashed: Vec<(Instant, usize, Exit)> = Vec::new();
        for (index, task) in self.state.tasks.iter().enumerate() {
            let Some((at, how)) = task.exit else { continue };
            let own_fault = match cause {
                Cause::Failed(culprit) => index == culprit || task.told.is_none(),
                Cause::Interrupted | Cause::TimeLimit => {
                    exit == ExitCode::JobFailure && (task.id.kind == TaskType::Master || task.told.is_none())
                }
                Cause::Ended(_) | Cause::NotReady(_) => false,
            };
            if how.meaning() == Some(ExitCode::Success) {
                continue;
            }
            if own_fault {
                crashed.push((at, index, how));
            } else if task.told.is_none() && at > since {
                outcome
                    .warnings
                    .push(format!("{} {how} after the end of the job", task.id));
            } else if task.told == Some(Signal::Kill) && task.id == TaskId::MASTER {
                outcome.warnings.push(
                    "the master was killed before it ended: its newest checkpoint may be an older one".to_owned(),
                );
            }
        }
        crashed.sort_by_key(|(at, _, _)| *at);
        outcome.failures.extend(
            crashed
                .into_iter()
                .filter_map(|(_, index, how)| self.failure(index, how.to_string())),
        );
        outcome
    }
}

/// Follows one child to its end.
async fn attend(index: usize, mut child: Child, log: Arc<TaskLog>, events: mpsc::UnboundedSender<Event>) {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let reading = async {
        let follow_out = async {
            if let Some(out) = out {
                log.follow(out).await;
            }
        };
        let follow_err = async {
            if let Some(err) = err {
                log.follow(err).await;
            }
        };
        tokio::join!(follow_out, follow_err);
    };
    let mut reading = std::pin::pin!(reading);
    let mut read = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.unwrap_or_else(|_| process::unknown_status()),
            () = &mut reading, if !read => read = true,
        }
    };
    if !read {
        let _ = timeout(REST_OF_OUTPUT, reading).await;
    }
    let _ = events.send(Event::Exited(index, status.into()));
}

/// Addresses for every task, on ports that are free now.
fn cluster(options: &Options) -> Result<ClusterSpec, Error> {
    let plan = &options.plan;
    let count = plan.tasks().len();
    let mut ports = ports::free(count)
        .map_err(|source| Error::Ports { count, source })?
        .into_iter();
    let mut take = |count: u32| -> Vec<Address> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        ports
            .by_ref()
            .take(count)
            .map(|port| Address {
                host: "127.0.0.1".to_owned(),
                port,
            })
            .collect()
    };
    let none = || Error::Ports {
        count,
        source: std::io::Error::other("too few were found"),
    };
    Ok(ClusterSpec {
        master: take(1).pop().ok_or_else(none)?,
        workers: take(plan.workers.count),
        ps: take(plan.parameter_servers.count),
        evaluators: take(plan.evaluators.count),
    })
}

fn command(options: &Options, cluster: &ClusterSpec, task: TaskId, share: &Share) -> Command {
    let config = TfConfig {
        chief: options.plan.use_chief_in_tf_config,
        environment: Some("local".to_owned()),
        ..TfConfig::new(cluster.clone(), task)
    };
    let mut command = Command::new(&options.binary);
    command
        .args(&options.args)
        .envs(share.env())
        .env(tf_config::VARIABLE, config.to_json())
        .env(JOB_ID_VARIABLE, &options.job_id)
        .envs(options.env.iter().map(|(name, value)| (name, value)));
    command
}

fn announcement(options: &Options, cluster: &ClusterSpec, shares: &[(TaskId, Share)]) -> String {
    let mut text = format!("{}: {} tasks on this machine", options.job_id, shares.len());
    for (task, share) in shares {
        let address = cluster.address(*task).map_or_else(String::new, ToString::to_string);
        let threads = if share.threads == 1 {
            "1 thread".to_owned()
        } else {
            format!("{} threads", share.threads)
        };
        let gpus = if share.gpus.is_empty() {
            String::new()
        } else {
            format!(", GPU {}", share.gpus.join(" and "))
        };
        let _ = write!(text, "\n  {task} on {address}, {threads}{gpus}");
    }
    text
}
