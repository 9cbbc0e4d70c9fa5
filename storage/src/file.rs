//! Reading parts of a file in any order.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::bucket::{Object, copy};
use crate::cache::Cache;
use crate::local;
use crate::location::is_remote;
use crate::runtime::{Pending, block, start, wait};
use crate::sequential::Sequential;
use crate::store::Stat;

/// What was asked for ahead and not read yet, for each file: beyond it the oldest is forgotten.
const AHEAD_BYTES: u64 = 64 << 20;
const AHEAD_RANGES: usize = 256;
/// See [`File::open_for_blocks`].
const BLOCK_BYTES: u64 = 8 << 20;
const BLOCKS: usize = 4;

/// An open file. Any number of threads may read at once.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Local(fs::File),
    Object(Remote),
}

#[derive(Debug)]
struct Remote {
    object: Arc<Object>,
    stat: Stat,
    ahead: Mutex<VecDeque<Ahead>>,
    cache: Option<&'static Cache>,
    blocks: Option<Mutex<Blocks>>,
}

/// The blocks that were read last, for readers of many small neighbours.
#[derive(Debug, Default)]
struct Blocks {
    held: VecDeque<(u64, Bytes)>,
    next: Option<(u64, Pending<io::Result<Bytes>>)>,
}

#[derive(Debug)]
struct Ahead {
    range: Range<u64>,
    pending: Pending<io::Result<Vec<Bytes>>>,
}

impl File {
    /// Opens a file. An object stays the one that it is now: when it is replaced, reading fails instead of mixing both.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, None)
    }

    /// As [`File::open`], for reading many small ranges mostly in their order: a bucket is asked for large blocks, the next one ahead,
    /// of which some stay in memory.
    pub fn open_for_blocks(path: &Path) -> io::Result<Self> {
        Self::open_with(path, Some(Mutex::default()))
    }

    /// A local file that is open already, whether it has a name or not; `path` is for those who ask what it is.
    pub fn of_local(path: &Path, file: fs::File) -> Self {
        Self {
            path: path.to_owned(),
            inner: Inner::Local(file),
        }
    }

    fn open_with(path: &Path, blocks: Option<Mutex<Blocks>>) -> io::Result<Self> {
        let inner = if is_remote(path) {
            let object = Arc::new(Object::at(path)?);
            let asked = Arc::clone(&object);
            let stat = block(async move { asked.stat().await })??;
            Inner::Object(Remote {
                object,
                stat,
                ahead: Mutex::default(),
                cache: Cache::shared(),
                blocks,
            })
        } else {
            Inner::Local(fs::File::open(path)?)
        };
        Ok(Self {
            path: path.to_owned(),
            inner,
        })
    }

    /// Whether it lies in a bucket.
    pub fn is_remote(&self) -> bool {
        matches!(self.inner, Inner::Object(_))
    }

    /// As it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size and time: of a local file as it is now, of an object as it was opened.
    pub fn stat(&self) -> io::Result<Stat> {
        match &self.inner {
            Inner::Local(file) => file.metadata().map(|metadata| local::stat(&metadata)),
            Inner::Object(remote) => Ok(remote.stat.clone()),
        }
    }

    /// Its size in bytes.
    pub fn len(&self) -> io::Result<u64> {
        self.stat().map(|stat| stat.bytes)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|bytes| bytes == 0)
    }

    /// Fills `buffer` from byte `offset`; what lies beyond the end is `UnexpectedEof`.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.inner {
            Inner::Local(file) => file.read_exact_at(buffer, offset),
            Inner::Object(remote) => remote.read(buffer, offset),
        }
    }

    /// Says that these bytes will be read soon. From a bucket they are on their way then; a disk's own read-ahead does.
    pub fn prefetch(&self, offset: u64, bytes: u64) {
        if let Inner::Object(remote) = &self.inner {
            remote.prefetch(offset, bytes);
        }
    }

    /// Reads from the first byte to the last, ahead of whoever asks.
    pub fn sequential(&self) -> io::Result<Sequential> {
        match &self.inner {
            Inner::Local(file) => Ok(Sequential::local(file.try_clone()?)),
            Inner::Object(remote) => Ok(Sequential::object(Arc::clone(&remote.object), &remote.stat)),
        }
    }
}

