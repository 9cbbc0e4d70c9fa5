//! Requests that ride out what passes: 429, 503 and their like, connections that break, answers that are cut off.
//!
//! This sits below the client, where status codes and headers can be seen, so each kind of request has it: reads, writes, parts,
//! listings, and the tokens that credentials are exchanged for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use rand::Rng as _;

use crate::error::said;
use crate::gate::Gate;

/// The pause before the second attempt; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// A server may ask for a longer one.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// Trying for longer is said.
const SILENCE: Duration = Duration::from_secs(5);
/// Hosts that answer at once or not at all.
const METADATA_LIMIT: Duration = Duration::from_secs(2);

/// Attempts went on until the time for them was over.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what} (after {attempts} attempts in {:.0} s)", seconds)]
pub(crate) struct GaveUp {
    pub status: Option<u16>,
    pub what: String,
    pub attempts: u32,
    pub seconds: f64,
}

/// Makes clients whose requests are tried again.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub gate: Arc<Gate>,
    pub limit: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Retrying {
            inner: ReqwestConnector::default().connect(options)?,
            gate: Arc::clone(&self.gate),
            limit: self.limit,
        }))
    }
}

#[derive(Debug)]
struct Retrying {
    inner: HttpClient,
    gate: Arc<Gate>,
    limit: Duration,
}

/// What an attempt came to.
enum Attempt {
    /// An answer that will not change.
    Done(Response<Bytes>),
    Passing {
        status: Option<u16>,
        what: String,
        asked: Option<Duration>,
    },
    Failed(HttpError),
}

#[async_trait::async_trait]
impl HttpService for Retrying {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let begun = Instant::now();
        let limit = if is_metadata(request.uri().host().unwrap_or_default()) {
            METADATA_LIMIT.min(self.limit)
        } else {
            self.limit
        };
        let mut attempts = 0;
        let mut was_said = false;
        loop {
            let pass = self.gate.pass().await;
            let attempt = self.attempt(request.clone()).await;
            drop(pass);
            attempts += 1;
            let (status, what, asked) = match attempt {
                Attempt::Done(answer) => {
                    self.gate.succeeded();
                    return Ok(answer.map(|bytes| HttpResponseBody::new(Full::new(bytes).map_never())));
                }
                Attempt::Failed(error) => return Err(error),
                Attempt::Passing { status, what, asked } => (status, what, asked),
            };
            if matches!(status, Some(429 | 503)) {
                self.gate.throttled();
            }
            let pause = pause(attempts, asked, rand::rng().random_range(0.0..1.0));
            if begun.elapsed() + pause > limit {
                let seconds = begun.elapsed().as_secs_f64();
                let error = GaveUp {
                    status,
                    what,
                    attempts,
                    seconds,
                };
                return Err(HttpError::new(HttpErrorKind::Unknown, error));
            }
            let host = request.uri().host().unwrap_or_default();
            let path = request.uri().path();
            if begun.elapsed() >= SILENCE && !std::mem::replace(&mut was_said, true) {
                let seconds = limit.as_secs();
                tracing::warn!(host, path, "{what}; trying again for up to {seconds} s");
            }
            tracing::debug!(
                host,
                path,
                status,
                what,
                attempts,
                pause_ms = pause.as_millis() as u64,
                "trying again"
            );
            tokio::time::sleep(pause).await;
        }
    }
}

trait MapNever {
    type Body;
    fn map_never(self) -> Self::Body;
}

impl MapNever for Full<Bytes> {
    type Body = http_body_util::combinators::MapErr<Self, fn(std::convert::Infallible) -> HttpError>;

    fn map_never(self) -> Self::Body {
        fn never(never: std::convert::Infallible) -> HttpError {
            match never {}
        }
        http_body_util::BodyExt::map_err(self, never as fn(std::convert::Infallible) -> HttpError)
    }
}

