//! Committing step after step.

use std::time::Duration;

use coati_param_server::{PsGroup, client};
use coati_proto::coati::v1::report_reply::Outcome as Fate;
use tokio::time::Instant;

use super::recovery;
use super::{Event, Run, Trouble};
use crate::cadence::{self, Last};
use crate::clock::{Decision, Reported};
use crate::state::{Details, Phase};
use crate::step_log::FILE;
use crate::timing;

/// After a request to stop, the step under way has so long: a replica that died can leave it unfinished for ever, and the
/// launcher kills what has not ended 20 s after a failure.
const LAST_STEP: Duration = Duration::from_secs(5);

/// So many contributions in a row that are not finite are no accident of a batch: the variables are broken.
const MOST_SKIPPED: usize = 100;

/// Pause before a commit that failed is repeated.
const PAUSE: Duration = Duration::from_millis(50);

impl Run {
    /// Commits until the last step; `Some(reason)` when stopped before.
    pub(super) async fn train(&self, servers: &PsGroup) -> Result<Option<String>, Trouble> {
        let mut last = Last {
            at: Instant::now(),
            version: self.state.lock().clock.version(),
        };
        let mut committed_at = last.at;
        let look_every = self.options.limits.look_every();
        let mut look_at = last.at + look_every;
        let mut give_up_at = None;
        let mut copies = Copies::new(self.options.limits.heartbeat_timeout);
        // Contributions in a row that no step could use.
        let mut skipped = 0;
        loop {
            // However much the others report: who is silent is noticed.
            if Instant::now() >= look_at {
                self.remove_lost(look_at);
                look_at = Instant::now() + look_every;
            }
            let decision = {
                let inner = self.state.lock();
                if let Phase::Failed(reason) = &inner.phase {
                    return Err(Trouble::Final(reason.clone()));
                }
                if let Some(reason) = &inner.servers_lost {
                    return Err(Trouble::Lost(reason.clone()));
                }
                if let Some(names) = &inner.moving_home {
                    return Err(Trouble::Lost(format!("the variables of {names} move home")));
                }
                if inner.clock.version() >= inner.num_steps {
                    return Ok(None);
                }
                if inner.stop.is_some() {
                    give_up_at.get_or_insert_with(|| Instant::now() + LAST_STEP);
                }
                if copies.are_waited_for(Instant::now(), inner.copies_under_way) {
                    Decision::Wait(Vec::new())
                } else {
                    inner.clock.decide()
                }
            };
            match &decision {
                Decision::Commit(chosen) if chosen.iter().all(is_skipped) => {
                    self.nothing_to_commit(chosen, &mut skipped)?;
                }
                Decision::Commit(chosen) => {
                    skipped = 0;
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
                        && (inner.ledger.open().next().is_none() || give_up_at.is_some_and(|at| Instant::now() >= at))
                    {
                        return Ok(Some(reason.clone()));
                    }
                }
            }
        }
    }

    /// `due` is when this should have been looked at. Who was away for longer, as a process that was stopped is, has heard
    /// nobody, and says nothing about the others.
    fn remove_lost(&self, due: Instant) {
        let now = Instant::now();
        let mut inner = self.state.lock();
        if now.saturating_duration_since(due) >= self.options.limits.heartbeat_timeout / 2 {
            inner.membership.all_seen(now);
        }
        let lost = inner.remove_lost(now);
        drop(inner);
        for lost in lost {
            self.state.warn(&lost.words);
            recovery::ask_for_restart(&self.options.model_dir, lost.task, lost.pid);
        }
    }

