//! Building a table in memory, byte for byte as TensorFlow's `table::TableBuilder` does.

use coati_common::tfrecord::masked_crc32c;

use super::{FOOTER_BYTES, MAGIC, push_varint};

/// TensorFlow's `table::Options::block_size`.
const BLOCK_BYTES: usize = 262_144;
/// Entries between two keys that are stored whole, in data blocks; in the index block every key is.
const RESTART_INTERVAL: usize = 16;

/// Takes keys in ascending order.
pub(crate) struct Builder {
    file: Vec<u8>,
    data: Block,
    index: Block,
    block_bytes: usize,
    /// The block that was written last and is not in the index yet: its key there depends on the key that follows.
    pending: Option<(usize, usize)>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self::with_block_bytes(BLOCK_BYTES)
    }

    /// Closes a block as soon as it has this many bytes.
    pub(crate) fn with_block_bytes(block_bytes: usize) -> Self {
        let (data, index) = (Block::new(RESTART_INTERVAL), Block::new(1));
        Self {
            file: Vec::new(),
            data,
            index,
            block_bytes,
            pending: None,
        }
    }

    /// Adds a key, which must be greater than the one before.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        if let Some(place) = self.pending.take() {
            let separator = shortest_separator(&self.data.last_key, key);
            self.index.add(&separator, &handle(place));
            self.data.last_key.clear();
        }
        self.data.add(key, value);
        if self.data.size() >= self.block_bytes {
            self.flush();
        }
    }

    /// The table's bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if !self.data.is_empty() {
            self.flush();
        }
        let metaindex = write_block(&mut self.file, Block::new(1).take());
        if let Some(place) = self.pending.take() {
            self.index.add(&short_successor(&self.data.last_key), &handle(place));
        }
        let index = write_block(&mut self.file, self.index.take());
        push_footer(&mut self.file, metaindex, index);
        self.file
    }

    fn flush(&mut self) {
        let last_key = std::mem::take(&mut self.data.last_key);
        let block = self.data.take();
        self.pending = Some(write_block(&mut self.file, block));
        self.data.last_key = last_key;
    }
}

struct Block {
    bytes: Vec<u8>,
    restarts: Vec<u32>,
    since_restart: usize,
    interval: usize,
    last_key: Vec<u8>,
}

impl Block {
    fn new(interval: usize) -> Self {
        Self {
            bytes: Vec::new(),
            restarts: vec![0],
            since_restart: 0,
            interval,
            last_key: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size(&self) -> usize {
        self.bytes.len() + self.restarts.len() * 4 + 4
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut shared = 0;
        if self.since_restart < self.interval {
            shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        } else {
            self.restarts.push(self.bytes.len() as u32);
            self.since_restart = 0;
        }
        for number in [shared, key.len() - shared, value.len()] {
            push_varint(&mut self.bytes, number as u64);
        }
        self.bytes.extend_from_slice(&key[shared..]);
        self.bytes.extend_from_slice(value);
        self.since_restart += 1;
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
    }

    /// The block's bytes; it is empty afterwards.
    fn take(&mut self) -> Vec<u8> {
        let block = std::mem::replace(self, Self::new(self.interval));
        let mut bytes = block.bytes;
        bytes.extend(block.restarts.iter().flat_map(|offset| offset.to_le_bytes()));
        bytes.extend((block.restarts.len() as u32).to_le_bytes());
        bytes
    }
}

fn write_block(file: &mut Vec<u8>, block: Vec<u8>) -> (usize, usize) {
    let place = (file.len(), block.len());
    file.extend(block);
    file.push(0);
    let crc = masked_crc32c(&file[place.0..]);
    file.extend(crc.to_le_bytes());
    place
}

fn push_footer(file: &mut Vec<u8>, metaindex: (usize, usize), index: (usize, usize)) {
    let mut footer = handle(metaindex);
    footer.extend(handle(index));
    footer.resize(FOOTER_BYTES - 8, 0);
    file.extend(footer);
    file.extend(MAGIC.to_le_bytes());
}

fn handle((offset, size): (usize, usize)) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_varint(&mut bytes, offset as u64);
    push_varint(&mut bytes, size as u64);
    bytes
}

/// A short key that is at least `key` and below `next` (`FindShortestSeparator`).
fn shortest_separator(key: &[u8], next: &[u8]) -> Vec<u8> {
    let common = key.iter().zip(next).take_while(|(a, b)| a == b).count();
    let ends = key.get(common).copied().zip(next.get(common).copied());
    if ends.is_some_and(|(byte, limit)| byte < 0xff && byte + 1 < limit) {
        let mut separator = key[..=common].to_vec();
        separator[common] += 1;
        return separator;
    }
    key.to_vec()
}

/// A short key that is at least `key` (`FindShortSuccessor`).
fn short_successor(key: &[u8]) -> Vec<u8> {
    let Some(at) = key.iter().position(|&byte| byte != 0xff) else {
        return key.to_vec();
    };
    let mut successor = key[..=at].to_vec();
    successor[at] += 1;
    successor
}

/// A table around one data block that was made by hand.
#[cfg(test)]
pub(super) fn wrap_block(block: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new();
    builder.pending = Some(write_block(&mut builder.file, block.to_vec()));
    builder.data.last_key = vec![b'z'];
    builder.finish()
}
