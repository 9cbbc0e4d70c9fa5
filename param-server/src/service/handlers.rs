use std::sync::Arc;
use std::time::Duration;

use coati_common::invariants;
use coati_common::rpc::{self, Answers, ErrorCode, Security, ServiceError};
use coati_common::wall_clock;
use coati_common::work;
use coati_proto::coati::v1;
use coati_proto::coati::v1::parameter_server_server::ParameterServer;
use http::{HeaderMap, HeaderValue};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::background::background;
use super::follower::Follower;
use super::life::{Contact, Ended, Life};
use super::shards::{self, Shard, Shards};
use super::steps::Steps;
use crate::SHARD_KEY;
use crate::optimizer::OptimizerConfig;
use crate::store::{self, Consistency, Store, lock};

/// A pull without a deadline of its own waits this long for its version.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// Thin: checks what the wire leaves open, moves work that blocks off the async threads, and asks the store.
pub(super) struct Service {
    index: u32,
    shards: Arc<Shards>,
    /// For the way to a copy.
    security: Security,
    life: Arc<Life>,
}

impl Service {
    pub(super) fn new(index: u32, shards: Arc<Shards>, security: Security, life: Arc<Life>) -> Self {
        Self {
            index,
            shards,
            security,
            life,
        }
    }

    /// The server leaves: nobody waits for it any more.
    pub(super) fn retire(&self) {
        self.shards.retire();
    }

    /// What a request is about.
    fn shard<T>(&self, request: &Request<T>) -> Result<(u32, Arc<Shard>), ServiceError> {
        self.shards
            .of(request.metadata().get(SHARD_KEY).map(MetadataValue::as_bytes))
    }

    fn store<T>(&self, request: &Request<T>) -> Result<Arc<Store>, ServiceError> {
        Ok(Arc::clone(&self.shard(request)?.1.store))
    }

    /// As for other requests, by the headers of a bulk transfer.
    pub(super) fn store_of(&self, headers: &HeaderMap) -> Result<Arc<Store>, ServiceError> {
        let (_, shard) = self.shards.of(headers.get(SHARD_KEY).map(HeaderValue::as_bytes))?;
        Ok(Arc::clone(&shard.store))
    }

    /// As for other requests, by the index of the server.
    pub(super) fn store_at(&self, index: u32) -> Arc<Store> {
        Arc::clone(&self.shards.at(index).store)
    }

    /// Waits until the server has been told to leave.
    pub(super) async fn left(&self) {
        self.life.left().await;
    }

    pub(super) fn contact(&self) -> Result<Contact, ServiceError> {
        self.life.enter(self.index)
    }

