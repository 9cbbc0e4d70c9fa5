//! Going on after a loss: back to the last checkpoint when servers lost their variables, or with what the servers hold when
//! only the coordinator was away.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use coati_checkpoint::state;
use coati_common::invariants::{Invariant, check};
use coati_common::work;
use coati_param_server::PsGroup;
use coati_proto::coati::v1::JobRef;
use futures::future::try_join_all;
use tokio::time::Instant;

use super::shards::fitting;
use super::{Event, Init, Run, TAKEN_OVER, Trouble, claim, incarnation};
use crate::launcher::control::{self, Request};
use crate::state::{Inner, Phase};
use crate::step_log::{self, Log};

/// What an incarnation begins with.
pub(super) struct Source {
    /// Where the variables come from, unless the servers still hold them.
    pub init: Init,
    /// What an earlier coordinator of this job wrote down.
    pub log: Option<Log>,
    /// Tasks that the incarnation waits for before it begins, and the processes that they were; all of the cluster, the first
    /// time.
    pub awaited: Option<BTreeMap<String, u64>>,
    /// What ended the incarnation before, where its variables may be found in copies.
    pub lost: Option<Lost>,
}

/// Why an incarnation ended.
pub(super) struct Lost {
    reason: String,
    /// Its newest committed step.
    from: u64,
}

impl Source {
    pub(super) fn new(init: &Init, log: Option<Log>) -> Self {
        Self {
            init: init.clone(),
            log,
            awaited: None,
            lost: None,
        }
    }

    /// Whether this coordinator forms the cluster for the first time.
    pub(super) fn is_first(&self) -> bool {
        self.awaited.is_none()
    }

    /// Whether all of the cluster must be there: a job that ran before goes on without those who do not come back.
    pub(super) fn needs_all(&self) -> bool {
        self.is_first() && self.log.is_none()
    }
}

/// Gives up when losses follow each other without a step in between for too long.
pub(super) struct Progress {
    limit: Duration,
    since: Option<Instant>,
}

impl Progress {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, since: None }
    }

    /// After a loss; `stepped` says whether a step was committed since the one before. The reason comes back as an error when
    /// it is time to give up.
    pub(super) fn look(&mut self, now: Instant, stepped: bool, reason: &str) -> Result<(), String> {
        if stepped {
            self.since = None;
        }
        let since = *self.since.get_or_insert(now);
        let stuck = now.saturating_duration_since(since);
        if stuck < self.limit {
            return Ok(());
        }
        Err(format!(
            "{reason}\nhint: no step could be made for {:.0} s; look into the servers' logs; the same command goes on from the last checkpoint",
            stuck.as_secs_f64()
        ))
    }
}

