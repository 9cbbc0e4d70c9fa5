use std::sync::Arc;
use std::time::Duration;

use coati_common::rpc::{self, Channel, Dialogue, Error, ErrorCode, MESSAGE_LIMIT_BYTES, Peer, Security, line};
use coati_proto::coati::v1;
use coati_proto::coati::v1::parameter_server_client::ParameterServerClient;
use futures::stream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Request;

use super::lanes::Lanes;
use crate::SHARD_KEY;
use crate::store::{Committed, Consistency, Contributor, Restored, Saved};

/// Broken connections are tried again for so long: a server that was killed does not come back at once.
const RETRY_FOR: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Tries again while the connection is broken and time is left.
pub(super) struct Retry {
    started: Instant,
    limit: Duration,
    pause: Duration,
}

impl Retry {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            started: Instant::now(),
            limit,
            pause: FIRST_PAUSE,
        }
    }

    pub(super) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.started.elapsed())
    }

    /// Pauses, or gives the error back when trying again is useless.
    pub(super) async fn again(&mut self, error: Error) -> Result<(), Error> {
        let spent = self.started.elapsed();
        if error.code() != Some(ErrorCode::Unavailable) || spent + self.pause >= self.limit.min(RETRY_FOR) {
            return Err(error);
        }
        tracing::debug!(%error, "trying again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

macro_rules! unary {
    ($client:expr, $what:expr, $limit:expr, $method:ident, $request:expr) => {{
        let (client, request, mut retry) = ($client, $request, Retry::new($limit));
        loop {
            let left = retry.left();
            let mut rpc = client.rpc.clone();
            let call = rpc.$method(client.timed(request.clone(), left));
            match rpc::call(&client.peer, $what, left + rpc::call_headroom(), call).await {
                Ok(reply) => break Ok(reply),
                Err(error) => {
                    if let Err(error) = retry.again(error).await {
                        break Err(error);
                    }
                }
            }
        }
    }};
}

/// As `unary`, on a stream that stays open: what is asked at each step.
macro_rules! on_stream {
    ($client:expr, $what:expr, $limit:expr, $method:ident, $stream:ident, $request:expr) => {{
        let (client, request, mut retry) = ($client, $request, Retry::new($limit));
        loop {
            let left = retry.left();
            let call = async {
                let mut rpc = client.rpc.clone();
                if !line::carries_streams() {
                    return rpc.$method(client.timed(request.clone(), left)).await;
                }
                let begin = |requests| async move { rpc.$stream(client.meant(requests)).await };
                Dialogue::ask(&mut *client.$stream.lock().await, begin, request.clone()).await
            };
            match rpc::call(&client.peer, $what, left + rpc::call_headroom(), call).await {
                Ok(reply) => break Ok(reply),
                Err(error) => {
                    if let Err(error) = retry.again(error).await {
                        break Err(error);
                    }
                }
            }
        }
    }};
}

/// A stream that is open, if one is.
type Open<Q, A> = Arc<Mutex<Option<Dialogue<Q, A>>>>;

/// What a server is told before training.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// Where variables live.
    pub placement: v1::Placement,
    /// Serialised `object_detection.protos.Optimizer`.
    pub optimizer: bytes::Bytes,
    /// How old gradients may be, and what their age changes.
    pub consistency: Consistency,
    /// Stage gradients with NaN or infinity like any other instead of refusing them.
    pub accept_non_finite: bool,
    /// Keep a copy, that follows its original until it is adopted.
    pub copy: bool,
}

/// One parameter server. Cloning is cheap; clones share the connection.
#[derive(Clone, Debug)]
pub struct PsClient {
    pub(super) peer: Peer,
    pub(super) rpc: ParameterServerClient<Channel>,
    /// The same connection, for bulk data where there are no lanes.
    pub(super) channel: Channel,
    /// Nothing within a process.
    pub(super) lanes: Option<Lanes>,
    pub(super) job: v1::JobRef,
    pub(super) index: u32,
    /// Rank that pulls, if it is a replica's connection.
    pub(super) replica: Option<u32>,
    prepares: Open<v1::PrepareRequest, v1::PrepareReply>,
    commits: Open<v1::CommitRequest, v1::CommitReply>,
}

impl PsClient {
    /// Connects to server `index` with the credentials of this process, trying until `deadline`.
    pub async fn connect(index: u32, address: &str, job: v1::JobRef, deadline: Duration) -> Result<Self, Error> {
        Self::connect_as(&Security::of_this_process(), index, address, job, deadline).await
    }

    /// As [`PsClient::connect`], with credentials given.
    pub async fn connect_as(
        security: &Security,
        index: u32,
        address: &str,
        job: v1::JobRef,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let peer = Peer::ps(index, address);
        let channel = rpc::connect_as(security, &peer, deadline).await?;
        Ok(Self::on(channel, security, peer, index, job))
    }

    /// As [`PsClient::connect`] with a single attempt: to look whether it is there now.
    pub async fn connect_once(index: u32, address: &str, job: v1::JobRef, limit: Duration) -> Result<Self, Error> {
        let peer = Peer::ps(index, address);
        let channel = rpc::connect_once(&peer, limit).await?;
        Ok(Self::on(channel, &Security::of_this_process(), peer, index, job))
    }

    fn on(channel: Channel, security: &Security, peer: Peer, index: u32, job: v1::JobRef) -> Self {
        let rpc = ParameterServerClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
            .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
        Self {
            peer,
            rpc,
            channel,
            lanes: line::carries_streams().then(|| Lanes::new(security)),
            job,
            index,
            replica: None,
            prepares: Arc::default(),
            commits: Arc::default(),
        }
    }

    /// A request that carries its deadline, and whose variables it is about.
    pub(super) fn timed<T>(&self, message: T, limit: Duration) -> Request<T> {
        let mut request = self.meant(message);
        request.set_timeout(limit);
        request
    }

    /// A request that says whose variables it is about.
    fn meant<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(SHARD_KEY, self.index.into());
        request
    }

    /// Who this is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The same connection, speaking for another incarnation.
    #[must_use]
    pub fn with_job(&self, job: v1::JobRef) -> Self {
        Self { job, ..self.clone() }
    }

    #[allow(clippy::unnecessary_wraps, reason = "as messages have it")]
    pub(super) fn job(&self) -> Option<v1::JobRef> {
        Some(self.job.clone())
    }

    /// Who it is and in what state; answers before it is configured too.
    pub async fn status(&self, limit: Duration) -> Result<v1::PsStatusReply, Error> {
        unary!(self, "status", limit, status, v1::PsStatusRequest {})
    }

    /// As [`PsClient::status`], asked once: to look whether it is there now.
    pub async fn status_once(&self, limit: Duration) -> Result<v1::PsStatusReply, Error> {
        let mut rpc = self.rpc.clone();
        let call = rpc.status(self.timed(v1::PsStatusRequest {}, limit));
        rpc::call(&self.peer, "status", limit, call).await
    }

    /// Whether it sees the caller's folder, with this file in it, and can write there; what is wrong, in words.
    pub async fn check_folder(
        &self,
        folder: &str,
        witness: &str,
        content: &[u8],
        limit: Duration,
    ) -> Result<Option<String>, Error> {
        let request = v1::CheckFolderRequest {
            folder: folder.to_owned(),
            witness: witness.to_owned(),
            content: content.to_owned().into(),
        };
        let reply = unary!(self, "a look at the job's folder", limit, check_folder, request)?;
        Ok(Some(reply.problem).filter(|problem| !problem.is_empty()))
    }

    /// Takes placement and optimiser; repeating it within an incarnation changes nothing.
    pub async fn configure(&self, configuration: &Configuration, limit: Duration) -> Result<(), Error> {
        let request = v1::ConfigureRequest {
            job: self.job(),
            ps_index: self.index,
            placement: Some(configuration.placement.clone()),
            optimizer: configuration.optimizer.clone(),
            max_staleness: configuration.consistency.max_staleness,
            scale_learning_rate: configuration.consistency.scale_learning_rate,
            delay_compensation: configuration.consistency.delay_compensation.map(Into::into),
            accept_non_finite: configuration.accept_non_finite,
            copy: configuration.copy,
        };
        unary!(self, "configure", limit, configure, request).map(|_| ())
    }

    /// Takes over what it holds, for a coordinator that was started again; returns the version.
    pub async fn adopt(&self, reached: u64, limit: Duration) -> Result<u64, Error> {
        let job = self.job();
        let request = v1::AdoptRequest { job, reached };
        unary!(self, "adoption", limit, adopt, request).map(|reply| reply.version)
    }

    /// Reads its pieces from a checkpoint that it can see under the same path.
    pub async fn restore(
        &self,
        prefix: &str,
        version: u64,
        slots_optional: bool,
        limit: Duration,
    ) -> Result<Restored, Error> {
        let request = v1::RestoreRequest {
            job: self.job(),
            prefix: prefix.to_owned(),
            version,
            slots_optional,
        };
        let reply = unary!(self, "restore", limit, restore, request)?;
        Ok(Restored {
            tensors: reply.tensors,
            slots_initialised: reply.slots_initialised,
        })
    }

    /// Prepares the step of these contributions; true when its copy has it, too.
    pub async fn prepare(&self, version: u64, contributors: &[Contributor], limit: Duration) -> Result<bool, Error> {
        let request = v1::PrepareRequest {
            job: self.job(),
            version,
            contributors: wired(contributors),
        };
        let what = format!("preparing the step from version {version}");
        on_stream!(self, &what, limit, prepare, prepares, request).map(|reply| reply.copied)
    }

    /// Lets it send all that it holds, and every step from now on, to the server at `address`, which was configured to keep
    /// the copy. A step waits for the copy no longer than `patience`.
    pub async fn replicate(&self, address: &str, patience: Duration, limit: Duration) -> Result<(), Error> {
        let request = v1::ReplicateRequest {
            job: self.job(),
            address: address.to_owned(),
            limit_ms: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX),
        };
        unary!(self, "replication", limit, replicate, request).map(|_| ())
    }

    /// Lets go of a copy that nobody keeps up to date, and of what is left of earlier incarnations.
    pub async fn forget(&self, limit: Duration) -> Result<(), Error> {
        let request = v1::ForgetRequest { job: self.job() };
        unary!(self, "forgetting", limit, forget, request).map(|_| ())
    }

    /// Hands a copy what its original holds, or a step. Not repeated: who hands it over begins anew.
    pub(crate) async fn follow(
        &self,
        begin: v1::FollowBegin,
        chunks: Vec<v1::FollowChunk>,
        limit: Duration,
    ) -> Result<(), Error> {
        let first = v1::FollowChunk {
            begin: Some(begin),
            ..v1::FollowChunk::default()
        };
        let stream = stream::iter(std::iter::once(first).chain(chunks));
        let mut rpc = self.rpc.clone();
        let call = rpc.follow(self.timed(stream, limit));
        rpc::call(&self.peer, "the copy of a step", limit, call)
            .await
            .map(|_| ())
    }

    /// Applies exactly these contributions.
    pub async fn commit(
        &self,
        version: u64,
        contributors: &[Contributor],
        drop_others: bool,
        limit: Duration,
    ) -> Result<Committed, Error> {
        let request = v1::CommitRequest {
            job: self.job(),
            version,
            contributors: wired(contributors),
            drop_others,
        };
        let what = format!("commit of version {version}");
        let reply = on_stream!(self, &what, limit, commit, commits, request)?;
        Ok(Committed {
            version: reply.version,
            learning_rate: reply.learning_rate,
        })
    }

    /// Keeps the current version, which must be `version`, for a [`PsClient::save`] that comes later.
    pub async fn snapshot(&self, version: u64, limit: Duration) -> Result<(), Error> {
        let request = v1::SnapshotRequest {
            job: self.job(),
            version,
        };
        let what = format!("snapshot of version {version}");
        unary!(self, &what, limit, snapshot, request).map(|_| ())
    }

    /// Writes its data file (`shard` of `shard_count`) of a checkpoint of `version`.
    pub async fn save(
        &self,
        prefix: &str,
        shard: u32,
        shard_count: u32,
        version: u64,
        limit: Duration,
    ) -> Result<Saved, Error> {
        let request = v1::SaveRequest {
            job: self.job(),
            prefix: prefix.to_owned(),
            shard,
            shard_count,
            version,
        };
        let reply = unary!(self, "save", limit, save, request)?;
        Ok(Saved {
            tensors: reply.tensors,
            bytes: reply.bytes,
        })
    }

    /// Tells it to leave. Not repeated: a server that does not answer has left.
    pub async fn shutdown(&self, reason: &str, limit: Duration) -> Result<(), Error> {
        let request = v1::PsShutdownRequest {
            job: self.job(),
            reason: reason.to_owned(),
        };
        let mut rpc = self.rpc.clone();
        rpc::call(&self.peer, "shutdown", limit, rpc.shutdown(self.timed(request, limit)))
            .await
            .map(|_| ())
    }
}

fn wired(contributors: &[Contributor]) -> Vec<v1::Contributor> {
    contributors.iter().map(|&by| by.into()).collect()
}
