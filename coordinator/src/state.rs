//! Everything that the coordinator knows, behind one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coati_proto::coati::v1;
use coati_proto::coati::v1::report_reply::Outcome as Fate;
use tokio::sync::{Notify, watch};

use crate::clock::{Clock, Reported};
use crate::ledger::{Lease, Ledger};
use crate::membership::Membership;
use crate::timing;

/// How far the job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not everybody is there, or the variables are not loaded; what is waited for.
    Forming(String),
    /// Steps are committed.
    Training,
    /// The last step is committed (or the job was stopped): replicas leave.
    Draining(String),
    /// The job failed.
    Failed(String),
}

/// What became of a replica's newest decided contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    pub sequence: u64,
    pub fate: Fate,
    pub version: u64,
    /// No step follows. Decided together with the step, so that all contributors hear the same.
    pub last: bool,
}

/// What a replica said beside the bare contribution.
#[derive(Clone, Debug)]
pub(crate) struct Details {
    pub sequence: u64,
    /// When it was said for the first time.
    pub arrived: Instant,
    pub losses: Vec<v1::Scalar>,
    pub seconds: Vec<v1::Scalar>,
    pub bad_records: Vec<String>,
    /// Bytes of gradients sent and of variables received.
    pub bytes: [u64; 2],
}

impl Details {
    /// When the replica did what.
    pub(crate) fn spans(&self) -> timing::Spans {
        let of = |name: &str| {
            let scalar = self.seconds.iter().find(|scalar| scalar.name == name);
            scalar
                .and_then(|scalar| Duration::try_from_secs_f64(scalar.value).ok())
                .unwrap_or_default()
        };
        timing::Spans {
            arrived: self.arrived,
            input: of("input"),
            compute: of("compute"),
            push: of("push"),
        }
    }
}

pub(crate) struct Inner {
    pub phase: Phase,
    pub membership: Membership,
    pub clock: Clock,
    pub ledger: Ledger,
    pub plan: Option<v1::JobPlan>,
    pub decided: BTreeMap<u32, Decided>,
    pub details: BTreeMap<u32, Details>,
    /// Leases handed out whose fate is not decided.
    pub leases: BTreeMap<u64, Lease>,
    pub stop: Option<String>,
    /// Tasks that know that the job is over.
    pub told: BTreeSet<String>,
    pub last_checkpoint: u64,
    pub num_steps: u64,
    pub lockstep: bool,
    pub replicas: u32,
    pub start_version: u64,
    pub record_count: u64,
}

/// See the module.
pub(crate) struct State {
    inner: Mutex<Inner>,
    /// Counts changes that waiting calls should look at.
    changes: watch::Sender<u64>,
    /// Work for the committing task.
    pub work: Notify,
    pub job: v1::JobRef,
}

impl State {
    pub(crate) fn new(job: v1::JobRef, inner: Inner) -> Self {
        Self {
            inner: Mutex::new(inner),
            changes: watch::Sender::new(0),
            work: Notify::new(),
            job,
        }
    }

    /// The lock. A panic elsewhere is reported there; the data is consistent whenever the lock is free.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all who wait for an outcome.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Asks for the end after the current step; the first reason counts.
    pub(crate) fn stop(&self, reason: &str) {
        self.lock().stop.get_or_insert_with(|| reason.to_owned());
        self.work.notify_one();
        self.changed();
    }

    /// Ends the job as failed, unless it has ended.
    pub(crate) fn fail(&self, reason: &str) {
        let mut inner = self.lock();
        if !inner.is_over() {
            inner.phase = Phase::Failed(reason.to_owned());
        }
        drop(inner);
        self.work.notify_one();
        self.changed();
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Inner {
    /// The name of a rank's task.
    pub(crate) fn task_of(rank: u32) -> String {
        if rank == 0 {
            "master".to_owned()
        } else {
            format!("worker-{}", rank - 1)
        }
    }

    /// Whether the newest version is the last one.
    pub(crate) fn is_last(&self) -> bool {
        self.clock.version() >= self.num_steps || self.stop.is_some()
    }

    /// Whether the job is over for replicas.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Draining(_) | Phase::Failed(_))
    }

    /// Gives out up to `wanted` batches; true when no more will come.
    pub(crate) fn lease(&mut self, replica: u32, wanted: u32) -> (Vec<Lease>, bool) {
        let mut leases = Vec::new();
        // After a request to stop there is one more step, and all replicas may be needed for it.
        if self.is_over() {
            return (leases, true);
        }
        let steps = self.num_steps.saturating_sub(self.start_version);
        let exhausted = |inner: &Self| inner.lockstep && inner.ledger.batches_of(replica) >= steps;
        while leases.len() < wanted as usize && !exhausted(self) {
            let lease = self.ledger.lease(replica);
            self.leases.insert(lease.id, lease);
            leases.push(lease);
        }
        (leases, exhausted(self))
    }

    /// Records what was decided about contributions.
    pub(crate) fn decide(&mut self, gone: &[Reported], fate: Fate) {
        let version = self.clock.version();
        let last = fate == Fate::Committed && self.is_last();
        for reported in gone {
            self.leases.remove(&reported.lease);
            if fate == Fate::Committed {
                self.ledger.complete(reported.lease);
            } else {
                self.ledger.give_back(reported.lease);
            }
            self.decided.insert(
                reported.replica,
                Decided {
                    sequence: reported.sequence,
                    fate,
                    version,
                    last,
                },
            );
        }
    }

    /// Who the next step waits for, in words.
    pub(crate) fn waiting_for(&self) -> String {
        match self.clock.decide() {
            crate::clock::Decision::Wait(ranks) => {
                let names: Vec<String> = ranks
                    .iter()
                    .map(|&rank| self.membership.describe(&Self::task_of(rank)))
                    .collect();
                names.join(", ")
            }
            _ => "the commit on the parameter servers".to_owned(),
        }
    }

    /// Members that have been silent for too long, in words.
    pub(crate) fn lost(&self, now: Instant) -> Option<String> {
        let silent: Vec<String> = self
            .membership
            .silent(now)
            .into_iter()
            .filter(|(task, _)| !self.told.contains(*task))
            .map(|(task, silence)| {
                format!(
                    "{} has been silent for {:.0} s",
                    self.membership.describe(task),
                    silence.as_secs_f64()
                )
            })
            .collect();
        (!silent.is_empty()).then(|| silent.join("; "))
    }
}
