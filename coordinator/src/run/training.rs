//! Committing step after step.

use std::time::{Duration, Instant};

use coati_param_server::{Contributor, PsGroup};
use coati_proto::coati::v1::report_reply::Outcome as Fate;

use super::{Event, Run};
use crate::cadence::{self, Last};
use crate::clock::{Decision, Reported};
use crate::invariants::{Invariant, check};
use crate::state::{Details, Phase};
use crate::timing;

/// After a request to stop, the step under way has so long: a replica that died can leave it unfinished for ever, and the
/// launcher kills what has not ended 20 s after a failure.
const LAST_STEP: Duration = Duration::from_secs(5);

/// Pause before a commit that failed is repeated.
const PAUSE: Duration = Duration::from_millis(50);

impl Run {
    /// Commits until the last step; `Some(reason)` when stopped before.
    pub(super) async fn train(&self, servers: &PsGroup) -> Result<Option<String>, String> {
        let mut last = Last {
            at: Instant::now(),
            version: self.state.lock().clock.version(),
        };
        let mut committed_at = last.at;
        let look_every = self.options.limits.look_every();
        let mut look_at = last.at + look_every;
        let mut give_up_at = None;
        loop {
            let decision = {
                let inner = self.state.lock();
                if let Phase::Failed(reason) = &inner.phase {
                    return Err(reason.clone());
                }
                if inner.clock.version() >= inner.num_steps {
                    return Ok(None);
                }
                if inner.stop.is_some() {
                    give_up_at.get_or_insert_with(|| Instant::now() + LAST_STEP);
                }
                inner.clock.decide()
            };
            // However much the others report: who is silent is noticed.
            if Instant::now() >= look_at {
                self.check_alive()?;
                look_at = Instant::now() + look_every;
            }
            match &decision {
                Decision::Commit(chosen) => {
                    let (version, last_step) = self.commit(servers, &decision, chosen, &mut committed_at).await?;
                    if last_step {
                        let stop = self.state.lock().stop.clone();
                        return Ok(stop.filter(|_| version < self.options.num_steps));
                    }
                    if cadence::is_due(Instant::now(), version, last, self.options.cadence)
                        && self.save_on_the_way(servers, version).await
                    {
                        (last.at, last.version) = (Instant::now(), version);
                        committed_at = last.at;
                    }
                }
                Decision::Drop(late) => self.drop_late(&decision, late),
                Decision::Wait(_) => {
                    let until = give_up_at.map_or(look_at, |at| look_at.min(at));
                    let left = until.saturating_duration_since(Instant::now());
                    let _ = tokio::time::timeout(left, self.state.work.notified()).await;
                    // A stop before anybody has begun a step ends here; later on, it ends the job with the next commit,
                    // or without it if that does not come.
                    let inner = self.state.lock();
                    if let Some(reason) = &inner.stop
                        && (inner.leases.is_empty() || give_up_at.is_some_and(|at| Instant::now() >= at))
                    {
                        return Ok(Some(reason.clone()));
                    }
                }
            }
        }
    }

    fn check_alive(&self) -> Result<(), String> {
        match self.state.lock().lost(Instant::now()) {
            Some(lost) => Err(format!(
                "{lost}\nhint: look into the task's log; the same command goes on from the last checkpoint"
            )),
            None => Ok(()),
        }
    }

    pub(super) fn warn(&self, text: String) {
        let _ = self.events.send(Event::Warning(text));
    }

    fn drop_late(&self, decision: &Decision, late: &[Reported]) {
        let mut inner = self.state.lock();
        inner.clock.settle(decision);
        inner.decide(late, Fate::Dropped);
        // What could not be read is said even where the rest was of no use.
        let bad: Vec<String> = late
            .iter()
            .filter_map(|reported| inner.details.remove(&reported.replica))
            .flat_map(|details| details.bad_records)
            .collect();
        drop(inner);
        self.state.changed();
        for record in bad {
            self.warn(record);
        }
    }

