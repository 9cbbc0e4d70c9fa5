//! `coati scale`

use anyhow::Context as _;
use coati_coordinator::launcher::control::{self, Error, Request};

use crate::args::{Format, ScaleArgs};
use crate::console::report;
use crate::failure::Failure;

pub(crate) fn run(args: &ScaleArgs) -> anyhow::Result<()> {
    let workers = args.workers;
    let reply = control::request(&args.model_dir, &Request::Scale { workers }).map_err(|error| failure(&error))?;
    if !reply.ok {
        return Err(Failure::user(reply.message).into());
    }
    report(&match args.format {
        Format::Text => reply.message,
        Format::Json => serde_json::to_string(&reply).context("the reply")?,
    });
    Ok(())
}

/// A launcher that should answer and does not has failed; all else is the wrong folder or the wrong time.
fn failure(error: &Error) -> anyhow::Error {
    let message = error.to_string();
    match error {
        Error::Silent { .. } | Error::NoSocket { .. } => Failure::job(message).into(),
        Error::Report(_) | Error::Ended { .. } => Failure::user(message).into(),
    }
}
