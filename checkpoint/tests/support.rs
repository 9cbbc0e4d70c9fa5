//! Paths and small checkpoints.

use std::path::{Path, PathBuf};

use coati_checkpoint::bundle::{DataFileWriter, SavedTensor, flat_range_slices};
use coati_checkpoint::manifest::{DataPosition, Manifest, OpenRange, Placement, VERSION};

/// A file below `tests/fixtures` of the repository.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

/// A file of the golden data beside the checkout; says so when it is absent.
pub(crate) fn shared(name: &str, present: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden")).join(name);
    let probe = PathBuf::from(format!("{}{present}", path.display()));
    if probe.exists() {
        return Some(path);
    }
    println!("skipped: {} is absent", probe.display());
    None
}

/// 0, 1, 2, …
pub(crate) fn counting(elements: u64) -> Vec<f32> {
    (0..elements).map(|index| index as f32).collect()
}

/// Writes a counting tensor cut at these elements (of the flat tensor), one data file a piece, without index.
pub(crate) fn write_pieces(prefix: &Path, name: &str, shape: &[i64], cuts: &[u64]) -> Vec<SavedTensor> {
    let values = counting(shape.iter().product::<i64>() as u64);
    let mut ends = cuts.to_vec();
    ends.push(values.len() as u64);
    let (mut at, mut saved) = (0, Vec::new());
    for (shard, &end) in ends.iter().enumerate() {
        let mut writer = DataFileWriter::create(prefix, shard as u32, ends.len() as u32).unwrap();
        for slice in flat_range_slices(shape, at, end - at) {
            let next = at + slice.elements();
            // In two chunks, as they come out of an arena.
            let (front, back) = values[at as usize..next as usize].split_at((next - at) as usize / 2);
            writer.append_f32(name, shape, Some(&slice), [front, back]).unwrap();
            at = next;
        }
        saved.extend(writer.finish().unwrap());
    }
    saved
}

pub(crate) fn manifest(step: u64) -> Manifest {
    Manifest {
        version: VERSION,
        job_id: "bccd-7f3a".to_owned(),
        incarnation: 2,
        global_step: step,
        config_digest: "sha256:0123456789abcdef".to_owned(),
        seeds: [("data".to_owned(), 17), ("model".to_owned(), u64::MAX)].into(),
        data: DataPosition {
            position: 48_016,
            open: vec![OpenRange {
                start: 47_992,
                count: 8,
            }],
        },
        record_count: 292,
        replicas: 3,
        batch_size: 8,
        placement: Placement {
            strategy: "balanced".to_owned(),
            version: 1,
            bytes: vec![9_068_544, 9_068_548],
        },
        wall_time: 1_700_000_000.25,
        software_version: "0.1.0".to_owned(),
        files: Vec::new(),
    }
}
