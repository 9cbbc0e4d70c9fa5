use std::fmt;
use std::time::Duration;

use coati_proto::coati::v1::ErrorDetail;
use prost::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::security::Breach;
use super::{Peer, Unreachable};

/// Where the typed error travels beside the gRPC status.
pub const METADATA_KEY: &str = "coati-error-bin";

/// tonic's text when a call's deadline is over.
const TIMER: &str = "Timeout expired";

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $grpc:ident, $retryable:literal;)*) => {
        /// What went wrong, in one small vocabulary for all services.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Stable name on the wire.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The gRPC status code that carries it.
            pub fn grpc(self) -> Code {
                match self { $(Self::$variant => Code::$grpc,)* }
            }

            /// Whether the same call can succeed later without anything being changed.
            pub fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)* }
            }
        }
    };
}

codes! {
    /// The request belongs to an older incarnation of the job: its sender was replaced.
    StaleIncarnation = "stale_incarnation", FailedPrecondition, false;
    /// The server has not been configured for this incarnation, or holds no values yet.
    NotConfigured = "not_configured", FailedPrecondition, true;
    /// The task has not joined this incarnation of the job, or counts as lost: it may join (again).
    NotMember = "not_member", FailedPrecondition, false;
    /// Another process has taken the task's place.
    Superseded = "superseded", FailedPrecondition, false;
    /// The request belongs to another job.
    WrongJob = "wrong_job", FailedPrecondition, false;
    /// The version asked for is not (yet, or no longer) there.
    UnknownVersion = "unknown_version", OutOfRange, true;
    /// The two sides disagree about which variables live where.
    LayoutMismatch = "layout_mismatch", InvalidArgument, false;
    /// A commit names a contribution that is not completely staged.
    IncompleteContribution = "incomplete_contribution", FailedPrecondition, false;
    /// A gradient is older than the staleness bound allows.
    StaleGradient = "stale_gradient", FailedPrecondition, false;
    /// A gradient holds NaN or infinity.
    NonFiniteGradient = "non_finite_gradient", InvalidArgument, false;
    /// The request contradicts what was decided before.
    Conflict = "conflict", AlreadyExists, false;
    /// A replica used a sequence number twice for different contributions.
    TagReused = "tag_reused", InvalidArgument, false;
    /// A checkpoint cannot be read.
    Checkpoint = "checkpoint", DataLoss, false;
    /// The disk (or bucket) is full.
    OutOfSpace = "out_of_space", ResourceExhausted, false;
    /// Reading or writing a file failed.
    Io = "io", Internal, false;
    /// A field of the request is missing or has an impossible value.
    InvalidRequest = "invalid_request", InvalidArgument, false;
    /// The cluster file and a registering task disagree.
    UnknownTask = "unknown_task", NotFound, false;
    /// Replicas run different configurations, data or software.
    ConfigMismatch = "config_mismatch", FailedPrecondition, false;
    /// The job failed.
    JobFailed = "job_failed", FailedPrecondition, false;
    /// The job is over, in order.
    JobEnded = "job_ended", FailedPrecondition, false;
    /// The server is leaving.
    ShuttingDown = "shutting_down", Unavailable, false;
    /// The caller did not show that it belongs to the job.
    Unauthenticated = "unauthenticated", Unauthenticated, false;
    /// A wait was given up.
    DeadlineExceeded = "deadline_exceeded", DeadlineExceeded, true;
    /// The connection broke or the peer does not answer.
    Unavailable = "unavailable", Unavailable, true;
    /// A mistake in this program.
    Internal = "internal", Internal, false;
}

impl ErrorCode {
    /// The code of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }
}

/// What a service answers instead of a reply; travels as a [`Status`] with [`ErrorDetail`] in its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What failed, with the values that matter.
    pub message: String,
    /// What the user can do, or empty.
    pub hint: String,
    /// Whether the same call can succeed later.
    pub retryable: bool,
}

