//! What elements of a pair of ranks travel on: a TCP connection, or within a host a Unix socket, which has no network's work to do.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// See the module.
pub(super) struct Line {
    /// Kept as long as what came in its place: what a peer has not read of it yet must not be lost.
    connection: TcpStream,
    local: Option<UnixStream>,
}

impl Line {
    pub(super) fn new(connection: TcpStream) -> Self {
        Self {
            connection,
            local: None,
        }
    }

    /// Goes on with a socket of this host.
    pub(super) fn move_to(&mut self, stream: UnixStream) {
        self.local = Some(stream);
    }

    /// `SO_RCVLOWAT`; false where it cannot be set, which changes nothing but how often one wakes.
    pub(super) fn set_low_water(&self, bytes: usize) -> bool {
        set(self, libc::SO_RCVLOWAT, bytes)
    }

    /// Whether the other end has hung up and nothing is left to read.
    pub(super) fn ended(&self) -> bool {
        let (mut byte, flags) = (0_u8, libc::MSG_PEEK | libc::MSG_DONTWAIT);
        // SAFETY: room for one byte.
        unsafe { libc::recv(self.as_raw_fd(), (&raw mut byte).cast(), 1, flags) == 0 }
    }
}

/// A number among a socket's options; false where it cannot be set.
pub(super) fn set(socket: &impl AsRawFd, option: libc::c_int, value: usize) -> bool {
    let value = value as libc::c_int;
    // SAFETY: a number and its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result == 0
}

impl Read for Line {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match &mut self.local {
            Some(local) => local.read(to),
            None => self.connection.read(to),
        }
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match &mut self.local {
            Some(local) => local.write(from),
            None => self.connection.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Line {
    fn as_raw_fd(&self) -> RawFd {
        match &self.local {
            Some(local) => local.as_raw_fd(),
            None => self.connection.as_raw_fd(),
        }
    }
}
