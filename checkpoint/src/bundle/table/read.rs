//! Reading a whole table. Nothing in it is believed before it is checked.

use coati_common::tfrecord::masked_crc32c;

use super::{FOOTER_BYTES, MAGIC, TRAILER_BYTES, take_varint};

/// Keys and values may be this many times as large as the file (keys share prefixes), and a little more.
const MAX_GROWTH: usize = 200;
const SLACK_BYTES: usize = 1 << 16;

/// A key and its value.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// All keys with their values, in ascending order of the keys; otherwise what is wrong and where.
pub(crate) fn parse(file: &[u8]) -> Result<Vec<Pair>, String> {
    let Some(footer_at) = file.len().checked_sub(FOOTER_BYTES) else {
        return Err(format!(
            "it has {} bytes, a table has at least {FOOTER_BYTES}",
            file.len()
        ));
    };
    let footer = &file[footer_at..];
    let magic = u64_at(footer, FOOTER_BYTES - 8).unwrap_or(0);
    if magic != MAGIC {
        return Err(format!(
            "the last eight bytes are {magic:#018x}, a table ends in {MAGIC:#018x}"
        ));
    }
    let mut handles = &footer[..FOOTER_BYTES - 8];
    let _metaindex = handle(&mut handles).ok_or("bad block handle in the footer")?;
    let index = handle(&mut handles).ok_or("bad block handle in the footer")?;

    let mut budget = file.len().saturating_mul(MAX_GROWTH).saturating_add(SLACK_BYTES);
    let mut blocks = Vec::new();
    block_pairs(block(file, footer_at, index)?, &mut budget, &mut blocks)
        .map_err(|what| format!("index block at byte {}: {what}", index.0))?;

    let mut pairs: Vec<Pair> = Vec::new();
    for (_, value) in blocks {
        let place = handle(&mut value.as_slice()).ok_or("bad block handle in the index block")?;
        let before = pairs.len();
        block_pairs(block(file, footer_at, place)?, &mut budget, &mut pairs)
            .map_err(|what| format!("block at byte {}: {what}", place.0))?;
        let from = before.saturating_sub(1);
        if pairs[from..].windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(format!("block at byte {}: keys are not in ascending order", place.0));
        }
    }
    Ok(pairs)
}

/// Offset and size of a block.
type Handle = (u64, u64);

fn handle(bytes: &mut &[u8]) -> Option<Handle> {
    Some((take_varint(bytes)?, take_varint(bytes)?))
}

/// The content of a block, its trailer checked.
fn block(file: &[u8], end: usize, (offset, size): Handle) -> Result<&[u8], String> {
    let place = || format!("block of {size} bytes at byte {offset}");
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let stop = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
    if stop.saturating_add(TRAILER_BYTES) > end {
        return Err(format!("{}: the file has {} bytes", place(), file.len()));
    }
    let stored = u32_at(file, stop + 1).unwrap_or(0);
    let computed = masked_crc32c(&file[start..=stop]);
    if stored != computed {
        return Err(format!(
            "{}: CRC is {computed:#010x}, the trailer says {stored:#010x}",
            place()
        ));
    }
    match file[stop] {
        0 => Ok(&file[start..stop]),
        1 => Err(format!("{}: compressed with snappy, which is not supported", place())),
        other => Err(format!("{}: unknown compression type {other}", place())),
    }
}

/// Appends what a block holds to `pairs`; `budget` is how many bytes that may be.
fn block_pairs(block: &[u8], budget: &mut usize, pairs: &mut Vec<Pair>) -> Result<(), String> {
    let count_at = block.len().checked_sub(4).ok_or("shorter than its restart count")?;
    let restarts = u32_at(block, count_at).unwrap_or(0) as usize;
    let end = restarts.checked_mul(4).and_then(|bytes| count_at.checked_sub(bytes));
    let end = end.ok_or_else(|| format!("{restarts} restarts do not fit into {} bytes", block.len()))?;

    let mut rest = &block[..end];
    let mut key: Vec<u8> = Vec::new();
    while !rest.is_empty() {
        let at = end - rest.len();
        let entry = |what: &str| format!("entry at byte {at} {what}");
        let mut number = || take_varint(&mut rest).and_then(|value| usize::try_from(value).ok());
        let (shared, fresh, value) = (number(), number(), number());
        let (Some(shared), Some(fresh), Some(value)) = (shared, fresh, value) else {
            return Err(entry("has a bad length"));
        };
        if shared > key.len() || fresh.checked_add(value).is_none_or(|bytes| bytes > rest.len()) {
            return Err(entry("reaches beyond the block"));
        }
        key.truncate(shared);
        key.extend_from_slice(&rest[..fresh]);
        let content = &rest[fresh..fresh + value];
        *budget = budget
            .checked_sub(key.len() + value)
            .ok_or_else(|| entry("makes the keys more than the file can mean"))?;
        pairs.push((key.clone(), content.to_vec()));
        rest = &rest[fresh + value..];
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}
