//! `LevelDB`'s table format, as far as an index needs it: data blocks, an index block, a footer. No compression, which
//! TensorFlow does not use here either.

mod read;
mod write;

pub(super) use read::parse;
pub(super) use write::Builder;

/// The last eight bytes of any table.
pub(crate) const MAGIC: u64 = 0xdb47_7524_8b80_fb57;
/// Two block handles (padded) and the magic number.
const FOOTER_BYTES: usize = 48;
/// Compression type and CRC after each block.
const TRAILER_BYTES: usize = 5;

/// Appends a base-128 number.
fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Takes a base-128 number off the front; `None` when there is none.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn varints() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, value);
            assert_eq!(take_varint(&mut bytes.as_slice()), Some(value));
            assert_eq!(take_varint(&mut &bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(
            take_varint(&mut [0xff; 9].iter().copied().chain([2]).collect::<Vec<_>>().as_slice()),
            None
        );
    }

    fn build(pairs: &[(Vec<u8>, Vec<u8>)], block_bytes: usize) -> Vec<u8> {
        let mut builder = Builder::with_block_bytes(block_bytes);
        for (key, value) in pairs {
            builder.add(key, value);
        }
        builder.finish()
    }

    proptest! {
        #[test]
        fn round_trip(pairs in proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 0..12), proptest::collection::vec(any::<u8>(), 0..30), 0..120), block in 16usize..2000) {
            let pairs: Vec<_> = pairs.into_iter().collect();
            prop_assert_eq!(parse(&build(&pairs, block)).unwrap(), pairs);
        }

        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(parse(&bytes).is_err());
            let mut with_magic = bytes;
            with_magic.extend(MAGIC.to_le_bytes());
            prop_assert!(parse(&with_magic).is_err());
        }

        #[test]
        fn damage_is_noticed(position in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
            let pairs: Vec<_> = (0..200u32).map(|i| (format!("name/{i:05}").into_bytes(), i.to_le_bytes().to_vec())).collect();
            let good = build(&pairs, 500);
            let mut bad = good.clone();
            bad[position.index(good.len())] ^= 1 << bit;
            // Padding and the unused metaindex handle may change unnoticed; content may not.
            prop_assert!(parse(&bad).map_or(true, |read| read == pairs));
            prop_assert!(parse(&good[..cut.index(good.len())]).is_err());
        }
    }

    #[test]
    fn nested_sharing_cannot_eat_the_memory() {
        // One long key, then many that share all of it and add nothing but a byte: quadratic when believed.
        let mut block = Vec::new();
        push_varint(&mut block, 0);
        push_varint(&mut block, 60_000);
        push_varint(&mut block, 0);
        block.extend(vec![b'k'; 60_000]);
        for shared in 60_000..120_000u64 {
            push_varint(&mut block, shared);
            block.extend([1, 0, b'k']);
        }
        block.extend([0, 0, 0, 0, 1, 0, 0, 0]);
        let error = parse(&write::wrap_block(&block)).unwrap_err();
        assert!(error.contains("more than"), "{error}");
    }

    #[test]
    fn compressed_blocks_are_refused_by_name() {
        let mut table = build(&[(b"a".to_vec(), b"b".to_vec())], 100);
        // The only data block: 3 + 2 bytes, one restart and their count.
        let at = 5 + 8;
        table[at] = 1;
        let crc = coati_common::tfrecord::masked_crc32c(&table[..=at]);
        table[at + 1..at + 5].copy_from_slice(&crc.to_le_bytes());
        assert!(parse(&table).unwrap_err().contains("snappy"));
    }
}
