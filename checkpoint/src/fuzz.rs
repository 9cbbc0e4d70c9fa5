//! Whatever the bytes are: an error or the right numbers, no panic, and no more memory than the files justify.
//!
//! Inputs are random, and random changes of good files, a bounded number of each. The crate is proptest and not a fuzzer
//! that is guided by coverage: those need instrumentation that a stable compiler does not have, without which they draw
//! at random too, and do not shrink what they find.

use std::fs;
use std::path::Path;

use coati_proto::tensorflow::tensor_shape_proto::Dim;
use coati_proto::tensorflow::{BundleEntryProto, TensorShapeProto, TensorSliceProto, tensor_slice_proto};
use proptest::prelude::*;
use prost::Message as _;

use crate::bundle::{self, DataFileWriter, Reader};
use crate::manifest::{self, Manifest};
use crate::{rescue, saver, show, state};

/// Touches everything that a reader offers.
fn read_everything(prefix: &Path) {
    let Ok(reader) = Reader::open(prefix) else { return };
    let _ = reader.check_files();
    let _ = reader.verify();
    let names: Vec<String> = reader.entries().map(|entry| entry.name.clone()).collect();
    for name in names {
        let _ = reader.read_raw(&name);
        let _ = reader.read_i64(&name);
        let _ = reader.read_f32_range(&name, 1, 3);
    }
}

/// A checkpoint of two data files, of one tensor in pieces and one whole.
fn good(folder: &Path) -> std::path::PathBuf {
    let prefix = saver::prefix(folder, 7);
    let mut saved = Vec::new();
    let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
    for shard in 0..2u32 {
        let mut writer = DataFileWriter::create(&prefix, shard, 2).unwrap();
        let half = u64::from(shard) * 12;
        for slice in bundle::flat_range_slices(&[6, 4], half, 12) {
            let part = &values[half as usize..half as usize + 12];
            writer.append_f32("cut", &[6, 4], Some(&slice), [part]).unwrap();
        }
        if shard == 0 {
            writer.append_i64("global_step", &[], &[7]).unwrap();
        }
        saved.extend(writer.finish().unwrap());
    }
    bundle::write_plain_index(&prefix, 2, &saved).unwrap();
    prefix
}

fn small() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => -2i64..30,
        1 => prop_oneof![Just(i64::MAX), Just(i64::MIN), Just(1 << 32), Just(1 << 61)],
    ]
}

fn entry() -> impl Strategy<Value = BundleEntryProto> {
    let extents = prop::collection::vec((small(), prop::option::of(small())), 0..3);
    (
        -1i32..25,
        prop::collection::vec(small(), 0..4),
        -1i32..4,
        small(),
        small(),
        any::<u32>(),
        prop::collection::vec(extents, 0..3),
    )
        .prop_map(
            |(dtype, shape, shard_id, offset, size, crc32c, slices)| BundleEntryProto {
                dtype,
                shape: Some(TensorShapeProto {
                    dim: shape.into_iter().map(|size| Dim { size, ..Dim::default() }).collect(),
                    ..TensorShapeProto::default()
                }),
                shard_id,
                offset,
                size,
                crc32c,
                slices: slices
                    .into_iter()
                    .map(|extents| TensorSliceProto {
                        extent: extents
                            .into_iter()
                            .map(|(start, length)| tensor_slice_proto::Extent {
                                start,
                                has_length: length.map(tensor_slice_proto::extent::HasLength::Length),
                            })
                            .collect(),
                    })
                    .collect(),
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_index_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let folder = tempfile::tempdir().unwrap();
        let prefix = good(folder.path());
        fs::write(bundle::index_path(&prefix), bytes).unwrap();
        read_everything(&prefix);
    }

    /// The table's CRCs are right, so that its content is looked at.
    #[test]
    fn an_index_of_any_entries(
        entries in prop::collection::btree_map("[a-c]{1,2}", entry(), 0..5),
        raw in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..6), prop::collection::vec(any::<u8>(), 0..20), 0..3),
        shards in -1i32..5,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let prefix = good(folder.path());
        let header = bundle::fuzz_header(shards);
        let mut pairs: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = raw;
        pairs.extend(entries.into_iter().map(|(name, entry)| (name.into_bytes(), entry.encode_to_vec())));
        pairs.insert(Vec::new(), header);
        fs::write(bundle::index_path(&prefix), bundle::fuzz_table(&pairs)).unwrap();
        read_everything(&prefix);
    }

    #[test]
    fn a_good_checkpoint_with_changed_bytes(
        changes in prop::collection::vec((0usize..5, any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let prefix = good(folder.path());
        fs::write(manifest::path(&prefix), GOOD_MANIFEST).unwrap();
        fs::write(state::state_path(folder.path()), "model_checkpoint_path: \"model.ckpt-7\"\n").unwrap();
        let paths = [
            bundle::index_path(&prefix),
            bundle::data_path(&prefix, 0, 2),
            bundle::data_path(&prefix, 1, 2),
            manifest::path(&prefix),
            state::state_path(folder.path()),
        ];
        for (file, at, byte) in changes {
            let mut bytes = fs::read(&paths[file]).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()).max(1));
            }
            fs::write(&paths[file], bytes).unwrap();
        }
        read_everything(&prefix);
        let _ = state::latest(folder.path());
        let _ = show::report(folder.path());
        let _ = rescue::newest_whole_before(&prefix);
    }

    #[test]
    fn a_manifest_of_any_numbers(
        numbers in prop::collection::vec(prop_oneof!["-?[0-9]{1,20}", Just("1e999".to_owned()), Just("null".to_owned())], 6),
        open in prop::collection::vec((any::<u64>(), any::<u64>()), 0..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let prefix = saver::prefix(folder.path(), 7);
        let open: Vec<String> = open
            .iter()
            .map(|(start, count)| format!("{{\"start\": {start}, \"count\": {count}}}"))
            .collect();
        let text = GOOD_MANIFEST
            .replace("\"open\": []", &format!("\"open\": [{}]", open.join(",")))
            .replace("\"position\": 56", &format!("\"position\": {}", numbers[0]))
            .replace("\"record_count\": 10", &format!("\"record_count\": {}", numbers[1]))
            .replace("\"global_step\": 7", &format!("\"global_step\": {}", numbers[2]))
            .replace("\"incarnation\": 1", &format!("\"incarnation\": {}", numbers[3]))
            .replace("\"wall_time\": 1.5", &format!("\"wall_time\": {}", numbers[4]))
            .replace("\"bytes\": 3", &format!("\"bytes\": {}", numbers[5]));
        fs::write(manifest::path(&prefix), text).unwrap();
        if let Ok(Some(manifest)) = Manifest::read(&prefix) {
            prop_assert!(manifest.records_seen() <= manifest.data.position);
            let _ = manifest.epoch();
        }
        let _ = show::report(folder.path());
    }

    #[test]
    fn a_manifest_of_any_text(text in "[\\[\\]{}:,\"a-z0-9. -]{0,120}") {
        let folder = tempfile::tempdir().unwrap();
        let prefix = saver::prefix(folder.path(), 7);
        fs::write(manifest::path(&prefix), text).unwrap();
        let _ = Manifest::read(&prefix);
    }
}

const GOOD_MANIFEST: &str = r#"{
  "version": 1, "job_id": "j", "incarnation": 1, "global_step": 7, "config_digest": "", "seeds": {},
  "data": {"position": 56, "open": []}, "record_count": 10, "replicas": 1, "batch_size": 8,
  "wall_time": 1.5, "software_version": "0", "files": [{"name": "model.ckpt-7.index", "bytes": 3}]
}"#;
