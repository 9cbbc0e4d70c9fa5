//! Moves bytes to and from all peers at once, on the caller's thread: sockets that do not block, and `poll`.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::control::{Control, Said};
use super::line::Line;
use crate::identity::Vigil;
use crate::operation::{Operation, Standing};
use crate::{Error, Member, Watch};

/// Longest sleep before one looks at the clock.
const NAP: Duration = Duration::from_millis(250);

/// Most bytes that one waits for before one wakes.
const MOST_LOW_WATER: usize = 128 << 10;

/// After a connection broke: how long one listens for the reason.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A peer's connections and how far it is.
pub(super) struct Peer {
    pub(super) data: Line,
    pub(super) control: Control,
    /// The newest operation that it has begun.
    pub(super) last: Operation,
    pub(super) left: bool,
    /// When anything last came from it, a sign of life at least.
    heard_at: Instant,
    heading: [u8; Operation::BYTES],
    sent: usize,
    heard: usize,
    /// So many bytes wake who waits for them.
    low_water: usize,
}

impl Peer {
    pub(super) fn new(data: TcpStream, control: TcpStream) -> Self {
        Self {
            data: Line::new(data),
            control: Control::new(control),
            last: Operation::NONE,
            left: false,
            heard_at: Instant::now(),
            heading: [0; Operation::BYTES],
            sent: Operation::BYTES,
            heard: Operation::BYTES,
            low_water: 1,
        }
    }

    /// Goes on with a socket of this host in place of the connection: between two operations.
    #[cfg(target_os = "linux")]
    pub(super) fn move_to(&mut self, stream: std::os::unix::net::UnixStream) {
        self.data.move_to(stream);
        self.low_water = 1;
    }

    /// Before a sleep in which a piece of `lane` is waited for: nothing can be done with less than all of it, so that less wakes
    /// nobody.
    fn wake_for(&mut self, lane: &Lane) {
        let wanted = match lane.into.front() {
            Some(piece) if self.heard == Operation::BYTES => piece.bytes.len().clamp(1, MOST_LOW_WATER),
            _ => 1,
        };
        if wanted != self.low_water && self.data.set_low_water(wanted) {
            self.low_water = wanted;
        }
    }

    /// Before the first byte of an operation.
    pub(super) fn begin(&mut self) {
        (self.sent, self.heard) = (0, 0);
    }
}

/// Bytes of one of the memories that a call works on.
#[derive(Debug)]
struct Piece {
    memory: usize,
    bytes: Range<usize>,
}

/// What goes to a peer and what is expected of it, in order.
#[derive(Debug, Default)]
pub(super) struct Lane {
    out: VecDeque<Piece>,
    into: VecDeque<Piece>,
    expected: usize,
    received: usize,
}

impl Lane {
    /// Sends `bytes` of memory `memory`, which are not written to until they have left.
    pub(super) fn send(&mut self, memory: usize, bytes: Range<usize>) {
        if !bytes.is_empty() {
            self.out.push_back(Piece { memory, bytes });
        }
    }

    /// Receives into `bytes` of memory `memory`. Returns how many pieces this lane has then been asked to receive.
    pub(super) fn receive(&mut self, memory: usize, bytes: Range<usize>) -> usize {
        if !bytes.is_empty() {
            self.into.push_back(Piece { memory, bytes });
            self.expected += 1;
        }
        self.expected
    }
}

/// All peers; nothing in the own place.
pub(super) struct Engine {
    pub(super) members: Vec<Member>,
    pub(super) peers: Vec<Option<Peer>>,
    pub(super) rank: usize,
    pub(super) timeout: Duration,
    pub(super) watch: Watch,
    /// Why another thread of this process ended it.
    pub(super) quit: Arc<Mutex<Option<String>>>,
}

/// Whether bytes moved.
enum Moved {
    Some,
    None,
    Broken(String),
}

impl Engine {
    /// Until everything in `lanes` (one a rank) has moved, and every peer has said that it is at `call`. The lanes' pieces are of
    /// `memories`.
    pub(super) fn drive(
        &mut self,
        lanes: &mut [Lane],
        memories: &mut [&mut [u8]],
        call: Operation,
    ) -> Result<(), Error> {
        self.drive_until(lanes, memories, call, &[])
    }