impl ServiceError {
    /// An error that is as retryable as its code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: String::new(),
            retryable: code.retryable(),
        }
    }

    /// Says what the user can do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.hint.is_empty() {
            Ok(())
        } else {
            write!(f, "\nhint: {}", self.hint)
        }
    }
}

impl std::error::Error for ServiceError {}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let detail = ErrorDetail {
            code: error.code.name().to_owned(),
            message: error.message.clone(),
            hint: error.hint,
            retryable: error.retryable,
        };
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(METADATA_KEY, MetadataValue::from_bytes(&detail.encode_to_vec()));
        Self::with_metadata(error.code.grpc(), error.message, metadata)
    }
}

impl From<Status> for ServiceError {
    fn from(status: Status) -> Self {
        Self::from(&status)
    }
}

impl From<&Status> for ServiceError {
    fn from(status: &Status) -> Self {
        let detail = status
            .metadata()
            .get_bin(METADATA_KEY)
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| ErrorDetail::decode(bytes).ok());
        if let Some(detail) = detail {
            let code = ErrorCode::from_name(&detail.code).unwrap_or(ErrorCode::Internal);
            return Self {
                code,
                message: detail.message,
                hint: detail.hint,
                retryable: detail.retryable,
            };
        }
        // Made by the transport, not by a service of ours.
        let code = match status.code() {
            Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
            // What a timer says on either side; everything else that cancels a call is the end of its connection.
            Code::Cancelled if status.message() == TIMER => ErrorCode::DeadlineExceeded,
            // Only the transport knows a cause: a peer gave the connection up (GOAWAY), for example because it missed its pings.
            Code::Internal if std::error::Error::source(status).is_some() => ErrorCode::Unavailable,
            Code::Unavailable | Code::Unknown | Code::Aborted | Code::Cancelled => ErrorCode::Unavailable,
            Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidRequest,
            _ => ErrorCode::Internal,
        };
        let mut message = format!("{}: {}", status.code().description(), status.message());
        // tonic's own text is often just "transport error"; the cause is in the chain.
        let mut source = std::error::Error::source(status);
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = cause.source();
        }
        if let Some(breach) = Breach::of(&message) {
            return Self::new(ErrorCode::Unauthenticated, breach.to_string()).with_hint(breach.hint());
        }
        Self::new(code, message)
    }
}

/// What the calling side reports: always with the peer's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection before the deadline.
    #[error("{peer} did not answer within {:.1} s: {reason}\nhint: {}", waited.as_secs_f64(), reason.hint())]
    Unreachable {
        /// Who.
        peer: Peer,
        /// Why the last attempt failed.
        reason: Unreachable,
        /// How long it was tried.
        waited: Duration,
    },
    /// Connected, but what was awaited did not come.
    #[error("{peer}: waited {:.1} s for {what}", waited.as_secs_f64())]
    Timeout {
        /// Who.
        peer: Peer,
        /// What was awaited, in words.
        what: String,
        /// For how long.
        waited: Duration,
    },
    /// The service refused or failed.
    #[error("{peer}: {what}: {error}")]
    Service {
        /// Who.
        peer: Peer,
        /// What was asked, in words.
        what: String,
        /// Its answer.
        error: ServiceError,
    },
    /// This process's certificates are of no use.
    #[error("the certificates of this task cannot be used: {0}\nhint: see `coati: security:` in the cluster file")]
    Credentials(String),
    /// The address of this process cannot be listened on.
    #[error("cannot listen on {address}: {source}\nhint: {}", bind_hint(source))]
    Bind {
        /// `host:port`
        address: String,
        /// Why.
        source: std::io::Error,
    },
}

fn bind_hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another process listens there; stop it or choose another port (0 picks a free one)"
        }
        std::io::ErrorKind::AddrNotAvailable => "the address is not one of this machine's",
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose a higher one",
        _ => "give the address as host:port, for example 127.0.0.1:4000",
    }
}

