//! Bulk data on the wire, without copies that gRPC's codec would make.
//!
//! Messages of `coati.v1.Transfer` are ordinary gRPC messages. But a codec gathers a message in a buffer of its own before
//! it is sent, and again before it is handed over: two copies for each byte, of data that has a place to go to. Here a
//! message's fields are written apart from its data ([`head`]), and on arrival its data is read to where it belongs
//! ([`Chunks`]). Between processes they travel on lanes ([`coati_common::rpc::Lane`]); HTTP/2 would cost one copy more.

mod encoding;
mod lane;
mod reader;

use std::convert::Infallible;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use http::HeaderMap;
use http_body::Frame;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::body::Body;

pub use encoding::{Compression, Gradients};
pub(crate) use encoding::{PAIR_BYTES, from_bf16, topk_pairs, unpack_topk, write_bf16};
pub(crate) use lane::{alive, end, send};
pub(crate) use reader::Chunks;

/// Of `Transfer.Push`.
pub(crate) const PUSH: &str = "/coati.v1.Transfer/Push";
/// Of `Transfer.Pull`.
pub(crate) const PULL: &str = "/coati.v1.Transfer/Pull";

/// Number of the field `data` in chunks.
const DATA_FIELD: u32 = 5;
/// Flag and length ahead of each gRPC message.
const PREFIX_BYTES: usize = 5;
/// `data`'s key: its number, length-delimited.
const DATA_KEY: u8 = (DATA_FIELD << 3 | 2) as u8;

/// A message as it is sent: its head, and its data in parts.
pub(crate) type Message = Vec<Bytes>;

/// Everything of a message that precedes its data, whose length is given: prefix, fields, and the data's own key and length.
/// `fields` is the message without data.
pub(crate) fn head(fields: &impl prost::Message, data_bytes: usize) -> Bytes {
    framed(0, fields, data_bytes)
}

/// As [`head`], of a message of this kind.
fn framed(kind: u8, fields: &impl prost::Message, data_bytes: usize) -> Bytes {
    let key_bytes = if data_bytes == 0 {
        0
    } else {
        1 + encoded_len_varint(data_bytes as u64)
    };
    let own = fields.encoded_len() + key_bytes;
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + own);
    head.put_u8(kind);
    head.put_u32((own + data_bytes) as u32);
    fields.encode_raw(&mut head);
    if data_bytes > 0 {
        head.put_u8(DATA_KEY);
        encode_varint(data_bytes as u64, &mut head);
    }
    head.freeze()
}

/// A request's body of messages that are sent as they are.
pub(crate) fn request_body(messages: impl Stream<Item = Message> + Send + 'static) -> Body {
    let parts = messages.flat_map(futures::stream::iter);
    let frames = parts.map(|part| Ok::<_, Infallible>(Frame::data(part)));
    Body::new(http_body_util::StreamBody::new(frames))
}

/// A response of messages that are sent as they are, and the end that gRPC wants.
pub(crate) fn response(messages: impl Stream<Item = Message> + Send + 'static) -> http::Response<Body> {
    let parts = messages.flat_map(futures::stream::iter);
    let end = futures::stream::once(async {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        Ok::<_, Infallible>(Frame::trailers(trailers))
    });
    let frames = parts.map(|part| Ok(Frame::data(part))).chain(end);
    let mut response = http::Response::new(Body::new(http_body_util::StreamBody::new(frames)));
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/grpc"),
    );
    response
}
