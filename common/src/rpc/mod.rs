//! Talking between Coati's own processes: settings of the wire, who may call, dialling, deadlines and one vocabulary
//! of errors.

mod deadline;
mod dial;
mod dialogue;
mod error;
mod incoming;
mod lane;
pub mod line;
mod peer;
pub mod security;
mod serve;
mod settings;

pub use deadline::{Call, call, call_headroom, with_deadline};
pub use dial::{Channel, Unreachable, connect, connect_as, connect_once, resolve};
pub use dialogue::{Answers, Dialogue, answers};
pub use error::{Error, ErrorCode, METADATA_KEY, ServiceError};
pub use incoming::{Connection, Incoming};
pub use lane::{Knock, Lane, Lanes};
pub use line::InProcess;
pub use peer::Peer;
pub use security::Security;
pub use serve::{Listener, SecureServer, bind, server};
pub use settings::{
    CHUNK_BYTES, CONNECTION_WINDOW_BYTES, FRAME_BYTES, HEADER_LIMIT_BYTES, MESSAGE_LIMIT_BYTES,
    SMALL_MESSAGE_LIMIT_BYTES, STREAM_LIMIT, STREAM_WINDOW_BYTES, tolerate_silence,
};
