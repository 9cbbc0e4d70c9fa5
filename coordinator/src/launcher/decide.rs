//! What to do about the tasks, as a pure function of what happened so far.
//!
//! [`State`] holds facts with their instants (who exited when, who answered when, when somebody asked to stop). The cause of
//! the job's end is the earliest fact that ends it; everything follows from the cause and the clock:
//!
//! | cause | told to stop (SIGTERM) | killed |
//! |---|---|---|
//! | the master ended in order | the others, if still there after `drain`, or at once if the master never answered (a job that was done already: nobody joined it); the evaluator after `evaluate`, if the job is done | `kill` later |
//! | Ctrl-C, SIGTERM; time limit | the evaluator at once, and the master, which writes a checkpoint and ends the job; the others `drain` after it | `stop` after the request |
//! | a parameter server or the master failed | everybody at once | `failure` after the failure |
//! | a worker failed | the training tasks at once; the parameter servers when the master, which may still write a checkpoint, has ended | `failure` after the failure |
//! | a task did not answer in time | everybody at once | `failure` after the deadline |
//!
//! A second request to stop kills everybody at once, in every case.
//!
//! A worker that is not wanted any more (the job was made smaller) is told to stop, and killed `leave` later; however it ends is
//! no failure.
//!
//! A crash is a failure only when the task has been started again too often ([`Verdict`]); once a job ends, nothing is
//! started any more, but for an evaluator that still has the last checkpoint to look at. Nothing that an evaluator does ends a
//! job: when it cannot go on, training goes on without it.

mod facts;
mod restart;
pub mod scale;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use coati_common::cluster::{Restart, TaskId, TaskType, duration};
use coati_common::exit::ExitCode;

pub use self::facts::{Exit, Signal, State, TaskState};
pub use self::restart::Verdict;
pub(super) use self::restart::recent;

/// Deadlines and other limits of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the start of a process of the master or a parameter server until it accepts connections.
    pub ready: Duration,
    /// From the start until those who do not answer yet are named.
    pub notice: Duration,
    /// From the first request to stop until everybody is killed.
    pub stop: Duration,
    /// From a failure until everybody else is killed.
    pub failure: Duration,
    /// From the master's end until the others are told to stop.
    pub drain: Duration,
    /// From the end of a job that is done until its evaluator must be done with the last checkpoint.
    pub evaluate: Duration,
    /// From being told to stop until being killed, once the master has ended.
    pub kill: Duration,
    /// From being told to leave a job that goes on until being killed.
    pub leave: Duration,
    /// From the start until the job is stopped in order.
    pub max_running: Option<Duration>,
    /// How often a crashed task is started again.
    pub restart: Restart,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ready: Duration::from_secs(120),
            notice: Duration::from_secs(10),
            stop: Duration::from_secs(60),
            failure: Duration::from_secs(20),
            drain: Duration::from_secs(20),
            evaluate: Duration::from_secs(3600),
            kill: Duration::from_secs(5),
            leave: Duration::from_secs(60),
            max_running: None,
            restart: Restart::default(),
        }
    }
}

/// What ends the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The master left in order: with success, interrupted or at its time limit.
    Ended(ExitCode),
    /// Somebody asked to stop.
    Interrupted,
    /// `maxRunningTime` is over.
    TimeLimit,
    /// This task (place in [`State::tasks`]) ended abnormally, and is not started again.
    Failed(usize),
    /// This task did not accept connections in time.
    NotReady(usize),
}

/// A signal that must be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Place in [`State::tasks`].
    pub task: usize,
    /// What to send to its process group.
    pub signal: Signal,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What ends the job and since when; none while it runs.
    pub cause: Option<(Instant, Cause)>,
    /// Signals to send now.
    pub orders: Vec<Order>,
    /// Tasks (places in [`State::tasks`]) to start again now, and whether that counts towards the limit.
    pub restarts: Vec<(usize, bool)>,
    /// When to decide again if nothing happens before.
    pub wake_at: Option<Instant>,
    /// Set when no task is left.
    pub exit: Option<ExitCode>,
    /// Why, in words for the user. Changes only when there is news.
    pub reason: String,
}

