use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

mod kept;

fn records(data: &[&[u8]]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for record in data {
        writer.write(record).unwrap();
    }
    writer.into_inner()
}

fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.record");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn golden(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../shared/golden/bccd_tfrecord"
    ))
    .join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is absent", path.display());
    None
}

#[test]
fn crc_is_tensorflows() {
    // The length 0 as TensorFlow writes it; and CRC32C's check value.
    assert_eq!(masked_crc32c(&[0; 8]), 0x0798_0329);
    assert_eq!(unmask(masked_crc32c(b"123456789")), 0xe306_9283);
    assert_eq!(mask(0xe306_9283), masked_crc32c(b"123456789"));
}

#[test]
fn round_trip_in_order_and_at_random() {
    let long = vec![7; 300_000];
    let data: Vec<&[u8]> = vec![b"", b"a", &long, b"last"];
    let (_dir, path) = file(&records(&data));
    let read: Vec<_> = Reader::open(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, data);

    let indexed = IndexedFile::open(&path).unwrap();
    assert_eq!(indexed.len(), 4);
    for index in [3, 0, 2, 1] {
        assert_eq!(indexed.read(index).unwrap().unwrap(), data[index]);
    }
    assert!(indexed.read(4).is_none());
    assert_eq!(index_file(&path).unwrap(), indexed.spans());
}

#[test]
fn an_empty_file_has_no_records() {
    let (_dir, path) = file(&[]);
    assert_eq!(Reader::open(&path).unwrap().count(), 0);
    assert!(index_file(&path).unwrap().is_empty());
}

#[test]
fn reads_what_tensorflow_wrote() {
    let Some(path) = golden("test.record") else { return };
    let indexed = IndexedFile::open(&path).unwrap();
    assert_eq!(indexed.len(), 72);
    let sequential: Vec<_> = Reader::open(&path).unwrap().map(Result::unwrap).collect();
    for (index, record) in sequential.iter().enumerate() {
        assert_eq!(&indexed.read(index).unwrap().unwrap(), record);
    }
    assert_eq!(
        records(&sequential.iter().map(Vec::as_slice).collect::<Vec<_>>()),
        fs::read(&path).unwrap()
    );
}

#[test]
fn errors_name_file_record_offset_and_values() {
    let good = records(&[b"first", b"second"]);
    let second = 12 + 5 + 4;
    let check = |bytes: &[u8], expected: &[&str]| {
        let (_dir, path) = file(bytes);
        let error = Reader::open(&path).unwrap().find_map(Result::err).unwrap();
        let text = error.to_string();
        assert_eq!(error.location().record, 1);
        assert_eq!(error.location().offset, second as u64);
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        for part in expected {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        text
    };

    check(
        &good[..second + 7],
        &["ends in the record's header", "12 bytes expected, 7 left"],
    );
    check(&good[..second + 15], &["says 6 bytes", "only 0 bytes are left"]);
    let mut bad = good.clone();
    bad[second + 9] ^= 1;
    check(&bad, &["length CRC is 0x", "expected 0x", "hint: "]);
    let mut bad = good.clone();
    bad[second + 12] ^= 0x40;
    check(&bad, &["data CRC of 6 bytes is 0x", "expected 0x"]);
    let mut bad = good[..second].to_vec();
    bad.extend(encode_header(u64::MAX - 3));
    check(&bad, &["says 18446744073709551612 bytes"]);

    // Without a known size the same must come out, and no memory be reserved for it.
    let error = Reader::new(bad.as_slice(), "stream").find_map(Result::err).unwrap();
    assert!(
        matches!(
            error,
            Error::Truncated {
                part: "data",
                found: 0,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_bad_record_does_not_hide_the_next() {
    let mut bytes = records(&[b"one", b"two", b"three"]);
    bytes[12] ^= 1;
    let (_dir, path) = file(&bytes);
    let results: Vec<_> = Reader::open(&path).unwrap().collect();
    assert_eq!(results.len(), 3);
    assert!(results[0].as_ref().is_err_and(Error::is_local));
    assert_eq!(results[2].as_ref().unwrap(), b"three");
    let indexed = IndexedFile::open(&path).unwrap();
    assert!(indexed.read(0).unwrap().is_err());
    assert_eq!(indexed.read(1).unwrap().unwrap(), b"two");
}

#[test]
fn a_file_cut_after_indexing_is_an_error() {
    let (_dir, path) = file(&records(&[b"one", b"two"]));
    let indexed = IndexedFile::open(&path).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(25)
        .unwrap();
    assert!(matches!(
        indexed.read(1).unwrap(),
        Err(Error::Truncated { part: "data", .. })
    ));
    assert_eq!(indexed.read(0).unwrap().unwrap(), b"one");
}

/// Packed as TensorFlow's writer packs.
fn packed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    use std::io::Write as _;
    let level = flate2::Compression::default();
    match compression {
        Compression::Gzip => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), level);
            packer.write_all(bytes).unwrap();
            packer.finish().unwrap()
        }
        Compression::Zlib => {
            let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), level);
            packer.write_all(bytes).unwrap();
            packer.finish().unwrap()
        }
    }
}