    fn drop_late(&self, decision: &Decision, late: &[Reported]) {
        let mut inner = self.state.lock();
        inner.clock.begin(decision);
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
            self.state.warn(record);
        }
    }

    /// All contributions of a step are not finite. One after the other is tried again with other records, if there are
    /// steps without it meanwhile; in lockstep there is nobody left to go on.
    fn nothing_to_commit(&self, chosen: &[Reported], skipped: &mut usize) -> Result<(), Trouble> {
        *skipped += chosen.len();
        if self.options.synchronous || *skipped >= MOST_SKIPPED {
            let inner = self.state.lock();
            let why: Vec<&str> = chosen
                .iter()
                .filter_map(|reported| inner.details.get(&reported.replica)?.bad_records.last())
                .map(String::as_str)
                .collect();
            return Err(Trouble::Final(format!(
                "step {}: no finite gradient is left to apply ({skipped} skipped in a row): {}",
                inner.clock.version() + 1,
                why.join("; ")
            )));
        }
        self.drop_late(&Decision::Drop(chosen.to_vec()), chosen);
        Ok(())
    }

    /// Commits a step on all servers; returns its version, and whether it is the last one.
    async fn commit(
        &self,
        servers: &PsGroup,
        decision: &Decision,
        chosen: &[Reported],
        committed_at: &mut Instant,
    ) -> Result<(u64, bool), Trouble> {
        let _deciding = self.state.deciding.lock().await;
        let (broken, chosen): (Vec<Reported>, Vec<Reported>) = chosen.iter().copied().partition(is_skipped);
        let step = {
            let mut inner = self.state.lock();
            inner.clock.begin(decision);
            inner.step_of(&chosen)
        };
        let version = step.version;
        let contributors = step.contributors();
        if self.options.replication {
            // What is decided must outlive any one server.
            let prepare = |limit| servers.prepare(version, &contributors, limit);
            self.on_servers(version, "prepared", prepare).await?;
        }
        if let Err(error) = self.steps().step(&step) {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                return Err(Trouble::TakenOver(error.to_string()));
            }
            self.state.warn(format!(
                "{FILE} cannot be written: {error}; if the master dies, the job goes back to its last checkpoint"
            ));
        }
        let chosen = chosen.as_slice();
        let commit = |limit| servers.commit(version, &contributors, self.options.synchronous, limit);
        let committed = self.on_servers(version, "committed", commit).await?;
        let (details, epoch, last_step) = {
            let mut inner = self.state.lock();
            inner.clock.committed();
            inner.decide(chosen, Fate::Committed);
            inner.decide(&broken, Fate::Dropped);
            let broken = broken.iter().filter_map(|r| inner.details.remove(&r.replica));
            let broken: Vec<String> = broken.flat_map(|details| details.bad_records).collect();
            for text in broken {
                self.state.warn(text);
            }
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
            self.state.warn(record.clone());
        }
        let staleness = chosen
            .iter()
            .map(|reported| (reported.replica, version.saturating_sub(reported.version)));
        let spans: Vec<timing::Spans> = details.iter().map(|(_, details)| details.spans()).collect();
        let time = timing::attribute(begun, *committed_at, &spans);
        tracing::debug!(version = committed.version, ?time, "committed");
        self.state.tell(Event::Step {
            version: committed.version,
            losses: mean_losses(&details),
            learning_rate: f64::from(committed.learning_rate),
            samples: chosen.iter().map(|reported| u64::from(reported.samples)).sum(),
            epoch,
            seconds: time.named(),
            staleness: staleness.collect(),
            bytes_pushed: bytes_moved(&details, 0),
            bytes_pulled: bytes_moved(&details, 1),
        });
        Ok((committed.version, last_step))
    }

    /// Repeats a call on all servers until the limit for commits: those that have done it before answer the same.
    async fn on_servers<T, F: Future<Output = Result<T, client::Error>>>(
        &self,
        version: u64,
        done: &str,
        call: impl Fn(Duration) -> F,
    ) -> Result<T, Trouble> {
        let deadline = Instant::now() + self.options.limits.commit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match call(left.max(Duration::from_millis(100))).await {
                Ok(answer) => return Ok(answer),
                Err(error) if left.is_zero() || !retryable(&error) || self.state.lock().servers_lost.is_some() => {
                    let words = |reason| format!("step {} could not be {done}: {reason}", version + 1);
                    return Err(Trouble::from(error).said(words));
                }
                Err(error) => {
                    tracing::warn!(%error, version, "what could not be {done} is tried again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// For how long steps wait for copies that are being made. Until then a lost server can be replaced by what an incarnation
/// before left of it.
struct Copies {
    limit: Duration,
    since: Option<Instant>,
}

impl Copies {
    fn new(limit: Duration) -> Self {
        Self { limit, since: None }
    }

    /// Not for ever: a process that should keep one may hang.
    fn are_waited_for(&mut self, now: Instant, under_way: bool) -> bool {
        if !under_way {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        now.saturating_duration_since(since) < self.limit
    }
}

/// A contribution that the servers refused because it is not finite.
fn is_skipped(reported: &Reported) -> bool {
    reported.samples == 0
}

fn retryable(error: &coati_param_server::client::Error) -> bool {
    error.rpc().is_some_and(coati_common::rpc::Error::retryable)
}

/// What the contributors together say that they pushed (0) or pulled (1).
fn bytes_moved(details: &[(u32, Details)], which: usize) -> u64 {
    let each = details.iter().map(|(_, details)| details.bytes[which]);
    each.fold(0, u64::saturating_add)
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