impl Retrying {
    async fn attempt(&self, request: HttpRequest) -> Attempt {
        let method = request.method().clone();
        let answer = match self.inner.execute(request).await {
            Ok(answer) => answer,
            Err(error) => return broken(error),
        };
        let (head, body) = answer.into_parts();
        // All of it, here: an answer that is cut off is tried again like one that did not come.
        let bytes = match body.bytes().await {
            Ok(bytes) => bytes,
            Err(error) => return broken(error),
        };
        let declared = head.headers.get(http::header::CONTENT_LENGTH);
        let declared = declared.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        let encoded = head.headers.contains_key(http::header::CONTENT_ENCODING);
        if method != Method::HEAD && !encoded && declared.is_some_and(|declared| declared != bytes.len()) {
            return Attempt::Passing {
                status: None,
                what: format!("the answer ended after {} bytes", bytes.len()),
                asked: None,
            };
        }
        if passes(head.status, &method, &bytes) {
            let asked = head.headers.get(http::header::RETRY_AFTER);
            let asked = asked.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            return Attempt::Passing {
                status: Some(head.status.as_u16()),
                what: said(&String::from_utf8_lossy(&bytes)),
                asked: asked.map(Duration::from_secs),
            };
        }
        Attempt::Done(Response::from_parts(head, bytes))
    }
}

fn broken(error: HttpError) -> Attempt {
    match error.kind() {
        HttpErrorKind::Connect
        | HttpErrorKind::Request
        | HttpErrorKind::Timeout
        | HttpErrorKind::Interrupted
        | HttpErrorKind::Decode
        | HttpErrorKind::Unknown => {
            let mut what = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(inner) = source {
                let more = inner.to_string();
                if !what.contains(&more) {
                    what = format!("{what}: {more}");
                }
                source = inner.source();
            }
            Attempt::Passing {
                status: None,
                what,
                asked: None,
            }
        }
        _ => Attempt::Failed(error),
    }
}

/// Whether the same request may get another answer in a while. Every request of ours may be repeated: what is written is whole, and a
/// conditional write that finds itself is recognised by its content.
fn passes(status: StatusCode, method: &Method, body: &[u8]) -> bool {
    match status.as_u16() {
        408 | 429 | 500 | 502 | 503 | 504 | 509 => true,
        // S3 tells so when two conditional writes meet, and answers the next attempt by 412.
        409 => *method == Method::PUT,
        // Completing an upload answers at once and tells of failures in the body.
        200 => *method == Method::POST && body.windows(7).take(256).any(|part| part == b"<Error>"),
        _ => false,
    }
}

/// `chance` from 0 to 1: half of the pause is left to it, so that those who failed together do not come back together.
fn pause(attempts: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let whole = FIRST_PAUSE
        .saturating_mul(1 << attempts.saturating_sub(1).min(16))
        .min(LONGEST_PAUSE);
    let pause = whole.mul_f64(0.5 + 0.5 * chance);
    asked.map_or(pause, |asked| asked.min(LONGEST_ASKED) + pause)
}

fn is_metadata(host: &str) -> bool {
    host.starts_with("169.254.") || host == "metadata.google.internal" || host.starts_with("[fd00:ec2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_differ_and_obey() {
        let at = |attempts, chance| pause(attempts, None, chance).as_millis();
        assert_eq!((at(1, 0.0), at(1, 1.0), at(4, 1.0)), (50, 100, 800));
        assert_eq!(pause(40, None, 1.0), LONGEST_PAUSE);
        assert_eq!(pause(1, Some(Duration::from_secs(7)), 1.0).as_millis(), 7100);
        assert!(pause(1, Some(Duration::from_secs(7000)), 0.0) < Duration::from_secs(61));
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        let code = |code| StatusCode::from_u16(code).unwrap();
        for status in [429, 500, 503] {
            assert!(passes(code(status), &Method::GET, b""));
        }
        for status in [200, 206, 304, 400, 403, 404, 409, 412] {
            assert!(!passes(code(status), &Method::GET, b"<Error>"));
        }
        assert!(passes(code(409), &Method::PUT, b""));
        assert!(passes(code(200), &Method::POST, b"<?xml?>\n<Error><Code>InternalError"));
        assert!(!passes(code(200), &Method::POST, b"<CompleteMultipartUploadResult>"));
    }

    #[test]
    fn hosts_of_metadata_are_not_waited_for() {
        assert!(is_metadata("169.254.169.254") && is_metadata("metadata.google.internal"));
        assert!(!is_metadata("storage.googleapis.com"));
    }
}