/// Decides from the facts. Calling it again with the same facts and orders carried out gives no further orders.
pub fn decide(now: Instant, state: &State, limits: &Limits) -> Decision {
    let cause = cause(now, state, limits);
    let schedule: Vec<Option<Deadlines>> = state
        .tasks
        .iter()
        .enumerate()
        .map(|(index, task)| match cause {
            Some((since, cause)) => Some(deadlines(index, since, cause, state, limits)),
            None => task.leaving.map(|since| Deadlines {
                terminate: Some(since),
                kill: since + limits.leave,
            }),
        })
        .collect();
    let mut orders = Vec::new();
    let mut wake_at = if cause.is_none() {
        running_deadline(now, state, limits)
    } else {
        None
    };
    let mut wake = |at: Instant| wake_at = Some(wake_at.map_or(at, |other| other.min(at)));
    for (index, (task, deadlines)) in state.tasks.iter().zip(&schedule).enumerate() {
        let Some(deadlines) = deadlines.as_ref().filter(|_| task.exit.is_none()) else {
            continue;
        };
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(Some(deadlines.kill)) {
            if task.told != Some(Signal::Kill) {
                orders.push(Order {
                    task: index,
                    signal: Signal::Kill,
                });
            }
            continue;
        }
        wake(deadlines.kill);
        if due(deadlines.terminate) {
            if task.told.is_none() {
                orders.push(Order {
                    task: index,
                    signal: Signal::Terminate,
                });
            }
        } else if let Some(at) = deadlines.terminate {
            wake(at);
        }
    }
    let mut restarts = Vec::new();
    let mut waiting = false;
    for (index, task) in state.tasks.iter().enumerate() {
        if !may_start(now, task, cause, state, limits) {
            continue;
        }
        match restart::verdict(task, &limits.restart, master_since(state)) {
            Some(Verdict::Again { at, counts }) if at <= now => restarts.push((index, counts)),
            Some(Verdict::Again { at, .. }) => {
                waiting = true;
                wake(at);
            }
            _ => {}
        }
    }
    let done = restarts.is_empty() && !waiting && state.tasks.iter().all(|task| task.exit.is_some());
    let exit = cause
        .filter(|_| done)
        .map(|(since, cause)| exit_code(since, cause, state));
    Decision {
        cause,
        orders,
        restarts,
        wake_at,
        exit,
        reason: reason(now, cause, state, limits),
    }
}

/// What follows from the end of this task's newest process while the job runs; nothing for one that runs.
pub fn verdict(index: usize, state: &State, limits: &Limits) -> Option<Verdict> {
    restart::verdict(state.tasks.get(index)?, &limits.restart, master_since(state))
}

/// Whether a task that ended may be started again: while the job runs, and an evaluator also while it has the last checkpoint of a job
/// that is done to look at.
fn may_start(now: Instant, task: &TaskState, cause: Option<(Instant, Cause)>, state: &State, limits: &Limits) -> bool {
    match cause {
        None => true,
        Some((since, Cause::Ended(ExitCode::Success))) => {
            task.id.kind == TaskType::Evaluator
                && task.told.is_none()
                && state.stops.is_empty()
                && now < since + limits.evaluate
        }
        Some(_) => false,
    }
}

/// When the newest process of the master was started.
fn master_since(state: &State) -> Option<Instant> {
    let master = state.tasks.iter().find(|task| task.id == TaskId::MASTER);
    master.map(|master| master.started)
}

/// When a task must be told to stop (none: not yet known) and when it must be killed.
struct Deadlines {
    terminate: Option<Instant>,
    kill: Instant,
}

