//! Ranks on several hosts, over TCP: two connections between each pair of ranks.
//!
//! *Large* buckets go in chunks. Each rank sends the others its values of their slices, adds up its own slice in rank order, and sends
//! them the sums; the sums of one chunk travel together with the values of the next. A rank sends `2 (n - 1) / n` of the bucket, as in a
//! ring of `n` ranks, in two steps a chunk instead of `2 (n - 1)`. A ring would add each slice in another order (beginning with the rank
//! behind its owner), so the bits would depend on how buckets are cut; here they do not.
//!
//! *Small* buckets go whole to everybody, and each rank adds them up: one step, where a tree takes `2 log2(n)`.
//!
//! Connections show that both ends know the job's [`Secret`] and are not encrypted.

mod control;
mod engine;
mod handshake;
mod pulse;
mod rendezvous;
mod secret;

use std::net::{SocketAddr, TcpListener};
use std::sync::PoisonError;

use bytemuck::Pod;
use engine::{Engine, Lane, Peer};
use pulse::Pulse;
pub use secret::Secret;

use crate::operation::{Kind, Operation, Wire};
use crate::sums::GATHER_LIMIT;
use crate::{Aborter, Communicator, Error, Member, Options, slices, sums};

/// Elements of a slice of a chunk: 512 KiB, which sockets and caches hold.
const SLICE: usize = 1 << 17;

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
            number: 0,
            closed: false,
            ended: None,
        };
        // Rank 0 is connected before the others are among themselves.
        mesh.barrier()?;
        mesh.engine.timeout = options.timeout;
        Ok(mesh)
    }

    fn world(&self) -> usize {
        self.engine.members.len()
    }

    fn lanes<'a>(&self) -> Vec<Lane<'a>> {
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
            this.engine.drive(&mut lanes, call)
        })
    }

    /// Everybody's `own`, in rank order: of the lengths that `length` tells of a rank.
    fn everybodys<T: Pod>(
        &mut self,
        own: &[T],
        call: Operation,
        length: impl Fn(&Self, usize) -> Result<usize, Error>,
    ) -> Result<Vec<Vec<T>>, Error> {
        let mut all = Vec::with_capacity(self.world());
        for rank in 0..self.world() {
            all.push(vec![
                T::zeroed();
                if rank == self.engine.rank {
                    0
                } else {
                    length(self, rank)?
                }
            ]);
        }
        let mut lanes = self.lanes();
        for (lane, theirs) in lanes.iter_mut().zip(&mut all) {
            lane.send(bytemuck::cast_slice(own));
            lane.receive(bytemuck::cast_slice_mut(theirs));
        }
        self.engine.drive(&mut lanes, call)?;
        drop(lanes);
        all[self.engine.rank] = own.to_vec();
        Ok(all)
    }

    /// The sliced schedule. `add` adds the others' values (nothing in the own place) to the own ones.
    fn sliced<T: Pod>(
        &mut self,
        whole: &mut [T],
        call: Operation,
        add: impl Fn(&mut [T], &[Vec<T>]),
    ) -> Result<(), Error> {
        let (rank, world, most) = (self.engine.rank, self.world(), SLICE * self.world());
        let rounds = slices::rounds(whole.len(), most);
        let longest = slices::own(&slices::round(whole.len(), most, 0), world, 0).len();
        let mut theirs: Vec<Vec<T>> = vec![vec![T::zeroed(); longest]; world];
        for stage in 0..=rounds {
            let now = slices::round(whole.len(), most, stage);
            let before = if stage == 0 {
                0..0
            } else {
                slices::round(whole.len(), most, stage - 1)
            };
            let mine = slices::own(&now, world, rank);
            for (other, values) in theirs.iter_mut().enumerate() {
                values.resize(if other == rank { 0 } else { mine.len() }, T::zeroed());
            }
            let mut lanes = self.lanes();
            let (done, next) = whole.split_at_mut(before.end);
            for (other, (lane, values)) in lanes.iter_mut().zip(&mut theirs).enumerate() {
                let part = slices::own(&now, world, other);
                lane.send(bytemuck::cast_slice(
                    &next[part.start - before.end..part.end - before.end],
                ));
                lane.receive(bytemuck::cast_slice_mut(values));
            }
            let mut rest = &mut done[before.start..];
            let mut sums: &[T] = &[];
            for (other, lane) in lanes.iter_mut().enumerate() {
                let (part, behind) = rest.split_at_mut(slices::own(&before, world, other).len());
                rest = behind;
                if other == rank {
                    sums = part;
                } else {
                    lane.receive(bytemuck::cast_slice_mut(part));
                }
            }
            for lane in &mut lanes {
                lane.send(bytemuck::cast_slice(sums));
            }
            self.engine.drive(&mut lanes, call)?;
            drop(lanes);
            add(&mut whole[mine], &theirs);
        }
        Ok(())
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
                sums::add_f32(mine, rank, world, |other| &theirs[other]);
            }),
            (Wire::Bf16, schedule) => {
                let mut halves = vec![0; count];
                sums::encode(values, &mut halves);
                if schedule == Schedule::Whole {
                    let all = this.everybodys(&halves, call, |_, _| Ok(count))?;
                    sums::add_halves(&mut halves, rank, world, |other| &all[other]);
                } else {
                    this.sliced(&mut halves, call, |mine, theirs| {
                        sums::add_halves(mine, rank, world, |other| &theirs[other]);
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
            if own == root {
                for lane in &mut lanes {
                    lane.send(bytemuck::cast_slice(values));
                }
            } else {
                lanes[root].receive(bytemuck::cast_slice_mut(values));
            }
            this.engine.drive(&mut lanes, call)
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
            this.engine.drive(&mut lanes, call)?;
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
    fn buckets_are_small_by_what_a_rank_would_receive() {
        assert_eq!(schedule(4, 2), Schedule::Whole);
        assert_eq!(schedule(32 << 10, 2), Schedule::Whole);
        assert_eq!(schedule(32 << 10, 3), Schedule::Sliced);
        assert_eq!(schedule(usize::MAX, 3), Schedule::Sliced);
    }
}
