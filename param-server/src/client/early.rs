//! Gradients that leave while the backward pass that makes them goes on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use coati_common::rpc;
use coati_proto::coati::v1::{self, Encoding};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::transfer::in_order_of_backward;
use super::{Error, PsGroup};
use crate::pool::Buffer;
use crate::store::{Admit, Covered, Tag};
use crate::wire::{self, Gradients, Message, write_bf16};

/// A contribution of which parts are sent as soon as they are known. Dropping it gives it up: servers keep nothing of it.
pub struct Pushing {
    group: PsGroup,
    tag: Tag,
    runtime: Handle,
    limit: Duration,
    /// Begun with the first part; empty when nothing is sent before its time.
    servers: Vec<Server>,
}

/// What has come for one server.
struct Server {
    /// In arena order.
    chunks: Vec<Chunk>,
    covered: Covered,
    first: Option<v1::PushTag>,
    sender: mpsc::UnboundedSender<Message>,
    answer: JoinHandle<Result<Admit, rpc::Error>>,
}

struct Chunk {
    elements: Range<usize>,
    /// Elements that have not come.
    missing: usize,
    /// Until it is sent.
    buffer: Option<Buffer>,
}

impl Drop for Pushing {
    fn drop(&mut self) {
        for server in &self.servers {
            server.answer.abort();
        }
    }
}

impl PsGroup {
    /// Begins a contribution that is to be sent in parts, in whatever order they become known; `limit` is for all of it, the
    /// making of the parts included. Calls go on in `runtime` meanwhile.
    pub fn begin_push(&self, tag: Tag, runtime: Handle, limit: Duration) -> Pushing {
        Pushing {
            group: self.clone(),
            tag,
            runtime,
            limit,
            servers: Vec::new(),
        }
    }
}

impl Pushing {
    /// Takes elements of the flat vector that will not change any more; what comes twice counts once. A chunk leaves when it is
    /// whole. With top-k, which chooses among a whole chunk and what was left before, nothing leaves before its time.
    pub fn ready(&mut self, elements: Range<usize>, values: &[f32]) {
        let short = match self.group.compression().gradients {
            Gradients::TopK { .. } => return,
            Gradients::Bfloat16 => true,
            Gradients::Float32 => false,
        };
        if values.len() != elements.len() {
            return;
        }
        if self.servers.is_empty() {
            self.servers = self.start();
        }
        let layout = Arc::clone(self.group.shared_layout());
        for (server, place) in self.servers.iter_mut().zip(layout.servers()) {
            for piece in &place.pieces {
                let first = piece.flat.max(elements.start);
                let last = (piece.flat + piece.length).min(elements.end);
                if first < last {
                    let arena = piece.offset + (first - piece.flat);
                    let values = &values[first - elements.start..last - elements.start];
                    server.take(arena.min(place.pushed_len), values, place.pushed_len, &self.group);
                }
            }
            server.send_whole(place.slotted_len, short, &self.group);
        }
    }

    /// Sends what has not left, from the whole vector, and waits for all servers until `limit`. What could not be sent in parts,
    /// because a connection broke, is sent again as a whole, within another `limit`.
    pub async fn finish(mut self, flat: &Arc<Vec<f32>>, limit: Duration) -> Result<Admit, Error> {
        let layout = Arc::clone(self.group.shared_layout());
        let short = self.group.compression().gradients == Gradients::Bfloat16;
        let servers = std::mem::take(&mut self.servers);
        if servers.is_empty() || flat.len() != layout.flat_len() {
            return self.group.push_shared(self.tag, flat, limit).await;
        }
        let mut answers = Vec::new();
        for (mut server, place) in servers.into_iter().zip(layout.servers()) {
            for chunk in &mut server.chunks {
                if chunk.missing > 0 {
                    let buffer = chunk.buffer.get_or_insert_with(|| self.group.pool().take_whole());
                    buffer.data.clear();
                    place.gather(chunk.elements.start, chunk.elements.end, flat, &mut buffer.data);
                    chunk.missing = 0;
                }
            }
            server.send_whole(place.slotted_len, short, &self.group);
            // The end of the stream: the sender goes with the rest.
            answers.push(server.answer);
        }
        let deadline = tokio::time::Instant::now() + limit;
        let mut admitted = Vec::new();
        for mut answer in answers {
            match tokio::time::timeout_at(deadline, &mut answer).await {
                Ok(Ok(Ok(admit))) => admitted.push(admit),
                Ok(Ok(Err(error))) if !error.retryable() => return Err(error.into()),
                // A connection broke, or is of no use. Servers that have it all will say so, others by name that they do not
                // answer.
                Ok(Ok(Err(_)) | Err(_)) | Err(_) => {
                    answer.abort();
                    return self.group.push_shared(self.tag, flat, limit).await;
                }
            }
        }
        Ok(Admit::of_all(&admitted))
    }

