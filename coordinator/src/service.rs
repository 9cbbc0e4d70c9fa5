//! Answers replicas: the gRPC side of the coordinator.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1;
use coati_proto::coati::v1::coordinator_server::Coordinator;
use coati_proto::coati::v1::report_reply::Outcome as Fate;
use tonic::{Request, Response, Status};

use crate::clock::Reported;
use crate::membership::{Identity, Process};
use crate::state::{Details, Inner, Phase, State};

/// Longest time that one call is held; the caller asks again.
const LONGEST_POLL: Duration = Duration::from_secs(20);

pub(crate) struct Service {
    pub state: Arc<State>,
    pub heartbeat_interval: Duration,
}

/// What a waiting call finds.
enum Look<T> {
    Answer(T),
    NotYet(T),
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
    fn check(&self, job: Option<&v1::JobRef>) -> Result<(), ServiceError> {
        let own = &self.state.job;
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

    /// Looks at the state until there is an answer or the time is up; then what the last look gave instead.
    async fn wait<T>(&self, wait_ms: u32, mut look: impl FnMut(&mut Inner) -> Look<T>) -> T {
        let limit = Duration::from_millis(u64::from(wait_ms)).min(LONGEST_POLL);
        let deadline = tokio::time::Instant::now() + limit;
        let mut changes = self.state.watch();
        loop {
            changes.mark_unchanged();
            let fallback = match look(&mut self.state.lock()) {
                Look::Answer(answer) => return answer,
                Look::NotYet(fallback) => fallback,
            };
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return fallback,
            }
        }
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
        let process = Process {
            address: request.address.clone(),
            pid: request.pid,
        };
        let joined = inner
            .membership
            .join(&task, process, &identity, forming, Instant::now());
        if let Err(refusal) = joined {
            // A cluster in which one disagrees cannot start: everybody hears why.
            if forming {
                inner.phase = Phase::Failed(format!("the cluster could not form: {refusal}"));
            }
            drop(inner);
            self.state.changed();
            return Err(ServiceError::new(ErrorCode::ConfigMismatch, refusal.to_string()).into());
        }
        drop(inner);
        tracing::info!(task, address = request.address, "joined");
        self.state.work.notify_one();
        let heartbeat_interval_ms = self.heartbeat_interval.as_millis() as u32;
        Ok(Response::new(v1::RegisterReply {
            job: Some(self.state.job.clone()),
            heartbeat_interval_ms,
        }))
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatReply>, Status> {
        let request = request.into_inner();
        self.check(request.job.as_ref())?;
        let task = task_name(request.task.as_ref())?;
        let mut inner = self.state.lock();
        if !inner.membership.beat(&task, &request.activity, Instant::now()) {
            return Err(ServiceError::new(ErrorCode::InvalidRequest, format!("{task} has not joined this job")).into());
        }
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
        self.check(request.job.as_ref())?;
        let task = task_name(request.task.as_ref())?;
        let rank = if task == "master" {
            0
        } else {
            request.task.map_or(0, |task| task.index) + 1
        };
        let reply = self
            .wait(request.wait_ms, |inner| {
                let plan = inner.plan.clone().map(|plan| v1::JobPlan { replica: rank, ..plan });
                match &inner.phase {
                    Phase::Forming(waiting_for) => Look::NotYet(Ok(v1::GetPlanReply {
                        ready: false,
                        waiting_for: waiting_for.clone(),
                        plan: None,
                    })),
                    Phase::Failed(reason) => {
                        let error = ServiceError::new(ErrorCode::JobEnded, reason.clone());
                        inner.told.insert(task.clone());
                        Look::Answer(Err(error))
                    }
                    Phase::Draining(reason) if plan.is_none() => {
                        let message = format!("the job ended before it began: {reason}");
                        inner.told.insert(task.clone());
                        Look::Answer(Err(ServiceError::new(ErrorCode::JobEnded, message)))
                    }
                    Phase::Training | Phase::Draining(_) => Look::Answer(Ok(v1::GetPlanReply {
                        ready: true,
                        waiting_for: String::new(),
                        plan,
                    })),
                }
            })
            .await;
        if reply.is_err() {
            self.state.changed();
        }
        Ok(Response::new(reply?))
    }

    async fn lease(&self, request: Request<v1::LeaseRequest>) -> Result<Response<v1::LeaseReply>, Status> {
        let request = request.into_inner();
        self.check(request.job.as_ref())?;
        let (leases, exhausted) = {
            let mut inner = self.state.lock();
            if let Phase::Failed(reason) = &inner.phase {
                let error = ServiceError::new(ErrorCode::JobEnded, format!("the job failed: {reason}"));
                inner.told.insert(Inner::task_of(request.replica));
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
        let request = request.into_inner();
        let tag = request
            .tag
            .ok_or_else(|| ServiceError::new(ErrorCode::InvalidRequest, "the report has no tag"))?;
        self.check(tag.job.as_ref())?;
        {
            let mut inner = self.state.lock();
            if tag.replica >= inner.replicas {
                let message = format!("replica {} of {} reported", tag.replica, inner.replicas);
                return Err(ServiceError::new(ErrorCode::InvalidRequest, message).into());
            }
            let decided = inner.decided.get(&tag.replica).map(|decided| decided.sequence);
            if let Some(newest) = decided.filter(|newest| *newest > tag.sequence) {
                let message = format!(
                    "replica {} reports contribution {}, of {newest} it was decided before",
                    tag.replica, tag.sequence
                );
                return Err(ServiceError::new(ErrorCode::TagReused, message)
                    .with_hint("a replica that was started again cannot take part in a running job; start the job again, it goes on from its last checkpoint")
                    .into());
            }
            if decided != Some(tag.sequence) && !inner.is_over() {
                let leased_to = inner.leases.get(&request.lease).map(|lease| lease.replica);
                if leased_to != Some(tag.replica) {
                    let message = format!(
                        "replica {} used lease {}, which it does not have",
                        tag.replica, request.lease
                    );
                    return Err(ServiceError::new(ErrorCode::InvalidRequest, message).into());
                }
                inner.clock.report(Reported {
                    replica: tag.replica,
                    sequence: tag.sequence,
                    version: tag.version,
                    samples: request.samples,
                    lease: request.lease,
                });
                let known = inner.details.get(&tag.replica).map(|details| details.sequence);
                if known != Some(tag.sequence) {
                    let details = Details {
                        sequence: tag.sequence,
                        arrived: Instant::now(),
                        losses: request.losses,
                        seconds: request.seconds,
                        bad_records: request.bad_records,
                        bytes: [request.bytes_pushed, request.bytes_pulled],
                    };
                    inner.details.insert(tag.replica, details);
                }
            }
        }
        self.state.work.notify_one();
        let reply = self
            .wait(request.wait_ms, |inner| {
                let version = inner.clock.version();
                let reply = |outcome: Fate, version, last, waiting_for| v1::ReportReply {
                    outcome: outcome.into(),
                    version,
                    waiting_for,
                    last,
                };
                if let Some(decided) = inner
                    .decided
                    .get(&tag.replica)
                    .copied()
                    .filter(|decided| decided.sequence == tag.sequence)
                {
                    let last = decided.last;
                    if last {
                        inner.told.insert(Inner::task_of(tag.replica));
                    }
                    return Look::Answer(reply(decided.fate, decided.version, last, String::new()));
                }
                match &inner.phase {
                    Phase::Failed(reason) => {
                        let reason = reason.clone();
                        inner.told.insert(Inner::task_of(tag.replica));
                        Look::Answer(reply(Fate::Aborted, version, true, reason))
                    }
                    Phase::Draining(reason) => {
                        let reason = reason.clone();
                        inner.told.insert(Inner::task_of(tag.replica));
                        Look::Answer(reply(Fate::Done, version, true, reason))
                    }
                    _ => Look::NotYet(reply(Fate::Pending, version, false, inner.waiting_for())),
                }
            })
            .await;
        if reply.last {
            self.state.changed();
        }
        Ok(Response::new(reply))
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
                    activity: member.activity.clone(),
                    seconds_since_heartbeat: now.saturating_duration_since(member.seen).as_secs_f64(),
                }
            })
            .collect();
        let position = inner.ledger.position();
        let record_count = inner.record_count.max(1);
        Ok(Response::new(v1::JobStatusReply {
            job: Some(self.state.job.clone()),
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
        }))
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<v1::StopReply>, Status> {
        self.state.stop(&request.into_inner().reason);
        Ok(Response::new(v1::StopReply {}))
    }
}
