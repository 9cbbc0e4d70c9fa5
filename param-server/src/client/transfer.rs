//! Bulk transfers: initial values and gradients to a server, values from it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coati_common::rpc::{self, Error, ErrorCode, ServiceError};
use coati_proto::coati::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::single::{PsClient, Retry, timed};
use crate::placement::ServerLayout;
use crate::pool::{CHUNK, Pool};
use crate::store::{Admit, Tag};

/// Chunks gathered ahead of the connection.
const AHEAD: usize = 2;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "tensors are sent from memory as they are: little endian"
);

/// Gathers elements `0 .. length` of an arena from the flat vector, chunk by chunk, for as long as they are wanted.
async fn feed<T>(
    server: &ServerLayout,
    length: usize,
    flat: &[f32],
    pool: &Arc<Pool>,
    sender: mpsc::Sender<T>,
    message: impl Fn(u64, Bytes) -> T,
) {
    // An empty arena still needs its first message.
    let mut start = 0;
    loop {
        let end = length.min(start + CHUNK);
        let mut buffer = pool.take();
        server.gather(start, end, flat, &mut buffer.data);
        if sender
            .send(message(start as u64, Bytes::from_owner(buffer)))
            .await
            .is_err()
        {
            return;
        }
        if end == length {
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
            let call = rpc.load(timed(ReceiverStream::new(receiver), left));
            let call = rpc::call(&self.peer, "load of initial values", left + rpc::call_headroom(), call);
            let feed = feed(server, server.arena_len, flat, pool, sender, message);
            match futures::join!(feed, call).1 {
                Ok(_) => return Ok(()),
                Err(error) => retry.again(error).await?,
            }
        }
    }

    /// Sends this server's part of a contribution.
    pub(super) async fn push(
        &self,
        server: &ServerLayout,
        tag: Tag,
        flat: &[f32],
        pool: &Arc<Pool>,
        limit: Duration,
    ) -> Result<Admit, Error> {
        let mut retry = Retry::new(limit);
        let what = format!("push of version {}", tag.version);
        loop {
            let left = retry.left();
            let (sender, receiver) = mpsc::channel(AHEAD);
            let message = |offset, data| {
                let named = || v1::PushTag {
                    job: self.job(),
                    version: tag.version,
                    replica: tag.replica,
                    sequence: tag.sequence,
                };
                v1::PushChunk {
                    tag: (offset == 0).then(named),
                    offset,
                    data,
                }
            };
            let mut rpc = self.rpc.clone();
            let call = rpc.push(timed(ReceiverStream::new(receiver), left));
            let call = rpc::call(&self.peer, &what, left + rpc::call_headroom(), call);
            let feed = feed(server, server.pushed_len, flat, pool, sender, message);
            match futures::join!(feed, call).1 {
                Ok(reply) if reply.staged => return Ok(Admit::Fresh),
                Ok(reply) if reply.too_old => return Ok(Admit::TooOld),
                Ok(_) => return Ok(Admit::Duplicate),
                Err(error) => retry.again(error).await?,
            }
        }
    }

    /// Receives this server's arena into its pieces of the flat vector; returns its version.
    pub(super) async fn pull(
        &self,
        arena_len: usize,
        pieces: &mut [&mut [f32]],
        min_version: u64,
        moving_averages: bool,
        limit: Duration,
    ) -> Result<u64, Error> {
        let mut retry = Retry::new(limit);
        let what = format!("version {min_version}");
        loop {
            let left = retry.left();
            let request = v1::PullRequest {
                job: self.job(),
                min_version,
                moving_averages,
                replica: self.replica,
            };
            let receiving = self.receive(request, arena_len, pieces, &what, left);
            let received = rpc::with_deadline(&self.peer, &what, left + rpc::call_headroom(), receiving).await?;
            match received {
                Ok(version) => return Ok(version),
                Err(error) => retry.again(error).await?,
            }
        }
    }

    async fn receive(
        &self,
        request: v1::PullRequest,
        arena_len: usize,
        pieces: &mut [&mut [f32]],
        what: &str,
        left: Duration,
    ) -> Result<u64, Error> {
        let service = |error: ServiceError| Error::Service {
            peer: self.peer.clone(),
            what: what.to_owned(),
            error,
        };
        let mismatch = |found: u64| {
            let message = format!("values of element {found} of {arena_len} came out of order");
            service(ServiceError::new(ErrorCode::LayoutMismatch, message))
        };
        let mut rpc = self.rpc.clone();
        let mut stream = rpc::call(
            &self.peer,
            what,
            left + rpc::call_headroom(),
            rpc.pull(timed(request, left)),
        )
        .await?;
        let mut target = Cursor {
            pieces,
            piece: 0,
            within: 0,
            done: 0,
        };
        let mut version = None;
        while let Some(chunk) = stream
            .message()
            .await
            .map_err(|status| service(ServiceError::from(&status)))?
        {
            version.get_or_insert(chunk.version);
            if chunk.data.is_empty() {
                continue;
            }
            if chunk.offset != target.done as u64 || !target.write(&chunk.data) {
                return Err(mismatch(chunk.offset));
            }
        }
        match version {
            Some(version) if target.done == arena_len => Ok(version),
            _ => {
                // Cut off without an error: as if the connection had broken.
                let message = format!("the stream ended after {} of {arena_len} elements", target.done);
                Err(service(ServiceError::new(ErrorCode::Unavailable, message)))
            }
        }
    }
}

/// Writes an arena's bytes to the pieces that make it up, one after the other.
struct Cursor<'a, 'b> {
    pieces: &'a mut [&'b mut [f32]],
    piece: usize,
    within: usize,
    done: usize,
}

impl Cursor<'_, '_> {
    /// False when there is more than the pieces take.
    fn write(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some(piece) = self.pieces.get_mut(self.piece) else {
                return false;
            };
            let room = &mut piece[self.within..];
            let count = room.len().min(bytes.len() / 4);
            if count == 0 && !room.is_empty() {
                return false;
            }
            let (now, later) = bytes.split_at(count * 4);
            bytemuck::cast_slice_mut::<f32, u8>(&mut room[..count]).copy_from_slice(now);
            bytes = later;
            self.within += count;
            self.done += count;
            if count == room.len() {
                self.piece += 1;
                self.within = 0;
            }
        }
        true
    }
}
