//! Ranks of one host, over a shared file.
//!
//! An all-reduce goes in rounds of `world * slice` elements. In a round a rank *deposits* its values of the others' slices, *reduces* its
//! own slice straight from the others' deposits (in rank order), and *takes* the others' sums. Two rounds are under way at a time. Each
//! rank has two counters, `deposited` and `reduced`; nothing else is needed, since
//!
//! * who deposits round `r` has taken round `r - 2` of everybody, so whoever sees that deposit may overwrite its sums of `r - 2`;
//! * who takes round `r - 1` has seen that everybody read its deposits of `r - 1`, so it may deposit `r + 1`.
//!
//! Values that already lie in shared memory ([`Communicator::parts`]) are not deposited: each rank adds up its own slice of everybody's
//! values where they lie, and writes the sums to everybody's. A rank reads as much as one vector has and writes as much, however many
//! ranks there are, and what it writes it has just read.
//!
//! The file is best on a tmpfs (`/dev/shm`). It is removed as soon as all ranks have it open, so that nothing stays behind.

mod alive;
mod direct;
mod pulse;
mod region;
mod rendezvous;
mod wait;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use region::{Counter, LEFT, Region};

use crate::identity::Vigil;
use crate::operation::{Kind, Operation, Standing, Wire};
use crate::sums::GATHER_LIMIT;
use crate::{Aborter, Communicator, Error, Member, Options, Part, Watch, slices, sums};
use pulse::{Ear, Pulse};

/// Elements that one rank adds up in a round unless told otherwise: with two ranks, both rounds fit into a second-level cache of 2 MB.
pub const DEFAULT_SLICE: usize = 1 << 16;

/// The ranks of a host.
pub struct Shared {
    region: Arc<Region>,
    members: Vec<Member>,
    rank: usize,
    timeout: Duration,
    watch: Watch,
    /// Where further memory of the file begins.
    end: usize,
    /// That others see that this process runs.
    _pulse: Pulse,
    /// More ranks than cores.
    crowded: bool,
    /// Operations so far.
    number: u64,
    /// Rounds so far; counters wrap around with it.
    round: u32,
    closed: bool,
}

impl Shared {
    /// Meets the other ranks at `path`, a file that does not exist: rank 0 makes it. What is left there by a job whose rank 0 is dead
    /// is passed over. `slice` is in elements, a multiple of 16; rank 0's counts.
    ///
    /// # Errors
    /// Ranks that do not come or do not belong together, no room in the folder.
    pub fn join(path: &std::path::Path, options: &Options, slice: usize) -> Result<Self, Error> {
        options.check()?;
        let (region, members) = rendezvous::join(path, options, slice)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (region, rank) = (Arc::new(region), options.identity.member.rank);
        Ok(Self {
            _pulse: Pulse::start(&region, rank, options.watch.pulse())?,
            end: region.layout.bytes().next_multiple_of(4096),
            rank,
            timeout: options.timeout,
            watch: options.watch.clone(),
            crowded: members.len() > cores,
            region,
            members,
            number: 0,
            round: 0,
            closed: false,
        })
    }

    fn world(&self) -> usize {
        self.members.len()
    }

