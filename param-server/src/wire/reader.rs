use std::io;
use std::pin::Pin;

use bytes::{Buf as _, Bytes};
use coati_common::rpc::{CHUNK_BYTES, ErrorCode, Lane, MESSAGE_LIMIT_BYTES, ServiceError};
use coati_proto::coati::v1;
use http_body::Body as _;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use super::lane::{ALIVE, END, outcome};
use super::{DATA_KEY, PREFIX_BYTES};

/// A message's fields are short; what claims to be longer is no message of ours, and is not held.
const HEAD_LIMIT: usize = 16 << 10;

/// Copied at a time from what has come: both sides of the copy stay in the first cache, where the data is looked at next.
const COPIED: usize = 8 << 10;

/// Read at a time from a lane where it is not known what comes, and how much of it is small.
const LOOK: usize = 512;
const GATHER: usize = 16 << 10;

/// Data that belongs to places smaller than this is read together: a read of its own costs more than a copy.
const WORTH_A_READ: usize = 4 << 10;

/// Takes messages apart as they arrive. Holds no data.
pub(crate) struct Chunks<M> {
    source: Source,
    /// Received and not yet looked at.
    pending: Bytes,
    /// Of a message whose fields have not all come.
    head: Vec<u8>,
    /// Of the current message's data.
    left: usize,
    /// How the other side ended the stream.
    end: Option<Result<(), Status>>,
    message: std::marker::PhantomData<fn() -> M>,
}

enum Source {
    Body(Body),
    Lane(Lane),
}

impl<M: Message + Default> Chunks<M> {
    /// Of a call or an answer over HTTP/2.
    pub(crate) fn of_body(body: Body) -> Self {
        Self::of(Source::Body(body), Bytes::new())
    }

    /// Of what comes next on a lane.
    pub(crate) fn of_lane(lane: Lane) -> Self {
        Self::of(Source::Lane(lane), Bytes::new())
    }

    fn of(source: Source, pending: Bytes) -> Self {
        Self {
            source,
            pending,
            head: Vec::new(),
            left: 0,
            end: None,
            message: std::marker::PhantomData,
        }
    }

    /// What comes next on the same lane are messages of this kind.
    pub(crate) fn followed_by<N: Message + Default>(self) -> Chunks<N> {
        Chunks::of(self.source, self.pending)
    }

    /// Waits without end for the first bytes of what comes next; false where nothing does. Nothing is lost when it is given up.
    pub(crate) async fn awaken(&mut self) -> bool {
        let Source::Lane(lane) = &mut self.source else {
            return true;
        };
        if self.pending.is_empty() {
            let mut bytes = [0; LOOK];
            lane.expect(1);
            let read = lane.read_whenever(&mut bytes).await.unwrap_or(0);
            self.pending = Bytes::copy_from_slice(&bytes[..read]);
        }
        !self.pending.is_empty()
    }

    /// The fields of the next message, and how many bytes of data follow, all of which are to be taken with [`Chunks::data`]
    /// first; nothing after the last.
    pub(crate) async fn head(&mut self) -> Result<Option<(M, usize)>, Status> {
        if self.left > 0 {
            return Err(refused(format!("{} bytes of data that nobody takes", self.left)));
        }
        loop {
            if matches!(self.source, Source::Lane(_)) && self.end.is_some() {
                return Ok(None);
            }
            if self.pending.is_empty() {
                if self.receive(LOOK).await? {
                    continue;
                }
                return if self.head.is_empty() { Ok(None) } else { Err(cut()) };
            }
            let had = self.head.len();
            let taken = self.pending.len().min(HEAD_LIMIT - had);
            self.head.extend_from_slice(&self.pending[..taken]);
            if self.begins_aside() {
                let whole = self.aside().map_err(refused)?;
                let used = whole.map_or(taken, |length| length.saturating_sub(had).min(taken));
                self.pending.advance(used);
                if let Some(length) = whole {
                    if self.head[0] == END {
                        let end = v1::LaneEnd::decode(&self.head[PREFIX_BYTES..length]);
                        let end = end.map_err(|error| refused(format!("not an end of a call: {error}")))?;
                        self.end = Some(outcome(end));
                    }
                    self.head.clear();
                }
                continue;
            }
            if let Some(found) = find_head(&self.head).map_err(refused)? {
                self.pending.advance(found.end.saturating_sub(had).min(taken));
                let fields = M::decode(&self.head[PREFIX_BYTES..found.fields_end])
                    .map_err(|error| refused(format!("not a message of this service: {error}")))?;
                self.head.clear();
                self.left = found.data;
                return Ok(Some((fields, found.data)));
            }
            if self.head.len() >= HEAD_LIMIT {
                return Err(refused(format!(
                    "a message has more than {HEAD_LIMIT} bytes beside its data"
                )));
            }
            self.pending.advance(taken);
        }
    }

