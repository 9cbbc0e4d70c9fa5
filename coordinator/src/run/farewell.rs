//! Keeping servers alive, and sending everybody home.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coati_common::rpc::ErrorCode;
use coati_param_server::PsGroup;
use tokio::task::JoinHandle;

use super::{Event, Run};
use crate::state::State;

impl Run {
    /// Waits until all replicas know that the job is over, then sends the servers home.
    pub(super) async fn farewell(&self, servers: Option<&PsGroup>, reason: &str) {
        let deadline = tokio::time::Instant::now() + self.options.limits.farewell;
        let mut changes = self.state.watch();
        loop {
            changes.mark_unchanged();
            let untold: Vec<String> = {
                let inner = self.state.lock();
                let now = Instant::now();
                let silent: Vec<&str> = inner.membership.silent(now).into_iter().map(|(task, _)| task).collect();
                inner
                    .membership
                    .members()
                    .keys()
                    .filter(|task| !inner.told.contains(*task) && !silent.contains(&task.as_str()))
                    .cloned()
                    .collect()
            };
            if untold.is_empty() {
                break;
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                let _ = self
                    .events
                    .send(Event::Warning(format!("{} did not take leave", untold.join(", "))));
                break;
            }
        }
        let Some(servers) = servers else {
            tracing::warn!("parameter servers end by themselves");
            return;
        };
        if let Err(error) = servers.shutdown(reason, self.options.limits.farewell).await {
            tracing::warn!(%error, "a parameter server did not take leave; it ends by itself");
        }
    }
}

/// Servers leave when nobody speaks to them; while replicas evaluate or wait, the coordinator does. A server that is gone, or
/// silent for longer than a task may be, ends the job with its name: replicas would only find that they cannot go on.
pub(super) fn watch_servers(state: Arc<State>, servers: PsGroup, silence: Duration) -> JoinHandle<()> {
    let every = silence / 3;
    tokio::spawn(async move {
        let mut answered = vec![Instant::now(); servers.clients().len()];
        loop {
            tokio::time::sleep(every).await;
            for (client, answered) in servers.clients().iter().zip(&mut answered) {
                match client.status(every).await {
                    Ok(_) => *answered = Instant::now(),
                    Err(error) if error.code() == Some(ErrorCode::Unavailable) || answered.elapsed() >= silence => {
                        state.fail(&format!(
                            "{error}\nhint: look into the server's log; the same command goes on from the last checkpoint"
                        ));
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "a parameter server does not answer"),
                }
            }
        }
    })
}
