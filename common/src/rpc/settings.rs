use std::time::Duration;

/// Largest piece of a tensor in one message.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Largest message accepted; a chunk with its frame, or the placement of a large model.
pub const MESSAGE_LIMIT_BYTES: usize = 64 << 20;

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
