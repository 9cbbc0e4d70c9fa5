//! Bulk transfers: initial values and gradients to a server, values from it.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use coati_common::rpc::{self, Error, ErrorCode, ServiceError};
use coati_proto::coati::v1;
use coati_proto::coati::v1::lane_call::Method;
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;

use super::feedback::Parts;
use super::single::{PsClient, Retry};
use crate::SHARD_KEY;
use crate::placement::{Layout, ServerLayout};
use crate::pool::{CHUNK, Pool};
use crate::store::{Admit, Tag};
use crate::wire::{self, Chunks, Message, PULL, PUSH, from_bf16, write_bf16};

/// Chunks gathered ahead of the connection.
const AHEAD: usize = 2;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "tensors are sent from memory as they are: little endian"
);

/// A chunk of gradients in the form in which it travels.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    /// Of the arena.
    pub(super) elements: Range<usize>,
    pub(super) encoding: v1::Encoding,
    pub(super) data: Bytes,
}

/// Where a contribution's chunks come from. Owned, because the connection may hold them for longer than the call.
#[derive(Clone)]
pub(super) enum Source {
    /// The model's flat vector; gradients as bfloat16 or as they are.
    Flat(Arc<Vec<f32>>, v1::Encoding),
    /// Made before, in the order in which they are sent.
    Packed(Parts),
}

/// The pushed part of an arena in the order in which a backward pass completes it: batch statistics, which the forward pass
/// has made, then gradients from the last variable to the first.
pub(super) fn in_order_of_backward(server: &ServerLayout) -> Vec<Range<usize>> {
    let cut = |range: Range<usize>| {
        let end = range.end;
        range.step_by(CHUNK).map(move |start| start..end.min(start + CHUNK))
    };
    let (trained, pushed) = (server.slotted_len.min(server.pushed_len), server.pushed_len);
    let mut gradients: Vec<_> = cut(0..trained).collect();
    gradients.reverse();
    let mut chunks: Vec<_> = cut(trained..pushed).chain(gradients).collect();
    if chunks.is_empty() {
        // An empty arena still needs its first message.
        chunks.push(0..0);
    }
    chunks
}

/// Parts of the flat vector that are shorter are gathered: a frame of its own costs more than the copy.
const WORTH_A_FRAME: usize = 4 << 10;

/// Elements of the flat vector, to be sent from where they are.
struct Elements(Arc<Vec<f32>>, Range<usize>);

impl AsRef<[u8]> for Elements {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0[self.1.clone()])
    }
}

/// The bytes of a chunk as they travel, in parts.
fn parts_of(
    server: &ServerLayout,
    elements: &Range<usize>,
    flat: &Arc<Vec<f32>>,
    encoding: v1::Encoding,
) -> (v1::Encoding, Vec<Bytes>) {
    if encoding == v1::Encoding::Bfloat16 && elements.end <= server.slotted_len {
        let mut short = Vec::with_capacity(elements.len() * 2);
        for place in server.places(elements.clone()) {
            write_bf16(&flat[place], &mut short);
        }
        return (encoding, vec![short.into()]);
    }
    let (mut parts, mut small) = (Vec::new(), Vec::new());
    for place in server.places(elements.clone()) {
        if place.len() < WORTH_A_FRAME {
            small.extend_from_slice(bytemuck::cast_slice(&flat[place]));
            continue;
        }
        if !small.is_empty() {
            parts.push(std::mem::take(&mut small).into());
        }
        parts.push(Bytes::from_owner(Elements(Arc::clone(flat), place)));
    }
    if !small.is_empty() {
        parts.push(small.into());
    }
    (v1::Encoding::Float32, parts)
}

/// A contribution to server `ps` as messages, made when the connection takes them; counts their data.
fn messages(
    layout: Arc<Layout>,
    ps: usize,
    source: Source,
    tag: v1::PushTag,
    sent: Arc<AtomicU64>,
) -> impl Iterator<Item = Message> + Send + 'static {
    let chunks = layout.servers().get(ps).map_or_else(Vec::new, in_order_of_backward);
    let mut tag = Some(tag);
    (0..).zip(chunks).map(move |(index, elements)| {
        let packed: Option<&Packed> = match &source {
            Source::Packed(parts) => parts.get(ps).and_then(|packed| packed.get(index)),
            Source::Flat(..) => None,
        };
        let elements = packed.map_or(elements, |packed| packed.elements.clone());
        let (encoding, data) = match (packed, &source, layout.servers().get(ps)) {
            (Some(packed), ..) => (packed.encoding, vec![packed.data.clone()]),
            (None, Source::Flat(flat, encoding), Some(server)) => parts_of(server, &elements, flat, *encoding),
            _ => (v1::Encoding::Float32, Vec::new()),
        };
        let bytes = data.iter().map(Bytes::len).sum();
        let topk = encoding == v1::Encoding::Topk;
        let fields = v1::PushChunk {
            tag: tag.take(),
            offset: elements.start as u64,
            encoding: encoding.into(),
            elements: if topk { elements.len() as u32 } else { 0 },
            data: Bytes::new(),
        };
        sent.fetch_add(bytes as u64, Ordering::Relaxed);
        std::iter::once(wire::head(&fields, bytes)).chain(data).collect()
    })
}

