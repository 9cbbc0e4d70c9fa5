use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_common::wall_clock;
use coati_proto::coati::v1;
use coati_proto::coati::v1::parameter_server_server::ParameterServer;
use futures::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status, Streaming};

use super::life::{Contact, Ended, Life};
use crate::optimizer::OptimizerConfig;
use crate::store::{Admit, Consistency, Contributor, Push, Store, Tag};

/// A pull without a deadline of its own waits this long for its version.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);

/// Thin: checks what the wire leaves open, moves work that blocks off the async threads, and asks the store.
pub(super) struct Service {
    index: u32,
    store: Arc<Store>,
    life: Arc<Life>,
}

type PullStream = Pin<Box<dyn Stream<Item = Result<v1::PullChunk, Status>> + Send>>;

impl Service {
    pub(super) fn new(index: u32, store: Arc<Store>, life: Arc<Life>) -> Self {
        Self { index, store, life }
    }

    fn contact(&self) -> Result<Contact, ServiceError> {
        if self.life.is_leaving() {
            return Err(ServiceError::new(
                ErrorCode::ShuttingDown,
                format!("ps-{} is leaving", self.index),
            ));
        }
        Ok(self.life.contact())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        let store = Arc::clone(&self.store);
        let result = tokio::task::spawn_blocking(move || work(&store)).await;
        result.unwrap_or_else(|error| {
            Err(ServiceError::new(
                ErrorCode::Internal,
                format!("internal error: {error}"),
            ))
        })
    }
}

fn missing(what: &str) -> ServiceError {
    ServiceError::new(ErrorCode::InvalidRequest, format!("the request has no {what}"))
}

