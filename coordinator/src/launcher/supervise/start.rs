//! Starts processes: all tasks at first, and one again when it crashed.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coati_common::cluster::{Address, ClusterSpec, TaskId, TfConfig, tf_config};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Event, Running, Supervisor};
use crate::launcher::control::Claim;
use crate::launcher::decide::{Exit, State, TaskState, recent};
use crate::launcher::logs::{self, TaskLog};
use crate::launcher::process::{self, Group, Spawner};
use crate::launcher::report::Report;
use crate::launcher::resources::{self, Inventory, Share};
use crate::launcher::{Error, JOB_ID_VARIABLE, Options, RESTARTS_VARIABLE, ports, probe};

/// How long to wait for the rest of a dead task's output; a process that it left behind may hold its pipe open.
const REST_OF_OUTPUT: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Starts every task. On an error those already started are killed.
    pub(in crate::launcher) async fn start(options: Options) -> Result<Self, Error> {
        let ids = options.plan.tasks();
        let width = logs::width(&ids);
        let inventory = options.inventory.clone().unwrap_or_else(Inventory::detect);
        let division = resources::divide(&options.plan, &inventory)?;
        let logs = options.job_dir.as_deref().map(logs::directory).transpose()?;
        let claim = logs.as_deref().map(|logs| claim(&options, logs)).transpose()?;
        let cluster = cluster(&options)?;
        let spawner = Spawner::new().map_err(|_| Error::Spawner)?;
        let (reporter, events) = mpsc::unbounded_channel();
        let (caller, calls) = mpsc::channel(1);
        let mut supervisor = Self {
            options,
            inventory,
            logs,
            state: State {
                started: Instant::now(),
                tasks: Vec::new(),
                stops: Vec::new(),
                asked_by: String::new(),
            },
            tasks: Vec::new(),
            cluster,
            width,
            events,
            reporter,
            jobs: JoinSet::new(),
            published: None,
            calls,
            control: None,
            _claim: claim,
            spawner,
        };
        supervisor.listen(caller);
        for warning in &division.warnings {
            supervisor.say(&format!("warning: {warning}"));
        }
        supervisor.say(&announcement(
            &supervisor.options,
            &supervisor.cluster,
            &division.shares,
        ));
        for (task, share) in division.shares {
            let index = supervisor.add(task, share)?;
            let started = supervisor.start_process(index).await?;
            started.map_err(|source| Error::Spawn {
                task,
                binary: supervisor.options.binary.clone(),
                source,
            })?;
        }
        Ok(supervisor)
    }

    /// Makes a place for a task of the cluster, without a process yet.
    pub(super) fn add(&mut self, task: TaskId, share: Share) -> Result<usize, Error> {
        let none = || Error::Ports {
            count: 1,
            source: io::Error::other(format!("none is left for {task}")),
        };
        let address = self.cluster.address(task).cloned().ok_or_else(none)?;
        let log = TaskLog::open(task, self.width, self.options.on_log.clone(), self.logs.as_deref())?;
        self.state.tasks.push(TaskState {
            id: task,
            address: address.to_string(),
            probed: self.options.probe && task.kind.serves(),
            started: Instant::now(),
            ready: None,
            exit: None,
            told: None,
            restarts: Vec::new(),
            leaving: None,
            returns: false,
        });
        self.tasks.push(Running {
            address,
            share,
            log: Arc::new(log),
            group: None,
            earlier: 0,
        });
        Ok(self.tasks.len() - 1)
    }

    /// Starts the process of a task. The inner error is the system's: there is no process then.
    pub(super) async fn start_process(&mut self, index: usize) -> Result<io::Result<()>, Error> {
        let (Some(state), Some(task)) = (self.state.tasks.get_mut(index), self.tasks.get_mut(index)) else {
            return Ok(Ok(()));
        };
        state.started = Instant::now();
        (state.ready, state.exit, state.told) = (None, None, None);
        (state.leaving, state.returns) = (None, false);
        let command = command(&self.options, &self.cluster, state.id, task);
        let (group, child) = match self.spawner.spawn(command).await.ok_or(Error::Spawner)? {
            Ok(started) => started,
            Err(source) => {
                state.exit = Some((Instant::now(), Exit::Unstarted));
                return Ok(Err(source));
            }
        };
        task.log.begin(&format!(
            "--- {} {} pid {} on {}",
            self.options.job_id,
            state.id,
            group.pid(),
            task.address
        ));
        task.group = Some(group);
        // Those of earlier processes.
        while self.jobs.try_join_next().is_some() {}
        let (earlier, reporter) = (task.earlier, self.reporter.clone());
        self.jobs
            .spawn(attend(index, earlier, child, task.log.clone(), reporter));
        if state.probed {
            let (reporter, address) = (self.reporter.clone(), task.address.clone());
            self.jobs.spawn(async move {
                probe::accepts(&address).await;
                let _ = reporter.send(Event::Ready(index, earlier));
            });
        }
        Ok(Ok(()))
    }

    /// Starts a task again, with the same address, environment and log.
    pub(super) async fn start_again(&mut self, index: usize, counts: bool) -> Result<(), Error> {
        let (Some(state), Some(task)) = (self.state.tasks.get_mut(index), self.tasks.get_mut(index)) else {
            return Ok(());
        };
        let (id, how) = (state.id, state.exit.map(|(_, exit)| exit.brief()).unwrap_or_default());
        let policy = &self.options.limits.restart;
        let now = Instant::now();
        let which = if counts {
            state.restarts.push(now);
            format!("{} of {}", recent(state, now, policy), policy.max)
        } else if state.leaving.is_some() {
            "it is wanted again".to_owned()
        } else {
            "for the new master".to_owned()
        };
        task.earlier = task.earlier.saturating_add(1);
        match self.start_process(index).await? {
            Ok(()) => {
                let pid = self
                    .tasks
                    .get(index)
                    .and_then(|task| task.group.as_ref())
                    .map(Group::pid);
                let pid = pid.unwrap_or_default();
                self.say(&format!("{id} {how}; started again ({which}), pid {pid}"));
            }
            Err(source) => {
                let binary = self.options.binary.display();
                self.say(&format!(
                    "{id} {how}; it cannot be started again ({which}, {binary}): {source}"
                ));
            }
        }
        Ok(())
    }
}

