//! Talking between Coati's own processes: settings of the wire, dialling, deadlines and one vocabulary of errors.

mod deadline;
mod dial;
mod error;
mod peer;
mod serve;
mod settings;

pub use deadline::{Call, call, call_headroom, with_deadline};
pub use dial::{Unreachable, connect};
pub use error::{Error, ErrorCode, METADATA_KEY, ServiceError};
pub use peer::Peer;
pub use serve::{Listener, bind, server};
pub use settings::{
    CHUNK_BYTES, CONNECTION_WINDOW_BYTES, FRAME_BYTES, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, MESSAGE_LIMIT_BYTES,
    STREAM_WINDOW_BYTES,
};