/// Gathers an arena from the flat vector, chunk by chunk, for as long as the initial values are wanted.
async fn feed_load(
    server: &ServerLayout,
    flat: &[f32],
    pool: &Arc<Pool>,
    sender: mpsc::Sender<v1::LoadChunk>,
    message: impl Fn(u64, Bytes) -> v1::LoadChunk,
) {
    // An empty arena still needs its first message.
    let mut start = 0;
    loop {
        let end = server.arena_len.min(start + CHUNK);
        let mut buffer = pool.take();
        server.gather(start, end, flat, &mut buffer.data);
        let sent = sender.send(message(start as u64, Bytes::from_owner(buffer))).await;
        if sent.is_err() || end == server.arena_len {
            return;
        }
        start = end;
    }
}

impl PsClient {
    /// Sends this server's part of the initial values.
    pub(super) async fn load(
        &self,
        server: &ServerLayout,
        flat: &[f32],
        version: u64,
        pool: &Arc<Pool>,
        limit: Duration,
    ) -> Result<(), Error> {
        let mut retry = Retry::new(limit);
        loop {
            let left = retry.left();
            let (sender, receiver) = mpsc::channel(AHEAD);
            let message = |offset, data| {
                let job = if offset == 0 { self.job() } else { None };
                v1::LoadChunk {
                    job,
                    version,
                    offset,
                    data,
                }
            };
            let mut rpc = self.rpc.clone();
            let call = rpc.load(self.timed(ReceiverStream::new(receiver), left));
            let call = rpc::call(&self.peer, "load of initial values", left + rpc::call_headroom(), call);
            let feed = feed_load(server, flat, pool, sender, message);
            match futures::join!(feed, call).1 {
                Ok(_) => return Ok(()),
                Err(error) => retry.again(error).await?,
            }
        }
    }

    /// Makes a call of `coati.v1.Transfer`: sends `messages`, returns what is answered.
    async fn transfer<M: prost::Message + Default>(
        &self,
        method: Method,
        messages: impl Stream<Item = Message> + Send + 'static,
        limit: Duration,
    ) -> Result<Chunks<M>, Status> {
        let Some(lanes) = &self.lanes else {
            let path = if method == Method::Push { PUSH } else { PULL };
            let body = self.called(path, wire::request_body(messages), limit).await?;
            return Ok(Chunks::of_body(body));
        };
        let call = v1::LaneCall {
            method: method.into(),
            ps_index: self.index,
            limit_ms: limit.as_millis() as u64,
            token: lanes.token(),
        };
        let mut lane = lanes.take(&self.peer, limit).await?;
        let first = stream::iter([vec![wire::head(&call, 0)]]);
        let last = stream::iter([vec![wire::end(Ok(()))]]);
        let sent = wire::send(&mut lane, first.chain(messages).chain(last)).await;
        let mut answer = Chunks::of_lane(lane);
        let Err(error) = sent else { return Ok(answer) };
        // Who hangs up before it has heard all may have said why.
        if error.kind() != io::ErrorKind::TimedOut && answer.head().await?.is_none() {
            answer.end()?;
        }
        Err(Status::unavailable(format!("the connection broke: {error}")))
    }

    /// After an answer's last message: how it ended.
    fn ended<M: prost::Message + Default>(&self, answer: Chunks<M>) -> Result<(), Status> {
        let end = answer.end();
        if let (Some(lanes), Some(lane)) = (&self.lanes, answer.into_lane()) {
            lanes.give_back(lane);
        }
        end
    }

    /// As [`PsClient::transfer`], over HTTP/2; returns the answer's body.
    async fn called(&self, path: &'static str, body: Body, limit: Duration) -> Result<Body, Status> {
        let mut request = http::Request::new(body);
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = http::Uri::from_static(path);
        let headers = request.headers_mut();
        headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
        let grpc = http::HeaderValue::from_static("application/grpc");
        headers.insert(http::header::CONTENT_TYPE, grpc);
        if let Ok(timeout) = http::HeaderValue::from_str(&grpc_timeout(limit)) {
            headers.insert("grpc-timeout", timeout);
        }
        headers.insert(SHARD_KEY, self.index.into());
        let mut channel = self.channel.clone();
        let failed = Status::from_error;
        std::future::poll_fn(|context| tonic::codegen::Service::poll_ready(&mut channel, context))
            .await
            .map_err(failed)?;
        let response = tonic::codegen::Service::call(&mut channel, request)
            .await
            .map_err(failed)?;
        if let Some(status) = Status::from_header_map(response.headers())
            && status.code() != tonic::Code::Ok
        {
            return Err(status);
        }
        if response.status() != http::StatusCode::OK {
            return Err(Status::unavailable(format!("answered {}", response.status())));
        }
        Ok(Body::new(response.into_body()))
    }

