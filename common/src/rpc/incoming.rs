use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Read from the socket at a time. TLS asks for 4 KiB at a time, each of which would be a system call; larger reads than
/// this go around the buffer.
pub(super) const READ_AHEAD_BYTES: usize = 64 << 10;

/// After an accept that failed (the process has no file left): others need time to end.
const PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection. It counts towards the limit until it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    _slot: OwnedSemaphorePermit,
}

/// Connections to a port, endlessly: one that cannot be accepted ends nothing, and no more than a
/// limit are held at a time.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    pub(super) fn new(listener: TcpListener, limit: usize) -> Self {
        Self {
            listener,
            slots: Arc::new(Semaphore::new(limit)),
            pause: None,
        }
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
                    return Poll::Ready(Some(Ok(Connection {
                        stream: BufReader::with_capacity(READ_AHEAD_BYTES, stream),
                        _slot: slot,
                    })));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.get_ref().connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio_stream::StreamExt as _;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

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