impl Run {
    /// Ends this incarnation and prepares the next one: from the newest checkpoint, unless there are copies.
    pub(super) async fn go_back(&self, ended: &Source, reason: &str) -> Result<Source, String> {
        let ending = self.state.lock().job.incarnation;
        // Whoever writes a checkpoint of this incarnation gives it up, or completes it: then it is the newest.
        self.state.servers_lost(ending, reason);
        self.saved().await;
        let folder = self.options.model_dir.clone();
        let latest = work::blocking(move || state::latest(&folder))
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("{reason}; and going on is not possible: {error}"))?;
        let saved = latest.and_then(|latest| {
            Some(Init::Checkpoint {
                prefix: latest.prefix,
                step: latest.step,
                data: latest.manifest?.data,
            })
        });
        let init = saved.unwrap_or_else(|| self.options.init.clone());
        let (to, data) = init.position();
        let (from, awaited) = {
            let mut inner = self.state.lock();
            if let Phase::Failed(reason) = &inner.phase {
                return Err(reason.clone());
            }
            // Who was there takes part again. An incarnation that did not form has seen only some of those it waited for.
            let members = inner.membership.members();
            let present = inner.membership.present_until_lately(Instant::now()).into_iter();
            let present = present.map(|task| {
                (
                    task.to_owned(),
                    members.get(task).map_or(0, |member| member.process.pid),
                )
            });
            let awaited = match inner.plan {
                Some(_) => Some(present.collect()),
                None => ended.awaited.clone(),
            };
            let from = inner.clock.version();
            let job = JobRef {
                incarnation: next_incarnation(&self.options.model_dir, inner.job.incarnation)?,
                ..inner.job.clone()
            };
            let expected = inner.membership.expected().to_vec();
            *inner = Inner {
                stop: inner.stop.take(),
                ..incarnation(&self.options, job, to, &data, expected)
            };
            (from, awaited)
        };
        self.state.changed();
        let lost = Lost {
            reason: reason.to_owned(),
            from,
        };
        // With every step that was decided: those that servers hold must go with it.
        let log = Some(&self.options.model_dir).filter(|_| self.options.replication);
        let log = log.and_then(|folder| step_log::read(folder));
        let log = log.filter(|log| log.job.job_id == self.options.job.job_id && log.end() >= from);
        if log.is_none() {
            self.went_back(reason, from, to);
        }
        Ok(Source {
            init,
            lost: log.is_some().then_some(lost),
            log,
            awaited,
        })
    }

    /// Says how many steps a loss costs.
    pub(super) fn went_back(&self, reason: &str, from: u64, to: u64) {
        if from <= to {
            return;
        }
        self.state.tell(Event::WentBack { from, to });
        self.state.warn(format!(
            "{reason}: going back from step {from} to step {to}; {} step(s) are lost and made again",
            from - to
        ));
    }

    /// Takes the servers over from an earlier incarnation of this job, if they and its log agree; finishes the step that it
    /// decided last, and goes on with the log. False when they do not. `lost` says what ended that incarnation, if it was not the coordinator's own end.
    pub(super) async fn adopt(&self, servers: &PsGroup, log: &Log, lost: Option<&Lost>) -> Result<bool, Trouble> {
        let limit = self.options.limits.commit;
        let states = try_join_all(servers.clients().iter().map(|client| client.status(limit)))
            .await
            .map_err(coati_param_server::client::Error::from)?;
        if !states
            .iter()
            .enumerate()
            .all(|(index, state)| fitting(log, state, index))
        {
            let newest = states
                .iter()
                .filter(|server| server.state == "serving")
                .map(|server| server.version);
            if let Some(lost) = lost {
                let to = self.state.lock().clock.version();
                self.went_back(&lost.reason, lost.from, to);
            } else if let Some(newest) = newest.max() {
                self.state.warn(format!(
                    "the parameter servers hold variables of step {newest} that do not go with {} (which ends at step {})",
                    crate::step_log::FILE,
                    log.end()
                ));
            }
            return Ok(false);
        }
        let job = self.state.lock().job.clone();
        if let Err(error) = self.steps().take_over(&job, log) {
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                return Err(Trouble::TakenOver(error.to_string()));
            }
            self.state.warn(format!(
                "{} cannot be written: {error}; if the master dies now, the job goes back to its last checkpoint",
                crate::step_log::FILE
            ));
        }
        // The log ends there. Where it has no step, all of them had committed the last one, and copies have it in hand.
        let reached = log.steps.last().map_or(log.end(), |step| step.version);
        let (versions, end) = (servers.adopt(reached, limit).await?, log.end());
        check(
            Invariant::GoesOnWhereTheLogEnds,
            versions.iter().all(|version| (reached..=end).contains(version)),
            || format!("the log ends at step {end}, the servers that are taken over are at {versions:?}"),
        );
        if let Some(step) = log.steps.last() {
            let drop_others = self.options.synchronous;
            let behind = versions.iter().map(|version| *version < end);
            servers
                .complete(
                    &behind.collect::<Vec<_>>(),
                    step.version,
                    &step.contributors(),
                    drop_others,
                    limit,
                )
                .await?;
        }
        let mut inner = self.state.lock();
        let mut fresh = incarnation(&self.options, job, end, &log.data, Vec::new());
        for (_, first, count) in log.steps.iter().flat_map(|step| &step.contributors) {
            fresh.ledger.replay(*first, *count);
        }
        let data = fresh.ledger.position();
        // As from a checkpoint of this instant: what is handed out next does not depend on how we got here.
        let fresh = incarnation(&self.options, fresh.job, end, &data, Vec::new());
        (inner.clock, inner.ledger, inner.start_version) = (fresh.clock, fresh.ledger, fresh.start_version);
        drop(inner);
        self.state.warn(match lost {
            Some(Lost { reason, .. }) => {
                format!("{reason}: training goes on from the copies at step {end}; no step is lost")
            }
            None => format!(
                "the coordinator was away: the parameter servers still hold step {end}, training goes on from there"
            ),
        });
        Ok(true)
    }
}

/// The next incarnation of a job, unless another coordinator has begun one.
fn next_incarnation(folder: &Path, own: u64) -> Result<u64, String> {
    match claim::next(folder, own) {
        Ok(next) => next.ok_or_else(|| format!("{}: {TAKEN_OVER}", folder.display())),
        Err(error) => {
            tracing::warn!(%error, "nothing but the folder's lock keeps a second coordinator away");
            Ok(own + 1)
        }
    }
}

/// A task that hangs does not end by itself: a launcher on this machine, if there is one, replaces its process.
pub(crate) fn ask_for_restart(job_dir: &Path, task: String, pid: u64) {
    if let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 0) {
        ask(job_dir, task, Some(pid), None);
    }
}

/// As [`ask_for_restart`], for a task that has not been heard of for `silence`, whichever process it is by now.
pub(super) fn ask_for_restart_of_silent(job_dir: &Path, task: String, pid: u64, silence: Duration) {
    // No process has this number, if nobody knows it.
    ask(job_dir, task, Some(i32::try_from(pid).unwrap_or(0)), Some(silence));
}

fn ask(job_dir: &Path, task: String, pid: Option<i32>, older_than: Option<Duration>) {
    let job_dir = job_dir.to_owned();
    let older_than_ms = older_than.and_then(|age| u64::try_from(age.as_millis()).ok());
    tokio::spawn(work::blocking(move || {
        let request = Request::Restart {
            task,
            pid,
            older_than_ms,
            reason: "it is silent".to_owned(),
        };
        match control::request(&job_dir, &request) {
            Ok(reply) => tracing::info!(?reply, "the launcher was asked for another process"),
            Err(error) => tracing::info!(%error, "no launcher replaces the process"),
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_without_a_step_in_between_end_the_job_after_a_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut progress = Progress::new(Duration::from_secs(60));
        assert_eq!(progress.look(at(0), true, "ps-0"), Ok(()));
        assert_eq!(progress.look(at(50), false, "ps-0"), Ok(()));
        assert_eq!(progress.look(at(100), true, "ps-0"), Ok(()), "a step was made");
        assert!(
            progress
                .look(at(170), false, "ps-0")
                .unwrap_err()
                .starts_with("ps-0\nhint: no step")
        );
    }
}
