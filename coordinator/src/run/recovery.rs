//! Going on after a loss: back to the last checkpoint when servers lost their variables, or with what the servers hold when
//! only the coordinator was away.

use std::path::Path;
use std::time::{Duration, Instant};

use coati_checkpoint::state;
use coati_param_server::{Contributor, PsGroup};
use coati_proto::coati::v1::{JobRef, PsStatusReply};
use futures::future::try_join_all;

use super::{Event, Init, Run, Trouble, incarnation};
use crate::launcher::control::{self, Request};
use crate::state::{Inner, Phase};
use crate::step_log::{Log, Step};

/// What an incarnation begins with.
pub(super) struct Source {
    /// Where the variables come from, unless the servers still hold them.
    pub init: Init,
    /// What an earlier coordinator of this job wrote down.
    pub log: Option<Log>,
    /// Tasks that the incarnation waits for before it begins; all of the cluster, the first time.
    pub awaited: Option<Vec<String>>,
}

impl Source {
    pub(super) fn new(init: &Init, log: Option<Log>) -> Self {
        Self {
            init: init.clone(),
            log,
            awaited: None,
        }
    }

    /// Whether this coordinator forms the cluster for the first time.
    pub(super) fn is_first(&self) -> bool {
        self.awaited.is_none()
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

/// Whether servers in these states can go on where the log ends: all of them hold the variables of an incarnation that the log
/// goes for, at its end or one step before.
pub(super) fn go_on(log: &Log, servers: &[PsStatusReply]) -> bool {
    let one_before = if log.steps.is_empty() { log.end() } else { log.end() - 1 };
    servers.iter().all(|server| {
        server.job.as_ref().is_some_and(|job| log.covers(job))
            && server.state == "serving"
            && (one_before..=log.end()).contains(&server.version)
    })
}

impl Run {
    /// Ends this incarnation and prepares the next one, from the newest checkpoint.
    pub(super) async fn go_back(&self, reason: &str) -> Result<Source, String> {
        let folder = self.options.model_dir.clone();
        let latest = tokio::task::spawn_blocking(move || state::latest(&folder))
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
            let awaited = inner.membership.present().into_iter().map(str::to_owned).collect();
            let from = inner.clock.version();
            let job = JobRef {
                incarnation: inner.job.incarnation + 1,
                ..inner.job.clone()
            };
            // Before anybody hears of it.
            self.begin_log(&job, to, &data);
            let expected = inner.membership.expected().to_vec();
            *inner = Inner {
                stop: inner.stop.take(),
                ..incarnation(&self.options, job, to, &data, expected)
            };
            (from, awaited)
        };
        self.state.changed();
        self.went_back(reason, from, to);
        Ok(Source {
            init,
            log: None,
            awaited: Some(awaited),
        })
    }

    /// Says how many steps a loss costs.
    pub(super) fn went_back(&self, reason: &str, from: u64, to: u64) {
        self.state.tell(Event::WentBack { from, to });
        self.state.warn(format!(
            "{reason}: going back from step {from} to step {to}; {} step(s) are lost and made again",
            from - to
        ));
    }

    /// Takes the servers over from an earlier coordinator of this job, if they and its log agree; finishes the step that it
    /// decided last. Whether they do.
    pub(super) async fn adopt(&self, servers: &PsGroup, log: &Log) -> Result<bool, Trouble> {
        let limit = self.options.limits.commit;
        let states = try_join_all(servers.clients().iter().map(|client| client.status(limit)))
            .await
            .map_err(coati_param_server::client::Error::from)?;
        if !go_on(log, &states) {
            let newest = states
                .iter()
                .filter(|server| server.state == "serving")
                .map(|server| server.version);
            if let Some(newest) = newest.max() {
                self.state.warn(format!(
                    "the parameter servers hold variables of step {newest} that do not go with {} (which ends at step {})",
                    crate::step_log::FILE,
                    log.end()
                ));
            }
            return Ok(false);
        }
        servers.adopt(limit).await?;
        if let Some(step) = log.steps.last() {
            let contributors = contributors(step);
            servers
                .commit(step.version, &contributors, self.options.synchronous, limit)
                .await?;
        }
        let mut inner = self.state.lock();
        let job = inner.job.clone();
        let mut fresh = incarnation(&self.options, job, log.end(), &log.data, Vec::new());
        for (_, first, count) in log.steps.iter().flat_map(|step| &step.contributors) {
            fresh.ledger.replay(*first, *count);
        }
        let data = fresh.ledger.position();
        // As from a checkpoint of this instant: what is handed out next does not depend on how we got here.
        let fresh = incarnation(&self.options, fresh.job, log.end(), &data, Vec::new());
        (inner.clock, inner.ledger, inner.start_version) = (fresh.clock, fresh.ledger, fresh.start_version);
        drop(inner);
        self.state.warn(format!(
            "the coordinator was away: the parameter servers still hold step {}, training goes on from there",
            log.end()
        ));
        let job = self.state.lock().job.clone();
        self.begin_log(&job, log.end(), &data);
        Ok(true)
    }
}

/// A task that hangs does not end by itself: a launcher on this machine, if there is one, replaces its process.
pub(crate) fn ask_for_restart(job_dir: &Path, task: String, pid: u64) {
    let (job_dir, pid) = (job_dir.to_owned(), i32::try_from(pid).ok());
    let Some(pid) = pid.filter(|pid| *pid > 0) else { return };
    tokio::task::spawn_blocking(move || {
        let request = Request::Restart {
            task,
            pid: Some(pid),
            reason: "it is silent".to_owned(),
        };
        match control::request(&job_dir, &request) {
            Ok(reply) => tracing::info!(?reply, "the launcher was asked for another process"),
            Err(error) => tracing::info!(%error, "no launcher replaces the process"),
        }
    });
}

/// As the servers want them.
pub(super) fn contributors(step: &Step) -> Vec<Contributor> {
    step.contributors.iter().map(|(by, _, _)| *by).collect()
}

#[cfg(test)]
mod tests {
    use coati_checkpoint::manifest::DataPosition;

