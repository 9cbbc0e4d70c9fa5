use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::lane::{self, Knock, Lanes, PREFACE};
use super::security::HANDSHAKE;

/// Read from the socket at a time. TLS asks for 4 KiB at a time, each of which would be a system call; larger reads than
/// this go around the buffer.
pub(super) const READ_AHEAD_BYTES: usize = 64 << 10;

/// After an accept that failed (the process has no file left): others need time to end.
const PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection. It counts towards the limit until it is dropped.
#[derive(Debug)]
pub struct Connection {
    state: State,
    from: TcpConnectInfo,
}

#[derive(Debug)]
enum State {
    /// Nothing has come yet: it may be for calls, or want to be a lane. Not for long.
    Unknown(
        TcpStream,
        OwnedSemaphorePermit,
        mpsc::UnboundedSender<Knock>,
        Pin<Box<Sleep>>,
    ),
    /// For calls.
    Calls(
        BufReader<TcpStream>,
        #[expect(dead_code, reason = "held")] OwnedSemaphorePermit,
    ),
    /// It is a lane: nothing comes and goes here any more.
    Gone,
}

/// Connections to a port, endlessly: one that cannot be accepted ends nothing, and no more than a
/// limit are held at a time.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    pause: Option<Pin<Box<Sleep>>>,
    lanes: Option<mpsc::UnboundedSender<Knock>>,
}

impl Incoming {
    pub(super) fn new(listener: TcpListener, limit: usize) -> Self {
        Self {
            listener,
            slots: Arc::new(Semaphore::new(limit)),
            pause: None,
            lanes: None,
        }
    }

    /// From now on, who asks for a lane gets one. Without, such connections are garbage.
    pub fn lanes(&mut self) -> Lanes {
        let (sender, lanes) = lane::knocks();
        self.lanes = Some(sender);
        lanes
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok((stream, from)) => {
                    let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                        tracing::warn!(%from, "too many connections: the newest is closed");
                        continue;
                    };
                    if let Err(error) = super::settings::tune(&stream) {
                        tracing::debug!(%from, %error, "connection ended at once");
                        continue;
                    }
                    let from = stream.connect_info();
                    let state = match &self.lanes {
                        Some(lanes) => State::Unknown(stream, slot, lanes.clone(), Box::pin(sleep(HANDSHAKE))),
                        None => State::calls(stream, slot),
                    };
                    return Poll::Ready(Some(Ok(Connection { state, from })));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

impl State {
    fn calls(stream: TcpStream, slot: OwnedSemaphorePermit) -> Self {
        Self::Calls(BufReader::with_capacity(READ_AHEAD_BYTES, stream), slot)
    }
}

impl Connection {
    /// What carries calls, once it is known that it does; nothing where it is a lane. Whoever connects speaks first, so that
    /// nothing is written before either.
    fn poll_calls(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Pin<&mut BufReader<TcpStream>>>>> {
        if let State::Unknown(stream, .., limit) = &mut self.state {
            let mut first = [0];
            match stream.poll_peek(context, &mut ReadBuf::new(&mut first)) {
                Poll::Ready(peeked) => peeked?,
                Poll::Pending => {
                    ready!(limit.as_mut().poll(context));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            };
            self.state = match std::mem::replace(&mut self.state, State::Gone) {
                State::Unknown(socket, slot, lanes, _) if first[0] == PREFACE[0] => {
                    if let Ok(peer) = socket.peer_addr() {
                        // Where nobody serves lanes any more, it is closed.
                        let _ = lanes.send(Knock { socket, peer, slot });
                    }
                    State::Gone
                }
                State::Unknown(stream, slot, ..) => State::calls(stream, slot),
                known => known,
            };
        }
        Poll::Ready(Ok(match &mut self.state {
            State::Calls(stream, _) => Some(Pin::new(stream)),
            State::Unknown(..) | State::Gone => None,
        }))
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.from.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(self.poll_calls(context))? {
            Some(stream) => stream.poll_read(context, buffer),
            // The end of the stream.
            None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(self.poll_calls(context))? {
            Some(stream) => stream.poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match ready!(self.poll_calls(context))? {
            Some(stream) => stream.poll_write_vectored(context, slices),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Calls(stream, _) => Pin::new(stream).poll_flush(context),
            // Nothing was written.
            State::Unknown(..) | State::Gone => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Calls(stream, _) => Pin::new(stream).poll_shutdown(context),
            State::Unknown(stream, ..) => Pin::new(stream).poll_shutdown(context),
            State::Gone => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::rpc::Security;
    use bytes::Bytes;

    const DEADLINE: Duration = Duration::from_secs(60);

    /// What has connected as `first`, and its other end.
    async fn connected(incoming: &mut Incoming, first: &[u8]) -> (Connection, TcpStream) {
        let mut stream = TcpStream::connect(incoming.listener.local_addr().unwrap())
            .await
            .unwrap();
        stream.write_all(first).await.unwrap();
        (incoming.next().await.unwrap().unwrap(), stream)
    }

    #[tokio::test]
    async fn the_first_letter_tells_lanes_from_calls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut incoming = Incoming::new(listener, 2);
        let mut lanes = incoming.lanes();
        let mut byte = [0];
        for first in [&b"PRI * HTTP/2.0"[..], &[0x16, 3, 1]] {
            let (mut call, mut other) = connected(&mut incoming, first).await;
            // Who serves calls may speak before it reads.
            call.write_all(b"hello").await.unwrap();
            assert_eq!(call.read(&mut byte).await.unwrap(), 1);
            assert_eq!(byte[0], first[0], "nothing is lost by the look");
            assert_eq!(other.read(&mut byte).await.unwrap(), 1);
            assert_eq!(byte[0], b'h');
        }
        let (mut lane, mut other) = connected(&mut incoming, PREFACE).await;
        assert_eq!(
            lane.write(b"hello").await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert_eq!(lane.read(&mut byte).await.unwrap(), 0);
        drop(lane);
        let opened = lanes.next().await.unwrap().open(&Security::none()).await;
        let mut opened = opened.unwrap();
        opened.send(&mut [Bytes::from_static(b"hello")]).await.unwrap();
        assert_eq!(other.read(&mut byte).await.unwrap(), 1);
        assert_eq!(byte[0], b'h', "nothing but what the lane says");
        assert_eq!(incoming.slots.available_permits(), 1, "a lane holds its slot");
        drop(opened);
        assert_eq!(incoming.slots.available_permits(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut incoming = Incoming::new(listener, 2);
        let _lanes = incoming.lanes();
        let (mut silent, _other) = connected(&mut incoming, b"").await;
        let error = silent.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn beyond_the_limit_the_newest_is_closed_and_room_is_given_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = Incoming::new(listener, 2);
        let (_one, _two) = (
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        );
        let first = incoming.next().await.unwrap().unwrap();
        let _second = incoming.next().await.unwrap().unwrap();
        let mut third = TcpStream::connect(address).await.unwrap();
        tokio::select! {
            _ = incoming.next() => panic!("a third connection was let in"),
            read = tokio::time::timeout(DEADLINE, third.read_u8()) => drop(read.unwrap().unwrap_err()),
        }
        drop(first);
        let _fourth = TcpStream::connect(address).await.unwrap();
        tokio::time::timeout(DEADLINE, incoming.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