fn job(job: Option<v1::JobRef>) -> Result<v1::JobRef, ServiceError> {
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
    async fn status(&self, _request: Request<v1::PsStatusRequest>) -> Result<Response<v1::PsStatusReply>, Status> {
        let _contact = self.life.contact();
        let status = self.store.status();
        let state = if self.life.is_leaving() {
            "leaving"
        } else if status.version.is_some() {
            "serving"
        } else if status.job.is_some() {
            "loading"
        } else {
            "waiting"
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
        let looked = self.blocking(move |_| Ok(super::folder::problem(&request, index)));
        let problem = looked.await?;
        Ok(Response::new(v1::CheckFolderReply {
            problem: problem.unwrap_or_default(),
        }))
    }

    #[tracing::instrument(skip_all, fields(ps = self.index))]
    async fn configure(&self, request: Request<v1::ConfigureRequest>) -> Result<Response<v1::ConfigureReply>, Status> {
        let _contact = self.contact()?;
        let request = request.into_inner();
        let consistency = Consistency::try_from(&request)?;
        let job = job(request.job)?;
        if request.ps_index != self.index {
            let message = format!("this is ps-{}, the request is for ps-{}", self.index, request.ps_index);
            return Err(ServiceError::new(ErrorCode::UnknownTask, message)
                .with_hint("the order of addresses in the cluster differs between tasks")
                .into());
        }
        let placement = request.placement.ok_or_else(|| missing("placement"))?;
        let optimizer = OptimizerConfig::decode(&request.optimizer)
            .map_err(|error| ServiceError::new(ErrorCode::InvalidRequest, format!("optimizer: {error}")))?;
        self.store
            .configure(&job, request.ps_index, &placement, optimizer, consistency)?;
        self.store.accept_non_finite(&job, request.accept_non_finite)?;
        tracing::info!(job = job.job_id, incarnation = job.incarnation, "configured");
        Ok(Response::new(v1::ConfigureReply {}))
    }

    async fn adopt(&self, request: Request<v1::AdoptRequest>) -> Result<Response<v1::AdoptReply>, Status> {
        let _contact = self.contact()?;
        let job = job(request.into_inner().job)?;
        let version = self.store.adopt(&job)?;
        tracing::info!(incarnation = job.incarnation, version, "taken over");
        Ok(Response::new(v1::AdoptReply { version }))
    }

    #[tracing::instrument(skip_all, fields(ps = self.index))]
    async fn load(&self, request: Request<Streaming<v1::LoadChunk>>) -> Result<Response<v1::LoadReply>, Status> {
        let _contact = self.contact()?;
        let mut stream = request.into_inner();
        let Some(first) = stream.message().await? else {
            return Err(missing("first chunk").into());
        };
        let begun = job(first.job).and_then(|job| self.store.begin_load(&job));
        let mut loading = drained(begun, &mut stream).await?;
        let version = first.version;
        let mut next = Some((first.offset, first.data));
        while let Some((offset, data)) = next {
            let written = loading.write(offset, &data);
            drained(written, &mut stream).await?;
            next = stream.message().await?.map(|chunk| (chunk.offset, chunk.data));
        }
        let elements = self.blocking(move |_| loading.finish(version)).await?;
        tracing::info!(version, elements, "loaded");
        Ok(Response::new(v1::LoadReply { elements }))
    }

    #[tracing::instrument(skip_all, fields(ps = self.index))]
    async fn restore(&self, request: Request<v1::RestoreRequest>) -> Result<Response<v1::RestoreReply>, Status> {
        let _contact = self.contact()?;
        let request = request.into_inner();
        let job = job(request.job)?;
        let restored = self
            .blocking(move |store| store.restore(&job, &request.prefix, request.version, request.slots_optional))
            .await?;
        let (tensors, slots_initialised) = (restored.tensors, restored.slots_initialised);
        Ok(Response::new(v1::RestoreReply {
            tensors,
            slots_initialised,
        }))
    }

    async fn push(&self, request: Request<Streaming<v1::PushChunk>>) -> Result<Response<v1::PushReply>, Status> {
        let _contact = self.contact()?;
        let mut stream = request.into_inner();
        let Some(first) = stream.message().await? else {
            return Err(missing("first chunk").into());
        };
        let begun = first.tag.ok_or_else(|| missing("tag")).and_then(|tag| {
            let job = job(tag.job)?;
            let tag = Tag {
                replica: tag.replica,
                sequence: tag.sequence,
                version: tag.version,
            };
            self.store.begin_push(&job, tag)
        });
        let admit = match drained(begun, &mut stream).await? {
            Push::Ignored(admit) => {
                while stream.message().await?.is_some() {}
                admit
            }
            Push::Wanted(mut staging) => {
                let mut next = Some((first.offset, first.data));
                while let Some((offset, data)) = next {
                    let written = staging.write(offset, &data);
                    drained(written, &mut stream).await?;
                    next = stream.message().await?.map(|chunk| (chunk.offset, chunk.data));
                }
                staging.finish()?
            }
        };
        Ok(Response::new(v1::PushReply {
            staged: admit == Admit::Fresh,
            too_old: admit == Admit::TooOld,
        }))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        let _contact = self.contact()?;
        let request = request.into_inner();
        let job = job(request.job)?;
        let contributors: Vec<Contributor> = request
            .contributors
            .iter()
            .map(|c| Contributor {
                replica: c.replica,
                sequence: c.sequence,
                samples: c.samples,
            })
            .collect();
        let committed = self
            .blocking(move |store| store.commit(&job, request.version, &contributors, request.drop_others))
            .await?;
        Ok(Response::new(v1::CommitReply {
            version: committed.version,
            learning_rate: committed.learning_rate,
        }))
    }

    type PullStream = PullStream;

    async fn pull(&self, request: Request<v1::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let contact = self.contact()?;
        let wait = server_wait(&request);
        let request = request.into_inner();
        let job = job(request.job)?;
        // Whatever came of it, the snapshot below says it.
        let _ = tokio::time::timeout(wait, self.store.wait_for(&job, request.min_version)).await;
        let (min_version, averages, replica) = (request.min_version, request.moving_averages, request.replica);
        let snapshot = self
            .blocking(move |store| {
                if averages {
                    store.pull_averages(&job, min_version)
                } else if let Some(replica) = replica {
                    store.pull_as(&job, replica, min_version)
                } else {
                    store.pull(&job, min_version)
                }
            })
            .await?;
        let version = snapshot.version();
        let chunks = snapshot.into_chunks().map(|(offset, data)| v1::PullChunk {
            version: 0,
            offset,
            data,
        });
        // A server without any variable still says its version.
        let first = stream::once(async move {
            Ok(v1::PullChunk {
                version,
                ..Default::default()
            })
        });
        let rest = stream::iter(chunks).map(move |chunk| {
            let _open = &contact;
            Ok(chunk)
        });
        Ok(Response::new(Box::pin(first.chain(rest))))
    }

    #[tracing::instrument(skip_all, fields(ps = self.index))]
    async fn save(&self, request: Request<v1::SaveRequest>) -> Result<Response<v1::SaveReply>, Status> {
        let _contact = self.contact()?;
        let request = request.into_inner();
        let job = job(request.job)?;
        let saved = self
            .blocking(move |store| {
                store.save(
                    &job,
                    &request.prefix,
                    request.shard,
                    request.shard_count,
                    request.version,
                )
            })
            .await?;
        Ok(Response::new(v1::SaveReply {
            tensors: saved.tensors,
            bytes: saved.bytes,
        }))
    }

    async fn shutdown(&self, request: Request<v1::PsShutdownRequest>) -> Result<Response<v1::PsShutdownReply>, Status> {
        let _contact = self.life.contact();
        let request = request.into_inner();
        if let Some(own) = self.store.status().job {
            let asking = job(request.job)?;
            if own.job_id != asking.job_id || asking.incarnation < own.incarnation {
                // The right refusal for either is what any other request would get.
                return Err(self
                    .store
                    .begin_load(&asking)
                    .err()
                    .unwrap_or_else(|| missing("job"))
                    .into());
            }
        }
        tracing::info!(reason = request.reason, "told to leave");
        self.life.leave(Ended::Told(request.reason));
        Ok(Response::new(v1::PsShutdownReply {}))
    }
}

/// How long a pull may wait here: a little less than its caller does, so that the caller hears why it was in vain.
fn server_wait<T>(request: &Request<T>) -> Duration {
    let asked = request
        .metadata()
        .get("grpc-timeout")
        .and_then(|value| parse_timeout(value.to_str().ok()?));
    asked.map_or(DEFAULT_WAIT, |timeout| {
        timeout.saturating_sub((timeout / 5).min(Duration::from_millis(500)))
    })
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
