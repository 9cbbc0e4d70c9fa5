//! Damaged files are errors: no panics, no made-up numbers.

use std::fs;
use std::path::{Path, PathBuf};

use coati_checkpoint::bundle::Reader;
use proptest::prelude::*;

use crate::support::{counting, fixture};

const DATA: &str = "p.data-00000-of-00001";

/// A copy of the partitioned fixture, to be damaged.
fn copy() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("checkpoint/partitioned.ckpt.index"), dir.path().join("p.index")).unwrap();
    fs::copy(
        fixture("checkpoint/partitioned.ckpt.data-00000-of-00001"),
        dir.path().join(DATA),
    )
    .unwrap();
    let prefix = dir.path().join("p");
    (dir, prefix)
}

/// Reads everything; what can be read must be right.
fn read_all(prefix: &Path) -> Result<(), coati_checkpoint::bundle::Error> {
    let reader = Reader::open(prefix)?;
    let mut result = reader.check_files().map(drop);
    for entry in reader.entries() {
        if entry.name == "global_step" {
            result = result.and(reader.read_i64(&entry.name).map(|values| assert_eq!(values, [7])));
        } else {
            let read = reader.read_f32(&entry.name);
            result = result.and(read.map(|values| assert_eq!(values, counting(entry.elements()))));
        }
    }
    result
}

#[test]
fn the_copy_is_good() {
    let (_dir, prefix) = copy();
    read_all(&prefix).unwrap();
}

#[test]
fn a_flipped_bit_in_the_data_names_tensor_and_crcs() {
    let (dir, prefix) = copy();
    let mut data = fs::read(dir.path().join(DATA)).unwrap();
    *data.last_mut().unwrap() ^= 1;
    fs::write(dir.path().join(DATA), &data).unwrap();
    let reader = Reader::open(&prefix).unwrap();
    let error = reader.read_f32("whole").unwrap_err().to_string();
    assert!(
        error.contains(DATA) && error.contains("\"whole\"") && error.contains("CRC is 0x"),
        "{error}"
    );
    // A range before the damage is not trusted either, and the other tensors are still readable.
    assert!(reader.read_f32_range("whole", 0, 1).is_err());
    assert_eq!(reader.read_f32("rows").unwrap(), counting(40));

    data.truncate(data.len() - 5);
    fs::write(dir.path().join(DATA), &data).unwrap();
    let reader = Reader::open(&prefix).unwrap();
    let error = reader.check_files().unwrap_err().to_string();
    assert!(error.contains("but the file has 3451"), "{error}");
    assert!(reader.read_f32("whole").is_err());
}

proptest! {
    #[test]
    fn random_bytes_are_no_index(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (dir, prefix) = copy();
        fs::write(dir.path().join("p.index"), bytes).unwrap();
        prop_assert!(Reader::open(&prefix).is_err());
    }

    #[test]
    fn damage_is_never_read_as_numbers(
        in_index in any::<bool>(), position in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()
    ) {
        let (dir, prefix) = copy();
        let path = if in_index { dir.path().join("p.index") } else { dir.path().join(DATA) };
        let mut bytes = fs::read(&path).unwrap();
        let at = position.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(&path, &bytes).unwrap();
        let result = read_all(&prefix);
        // The footer's padding and its handle of the empty metaindex block mean nothing.
        let footer = in_index && !cut && at + 48 >= bytes.len();
        let metaindex = in_index && !cut && (0x22c..0x239).contains(&at);
        prop_assert!(result.is_err() || footer || metaindex, "byte {at}");
    }
}

/// Values of entries are changed with the CRCs put right, so that only the entries' own checks stand in the way.
#[test]
fn entries_that_lie_are_refused() {
    use coati_checkpoint::bundle::{SavedTensor, write_plain_index};
    let good = SavedTensor {
        name: "t".to_owned(),
        shape: vec![2, 3],
        dtype: 1,
        size: 24,
        ..SavedTensor::default()
    };
    let change = |change: fn(&mut SavedTensor)| {
        let (_dir, prefix) = copy();
        let mut saved = good.clone();
        change(&mut saved);
        write_plain_index(&prefix, 1, &[saved]).unwrap();
        let read = Reader::open(&prefix).and_then(|reader| reader.read_f32("t"));
        read.unwrap_err().to_string()
    };
    assert!(change(|_| ()).contains("CRC is"));
    assert!(change(|t| t.shape = vec![i64::MAX, i64::MAX]).contains("impossible shape"));
    assert!(change(|t| t.shape = vec![-1, -6]).contains("impossible shape"));
    assert!(change(|t| t.size = 25).contains("does not take 25 bytes"));
    assert!(change(|t| t.size = u64::MAX).contains("size is -1"));
    assert!(change(|t| t.offset = 1 << 63).contains("offset is -9223372036854775808"));
    assert!(change(|t| t.offset = (1 << 63) - 1).contains("but the file has 3456"));
    assert!(
        change(|t| {
            t.shape = vec![1 << 40];
            t.size = 1 << 42;
        })
        .contains("but the file has 3456")
    );
    assert!(change(|t| t.dtype = 7).contains("is string, float32 expected"));
    assert!(change(|t| t.dtype = 99).contains("unknown type"));
}