fn deadlines(index: usize, since: Instant, cause: Cause, state: &State, limits: &Limits) -> Deadlines {
    let kind = state.tasks.get(index).map_or(TaskType::Worker, |task| task.id.kind);
    let master = state.tasks.iter().find(|task| task.id == TaskId::MASTER);
    let master_end = master.and_then(|task| task.exit).map(|(at, _)| at);
    let joined = master.is_none_or(|task| task.ready.is_some() || !task.probed);
    let (terminate, kill) = match cause {
        Cause::Ended(exit) => {
            let patience = if kind == TaskType::Evaluator && exit == ExitCode::Success {
                limits.evaluate
            } else if joined {
                limits.drain
            } else {
                Duration::ZERO
            };
            // Somebody in a hurry does not wait for the others to leave by themselves.
            let hurry = state.stops.first().copied().filter(|at| *at > since);
            let terminate = hurry.map_or(since + patience, |at| at.min(since + patience));
            (Some(terminate), terminate + limits.kill)
        }
        Cause::Interrupted | Cause::TimeLimit => {
            let last = since + limits.stop;
            if matches!(kind, TaskType::Master | TaskType::Evaluator) {
                (Some(since), last)
            } else {
                let terminate = master_end.map(|at| at + limits.drain);
                (terminate, terminate.map_or(last, |at| last.min(at + limits.kill)))
            }
        }
        Cause::Failed(culprit) => {
            let culprit = state.tasks.get(culprit).map(|task| task.id.kind);
            let in_order = culprit == Some(TaskType::Worker);
            let terminate = if in_order && kind == TaskType::Ps {
                master_end.map(|at| at.max(since))
            } else {
                Some(since)
            };
            (terminate, since + limits.failure)
        }
        Cause::NotReady(_) => (Some(since), since + limits.failure),
    };
    // While tasks are stopping because of a failure there is nothing left to save: one request is enough.
    let needed = if matches!(cause, Cause::Failed(_) | Cause::NotReady(_)) {
        1
    } else {
        2
    };
    let forced = if needed == 1 {
        state.stops.iter().copied().find(|at| *at > since)
    } else {
        state.stops.get(1).copied()
    };
    Deadlines {
        terminate,
        kill: forced.map_or(kill, |at| kill.min(at)),
    }
}

/// The earliest fact that ends the job.
fn cause(now: Instant, state: &State, limits: &Limits) -> Option<(Instant, Cause)> {
    let mut causes: Vec<(Instant, Cause)> = Vec::new();
    if let Some(at) = state.stops.first() {
        causes.push((*at, Cause::Interrupted));
    }
    if let Some(at) = limits.max_running.and_then(|limit| state.started.checked_add(limit)) {
        causes.push((at, Cause::TimeLimit));
    }
    for (index, task) in state.tasks.iter().enumerate() {
        let ready_by = task.started + limits.ready;
        let late = |at: Option<Instant>| at.is_none_or(|at| at > ready_by);
        if task.probed && task.leaving.is_none() && late(task.ready) && late(task.exit.map(|(at, _)| at)) {
            causes.push((ready_by, Cause::NotReady(index)));
        }
        let Some((at, exit)) = task.exit else { continue };
        match exit.meaning() {
            Some(meaning) if task.id == TaskId::MASTER && ends_in_order(meaning) => {
                causes.push((at, Cause::Ended(meaning)));
            }
            // A replica or server that the coordinator sent home leaves with success before the master does.
            _ if restart::verdict(task, &limits.restart, master_since(state)) != Some(Verdict::Final) => {}
            _ => causes.push((at, Cause::Failed(index))),
        }
    }
    // `min_by_key` keeps the first of equals: a request to stop explains an exit at the same instant.
    causes
        .into_iter()
        .filter(|(at, _)| *at <= now)
        .min_by_key(|(at, _)| *at)
}

const fn ends_in_order(exit: ExitCode) -> bool {
    matches!(exit, ExitCode::Success | ExitCode::Interrupted | ExitCode::TimeLimit)
}

/// The tasks that must accept connections and do not yet.
fn awaited(state: &State) -> impl Iterator<Item = &TaskState> {
    state
        .tasks
        .iter()
        .filter(|task| task.probed && task.ready.is_none() && task.exit.is_none())
}

/// The next deadline of a job that runs.
fn running_deadline(now: Instant, state: &State, limits: &Limits) -> Option<Instant> {
    let notice = awaited(state)
        .map(|task| task.started + limits.notice)
        .filter(|at| *at > now)
        .min();
    let ready = awaited(state).map(|task| task.started + limits.ready).min();
    let limit = limits.max_running.and_then(|limit| state.started.checked_add(limit));
    [notice, ready, limit].into_iter().flatten().min()
}

