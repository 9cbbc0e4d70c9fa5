//! Ranks on several hosts, over TCP: two connections between each pair of ranks.
//!
//! *Large* buckets go in chunks. Each rank sends the others its values of their slices, adds up its own slice in rank order, and sends
//! them the sums. The values of some chunks are always under way, so that the connections have work while a rank adds, and while sums
//! travel. A rank sends `2 (n - 1) / n` of the bucket, as in a ring of `n` ranks, in two steps a chunk instead of `2 (n - 1)`. A ring would add each slice in another order (beginning with the rank
//! behind its owner), so the bits would depend on how buckets are cut; here they do not.
//!
//! *Small* buckets go whole to everybody, and each rank adds them up: one step, where a tree takes `2 log2(n)`.
//!
//! Connections show that both ends know the job's [`Secret`] and are not encrypted. Ranks that find themselves on one host exchange elements
//! through Unix sockets instead: the same bytes in the same order, without a network's work.

mod control;
mod engine;
mod handshake;
mod line;
#[cfg(target_os = "linux")]
mod neighbours;
mod pulse;
mod rendezvous;
mod secret;

use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::PoisonError;

use bytemuck::Pod;
use engine::{Engine, Lane, Peer};
use pulse::Pulse;
pub use secret::Secret;

use crate::operation::{Kind, Operation, Wire};
use crate::sums::GATHER_LIMIT;
use crate::{Aborter, Communicator, Error, Member, Options, slices, sums};

/// Elements of a slice of a chunk: 128 KiB, which are still in a core's cache when they are added up, with the own ones beside them.
const SLICE: usize = 1 << 15;

/// Most chunks whose values are under way before their sums are there.
const MOST_AHEAD: usize = 4;

/// Chunks whose values are under way before their sums are there. Over a network half a MiB to each peer, and as much of sums, which is
/// what 25 Gbit/s take in a third of a millisecond. Within a host bytes arrive at once, and more of them would only drive each other
/// out of the caches.
fn ahead(within_a_host: bool) -> usize {
    if within_a_host { 1 } else { MOST_AHEAD }
}

/// What all ranks together may send to one of them for a bucket to be small, in bytes.
const SMALL: usize = 64 << 10;

/// How a bucket travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    /// Whole, to everybody.
    Whole,
    /// In slices, to who adds them up.
    Sliced,
}

fn schedule(bytes: usize, world: usize) -> Schedule {
    if bytes.saturating_mul(world) <= SMALL {
        Schedule::Whole
    } else {
        Schedule::Sliced
    }
}

/// The ranks of several hosts.
pub struct Mesh {
    engine: Engine,
    /// As [`ahead`] says; the same on all ranks, since it is the order in which bytes come.
    ahead: usize,
    /// That others hear that this process runs.
    pulse: Pulse,
    number: u64,
    closed: bool,
    /// Who gave up and why.
    ended: Option<(String, String)>,
}

impl Mesh {
    /// Meets the other ranks. Rank 0 listens on `rank0` (or `listener`, bound already); all others dial it, and each other on ports
    /// that the system chooses. Addresses are those by which rank 0 sees the ranks.
    ///
    /// # Errors
    /// Ranks that do not come, do not know the secret, or do not belong together. Strangers on a port are passed over.
    pub fn join(
        rank0: SocketAddr,
        listener: Option<TcpListener>,
        secret: &Secret,
        options: &Options,
    ) -> Result<Self, Error> {
        options.check()?;
        let links = rendezvous::join(rank0, listener, secret, options)?;
        let mut members = Vec::with_capacity(links.len());
        let mut peers = Vec::with_capacity(links.len());
        let mut within_a_host = true;
        for link in links {
            let Some(link) = link else {
                members.push(options.identity.member.clone());
                peers.push(None);
                continue;
            };
            for stream in [&link.data, &link.control] {
                let failed = Error::io("cannot use a connection", "see the limits on open files");
                stream.set_nonblocking(true).map_err(failed)?;
            }
            within_a_host &= link.data.peer_addr().is_ok_and(|address| address.ip().is_loopback());
            members.push(link.identity.member);
            peers.push(Some(Peer::new(link.data, link.control)));
        }
        let streams = peers
            .iter()
            .flatten()
            .map(|peer: &Peer| peer.control.stream.try_clone());
        let streams = streams.collect::<Result<Vec<_>, _>>();
        let streams = streams.map_err(Error::io("cannot use a connection", "see the limits on open files"))?;
        let mut mesh = Self {
            pulse: Pulse::start(streams, options.watch.pulse())?,
            engine: Engine {
                members,
                peers,
                rank: options.identity.member.rank,
                timeout: options.rendezvous_timeout,
                watch: options.watch.clone(),
                quit: std::sync::Arc::default(),
            },
            ahead: ahead(within_a_host),
            number: 0,
            closed: false,
            ended: None,
        };
        // Rank 0 is connected before the others are among themselves. What one rank sees as its own host may be a tunnel to another.
        let theirs = mesh.all_gather(&[u8::from(within_a_host)])?;
        mesh.ahead = ahead(theirs.iter().all(|told| told[..] == [1]));
        #[cfg(target_os = "linux")]
        mesh.find_neighbours(options)?;
        mesh.engine.timeout = options.timeout;
        Ok(mesh)
    }

