use std::fmt;
use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, Uri};

use super::incoming::READ_AHEAD_BYTES;
use super::line::{self, Line};
use super::security::{Attach, Breach};
use super::settings::KeepAlive;
use super::{CONNECTION_WINDOW_BYTES, Error, FRAME_BYTES, Peer, STREAM_WINDOW_BYTES, Security, settings};

/// A connection to a task; each call on it carries the job's token.
pub type Channel = InterceptedService<Line, Attach>;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_ATTEMPT: Duration = Duration::from_secs(5);

/// Whom this process dials is said so often.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Why no connection could be made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreachable {
    /// The host is there, nobody listens on the port.
    Refused,
    /// Nothing came back.
    TimedOut,
    /// The host's name could not be resolved.
    Dns(String),
    /// Not `host:port`.
    Address(String),
    /// Somebody is there who does not belong to the job, or does not think that this task does.
    Stranger(Breach),
    /// Something else, in the system's words.
    Other(String),
}

impl Unreachable {
    /// Whether another attempt can only fail in the same way.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Address(_) | Self::Stranger(_))
    }

    /// What the user can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused => "nothing listens there: has the task started, and is it the right port?",
            Self::TimedOut => "the host does not answer: is it up, and does a firewall let the port through?",
            Self::Dns(_) => "check the host's name in the cluster file or TF_CONFIG",
            Self::Address(_) => "write it as host:port, for example 127.0.0.1:4000",
            Self::Stranger(breach) => breach.hint(),
            Self::Other(_) => "check that the task runs and that the network between the two works",
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::TimedOut => f.write_str("connecting timed out"),
            Self::Dns(why) => write!(f, "dns: {why}"),
            Self::Address(why) => write!(f, "not an address: {why}"),
            Self::Stranger(breach) => write!(f, "{breach}"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// Connects with the credentials of this process, trying again with growing pauses until the deadline; then says which peer
/// did not answer and why. A peer of another job is an error at once.
pub async fn connect(peer: &Peer, deadline: Duration) -> Result<Channel, Error> {
    connect_as(&Security::of_this_process(), peer, deadline).await
}

/// As [`connect`], with credentials given.
pub async fn connect_as(security: &Security, peer: &Peer, deadline: Duration) -> Result<Channel, Error> {
    let start = Instant::now();
    let unreachable = |reason, start: Instant| Error::Unreachable {
        peer: peer.clone(),
        reason,
        waited: start.elapsed(),
    };
    let endpoint = endpoint(&peer.address, security).map_err(|reason| unreachable(reason, start))?;
    let (mut pause, mut said) = (FIRST_PAUSE, start);
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        // Even with no time left one attempt is made, short as it is.
        let limit = left.clamp(Duration::from_millis(10), LONGEST_ATTEMPT);
        let reason = match within(limit, attempt(&peer.address, &endpoint)).await {
            Ok(line) => return Ok(InterceptedService::new(line, security.attach())),
            Err(reason) if reason.is_final() => return Err(unreachable(reason, start)),
            Err(reason) => reason,
        };
        let left = deadline.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(unreachable(reason, start));
        }
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            tracing::warn!(
                "waiting for {peer} since {:.0} s: {reason}",
                start.elapsed().as_secs_f64()
            );
        }
        tracing::debug!(%peer, %reason, "not reachable yet");
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// As [`connect`] with a single attempt: for those who look whether somebody is there now.
pub async fn connect_once(peer: &Peer, limit: Duration) -> Result<Channel, Error> {
    let (security, start) = (Security::of_this_process(), Instant::now());
    let dialled = match endpoint(&peer.address, &security) {
        Ok(endpoint) => within(limit, attempt(&peer.address, &endpoint)).await,
        Err(reason) => Err(reason),
    };
    let line = dialled.map_err(|reason| Error::Unreachable {
        peer: peer.clone(),
        reason,
        waited: start.elapsed(),
    })?;
    Ok(InterceptedService::new(line, security.attach()))
}

async fn within<T>(limit: Duration, dialling: impl Future<Output = Result<T, Unreachable>>) -> Result<T, Unreachable> {
    let dialled = tokio::time::timeout(limit, dialling).await;
    dialled.unwrap_or(Err(Unreachable::TimedOut))
}

