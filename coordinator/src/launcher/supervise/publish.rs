//! Tells in the job's directory where everything is.

use super::Supervisor;
use crate::launcher::control::{Call, Control};
use crate::launcher::decide::{Decision, Verdict, verdict};
use crate::launcher::process::Group;
use crate::launcher::report::{self, Ended, Report, Task, TaskState};
use tokio::sync::mpsc;

impl Supervisor {
    /// Listens for requests, where there is a directory for the socket. A job runs as well without.
    pub(super) fn listen(&mut self, calls: mpsc::Sender<Call>) {
        let Some(job_dir) = &self.options.job_dir else { return };
        match Control::listen(job_dir, calls) {
            Ok(control) => self.control = Some(control),
            Err(error) => self.say(&format!(
                "warning: no socket can be made in {}: {error}; `coati scale` cannot reach this job",
                job_dir.display()
            )),
        }
    }

    /// Writes the report if there is news.
    pub(super) fn publish(&mut self, decision: &Decision) {
        let Some(job_dir) = &self.options.job_dir else { return };
        let report = self.report(decision);
        if self.published.as_ref().is_some_and(|before| before.says(&report)) {
            return;
        }
        if let Err(error) = report.write(job_dir) {
            self.say(&format!(
                "warning: {} cannot be written: {error}",
                job_dir.join(report::FILE).display()
            ));
        }
        // Also where writing failed: the next change tries again.
        self.published = Some(report);
    }

    fn report(&self, decision: &Decision) -> Report {
        let tasks = (0..self.tasks.len()).filter_map(|index| self.task(index, decision));
        Report {
            version: report::VERSION,
            job_id: self.options.job_id.clone(),
            launcher_pid: std::process::id(),
            control: self.control.as_ref().map(|control| control.path().to_owned()),
            ended: decision.exit.map(|exit| Ended {
                exit_code: exit.code(),
                reason: decision.reason.clone(),
            }),
            written_unix_ms: report::now(),
            tasks: tasks.collect(),
        }
    }

    fn task(&self, index: usize, decision: &Decision) -> Option<Task> {
        let (state, task) = (self.state.tasks.get(index)?, self.tasks.get(index)?);
        let seen = if state.exit.is_some() {
            let again = matches!(
                verdict(index, &self.state, &self.options.limits),
                Some(Verdict::Again { .. })
            );
            if again && decision.cause.is_none() {
                TaskState::Restarting
            } else {
                TaskState::Ended
            }
        } else if state.leaving.is_some() || state.told.is_some() {
            TaskState::Leaving
        } else if state.probed && state.ready.is_none() {
            TaskState::Starting
        } else {
            TaskState::Running
        };
        let log = task.log.path().and_then(|path| {
            let job_dir = self.options.job_dir.as_deref()?;
            Some(path.strip_prefix(job_dir).unwrap_or(path).to_owned())
        });
        Some(Task {
            task: state.id.to_string(),
            address: task.address.to_string(),
            pid: task.group.as_ref().filter(|_| state.exit.is_none()).map(Group::pid),
            state: seen,
            restarts: state.restarts.len(),
            exit: state.exit.map(|(_, exit)| exit.brief()),
            log,
        })
    }
}
