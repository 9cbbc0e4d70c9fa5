//! What a job's end is told as.

use std::time::Instant;

use coati_common::cluster::{TaskId, TaskType, duration};
use coati_common::exit::ExitCode;

use super::Supervisor;
use crate::launcher::decide::{Cause, Decision, Signal, ended};
use crate::launcher::{Failure, Outcome};

impl Supervisor {
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

    /// What to tell when no task is left.
    pub(super) fn outcome(&self, exit: ExitCode, decision: Decision) -> Outcome {
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
            let limit = duration::format(self.options.limits.ready);
            outcome
                .failures
                .extend(self.failure(index, format!("did not answer on {address} within {limit}")));
        }
        // Those that went down by themselves, in the order in which they did.
        let mut crashed: Vec<(Instant, usize, String)> = Vec::new();
        for (index, task) in self.state.tasks.iter().enumerate() {
            let Some((at, how)) = task.exit else { continue };
            let own_fault = match cause {
                Cause::Failed(culprit) => index == culprit || task.told.is_none(),
                Cause::Interrupted | Cause::TimeLimit => {
                    exit == ExitCode::JobFailure && (task.id.kind == TaskType::Master || task.told.is_none())
                }
                Cause::Ended(_) | Cause::NotReady(_) => false,
            };
            if how.meaning() == Some(ExitCode::Success) || task.leaving.is_some() {
                continue;
            }
            if own_fault {
                let what = ended(task, &self.options.limits.restart);
                crashed.push((at, index, what.unwrap_or_default()));
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
                .filter_map(|(_, index, what)| self.failure(index, what)),
        );
        outcome
    }
}
