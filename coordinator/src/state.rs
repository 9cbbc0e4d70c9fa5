//! Everything that the coordinator knows, behind one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coati_param_server::Contributor;
use coati_proto::coati::v1;
use coati_proto::coati::v1::report_reply::Outcome as Fate;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::clock::{Clock, Reported};
use crate::ledger::{Lease, Ledger};
use crate::membership::{Membership, Standing};
use crate::run::Event;
use crate::step_log::Step;
use crate::timing;
use crate::troubles::Troubles;
use crate::vigil::was_away;

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

/// One incarnation of the job: from loading the servers until the end, or until they must be loaded again.
pub(crate) struct Inner {
    pub job: v1::JobRef,
    pub phase: Phase,
    pub membership: Membership,
    pub clock: Clock,
    pub ledger: Ledger,
    pub plan: Option<v1::JobPlan>,
    pub decided: BTreeMap<u32, Decided>,
    pub details: BTreeMap<u32, Details>,
    pub stop: Option<String>,
    /// Variables were lost with a server: this incarnation cannot go on.
    pub servers_lost: Option<String>,
    /// Servers whose variables have no whole copy; unknown before somebody has looked.
    pub without_copy: Option<Vec<usize>>,
    /// Copies are being made. What is there of earlier ones is of use for as long as no step is made.
    pub copies_under_way: bool,
    /// Servers whose variables can move home from where they were taken over.
    pub moving_home: Option<String>,
    /// What keeps the cluster from forming.
    pub troubles: Troubles,
    /// Tasks that know that the job is over.
    pub told: BTreeSet<String>,
    /// When those who are silent were looked for last.
    pub looked: Instant,
    pub last_checkpoint: u64,
    pub num_steps: u64,
    pub lockstep: bool,
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
    /// By index, the parameter server processes that answered last, in whatever incarnation.
    server_pids: Mutex<BTreeMap<u32, u64>>,
    /// Held while a step is made.
    pub deciding: tokio::sync::Mutex<()>,
    events: UnboundedSender<Event>,
}

impl State {
    pub(crate) fn new(inner: Inner, events: UnboundedSender<Event>) -> Self {
        Self {
            inner: Mutex::new(inner),
            changes: watch::Sender::new(0),
            work: Notify::new(),
            server_pids: Mutex::default(),
            deciding: tokio::sync::Mutex::default(),
            events,
        }
    }

    /// The lock. A panic elsewhere is reported there; the data is consistent whenever the lock is free.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which process of a parameter server answers.
    pub(crate) fn heard_server(&self, answer: &v1::PsStatusReply) {
        if let Some(task) = &answer.task {
            let mut pids = self.server_pids.lock().unwrap_or_else(PoisonError::into_inner);
            pids.insert(task.index, answer.pid);
        }
    }

    /// The process of parameter server `index` that answered last; 0 when none did.
    pub(crate) fn server_pid(&self, index: u32) -> u64 {
        let pids = self.server_pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.get(&index).copied().unwrap_or(0)
    }

    /// Wakes all who wait for an outcome.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Wakes those who wait and the committing task.
    pub(crate) fn wake(&self) {
        self.work.notify_one();
        self.changed();
    }

    pub(crate) fn tell(&self, event: Event) {
        // Nobody listens any more at the very end: fine.
        let _ = self.events.send(event);
    }

    pub(crate) fn warn(&self, text: impl Into<String>) {
        self.tell(Event::Warning(text.into()));
    }

    /// Asks for the end after the current step; the first reason counts.
    pub(crate) fn stop(&self, reason: &str) {
        self.lock().stop.get_or_insert_with(|| reason.to_owned());
        self.wake();
    }

    /// Ends the job as failed, unless it has ended.
    pub(crate) fn fail(&self, reason: &str) {
        let mut inner = self.lock();
        if !inner.is_over() {
            inner.phase = Phase::Failed(reason.to_owned());
        }
        drop(inner);
        self.wake();
    }

    /// Ends the incarnation: a server's variables are gone.
    pub(crate) fn servers_lost(&self, incarnation: u64, reason: &str) {
        let mut inner = self.lock();
        if inner.job.incarnation == incarnation {
            inner.servers_lost.get_or_insert_with(|| reason.to_owned());
        }
        drop(inner);
        self.wake();
    }

    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// A replica that was taken out of the job.
pub(crate) struct Lost {
    pub task: String,
    /// Of its process, on its host.
    pub pid: u64,
    /// For the user.
    pub words: String,
}

/// The name of a rank's task.
pub(crate) fn task_of(rank: u32) -> String {
    if rank == 0 {
        "master".to_owned()
    } else {
        format!("worker-{}", rank - 1)
    }
}

/// The rank of a task's replica.
pub(crate) fn rank_of(task: &str) -> Option<u32> {
    if task == "master" {
        return Some(0);
    }
    let index: u32 = task.strip_prefix("worker-")?.parse().ok()?;
    index.checked_add(1)
}

impl Inner {
    /// Whether a rank's replica has joined and takes part.
    pub(crate) fn is_there(&self, rank: u32) -> bool {
        self.membership.present().contains(&task_of(rank).as_str())
    }

    /// Whether the newest version is the last one.
    pub(crate) fn is_last(&self) -> bool {
        self.clock.version() >= self.num_steps || self.stop.is_some()
    }

    /// Whether the job is over for replicas.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Draining(_) | Phase::Failed(_))
    }

    /// The first sequence number of a replica that joined as this generation: larger than any of an earlier one, and of
    /// earlier incarnations, whose contributions may still lie on the servers.
    pub(crate) fn first_sequence(&self, generation: u32) -> u64 {
        (self.job.incarnation << 44) | (u64::from(generation & 0xFFF) << 32)
    }

