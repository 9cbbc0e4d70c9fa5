//! Answers replicas: the gRPC side of the coordinator.

use std::sync::Arc;
use std::time::Duration;

use coati_common::rpc::{self, Answers, ErrorCode, ServiceError};
use coati_common::wall_clock::{self, Offset};
use coati_proto::coati::v1;
use coati_proto::coati::v1::coordinator_server::Coordinator;
use coati_proto::coati::v1::report_reply::Outcome as Fate;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use crate::clock::Reported;
use crate::membership::{Identity, Process, Standing, Stranger};
use crate::state::{Details, Inner, Phase, State, rank_of, task_of};

/// Longest time that one call is held; the caller asks again.
const LONGEST_POLL: Duration = Duration::from_secs(20);

/// Workers of one job, at most.
const MOST_WORKERS: u32 = 4096;

#[derive(Clone)]
pub(crate) struct Service {
    pub state: Arc<State>,
    pub heartbeat_interval: Duration,
}

fn task_name(task: Option<&v1::Task>) -> Result<String, ServiceError> {
    let task = task.ok_or_else(|| ServiceError::new(ErrorCode::InvalidRequest, "the request names no task"))?;
    Ok(if task.r#type == "master" {
        "master".to_owned()
    } else {
        format!("{}-{}", task.r#type, task.index)
    })
}

impl Service {
    /// Whether a request belongs to this incarnation of the job.
    fn check(inner: &Inner, job: Option<&v1::JobRef>) -> Result<(), ServiceError> {
        let own = &inner.job;
        match job {
            Some(job) if job == own => Ok(()),
            Some(job) if job.job_id != own.job_id => Err(ServiceError::new(
                ErrorCode::WrongJob,
                format!("this is job {}, the request is of job {}", own.job_id, job.job_id),
            )),
            Some(job) => Err(ServiceError::new(
                ErrorCode::StaleIncarnation,
                format!(
                    "this is incarnation {} of the job, the request is of {}",
                    own.incarnation, job.incarnation
                ),
            )),
            None => Err(ServiceError::new(ErrorCode::InvalidRequest, "the request names no job")),
        }
    }

    /// Whether a request comes from the process that is the task now.
    fn admit(inner: &Inner, job: Option<&v1::JobRef>, task: &str, generation: u32) -> Result<(), ServiceError> {
        Self::check(inner, job)?;
        let refused = |code, what: String| Err(ServiceError::new(code, format!("{task} {what}")));
        match inner.membership.admit(task, generation) {
            Ok(()) => Ok(()),
            Err(Stranger::Unknown) => refused(ErrorCode::NotMember, "has not joined this job".to_owned()),
            Err(Stranger::Lost) => refused(
                ErrorCode::NotMember,
                "was silent for too long and counts as lost".to_owned(),
            ),
            Err(Stranger::Superseded { pid }) => {
                refused(ErrorCode::Superseded, format!("is another process now, with pid {pid}"))
            }
        }
    }

    /// Notes a request of a process whose place another one has taken while the cluster forms: both are there, so it is no
    /// restart but a mistake in somebody's `TF_CONFIG`.
    fn rivals(inner: &mut Inner, job: Option<&v1::JobRef>, task: &str, generation: u32) -> bool {
        if !matches!(inner.phase, Phase::Forming(_)) || job != Some(&inner.job) {
            return false;
        }
        let Some((one, other)) = inner.membership.rivals(task, generation) else {
            return false;
        };
        let problem = format!(
            "two processes say that they are {task}: pid {} at {} and pid {} at {}\nhint: each task needs an index of its own in TF_CONFIG",
            one.pid, one.address, other.pid, other.address
        );
        inner.troubles.add(task, problem, Instant::now());
        true
    }

    /// Looks at the state until there is an answer or the time is up; then answers what `late` says. That is made once and not
    /// with each look, of which there are as many as replicas.
    async fn wait<T>(
        &self,
        wait_ms: u32,
        mut look: impl FnMut(&mut Inner) -> Option<T>,
        late: impl FnOnce(&Inner) -> T,
    ) -> T {
        let limit = Duration::from_millis(u64::from(wait_ms)).min(LONGEST_POLL);
        let deadline = Instant::now() + limit;
        let mut changes = self.state.watch();
        loop {
            changes.mark_unchanged();
            if let Some(answer) = look(&mut self.state.lock()) {
                return answer;
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return late(&self.state.lock()),
            }
        }
    }

