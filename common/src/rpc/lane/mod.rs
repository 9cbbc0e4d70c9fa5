//! Connections for bulk data, beside those for calls, on the same port, by the same credentials.
//!
//! HTTP/2 hands data over in buffers of its own: a further copy of each byte, which costs as much processor time as half of
//! what the system needs to move it. On a lane a receiver reads from the socket to where the bytes belong. What travels on it
//! and who may use it is up to those who open it; a lane begins with [`PREFACE`], which tells it from HTTP/2 and from TLS, and
//! speaks TLS from there on wherever calls do.

mod accept;
mod dial;

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::FutureExt as _;
use nix::libc;
use nix::sys::socket::setsockopt;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

pub(super) use accept::knocks;
pub use accept::{Knock, Lanes};

/// What a lane begins with. HTTP/2 begins with another letter, TLS with no letter at all.
pub(super) const PREFACE: &[u8; 12] = b"coati lane 1";

/// Of one read: what is looked at next is still in the cache then.
const PIECE: usize = 256 << 10;

/// A receiver of much is woken when so much has come: each wake-up costs more than the copy of some kilobytes.
const LOW_WATER: usize = 128 << 10;

/// Parts of one write. The system takes up to 1024.
const PARTS: usize = 64;

/// One end. Each read and write ends within [`Lane::patience`].
#[derive(Debug)]
pub struct Lane {
    io: Io,
    peer: SocketAddr,
    patience: Duration,
    low_water: usize,
    /// A connection counts towards its server's limit for as long as it is open.
    _slot: Option<tokio::sync::OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

/// What TLS reads from: it asks for 4 KiB at a time.
fn ahead(socket: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(super::incoming::READ_AHEAD_BYTES, socket)
}

impl Lane {
    fn new(io: Io, peer: SocketAddr, slot: Option<tokio::sync::OwnedSemaphorePermit>) -> Self {
        Self {
            io,
            peer,
            patience: super::settings::patience(),
            low_water: 1,
            _slot: slot,
        }
    }

    /// The address at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// How long the other side may be silent while something is expected of it: twice what [`super::tolerate_silence`] says, as
    /// for calls. Who has nothing to say for longer must give a sign of life.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// How often a sign of life is due: far more often than the other side gives up, whatever its own limit on silence is.
    pub fn sign_every(&self) -> Duration {
        SIGN.min(self.patience / 4)
    }

    fn socket(&self) -> &TcpStream {
        match &self.io {
            Io::Plain(socket) => socket,
            Io::Tls(stream) => stream.get_ref().0.get_ref(),
        }
    }

    /// As [`Lane::read`], without end: where nothing is expected yet. Nothing is lost when it is given up.
    pub async fn read_whenever(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.io {
            Io::Plain(socket) => socket.read(into).await,
            Io::Tls(stream) => stream.read(into).await,
        }
    }

    /// Reads what there is, one byte at least; 0 at the end of the stream, or where `into` is empty.
    pub async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let piece = into.len().min(PIECE);
        let into = &mut into[..piece];
        let half = self.patience / 2;
        let first = within(half, self.read_whenever(into)).await;
        if !first
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
        {
            return first;
        }
        // On a slow network a few bytes are a sign of life, too.
        self.expect(1);
        within(half, self.read_whenever(into)).await
    }

    /// Says that so many bytes will come for certain: a read may wait until many of them are there. Nothing where the system may
    /// forget to wake who has waited for more than he waits for now.
    pub fn expect(&mut self, bytes: usize) {
        // With TLS, bytes on the wire are others.
        let Io::Plain(socket) = &self.io else { return };
        if !cfg!(target_os = "linux") {
            return;
        }
        let wanted = bytes.clamp(1, LOW_WATER);
        if wanted != self.low_water && setsockopt(socket, LowWater, &(wanted as i32)).is_ok() {
            self.low_water = wanted;
        }
    }

    /// Sends `parts`, one after the other, and leaves them empty.
    pub async fn send(&mut self, parts: &mut [Bytes]) -> io::Result<()> {
        let mut first = 0;
        loop {
            while parts.get(first).is_some_and(Bytes::is_empty) {
                first += 1;
            }
            let slices: Vec<IoSlice<'_>> = parts[first..]
                .iter()
                .take(PARTS)
                .map(|part| IoSlice::new(part))
                .collect();
            if slices.is_empty() {
                break;
            }
            let writing = async {
                match &mut self.io {
                    Io::Plain(socket) => socket.write_vectored(&slices).await,
                    Io::Tls(stream) => stream.write_vectored(&slices).await,
                }
            };
            let mut sent = within(self.patience, writing).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            for part in &mut parts[first..] {
                let taken = sent.min(part.len());
                part.advance(taken);
                sent -= taken;
            }
        }
        if let Io::Tls(stream) = &mut self.io {
            within(self.patience, stream.flush()).await?;
        }
        Ok(())
    }