    /// Who makes the steps that a request, or a stream of them, is about.
    fn steps<T>(&self, request: &Request<T>) -> Steps {
        let key = request.metadata().get(SHARD_KEY);
        Steps {
            index: self.index,
            shards: Arc::clone(&self.shards),
            life: Arc::clone(&self.life),
            key: key.map(|key| key.as_bytes().to_vec()),
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    store: Arc<Store>,
    task: impl FnOnce(&Store) -> Result<T, ServiceError> + Send + 'static,
) -> Result<T, ServiceError> {
    let result = work::blocking(move || task(&store)).await;
    result.unwrap_or_else(|error| {
        Err(ServiceError::new(
            ErrorCode::Internal,
            format!("internal error: {error}"),
        ))
    })
}

pub(super) fn missing(what: &str) -> ServiceError {
    ServiceError::new(ErrorCode::InvalidRequest, format!("the request has no {what}"))
}

pub(super) fn job(job: Option<v1::JobRef>) -> Result<v1::JobRef, ServiceError> {
    job.ok_or_else(|| missing("job"))
}

/// Reads on to the stream's end, so that the caller gets an error as an answer and not as a broken connection.
async fn drained<T>(result: Result<T, ServiceError>, stream: &mut Streaming<impl Sized>) -> Result<T, ServiceError> {
    if result.is_err() {
        while let Ok(Some(_)) = stream.message().await {}
    }
    result
}

#[tonic::async_trait]
impl ParameterServer for Service {
    async fn status(&self, request: Request<v1::PsStatusRequest>) -> Result<Response<v1::PsStatusReply>, Status> {
        let _contact = self.life.contact();
        let status = self.store(&request)?.status();
        let state = if self.life.is_leaving() {
            "leaving"
        } else {
            shards::state(&status)
        };
        Ok(Response::new(v1::PsStatusReply {
            task: Some(v1::Task {
                r#type: "ps".to_owned(),
                index: self.index,
            }),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            job: status.job,
            state: state.to_owned(),
            version: status.version.unwrap_or(0),
            held_bytes: status.held_bytes,
            resident_bytes: resident_bytes(),
            pid: u64::from(std::process::id()),
            shards: self.shards.status(),
            invariants_broken: invariants::all_broken(),
            clock_ms: wall_clock::now_ms(),
        }))
    }

    async fn check_folder(
        &self,
        request: Request<v1::CheckFolderRequest>,
    ) -> Result<Response<v1::CheckFolderReply>, Status> {
        let _contact = self.contact()?;
        let request = request.into_inner();
        let index = self.index;
        let looked = work::blocking(move || super::folder::problem(&request, index)).await;
        let problem = looked.map_err(|error| ServiceError::new(ErrorCode::Internal, error.to_string()))?;
        Ok(Response::new(v1::CheckFolderReply {
            problem: problem.unwrap_or_default(),
        }))
    }

    #[tracing::instrument(skip_all, fields(ps = self.index))]
    async fn configure(&self, request: Request<v1::ConfigureRequest>) -> Result<Response<v1::ConfigureReply>, Status> {
        let _contact = self.contact()?;
        let (index, shard) = self.shard(&request)?;
        let store = &shard.store;
        let request = request.into_inner();
        let consistency = Consistency::try_from(&request)?;
        let job = job(request.job)?;
        // Others' variables come here only as copies.
        if request.ps_index != index || (index != self.index && !request.copy) {
            let message = format!("this is ps-{}, the request is for ps-{}", self.index, request.ps_index);
            return Err(ServiceError::new(ErrorCode::UnknownTask, message)
                .with_hint("the order of addresses in the cluster differs between tasks")
                .into());
        }
        let placement = request.placement.ok_or_else(|| missing("placement"))?;
        let optimizer = OptimizerConfig::decode(&request.optimizer)
            .map_err(|error| ServiceError::new(ErrorCode::InvalidRequest, format!("optimizer: {error}")))?;
        if request.copy {
            store.configure_copy(&job, index, &placement, optimizer, consistency)?;
        } else {
            store.configure(&job, index, &placement, optimizer, consistency)?;
        }
        store.accept_non_finite(&job, request.accept_non_finite)?;
        tracing::info!(job = job.job_id, incarnation = job.incarnation, "configured");
        Ok(Response::new(v1::ConfigureReply {}))
    }

    async fn adopt(&self, request: Request<v1::AdoptRequest>) -> Result<Response<v1::AdoptReply>, Status> {
        let _contact = self.contact()?;
        let store = self.store(&request)?;
        let request = request.into_inner();
        let job = job(request.job)?;
        let (incarnation, reached) = (job.incarnation, request.reached);
        // A copy may have a step to apply.
        let version = blocking(store, move |store| store.adopt(&job, reached)).await?;
        tracing::info!(incarnation, version, "taken over");
        Ok(Response::new(v1::AdoptReply { version }))
    }

    #[tracing::instrument(skip_all, fields(ps = self.index))]
    async fn load(&self, request: Request<Streaming<v1::LoadChunk>>) -> Result<Response<v1::LoadReply>, Status> {
        let _contact = self.contact()?;
        let store = self.store(&request)?;
        let mut stream = request.into_inner();
        let Some(first) = stream.message().await? else {
            return Err(missing("first chunk").into());
        };
        let begun = job(first.job).and_then(|job| store.begin_load(&job));
        let mut loading = drained(begun, &mut stream).await?;
        let version = first.version;
        let mut next = Some((first.offset, first.data));
        while let Some((offset, data)) = next {
            let written = loading.write(offset, &data);
            drained(written, &mut stream).await?;
            next = stream.message().await?.map(|chunk| (chunk.offset, chunk.data));
        }
        let elements = blocking(store, move |_| loading.finish(version)).await?;
        tracing::info!(version, elements, "loaded");
        Ok(Response::new(v1::LoadReply { elements }))
    }

    #[tracing::instrument(skip_all, fields(ps = self.index))]
    async fn restore(&self, request: Request<v1::RestoreRequest>) -> Result<Response<v1::RestoreReply>, Status> {
        let _contact = self.contact()?;
        let store = self.store(&request)?;
        let request = request.into_inner();
        let job = job(request.job)?;
        let restored = blocking(store, move |store| {
            store.restore(&job, &request.prefix, request.version, request.slots_optional)
        })
        .await?;
        let (tensors, slots_initialised) = (restored.tensors, restored.slots_initialised);
        Ok(Response::new(v1::RestoreReply {
            tensors,
            slots_initialised,
        }))
    }

    async fn prepare(&self, request: Request<v1::PrepareRequest>) -> Result<Response<v1::PrepareReply>, Status> {
        let steps = self.steps(&request);
        Ok(Response::new(steps.prepare(request.into_inner()).await?))
    }

    type PreparesStream = Answers<v1::PrepareReply>;

    async fn prepares(
        &self,
        request: Request<Streaming<v1::PrepareRequest>>,
    ) -> Result<Response<Self::PreparesStream>, Status> {
        let steps = Arc::new(self.steps(&request));
        let over = steps.over();
        let answer = move |request| {
            let steps = Arc::clone(&steps);
            async move { Ok(steps.prepare(request).await?) }
        };
        Ok(Response::new(rpc::answers(
            request.into_inner(),
            over,
            |_| false,
            answer,
        )))
    }

    #[tracing::instrument(skip_all, fields(ps = self.index))]
    async fn replicate(&self, request: Request<v1::ReplicateRequest>) -> Result<Response<v1::ReplicateReply>, Status> {
        let _contact = self.contact()?;
        let (index, shard) = self.shard(&request)?;
        let request = request.into_inner();
        let job = job(request.job)?;
        // Refused here rather than in the background.
        let store = Arc::clone(&shard.store);
        store.pull(&job, 0)?;
        let mut follower = lock(&shard.follower);
        if !follower.as_ref().is_some_and(|f| f.serves(&job, &request.address)) {
            tracing::info!(index, copy = request.address, "a copy of these variables is made");
            let limit = Duration::from_millis(request.limit_ms.into());
            let security = self.security.clone();
            *follower = Some(Arc::new(Follower::start(
                store,
                security,
                index,
                job,
                request.address,
                limit,
            )));
        }
        Ok(Response::new(v1::ReplicateReply {}))
    }

    async fn follow(&self, request: Request<Streaming<v1::FollowChunk>>) -> Result<Response<v1::FollowReply>, Status> {
        let _contact = self.contact()?;
        let store = self.store(&request)?;
        let mut stream = request.into_inner();
        let first = stream.message().await?.and_then(|first| first.begin);
        let begun = first
            .ok_or_else(|| missing("beginning"))
            .and_then(|begin| store.follow(begin));
        let mut incoming = drained(begun, &mut stream).await?;
        while let Some(chunk) = stream.message().await? {
            let written = incoming.write(chunk.vector, chunk.offset, &chunk.data);
            drained(written, &mut stream).await?;
        }
        blocking(store, move |store| store.followed(incoming)).await?;
        Ok(Response::new(v1::FollowReply {}))
    }

    async fn forget(&self, request: Request<v1::ForgetRequest>) -> Result<Response<v1::ForgetReply>, Status> {
        let _contact = self.contact()?;
        let (index, _) = self.shard(&request)?;
        self.shards.forget(index, &job(request.into_inner().job)?)?;
        Ok(Response::new(v1::ForgetReply {}))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        let steps = self.steps(&request);
        Ok(Response::new(steps.commit(request.into_inner()).await?))
    }

    type CommitsStream = Answers<v1::CommitReply>;

    async fn commits(
        &self,
        request: Request<Streaming<v1::CommitRequest>>,
    ) -> Result<Response<Self::CommitsStream>, Status> {
        let steps = Arc::new(self.steps(&request));
        let over = steps.over();
        let answer = move |request| {
            let steps = Arc::clone(&steps);
            async move { Ok(steps.commit(request).await?) }
        };
        Ok(Response::new(rpc::answers(
            request.into_inner(),
            over,
            |_| false,
            answer,
        )))
    }

    async fn snapshot(&self, request: Request<v1::SnapshotRequest>) -> Result<Response<v1::SnapshotReply>, Status> {
        let _contact = self.contact()?;
        let store = self.store(&request)?;
        let request = request.into_inner();
        let job = job(request.job)?;
        blocking(store, move |store| store.snapshot(&job, request.version)).await?;
        Ok(Response::new(v1::SnapshotReply {}))
    }

    #[tracing::instrument(skip_all, fields(ps = self.index))]
    async fn save(&self, request: Request<v1::SaveRequest>) -> Result<Response<v1::SaveReply>, Status> {
        let _contact = self.contact()?;
        let store = self.store(&request)?;
        let request = request.into_inner();
        let job = job(request.job)?;
        let save = move || {
            store.save(
                &job,
                &request.prefix,
                request.shard,
                request.shard_count,
                request.version,
            )
        };
        let saved = background(save).await?;
        Ok(Response::new(v1::SaveReply {
            tensors: saved.tensors,
            bytes: saved.bytes,
        }))
    }

    async fn shutdown(&self, request: Request<v1::PsShutdownRequest>) -> Result<Response<v1::PsShutdownReply>, Status> {
        let _contact = self.life.contact();
        let request = request.into_inner();
        let held = self.shards.status().into_iter().filter_map(|shard| shard.job);
        if let Some(own) = held.max_by_key(|job| job.incarnation) {
            let asking = job(request.job)?;
            store::belongs(&own, &asking)?;
        }
        tracing::info!(reason = request.reason, "told to leave");
        self.life.leave(Ended::Told(request.reason));
        Ok(Response::new(v1::PsShutdownReply {}))
    }
}

/// How long a pull may wait here: a little less than its caller does, so that the caller hears why it was in vain.
pub(super) fn server_wait(headers: &HeaderMap) -> Duration {
    let asked = headers
        .get("grpc-timeout")
        .and_then(|value| parse_timeout(value.to_str().ok()?));
    asked.map_or(DEFAULT_WAIT, wait_within)
}

/// As [`server_wait`], for a caller who waits for an answer for so long.
pub(super) fn wait_within(limit: Duration) -> Duration {
    limit.saturating_sub((limit / 5).min(Duration::from_millis(500)))
}

/// `1500m`: digits and a unit, as gRPC over HTTP/2 writes it.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count.checked_mul(3600)?),
        "M" => Duration::from_secs(count.checked_mul(60)?),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Of this process, where the system tells.
fn resident_bytes() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return 0;
    };
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_as_grpc_writes_them() {
        assert_eq!(parse_timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "m", "1x", "-1S", "1é", "99999999999999999999S"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
