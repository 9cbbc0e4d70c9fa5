use std::time::Duration;

use tonic::{Response, Status};

use crate::invariants::{self, Invariant};

use super::{Error, ErrorCode, Peer, ServiceError};

/// Nobody who waits longer than this for one answer has a deadline.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// How much longer the caller waits than the deadline it sends along, so that the server's own (better) answer
/// about what it was waiting for arrives first.
pub const fn call_headroom() -> Duration {
    Duration::from_millis(500)
}

/// Awaits `future`, but not longer than `limit`; the error names the peer and what was awaited.
pub async fn with_deadline<F: Future>(peer: &Peer, what: &str, limit: Duration, future: F) -> Result<F::Output, Error> {
    let ends = limit <= LONGEST && !peer.task.is_empty() && !peer.address.is_empty();
    invariants::check(Invariant::WaitNamesPeerAndEnds, ends, || {
        format!("{what} of `{peer}`, for {limit:?}")
    });
    tokio::time::timeout(limit, future).await.map_err(|_| Error::Timeout {
        peer: peer.clone(),
        what: what.to_owned(),
        waited: limit,
    })
}

/// Awaits an rpc, but not longer than `limit`; failures of every kind name the peer and what was asked.
pub async fn call<T, F>(peer: &Peer, what: &str, limit: Duration, rpc: F) -> Result<T, Error>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let service = |error| Error::Service {
        peer: peer.clone(),
        what: what.to_owned(),
        error,
    };
    match with_deadline(peer, what, limit, rpc).await? {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => {
            let error = ServiceError::from(&status);
            // The transport's own timer, not an answer: say who and what, as above.
            let silent =
                error.code == ErrorCode::DeadlineExceeded && status.metadata().get_bin(super::METADATA_KEY).is_none();
            Err(if silent {
                Error::Timeout {
                    peer: peer.clone(),
                    what: what.to_owned(),
                    waited: limit,
                }
            } else {
                service(error)
            })
        }
    }
}

/// A peer and a limit, for several calls in a row.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who is called.
    pub peer: Peer,
    /// Longest wait of each call.
    pub limit: Duration,
}

impl Call {
    /// See [`call`].
    pub async fn run<T, F>(&self, what: &str, rpc: F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        call(&self.peer, what, self.limit, rpc).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timeout_names_the_peer_and_what_was_awaited() {
        let peer = Peer::ps(1, "127.0.0.1:4003");
        let error = with_deadline(
            &peer,
            "version 7",
            Duration::from_millis(100),
            std::future::pending::<()>(),
        )
        .await
        .unwrap_err();
        assert_eq!(error.to_string(), "ps-1 (127.0.0.1:4003): waited 0.1 s for version 7");
        assert!(error.retryable());
    }

    #[tokio::test]
    #[cfg_attr(debug_assertions, should_panic = "WaitNamesPeerAndEnds")]
    async fn a_wait_without_a_name_or_an_end_is_found() {
        let before = invariants::broken_count(Invariant::WaitNamesPeerAndEnds);
        let ready = std::future::ready(());
        let _ = with_deadline(&Peer::new("", "h:1"), "a step", Duration::from_secs(1), ready.clone()).await;
        let _ = with_deadline(&Peer::new("master", "h:1"), "a step", Duration::MAX, ready).await;
        assert_eq!(invariants::broken_count(Invariant::WaitNamesPeerAndEnds), before + 2);
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_code() {
        let peer = Peer::new("master", "h:1");
        let status = Status::from(ServiceError::new(ErrorCode::JobEnded, "the job ended at step 9"));
        let error = call::<(), _>(&peer, "register", Duration::from_secs(9), async { Err(status) })
            .await
            .unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::JobEnded));
        assert_eq!(error.to_string(), "master (h:1): register: the job ended at step 9");
    }
}