    /// Commits a step on all servers; returns its version, and whether it is the last one.
    async fn commit(
        &self,
        servers: &PsGroup,
        decision: &Decision,
        chosen: &[Reported],
        committed_at: &mut Instant,
    ) -> Result<(u64, bool), String> {
        let version = self.state.lock().clock.version();
        let committed = self.commit_on_servers(servers, version, chosen).await?;
        check(
            Invariant::VersionsAreConsecutive,
            committed.version == version + 1,
            || format!("servers went from version {version} to {}", committed.version),
        );
        let (details, epoch, last_step) = {
            let mut inner = self.state.lock();
            inner.clock.settle(decision);
            inner.decide(chosen, Fate::Committed);
            let details: Vec<(u32, Details)> = chosen
                .iter()
                .filter_map(|r| Some((r.samples, inner.details.remove(&r.replica)?)))
                .collect();
            let epoch = inner.ledger.position().position.saturating_sub(1) / inner.record_count.max(1);
            (details, epoch, inner.is_last())
        };
        self.state.changed();
        let begun = std::mem::replace(committed_at, Instant::now());
        for record in details.iter().flat_map(|(_, details)| &details.bad_records) {
            self.warn(record.clone());
        }
        let staleness = chosen.iter().map(|reported| version.saturating_sub(reported.version));
        let spans: Vec<timing::Spans> = details.iter().map(|(_, details)| details.spans()).collect();
        let time = timing::attribute(begun, *committed_at, &spans);
        tracing::debug!(version = committed.version, ?time, "committed");
        let _ = self.events.send(Event::Step {
            version: committed.version,
            losses: mean_losses(&details),
            learning_rate: f64::from(committed.learning_rate),
            samples: chosen.iter().map(|reported| u64::from(reported.samples)).sum(),
            epoch,
            seconds: time.named(),
            staleness: staleness.max().unwrap_or(0),
            bytes_pushed: details.iter().map(|(_, details)| details.bytes[0]).sum(),
            bytes_pulled: details.iter().map(|(_, details)| details.bytes[1]).sum(),
        });
        Ok((committed.version, last_step))
    }

    async fn commit_on_servers(
        &self,
        servers: &PsGroup,
        version: u64,
        chosen: &[Reported],
    ) -> Result<coati_param_server::store::Committed, String> {
        let contributors: Vec<Contributor> = chosen
            .iter()
            .map(|reported| Contributor {
                replica: reported.replica,
                sequence: reported.sequence,
                samples: reported.samples,
            })
            .collect();
        let deadline = Instant::now() + self.options.limits.commit;
        // Repeating a commit is safe: servers that have applied it answer the same.
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = left.max(Duration::from_millis(100));
            let committed = servers
                .commit(version, &contributors, self.options.synchronous, limit)
                .await;
            match committed {
                Ok(committed) => return Ok(committed),
                Err(error) if left.is_zero() || !retryable(&error) => {
                    return Err(format!("step {} could not be committed: {error}", version + 1));
                }
                Err(error) => {
                    tracing::warn!(%error, version, "commit is repeated");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

fn retryable(error: &coati_param_server::client::Error) -> bool {
    error.rpc().is_some_and(coati_common::rpc::Error::retryable)
}

/// Means over the contributors' samples.
fn mean_losses(details: &[(u32, Details)]) -> Vec<(String, f64)> {
    let samples: u64 = details.iter().map(|(samples, _)| u64::from(*samples)).sum();
    let mut losses: Vec<(String, f64)> = Vec::new();
    for (weight, details) in details {
        for loss in &details.losses {
            let part = loss.value * f64::from(*weight) / samples.max(1) as f64;
            match losses.iter_mut().find(|(name, _)| *name == loss.name) {
                Some((_, sum)) => *sum += part,
                None => losses.push((loss.name.clone(), part)),
            }
        }
    }
    losses
}