    /// The other ranks, beginning with the next: not everybody reads from the same one at a time.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, world) = (self.rank, self.world());
        (1..world).map(move |step| (rank + step) % world)
    }

    fn standings(&self) -> Vec<Standing> {
        let known = |rank: usize| self.region.operation(rank).unwrap_or(Operation::NONE);
        let standing = |member: &Member| Standing {
            member: member.clone(),
            operation: known(member.rank),
        };
        self.members.iter().map(standing).collect()
    }

    fn gave_up(&self) -> Option<Error> {
        let (by, reason) = self.region.aborted()?;
        let by = self
            .members
            .get(by)
            .map_or_else(|| "a rank".to_owned(), ToString::to_string);
        Some(Error::Aborted { by, reason })
    }

    fn lost(&self, rank: usize) -> Option<Error> {
        let left = self.region.rank(rank).state.load(Ordering::Acquire) == LEFT;
        (left || !alive::holds(&self.region.file, rank)).then(|| Error::Lost {
            member: self.members[rank].clone(),
            how: if left { "it left in order" } else { "its process ended" }.to_owned(),
            standings: self.standings(),
        })
    }

    fn wait(&self, whom: usize, counter: fn(&region::Rank) -> &Counter, target: u32) -> Result<(), Error> {
        let counter = counter(self.region.rank(whom));
        if counter.spin(target, self.crowded) {
            return Ok(());
        }
        let mut vigil = Vigil::new();
        let mut ear = Ear::new(&self.region, vigil.begun);
        loop {
            counter.sleep(target);
            if counter.reached(target) {
                return Ok(());
            }
            if let Some(error) = self.gave_up() {
                return Err(error);
            }
            if vigil.was_away(&self.watch) {
                ear = Ear::new(&self.region, std::time::Instant::now());
            }
            // Not only the one that is waited for: it may itself wait for one that is gone. Who left in order is nobody's loss
            // until somebody needs it.
            for rank in self.others() {
                let left = self.region.rank(rank).state.load(Ordering::Acquire) == LEFT;
                let gone = rank == whom || !left;
                if gone && let Some(error) = self.lost(rank) {
                    // It may have done its part and gone on to its end meanwhile.
                    return if counter.reached(target) { Ok(()) } else { Err(error) };
                }
                let silence = ear.silence(&self.region, rank);
                if !left && silence >= self.watch.silence {
                    return Err(Error::Silent {
                        member: self.members[rank].clone(),
                        silence,
                        standings: self.standings(),
                    });
                }
            }
            vigil.say(&self.watch, || self.members[whom].to_string());
            if vigil.begun.elapsed() >= self.timeout {
                return Err(self.late(vigil.begun.elapsed()));
            }
        }
    }

    /// Those that have not come to the operation of this rank, or else those behind in it.
    fn late(&self, waited: Duration) -> Error {
        let behind = |rank: &usize| self.region.operation(*rank).is_none_or(|at| at.number < self.number);
        let mut missing: Vec<usize> = self.others().filter(behind).collect();
        if missing.is_empty() {
            let done = |rank: &usize| {
                let rank = self.region.rank(*rank);
                (
                    rank.deposited.value.load(Ordering::Acquire),
                    rank.reduced.value.load(Ordering::Acquire),
                )
            };
            let least = self.others().map(|rank| done(&rank)).min();
            missing = self.others().filter(|rank| Some(done(rank)) == least).collect();
        }
        missing.sort_unstable();
        Error::Late {
            waited,
            missing: missing.into_iter().map(|rank| self.members[rank].clone()).collect(),
            standings: self.standings(),
        }
    }

    fn advance(&self, counter: fn(&region::Rank) -> &Counter, value: u32) {
        counter(self.region.rank(self.rank)).advance(value);
    }

    /// One call: `work` does it; if it fails, everybody hears.
    fn operation<T>(
        &mut self,
        operation: Operation,
        work: impl FnOnce(&mut Self, Operation) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some(error) = self.gave_up() {
            return Err(error);
        }
        if self.closed {
            return Err(Error::Refused("the communicator is closed".to_owned()));
        }
        self.number += 1;
        let operation = Operation {
            number: self.number,
            ..operation
        };
        self.region.set_operation(self.rank, operation);
        let done = work(self, operation);
        if let Err(error) = &done {
            self.region.abort(self.rank, &error.to_string());
        }
        done
    }

    /// Waits for everybody's deposits of round `round`; in the first one of an operation, sees that all mean the same.
    fn deposits(&self, round: u32, first: bool, ours: Operation) -> Result<(), Error> {
        self.advance(|rank| &rank.deposited, round.wrapping_add(1));
        for other in self.others() {
            self.await_deposit(other, round, first, ours)?;
        }
        Ok(())
    }

    fn await_deposit(&self, other: usize, round: u32, first: bool, ours: Operation) -> Result<(), Error> {
        self.wait(other, |rank| &rank.deposited, round.wrapping_add(1))?;
        if !first {
            return Ok(());
        }
        let from = self.members[other].clone();
        match self.region.operation(other) {
            Some(theirs) if theirs.agrees(ours) => Ok(()),
            Some(theirs) => Err(Error::Mismatch {
                own: self.members[self.rank].clone(),
                ours,
                other: from,
                theirs,
            }),
            None => Err(Error::Garbage { from }),
        }
    }

    /// Says that this rank has read everything of round `round`, and waits until all have.
    fn finish(&self, round: u32) -> Result<(), Error> {
        self.advance(|rank| &rank.reduced, round.wrapping_add(1));
        for other in self.others() {
            self.wait(other, |rank| &rank.reduced, round.wrapping_add(1))?;
        }
        Ok(())
    }

    fn deposit(&self, values: &[f32], index: usize, wire: Wire) {
        let round = self.round.wrapping_add(index as u32);
        let whole = slices::round(values.len(), self.region.layout.round(), index);
        for other in self.others() {
            let part = &values[slices::own(&whole, self.world(), other)];
            // SAFETY: who takes round r - 1 has seen that everybody read its deposits there, and this one has.
            unsafe {
                match wire {
                    Wire::F32 => self
                        .region
                        .exclusive(self.rank, round, other, part.len())
                        .copy_from_slice(part),
                    Wire::Bf16 => sums::encode(part, self.region.exclusive(self.rank, round, other, part.len())),
                }
            }
        }
        self.advance(|rank| &rank.deposited, round.wrapping_add(1));
    }

    fn reduce(&self, values: &mut [f32], index: usize, wire: Wire) {
        let (rank, world) = (self.rank, self.world());
        let round = self.round.wrapping_add(index as u32);
        let whole = slices::round(values.len(), self.region.layout.round(), index);
        let mine = &mut values[slices::own(&whole, world, rank)];
        let count = mine.len();
        // SAFETY: all deposits of this round are there, and stay until this rank says that it has reduced them; the sums of two
        // rounds ago were taken by all who have deposited for this one.
        unsafe {
            match wire {
                Wire::F32 => {
                    let out = self.region.exclusive(rank, round, world, count);
                    sums::add_f32_to(mine, out, rank, world, |other| {
                        self.region.shared(other, round, rank, count)
                    });
                }
                Wire::Bf16 => {
                    let out = self.region.exclusive(rank, round, world, count);
                    sums::add_bf16(mine, out, rank, world, |other| {
                        self.region.shared(other, round, rank, count)
                    });
                }
            }
        }
        self.advance(|rank| &rank.reduced, round.wrapping_add(1));
    }

    fn take(&self, values: &mut [f32], index: usize, wire: Wire) -> Result<(), Error> {
        let world = self.world();
        let round = self.round.wrapping_add(index as u32);
        let whole = slices::round(values.len(), self.region.layout.round(), index);
        for other in self.others() {
            self.wait(other, |rank| &rank.reduced, round.wrapping_add(1))?;
            let part = &mut values[slices::own(&whole, world, other)];
            // SAFETY: the sums are there, and stay until this rank has deposited two rounds later.
            unsafe {
                match wire {
                    Wire::F32 => part.copy_from_slice(self.region.shared(other, round, world, part.len())),
                    Wire::Bf16 => sums::decode(self.region.shared(other, round, world, part.len()), part),
                }
            }
        }
        Ok(())
    }
}