impl Remote {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let range = offset..offset.saturating_add(buffer.len() as u64);
        if range.end > self.stat.bytes {
            let text = format!(
                "{}: it has {} bytes, not {}",
                self.object.location, self.stat.bytes, range.end
            );
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        if let Some(pending) = self.take(&range) {
            copy(&wait(&pending)??, buffer);
            return Ok(());
        }
        if let Some(blocks) = &self.blocks {
            let mut blocks = blocks.lock().unwrap_or_else(PoisonError::into_inner);
            return self.read_blocks(&mut blocks, buffer, offset);
        }
        if let Some(cache) = self.cache {
            return cache.read(&self.object, &self.stat, offset, buffer);
        }
        let (object, tag) = (Arc::clone(&self.object), self.stat.tag.clone());
        copy(&block(async move { object.get_large(range, tag).await })??, buffer);
        Ok(())
    }

    fn read_blocks(&self, blocks: &mut Blocks, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut at = 0;
        while at < buffer.len() {
            let from = offset + at as u64;
            let number = from / BLOCK_BYTES;
            let block = self.block(blocks, number)?;
            let skip = (from - number * BLOCK_BYTES) as usize;
            let count = block.len().saturating_sub(skip).min(buffer.len() - at);
            buffer[at..at + count].copy_from_slice(&block[skip..skip + count]);
            at += count;
        }
        Ok(())
    }

    fn block(&self, blocks: &mut Blocks, number: u64) -> io::Result<Bytes> {
        if let Some((_, block)) = blocks.held.iter().find(|(held, _)| *held == number) {
            return Ok(block.clone());
        }
        let pending = match blocks.next.take() {
            Some((next, pending)) if next == number => pending,
            _ => self.fetch(number)?,
        };
        if (number + 1) * BLOCK_BYTES < self.stat.bytes {
            blocks.next = Some((number + 1, self.fetch(number + 1)?));
        }
        let block = wait(&pending)??;
        if blocks.held.len() >= BLOCKS {
            blocks.held.pop_front();
        }
        blocks.held.push_back((number, block.clone()));
        Ok(block)
    }

    fn fetch(&self, number: u64) -> io::Result<Pending<io::Result<Bytes>>> {
        let range = number * BLOCK_BYTES..((number + 1) * BLOCK_BYTES).min(self.stat.bytes);
        let (object, tag) = (Arc::clone(&self.object), self.stat.tag.clone());
        start(async move { object.get(range, tag).await })
    }

    fn take(&self, range: &Range<u64>) -> Option<Pending<io::Result<Vec<Bytes>>>> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let at = ahead.iter().position(|found| found.range == *range)?;
        ahead.remove(at).map(|found| found.pending)
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        let range = offset..offset.saturating_add(bytes).min(self.stat.bytes);
        if range.is_empty() {
            return;
        }
        if let Some(cache) = self.cache {
            cache.prefetch(&self.object, &self.stat, range);
            return;
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.iter().any(|found| found.range == range) {
            return;
        }
        let size = |found: &Ahead| found.range.end - found.range.start;
        let mut held: u64 = ahead.iter().map(size).sum();
        while ahead.len() >= AHEAD_RANGES || held + bytes > AHEAD_BYTES {
            let Some(oldest) = ahead.pop_front() else { break };
            held -= size(&oldest);
        }
        let (object, tag, wanted) = (Arc::clone(&self.object), self.stat.tag.clone(), range.clone());
        if let Ok(pending) = start(async move { object.get_large(wanted, tag).await }) {
            ahead.push_back(Ahead { range, pending });
        }
    }
}