/// Follows one child to its end.
async fn attend(
    index: usize,
    earlier: u32,
    mut child: Child,
    log: Arc<TaskLog>,
    reporter: mpsc::UnboundedSender<Event>,
) {
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
    let _ = reporter.send(Event::Exited(index, earlier, status.into()));
}

/// Claims the directory of the logs, or says whose it is.
fn claim(options: &Options, logs: &Path) -> Result<Claim, Error> {
    let log = |source| Error::Log {
        path: logs.to_owned(),
        source,
    };
    Claim::take(logs).map_err(log)?.ok_or_else(|| {
        let job_dir = options.job_dir.clone().unwrap_or_default();
        let running = Report::read(&job_dir).ok().filter(|report| report.ended.is_none());
        Error::Running {
            job_dir,
            running: running.map(|report| format!("{}, launcher pid {}", report.job_id, report.launcher_pid)),
        }
    })
}

/// Addresses for every task, on ports that are free now.
fn cluster(options: &Options) -> Result<ClusterSpec, Error> {
    let plan = &options.plan;
    let count = plan.tasks().len();
    let mut ports = ports::free(count, &[])
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
        source: io::Error::other("too few were found"),
    };
    Ok(ClusterSpec {
        master: take(1).pop().ok_or_else(none)?,
        workers: take(plan.workers.count),
        ps: take(plan.parameter_servers.count),
        evaluators: take(plan.evaluators.count),
    })
}

fn command(options: &Options, cluster: &ClusterSpec, task: TaskId, running: &Running) -> Command {
    let config = TfConfig {
        chief: options.plan.use_chief_in_tf_config,
        environment: Some("local".to_owned()),
        ..TfConfig::new(cluster.clone(), task)
    };
    let mut command = Command::new(&options.binary);
    command
        .args(&options.args)
        .envs(running.share.env())
        .env(tf_config::VARIABLE, config.to_json())
        .env(JOB_ID_VARIABLE, &options.job_id)
        .env(RESTARTS_VARIABLE, running.earlier.to_string())
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