fn exit_code(since: Instant, cause: Cause, state: &State) -> ExitCode {
    let stopped = |code: ExitCode| match state
        .tasks
        .iter()
        .find(|task| task.id == TaskId::MASTER)
        .and_then(|task| task.exit)
    {
        // One that was already down when the job was to stop has written nothing, whatever it died of.
        Some((at, exit)) if exit.is_orderly_stop() && at >= since => code,
        // The master crashed on its way out, so the checkpoint that stopping promises may be missing.
        Some(_) => ExitCode::JobFailure,
        None => code,
    };
    match cause {
        Cause::Ended(exit) => exit,
        Cause::Interrupted => stopped(ExitCode::Interrupted),
        Cause::TimeLimit => stopped(ExitCode::TimeLimit),
        Cause::Failed(index) => match state.tasks.get(index).and_then(|task| task.exit) {
            // The task refused its input before it started: repeating the command will not help.
            Some((_, exit)) if exit.meaning() == Some(ExitCode::UserError) => ExitCode::UserError,
            _ => ExitCode::JobFailure,
        },
        Cause::NotReady(_) => ExitCode::JobFailure,
    }
}

/// [`Decision::reason`] while there is nothing to say.
pub const RUNNING: &str = "running";

fn reason(now: Instant, cause: Option<(Instant, Cause)>, state: &State, limits: &Limits) -> String {
    let name = |index: usize| {
        state
            .tasks
            .get(index)
            .map_or_else(String::new, |task| task.id.to_string())
    };
    let Some((since, cause)) = cause else {
        let missing: Vec<String> = awaited(state)
            .filter(|task| now >= task.started + limits.notice)
            .map(|task| format!("{} on {}", task.id, task.address))
            .collect();
        if missing.is_empty() {
            return RUNNING.to_owned();
        }
        let limit = duration::format(limits.ready);
        return format!(
            "waiting for {} to answer (at most {limit} from its start)",
            missing.join(", ")
        );
    };
    let again = state.stops.iter().filter(|at| **at > since).count();
    match cause {
        Cause::Ended(ExitCode::Success) => {
            let evaluating = state
                .tasks
                .iter()
                .find(|task| task.id.kind == TaskType::Evaluator && task.exit.is_none() && task.told.is_none());
            match evaluating {
                Some(task) if again == 0 => format!(
                    "the job is done; waiting for {} to evaluate its last checkpoint (at most {}; Ctrl-C ends that at once)",
                    task.id,
                    duration::format(limits.evaluate)
                ),
                _ => "the job is done".to_owned(),
            }
        }
        Cause::Ended(exit) => format!("the master ended the job ({exit})"),
        Cause::Interrupted if again > 0 => "asked to stop again: killing every task".to_owned(),
        Cause::Interrupted => format!(
            "{}: the master writes a checkpoint and ends the job (at most {}; once more kills it at once)",
            state.asked_by,
            duration::format(limits.stop)
        ),
        Cause::TimeLimit => format!(
            "maxRunningTime of {} is over: the master writes a checkpoint and ends the job (at most {})",
            duration::format(limits.max_running.unwrap_or_default()),
            duration::format(limits.stop)
        ),
        Cause::Failed(index) => {
            let how = state.tasks.get(index).and_then(|task| ended(task, &limits.restart));
            format!("{} {}: stopping the other tasks", name(index), how.unwrap_or_default())
        }
        Cause::NotReady(index) => {
            let address = state.tasks.get(index).map_or("", |task| task.address.as_str());
            format!(
                "{} did not answer on {address} within {}: stopping every task",
                name(index),
                duration::format(limits.ready)
            )
        }
    }
}

/// How a task ended and how often it had been started again, in words. None while it runs.
pub(super) fn ended(task: &TaskState, policy: &Restart) -> Option<String> {
    let (at, exit) = task.exit?;
    Some(match restart::recent(task, at, policy) {
        0 => exit.to_string(),
        1 => format!("{exit}, after one new start within {}", duration::format(policy.window)),
        count => format!(
            "{exit}, after {count} new starts within {}",
            duration::format(policy.window)
        ),
    })
}