impl Error {
    /// The peer concerned, unless it is this process itself.
    pub fn peer(&self) -> Option<&Peer> {
        match self {
            Self::Unreachable { peer, .. } | Self::Timeout { peer, .. } | Self::Service { peer, .. } => Some(peer),
            Self::Credentials(_) | Self::Bind { .. } => None,
        }
    }

    /// Whether the peer is not there, or not (any more) in the state that was expected: it may be again later.
    pub fn is_absence(&self) -> bool {
        match self {
            // Whoever is not of this job will not be later.
            Self::Unreachable { reason, .. } => !matches!(reason, Unreachable::Stranger(..)),
            Self::Timeout { .. } => true,
            Self::Service { error, .. } => matches!(
                error.code,
                ErrorCode::Unavailable
                    | ErrorCode::DeadlineExceeded
                    | ErrorCode::NotConfigured
                    | ErrorCode::ShuttingDown
            ),
            Self::Bind { .. } | Self::Credentials(_) => false,
        }
    }

    /// Whether nothing was heard at all: another attempt may be. Who refused a connection is known not to be there.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Unreachable { reason, .. } => *reason == Unreachable::TimedOut,
            Self::Timeout { .. } => true,
            _ => false,
        }
    }

    /// The service's own code, where a service answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Service { error, .. } => Some(error.code),
            _ => None,
        }
    }

    /// Whether the same call can succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { reason, .. } => !reason.is_final(),
            Self::Timeout { .. } => true,
            Self::Service { error, .. } => error.retryable,
            Self::Credentials(_) | Self::Bind { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_error_survives_the_wire() {
        let sent =
            ServiceError::new(ErrorCode::StaleIncarnation, "incarnation 3 is over; this is 4").with_hint("leave");
        let status = Status::from(sent.clone());
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(ServiceError::from(&status), sent);
    }

    #[test]
    fn names_are_unique_and_stable() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_name(code.name()), Some(*code));
        }
        assert_eq!(ErrorCode::UnknownVersion.name(), "unknown_version");
    }

    #[test]
    fn a_status_without_detail_is_a_transport_error() {
        let error = ServiceError::from(Status::unavailable("broken pipe"));
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(error.retryable && error.message.contains("broken pipe"), "{error}");
    }

    #[test]
    fn a_connection_that_was_closed_is_not_a_deadline() {
        let error = ServiceError::from(&Status::cancelled("operation was canceled: connection closed"));
        assert_eq!((error.code, error.retryable), (ErrorCode::Unavailable, true));
        assert!(error.message.contains("connection closed"), "{error}");
        let alert = "operation was canceled: received fatal alert: CertificateUnknown";
        assert_eq!(
            ServiceError::from(&Status::cancelled(alert)).code,
            ErrorCode::Unauthenticated
        );
        let timer = Status::cancelled(tonic::TimeoutExpired(()).to_string());
        assert_eq!(ServiceError::from(&timer).code, ErrorCode::DeadlineExceeded);
    }

    #[test]
    fn a_connection_that_was_given_up_is_not_a_mistake_of_the_service() {
        let mut status = Status::internal("h2 protocol error: http2 error");
        assert_eq!(ServiceError::from(&status).code, ErrorCode::Internal);
        status.set_source(std::sync::Arc::new(std::io::Error::other(
            "connection error received: not a result of an error",
        )));
        let error = ServiceError::from(&status);
        assert_eq!((error.code, error.retryable), (ErrorCode::Unavailable, true));
        assert!(error.message.contains("connection error received"), "{error}");
    }

    #[test]
    fn an_unknown_code_of_a_newer_peer_is_internal() {
        let detail = ErrorDetail {
            code: "from_the_future".into(),
            message: "m".into(),
            hint: String::new(),
            retryable: true,
        };
        let mut status = Status::aborted("m");
        status
            .metadata_mut()
            .insert_bin(METADATA_KEY, MetadataValue::from_bytes(&detail.encode_to_vec()));
        let error = ServiceError::from(&status);
        assert_eq!((error.code, error.retryable), (ErrorCode::Internal, true));
    }
}