    /// Waits without end until bytes come that nobody expects, or the other side hangs up.
    pub async fn disturbed(&self) {
        let _ = self.socket().peek(&mut [0]).await;
    }

    /// Whether it can be used for something new: nothing is left of what was before, and nobody has hung up.
    pub fn is_idle(&self) -> bool {
        self.socket().peek(&mut [0]).now_or_never().is_none()
    }
}

/// See [`Lane::sign_every`].
const SIGN: Duration = Duration::from_millis(500);

async fn within<T>(patience: Duration, doing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let silent = |_| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no byte moved for {:.0} s", patience.as_secs_f64()),
        )
    };
    tokio::time::timeout(patience, doing).await.map_err(silent)?
}

/// `SO_RCVLOWAT`, which socket2 and nix have no name for.
#[derive(Clone, Copy)]
struct LowWater;

nix::setsockopt_impl!(
    LowWater,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    i32,
    nix::sys::socket::sockopt::SetStruct<i32>
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::{Peer, Security, bind, security};
    use tokio_stream::StreamExt as _;

    /// Both ends of a lane of a port of this machine.
    async fn pair(security: &Security) -> (Lane, Lane) {
        let mut listener = bind("127.0.0.1:0").await.unwrap();
        let mut lanes = listener.incoming.lanes();
        tokio::spawn(async move {
            while let Some(Ok(mut connection)) = listener.incoming.next().await {
                tokio::spawn(async move { connection.read_u8().await });
            }
        });
        let peer = Peer::ps(0, listener.address.to_string());
        let dialling = Lane::dial(security, &peer, Duration::from_secs(60));
        let opening = async { lanes.next().await.unwrap().open(security).await.unwrap() };
        let (dialled, opened) = tokio::join!(dialling, opening);
        (dialled.unwrap(), opened)
    }

    fn job() -> (tempfile::TempDir, Security) {
        let folder = tempfile::tempdir().unwrap();
        let sources = security::Sources::of_job(folder.path());
        sources.make().unwrap();
        let security = sources.load(Duration::ZERO).unwrap();
        (folder, security)
    }

    #[tokio::test]
    async fn what_is_sent_in_parts_is_read_in_order_with_tls_and_without() {
        let (_folder, with_tls) = job();
        for security in [Security::none(), with_tls] {
            let (mut from, mut to) = pair(&security).await;
            assert!(from.is_idle() && to.is_idle());
            let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
            let mut parts: Vec<Bytes> = bytes.chunks(7777).map(Bytes::copy_from_slice).collect();
            parts.insert(3, Bytes::new());
            let reading = async {
                let mut read = vec![0; bytes.len()];
                let mut done = 0;
                while done < read.len() {
                    to.expect(bytes.len() - done);
                    done += to.read(&mut read[done..]).await.unwrap();
                }
                read
            };
            let (sent, read) = tokio::join!(from.send(&mut parts), reading);
            sent.unwrap();
            assert!(read == bytes && parts.iter().all(Bytes::is_empty));
            assert_eq!(to.read(&mut []).await.unwrap(), 0);
            drop(from);
            to.disturbed().await;
            assert!(!to.is_idle());
            assert_eq!(to.read(&mut [0]).await.unwrap_or(0), 0);
        }
    }

    #[tokio::test]
    async fn tls_lets_nobody_in_who_is_not_of_the_job() {
        let ((_one, ours), (_other, theirs)) = (job(), job());
        let mut listener = bind("127.0.0.1:0").await.unwrap();
        let mut lanes = listener.incoming.lanes();
        let peer = Peer::ps(0, listener.address.to_string());
        tokio::spawn(async move {
            while let Some(Ok(mut connection)) = listener.incoming.next().await {
                tokio::spawn(async move { connection.read_u8().await });
            }
        });
        let dialling = tokio::spawn({
            let peer = peer.clone();
            async move { Lane::dial(&theirs, &peer, Duration::from_secs(60)).await }
        });
        let opened = lanes.next().await.unwrap().open(&ours).await;
        assert!(opened.is_err());
        let refused = crate::rpc::ServiceError::from(&dialling.await.unwrap().unwrap_err());
        assert_eq!(refused.code, crate::rpc::ErrorCode::Unauthenticated, "{refused}");
    }

    #[tokio::test]
    async fn a_side_that_moves_no_byte_is_given_up() {
        let (mut lane, _other) = pair(&Security::none()).await;
        tokio::time::pause();
        let error = lane.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut flood = vec![Bytes::from(vec![0; 64 << 20])];
        let error = lane.send(&mut flood).await.unwrap_err();
        assert!(error.to_string().contains("no byte moved for"), "{error}");
    }
}
