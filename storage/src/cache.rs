//! Blocks of objects on a local disk, so that the second epoch does not come from the bucket: `COATI_CACHE_DIR`.
//!
//! A block's name is made of the object's URL, its tag and the block's number, so one that was replaced is another. Processes share a
//! folder: blocks appear by renames, and whoever finds the folder too large removes what was used longest ago.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use crate::bucket::Object;
use crate::local::Local;
use crate::runtime;
use crate::settings::SETTINGS;
use crate::store::{Stat, Store as _};

/// Of a block.
const BLOCK_BYTES: u64 = 4 << 20;
/// After a removal so much of the limit is left.
const KEEP: f64 = 0.9;
/// Threads that fill different blocks do not wait for each other, mostly.
const LOCKS: usize = 64;
const ENDING: &str = "block";

static SHARED: LazyLock<Option<Cache>> = LazyLock::new(|| {
    let folder = SETTINGS.cache.clone()?;
    match fs::create_dir_all(&folder) {
        Ok(()) => Some(Cache::new(folder, SETTINGS.cache_bytes)),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "COATI_CACHE_DIR cannot be used");
            None
        }
    }
});

/// A folder of blocks.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    limit: u64,
    /// As far as this process knows.
    held: AtomicU64,
    filling: Vec<Mutex<()>>,
}

impl Cache {
    pub(crate) fn shared() -> Option<&'static Self> {
        SHARED.as_ref()
    }

    fn new(folder: PathBuf, limit: u64) -> Self {
        let held = blocks(&folder).iter().map(|block| block.bytes).sum();
        Self {
            folder,
            limit,
            held: AtomicU64::new(held),
            filling: (0..LOCKS).map(|_| Mutex::new(())).collect(),
        }
    }

    /// Fills `buffer`, which lies within the object.
    pub(crate) fn read(&self, object: &Arc<Object>, stat: &Stat, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < buffer.len() {
            let from = offset + at as u64;
            let number = from / BLOCK_BYTES;
            let block = self.block(object, stat, number)?;
            let skip = (from - number * BLOCK_BYTES) as usize;
            let count = (block.len() - skip).min(buffer.len() - at);
            buffer[at..at + count].copy_from_slice(&block[skip..skip + count]);
            at += count;
        }
        Ok(())
    }

    /// Begins to fetch the blocks of a range that are not there.
    pub(crate) fn prefetch(&'static self, object: &Arc<Object>, stat: &Stat, range: Range<u64>) {
        for number in range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES) {
            if !self.path(object, stat, number).exists() {
                let (object, stat) = (Arc::clone(object), stat.clone());
                let fetch = move || self.block(&object, &stat, number).map(drop);
                // Whoever reads the block waits for this, and hears of errors when trying it again.
                let _ = runtime::start(async move { tokio::task::spawn_blocking(fetch).await });
            }
        }
    }

    fn path(&self, object: &Object, stat: &Stat, number: u64) -> PathBuf {
        let mut digest = Sha256::new();
        digest.update(object.location.to_string());
        digest.update([0]);
        digest.update(stat.tag.as_deref().unwrap_or_default());
        digest.update([0]);
        digest.update(stat.modified_ns.to_le_bytes());
        digest.update(stat.bytes.to_le_bytes());
        let name: String = digest.finalize()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.folder.join(format!("{name}-{number}.{ENDING}"))
    }

    fn block(&self, object: &Arc<Object>, stat: &Stat, number: u64) -> io::Result<Vec<u8>> {
        let path = self.path(object, stat, number);
        let range = number * BLOCK_BYTES..((number + 1) * BLOCK_BYTES).min(stat.bytes);
        if let Some(block) = load(&path, range.end - range.start) {
            return Ok(block);
        }
        let lock = &self.filling[number as usize % LOCKS];
        let _filling = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = load(&path, range.end - range.start) {
            return Ok(block);
        }
        let (object, tag) = (Arc::clone(object), stat.tag.clone());
        let block = runtime::block(async move { object.get(range, tag).await })??;
        self.keep(&path, &block);
        Ok(block.into())
    }

    /// A disk that is full costs a request the next time, no more.
    fn keep(&self, path: &Path, block: &[u8]) {
        if let Err(error) = Local.put(path, block) {
            tracing::debug!(path = %path.display(), %error, "a block is not kept");
            return;
        }
        let held = self.held.fetch_add(block.len() as u64, Ordering::Relaxed) + block.len() as u64;
        if held > self.limit {
            self.shrink();
        }
    }

    fn shrink(&self) {
        let mut found = blocks(&self.folder);
        let mut held: u64 = found.iter().map(|block| block.bytes).sum();
        if held > self.limit {
            found.sort_by_key(|block| block.used);
            let keep = (self.limit as f64 * KEEP) as u64;
            for block in found {
                if held <= keep {
                    break;
                }
                if fs::remove_file(&block.path).is_ok() {
                    held -= block.bytes;
                }
            }
        }
        self.held.store(held, Ordering::Relaxed);
    }
}

struct Block {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

fn blocks(folder: &Path) -> Vec<Block> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.path().extension().is_some_and(|ending| ending == ENDING));
    ours.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(Block {
            path: entry.path(),
            bytes: metadata.len(),
            used: metadata.modified().ok()?,
        })
    })
    .collect()
}

fn load(path: &Path, bytes: u64) -> Option<Vec<u8>> {
    let block = fs::read(path).ok().filter(|block| block.len() as u64 == bytes)?;
    // The time of change is the time of use: what counts when room is needed.
    let _ = fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    Some(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().to_owned(), 100);
        let path = |number: usize| folder.path().join(format!("x-{number}.{ENDING}"));
        for number in 0..3 {
            cache.keep(&path(number), &[0; 30]);
            let used = SystemTime::now() - Duration::from_secs(100 - number as u64);
            fs::File::open(path(number)).unwrap().set_modified(used).unwrap();
        }
        assert!(load(&path(0), 30).is_some() && load(&path(1), 31).is_none());
        cache.keep(&path(3), &[0; 30]);
        let there: Vec<bool> = (0..4).map(|number| path(number).exists()).collect();
        assert_eq!(there, [true, false, true, true], "the first one was used just now");
        assert_eq!(cache.held.load(Ordering::Relaxed), 90);
        assert_eq!(
            Cache::new(folder.path().to_owned(), 100).held.load(Ordering::Relaxed),
            90
        );
    }
}