    /// As [`Engine::drive`], or until each lane has received so many pieces; what has not left by then leaves with the next call.
    pub(super) fn drive_until(
        &mut self,
        lanes: &mut [Lane],
        memories: &mut [&mut [u8]],
        call: Operation,
        enough: &[usize],
    ) -> Result<(), Error> {
        let mut last = Instant::now();
        let mut vigil = Vigil::new();
        loop {
            let (mut moved, mut waits) = (false, Vec::new());
            for (rank, lane) in lanes.iter_mut().enumerate() {
                let Some(peer) = &mut self.peers[rank] else { continue };
                for step in [write(peer, lane, memories, call), read(peer, lane, memories)] {
                    match step {
                        Moved::Some => {
                            moved = true;
                            peer.heard_at = Instant::now();
                        }
                        Moved::None => {}
                        Moved::Broken(how) => return Err(self.broken(rank, &how, call)),
                    }
                }
                let Some(peer) = &mut self.peers[rank] else { continue };
                if peer.heard == Operation::BYTES && peer.last.number < call.number {
                    let from = self.members[rank].clone();
                    match Operation::decode(&peer.heading) {
                        None => return Err(Error::Garbage { from }),
                        Some(theirs) => peer.last = theirs,
                    }
                    if !peer.last.agrees(call) {
                        return Err(Error::Mismatch {
                            own: self.members[self.rank].clone(),
                            ours: call,
                            other: from,
                            theirs: peer.last,
                        });
                    }
                }
                let writes = peer.sent < Operation::BYTES || !lane.out.is_empty();
                let reads = peer.heard < Operation::BYTES || !lane.into.is_empty();
                if writes || reads {
                    waits.push((rank, writes, reads));
                }
            }
            let here = || lanes.iter().zip(enough).all(|(lane, &enough)| lane.received >= enough);
            if waits.is_empty() || (!enough.is_empty() && here()) {
                return Ok(());
            }
            if moved {
                last = Instant::now();
                continue;
            }
            for &(rank, _, reads) in &waits {
                if let Some(peer) = self.peers[rank].as_mut().filter(|_| reads) {
                    peer.wake_for(&lanes[rank]);
                }
            }
            self.sleep(&waits, call)?;
            if vigil.was_away(&self.watch) {
                last = Instant::now();
                self.peers.iter_mut().flatten().for_each(|peer| peer.heard_at = last);
            }
            for &(rank, ..) in &waits {
                let silence = self.peers[rank]
                    .as_ref()
                    .map_or(Duration::ZERO, |peer| peer.heard_at.elapsed());
                if silence >= self.watch.silence {
                    return Err(Error::Silent {
                        member: self.members[rank].clone(),
                        silence,
                        standings: self.standings(call),
                    });
                }
            }
            vigil.say(&self.watch, || self.members[waits[0].0].to_string());
            if last.elapsed() >= self.timeout {
                return Err(self.late(last.elapsed(), &waits, call));
            }
        }
    }

