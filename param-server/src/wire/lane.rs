//! Messages on a lane, as `LaneCall` in the wire's definition describes them.

use std::io;
use std::pin::pin;

use bytes::Bytes;
use coati_common::rpc::{Lane, METADATA_KEY};
use coati_proto::coati::v1;
use futures::{FutureExt as _, Stream, StreamExt as _};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::{Message, framed};

/// First byte of the end of a call's messages, or of its answer's.
pub(super) const END: u8 = 2;
/// First byte of a sign of life.
pub(super) const ALIVE: u8 = 3;

/// Small messages are sent with the next ones, as far as those are known.
const TOGETHER: usize = 64 << 10;

/// What keeps the other side from giving up where there is nothing to say.
pub(crate) fn alive() -> Bytes {
    Bytes::from_static(&[ALIVE, 0, 0, 0, 0])
}

/// The end of a call's messages, or of its answer's, and how it went.
pub(crate) fn end(outcome: Result<(), &Status>) -> Bytes {
    let fields = outcome.err().map_or_else(v1::LaneEnd::default, |status| v1::LaneEnd {
        code: status.code() as u32,
        message: status.message().to_owned(),
        detail: status
            .metadata()
            .get_bin(METADATA_KEY)
            .and_then(|detail| detail.to_bytes().ok())
            .unwrap_or_default(),
    });
    framed(END, &fields, 0)
}

/// What an end says.
pub(super) fn outcome(end: v1::LaneEnd) -> Result<(), Status> {
    if end.code == 0 {
        return Ok(());
    }
    let mut metadata = MetadataMap::new();
    if !end.detail.is_empty() {
        metadata.insert_bin(METADATA_KEY, MetadataValue::from_bytes(&end.detail));
    }
    Err(Status::with_metadata(
        Code::from_i32(end.code as i32),
        end.message,
        metadata,
    ))
}

