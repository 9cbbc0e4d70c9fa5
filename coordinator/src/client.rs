//! The replica's side of the coordinator's service.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use coati_common::rpc::{self, Channel, Dialogue, ErrorCode, MESSAGE_LIMIT_BYTES, Peer, call, call_headroom, line};
use coati_common::wall_clock::{self, Offset};
use coati_proto::coati::v1;
use coati_proto::coati::v1::coordinator_client::CoordinatorClient;
use coati_proto::coati::v1::report_reply::Outcome as Fate;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::membership::Identity;
use crate::run::ask_for_restart;
use crate::vigil::{Silence, Vigil};

/// One long poll.
const POLL: Duration = Duration::from_secs(10);

/// While the cluster forms, `say` is called so often.
const PLAN_POLL: Duration = Duration::from_secs(2);

/// A short call.
const CALL: Duration = Duration::from_secs(30);

/// Taking leave: whoever is not heard leaves all the same.
const LEAVE: Duration = Duration::from_secs(5);

/// A broken connection is tried again for so long: every call that is repeated changes nothing.
const RETRY_FOR: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// Bears broken connections for a while.
#[derive(Default)]
struct Patience {
    since: Option<Instant>,
}

impl Patience {
    /// Pauses, or gives the error back.
    async fn bear(&mut self, error: rpc::Error) -> Result<(), rpc::Error> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if error.code() != Some(ErrorCode::Unavailable) || since.elapsed() >= RETRY_FOR {
            return Err(error);
        }
        tracing::debug!(%error, "trying again");
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Why the coordinator is of no help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It did not answer, or refused; names it.
    #[error(transparent)]
    Rpc(#[from] rpc::Error),
    /// It answered with something incomplete.
    #[error("{peer}: the answer to {what} is incomplete\nhint: do all tasks run the same version of Coati?")]
    Incomplete {
        /// Who.
        peer: Peer,
        /// Which call.
        what: &'static str,
    },
    /// The job failed meanwhile.
    #[error("the job failed: {0}")]
    Aborted(String),
    /// The job ended in order meanwhile.
    #[error("the job ended: {0}")]
    Ended(String),
    /// The job goes on without this task, or its coordinator is away; what the last heartbeat came to.
    #[error("{0}")]
    CutOff(String),
    /// The cluster did not form in time.
    #[error("{peer}: waited {waited:.0} s for the cluster to form; it waits for {waiting_for}")]
    Forming {
        /// Who was asked.
        peer: Peer,
        /// Seconds.
        waited: f64,
        /// Who is missing.
        waiting_for: String,
    },
}

/// What the coordinator wants of this task, as the last heartbeat said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directive {
    /// Go on.
    Continue,
    /// Leave in order.
    Drain(String),
    /// Leave with failure.
    Abort(String),
    /// The coordinator began a new incarnation, counts this task as lost, or does not answer: join again.
    Rejoin(String),
}

impl Shared {
    /// A coordinator that hangs does not end by itself.
    fn ask_for_another(&self) {
        let job_dir = self.replace.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(job_dir) = job_dir {
            ask_for_restart(&job_dir, "master".to_owned(), self.coordinator);
        }
    }
}

#[derive(Debug)]
struct Shared {
    activity: Mutex<&'static str>,
    directive: watch::Sender<Directive>,
    /// Where to ask for another coordinator when this one is silent; and which process it is.
    replace: Mutex<Option<PathBuf>>,
    coordinator: u64,
}

