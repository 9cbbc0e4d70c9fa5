use std::pin::Pin;

use bytes::{Buf as _, Bytes};
use coati_common::rpc::{CHUNK_BYTES, ErrorCode, MESSAGE_LIMIT_BYTES, ServiceError};
use http::HeaderMap;
use http_body::Body as _;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use super::{DATA_KEY, PREFIX_BYTES};

/// A message's fields are short; what claims to be longer is no message of ours, and is not held.
const HEAD_LIMIT: usize = 16 << 10;

/// What comes next of a stream of messages.
#[derive(Debug)]
pub(crate) enum Part<M> {
    /// A message begins: its fields, and how many bytes of data follow.
    Head(M, usize),
    /// The next bytes of that data, split wherever the connection split them.
    Data(Bytes),
}

/// Takes messages apart as they arrive. Holds no data.
pub(crate) struct Chunks<M> {
    body: Body,
    /// Received and not yet looked at.
    pending: Bytes,
    /// Of a message whose fields have not all come.
    head: Vec<u8>,
    /// Of the current message's data.
    left: usize,
    trailers: Option<HeaderMap>,
    message: std::marker::PhantomData<fn() -> M>,
}

impl<M: Message + Default> Chunks<M> {
    pub(crate) fn new(body: Body) -> Self {
        Self {
            body,
            pending: Bytes::new(),
            head: Vec::new(),
            left: 0,
            trailers: None,
            message: std::marker::PhantomData,
        }
    }

    /// The next part; nothing after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Part<M>>, Status> {
        loop {
            if self.pending.is_empty() {
                if !self.receive().await? {
                    return if self.left > 0 || !self.head.is_empty() {
                        Err(Status::unavailable("the stream ended in the middle of a message"))
                    } else {
                        Ok(None)
                    };
                }
                continue;
            }
            if self.left > 0 {
                let data = self.pending.split_to(self.left.min(self.pending.len()));
                self.left -= data.len();
                return Ok(Some(Part::Data(data)));
            }
            let had = self.head.len();
            let taken = self.pending.len().min(HEAD_LIMIT - had);
            self.head.extend_from_slice(&self.pending[..taken]);
            if let Some(found) = find_head(&self.head).map_err(refused)? {
                self.pending.advance(found.end.saturating_sub(had).min(taken));
                let fields = M::decode(&self.head[PREFIX_BYTES..found.fields_end])
                    .map_err(|error| refused(format!("not a message of this service: {error}")))?;
                self.head.clear();
                self.left = found.data;
                return Ok(Some(Part::Head(fields, found.data)));
            }
            if self.head.len() >= HEAD_LIMIT {
                return Err(refused(format!(
                    "a message has more than {HEAD_LIMIT} bytes beside its data"
                )));
            }
            self.pending.advance(taken);
        }
    }

    /// Reads on to the end, so that the other side gets an error as an answer and not as a broken connection.
    pub(crate) async fn drain(&mut self) {
        while matches!(self.receive().await, Ok(true)) {}
    }

    /// How the other side ended the stream; to be asked after its last part.
    pub(crate) fn end(&self) -> Result<(), Status> {
        match self.trailers.as_ref().map(Status::from_header_map) {
            Some(Some(status)) if status.code() != tonic::Code::Ok => Err(status),
            Some(_) => Ok(()),
            None => Err(Status::unavailable("the stream ended without a status")),
        }
    }

    /// False at the end.
    async fn receive(&mut self) -> Result<bool, Status> {
        let next = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await;
        let Some(frame) = next.transpose()? else {
            return Ok(false);
        };
        match frame.into_data() {
            Ok(data) => self.pending = data,
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
        Ok(true)
    }
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
            parts.push(Bytes::from(std::mem::replace(&mut rest, later)));
        }
        parts.push(Bytes::from(rest));
        let mut chunks = Chunks::<PushChunk>::new(request_body(futures::stream::iter(parts)));
        let mut messages: Vec<(PushChunk, Vec<u8>)> = Vec::new();
        block_on(async {
            while let Some(part) = chunks.next().await? {
                match part {
                    Part::Head(fields, _) => messages.push((fields, Vec::new())),
                    Part::Data(data) => messages.last_mut().unwrap().1.extend_from_slice(&data),
                }
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