/// Sends messages as soon as they are known, and signs of life while none is.
pub(crate) async fn send(lane: &mut Lane, messages: impl Stream<Item = Message>) -> io::Result<()> {
    let mut messages = pin!(messages);
    let quiet = lane.sign_every();
    loop {
        let Ok(next) = tokio::time::timeout(quiet, messages.next()).await else {
            lane.send(&mut [alive()]).await?;
            continue;
        };
        let Some(mut parts) = next else { return Ok(()) };
        while parts.iter().map(Bytes::len).sum::<usize>() < TOGETHER
            && let Some(Some(more)) = messages.next().now_or_never()
        {
            parts.extend(more);
        }
        lane.send(&mut parts).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coati_common::rpc::{ErrorCode, Peer, Security, ServiceError, bind};
    use coati_proto::coati::v1::PushChunk;
    use futures::stream;
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::wire::{Chunks, head};

    async fn pair() -> (Lane, Lane) {
        let mut listener = bind("127.0.0.1:0").await.unwrap();
        let mut lanes = listener.incoming.lanes();
        let peer = Peer::ps(0, listener.address.to_string());
        tokio::spawn(async move {
            let mut connection = listener.incoming.next().await.unwrap().unwrap();
            connection.read_u8().await
        });
        let security = Security::none();
        let (dialled, opened) = tokio::join!(Lane::dial(&security, &peer, Duration::from_secs(60)), async {
            lanes.next().await.unwrap().open(&security).await
        });
        (dialled.unwrap(), opened.unwrap())
    }

    fn message(offset: u64, data: usize) -> Message {
        let fields = PushChunk {
            offset,
            ..Default::default()
        };
        vec![head(&fields, data), vec![offset as u8; data].into()]
    }

    /// The offsets and data of all messages, read into rooms of this size.
    async fn read(chunks: &mut Chunks<PushChunk>, room: usize) -> Result<Vec<(u64, Vec<u8>)>, Status> {
        let mut all = Vec::new();
        while let Some((fields, bytes)) = chunks.head().await? {
            let mut data = vec![0; bytes];
            let mut done = 0;
            while done < bytes {
                let end = bytes.min(done + room);
                done += chunks.data(&mut data[done..end]).await?;
            }
            all.push((fields.offset, data));
        }
        Ok(all)
    }

    #[tokio::test]
    async fn messages_arrive_whole_whatever_their_size_and_that_of_their_places() {
        for room in [100, 5000, 1 << 22] {
            let (mut from, to) = pair().await;
            let sizes = [0, 1, 511, 512, 4096, 300_000, 4 << 20, 3];
            let messages = sizes.iter().zip(0..).map(|(&size, i)| message(i, size));
            let all = stream::iter(messages.chain([vec![end(Ok(()))]]));
            let mut chunks = Chunks::of_lane(to);
            let (sent, read) = tokio::join!(send(&mut from, all), read(&mut chunks, room));
            sent.unwrap();
            let expected: Vec<_> = sizes
                .iter()
                .zip(0..)
                .map(|(&size, i)| (i, vec![i as u8; size]))
                .collect();
            assert!(read.unwrap() == expected, "rooms of {room}");
            assert!(
                chunks.end().is_ok() && chunks.into_lane().is_some(),
                "for the next call"
            );
        }
    }

    #[tokio::test]
    async fn an_end_says_why_and_its_lack_is_an_error() {
        let (mut from, to) = pair().await;
        let why = Status::from(ServiceError::new(ErrorCode::LayoutMismatch, "wrong shape").with_hint("mind it"));
        from.send(&mut [end(Err(&why))]).await.unwrap();
        let mut chunks = Chunks::<PushChunk>::of_lane(to);
        assert!(chunks.head().await.unwrap().is_none());
        let error = ServiceError::from(&chunks.end().unwrap_err());
        assert_eq!(
            (error.code, error.hint.as_str()),
            (ErrorCode::LayoutMismatch, "mind it")
        );

        let (mut from, to) = pair().await;
        from.send(&mut message(7, 10)).await.unwrap();
        drop(from);
        let mut chunks = Chunks::of_lane(to);
        assert_eq!(read(&mut chunks, 100).await.unwrap().len(), 1);
        assert!(!chunks.is_whole() && chunks.end().is_err() && chunks.into_lane().is_none());
    }

    #[tokio::test]
    async fn signs_of_life_keep_a_lane_open_while_there_is_nothing_to_say() {
        let (mut from, to) = pair().await;
        tokio::time::pause();
        let silence = to.patience() * 3;
        let slow = stream::iter([message(0, 10), message(1, 10), vec![end(Ok(()))]]).then(|message| async move {
            tokio::time::sleep(silence).await;
            message
        });
        let mut chunks = Chunks::of_lane(to);
        let (sent, read) = tokio::join!(send(&mut from, slow), read(&mut chunks, 100));
        sent.unwrap();
        assert_eq!(read.unwrap().len(), 2);
    }

    /// What a reader makes of these bytes and the end of the connection.
    async fn made_of(bytes: Vec<u8>) -> Result<Vec<(u64, Vec<u8>)>, Status> {
        let (mut from, to) = pair().await;
        let mut chunks = Chunks::of_lane(to);
        let sending = async move {
            // Who reads may have hung up.
            let _ = from.send(&mut [bytes.into()]).await;
        };
        let ((), read) = tokio::join!(sending, read(&mut chunks, 100));
        chunks.drain().await;
        read
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn random_bytes_and_messages_with_a_wrong_byte_are_errors_or_messages(
            noise in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..300),
            sizes in prop::collection::vec(0usize..2000, 1..4),
            wrong in any::<prop::sample::Index>(),
            value in any::<u8>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let said: Vec<Bytes> = (0..).zip(&sizes).flat_map(|(i, &size)| message(i, size)).collect();
            let mut bytes = [said.concat(), alive().to_vec(), end(Ok(())).to_vec()].concat();
            prop_assert_eq!(runtime.block_on(made_of(bytes.clone())).unwrap().len(), sizes.len());
            let at = wrong.index(bytes.len());
            bytes[at] = value;
            let _ = runtime.block_on(made_of(bytes));
            let _ = runtime.block_on(made_of(noise));
        }
    }
}
