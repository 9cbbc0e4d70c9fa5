//! What is written is what is read.

use coati_checkpoint::bundle::{DataFileWriter, Error, Reader, Slice, write_index};
use proptest::prelude::*;

use crate::support::{counting, write_pieces};

#[test]
fn several_data_files_make_one_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("model.ckpt-9");
    let mut saved = Vec::new();
    for shard in 0..3u32 {
        let mut writer = DataFileWriter::create(&prefix, shard, 3).unwrap();
        let large = counting(300_000);
        writer
            .append_f32(&format!("large_{shard}"), &[300, 1000], None, large.chunks(70_001))
            .unwrap();
        writer.append_f32(&format!("empty_{shard}"), &[0, 4], None, []).unwrap();
        writer
            .append_f32(&format!("scalar_{shard}"), &[], None, [[shard as f32].as_slice()])
            .unwrap();
        if shard == 1 {
            writer.append_i64("global_step", &[], &[9]).unwrap();
        }
        saved.extend(writer.finish().unwrap());
    }
    write_index(&prefix, 3, &saved).unwrap();

    let reader = Reader::open(&prefix).unwrap();
    assert_eq!(reader.shard_count(), 3);
    assert!(reader.needs_manifest());
    assert_eq!(reader.check_files().unwrap(), 3 * (1_200_000 + 4) + 8);
    assert_eq!(reader.read_i64("global_step").unwrap(), [9]);
    for shard in 0..3 {
        assert_eq!(reader.read_f32(&format!("large_{shard}")).unwrap(), counting(300_000));
        assert_eq!(reader.read_f32(&format!("scalar_{shard}")).unwrap(), [shard as f32]);
        assert!(reader.read_f32(&format!("empty_{shard}")).unwrap().is_empty());
        // The second range comes after the CRC is known to be right.
        for start in [70_000, 0, 299_990] {
            let range = reader.read_f32_range(&format!("large_{shard}"), start, 10).unwrap();
            assert_eq!(range, &counting(300_000)[start as usize..start as usize + 10]);
        }
    }
}

#[test]
fn a_writer_that_is_dropped_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = DataFileWriter::create(&dir.path().join("p"), 0, 1).unwrap();
    writer.append_f32("a", &[2], None, [[1.0, 2.0].as_slice()]).unwrap();
    let error = writer
        .append_f32("b", &[2], None, [[1.0].as_slice()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"b\": 4 bytes given, shape [2] takes 8"), "{error}");
    drop(writer);
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}

#[test]
fn slices_must_make_up_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("p");
    let mut saved = write_pieces(&prefix, "t", &[4, 4], &[8]);
    let lost = saved.pop().unwrap();
    let error = write_index(&prefix, 2, &saved).unwrap_err().to_string();
    assert!(error.contains("hold 8 of 16 elements"), "{error}");

    let mut shifted = lost.clone();
    shifted.slice_start = vec![1, 0];
    saved.push(shifted);
    assert!(matches!(write_index(&prefix, 2, &saved), Err(Error::Overlap { .. })));
    saved.pop();
    saved.extend([lost.clone(), lost]);
    assert!(
        write_index(&prefix, 2, &saved)
            .unwrap_err()
            .to_string()
            .contains("twice")
    );
    assert!(!dir.path().join("p.index").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any tensor, cut anywhere among any number of servers, comes back; so does any range of it.
    #[test]
    fn cut_tensors_come_back(
        shape in proptest::collection::vec(1i64..7, 1..5),
        cuts in proptest::collection::vec(0.0..1.0f64, 0..4),
        range in (0.0..1.0f64, 0.0..1.0f64),
    ) {
        let elements = shape.iter().product::<i64>() as u64;
        let mut cuts: Vec<u64> = cuts.iter().map(|cut| (cut * elements as f64) as u64).collect();
        cuts.sort_unstable();
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("p");
        let saved = write_pieces(&prefix, "a/b", &shape, &cuts);
        write_index(&prefix, cuts.len() as u32 + 1, &saved).unwrap();
        let reader = Reader::open(&prefix).unwrap();
        prop_assert_eq!(&reader.entry("a/b").unwrap().shape, &shape);
        let start = (range.0 * elements as f64) as u64;
        let length = (range.1 * (elements - start) as f64) as u64;
        let expected = counting(elements);
        prop_assert_eq!(reader.read_f32_range("a/b", start, length).unwrap(), &expected[start as usize..(start + length) as usize]);
        prop_assert_eq!(reader.read_f32("a/b").unwrap(), expected);
    }
}

#[test]
fn columns_are_slices_too() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("p");
    let mut writer = DataFileWriter::create(&prefix, 0, 1).unwrap();
    for (start, values) in [(2, [2.0f32, 5.0].as_slice()), (0, &[0.0, 1.0, 3.0, 4.0])] {
        let slice = Slice {
            start: vec![0, start],
            length: vec![2, values.len() as i64 / 2],
        };
        writer.append_f32("t", &[2, 3], Some(&slice), [values]).unwrap();
    }
    let saved = writer.finish().unwrap();
    write_index(&prefix, 1, &saved).unwrap();
    assert_eq!(Reader::open(&prefix).unwrap().read_f32("t").unwrap(), counting(6));
}