    /// Whether what has come of a message is of those that only lanes have.
    fn begins_aside(&self) -> bool {
        matches!(
            (&self.source, self.head.first()),
            (Source::Lane(_), Some(&(END | ALIVE)))
        )
    }

    /// The length of such a message, once it has come as a whole.
    fn aside(&self) -> Result<Option<usize>, String> {
        let Some(&[_, a, b, c, d]) = self.head.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = PREFIX_BYTES.saturating_add(u32::from_be_bytes([a, b, c, d]) as usize);
        if length > HEAD_LIMIT {
            return Err(format!(
                "the end of a call has {length} bytes; at most {HEAD_LIMIT} are read"
            ));
        }
        Ok(Some(length).filter(|&length| length <= self.head.len()))
    }

    /// Puts the next bytes of the message's data into `room`; returns how many, none only where there is no data left or no room.
    pub(crate) async fn data(&mut self, room: &mut [u8]) -> Result<usize, Status> {
        let count = room.len().min(self.left);
        if count == 0 {
            return Ok(0);
        }
        if self.pending.is_empty() {
            let direct = count == self.left || count >= WORTH_A_READ;
            match &mut self.source {
                Source::Lane(lane) if direct => {
                    lane.expect(self.left);
                    let read = lane.read(&mut room[..count]).await.map_err(broken)?;
                    self.left -= read;
                    return if read > 0 { Ok(read) } else { Err(cut()) };
                }
                _ => {
                    while self.pending.is_empty() {
                        if !self.receive(self.left.min(GATHER)).await? {
                            return Err(cut());
                        }
                    }
                }
            }
        }
        let count = count.min(self.pending.len()).min(COPIED);
        room[..count].copy_from_slice(&self.pending[..count]);
        self.pending.advance(count);
        self.left -= count;
        Ok(count)
    }

    /// Reads on to the end, so that the other side gets an error as an answer and not as a broken connection.
    pub(crate) async fn drain(&mut self) {
        if matches!(self.source, Source::Body(_)) {
            while matches!(self.receive(0).await, Ok(true)) {}
            return;
        }
        let mut waste = vec![0; 64 << 10];
        loop {
            let read = if self.left > 0 {
                self.data(&mut waste).await.is_ok()
            } else {
                matches!(self.head().await, Ok(Some(_)))
            };
            if !read {
                return;
            }
        }
    }

    /// How the other side ended the stream; to be asked after its last message.
    pub(crate) fn end(&self) -> Result<(), Status> {
        let unsaid = || Err(Status::unavailable("the stream ended without a status"));
        self.end.clone().unwrap_or_else(unsaid)
    }

    /// Whether a request has come to a good end, after its last message. HTTP/2 itself tells an end from a broken connection.
    pub(crate) fn is_whole(&self) -> bool {
        match &self.source {
            Source::Body(_) => true,
            Source::Lane(_) => matches!(self.end, Some(Ok(()))) && self.is_over(),
        }
    }

    /// Whether all has come of what the other side has to say for now.
    fn is_over(&self) -> bool {
        self.end.is_some() && self.pending.is_empty() && self.left == 0
    }

    /// The lane, where this is one.
    pub(crate) fn lane(&mut self) -> Option<&mut Lane> {
        match &mut self.source {
            Source::Lane(lane) => Some(lane),
            Source::Body(_) => None,
        }
    }

