//! Carries decisions out: starts the tasks, gathers facts, sends signals, reports the end.

mod changes;
mod outcome;
mod publish;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use coati_common::cluster::{Address, ClusterSpec, TaskType};
use coati_common::exit::ExitCode;
use nix::sys::signal::Signal as Unix;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::control::{Call, Claim, Control};
use super::decide::{Decision, Exit, RUNNING, Signal, State, Verdict, decide, ended, verdict};
use super::logs::{LogLine, TaskLog};
use super::process::{Group, Spawner};
use super::report::Report;
use super::resources::{Inventory, Share};
use super::{Error, Options, Outcome};

/// What a process did, by the task's place and the number of its starts before this process.
#[derive(Clone, Copy)]
enum Event {
    Exited(usize, u32, Exit),
    Ready(usize, u32),
}

/// What belongs to one task beside the facts in [`State`].
struct Running {
    address: Address,
    share: Share,
    log: Arc<TaskLog>,
    /// Of its newest process; none before the first.
    group: Option<Group>,
    /// Processes before the newest one.
    earlier: u32,
}

impl Running {
    fn send(&self, signal: Unix) {
        if let Some(group) = &self.group {
            group.send(signal);
        }
    }
}

/// A cluster that runs.
pub(super) struct Supervisor {
    options: Options,
    inventory: Inventory,
    /// Where the logs are.
    logs: Option<PathBuf>,
    state: State,
    tasks: Vec<Running>,
    /// Everybody's address.
    cluster: ClusterSpec,
    width: usize,
    events: mpsc::UnboundedReceiver<Event>,
    /// For those who report them.
    reporter: mpsc::UnboundedSender<Event>,
    /// Waiters and probes; dropping them ends them.
    jobs: JoinSet<()>,
    /// What the job's directory says of the job.
    published: Option<Report>,
    /// Requests to change the job, and the socket that they come from.
    calls: mpsc::Receiver<Call>,
    control: Option<Control>,
    /// Must outlive the socket.
    _claim: Option<Claim>,
    /// Must outlive the children.
    spawner: Spawner,
}

impl Supervisor {
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
            if !decision.restarts.is_empty() {
                for (index, counts) in decision.restarts {
                    self.start_again(index, counts).await?;
                }
                // There are new processes to decide upon.
                continue;
            }
            self.publish(&decision);
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
                Some(call) = self.calls.recv() => self.answer(call, &decision).await?,
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
        let (Event::Exited(index, earlier, _) | Event::Ready(index, earlier)) = event;
        let (Some(state), Some(task)) = (self.state.tasks.get_mut(index), self.tasks.get_mut(index)) else {
            return;
        };
        // The word of a process that was replaced in the meantime.
        if task.earlier != earlier {
            return;
        }
        match event {
            Event::Exited(_, _, exit) => {
                state.exit = Some((now, exit));
                if let Some(group) = &mut task.group {
                    group.end();
                }
                self.mourn(index);
            }
            Event::Ready(..) => {
                state.ready = Some(now);
                let id = state.id;
                let seconds = |since| now.saturating_duration_since(since).as_secs_f64();
                if earlier > 0 {
                    let seconds = seconds(state.started);
                    self.say(&format!("{id} answers again after {seconds:.1} s"));
                } else if self.state.tasks.iter().all(|task| !task.probed || task.ready.is_some()) {
                    let seconds = seconds(self.state.started);
                    self.say(&format!("the cluster answers after {seconds:.1} s"));
                }
            }
        }
    }

    /// An evaluator that is not started again ends nothing, so somebody must say that it is gone.
    fn mourn(&self, index: usize) {
        let Some(state) = self.state.tasks.get(index) else {
            return;
        };
        let gone = state.id.kind == TaskType::Evaluator
            && state.told.is_none()
            && verdict(index, &self.state, &self.options.limits) == Some(Verdict::Left)
            && state
                .exit
                .is_some_and(|(_, exit)| exit.meaning() != Some(ExitCode::Success));
        if gone {
            let how = ended(state, &self.options.limits.restart).unwrap_or_default();
            let log = self.tasks.get(index).and_then(|task| task.log.path());
            let log = log.map_or_else(String::new, |path| format!("; its log is {}", path.display()));
            self.say(&format!(
                "warning: {} {how}: training goes on without evaluation{log}\nhint: `coati eval` evaluates checkpoints meanwhile or afterwards",
                state.id
            ));
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
                Signal::Terminate => task.send(Unix::SIGTERM),
                Signal::Kill => {
                    task.send(Unix::SIGKILL);
                    self.say(&format!("{id} did not stop in time and is killed"));
                }
            }
        }
    }
}
