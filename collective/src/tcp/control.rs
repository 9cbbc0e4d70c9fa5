//! What ranks tell each other beside the elements: that it is over, and why.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

/// Longest reason, in bytes.
const MOST_REASON: usize = 4096;

pub(super) const ABORT: u8 = 1;
pub(super) const LEAVE: u8 = 2;
pub(super) const ROSTER: u8 = 3;
pub(super) const PULSE: u8 = 4;

/// Something that a peer said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It gives up, for this reason.
    Abort(String),
    /// It leaves in order; its hanging up is no loss.
    Leave,
    /// It runs.
    Pulse,
    /// It hung up.
    End,
    /// Something that is none of these.
    Noise,
}

/// One end of a control connection that does not block.
pub(super) struct Control {
    pub(super) stream: TcpStream,
    heard: Vec<u8>,
}

impl Control {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            heard: Vec::new(),
        }
    }

    /// One of which the first byte was read already.
    pub(super) fn with(stream: TcpStream, first: u8) -> Self {
        Self {
            stream,
            heard: vec![first],
        }
    }

    /// What has come; nothing where nothing whole has.
    pub(super) fn hear(&mut self) -> Option<Said> {
        let mut bytes = [0; 512];
        loop {
            if let Some(said) = parse(&mut self.heard) {
                return Some(said);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return Some(Said::End),
                Ok(count) => self.heard.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => return Some(Said::End),
            }
        }
    }

    /// A few bytes on an idle connection: they fit, or the peer is gone anyway.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }
}

/// As it travels.
pub(super) fn abort(reason: &str) -> Vec<u8> {
    let mut end = reason.len().min(MOST_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![ABORT];
    bytes.extend_from_slice(&(end as u16).to_le_bytes());
    bytes.extend_from_slice(&reason.as_bytes()[..end]);
    bytes
}

/// Takes the first whole message from `heard`.
fn parse(heard: &mut Vec<u8>) -> Option<Said> {
    match *heard.first()? {
        LEAVE => {
            heard.remove(0);
            Some(Said::Leave)
        }
        PULSE => {
            heard.remove(0);
            Some(Said::Pulse)
        }
        ABORT => {
            let length = usize::from(u16::from_le_bytes([*heard.get(1)?, *heard.get(2)?]));
            if length > MOST_REASON {
                return Some(Said::Noise);
            }
            let reason = String::from_utf8_lossy(heard.get(3..3 + length)?).into_owned();
            heard.drain(..3 + length);
            Some(Said::Abort(reason))
        }
        _ => Some(Said::Noise),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_in_pieces_and_bounded() {
        let mut heard = vec![PULSE, LEAVE];
        assert_eq!(parse(&mut heard), Some(Said::Pulse));
        let sent = abort("the disk is full");
        heard.extend_from_slice(&sent[..5]);
        assert_eq!(parse(&mut heard), Some(Said::Leave));
        assert_eq!(parse(&mut heard), None);
        heard.extend_from_slice(&sent[5..]);
        assert_eq!(parse(&mut heard), Some(Said::Abort("the disk is full".to_owned())));
        assert_eq!(parse(&mut heard), None);
        assert_eq!(parse(&mut vec![ABORT, 0xff, 0xff]), Some(Said::Noise));
        assert_eq!(parse(&mut vec![9]), Some(Said::Noise));
        assert!(abort(&"é".repeat(5000)).len() <= MOST_REASON + 3);
    }
}