/// A task's connection, with a heartbeat of its own. Dropping it ends the heartbeat.
pub struct Client {
    peer: Peer,
    rpc: CoordinatorClient<Channel>,
    /// For one report after the other.
    reports: Option<Dialogue<v1::ReportRequest, v1::ReportReply>>,
    job: v1::JobRef,
    task: v1::Task,
    generation: u32,
    /// How far this host's clock is ahead of the coordinator's.
    clock: Offset,
    shared: Arc<Shared>,
    heartbeat: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

impl Client {
    /// Tells the coordinator what keeps this task from taking part, so that the others hear it. Whoever is not heard is missed
    /// all the same.
    pub async fn cannot(
        address: &str,
        task: v1::Task,
        own_address: &str,
        reason: &str,
        limit: Duration,
    ) -> Result<(), Error> {
        let peer = Peer::new("master", address);
        let mut rpc = CoordinatorClient::new(rpc::connect(&peer, limit).await?);
        let request = v1::RegisterRequest {
            task: Some(task),
            address: own_address.to_owned(),
            cannot: reason.to_owned(),
            ..v1::RegisterRequest::default()
        };
        call(&peer, "what keeps this task away", limit, rpc.register(request)).await?;
        Ok(())
    }

    /// Joins the job: dials until `deadline` is over, registers, starts the heartbeat.
    pub async fn join(
        address: &str,
        task: v1::Task,
        own_address: &str,
        identity: &Identity,
        deadline: Duration,
        silence: Duration,
    ) -> Result<Self, Error> {
        let peer = Peer::new("master", address);
        let mut rpc =
            CoordinatorClient::new(rpc::connect(&peer, deadline).await?).max_decoding_message_size(MESSAGE_LIMIT_BYTES);
        let request = v1::RegisterRequest {
            job_id: String::new(),
            task: Some(task.clone()),
            address: own_address.to_owned(),
            software_version: identity.software_version.clone(),
            config_digest: identity.config_digest.clone(),
            dataset_digest: identity.dataset_digest.clone(),
            record_count: identity.record_count,
            pid: u64::from(std::process::id()),
            cannot: String::new(),
        };
        let sent = wall_clock::now_ms();
        let reply = call(&peer, "registration", CALL, rpc.register(request)).await?;
        let clock = Offset::over(sent, reply.clock_ms, wall_clock::now_ms()).reversed();
        let job = reply.job.ok_or_else(|| Error::Incomplete {
            peer: peer.clone(),
            what: "registration",
        })?;
        let shared = Arc::new(Shared {
            activity: Mutex::new("starting"),
            directive: watch::Sender::new(Directive::Continue),
            replace: Mutex::new(None),
            coordinator: reply.pid,
        });
        let interval = Duration::from_millis(u64::from(reply.heartbeat_interval_ms.max(50)));
        let heartbeat = tokio::spawn(beat(
            peer.clone(),
            rpc.clone(),
            job.clone(),
            task.clone(),
            reply.generation,
            Arc::clone(&shared),
            interval,
            silence,
        ));
        Ok(Self {
            peer,
            rpc,
            reports: None,
            job,
            task,
            generation: reply.generation,
            clock,
            shared,
            heartbeat,
        })
    }

    /// The job and its incarnation.
    pub fn job(&self) -> &v1::JobRef {
        &self.job
    }

    /// The process that this connection leads to.
    pub fn coordinator(&self) -> u64 {
        self.shared.coordinator
    }

    /// A coordinator that falls silent is to be replaced by the launcher of the job in this directory, if there is one.
    pub fn replace_when_silent(&self, job_dir: PathBuf) {
        *self.shared.replace.lock().unwrap_or_else(PoisonError::into_inner) = Some(job_dir);
    }

    /// What this task is doing, for those who wait for it.
    pub fn set_activity(&self, activity: &'static str) {
        *self.shared.activity.lock().unwrap_or_else(PoisonError::into_inner) = activity;
    }

    /// What the last heartbeat said.
    pub fn directive(&self) -> Directive {
        self.shared.directive.borrow().clone()
    }