    fn service_error(&self, what: &str, error: ServiceError) -> Error {
        Error::Service {
            peer: self.peer.clone(),
            what: what.to_owned(),
            error,
        }
    }

    /// Sends this server's part of a contribution; adds its bytes to `sent`.
    pub(super) async fn push(
        &self,
        layout: &Arc<Layout>,
        tag: Tag,
        source: Source,
        limit: Duration,
        sent: &Arc<AtomicU64>,
    ) -> Result<Admit, Error> {
        let mut retry = Retry::new(limit);
        loop {
            let left = retry.left();
            let named = self.named(tag);
            let messages = messages(
                Arc::clone(layout),
                self.index as usize,
                source.clone(),
                named,
                Arc::clone(sent),
            );
            match self.push_once(tag.version, stream::iter(messages), left).await {
                Ok(admit) => return Ok(admit),
                Err(error) => retry.again(error).await?,
            }
        }
    }

    /// A contribution's name, with this client's incarnation.
    pub(super) fn named(&self, tag: Tag) -> v1::PushTag {
        v1::PushTag {
            job: self.job(),
            version: tag.version,
            replica: tag.replica,
            sequence: tag.sequence,
        }
    }

    /// One attempt to send a contribution.
    pub(super) async fn push_once(
        &self,
        version: u64,
        messages: impl Stream<Item = Message> + Send + 'static,
        limit: Duration,
    ) -> Result<Admit, Error> {
        let call = async {
            let mut answer = self.transfer::<v1::PushReply>(Method::Push, messages, limit).await?;
            let message = answer.head().await?;
            if message.is_some() {
                answer.head().await?;
            }
            self.ended(answer)?;
            match message {
                Some((reply, _)) => Ok(tonic::Response::new(reply)),
                None => Err(Status::unavailable("no answer")),
            }
        };
        let what = format!("push of version {version}");
        let reply = rpc::call(&self.peer, &what, limit + rpc::call_headroom(), call).await?;
        Ok(match (reply.staged, reply.too_old) {
            (true, _) => Admit::Fresh,
            (false, true) => Admit::TooOld,
            (false, false) => Admit::Duplicate,
        })
    }

    /// Receives this server's arena into its pieces of the flat vector; returns its version, adds its bytes to `received`.
    pub(super) async fn pull(
        &self,
        arena_len: usize,
        pieces: &mut [&mut [f32]],
        wanted: Wanted,
        limit: Duration,
        received: &mut u64,
    ) -> Result<u64, Error> {
        let mut retry = Retry::new(limit);
        let what = format!("version {}", wanted.min_version);
        loop {
            let left = retry.left();
            let request = v1::PullRequest {
                job: self.job(),
                min_version: wanted.min_version,
                moving_averages: wanted.moving_averages,
                replica: self.replica,
                weights: wanted.weights.into(),
            };
            let receiving = self.receive(request, arena_len, pieces, left, received);
            let received = rpc::with_deadline(&self.peer, &what, left + rpc::call_headroom(), receiving).await?;
            match received {
                Ok(version) => return Ok(version),
                Err(status) => {
                    let silent = status.code() == tonic::Code::DeadlineExceeded
                        && status.metadata().get_bin(rpc::METADATA_KEY).is_none();
                    let error = if silent {
                        // The transport's own timer, not an answer.
                        Error::Timeout {
                            peer: self.peer.clone(),
                            what: what.clone(),
                            waited: left,
                        }
                    } else {
                        self.service_error(&what, ServiceError::from(&status))
                    };
                    retry.again(error).await?;
                }
            }
        }
    }