    /// The lane, if it can be used for another call.
    pub(crate) fn into_lane(self) -> Option<Lane> {
        let over = self.is_over();
        match self.source {
            Source::Lane(lane) if over => Some(lane),
            _ => None,
        }
    }

    /// Receives what there is, from a lane so many bytes at most. False at the end.
    async fn receive(&mut self, most: usize) -> Result<bool, Status> {
        let body = match &mut self.source {
            Source::Lane(lane) => {
                let mut bytes = vec![0; most];
                lane.expect(1);
                let read = lane.read(&mut bytes).await.map_err(broken)?;
                bytes.truncate(read);
                self.pending = bytes.into();
                return Ok(read > 0);
            }
            Source::Body(body) => body,
        };
        let next = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        let Some(frame) = next.transpose()? else {
            return Ok(false);
        };
        match frame.into_data() {
            Ok(data) => self.pending = data,
            Err(frame) => {
                let status = frame.trailers_ref().map(Status::from_header_map);
                self.end = status.map(|status| match status {
                    Some(status) if status.code() != tonic::Code::Ok => Err(status),
                    _ => Ok(()),
                });
            }
        }
        Ok(true)
    }
}

fn cut() -> Status {
    Status::unavailable("the stream ended in the middle of a message")
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn broken(error: io::Error) -> Status {
    Status::unavailable(format!("the connection broke: {error}"))
}

fn refused(what: String) -> Status {
    ServiceError::new(ErrorCode::InvalidRequest, what).into()
}

/// Where a message's parts are.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// End of the fields.
    fields_end: usize,
    /// End of the head: where the data begins, or the next message.
    end: usize,
    /// Bytes of data.
    data: usize,
}

/// Looks for the fields of the message that `bytes` begin with; nothing when they have not all come.
fn find_head(bytes: &[u8]) -> Result<Option<Found>, String> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(format!(
            "a message is compressed in a way ({compressed}) that was not agreed on"
        ));
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_LIMIT_BYTES {
        return Err(format!(
            "a message of {length} bytes; at most {MESSAGE_LIMIT_BYTES} are read"
        ));
    }
    // No field may claim what the message does not have.
    let message = &rest[..length.min(rest.len())];
    let whole = rest.len() >= length;
    let mut at = 0;
    while at < length {
        let begun = at;
        let Some(key) = varint(message, &mut at)? else {
            return cut_short(whole);
        };
        if key == u64::from(DATA_KEY) {
            let Some(data) = varint(message, &mut at)? else {
                return cut_short(whole);
            };
            if data != (length - at) as u64 {
                return Err(format!(
                    "data of {data} bytes where the message has {} left",
                    length - at
                ));
            }
            if data > CHUNK_BYTES as u64 {
                return Err(format!("data of {data} bytes; at most {CHUNK_BYTES} make a chunk"));
            }
            return Ok(Some(Found {
                fields_end: PREFIX_BYTES + begun,
                end: PREFIX_BYTES + at,
                data: data as usize,
            }));
        }
        let skipped = match key & 7 {
            0 => {
                if varint(message, &mut at)?.is_none() {
                    return cut_short(whole);
                }
                0
            }
            1 => 8,
            2 => match varint(message, &mut at)? {
                Some(length) => length,
                None => return cut_short(whole),
            },
            5 => 4,
            other => return Err(format!("not a message of this service: wire type {other}")),
        };
        if skipped > (length - at) as u64 {
            return Err("not a message of this service: a field is longer than the message".to_owned());
        }
        at += skipped as usize;
        if at > message.len() {
            return cut_short(whole);
        }
    }
    Ok(Some(Found {
        fields_end: PREFIX_BYTES + length,
        end: PREFIX_BYTES + length,
        data: 0,
    }))
}

fn cut_short(whole: bool) -> Result<Option<Found>, String> {
    if whole {
        Err("not a message of this service: a field is cut short".to_owned())
    } else {
        Ok(None)
    }
}

