//! The first bytes of each connection. All of it has a fixed size, so a stranger chooses no length.
//!
//! Each end sends a magic and a nonce, then a proof that it has the secret, then who it is. Only who has shown the proof is listened to
//! any further.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::secret::{Secret, equal, nonce};
use crate::Identity;

/// "COATITCP" and the number of the protocol, in its last letter's place.
const MAGIC: &[u8; 8] = b"COATITC1";

/// A pair of ranks has two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Elements.
    Data,
    /// Who gives up or leaves, so that this is heard in the middle of elements.
    Control,
}

/// What an end says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) identity: Identity,
    pub(super) channel: Channel,
    /// Where it listens, on the address that it is seen with.
    pub(super) port: u16,
}

impl Hello {
    const BYTES: usize = 3 + Identity::BYTES;

    fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.channel as u8;
        bytes[1..3].copy_from_slice(&self.port.to_le_bytes());
        bytes[3..].copy_from_slice(&self.identity.encode());
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        Some(Self {
            channel: match bytes[0] {
                0 => Channel::Data,
                1 => Channel::Control,
                _ => return None,
            },
            port: u16::from_le_bytes([bytes[1], bytes[2]]),
            identity: Identity::decode(bytes[3..].try_into().ok()?)?,
        })
    }
}

/// Which end this is; in the proof, so that one end's cannot be sent back as the other's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Dials,
    Listens,
}

/// Does both ends' part; tells in words why a peer is none.
pub(super) fn shake(
    stream: &mut TcpStream,
    role: Role,
    secret: &Secret,
    hello: &Hello,
    until: Instant,
) -> Result<Hello, String> {
    let said = |error: std::io::Error| match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "it hung up in the handshake, as ranks do on one with another token".to_owned()
        }
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "it said nothing in the handshake".to_owned(),
        _ => format!("the handshake failed: {error}"),
    };
    stream.set_nonblocking(false).map_err(said)?;
    stream.set_nodelay(true).map_err(said)?;
    let own = nonce();
    let mut first = [0; 40];
    first[..8].copy_from_slice(MAGIC);
    first[8..].copy_from_slice(&own);
    send(stream, &first, until).map_err(said)?;
    let mut theirs = [0; 40];
    // What is no rank is known by its first bytes; it may never send forty.
    receive(stream, &mut theirs[..8], until).map_err(said)?;
    if theirs[..8] != *MAGIC {
        let seen = theirs[..8].escape_ascii().to_string();
        return Err(format!(
            "it is no rank of this version's protocol: it began with \"{seen}\""
        ));
    }
    receive(stream, &mut theirs[8..], until).map_err(said)?;
    let mut other = [0; 32];
    other.copy_from_slice(&theirs[8..]);

    let (here, there) = match role {
        Role::Dials => (0, 1),
        Role::Listens => (1, 0),
    };
    send(stream, &secret.proof(here, &own, &other), until).map_err(said)?;
    let mut proof = [0; 32];
    receive(stream, &mut proof, until).map_err(said)?;
    if !equal(&proof, &secret.proof(there, &other, &own)) {
        return Err("it has another token".to_owned());
    }
    send(stream, &hello.encode(), until).map_err(said)?;
    let mut bytes = [0; Hello::BYTES];
    receive(stream, &mut bytes, until).map_err(said)?;
    Hello::decode(&bytes).ok_or_else(|| "it did not say who it is".to_owned())
}

/// At least a millisecond: none means for ever.
fn left(until: Instant) -> std::io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    Ok(left.max(Duration::from_millis(1)))
}

/// Reads all of it before `until`, however slowly it drips.
pub(super) fn receive(stream: &mut TcpStream, mut into: &mut [u8], until: Instant) -> std::io::Result<()> {
    while !into.is_empty() {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(into) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => into = &mut into[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn send(stream: &mut TcpStream, bytes: &[u8], until: Instant) -> std::io::Result<()> {
    stream.set_write_timeout(Some(left(until)?))?;
    stream.write_all(bytes)
}
