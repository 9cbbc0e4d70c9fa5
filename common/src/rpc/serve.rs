use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};

use super::security::Check;
use super::settings::KeepAlive;
use super::{
    CONNECTION_WINDOW_BYTES, Error, FRAME_BYTES, HEADER_LIMIT_BYTES, Incoming, STREAM_LIMIT, STREAM_WINDOW_BYTES,
    Security, settings,
};

/// A server all of whose services ask for the job's token.
pub type SecureServer = Server<Stack<InterceptorLayer<Check>, Identity>>;

/// A bound port, ready for `serve_with_incoming`.
pub struct Listener {
    /// Where it listens; with port 0 asked for, the port that was picked.
    pub address: SocketAddr,
    /// For `Router::serve_with_incoming_shutdown`.
    pub incoming: Incoming,
}

/// How long a port that is in use is tried again: a task that is started again may come before the system has taken
/// everything from its predecessor.
const HELD: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// Listens on `address` (`host:port`; port 0 picks a free one). A port in use is tried for 3 s; connections of a predecessor
/// that are still closing are in nobody's way.
pub async fn bind(address: &str) -> Result<Listener, Error> {
    bind_within(address, HELD).await
}

async fn bind_within(address: &str, patience: Duration) -> Result<Listener, Error> {
    let failed = |source| Error::Bind {
        address: address.to_owned(),
        source,
    };
    let deadline = Instant::now() + patience;
    let listener = loop {
        // On Unix this sets SO_REUSEADDR.
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(failed(error)),
        }
    };
    let local = listener.local_addr().map_err(failed)?;
    Ok(Listener {
        address: local,
        incoming: Incoming::new(listener, settings::connection_limit()),
    })
}

/// A server with the wire's settings that lets in whom `security` says; add services to it. Services set their own message
/// limit, since tonic keeps that per service.
///
/// Everything that a stranger can send is bounded, and nothing of a call is read before its token has been seen.
pub fn server(security: &Security) -> Result<SecureServer, Error> {
    let keep_alive = KeepAlive::of_this_process();
    let server = Server::builder()
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(keep_alive.interval))
        .http2_keepalive_timeout(Some(keep_alive.timeout))
        .http2_max_header_list_size(HEADER_LIMIT_BYTES)
        .max_concurrent_streams(STREAM_LIMIT);
    let server = match security.tls() {
        Some(tls) => server
            .tls_config(tls.server())
            .map_err(|error| Error::Credentials(error.to_string()))?,
        None => server,
    };
    Ok(server.layer(InterceptorLayer::new(security.check())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = bind("127.0.0.1:0").await.unwrap();
        let address = first.address.to_string();
        let second = bind_within(&address, Duration::ZERO).await;
        let text = second.err().map(|error| error.to_string()).unwrap();
        assert!(
            text.contains(&address) && text.contains("another process listens there"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_port_that_is_held_for_a_moment_is_had_in_the_end() {
        let first = bind("127.0.0.1:0").await.unwrap();
        let address = first.address.to_string();
        let second = tokio::spawn(async move { bind_within(&address, Duration::from_secs(60)).await });
        // The first attempt is made as soon as this task waits.
        tokio::task::yield_now().await;
        drop(first);
        second.await.unwrap().unwrap();
    }
}