    /// Ranks of one host exchange elements through sockets of that host from now on, where they reach each other's.
    #[cfg(target_os = "linux")]
    fn find_neighbours(&mut self, options: &Options) -> Result<(), Error> {
        use neighbours::{Door, Name, dial};
        let rank = self.engine.rank;
        // Where there is no such socket to be had, connections will do.
        let door = options.local_sockets.then(|| Door::open().ok()).flatten();
        let own = door.as_ref().map_or(&[][..], |door| &door.name);
        let names = self.all_gather(own)?;
        let names: Vec<Option<Name>> = names.iter().map(|name| Name::try_from(&name[..]).ok()).collect();
        let reach = |name: &Option<Name>| dial(name.as_ref()?, rank, &door.as_ref()?.name).ok();
        let dialled: Vec<_> = names[..rank].iter().map(reach).collect();
        let reached: Vec<u8> = dialled.iter().map(|line| u8::from(line.is_some())).collect();
        let all = self.all_gather(&reached)?;
        let came = (rank + 1..all.len()).filter(|&other| all[other].get(rank) == Some(&1));
        let expected: Vec<(usize, Name)> = came.filter_map(|other| Some((other, names[other]?))).collect();
        let until = std::time::Instant::now() + self.engine.timeout;
        let admitted = door.map_or(Vec::new(), |door| door.admit(&expected, until));
        let here = |wanted: usize| admitted.iter().any(|(other, _)| *other == wanted);
        if let Some((missing, _)) = expected.iter().find(|(other, _)| !here(*other)) {
            let member = &self.engine.members[*missing];
            return Err(Error::Refused(format!(
                "{member} reached a socket of this host, and did not say who it is"
            )));
        }
        let dialled = (0..).zip(dialled).filter_map(|(other, line)| Some((other, line?)));
        for (other, line) in dialled.chain(admitted) {
            if let Some(peer) = &mut self.engine.peers[other] {
                peer.move_to(line);
            }
        }
        Ok(())
    }

    fn world(&self) -> usize {
        self.engine.members.len()
    }

    fn lanes(&self) -> Vec<Lane> {
        (0..self.world()).map(|_| Lane::default()).collect()
    }

    /// One call: `work` does it; if it fails, everybody hears.
    fn operation<T>(
        &mut self,
        operation: Operation,
        work: impl FnOnce(&mut Self, Operation) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some((by, reason)) = self.ended.clone() {
            return Err(Error::Aborted { by, reason });
        }
        if self.closed {
            return Err(Error::Refused("the communicator is closed".to_owned()));
        }
        self.number += 1;
        let operation = Operation {
            number: self.number,
            ..operation
        };
        for peer in self.engine.peers.iter_mut().flatten() {
            peer.begin();
        }
        let done = work(self, operation);
        if let Err(error) = &done {
            self.abort(&error.to_string());
        }
        done
    }

    /// Only that everybody is at the same call.
    fn meet(&mut self, kind: Kind) -> Result<(), Error> {
        let call = Operation {
            kind,
            ..Operation::NONE
        };
        self.operation(call, |this, call| {
            let mut lanes = this.lanes();
            this.engine.drive(&mut lanes, &mut [], call)
        })
    }

