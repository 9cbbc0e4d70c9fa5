//! The shared file: where everything lies in it, and what is known of each rank.
//!
//! | at | what |
//! |---|---|
//! | 0 | magic, world size, elements of a slice, ready, who gave up |
//! | 384 | why |
//! | 1536 | identity of rank 0 |
//! | 4096 + 1024 r | rank r: counters, state, identity, operation |
//! | 4096 + 1024 world, to a page | rank r's deposits and sums, twice (rounds take turns) |

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::identity::MOST_RANKS;
use crate::{Error, Identity, Operation};

/// "COATISH" and the number of this layout.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"COATISH2");

const PAGE: usize = 4096;
const RANKS: usize = PAGE;
const RANK: usize = 1024;
const IDENTITY: usize = 1536;
const REASON: usize = 128;
/// Longest reason that is kept, in bytes.
pub(super) const MOST_REASON: usize = 1024;

/// Where the parts of a file for `world` ranks lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) world: usize,
    /// Elements of a part of a round: what one rank adds up.
    pub(super) slice: usize,
}

impl Layout {
    /// Elements of a round.
    pub(super) fn round(self) -> usize {
        self.world * self.slice
    }

    fn data(self) -> usize {
        (RANKS + self.world * RANK).next_multiple_of(PAGE)
    }

    /// A rank's deposits for all and its sums, for one of the two turns.
    fn turn(self) -> usize {
        (self.round() + self.slice) * size_of::<f32>()
    }

    pub(super) fn bytes(self) -> usize {
        self.data() + self.world * 2 * self.turn()
    }

    /// Of a file that claims to be one of ours.
    pub(super) fn check(world: u64, slice: u64, length: u64) -> Option<Self> {
        let layout = Self {
            world: usize::try_from(world)
                .ok()
                .filter(|world| (1..=MOST_RANKS).contains(world))?,
            slice: usize::try_from(slice).ok().filter(|&slice| Self::fits(slice))?,
        };
        (layout.bytes() as u64 == length).then_some(layout)
    }

    /// Sixteen elements to 4 Mi, in cache lines.
    pub(super) fn fits(slice: usize) -> bool {
        (16..=1 << 22).contains(&slice) && slice.is_multiple_of(16)
    }
}

/// A counter that goes up, and how many sleep until it does. A cache line of its own.
#[repr(C, align(64))]
pub(super) struct Counter {
    pub(super) value: AtomicU32,
    pub(super) sleepers: AtomicU32,
}

/// What a rank tells all others.
#[repr(C)]
pub(super) struct Rank {
    /// Rounds whose contributions lie here.
    pub(super) deposited: Counter,
    /// Rounds whose sums lie here, and whose contributions from all others were read.
    pub(super) reduced: Counter,
    /// [`ABSENT`], [`HERE`] or [`LEFT`].
    pub(super) state: AtomicU32,
    /// Goes up for as long as the process runs.
    pub(super) pulse: AtomicU32,
    operation: [AtomicU64; 3],
}

pub(super) const ABSENT: u32 = 0;
pub(super) const HERE: u32 = 1;
pub(super) const LEFT: u32 = 2;

const RANK_IDENTITY: usize = 512;

#[repr(C)]
pub(super) struct Head {
    magic: AtomicU64,
    world: AtomicU64,
    slice: AtomicU64,
    /// All have come.
    pub(super) ready: Counter,
    /// 0; 1 while the reason is written; 2 afterwards.
    pub(super) aborted: AtomicU32,
    reason_by: AtomicU32,
    reason_bytes: AtomicU32,
}

const _: () = assert!(size_of::<Rank>() <= RANK_IDENTITY && RANK_IDENTITY + Identity::BYTES <= RANK);
const _: () = assert!(size_of::<Head>() <= 256 && 256 + REASON + MOST_REASON <= IDENTITY);
const _: () = assert!(IDENTITY + Identity::BYTES <= PAGE);

/// A mapped file.
pub(super) struct Region {
    base: NonNull<u8>,
    pub(super) layout: Layout,
    pub(super) file: File,
}

// SAFETY: the mapping belongs to the value; everything shared in it is atomic, or handed over by counters.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.layout.bytes()) };
    }
}

