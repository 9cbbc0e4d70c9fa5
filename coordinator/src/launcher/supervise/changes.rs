//! Changes a running job as somebody asks.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use coati_common::cluster::{Address, TaskId, TaskType};
use nix::sys::signal::Signal as Unix;

use super::Supervisor;
use crate::launcher::control::{Call, Reply, Request};
use crate::launcher::decide::{Decision, scale};
use crate::launcher::process::Group;
use crate::launcher::{Error, ports, resources};

/// Any machine may have so many workers, for tests and demonstrations …
const ALWAYS: usize = 16;
/// … and others so many for each CPU.
const FOR_EACH_CPU: usize = 4;

/// Longest reason that is repeated to the user, in characters.
const LONGEST_REASON: usize = 200;

impl Supervisor {
    /// Does what was asked, if the job is not ending, and says what was done.
    pub(super) async fn answer(&mut self, (request, reply): Call, decision: &Decision) -> Result<(), Error> {
        let answer = if decision.cause.is_some() {
            Reply::refused(format!("the job is ending: {}", decision.reason))
        } else {
            match request {
                Request::Scale { workers } => self.scale(workers).await?,
                Request::Restart {
                    task,
                    pid,
                    older_than_ms,
                    reason,
                } => self.replace(&task, pid, older_than_ms.map(Duration::from_millis), &reason),
            }
        };
        // A caller who did not wait finds the change in the report.
        let _ = reply.send(answer);
        Ok(())
    }

    /// Makes the number of workers what is wanted. The outer error is a launcher that cannot go on.
    async fn scale(&mut self, wanted: u32) -> Result<Reply, Error> {
        if self.options.plan.is_all_reduce() {
            return Ok(Reply::refused(
                "the replicas of this job sum their gradients among themselves: their number is fixed while it runs\nhint: stop it, and start it again with other --devices or another workerCount; it goes on from its checkpoint",
            ));
        }
        let most = FOR_EACH_CPU.saturating_mul(self.inventory.cpus).max(ALWAYS);
        let before = scale::workers(&self.state);
        let count = usize::try_from(wanted).unwrap_or(usize::MAX);
        if count > most && count > before {
            return Ok(Reply::refused(format!(
                "{wanted} workers are too many for this machine: at most {most} with {} CPUs; the job has {before}",
                self.inventory.cpus
            )));
        }
        let change = scale::change(&self.state, wanted);
        let mut plan = self.options.plan.clone();
        plan.workers.count = wanted;
        let division = match resources::divide(&plan, &self.inventory) {
            Ok(division) => division,
            Err(error) => return Ok(Reply::refused(error.to_string())),
        };
        let taken: Vec<u16> = self.tasks.iter().map(|task| task.address.port).collect();
        let mut ports = match ports::free(change.new.len(), &taken) {
            Ok(ports) => ports.into_iter(),
            Err(error) => return Ok(Reply::refused(format!("no free port for another worker: {error}"))),
        };
        let known = |index: u32| {
            let id = TaskId::new(TaskType::Worker, index);
            let place = self.state.tasks.iter().position(|task| task.id == id)?;
            self.tasks.get(place).map(|task| task.address.clone())
        };
        self.cluster.workers = (0..wanted)
            .filter_map(|index| {
                let fresh = || {
                    ports.next().map(|port| Address {
                        host: "127.0.0.1".to_owned(),
                        port,
                    })
                };
                known(index).or_else(fresh)
            })
            .collect();
        self.options.plan = plan;
        change.apply(&mut self.state, Instant::now());
        let named = |places: &[usize]| -> Vec<TaskId> {
            let ids = places.iter().filter_map(|place| self.state.tasks.get(*place));
            ids.map(|task| task.id).collect()
        };
        let leaving = named(&change.leave);
        let mut started = named(&change.back);
        if leaving.is_empty() && started.is_empty() && change.new.is_empty() {
            return Ok(Reply::done(
                format!("the job has {} already", workers(wanted)),
                &[],
                &[],
            ));
        }
        self.say(&format!("from {before} to {wanted} workers, as asked"));
        for warning in &division.warnings {
            self.say(&format!("warning: {warning}"));
        }
        for id in &leaving {
            self.say(&format!("{id} is told to leave"));
        }
        for index in change.new {
            let id = TaskId::new(TaskType::Worker, index);
            let Some((_, share)) = division.shares.iter().find(|(task, _)| *task == id) else {
                continue;
            };
            let place = self.add(id, share.clone())?;
            match self.start_process(place).await? {
                Ok(()) => {
                    let task = self.tasks.get(place);
                    let pid = task.and_then(|task| task.group.as_ref()).map_or(0, Group::pid);
                    let address = task.map(|task| task.address.to_string()).unwrap_or_default();
                    self.say(&format!("{id} on {address} started, pid {pid}"));
                }
                // It counts as a crash, after which it is tried again.
                Err(error) => self.say(&format!("{id} cannot be started: {error}")),
            }
            started.push(id);
        }
        let mut text = format!("the job has {} now", workers(wanted));
        for (names, what) in [(&started, "started"), (&leaving, "leaving")] {
            if !names.is_empty() {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                let _ = write!(text, "; {what}: {}", names.join(", "));
            }
        }
        Ok(Reply::done(text, &started, &leaving))
    }

    /// Kills a process for a new one to take its place.
    fn replace(&self, task: &str, pid: Option<i32>, older_than: Option<Duration>, reason: &str) -> Reply {
        let place = task
            .parse::<TaskId>()
            .ok()
            .and_then(|id| self.state.tasks.iter().position(|task| task.id == id));
        let found = place.and_then(|place| Some((self.state.tasks.get(place)?, self.tasks.get(place)?)));
        let Some((state, running)) = found else {
            return Reply::refused(format!("the job has no task `{}`", printable(task)));
        };
        let id = state.id;
        if self.options.limits.restart.max == 0 {
            return Reply::refused(format!(
                "{id} is left alone: new starts are switched off\nhint: set `coati.restart.max` above 0"
            ));
        }
        let current = running.group.as_ref().map(Group::pid);
        let is_old = older_than.is_some_and(|age| state.started.elapsed() >= age);
        let is_meant = is_old || pid.is_none_or(|pid| Some(pid) == current);
        if state.exit.is_some() || state.leaving.is_some() || !is_meant {
            return Reply::done(format!("{id} has been replaced or is leaving"), &[], &[]);
        }
        self.say(&format!(
            "{id} is killed, for a new process to take its place: {}",
            printable(reason)
        ));
        running.send(Unix::SIGKILL);
        Reply::done(format!("{id} is killed and started again"), &[id], &[])
    }
}

fn workers(count: u32) -> String {
    match count {
        1 => "1 worker".to_owned(),
        count => format!("{count} workers"),
    }
}

/// What somebody wrote, on one line of bounded length.
fn printable(text: &str) -> String {
    let safe = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().take(LONGEST_REASON).map(safe).collect()
}
