use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Largest piece of a tensor in one message.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Largest message accepted; a chunk with its frame, or the placement of a large model.
pub const MESSAGE_LIMIT_BYTES: usize = 64 << 20;

/// Largest message accepted where no tensors and placements come: a report of a step with its losses.
pub const SMALL_MESSAGE_LIMIT_BYTES: usize = 1 << 20;

/// Largest list of headers accepted; ours have some hundred bytes.
pub const HEADER_LIMIT_BYTES: u32 = 16 << 10;

/// Calls under way on one connection; a replica has a handful.
pub const STREAM_LIMIT: u32 = 256;

/// Connections that a server holds at a time. Far more than a job has tasks, and well below the usual limit on open files
/// (1024), so that whoever opens connection after connection cannot take the files that the server itself needs.
pub const CONNECTION_LIMIT: usize = 512;

/// HTTP/2 frame size that a receiver allows its sender. The default of 16 KiB costs a wake-up for each 16 KiB.
pub const FRAME_BYTES: u32 = 1 << 20;

/// Flow control: bytes in flight on one stream.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// Flow control: bytes in flight on one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// A connection without traffic is pinged this often, so that a peer that vanished without a word is noticed.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A ping unanswered for this long ends the connection. Generous, because training hosts are busy on all cores.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What both ends set on a connection.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE_INTERVAL))
}
