use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Status;

use super::{Io, Lane, PREFACE};
use crate::rpc::{Peer, Security, settings};

/// The system itself would try for minutes where packets vanish.
const LONGEST: Duration = Duration::from_secs(5);

impl Lane {
    /// Opens a lane to a server that takes them, within `limit` and 5 s; one attempt. What fails is told as a broken connection
    /// of a call would be, or as the breach of trust that it is.
    pub async fn dial(security: &Security, peer: &Peer, limit: Duration) -> Result<Self, Status> {
        let limit = limit.min(LONGEST);
        let dialled = tokio::time::timeout(limit, dial(security, peer)).await;
        let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        dialled.map_err(|error| Status::unavailable(format!("no lane to {peer}: {error}")))
    }
}

async fn dial(security: &Security, peer: &Peer) -> io::Result<Lane> {
    let mut socket = TcpStream::connect(peer.address.as_str()).await?;
    settings::tune(&socket)?;
    let address = socket.peer_addr()?;
    socket.write_all(PREFACE).await?;
    let io = match security.tls() {
        None => Io::Plain(socket),
        Some(tls) => {
            let name = tls.name_of(&peer.address)?;
            let stream = TlsConnector::from(tls.lane_client())
                .connect(name, super::ahead(socket))
                .await?;
            Io::Tls(Box::new(stream.into()))
        }
    };
    Ok(Lane::new(io, address, None))
}