#[test]
fn packed_files_are_read_in_order_and_at_random() {
    let content: [&[u8]; 3] = [b"abcd", b"", &[7; 100_000]];
    for compression in [Compression::Gzip, Compression::Zlib] {
        let (dir, path) = file(&packed(&records(&content), compression));
        let read: Vec<_> = Reader::open(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(read, content);
        let kept = dir.path().join("index");
        for indexed in [IndexedFile::open(&path), IndexedFile::open_kept(&path, &kept)] {
            let indexed = indexed.unwrap();
            assert_eq!(indexed.len(), 3);
            for number in [2, 0, 1] {
                assert_eq!(
                    indexed.read(number).unwrap().unwrap(),
                    content[number],
                    "{compression:?}"
                );
            }
            indexed.keep(&kept);
        }
        assert_eq!(
            std::fs::read_dir(&kept).unwrap().count(),
            0,
            "an index of a packed file is of no use"
        );
    }
}

#[test]
fn two_packed_files_in_one_are_read_on() {
    let both = [b"ab", b"cd"]
        .map(|record| packed(&records(&[record]), Compression::Gzip))
        .concat();
    let (_dir, path) = file(&both);
    assert_eq!(IndexedFile::open(&path).unwrap().len(), 2);
}

#[test]
fn a_plain_file_that_begins_as_packed_ones_do_is_plain() {
    // 0x8b1f and 0x9c78 bytes: the length's first two bytes are gzip's and zlib's magic.
    for length in [0x8b1f, 0x9c78] {
        let (_dir, path) = file(&records(&[&vec![1; length]]));
        assert_eq!(Reader::open(&path).unwrap().next().unwrap().unwrap().len(), length);
        assert_eq!(IndexedFile::open(&path).unwrap().spans()[0].length, length as u64);
    }
}

#[test]
fn damage_in_a_packed_file_is_named() {
    let good = packed(&records(&[&[5; 3000], &[6; 3000]]), Compression::Gzip);
    let mut bent = good.clone();
    let middle = bent.len() / 2;
    bent[middle] ^= 0x55;
    let no_records = packed(b"these are no records at all", Compression::Gzip);
    for (bytes, why) in [
        (&good[..good.len() - 9], "the gzip data end too early"),
        (&bent[..], "hint:"),
        (&no_records[..], "this is not a TFRecord file"),
        (&[0x1f, 0x8b, 8, 0, 3, 3, 3, 3][..], "gzip data"),
    ] {
        let (_dir, path) = file(bytes);
        let at_random = IndexedFile::open(&path).unwrap_err().to_string();
        assert!(at_random.contains(why) && at_random.contains("record"), "{at_random}");
        assert!(Reader::open(&path).unwrap().any(|record| record.is_err()));
    }
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let in_memory = Reader::new(bytes.as_slice(), "garbage").collect::<Vec<_>>();
        let (_dir, path) = file(&bytes);
        prop_assert_eq!(index_file(&path).is_ok(), in_memory.iter().all(Result::is_ok));
    }

    #[test]
    fn every_flipped_bit_is_noticed(position in 0usize..(3 * 16 + 12), bit in 0u8..8) {
        let mut bytes = records(&[b"abcd", b"efgh", b"ijkl"]);
        bytes[position] ^= 1 << bit;
        prop_assert!(Reader::new(bytes.as_slice(), "flipped").any(|record| record.is_err()));
    }
}
