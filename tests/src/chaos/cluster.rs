//! A running job as `coati status` shows it, and whether everybody takes part.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::log::{Entry, Follower, Share};
use crate::Job;

/// Between two looks at a job that is not whole.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `coati status` answers in a fraction of this, whatever state the job is in: it waits 2 s for the coordinator.
const STATUS_LIMIT: Duration = Duration::from_secs(20);

/// A process of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its number.
    pub(super) pid: Pid,
    /// Of the newest contribution of the task's replica: incarnation and generation.
    pub(super) generation: Option<u64>,
}

/// A running job.
pub(super) struct Watch<'a> {
    /// Where it runs.
    pub(super) job: &'a Job,
    /// Its folder.
    pub(super) model: &'a str,
    /// Its log.
    pub(super) follower: &'a Follower,
    /// Ranks that contribute to each step.
    pub(super) replicas: u32,
    /// Whether every parameter server has a copy.
    pub(super) copies: bool,
    /// Steps that it said it was at, each with the number of the log's entries then.
    pub(super) announced: Vec<(usize, u64)>,
}

fn rank(task: &str) -> Option<u32> {
    match task.strip_prefix("worker-") {
        Some(index) => index.parse::<u32>().ok()?.checked_add(1),
        None => (task == "master").then_some(0),
    }
}

/// The newest incarnation and generation of a rank.
fn generation(entries: &[Entry], rank: u32) -> Option<u64> {
    let shares = entries.iter().rev().filter_map(|entry| match entry {
        Entry::Step { shares, .. } => shares.iter().find(|share| share.replica == rank),
        Entry::Begin { .. } => None,
    });
    shares.map(generation_of).next()
}

/// Sequence numbers begin with them.
fn generation_of(share: &Share) -> u64 {
    share.sequence >> 32
}

impl Watch<'_> {
    /// What `coati status` says.
    pub(super) fn status(&mut self) -> Value {
        let arguments = ["status", "--model_dir", self.model, "--format", "json"];
        let status = self.job.coati(arguments).limit(STATUS_LIMIT).run().exits(0).json();
        if let Some(step) = status["progress"]["step"].as_u64() {
            self.announced.push((self.follower.len(), step));
        }
        status
    }

    /// The process of a task, if it has one.
    pub(super) fn process(&mut self, task: &str) -> Option<Seen> {
        let status = self.status();
        let pid = find(&status, task)?["pid"].as_i64()?;
        Some(Seen {
            pid: Pid::from_raw(i32::try_from(pid).ok()?),
            generation: rank(task).and_then(|rank| generation(&self.follower.entries(), rank)),
        })
    }

    /// Waits for the process that takes the place of `old`.
    pub(super) fn successor(&mut self, task: &str, old: Seen, limit: Duration) -> Result<Seen, String> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(new) = self.process(task).filter(|new| new.pid != old.pid) {
                return Ok(new);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(format!("{task} has no new process after {:.0} s", limit.as_secs_f64()))
    }

    /// Waits until every process runs and every replica takes part again; says what is missing if that takes too long.
    /// `replaced` is a process that must have a successor by then.
    pub(super) fn until_whole(&mut self, replaced: Option<(&str, Seen)>, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        loop {
            let (status, mark) = (self.status(), self.follower.len());
            let missing = match self.missing(&status, replaced) {
                None => match self.everybody(mark, replaced, deadline) {
                    None => return Ok(()),
                    Some(missing) => missing,
                },
                Some(missing) => missing,
            };
            if !status["ended"].is_null() || status["alive"] == Value::Bool(false) {
                return Err(format!("the job ended: {}", status["ended"]["reason"]));
            }
            if Instant::now() >= deadline {
                return Err(format!("not whole after {:.0} s: {missing}", limit.as_secs_f64()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Who or what a status lacks.
    fn missing(&self, status: &Value, replaced: Option<(&str, Seen)>) -> Option<String> {
        let tasks = status["tasks"].as_array()?;
        for task in tasks {
            let name = task["task"].as_str().unwrap_or_default();
            if task["state"] != "running" {
                return Some(format!("{name} is {}", task["state"]));
            }
            if let Some((_, old)) = replaced.filter(|(victim, _)| *victim == name)
                && task["pid"].as_i64() == Some(i64::from(old.pid.as_raw()))
            {
                return Some(format!("{name} has no new process, in place of {}", old.pid));
            }
        }
        let progress = &status["progress"];
        if progress["state"] != "training" {
            return Some(format!(
                "the coordinator says {}, {}",
                progress["state"], status["problem"]
            ));
        }
        if self.copies && progress["copies"] != "whole" {
            return Some(format!("copies of the parameter servers: {}", progress["copies"]));
        }
        None
    }

    /// Waits until all replicas have contributed after `mark`; what is missing if they do not.
    fn everybody(&self, mark: usize, replaced: Option<(&str, Seen)>, deadline: Instant) -> Option<String> {
        let old = replaced.and_then(|(task, seen)| Some((rank(task)?, seen.generation?)));
        let contributors = |entries: &[Entry]| {
            let steps = entries.iter().filter_map(|entry| match entry {
                Entry::Step { shares, .. } => Some(shares),
                Entry::Begin { .. } => None,
            });
            let fresh = steps
                .flatten()
                .filter(|share| old != Some((share.replica, generation_of(share))));
            fresh.map(|share| share.replica).collect::<BTreeSet<u32>>()
        };
        // Not for long: the status tells more when there is something to tell.
        let soon = deadline.min(Instant::now() + Duration::from_secs(1));
        let found = self.follower.find(mark, soon, |entries| {
            (contributors(entries).len() as u32 == self.replicas).then_some(())
        });
        if found.is_some() {
            return None;
        }
        let entries = self.follower.entries();
        let there = contributors(entries.get(mark..).unwrap_or_default());
        Some(format!(
            "of {} replicas only those of ranks {there:?} have contributed lately",
            self.replicas
        ))
    }

    /// Waits for so many further steps.
    pub(super) fn steps(&self, steps: u64, limit: Duration) -> Result<(), String> {
        let (mark, deadline) = (self.follower.len(), Instant::now() + limit);
        let made = |entries: &[Entry]| {
            let count = entries.iter().filter(|entry| matches!(entry, Entry::Step { .. }));
            (count.count() as u64 >= steps).then_some(())
        };
        self.follower
            .find(mark, deadline, made)
            .ok_or_else(|| format!("no {steps} step(s) in {:.0} s", limit.as_secs_f64()))
    }
}

/// A task's entry in a status.
fn find<'a>(status: &'a Value, task: &str) -> Option<&'a Value> {
    status["tasks"].as_array()?.iter().find(|entry| entry["task"] == task)
}

/// Sends a signal; whether the process was still there.
pub(super) fn send(seen: Seen, signal: Signal) -> bool {
    kill(seen.pid, signal).is_ok()
}