    /// What a replica of this generation must know to train from the newest version on.
    pub(crate) fn plan_for(&self, task: &str, generation: u32) -> Option<v1::JobPlan> {
        let plan = self.plan.clone()?;
        Some(v1::JobPlan {
            replica: rank_of(task).unwrap_or_default(),
            replicas: self.clock.active().len() as u32,
            start_version: self.clock.version(),
            first_sequence: self.first_sequence(generation),
            ..plan
        })
    }

    /// Gives out up to `wanted` batches; true when no more will come. A replica that asks for the first time takes part
    /// from here on.
    pub(crate) fn lease(&mut self, rank: u32, wanted: u32) -> (Vec<Lease>, bool) {
        let mut leases = Vec::new();
        // After a request to stop there is one more step, and all replicas may be needed for it.
        if self.is_over() {
            return (leases, true);
        }
        self.membership.set(&task_of(rank), Standing::Training);
        if self.clock.activate(rank) {
            self.ledger.rebase(self.clock.active().iter().copied());
        }
        let steps = self.num_steps.saturating_sub(self.clock.version());
        let open = self.ledger.open_of(rank);
        let lockstep = self.lockstep;
        let exhausted = |leases: &[Lease]| lockstep && open + leases.len() as u64 >= steps;
        while leases.len() < wanted as usize && !exhausted(&leases) {
            leases.push(self.ledger.lease(rank));
        }
        let exhausted = exhausted(&leases);
        (leases, exhausted)
    }

    /// The replica no longer takes part: its records go back, but for those of a contribution that waits for its fate.
    pub(crate) fn remove(&mut self, rank: u32) {
        let open: Vec<u64> = self
            .ledger
            .open()
            .filter(|lease| lease.replica == rank && !self.clock.uses(lease.id))
            .map(|lease| lease.id)
            .collect();
        for lease in open {
            self.ledger.give_back(lease);
        }
        if self.clock.deactivate(rank) {
            self.ledger.rebase(self.clock.active().iter().copied());
        }
    }

    /// As [`Inner::remove`], for a replica that begins anew: what it reported and no commit is using is void, too.
    pub(crate) fn replace(&mut self, rank: u32) {
        if let Some(reported) = self.clock.forget(rank) {
            self.decide(&[reported], Fate::Dropped);
        }
        self.remove(rank);
    }

    /// The step that these contributions make of the newest version, with the records that they used.
    pub(crate) fn step_of(&self, chosen: &[Reported]) -> Step {
        let contributors = chosen.iter().map(|reported| {
            let by = Contributor {
                replica: reported.replica,
                sequence: reported.sequence,
                samples: reported.samples,
            };
            let (first, count) = self
                .ledger
                .lease_of(reported.lease)
                .map_or((0, 0), |lease| (lease.first, lease.count));
            (by, first, count)
        });
        Step {
            version: self.clock.version(),
            contributors: contributors.collect(),
        }
    }

    /// Records what was decided about contributions.
    pub(crate) fn decide(&mut self, gone: &[Reported], fate: Fate) {
        let version = self.clock.version();
        let last = fate == Fate::Committed && self.is_last();
        for reported in gone {
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

    /// How far the servers' copies are, in words; empty when none are kept.
    pub(crate) fn copies(&self) -> String {
        match self.without_copy.as_deref() {
            None => String::new(),
            Some([]) => "whole".to_owned(),
            Some(without) => {
                let names: Vec<String> = without.iter().map(|index| format!("ps-{index}")).collect();
                format!("not yet of {}", names.join(", "))
            }
        }
    }

    /// Whether the job is complete but for its last checkpoint. If a server is lost before that is written, steps must be made
    /// again, so nobody leaves.
    pub(crate) fn needs_last_checkpoint(&self) -> bool {
        self.phase == Phase::Training && self.clock.version() >= self.num_steps
    }

    /// Who the next step waits for, in words.
    pub(crate) fn waiting_for(&self) -> String {
        if self.needs_last_checkpoint() {
            return "the last checkpoint".to_owned();
        }
        match self.clock.decide() {
            crate::clock::Decision::Wait(ranks) => {
                let names: Vec<String> = ranks
                    .iter()
                    .map(|&rank| self.membership.describe(&task_of(rank)))
                    .collect();
                names.join(", ")
            }
            _ => "the commit on the parameter servers".to_owned(),
        }
    }

    /// Members that have been silent for too long, and that in words. Must be asked more often than every half of that time:
    /// otherwise this process was away itself and could hear nobody, and everybody gets another chance.
    pub(crate) fn lost(&mut self, now: Instant) -> Vec<(String, String)> {
        let looked = std::mem::replace(&mut self.looked, now);
        if was_away(self.membership.timeout() / 2, looked, now) {
            self.membership.excuse(now);
        }
        let silent = self.membership.silent(now).into_iter();
        silent
            .filter(|(task, _)| !self.told.contains(*task))
            .map(|(task, silence)| {
                let words = format!(
                    "{} has been silent for {:.0} s",
                    self.membership.describe(task),
                    silence.as_secs_f64()
                );
                (task.to_owned(), words)
            })
            .collect()
    }

    /// Takes those who are lost out of the job.
    pub(crate) fn remove_lost(&mut self, now: Instant) -> Vec<Lost> {
        let lost = self.lost(now);
        for (task, _) in &lost {
            self.membership.set(task, Standing::Lost);
            if let Some(rank) = rank_of(task) {
                self.remove(rank);
            }
        }
        let there = self.clock.active().len();
        lost.into_iter()
            .map(|(task, words)| Lost {
                pid: self
                    .membership
                    .members()
                    .get(&task)
                    .map_or(0, |member| member.process.pid),
                words: format!("{words}: training goes on with {there} replica(s); it may come back"),
                task,
            })
            .collect()
    }
}