    /// Everybody's `own`, in rank order: of the lengths that `length` tells of a rank.
    fn everybodys<T: Pod>(
        &mut self,
        own: &[T],
        call: Operation,
        length: impl Fn(&Self, usize) -> Result<usize, Error>,
    ) -> Result<Vec<Vec<T>>, Error> {
        let rank = self.engine.rank;
        let mut all = Vec::with_capacity(self.world());
        for other in 0..self.world() {
            all.push(if other == rank {
                own.to_vec()
            } else {
                vec![T::zeroed(); length(self, other)?]
            });
        }
        let mut memories: Vec<&mut [u8]> = all.iter_mut().map(|values| bytemuck::cast_slice_mut(values)).collect();
        let mut lanes = self.lanes();
        for (other, lane) in lanes.iter_mut().enumerate() {
            lane.send(rank, 0..memories[rank].len());
            lane.receive(other, 0..memories[other].len());
        }
        self.engine.drive(&mut lanes, &mut memories, call)?;
        Ok(all)
    }

    /// The sliced schedule. `add` adds the others' values (nothing in the own place) to the own ones.
    ///
    /// A rank sends the values of the first [`ahead`] chunks at once, and then after each chunk its sums and the values of a later chunk;
    /// that is also the order in which everything comes from a peer. A chunk's sums take the place of values that have left: a peer has
    /// sums only of what it has received.
    fn sliced<T: Pod>(
        &mut self,
        whole: &mut [T],
        call: Operation,
        add: impl Fn(&mut [T], &[&[T]]),
    ) -> Result<(), Error> {
        const WHOLE: usize = 0;
        const THEIRS: usize = 1;
        let (rank, world, most) = (self.engine.rank, self.world(), SLICE * self.world());
        let (count, size) = (whole.len(), size_of::<T>());
        let rounds = slices::rounds(count, most);
        let ahead = self.ahead.min(rounds);
        let part = |round, owner| slices::own(&slices::round(count, most, round), world, owner);
        let longest = part(0, 0).len();
        // Of the chunks ahead, every rank's values of the own slice.
        let place = |round: usize, other: usize| {
            let start = ((round % ahead) * world + other) * longest;
            start..start + part(round, rank).len()
        };
        let bytes = |elements: Range<usize>| elements.start * size..elements.end * size;
        let mut theirs = vec![T::zeroed(); ahead * world * longest];
        let mut lanes = self.lanes();
        let mut enough = vec![vec![0; world]; ahead];
        let exchange_values = |lanes: &mut [Lane], enough: &mut [Vec<usize>], round: usize| {
            for (other, lane) in lanes.iter_mut().enumerate().filter(|lane| lane.0 != rank) {
                lane.send(WHOLE, bytes(part(round, other)));
                enough[round % ahead][other] = lane.receive(THEIRS, bytes(place(round, other)));
            }
        };
        for round in 0..ahead {
            exchange_values(&mut lanes, &mut enough, round);
        }
        for round in 0..rounds {
            let memories = &mut [bytemuck::cast_slice_mut(whole), bytemuck::cast_slice_mut(&mut theirs)];
            self.engine
                .drive_until(&mut lanes, memories, call, &enough[round % ahead])?;
            let values = |other| {
                if other == rank {
                    &[][..]
                } else {
                    &theirs[place(round, other)]
                }
            };
            add(
                &mut whole[part(round, rank)],
                &(0..world).map(values).collect::<Vec<_>>(),
            );
            for (other, lane) in lanes.iter_mut().enumerate().filter(|lane| lane.0 != rank) {
                lane.send(WHOLE, bytes(part(round, rank)));
                lane.receive(WHOLE, bytes(part(round, other)));
            }
            if round + ahead < rounds {
                exchange_values(&mut lanes, &mut enough, round + ahead);
            }
        }
        let memories = &mut [bytemuck::cast_slice_mut(whole), bytemuck::cast_slice_mut(&mut theirs)];
        self.engine.drive(&mut lanes, memories, call)
    }
}

impl Communicator for Mesh {
    fn rank(&self) -> usize {
        self.engine.rank
    }

    fn world_size(&self) -> usize {
        self.world()
    }

    fn members(&self) -> &[Member] {
        &self.engine.members
    }