    async fn receive(
        &self,
        request: v1::PullRequest,
        arena_len: usize,
        pieces: &mut [&mut [f32]],
        left: Duration,
        received: &mut u64,
    ) -> Result<u64, Status> {
        let message = vec![wire::head(&request, 0)];
        let mut chunks = self
            .transfer::<v1::PullChunk>(Method::Pull, stream::iter([message]), left)
            .await?;
        let mut target = Cursor::new(pieces);
        let mut version = None;
        while let Some((fields, bytes)) = chunks.head().await? {
            version.get_or_insert(fields.version);
            if bytes > 0 && fields.offset != target.done as u64 / 4 {
                return Err(out_of_order(fields.offset, arena_len));
            }
            let mut left = bytes;
            let mut short = if fields.encoding() == v1::Encoding::Bfloat16 {
                vec![0; bytes]
            } else {
                Vec::new()
            };
            while left > 0 {
                let room = if short.is_empty() {
                    target.room()
                } else {
                    &mut short[bytes - left..]
                };
                let came = chunks.data(room).await?;
                if came == 0 {
                    return Err(out_of_order(target.done as u64 / 4, arena_len));
                }
                if short.is_empty() {
                    target.filled(came);
                }
                left -= came;
                *received += came as u64;
            }
            let mut values = vec![0.0; short.len() / 2];
            from_bf16(&short, &mut values);
            if !target.write(bytemuck::cast_slice(&values)) {
                return Err(out_of_order(target.done as u64 / 4, arena_len));
            }
        }
        self.ended(chunks)?;
        match version {
            Some(version) if target.done == arena_len * 4 => Ok(version),
            // Cut off without an error: as if the connection had broken.
            _ => Err(Status::unavailable(format!(
                "the stream ended after {} of {arena_len} elements",
                target.done / 4
            ))),
        }
    }
}

/// What is asked of a pull.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) min_version: u64,
    pub(super) moving_averages: bool,
    pub(super) weights: v1::Encoding,
}

fn out_of_order(found: u64, arena_len: usize) -> Status {
    let message = format!("values of element {found} of {arena_len} came out of order");
    ServiceError::new(ErrorCode::LayoutMismatch, message).into()
}

/// At most eight digits and a unit, as gRPC over HTTP/2 writes it.
fn grpc_timeout(limit: Duration) -> String {
    if limit.as_millis() < 100_000_000 {
        format!("{}m", limit.as_millis())
    } else {
        format!("{}S", limit.as_secs().min(99_999_999))
    }
}

/// Writes an arena's bytes to the pieces that make it up, one after the other, however they are split.
struct Cursor<'a, 'b> {
    pieces: &'a mut [&'b mut [f32]],
    piece: usize,
    /// Bytes.
    within: usize,
    /// Bytes.
    done: usize,
}

impl<'a, 'b> Cursor<'a, 'b> {
    fn new(pieces: &'a mut [&'b mut [f32]]) -> Self {
        Self {
            pieces,
            piece: 0,
            within: 0,
            done: 0,
        }
    }

    /// Where the next bytes belong; empty when there is nothing more to come.
    fn room(&mut self) -> &mut [u8] {
        while self
            .pieces
            .get(self.piece)
            .is_some_and(|piece| piece.len() * 4 == self.within)
        {
            self.piece += 1;
            self.within = 0;
        }
        match self.pieces.get_mut(self.piece) {
            Some(piece) => &mut bytemuck::cast_slice_mut(piece)[self.within..],
            None => &mut [],
        }
    }

    /// So many bytes of [`Cursor::room`] have come.
    fn filled(&mut self, bytes: usize) {
        self.within += bytes;
        self.done += bytes;
    }

    /// False when there is more than the pieces take.
    fn write(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let room = self.room();
            let count = room.len().min(bytes.len());
            if count == 0 {
                return false;
            }
            let (now, later) = bytes.split_at(count);
            room[..count].copy_from_slice(now);
            bytes = later;
            self.filled(count);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_leave_first_and_then_gradients_from_the_last_to_the_first() {
        let server = ServerLayout {
            arena_len: 3 * CHUNK + 30,
            pushed_len: 3 * CHUNK + 20,
            slotted_len: 2 * CHUNK + 5,
            ..ServerLayout::default()
        };
        let chunks = in_order_of_backward(&server);
        let starts: Vec<_> = chunks.iter().map(|chunk| chunk.start).collect();
        assert_eq!(starts, [2 * CHUNK + 5, 3 * CHUNK + 5, 2 * CHUNK, CHUNK, 0]);
        assert_eq!(chunks.iter().map(Range::len).sum::<usize>(), server.pushed_len);
        assert_eq!(in_order_of_backward(&ServerLayout::default()), [0..0]);
    }

    #[test]
    fn values_land_in_their_pieces_however_they_are_split() {
        let values: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        for step in [1, 3, 7, 40] {
            let (mut a, mut b) = ([0.0; 3], [0.0; 7]);
            let mut pieces = [a.as_mut_slice(), b.as_mut_slice()];
            let mut cursor = Cursor::new(&mut pieces);
            assert!(bytes.chunks(step).all(|part| cursor.write(part)));
            assert!(!cursor.write(&[0]), "full");
            assert_eq!([&a[..], &b[..]].concat(), values);
        }
    }
}
