//! Which exit code an error ends with.

use coati_common::exit::ExitCode;

/// An error that knows its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub code: ExitCode,
    pub message: String,
}

impl Failure {
    /// The user's files or flags are wrong.
    pub(crate) fn user(message: impl Into<String>) -> Self {
        Self {
            code: ExitCode::UserError,
            message: message.into(),
        }
    }

    /// The job failed.
    pub(crate) fn job(message: impl Into<String>) -> Self {
        Self {
            code: ExitCode::JobFailure,
            message: message.into(),
        }
    }

    /// Stopped on request.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self {
            code: ExitCode::Interrupted,
            message: message.into(),
        }
    }
}

/// The exit code of any error: reading and checking come before anything starts, so what is not a [`Failure`] is the user's.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    error
        .downcast_ref::<Failure>()
        .map_or(ExitCode::UserError, |failure| failure.code)
}