    fn all_reduce_sum(&mut self, values: &mut [f32], wire: Wire) -> Result<(), Error> {
        let call = Operation {
            kind: Kind::AllReduce,
            wire,
            count: values.len() as u64,
            ..Operation::NONE
        };
        let (rank, world, count) = (self.engine.rank, self.world(), values.len());
        let element = if wire == Wire::F32 { 4 } else { 2 };
        self.operation(call, |this, call| match (wire, schedule(count * element, world)) {
            (Wire::F32, Schedule::Whole) => {
                let all = this.everybodys(values, call, |_, _| Ok(count))?;
                sums::add_f32(values, rank, world, |other| &all[other]);
                Ok(())
            }
            (Wire::F32, Schedule::Sliced) => this.sliced(values, call, |mine, theirs| {
                sums::add_f32(mine, rank, world, |other| theirs[other]);
            }),
            (Wire::Bf16, schedule) => {
                let mut halves = vec![0; count];
                sums::encode(values, &mut halves);
                if schedule == Schedule::Whole {
                    let all = this.everybodys(&halves, call, |_, _| Ok(count))?;
                    sums::add_halves(&mut halves, rank, world, |other| &all[other]);
                } else {
                    this.sliced(&mut halves, call, |mine, theirs| {
                        sums::add_halves(mine, rank, world, |other| theirs[other]);
                    })?;
                }
                sums::decode(&halves, values);
                Ok(())
            }
        })
    }

    fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<(), Error> {
        crate::communicator::check_root(root, self.world())?;
        let call = Operation {
            kind: Kind::Broadcast,
            root: root as u16,
            count: values.len() as u64,
            ..Operation::NONE
        };
        let own = self.engine.rank;
        self.operation(call, |this, call| {
            let mut lanes = this.lanes();
            let values: &mut [u8] = bytemuck::cast_slice_mut(values);
            if own == root {
                for lane in &mut lanes {
                    lane.send(0, 0..values.len());
                }
            } else {
                lanes[root].receive(0, 0..values.len());
            }
            this.engine.drive(&mut lanes, &mut [values], call)
        })
    }

    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        crate::communicator::check_gathered(bytes)?;
        let call = Operation {
            kind: Kind::AllGather,
            count: bytes.len() as u64,
            ..Operation::NONE
        };
        self.operation(call, |this, call| {
            // First the lengths, which the headings tell.
            let mut lanes = this.lanes();
            this.engine.drive(&mut lanes, &mut [], call)?;
            this.everybodys(bytes, call, |this, rank| {
                let told = this.engine.peers[rank].as_ref().map_or(0, |peer| peer.last.count);
                let length = usize::try_from(told).ok().filter(|&length| length <= GATHER_LIMIT);
                length.ok_or_else(|| Error::Garbage {
                    from: this.engine.members[rank].clone(),
                })
            })
        })
    }

    fn barrier(&mut self) -> Result<(), Error> {
        self.meet(Kind::Barrier)
    }

    fn check(&mut self) -> Result<(), Error> {
        if let Some((by, reason)) = self.ended.clone() {
            return Err(Error::Aborted { by, reason });
        }
        let at = Operation {
            number: self.number,
            ..Operation::NONE
        };
        self.engine.listen(at)
    }

    fn abort(&mut self, reason: &str) {
        if self.ended.is_some() || self.closed {
            return;
        }
        let member = self.engine.members[self.engine.rank].to_string();
        self.ended = Some((member, reason.to_owned()));
        let bytes = control::abort(reason);
        let speaker = self.pulse.speaker();
        let _quiet = speaker.quiet();
        for peer in self.engine.peers.iter_mut().flatten() {
            peer.control.say(&bytes);
            let _ = peer.control.stream.shutdown(std::net::Shutdown::Write);
        }
    }

    fn aborter(&self) -> Aborter {
        let pulse = self.pulse.speaker();
        let quit = std::sync::Arc::clone(&self.engine.quit);
        Aborter::new(move |reason| {
            quit.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert_with(|| reason.to_owned());
            pulse.say(&control::abort(reason));
        })
    }

    fn close(&mut self) -> Result<(), Error> {
        self.meet(Kind::Close)?;
        let speaker = self.pulse.speaker();
        let _quiet = speaker.quiet();
        for peer in self.engine.peers.iter_mut().flatten() {
            peer.control.say(&[control::LEAVE]);
        }
        self.closed = true;
        Ok(())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.abort("it ended without closing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_under_way_between_hosts_as_a_fast_network_holds() {
        assert_eq!(ahead(true), 1);
        assert_eq!(ahead(false), MOST_AHEAD);
    }

    #[test]
    fn buckets_are_small_by_what_a_rank_would_receive() {
        assert_eq!(schedule(4, 2), Schedule::Whole);
        assert_eq!(schedule(32 << 10, 2), Schedule::Whole);
        assert_eq!(schedule(32 << 10, 3), Schedule::Sliced);
        assert_eq!(schedule(usize::MAX, 3), Schedule::Sliced);
    }
}