/// A number as protobuf writes it; nothing when the bytes end before it does.
fn varint(bytes: &[u8], at: &mut usize) -> Result<Option<u64>, String> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let Some(&byte) = bytes.get(*at) else {
            return Ok(None);
        };
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(Some(value));
        }
    }
    Err("not a message of this service: a number of more than 64 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use coati_proto::coati::v1::{Encoding, PushChunk, PushTag};
    use futures::executor::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{head, request_body};

    fn message(offset: u64, data: &[u8]) -> PushChunk {
        PushChunk {
            tag: (offset == 0).then(|| PushTag {
                version: 7,
                ..Default::default()
            }),
            offset,
            encoding: Encoding::Bfloat16.into(),
            elements: 300,
            data: data.to_vec().into(),
        }
    }

    /// As any gRPC library writes it.
    fn plain(message: &PushChunk) -> Vec<u8> {
        let body = message.encode_to_vec();
        [&[0][..], &(body.len() as u32).to_be_bytes(), &body].concat()
    }

    fn ours(message: &PushChunk) -> Vec<u8> {
        let fields = PushChunk {
            data: Bytes::new(),
            ..message.clone()
        };
        [&head(&fields, message.data.len())[..], &message.data].concat()
    }

    fn read(bytes: &[u8], pieces: &[usize]) -> Result<Vec<PushChunk>, Status> {
        let mut rest = bytes.to_vec();
        let mut parts = Vec::new();
        for &piece in pieces {
            let later = rest.split_off(piece.clamp(1, 1 << 20).min(rest.len()));
            parts.push(vec![Bytes::from(std::mem::replace(&mut rest, later))]);
        }
        parts.push(vec![Bytes::from(rest)]);
        let mut chunks = Chunks::<PushChunk>::of_body(request_body(futures::stream::iter(parts)));
        let mut messages: Vec<(PushChunk, Vec<u8>)> = Vec::new();
        block_on(async {
            while let Some((fields, bytes)) = chunks.head().await? {
                let mut data = vec![0; bytes];
                let mut done = 0;
                while done < bytes {
                    done += chunks.data(&mut data[done..]).await?;
                }
                messages.push((fields, data));
            }
            Ok(messages
                .into_iter()
                .map(|(fields, data)| PushChunk {
                    data: data.into(),
                    ..fields
                })
                .collect())
        })
    }

    proptest! {
        #[test]
        fn messages_are_read_however_they_are_split(
            lengths in prop::collection::vec(0usize..3000, 1..6),
            pieces in prop::collection::vec(1usize..700, 0..30),
        ) {
            let messages: Vec<_> = lengths
                .iter()
                .enumerate()
                .map(|(i, &length)| message(i as u64 * 1000, &vec![i as u8; length]))
                .collect();
            let bytes: Vec<u8> = messages.iter().flat_map(ours).collect();
            prop_assert_eq!(&bytes, &messages.iter().flat_map(plain).collect::<Vec<u8>>(), "as gRPC has it");
            prop_assert_eq!(read(&bytes, &pieces).unwrap(), messages);
        }

        #[test]
        fn random_bytes_and_cut_messages_are_errors_or_messages(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..100,
        ) {
            let _ = read(&noise, &[3, 50]);
            let mut bytes = ours(&message(5, &[1; 60]));
            bytes.truncate(cut.min(bytes.len() - 1));
            prop_assert!(bytes.is_empty() || read(&bytes, &[]).is_err());
        }
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_comes() {
        let chunk = |data: usize| {
            let fields = message(1, &[]);
            read(&head(&fields, data), &[]).unwrap_err().message().to_owned()
        };
        assert!(chunk(CHUNK_BYTES + 1).contains("at most 4194304 make a chunk"));
        assert!(chunk(1 << 31).contains("a message of 214748"));
        let endless = [&[0, 0, 16, 0, 0][..], &[0x0a, 0x80, 0x80, 0x20], &vec![0; HEAD_LIMIT]].concat();
        assert!(read(&endless, &[]).unwrap_err().message().contains("beside its data"));
    }
}