impl Communicator for Shared {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world()
    }

    fn members(&self) -> &[Member] {
        &self.members
    }

    fn all_reduce_sum(&mut self, values: &mut [f32], wire: Wire) -> Result<(), Error> {
        let call = Operation {
            kind: Kind::AllReduce,
            wire,
            count: values.len() as u64,
            ..Operation::NONE
        };
        self.operation(call, |this, call| {
            let rounds = slices::rounds(values.len(), this.region.layout.round());
            this.deposit(values, 0, wire);
            for index in 0..rounds {
                if index + 1 < rounds {
                    this.deposit(values, index + 1, wire);
                }
                for other in this.others() {
                    this.await_deposit(other, this.round.wrapping_add(index as u32), index == 0, call)?;
                }
                this.reduce(values, index, wire);
                this.take(values, index, wire)?;
            }
            this.round = this.round.wrapping_add(rounds as u32);
            Ok(())
        })
    }

    fn parts(&mut self, lengths: &[usize]) -> Result<Vec<Part>, Error> {
        self.shared_parts(lengths)
    }

    fn all_reduce(&mut self, part: &mut Part, wire: Wire) -> Result<(), Error> {
        match part
            .mapped()
            .map(|(mapping, range)| (Arc::clone(mapping), range.clone()))
        {
            Some((mapping, range)) if self.world() > 1 => self.reduce_in_place(&mapping, &range, wire),
            _ => self.all_reduce_sum(part, wire),
        }
    }

    fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<(), Error> {
        crate::communicator::check_root(root, self.world())?;
        let call = Operation {
            kind: Kind::Broadcast,
            root: root as u16,
            count: values.len() as u64,
            ..Operation::NONE
        };
        self.operation(call, |this, call| {
            let most = this.region.layout.round();
            for index in 0..slices::rounds(values.len(), most) {
                let part = &mut values[slices::round(call.count as usize, most, index)];
                let round = this.round;
                // SAFETY: as in an all-reduce: all have read what lay here; it is there; it stays until all have read it.
                unsafe {
                    if root == this.rank {
                        this.region
                            .exclusive_whole(root, round, part.len())
                            .copy_from_slice(part);
                    }
                    this.deposits(round, index == 0, call)?;
                    if root != this.rank {
                        part.copy_from_slice(this.region.shared_whole(root, round, part.len()));
                    }
                }
                this.finish(round)?;
                this.round = round.wrapping_add(1);
            }
            Ok(())
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
            let most = this.region.layout.round() * size_of::<f32>();
            let mut lengths = vec![bytes.len(); this.world()];
            let mut all: Vec<Vec<u8>> = vec![Vec::new(); this.world()];
            let (mut index, mut rounds) = (0, 1);
            while index < rounds {
                let round = this.round;
                let part = &bytes[slices::round(bytes.len(), most, index)];
                // SAFETY: as in a broadcast.
                unsafe {
                    this.region
                        .exclusive_whole(this.rank, round, part.len())
                        .copy_from_slice(part);
                    this.deposits(round, index == 0, call)?;
                    for other in this.others() {
                        if index == 0 {
                            let length = this.region.operation(other).map_or(0, |at| at.count);
                            let length = usize::try_from(length).ok().filter(|&length| length <= GATHER_LIMIT);
                            lengths[other] = length.ok_or_else(|| Error::Garbage {
                                from: this.members[other].clone(),
                            })?;
                        }
                        let count = slices::round(lengths[other], most, index).len();
                        all[other].extend_from_slice(this.region.shared_whole(other, round, count));
                    }
                }
                rounds = lengths
                    .iter()
                    .map(|&length| slices::rounds(length, most))
                    .max()
                    .unwrap_or(1);
                this.finish(round)?;
                this.round = round.wrapping_add(1);
                index += 1;
            }
            all[this.rank] = bytes.to_vec();
            Ok(all)
        })
    }

    fn barrier(&mut self) -> Result<(), Error> {
        self.meet(Kind::Barrier)
    }

    fn check(&mut self) -> Result<(), Error> {
        if let Some(error) = self.gave_up() {
            return Err(error);
        }
        match self.others().find_map(|rank| self.lost(rank)) {
            Some(error) if !self.closed => Err(error),
            _ => Ok(()),
        }
    }

    fn abort(&mut self, reason: &str) {
        self.region.abort(self.rank, reason);
    }

    fn aborter(&self) -> Aborter {
        let (region, rank) = (Arc::clone(&self.region), self.rank);
        Aborter::new(move |reason| region.abort(rank, reason))
    }

    fn close(&mut self) -> Result<(), Error> {
        self.meet(Kind::Close)?;
        self.region.rank(self.rank).state.store(LEFT, Ordering::Release);
        self.closed = true;
        Ok(())
    }
}

impl Shared {
    fn meet(&mut self, kind: Kind) -> Result<(), Error> {
        let call = Operation {
            kind,
            ..Operation::NONE
        };
        self.operation(call, |this, call| {
            let round = this.round;
            this.deposits(round, true, call)?;
            this.finish(round)?;
            this.round = round.wrapping_add(1);
            Ok(())
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.closed {
            self.region.abort(self.rank, "it ended without closing");
        }
    }
}
