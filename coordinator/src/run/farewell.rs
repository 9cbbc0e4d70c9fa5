//! Keeping servers alive, and sending everybody home.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coati_common::rpc::{self, ErrorCode};
use coati_param_server::{PsClient, PsGroup};
use coati_proto::coati::v1::JobRef;
use futures::future::join_all;
use tokio::time::Instant;

use super::replication::Processes;
use super::{Limits, Run, recovery};
use crate::state::State;
use crate::task::Task;
use crate::vigil::{Silence, Vigil};

impl Run {
    /// Waits until all replicas know that the job is over, then sends the servers home.
    pub(super) async fn farewell(&self, servers: Option<&PsGroup>, reason: &str) {
        let deadline = Instant::now() + self.options.limits.farewell;
        let mut changes = self.state.watch();
        loop {
            changes.mark_unchanged();
            let untold: Vec<String> = {
                let inner = self.state.lock();
                let now = Instant::now();
                let silent: Vec<&str> = inner.membership.silent(now).into_iter().map(|(task, _)| task).collect();
                inner
                    .membership
                    .present()
                    .into_iter()
                    .filter(|task| !inner.told.contains(*task) && !silent.contains(task))
                    .map(str::to_owned)
                    .collect()
            };
            if untold.is_empty() {
                break;
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                self.state.warn(format!("{} did not take leave", untold.join(", ")));
                break;
            }
        }
        let Some(servers) = servers else {
            tracing::warn!("parameter servers end by themselves");
            return;
        };
        if self.options.replication {
            // Some may hold nobody's variables.
            let job = self.state.lock().job.clone();
            let processes = Processes::new(&self.options.ps_addresses, job);
            return processes.dismiss(reason, self.options.limits.farewell).await;
        }
        if let Err(error) = servers.shutdown(reason, self.options.limits.farewell).await {
            tracing::warn!(%error, "a parameter server did not take leave; it ends by itself");
        }
    }
}

/// Servers leave when nobody speaks to them; while replicas evaluate or wait, the coordinator does. A server that is gone, was
/// started again, or is silent for longer than a task may be, ends the incarnation: its variables are lost. Goes on after that
/// until it knows of each server whether it hangs; ends when what is returned is dropped.
pub(super) fn watch_servers(
    state: Arc<State>,
    servers: PsGroup,
    job: JobRef,
    limits: &Limits,
    model_dir: PathBuf,
) -> Task {
    let (every, silence) = (limits.heartbeat_interval, limits.heartbeat_timeout);
    Task::spawn(async move {
        let watching = servers.clients().iter().map(|client| {
            let (state, job, model_dir) = (&state, &job, &model_dir);
            async move {
                let lost = watch_server(client, job, every, silence, state).await;
                state.servers_lost(job.incarnation, &lost.why);
                if let Some((process, pid)) = lost.hangs {
                    recovery::ask_for_restart(model_dir, format!("ps-{process}"), pid);
                }
            }
        });
        join_all(watching).await;
    })
}

/// A server that is of no use any more.
struct LostServer {
    why: String,
    /// The index and the pid of a process that is there and does not answer: not that of the variables, if they are guests.
    hangs: Option<(u32, u64)>,
}

/// Returns when a server is lost; says when it has found an invariant broken.
async fn watch_server(
    client: &PsClient,
    job: &JobRef,
    every: Duration,
    silence: Duration,
    state: &State,
) -> LostServer {
    let (mut vigil, mut process, mut broken) = (Vigil::new(silence, Instant::now()), None, 0);
    let gone = |why: String| LostServer { why, hangs: None };
    let lost = |error: &rpc::Error, process| LostServer {
        why: error.to_string(),
        hangs: process,
    };
    loop {
        vigil.ask(Instant::now());
        match client.status(vigil.patience()).await {
            Ok(status) if status.job.as_ref() == Some(job) => {
                vigil.hear(Instant::now());
                if status.invariants_broken > broken {
                    broken = status.invariants_broken;
                    state.warn(format!(
                        "{} found {broken} broken invariant(s): its log names them\nhint: please report this, with the log",
                        client.peer()
                    ));
                }
                process = status.task.map(|task| (task.index, status.pid));
            }
            Ok(status) => {
                let later = status
                    .job
                    .filter(|theirs| theirs.job_id == job.job_id && theirs.incarnation > job.incarnation);
                return gone(match later {
                    Some(later) => format!(
                        "{} belongs to incarnation {} of the job",
                        client.peer(),
                        later.incarnation
                    ),
                    None => format!("{} was started again and holds no variables", client.peer()),
                });
            }
            Err(error) => {
                let gone = error.code() == Some(ErrorCode::Unavailable);
                match vigil.miss(Instant::now()) {
                    // Its process is gone, or hangs: a launcher leaves one alone that has been replaced by now.
                    Silence::Short if gone => return lost(&error, process),
                    Silence::TooLong => return lost(&error, process),
                    Silence::Short | Silence::Away => tracing::warn!(%error, "a parameter server does not answer"),
                }
            }
        }
        tokio::time::sleep(every).await;
    }
}