    /// Until a socket that is waited for can move, or somebody says something on the side.
    fn sleep(&mut self, waits: &[(usize, bool, bool)], call: Operation) -> Result<(), Error> {
        let mut asked = Vec::with_capacity(waits.len() + self.peers.len());
        for &(rank, writes, reads) in waits {
            if let Some(peer) = &self.peers[rank] {
                let events = if writes { libc::POLLOUT } else { 0 } | if reads { libc::POLLIN } else { 0 };
                asked.push(request(&peer.data, events));
            }
        }
        // Who has left in order hangs up; that must not keep everybody awake.
        for peer in self.peers.iter().flatten().filter(|peer| !peer.left) {
            asked.push(request(&peer.control.stream, libc::POLLIN));
        }
        let nap = NAP.min(self.timeout).min(self.watch.silence / 4).as_millis().max(1) as libc::c_int;
        // SAFETY: a list of requests and its length.
        unsafe { libc::poll(asked.as_mut_ptr(), asked.len() as libc::nfds_t, nap) };
        self.listen(call)?;
        if let Some(reason) = self.quit.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(Error::Aborted {
                by: self.members[self.rank].to_string(),
                reason,
            });
        }
        for &(rank, ..) in waits {
            if self.peers[rank]
                .as_ref()
                .is_some_and(|peer| peer.left && peer.data.ended())
            {
                return Err(self.lost(rank, "it left in order", call));
            }
        }
        Ok(())
    }

    /// What peers have said on the side, without waiting.
    pub(super) fn listen(&mut self, call: Operation) -> Result<(), Error> {
        for rank in 0..self.peers.len() {
            let Some(peer) = self.peers[rank].as_mut().filter(|peer| !peer.left) else {
                continue;
            };
            loop {
                match peer.control.hear() {
                    None => break,
                    Some(Said::Pulse) => peer.heard_at = Instant::now(),
                    Some(Said::Leave) => {
                        peer.left = true;
                        break;
                    }
                    Some(said) => return Err(self.said(rank, said, "its connection ended", call)),
                }
            }
        }
        Ok(())
    }

    fn said(&self, rank: usize, said: Said, how: &str, call: Operation) -> Error {
        match said {
            Said::Abort(reason) => Error::Aborted {
                by: self.members[rank].to_string(),
                reason,
            },
            Said::Noise => Error::Garbage {
                from: self.members[rank].clone(),
            },
            Said::Leave => self.lost(rank, "it left in order", call),
            Said::Pulse | Said::End => self.lost(rank, how, call),
        }
    }

    /// A data connection broke: the other one may tell why, or another rank may.
    fn broken(&mut self, rank: usize, how: &str, call: Operation) -> Error {
        let begun = Instant::now();
        while begun.elapsed() < LAST_WORDS {
            let Some(peer) = &mut self.peers[rank] else { break };
            match peer.control.hear() {
                None | Some(Said::Pulse) => {}
                Some(said) => return self.said(rank, said, how, call),
            }
            let mut asked = [request(&peer.control.stream, libc::POLLIN)];
            // SAFETY: as above.
            unsafe { libc::poll(asked.as_mut_ptr(), 1, 50) };
        }
        self.lost(rank, how, call)
    }

    fn lost(&self, rank: usize, how: &str, call: Operation) -> Error {
        Error::Lost {
            member: self.members[rank].clone(),
            how: how.to_owned(),
            standings: self.standings(call),
        }
    }

    fn late(&self, waited: Duration, waits: &[(usize, bool, bool)], call: Operation) -> Error {
        let behind = |rank: usize| {
            self.peers[rank]
                .as_ref()
                .is_some_and(|peer| peer.last.number < call.number)
        };
        let any = waits.iter().any(|wait| behind(wait.0));
        let missing = waits.iter().filter(|wait| !any || behind(wait.0));
        Error::Late {
            waited,
            missing: missing.map(|wait| self.members[wait.0].clone()).collect(),
            standings: self.standings(call),
        }
    }

    /// Where everybody is, as far as they have said to this rank.
    pub(super) fn standings(&self, own: Operation) -> Vec<Standing> {
        let at = |rank: usize| self.peers[rank].as_ref().map_or(own, |peer| peer.last);
        let standing = |member: &Member| Standing {
            member: member.clone(),
            operation: at(member.rank),
        };
        self.members.iter().map(standing).collect()
    }
}

fn request(stream: &impl AsRawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd: stream.as_raw_fd(),
        events,
        revents: 0,
    }
}

fn write(peer: &mut Peer, lane: &mut Lane, memories: &[&mut [u8]], call: Operation) -> Moved {
    let mut moved = Moved::None;
    let heading = call.encode();
    loop {
        let next = if peer.sent < heading.len() {
            &heading[peer.sent..]
        } else if let Some(next) = lane.out.front() {
            &memories[next.memory][next.bytes.clone()]
        } else {
            return moved;
        };
        match peer.data.write(next) {
            Ok(count) => {
                moved = Moved::Some;
                if peer.sent < heading.len() {
                    peer.sent += count;
                } else if let Some(next) = lane.out.front_mut() {
                    next.bytes.start += count;
                    if next.bytes.is_empty() {
                        lane.out.pop_front();
                    } else {
                        // The socket is full: reading makes room at the other end.
                        return moved;
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return moved,
            Err(error) => return Moved::Broken(error.to_string()),
        }
    }
}

fn read(peer: &mut Peer, lane: &mut Lane, memories: &mut [&mut [u8]]) -> Moved {
    let mut moved = Moved::None;
    loop {
        let result = if peer.heard < Operation::BYTES {
            peer.data.read(&mut peer.heading[peer.heard..])
        } else if let Some(next) = lane.into.front() {
            peer.data.read(&mut memories[next.memory][next.bytes.clone()])
        } else {
            return moved;
        };
        match result {
            Ok(0) => return Moved::Broken("its connection ended".to_owned()),
            Ok(count) => {
                moved = Moved::Some;
                if peer.heard < Operation::BYTES {
                    peer.heard += count;
                    if peer.heard == Operation::BYTES {
                        // What follows is only read once it is known to be of the same call.
                        return moved;
                    }
                } else if let Some(next) = lane.into.front_mut() {
                    next.bytes.start += count;
                    if next.bytes.is_empty() {
                        lane.into.pop_front();
                        lane.received += 1;
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return moved,
            Err(error) => return Moved::Broken(error.to_string()),
        }
    }
}
