use std::io;
use std::net::SocketAddr;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_rustls::TlsAcceptor;

use super::{Io, Lane, PREFACE};
use crate::rpc::Security;
use crate::rpc::security::HANDSHAKE;

/// Somebody who wants a lane.
#[derive(Debug)]
pub struct Knock {
    pub(in crate::rpc) socket: TcpStream,
    pub(in crate::rpc) peer: SocketAddr,
    pub(in crate::rpc) slot: OwnedSemaphorePermit,
}

/// Those who want a lane of a port, in order. Their number is bounded by that of the port's connections.
#[derive(Debug)]
pub struct Lanes(mpsc::UnboundedReceiver<Knock>);

/// The way from a port to who serves its lanes.
pub(in crate::rpc) fn knocks() -> (mpsc::UnboundedSender<Knock>, Lanes) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Lanes(receiver))
}

impl Lanes {
    /// The next; nothing when the port is closed.
    pub async fn next(&mut self) -> Option<Knock> {
        self.0.recv().await
    }
}

impl Knock {
    /// Opens the lane, if the other side begins as it should and shows a certificate of the job where TLS is on; waits 10 s for
    /// that. A job's token has still to be asked for.
    pub async fn open(self, security: &Security) -> io::Result<Lane> {
        let Self { mut socket, peer, slot } = self;
        let opening = async {
            let mut preface = [0; PREFACE.len()];
            socket.read_exact(&mut preface).await?;
            if preface != *PREFACE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not a lane's beginning"));
            }
            Ok(match security.tls() {
                None => Io::Plain(socket),
                Some(tls) => {
                    let stream = TlsAcceptor::from(tls.lane_server())
                        .accept(super::ahead(socket))
                        .await?;
                    Io::Tls(Box::new(stream.into()))
                }
            })
        };
        let opened = tokio::time::timeout(HANDSHAKE, opening).await;
        let io = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(Lane::new(io, peer, Some(slot)))
    }
}