impl Region {
    /// Makes the whole of a new, empty file.
    pub(super) fn create(file: File, layout: Layout, identity: &Identity, path: &str) -> Result<Self, Error> {
        let bytes = layout.bytes();
        // Without memory behind it, a write to the mapping would end the process.
        // SAFETY: a call on an open file.
        let failed = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) };
        if failed != 0 {
            let source = std::io::Error::from_raw_os_error(failed);
            let what = format!("cannot take {bytes} bytes for {path}");
            return Err(Error::io(
                what,
                "give the folder more room (in a container: --shm-size), or choose smaller slices",
            )(source));
        }
        let region = Self::map(file, layout, path)?;
        let head = region.head();
        head.world.store(layout.world as u64, Ordering::Relaxed);
        head.slice.store(layout.slice as u64, Ordering::Relaxed);
        region.write(IDENTITY, &identity.encode());
        head.magic.store(MAGIC, Ordering::Release);
        Ok(region)
    }

    pub(super) fn map(file: File, layout: Layout, path: &str) -> Result<Self, Error> {
        // SAFETY: a new mapping at a place of the kernel's choice; the file is as long as the layout says, which the caller has seen to.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                layout.bytes(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        let base = if base == libc::MAP_FAILED {
            None
        } else {
            NonNull::new(base.cast())
        };
        let base = base.ok_or_else(|| {
            let what = format!("cannot map {} bytes of {path}", layout.bytes());
            Error::io(what, "see `ulimit -v` and free memory")(std::io::Error::last_os_error())
        })?;
        Ok(Self { base, layout, file })
    }

    /// Makes the file so long that `bytes` follow byte `at`, with memory behind all of it.
    pub(super) fn extend(&self, at: usize, bytes: usize) -> Result<(), Error> {
        // SAFETY: a call on an open file.
        let failed = unsafe { libc::posix_fallocate(self.file.as_raw_fd(), at as libc::off_t, bytes as libc::off_t) };
        if failed == 0 {
            return Ok(());
        }
        let source = std::io::Error::from_raw_os_error(failed);
        let what = format!("cannot take {bytes} bytes of shared memory for gradients");
        Err(Error::io(
            what,
            "give /dev/shm more room (in a container: --shm-size), or use fewer ranks",
        )(source))
    }

    /// A further mapping of the file.
    pub(super) fn map_more(&self, at: usize, bytes: usize) -> Result<NonNull<f32>, Error> {
        // SAFETY: a new mapping at a place of the kernel's choice, of bytes that `extend` has made.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.file.as_raw_fd(),
                at as libc::off_t,
            )
        };
        let base = if base == libc::MAP_FAILED {
            None
        } else {
            NonNull::new(base.cast())
        };
        base.ok_or_else(|| {
            Error::io(format!("cannot map {bytes} bytes"), "see `ulimit -v` and free memory")(
                std::io::Error::last_os_error(),
            )
        })
    }

    /// Of the first bytes of a file, before it is mapped: magic, world size, elements of a slice.
    pub(super) fn peek(words: [u64; 3], length: u64) -> Option<Layout> {
        (words[0] == MAGIC)
            .then(|| Layout::check(words[1], words[2], length))
            .flatten()
    }

    pub(super) fn head(&self) -> &Head {
        // SAFETY: within the mapping, aligned to a page, and all of it is atomic.
        unsafe { self.base.cast().as_ref() }
    }

    pub(super) fn rank(&self, rank: usize) -> &Rank {
        assert!(rank < self.layout.world);
        // SAFETY: as above; the layout has a place for each rank of the world.
        unsafe { self.base.add(RANKS + rank * RANK).cast().as_ref() }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.layout.data());
        // SAFETY: within the mapping; each place has one writer, and is read after an acquire of what it stores next.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at).as_ptr(), bytes.len()) };
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        assert!(at + bytes.len() <= self.layout.data());
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(self.base.add(at).as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
    }

    pub(super) fn set_identity(&self, identity: &Identity) {
        let rank = identity.member.rank;
        self.write(RANKS + rank * RANK + RANK_IDENTITY, &identity.encode());
        self.rank(rank).state.store(HERE, Ordering::Release);
    }

    /// Nothing while that rank is absent.
    pub(super) fn identity(&self, rank: usize) -> Option<Identity> {
        if self.rank(rank).state.load(Ordering::Acquire) == ABSENT {
            return None;
        }
        let mut bytes = [0; Identity::BYTES];
        self.read(RANKS + rank * RANK + RANK_IDENTITY, &mut bytes);
        Identity::decode(&bytes)
    }

    pub(super) fn creator(&self) -> Option<Identity> {
        let mut bytes = [0; Identity::BYTES];
        self.read(IDENTITY, &mut bytes);
        Identity::decode(&bytes)
    }

    pub(super) fn set_operation(&self, rank: usize, operation: Operation) {
        for (at, word) in self.rank(rank).operation.iter().zip(operation.words()) {
            at.store(word, Ordering::Relaxed);
        }
    }

    /// Nothing where the words are of no operation.
    pub(super) fn operation(&self, rank: usize) -> Option<Operation> {
        let at = &self.rank(rank).operation;
        let words = [0, 1, 2].map(|i: usize| at[i].load(Ordering::Relaxed));
        if words == [0; 3] {
            return Some(Operation::NONE);
        }
        Operation::from_words(words)
    }

    /// The first reason stays. Wakes everybody.
    pub(super) fn abort(&self, by: usize, reason: &str) {
        let head = self.head();
        if head
            .aborted
            .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            let mut end = reason.len().min(MOST_REASON);
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            self.write(256 + REASON, &reason.as_bytes()[..end]);
            head.reason_by.store(by as u32, Ordering::Relaxed);
            head.reason_bytes.store(end as u32, Ordering::Relaxed);
            head.aborted.store(2, Ordering::SeqCst);
        }
        super::wait::wake(&head.ready);
        for rank in 0..self.layout.world {
            super::wait::wake(&self.rank(rank).deposited);
            super::wait::wake(&self.rank(rank).reduced);
        }
    }

    /// Who gave up and why, once somebody has.
    pub(super) fn aborted(&self) -> Option<(usize, String)> {
        let head = self.head();
        match head.aborted.load(Ordering::SeqCst) {
            0 => None,
            1 => Some((usize::MAX, "its reason was not yet written".to_owned())),
            _ => {
                let length = (head.reason_bytes.load(Ordering::Relaxed) as usize).min(MOST_REASON);
                let mut bytes = vec![0; length];
                self.read(256 + REASON, &mut bytes);
                let by = head.reason_by.load(Ordering::Relaxed) as usize;
                Some((by, String::from_utf8_lossy(&bytes).into_owned()))
            }
        }
    }

    /// Where `rank`'s deposits for a round begin: for each rank a slice, then its own sums.
    fn place(&self, rank: usize, round: u32, slice: usize) -> *mut f32 {
        assert!(rank < self.layout.world && slice <= self.layout.world);
        let at = self.layout.data() + (rank * 2 + (round % 2) as usize) * self.layout.turn();
        // SAFETY: within the mapping, by the layout.
        unsafe { self.base.add(at).cast::<f32>().add(slice * self.layout.slice).as_ptr() }
    }

    /// What `from` has laid down for `to`; with `to` the world size, its sums.
    ///
    /// # Safety
    /// The counters must say that it is written and will stay until this rank goes on.
    pub(super) unsafe fn shared<T: bytemuck::Pod>(&self, from: usize, round: u32, to: usize, count: usize) -> &[T] {
        assert!(size_of::<T>() <= 4 && count <= self.layout.slice);
        // SAFETY: the place holds that many elements of four bytes; that nobody writes is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.place(from, round, to).cast(), count) }
    }

    /// A rank's own place, to write to.
    ///
    /// # Safety
    /// The counters must say that nobody reads it any more.
    #[allow(
        clippy::mut_from_ref,
        reason = "the memory is the other processes', too; counters hand it over"
    )]
    pub(super) unsafe fn exclusive<T: bytemuck::Pod>(
        &self,
        own: usize,
        round: u32,
        to: usize,
        count: usize,
    ) -> &mut [T] {
        assert!(size_of::<T>() <= 4 && count <= self.layout.slice);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.place(own, round, to).cast(), count) }
    }

    /// All deposits of a rank as one, for what is not cut: as long as a round.
    ///
    /// # Safety
    /// As [`Self::shared`].
    pub(super) unsafe fn shared_whole<T: bytemuck::Pod>(&self, from: usize, round: u32, count: usize) -> &[T] {
        assert!(count * size_of::<T>() <= self.layout.round() * 4);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.place(from, round, 0).cast(), count) }
    }

    /// As [`Self::shared_whole`], to write to.
    ///
    /// # Safety
    /// As [`Self::exclusive`].
    #[allow(clippy::mut_from_ref, reason = "as above")]
    pub(super) unsafe fn exclusive_whole<T: bytemuck::Pod>(&self, own: usize, round: u32, count: usize) -> &mut [T] {
        assert!(count * size_of::<T>() <= self.layout.round() * 4);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.place(own, round, 0).cast(), count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_lies_about_its_size_is_none_of_ours() {
        let layout = Layout { world: 3, slice: 64 };
        let length = layout.bytes() as u64;
        assert_eq!(Region::peek([MAGIC, 3, 64], length), Some(layout));
        for (words, length) in [
            ([MAGIC + 1, 3, 64], length),
            ([MAGIC, 3, 64], length - 1),
            ([MAGIC, 0, 64], length),
            ([MAGIC, 257, 64], length),
            ([MAGIC, 3, u64::MAX], length),
            ([MAGIC, 3, 63], length),
        ] {
            assert_eq!(Region::peek(words, length), None, "{words:?} {length}");
        }
    }
}