    /// Takes a report, and waits for what becomes of it.
    async fn fate(&self, request: v1::ReportRequest) -> Result<v1::ReportReply, ServiceError> {
        let tag = request
            .tag
            .ok_or_else(|| ServiceError::new(ErrorCode::InvalidRequest, "the report has no tag"))?;
        let task = task_of(tag.replica);
        // Who commits is not woken for each report, but for the one that makes a decision possible.
        let decidable = {
            let mut inner = self.state.lock();
            Self::admit(&inner, tag.job.as_ref(), &task, request.generation)?;
            if tag.version > inner.clock.newest() {
                let message = format!(
                    "replica {} reports a gradient of version {}, the newest is {}",
                    tag.replica,
                    tag.version,
                    inner.clock.newest()
                );
                return Err(ServiceError::new(ErrorCode::InvalidRequest, message));
            }
            let decided = inner.decided.get(&tag.replica).map(|decided| decided.sequence);
            if let Some(newest) = decided.filter(|newest| *newest > tag.sequence) {
                let message = format!(
                    "replica {} reports contribution {}, of {newest} it was decided before",
                    tag.replica, tag.sequence
                );
                return Err(ServiceError::new(ErrorCode::TagReused, message));
            }
            if decided != Some(tag.sequence) && !inner.is_over() {
                let leased_to = inner.ledger.lease_of(request.lease).map(|lease| lease.replica);
                if leased_to != Some(tag.replica) {
                    let message = format!(
                        "replica {} used lease {}, which it does not have",
                        tag.replica, request.lease
                    );
                    return Err(ServiceError::new(ErrorCode::InvalidRequest, message));
                }
                inner.clock.report(Reported {
                    replica: tag.replica,
                    sequence: tag.sequence,
                    version: tag.version,
                    // Nothing of it is on all servers: no step may use it.
                    samples: if request.non_finite.is_empty() {
                        request.samples
                    } else {
                        0
                    },
                    lease: request.lease,
                });
                let known = inner.details.get(&tag.replica).map(|details| details.sequence);
                if known != Some(tag.sequence) {
                    let mut bad_records = request.bad_records;
                    if !request.non_finite.is_empty() {
                        bad_records.push(format!("skipped: {}", request.non_finite));
                    }
                    let details = Details {
                        sequence: tag.sequence,
                        arrived: Instant::now(),
                        losses: request.losses,
                        seconds: request.seconds,
                        bad_records,
                        bytes: [request.bytes_pushed, request.bytes_pulled],
                    };
                    inner.details.insert(tag.replica, details);
                }
            }
            inner.clock.is_decidable()
        };
        if decidable {
            self.state.work.notify_one();
        }
        let reply = |outcome: Fate, version, last, waiting_for| v1::ReportReply {
            outcome: outcome.into(),
            version,
            waiting_for,
            last,
        };
        let look = |inner: &mut Inner| {
            if let Err(error) = Self::admit(inner, tag.job.as_ref(), &task, request.generation) {
                return Some(Err(error));
            }
            let version = inner.clock.version();
            if let Some(decided) = inner
                .decided
                .get(&tag.replica)
                .copied()
                .filter(|decided| decided.sequence == tag.sequence)
            {
                let last = decided.last;
                if last && inner.needs_last_checkpoint() {
                    return None;
                }
                if last {
                    inner.told.insert(task.clone());
                }
                return Some(Ok(reply(decided.fate, decided.version, last, String::new())));
            }
            match &inner.phase {
                Phase::Failed(reason) => {
                    let reason = reason.clone();
                    inner.told.insert(task.clone());
                    Some(Ok(reply(Fate::Aborted, version, true, reason)))
                }
                Phase::Draining(reason) => {
                    let reason = reason.clone();
                    inner.told.insert(task.clone());
                    Some(Ok(reply(Fate::Done, version, true, reason)))
                }
                _ => None,
            }
        };
        let late = |inner: &Inner| Ok(reply(Fate::Pending, inner.clock.version(), false, inner.waiting_for()));
        let reply = self.wait(request.wait_ms, look, late).await?;
        if reply.last {
            self.state.changed();
        }
        Ok(reply)
    }
}

