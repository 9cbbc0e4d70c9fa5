//! Bulk transfers: `coati.v1.Transfer`, whose data is put where it belongs as it arrives and sent from where it is.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use coati_common::rpc::{ErrorCode, ServiceError};
use coati_proto::coati::v1;
use futures::stream;
use http::HeaderMap;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::handlers::{Service, blocking, job, missing, server_wait};
use crate::store::{Admit, Chunk, Push, Staging, Store, Tag};
use crate::wire::{self, Chunks, Message, PULL, PUSH};

/// The store behind the bulk transfers.
#[derive(Clone)]
pub(super) struct Transfer(pub(super) Arc<Service>);

impl NamedService for Transfer {
    const NAME: &'static str = v1::transfer_server::SERVICE_NAME;
}

impl tonic::codegen::Service<http::Request<Body>> for Transfer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = tonic::codegen::BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let response = match parts.uri.path() {
                PUSH => service.push_called(&parts.headers, body).await.map(|reply| {
                    let message = vec![wire::head(&reply, 0)];
                    wire::response(stream::once(async { message }))
                }),
                PULL => service.pull_called(&parts.headers, body).await,
                other => Err(Status::unimplemented(format!("{other}: no such call"))),
            };
            Ok(response.unwrap_or_else(Status::into_http))
        })
    }
}

impl Service {
    async fn push_called(&self, headers: &HeaderMap, body: Body) -> Result<v1::PushReply, Status> {
        self.push(self.store_of(headers), &mut Chunks::of_body(body)).await
    }

    /// Stages a contribution as it arrives. What is refused or not wanted is read to its end all the same.
    pub(super) async fn push(
        &self,
        store: Result<Arc<Store>, ServiceError>,
        chunks: &mut Chunks<v1::PushChunk>,
    ) -> Result<v1::PushReply, Status> {
        let contact = self.contact();
        let pushed = match contact.as_ref().map_err(Clone::clone).and(store) {
            Ok(store) => receive(&store, chunks).await,
            Err(error) => Err(error.into()),
        };
        if !matches!(pushed, Ok(Admit::Fresh)) {
            chunks.drain().await;
        }
        let admit = pushed?;
        Ok(v1::PushReply {
            staged: admit == Admit::Fresh,
            too_old: admit == Admit::TooOld,
        })
    }

    async fn pull_called(&self, headers: &HeaderMap, body: Body) -> Result<http::Response<Body>, Status> {
        let Some((request, _)) = Chunks::<v1::PullRequest>::of_body(body).head().await? else {
            return Err(missing("message").into());
        };
        let wait = server_wait(headers);
        Ok(wire::response(stream::iter(
            self.pull(self.store_of(headers)?, request, wait).await?,
        )))
    }

    /// The messages of an answer to `request`, once the version that it asks for is there, or `wait` is over.
    pub(super) async fn pull(
        &self,
        store: Arc<Store>,
        request: v1::PullRequest,
        wait: Duration,
    ) -> Result<impl Iterator<Item = Message> + Send + 'static, Status> {
        let contact = self.contact()?;
        let weights = match request.weights() {
            v1::Encoding::Topk => {
                return Err(ServiceError::new(
                    ErrorCode::InvalidRequest,
                    "variables cannot be sent as their largest elements alone",
                )
                .into());
            }
            _ if request.moving_averages => v1::Encoding::Float32,
            weights => weights,
        };
        let job = job(request.job)?;
        // Whatever came of it, the snapshot below says it.
        let _ = tokio::time::timeout(wait, store.wait_for(&job, request.min_version)).await;
        let (min_version, averages, replica) = (request.min_version, request.moving_averages, request.replica);
        let (snapshot, trainable) = blocking(store, move |store| {
            let snapshot = if averages {
                store.pull_averages(&job, min_version)?
            } else if let Some(replica) = replica {
                store.pull_as(&job, replica, min_version)?
            } else {
                store.pull(&job, min_version)?
            };
            Ok((snapshot, store.trainable(&job)?))
        })
        .await?;
        // A server without any variable still says its version.
        let first = v1::PullChunk {
            version: snapshot.version(),
            ..Default::default()
        };
        let first = vec![wire::head(&first, 0)];
        let rest = snapshot
            .into_chunks(weights, trainable)
            .map(move |(offset, encoding, data)| {
                let _open = &contact;
                let fields = v1::PullChunk {
                    version: 0,
                    offset,
                    encoding: encoding.into(),
                    data: bytes::Bytes::new(),
                };
                vec![wire::head(&fields, data.len()), data]
            });
        Ok(std::iter::once(first).chain(rest))
    }
}

async fn receive(store: &Store, chunks: &mut Chunks<v1::PushChunk>) -> Result<Admit, Status> {
    let Some((first, bytes)) = chunks.head().await? else {
        return Err(missing("first chunk").into());
    };
    let tag = first.tag.clone().ok_or_else(|| missing("tag"))?;
    let job = job(tag.job)?;
    let tag = Tag {
        replica: tag.replica,
        sequence: tag.sequence,
        version: tag.version,
    };
    let mut staging = match store.begin_push(&job, tag)? {
        Push::Ignored(admit) => return Ok(admit),
        Push::Wanted(staging) => staging,
    };
    let mut next = Some((first, bytes));
    while let Some((chunk, bytes)) = next {
        begin(&mut staging, &chunk, bytes)?;
        let mut left = bytes;
        while left > 0 {
            let came = chunks.data(staging.room()).await?;
            staging.filled(came)?;
            left -= came;
        }
        next = chunks.head().await?;
    }
    if !chunks.is_whole() {
        return Err(Status::unavailable("the stream ended before its end was said"));
    }
    Ok(staging.finish()?)
}

fn begin(staging: &mut Staging, chunk: &v1::PushChunk, bytes: usize) -> Result<(), ServiceError> {
    let encoding = v1::Encoding::try_from(chunk.encoding).map_err(|_| {
        let message = format!("encoding {} of a gradient is not known here", chunk.encoding);
        ServiceError::new(ErrorCode::InvalidRequest, message)
    })?;
    staging.chunk(Chunk {
        offset: chunk.offset,
        encoding,
        elements: chunk.elements,
        bytes,
    })
}
