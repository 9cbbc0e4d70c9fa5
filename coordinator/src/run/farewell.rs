//! Keeping servers alive, and sending everybody home.

use std::time::{Duration, Instant};

use coati_param_server::PsGroup;
use tokio::task::JoinHandle;

use super::{Event, Run};

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

/// Servers leave when nobody speaks to them; while replicas evaluate or wait, the coordinator does.
pub(super) fn keep_alive(servers: PsGroup, every: Duration) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            for client in servers.clients() {
                if let Err(error) = client.status(every).await {
                    tracing::warn!(%error, "a parameter server does not answer");
                }
            }
        }
    })
}