    /// Waits until there is nothing to wait for any more: the job failed, or this task must join it again. Has no deadline of
    /// its own; without an answer to a heartbeat it ends after the silence that [`Client::join`] was given.
    pub fn cut_off(&self) -> impl Future<Output = Error> + use<> {
        let mut directive = self.shared.directive.subscribe();
        async move {
            let ends = |directive: &Directive| matches!(directive, Directive::Abort(_) | Directive::Rejoin(_));
            let end = directive.wait_for(ends).await.map(|end| end.clone());
            match end {
                Ok(Directive::Abort(reason)) => Error::Aborted(reason),
                Ok(Directive::Rejoin(reason) | Directive::Drain(reason)) => Error::CutOff(reason),
                Ok(Directive::Continue) | Err(_) => Error::CutOff("this task has left the job".to_owned()),
            }
        }
    }

    /// A coordinator that has closed may have said before how the job ended.
    fn check_end(&self) -> Result<(), Error> {
        match self.directive() {
            Directive::Abort(reason) => Err(Error::Aborted(reason)),
            Directive::Drain(reason) => Err(Error::Ended(reason)),
            Directive::Continue | Directive::Rejoin(_) => Ok(()),
        }
    }

    /// Waits for the cluster to form; `say` hears now and then who is missing.
    pub async fn plan(&mut self, deadline: Duration, mut say: impl FnMut(&str)) -> Result<v1::JobPlan, Error> {
        let begun = Instant::now();
        let mut patience = Patience::default();
        loop {
            let request = v1::GetPlanRequest {
                job: Some(self.job.clone()),
                task: Some(self.task.clone()),
                wait_ms: PLAN_POLL.as_millis() as u32,
                generation: self.generation,
                clock_ahead_ms: self.clock.ahead_ms,
                clock_error_ms: self.clock.error_ms,
            };
            let limit = POLL + CALL + call_headroom();
            let reply = match call(&self.peer, "the plan of the job", limit, self.rpc.get_plan(request)).await {
                Ok(reply) => reply,
                Err(error) => {
                    self.check_end()?;
                    patience.bear(error).await?;
                    continue;
                }
            };
            patience = Patience::default();
            if reply.ready {
                return reply.plan.ok_or_else(|| Error::Incomplete {
                    peer: self.peer.clone(),
                    what: "the plan of the job",
                });
            }
            if begun.elapsed() >= deadline {
                return Err(Error::Forming {
                    peer: self.peer.clone(),
                    waited: begun.elapsed().as_secs_f64(),
                    waiting_for: reply.waiting_for,
                });
            }
            say(&reply.waiting_for);
        }
    }

    /// Leaves the job: in order, or because this replica cannot go on, which ends the job.
    pub async fn leave(&mut self, failed: bool, reason: &str) -> Result<(), Error> {
        let request = v1::LeaveRequest {
            job: Some(self.job.clone()),
            task: Some(self.task.clone()),
            generation: self.generation,
            failed,
            reason: reason.to_owned(),
        };
        call(&self.peer, "leaving", LEAVE, self.rpc.leave(request)).await?;
        Ok(())
    }

    /// The next batches.
    pub async fn lease(&mut self, replica: u32, batches: u32) -> Result<(Vec<v1::BatchLease>, bool), Error> {
        let request = v1::LeaseRequest {
            job: Some(self.job.clone()),
            replica,
            batches,
            generation: self.generation,
        };
        // Not repeated: what a lost answer handed out goes back when the replica joins again.
        let reply = call(&self.peer, "a lease of records", CALL, self.rpc.lease(request)).await?;
        Ok((reply.leases, reply.exhausted))
    }

