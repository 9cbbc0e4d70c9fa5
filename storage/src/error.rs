//! What went wrong with an object, for people: which bucket and key, what the server said, what can be done.

use std::error::Error as StdError;
use std::io;

use crate::location::{Location, Scheme};
use crate::retry::GaveUp;

/// A request that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {action} {location} (bucket `{}`, key `{}`): {}{what}{}", location.bucket, location.key, Status(*status), Hint(hint))]
pub struct Error {
    /// `read`, `write`, …
    pub action: &'static str,
    /// Of what.
    pub location: Location,
    /// The server's answer, where there was one.
    pub status: Option<u16>,
    /// What it said.
    pub what: String,
    /// What can be done; may be empty.
    pub hint: String,
    /// For callers that ask no more than `std::fs` tells.
    pub kind: io::ErrorKind,
}

struct Status(Option<u16>);

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(status) = self.0 else { return Ok(()) };
        let reason = http::StatusCode::from_u16(status)
            .ok()
            .and_then(|code| code.canonical_reason());
        match reason {
            Some(reason) => write!(f, "status {status} {reason}: "),
            None => write!(f, "status {status}: "),
        }
    }
}

struct Hint<'a>(&'a str);

impl std::fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "\nhint: {}", self.0)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind, error)
    }
}

/// `hint` (which begins with `\nhint: `), unless the error has one of its own.
pub fn hint_or<'a>(error: &io::Error, hint: &'a str) -> &'a str {
    if error
        .get_ref()
        .is_some_and(<dyn std::error::Error + std::marker::Send + std::marker::Sync + 'static>::is::<Error>)
    {
        ""
    } else {
        hint
    }
}

/// Makes an error of the client's. `credentials` says in words what requests are signed with.
pub(crate) fn explain(
    action: &'static str,
    location: &Location,
    credentials: &str,
    error: &object_store::Error,
) -> Error {
    use object_store::Error as Found;
    if let Some(NoKeys { what, hint }) = find(error) {
        return Error {
            action,
            location: location.clone(),
            status: None,
            hint: hint.clone(),
            what: what.clone(),
            kind: io::ErrorKind::PermissionDenied,
        };
    }
    let text = chain(error);
    let gave_up: Option<&GaveUp> = find(error);
    let status = gave_up.and_then(|found| found.status).or_else(|| match error {
        Found::NotFound { .. } => Some(404),
        Found::PermissionDenied { .. } => Some(403),
        Found::Unauthenticated { .. } => Some(401),
        Found::Precondition { .. } => Some(412),
        _ => status_in(&text),
    });
    let kind = match (error, status) {
        (Found::NotFound { .. }, _) | (_, Some(404)) => io::ErrorKind::NotFound,
        (Found::AlreadyExists { .. }, _) => io::ErrorKind::AlreadyExists,
        (_, Some(401 | 403)) => io::ErrorKind::PermissionDenied,
        (_, Some(412)) => io::ErrorKind::StaleNetworkFileHandle,
        (Found::NotImplemented | Found::NotSupported { .. }, _) | (_, Some(501)) => io::ErrorKind::Unsupported,
        _ if gave_up.is_some() => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    let what = gave_up.map_or_else(|| said(&text), ToString::to_string);
    Error {
        action,
        location: location.clone(),
        status,
        hint: hint(location, status, &text, credentials, gave_up.is_some()),
        what,
        kind,
    }
}

/// The error and what it is made of, without repetitions.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = inner.source();
    }
    text
}

/// There is nothing to sign requests with.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct NoKeys {
    pub what: String,
    pub hint: String,
}

fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut source: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref::<E>() {
            return Some(found);
        }
        source = inner.source();
    }
    None
}

fn status_in(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// The code and message of an answer in XML or JSON, else its beginning.
pub(crate) fn said(text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0.trim().to_owned())
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => {
            let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let mut short: String = line.chars().take(300).collect();
            if short.len() < line.len() {
                short.push('…');
            }
            short
        }
    }
}

fn hint(location: &Location, status: Option<u16>, text: &str, credentials: &str, gave_up: bool) -> String {
    let region = match location.scheme {
        Scheme::S3 => "AWS_REGION and AWS_ENDPOINT_URL",
        Scheme::Gs => "STORAGE_EMULATOR_HOST",
    };
    if text.contains("NoSuchBucket") {
        return format!(
            "there is no bucket `{}`; check its name, and {region} if they are set",
            location.bucket
        );
    }
    if text.contains("RequestTimeTooSkewed") {
        return "this machine's clock is wrong; set it".to_owned();
    }
    match status {
        Some(404) => "check the path; keys are case-sensitive".to_owned(),
        Some(401 | 403) => format!(
            "requests are made with {credentials}; give them the right to read and list the bucket, and to write and delete where jobs write"
        ),
        Some(301 | 307 | 400) if location.scheme == Scheme::S3 => {
            "the bucket may be in another region: set AWS_REGION to it".to_owned()
        }
        Some(412) => "the object was replaced while it was read; start again when nobody writes to it".to_owned(),
        Some(429 | 503) => {
            "the bucket is asked more often than it allows; use fewer workers, COATI_STORAGE_CONCURRENCY, or larger files; COATI_STORAGE_RETRY_SECONDS waits longer".to_owned()
        }
        Some(501) => {
            "this server knows no conditional writes; COATI_CONDITIONAL_PUT=off looks first instead (then nothing but you keeps two masters apart)".to_owned()
        }
        _ if gave_up => format!("check the network, and {region} if they are set"),
        _ => format!("requests are made with {credentials}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic {
            store: "S3",
            source: text.to_owned().into(),
        }
    }

    #[test]
    fn bucket_key_status_and_a_hint_are_named() {
        let location = Location::parse(Path::new("s3://b/a/k.record")).unwrap();
        let denied = object_store::Error::PermissionDenied {
            path: "a/k.record".into(),
            source: "<Error><Code>AccessDenied</Code><Message>no</Message></Error>".into(),
        };
        let error = explain("read", &location, "the profile `x`", &denied);
        assert_eq!(error.kind, io::ErrorKind::PermissionDenied);
        let text = error.to_string();
        for part in [
            "cannot read s3://b/a/k.record",
            "bucket `b`, key `a/k.record`",
            "status 403 Forbidden",
            "AccessDenied: no",
            "hint: requests are made with the profile `x`",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let slow = explain(
            "read",
            &location,
            "",
            &generic("Server returned non-2xx status code: 503 Slow Down"),
        );
        assert_eq!(slow.status, Some(503));
        assert!(slow.hint.contains("fewer workers"));
        let error = io::Error::from(slow);
        assert_eq!(hint_or(&error, "\nhint: x"), "");
        assert_eq!(hint_or(&io::Error::other("x"), "\nhint: x"), "\nhint: x");
    }
}