#[tonic::async_trait]
impl Coordinator for Service {
    async fn register(&self, request: Request<v1::RegisterRequest>) -> Result<Response<v1::RegisterReply>, Status> {
        let request = request.into_inner();
        let task = task_name(request.task.as_ref())?;
        let identity = Identity {
            software_version: request.software_version,
            config_digest: request.config_digest,
            dataset_digest: request.dataset_digest,
            record_count: request.record_count,
        };
        let mut inner = self.state.lock();
        let forming = matches!(inner.phase, Phase::Forming(_));
        if !request.cannot.is_empty() {
            let problem = format!("{task} ({}): {}", request.address, request.cannot);
            if forming {
                inner.troubles.add(&task, problem, Instant::now());
            } else {
                self.state.warn(format!("{problem}: it does not take part"));
            }
            drop(inner);
            self.state.changed();
            return Ok(Response::new(v1::RegisterReply::default()));
        }
        let process = Process {
            address: request.address.clone(),
            pid: request.pid,
        };
        // A running job takes further workers; while it forms, one too many is a mistake.
        if matches!(inner.phase, Phase::Training) && rank_of(&task).is_some_and(|rank| rank <= MOST_WORKERS) {
            inner.membership.admit_also(&task);
        }
        let joined = match inner.membership.join(&task, process, &identity, Instant::now()) {
            Ok(joined) => joined,
            Err(refusal) => {
                // A cluster in which one disagrees cannot start: everybody hears why.
                if forming {
                    inner.troubles.add(&task, refusal.to_string(), Instant::now());
                }
                drop(inner);
                self.state.changed();
                return Err(ServiceError::new(ErrorCode::ConfigMismatch, refusal.to_string()).into());
            }
        };
        let trained = rank_of(&task).is_some_and(|rank| inner.clock.active().contains(&rank));
        if joined.again
            && let Some(rank) = rank_of(&task)
        {
            inner.replace(rank);
        }
        let training = matches!(inner.phase, Phase::Training);
        let job = inner.job.clone();
        drop(inner);
        tracing::info!(
            task,
            address = request.address,
            generation = joined.generation,
            "joined"
        );
        if joined.again && trained && training {
            self.state.warn(format!(
                "{task} joins again (process {}): what it had under way goes to others",
                request.pid
            ));
        }
        self.state.wake();
        let heartbeat_interval_ms = self.heartbeat_interval.as_millis() as u32;
        Ok(Response::new(v1::RegisterReply {
            job: Some(job),
            heartbeat_interval_ms,
            generation: joined.generation,
            pid: u64::from(std::process::id()),
            clock_ms: wall_clock::now_ms(),
        }))
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatReply>, Status> {
        let request = request.into_inner();
        let task = task_name(request.task.as_ref())?;
        let mut inner = self.state.lock();
        if Self::rivals(&mut inner, request.job.as_ref(), &task, request.generation) {
            self.state.changed();
        }
        Self::admit(&inner, request.job.as_ref(), &task, request.generation)?;
        let beat = inner
            .membership
            .beat(&task, request.generation, &request.activity, Instant::now());
        debug_assert!(beat.is_ok(), "admitted and refused under one lock");
        let (directive, reason) = match &inner.phase {
            Phase::Draining(reason) => (v1::Directive::Drain, reason.clone()),
            Phase::Failed(reason) => (v1::Directive::Abort, reason.clone()),
            _ => (v1::Directive::Continue, String::new()),
        };
        if directive != v1::Directive::Continue {
            inner.told.insert(task);
            drop(inner);
            self.state.changed();
        }
        Ok(Response::new(v1::HeartbeatReply {
            directive: directive.into(),
            reason,
        }))
    }

    async fn get_plan(&self, request: Request<v1::GetPlanRequest>) -> Result<Response<v1::GetPlanReply>, Status> {
        let request = request.into_inner();
        let task = task_name(request.task.as_ref())?;
        let (job, generation) = (request.job, request.generation);
        let clock = Offset {
            ahead_ms: request.clock_ahead_ms,
            error_ms: request.clock_error_ms,
        };
        if let Some(warning) = clock.warning(&task)
            && self.state.lock().membership.first_look_at_clock(&task, generation)
        {
            self.state.warn(warning);
        }
        let look = |inner: &mut Inner| {
            Self::rivals(inner, job.as_ref(), &task, generation);
            if let Err(error) = Self::admit(inner, job.as_ref(), &task, generation) {
                return Some(Err(error));
            }
            let ended = |inner: &mut Inner, error| {
                inner.told.insert(task.clone());
                Some(Err(error))
            };
            match &inner.phase {
                Phase::Forming(_) => None,
                Phase::Failed(reason) => {
                    let error = ServiceError::new(ErrorCode::JobFailed, reason.clone());
                    ended(inner, error)
                }
                // Its servers may be gone already.
                Phase::Draining(reason) => {
                    let message = format!("the job ended before this replica began: {reason}");
                    ended(inner, ServiceError::new(ErrorCode::JobEnded, message))
                }
                Phase::Training => Some(Ok(v1::GetPlanReply {
                    ready: true,
                    waiting_for: String::new(),
                    plan: inner.plan_for(&task, generation),
                })),
            }
        };
        let late = |inner: &Inner| {
            let waiting_for = match &inner.phase {
                Phase::Forming(waiting_for) => waiting_for.clone(),
                _ => String::new(),
            };
            Ok(v1::GetPlanReply {
                ready: false,
                waiting_for,
                plan: None,
            })
        };
        let reply = self.wait(request.wait_ms, look, late).await;
        if reply.is_err() {
            self.state.changed();
        }
        Ok(Response::new(reply?))
    }

    async fn lease(&self, request: Request<v1::LeaseRequest>) -> Result<Response<v1::LeaseReply>, Status> {
        let request = request.into_inner();
        let (leases, exhausted) = {
            let mut inner = self.state.lock();
            let task = task_of(request.replica);
            Self::admit(&inner, request.job.as_ref(), &task, request.generation)?;
            if let Phase::Failed(reason) = &inner.phase {
                let error = ServiceError::new(ErrorCode::JobFailed, reason.clone());
                inner.told.insert(task);
                drop(inner);
                self.state.changed();
                return Err(error.into());
            }
            inner.lease(request.replica, request.batches.min(64))
        };
        let leases = leases
            .into_iter()
            .map(|lease| v1::BatchLease {
                lease: lease.id,
                first_position: lease.first,
                count: lease.count as u32,
            })
            .collect();
        Ok(Response::new(v1::LeaseReply { leases, exhausted }))
    }

    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportReply>, Status> {
        Ok(Response::new(self.fate(request.into_inner()).await?))
    }

    type ReportsStream = Answers<v1::ReportReply>;

    async fn reports(
        &self,
        request: Request<Streaming<v1::ReportRequest>>,
    ) -> Result<Response<Self::ReportsStream>, Status> {
        let service = self.clone();
        let answer = move |request| {
            let service = service.clone();
            async move { Ok(service.fate(request).await?) }
        };
        let is_last = |reply: &v1::ReportReply| reply.last;
        let answers = rpc::answers(request.into_inner(), std::future::pending(), is_last, answer);
        Ok(Response::new(answers))
    }

    async fn job_status(
        &self,
        _request: Request<v1::JobStatusRequest>,
    ) -> Result<Response<v1::JobStatusReply>, Status> {
        let inner = self.state.lock();
        let now = Instant::now();
        let tasks = inner
            .membership
            .members()
            .iter()
            .map(|(name, member)| {
                let (kind, index) = name.rsplit_once('-').unwrap_or((name, "0"));
                v1::TaskStatus {
                    task: Some(v1::Task {
                        r#type: kind.to_owned(),
                        index: index.parse().unwrap_or(0),
                    }),
                    address: member.process.address.clone(),
                    activity: match member.standing {
                        Standing::Lost => "lost".to_owned(),
                        Standing::Left => "left".to_owned(),
                        Standing::New | Standing::Training => member.activity.clone(),
                    },
                    seconds_since_heartbeat: now.saturating_duration_since(member.seen).as_secs_f64(),
                }
            })
            .collect();
        let position = inner.ledger.position();
        let record_count = inner.record_count.max(1);
        Ok(Response::new(v1::JobStatusReply {
            job: Some(inner.job.clone()),
            version: inner.clock.version(),
            num_steps: inner.num_steps,
            state: match &inner.phase {
                Phase::Forming(waiting) => format!("forming: waiting for {waiting}"),
                Phase::Training => "training".to_owned(),
                Phase::Draining(reason) => format!("ending: {reason}"),
                Phase::Failed(reason) => format!("failed: {reason}"),
            },
            tasks,
            records_seen: position.records_seen(),
            epoch: position.position / record_count,
            last_checkpoint: inner.last_checkpoint,
            copies: inner.copies(),
        }))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveReply>, Status> {
        let request = request.into_inner();
        let task = task_name(request.task.as_ref())?;
        let mut inner = self.state.lock();
        Self::admit(&inner, request.job.as_ref(), &task, request.generation)?;
        if request.failed {
            drop(inner);
            self.state.fail(&format!("{task}: {}", request.reason));
            return Ok(Response::new(v1::LeaveReply {}));
        }
        inner.membership.set(&task, Standing::Left);
        if let Some(rank) = rank_of(&task) {
            inner.remove(rank);
        }
        let (there, over) = (inner.clock.active().len(), inner.is_over());
        drop(inner);
        if !over {
            self.state.warn(format!(
                "{task} leaves ({}): training goes on with {there} replica(s)",
                request.reason
            ));
        }
        self.state.wake();
        Ok(Response::new(v1::LeaveReply {}))
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<v1::StopReply>, Status> {
        self.state.stop(&request.into_inner().reason);
        Ok(Response::new(v1::StopReply {}))
    }
}