    fn start(&self) -> Vec<Server> {
        let layout = self.group.shared_layout();
        self.group
            .clients()
            .iter()
            .zip(layout.servers())
            .map(|(client, place)| {
                let (sender, receiver) = mpsc::unbounded_channel();
                let messages = UnboundedReceiverStream::new(receiver);
                let (client, version, limit) = (client.clone(), self.tag.version, self.limit);
                let first = client.named(self.tag);
                let answer = self
                    .runtime
                    .spawn(async move { client.push_once(version, messages, limit).await });
                let mut chunks: Vec<Chunk> = in_order_of_backward(place)
                    .into_iter()
                    .map(|elements| Chunk {
                        missing: elements.len(),
                        // A server without anything to push still hears of the contribution.
                        buffer: elements.is_empty().then(|| self.group.pool().take()),
                        elements,
                    })
                    .collect();
                chunks.sort_by_key(|chunk| chunk.elements.start);
                Server {
                    chunks,
                    covered: Covered::default(),
                    first: Some(first),
                    sender,
                    answer,
                }
            })
            .collect()
    }
}

impl Server {
    /// Takes values from arena element `start`, as far as they are pushed at all.
    fn take(&mut self, start: usize, values: &[f32], pushed: usize, group: &PsGroup) {
        let values = &values[..values.len().min(pushed.saturating_sub(start))];
        if self.covered.add(start..start + values.len()).is_err() {
            return;
        }
        let end = start + values.len();
        let from = self.chunks.partition_point(|chunk| chunk.elements.end <= start);
        for chunk in &mut self.chunks[from..] {
            let (first, last) = (chunk.elements.start.max(start), chunk.elements.end.min(end));
            if first >= last {
                break;
            }
            let buffer = chunk.buffer.get_or_insert_with(|| group.pool().take_whole());
            let at = first - chunk.elements.start;
            buffer.data[at..at + (last - first)].copy_from_slice(&values[first - start..last - start]);
            chunk.missing -= last - first;
        }
    }

    /// Sends the chunks that are whole. A failure to send is told by the answer.
    fn send_whole(&mut self, slotted: usize, short: bool, group: &PsGroup) {
        for chunk in self.chunks.iter_mut().rev().filter(|chunk| chunk.missing == 0) {
            let Some(mut buffer) = chunk.buffer.take() else {
                continue;
            };
            buffer.data.truncate(chunk.elements.len());
            let (encoding, data) = if short && chunk.elements.end <= slotted {
                let mut data = Vec::with_capacity(chunk.elements.len() * 2);
                write_bf16(&buffer.data, &mut data);
                (Encoding::Bfloat16, Bytes::from(data))
            } else {
                (Encoding::Float32, Bytes::from_owner(buffer))
            };
            let fields = v1::PushChunk {
                tag: self.first.take(),
                offset: chunk.elements.start as u64,
                encoding: encoding.into(),
                ..Default::default()
            };
            group.count_pushed().fetch_add(data.len() as u64, Ordering::Relaxed);
            let head = wire::head(&fields, data.len());
            let _ = self.sender.send(vec![head, data]);
        }
    }
}
