//! The way to a task on the same host: a Unix domain socket beside each port on loopback, because the kernel moves bytes
//! through it for two thirds of what a TCP connection to itself costs. What is said on it is the same, TLS and token included.
//! A port keeps its meaning: whoever finds no such socket (another host, a proxy's port, another system) dials the port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

/// `off`: everybody dials ports. For measurements and for hosts whose policies know only of those.
const VARIABLE: &str = "COATI_UNIX_SOCKETS";

/// Connections that may wait to be accepted; whoever finds no room dials the port.
const WAITING: i32 = 128;

/// Bytes under way from one end to the other. The system may allow less.
const BUFFER_BYTES: usize = 4 << 20;

fn is_off() -> bool {
    static OFF: OnceLock<bool> = OnceLock::new();
    *OFF.get_or_init(|| std::env::var(VARIABLE).is_ok_and(|value| value == "off"))
}

/// In Linux' abstract namespace, which belongs to a network namespace as ports do and keeps nothing of a process that died.
fn name(port: SocketAddr) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0coati/{port}"))
}

fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn tuned(stream: UnixStream) -> io::Result<UnixStream> {
    SockRef::from(&stream).set_send_buffer_size(BUFFER_BYTES)?;
    if stream.peer_cred()?.uid() == nix::unistd::geteuid().as_raw() {
        Ok(stream)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Listens for neighbours of whoever listens on this port; not where the port is not one of loopback, or the system has no such
/// sockets.
pub(super) fn listen(port: SocketAddr) -> Option<UnixListener> {
    let reachable = port.ip().is_loopback() || port.ip().is_unspecified();
    if !cfg!(target_os = "linux") || !reachable || is_off() {
        return None;
    }
    let bound = || {
        let socket = socket()?;
        socket.bind(&name(port)?)?;
        socket.listen(WAITING)?;
        UnixListener::from_std(socket.into())
    };
    bound()
        .inspect_err(|error| tracing::debug!(%port, %error, "neighbours dial the port"))
        .ok()
}

/// Of an accepted connection: another user's is refused.
pub(super) fn accepted(stream: UnixStream) -> io::Result<UnixStream> {
    tuned(stream)
}

/// A connection to who listens on this port, if it is on this host, of the same user, and has room for one more.
pub(super) fn dial(port: SocketAddr) -> Option<UnixStream> {
    if !cfg!(target_os = "linux") || !port.ip().is_loopback() || is_off() {
        return None;
    }
    let everywhere = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    let known_as = [port.ip()].into_iter().chain(everywhere);
    let connected = |ip: IpAddr| {
        let socket = socket()?;
        socket.connect(&name(SocketAddr::new(ip, port.port()))?)?;
        tuned(UnixStream::from_std(socket.into())?)
    };
    known_as.into_iter().find_map(|ip| connected(ip).ok())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn neighbours_meet_beside_their_port_and_nowhere_else() {
        // The port is held, so that no other test has it.
        let held = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let local = SocketAddr::from(([127, 0, 0, 1], port));
        assert!(dial(local).is_none(), "nobody is there yet");
        let listener = listen(held.local_addr().unwrap()).unwrap();
        assert!(listen(held.local_addr().unwrap()).is_none(), "taken");
        let mut ours = dial(local).unwrap();
        let mut theirs = accepted(listener.accept().await.unwrap().0).unwrap();
        ours.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        theirs.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        assert!(dial(SocketAddr::from(([10, 0, 0, 1], port))).is_none(), "another host");
        drop(listener);
        assert!(dial(local).is_none(), "nobody is there any more");
    }

    #[tokio::test]
    async fn who_has_no_room_is_dialled_at_its_port() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let local = held.local_addr().unwrap();
        let _listener = listen(local).unwrap();
        let waiting: Vec<_> = std::iter::from_fn(|| dial(local)).take(2 * WAITING as usize).collect();
        assert!(waiting.len() <= WAITING as usize + 1, "{}", waiting.len());
    }
}