    use super::*;

    fn job(incarnation: u64) -> JobRef {
        JobRef {
            job_id: "j".into(),
            incarnation,
        }
    }

    fn server(incarnation: u64, version: u64) -> PsStatusReply {
        PsStatusReply {
            job: Some(job(incarnation)),
            state: "serving".into(),
            version,
            ..PsStatusReply::default()
        }
    }

    #[test]
    fn servers_are_taken_over_only_where_the_log_knows_every_step() {
        let step = |version| Step {
            version,
            contributors: Vec::new(),
        };
        let log = Log {
            job: job(4),
            oldest: 3,
            version: 10,
            data: DataPosition::default(),
            steps: vec![step(10), step(11)],
        };
        assert!(go_on(&log, &[server(4, 12), server(4, 12)]));
        assert!(
            go_on(&log, &[server(4, 11), server(4, 12)]),
            "the last commit reached one of them"
        );
        assert!(
            !go_on(&log, &[server(4, 13), server(4, 13)]),
            "a step that the log does not know"
        );
        assert!(
            !go_on(&log, &[server(4, 10), server(4, 12)]),
            "one lacks an earlier step"
        );
        assert!(
            go_on(&log, &[server(3, 12), server(4, 12)]),
            "who took them over died before it had the first one"
        );
        assert!(!go_on(&log, &[server(2, 12), server(4, 12)]), "another incarnation's");
        assert!(!go_on(&log, &[server(5, 12), server(4, 12)]), "of a later coordinator");
        assert!(
            !go_on(&log, &[server(4, 12), PsStatusReply::default()]),
            "one was started again"
        );
        let begun = Log {
            steps: Vec::new(),
            ..log
        };
        assert!(go_on(&begun, &[server(4, 10)]));
        assert!(!go_on(&begun, &[server(4, 9)]));
    }

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