fn endpoint(address: &str, security: &Security) -> Result<Endpoint, Unreachable> {
    let has_port = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !has_port {
        return Err(Unreachable::Address(format!("`{address}` has no port")));
    }
    let scheme = if security.tls().is_some() { "https" } else { "http" };
    let wrong = |error: tonic::transport::Error| Unreachable::Address(error.to_string());
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(wrong)?;
    if let Some(tls) = security.tls() {
        endpoint = endpoint.tls_config(tls.client()).map_err(wrong)?;
    }
    let keep_alive = KeepAlive::of_this_process();
    Ok(endpoint
        .http2_keep_alive_interval(keep_alive.interval)
        .keep_alive_timeout(keep_alive.timeout)
        .keep_alive_while_idle(true)
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

/// Whether the host of `address` (`host:port`) has an address of the network. Waits for a name server for as long as the system does.
pub async fn resolve(address: &str) -> Result<(), Unreachable> {
    let found = tokio::net::lookup_host(address).await;
    match found.map_err(|error| Unreachable::Dns(error.to_string()))?.next() {
        Some(_) => Ok(()),
        None => Err(Unreachable::Dns("the name has no address".to_owned())),
    }
}

async fn attempt(address: &str, endpoint: &Endpoint) -> Result<Line, Unreachable> {
    if let Some(network) = line::network() {
        return network.dial(address).map(Line::InProcess);
    }
    // Resolved apart, so that a wrong name is told from a host that does not answer.
    resolve(address).await?;
    let dialled = address.to_owned();
    // Of our own, for the read-ahead. The channel calls it again when the connection has broken.
    let connector = tower::service_fn(move |_: Uri| {
        let address = dialled.clone();
        async move {
            // The system itself would try for minutes where packets vanish.
            let connecting = tokio::time::timeout(LONGEST_ATTEMPT, TcpStream::connect(address));
            let stream = connecting.await.map_err(|_| io::ErrorKind::TimedOut)??;
            settings::tune(&stream)?;
            io::Result::Ok(TokioIo::new(BufReader::with_capacity(READ_AHEAD_BYTES, stream)))
        }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map(Line::Socket)
        .map_err(|error| reason(&error))
}

fn reason(error: &(dyn std::error::Error + 'static)) -> Unreachable {
    let mut deepest = error.to_string();
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            match io.kind() {
                io::ErrorKind::ConnectionRefused => return Unreachable::Refused,
                io::ErrorKind::TimedOut => return Unreachable::TimedOut,
                _ => {}
            }
        }
        deepest = cause.to_string();
        if let Some(breach) = Breach::of(&deepest) {
            return Unreachable::Stranger(breach);
        }
        next = cause.source();
    }
    Unreachable::Other(deepest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason_of(error: Error) -> Unreachable {
        match error {
            Error::Unreachable { reason, .. } => reason,
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn a_refusal_names_task_address_and_cause() {
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let peer = Peer::ps(1, format!("127.0.0.1:{port}"));
        let error = connect(&peer, Duration::from_millis(60)).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("ps-1 (127.0.0.1:{port}) did not answer within")),
            "{text}"
        );
        assert!(text.contains("connection refused") && text.contains("hint: "), "{text}");
        assert_eq!(reason_of(error), Unreachable::Refused);
    }

    #[tokio::test]
    async fn a_wrong_name_is_a_dns_error_and_a_missing_port_is_refused_at_once() {
        let error = connect(&Peer::new("worker-0", "no-such-host.invalid:80"), Duration::ZERO)
            .await
            .unwrap_err();
        assert!(matches!(reason_of(error), Unreachable::Dns(_) | Unreachable::TimedOut));
        let start = Instant::now();
        let error = connect(&Peer::new("master", "localhost"), Duration::from_secs(60))
            .await
            .unwrap_err();
        assert!(matches!(reason_of(error), Unreachable::Address(_)));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_server_that_comes_later_is_found() {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let peer = Peer::new("master", format!("127.0.0.1:{port}"));
        let dialling = tokio::spawn(async move { connect(&peer, Duration::from_secs(30)).await });
        tokio::task::yield_now().await;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let accepting = tokio::spawn(async move { listener.accept().await });
        dialling.await.unwrap().unwrap();
        accepting.await.unwrap().unwrap();
    }
}
