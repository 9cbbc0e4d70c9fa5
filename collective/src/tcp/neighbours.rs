//! Ranks of one host find each other: who reaches the other's Unix socket exchanges elements through it from then on.
//!
//! The sockets have names in the abstract namespace of Linux, which a network namespace has for itself: 256 random bits, told over connections
//! whose ends have shown that they belong to the job, so nobody else knows them. Who dials shows its own.

use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::line::set;
use super::secret::{equal, nonce};

/// Between two looks at who has come.
const LOOK: Duration = Duration::from_millis(1);

/// Longest wait for what somebody who has come says at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Of bytes under way; the system grants what it allows.
const BUFFER: usize = 1 << 20;

pub(super) type Name = [u8; 32];

/// Where this rank can be reached.
pub(super) struct Door {
    pub(super) name: Name,
    listener: UnixListener,
}

fn address(name: &Name) -> std::io::Result<SocketAddr> {
    let mut text = b"coati-ranks-".to_vec();
    for byte in name {
        text.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    SocketAddr::from_abstract_name(text)
}

fn ready(stream: UnixStream) -> std::io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    // Where it cannot be set, the system's own stays.
    let _ = set(&stream, libc::SO_SNDBUF, BUFFER);
    Ok(stream)
}

/// Reaches a rank of this host; an error where it is on another one.
pub(super) fn dial(name: &Name, rank: usize, own: &Name) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect_addr(&address(name)?)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&(rank as u32).to_le_bytes())?;
    stream.write_all(own)?;
    ready(stream)
}

impl Door {
    pub(super) fn open() -> std::io::Result<Self> {
        let name = nonce();
        let listener = UnixListener::bind_addr(&address(&name)?)?;
        listener.set_nonblocking(true)?;
        Ok(Self { name, listener })
    }

    /// Lets in those ranks that have dialled, each of which is known by its name; who else comes is passed over. Those that did not
    /// come by `until` are missing.
    pub(super) fn admit(&self, expected: &[(usize, Name)], until: Instant) -> Vec<(usize, UnixStream)> {
        let mut found: Vec<(usize, UnixStream)> = Vec::new();
        while found.len() < expected.len() && Instant::now() < until {
            let Ok((stream, _)) = self.listener.accept() else {
                std::thread::sleep(LOOK);
                continue;
            };
            if let Some((rank, stream)) = known(stream, expected)
                && found.iter().all(|(other, _)| *other != rank)
            {
                found.push((rank, stream));
            }
        }
        found
    }
}

fn known(mut stream: UnixStream, expected: &[(usize, Name)]) -> Option<(usize, UnixStream)> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let (mut rank, mut name) = ([0; 4], [0; 32]);
    stream.read_exact(&mut rank).ok()?;
    stream.read_exact(&mut name).ok()?;
    let rank = u32::from_le_bytes(rank) as usize;
    let (_, theirs) = expected.iter().find(|(other, _)| *other == rank)?;
    if !equal(theirs, &name) {
        return None;
    }
    Some((rank, ready(stream).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_known_by_their_names_and_strangers_passed_over() {
        let door = Door::open().unwrap();
        let (own, wrong) = (nonce(), nonce());
        let mut stranger = UnixStream::connect_addr(&address(&door.name).unwrap()).unwrap();
        stranger
            .write_all(b"GET / HTTP/1.1\r\nHost: somewhere\r\nAccept: nothing")
            .unwrap();
        let _impostor = dial(&door.name, 3, &wrong).unwrap();
        let mut first = dial(&door.name, 3, &own).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        let found = door.admit(&[(3, own)], until);
        let [(3, second)] = &found[..] else { panic!("{found:?}") };
        first.write_all(b"here").unwrap();
        let (mut second, mut heard) = (second.try_clone().unwrap(), [0; 4]);
        second.set_nonblocking(false).unwrap();
        second.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"here");
        assert!(dial(&nonce(), 1, &own).is_err(), "a rank of another host");
    }

    #[test]
    fn who_does_not_come_is_not_waited_for_beyond_the_time() {
        let door = Door::open().unwrap();
        let until = Instant::now() + Duration::from_millis(20);
        assert!(door.admit(&[(1, nonce())], until).is_empty());
    }
}