    /// Reports a contribution and waits for its fate, as long as the coordinator lives; `say` hears who is waited for.
    pub async fn report(
        &mut self,
        request: v1::ReportRequest,
        mut say: impl FnMut(&str),
    ) -> Result<v1::ReportReply, Error> {
        let request = v1::ReportRequest {
            wait_ms: POLL.as_millis() as u32,
            generation: self.generation,
            ..request
        };
        let mut patience = Patience::default();
        loop {
            let limit = POLL + CALL + call_headroom();
            let (rpc, reports, asked) = (&mut self.rpc, &mut self.reports, request.clone());
            let asking = async move {
                if !line::carries_streams() {
                    return rpc.report(asked).await;
                }
                Dialogue::ask(reports, |requests| rpc.reports(requests), asked).await
            };
            let reply = match call(&self.peer, "the fate of a step", limit, asking).await {
                Ok(reply) => reply,
                Err(error) => {
                    self.check_end()?;
                    patience.bear(error).await?;
                    continue;
                }
            };
            patience = Patience::default();
            match reply.outcome() {
                Fate::Pending | Fate::Unspecified => say(&reply.waiting_for),
                Fate::Aborted => return Err(Error::Aborted(reply.waiting_for)),
                _ => return Ok(reply),
            }
        }
    }
}

impl Error {
    /// Whether joining again may help: the coordinator was started again, began a new incarnation, or did not hear of this
    /// task for too long.
    pub fn calls_for_rejoining(&self) -> bool {
        match self {
            Self::Rpc(error) => calls_for_rejoining(error),
            Self::CutOff(_) => true,
            _ => false,
        }
    }

    /// The reason, if the job is over in order.
    pub fn job_ended(&self) -> Option<String> {
        match self {
            Self::Rpc(error) if error.code() == Some(ErrorCode::JobEnded) => Some(error.to_string()),
            Self::Ended(reason) => Some(reason.clone()),
            _ => None,
        }
    }
}

/// For who joins again: when that has taken for as long as a task may be silent, the launcher of the job in this directory, if
/// there is one, is asked for another coordinator in place of process `pid`. Never ends.
pub async fn replace_when_absent(job_dir: PathBuf, pid: u64, silence: Duration) -> Infallible {
    tokio::time::sleep(silence).await;
    ask_for_restart(&job_dir, "master".to_owned(), pid);
    std::future::pending().await
}

/// As [`Error::calls_for_rejoining`], of the coordinator's or a parameter server's answer.
pub fn calls_for_rejoining(error: &rpc::Error) -> bool {
    let moved_on = matches!(
        error.code(),
        Some(ErrorCode::StaleIncarnation | ErrorCode::NotMember | ErrorCode::UnknownVersion)
    );
    moved_on || error.is_absence()
}

#[allow(clippy::too_many_arguments, reason = "one caller, which spawns it")]
async fn beat(
    peer: Peer,
    mut rpc: CoordinatorClient<Channel>,
    job: v1::JobRef,
    task: v1::Task,
    generation: u32,
    shared: Arc<Shared>,
    interval: Duration,
    silence: Duration,
) {
    let mut vigil = Vigil::new(silence, Instant::now());
    loop {
        let activity = *shared.activity.lock().unwrap_or_else(PoisonError::into_inner);
        let request = v1::HeartbeatRequest {
            job: Some(job.clone()),
            task: Some(task.clone()),
            activity: activity.to_owned(),
            generation,
        };
        vigil.ask(Instant::now());
        let answer = call(&peer, "a heartbeat", vigil.patience(), rpc.heartbeat(request)).await;
        let now = Instant::now();
        let directive = match answer {
            Ok(reply) => {
                vigil.hear(now);
                match reply.directive() {
                    v1::Directive::Drain => Directive::Drain(reply.reason),
                    v1::Directive::Abort => Directive::Abort(reply.reason),
                    _ => Directive::Continue,
                }
            }
            Err(error) => {
                let silence = vigil.miss(now);
                if error.retryable() && silence != Silence::TooLong {
                    Directive::Continue
                } else if calls_for_rejoining(&error) {
                    // Whatever it is that does not answer. A process that was replaced meanwhile is left alone.
                    if error.is_absence() && silence == Silence::TooLong {
                        shared.ask_for_another();
                    }
                    Directive::Rejoin(error.to_string())
                } else {
                    Directive::Abort(error.to_string())
                }
            }
        };
        let over = directive != Directive::Continue;
        shared.directive.send_replace(directive);
        if over {
            return;
        }
        tokio::time::sleep(interval).await;
    }
}
