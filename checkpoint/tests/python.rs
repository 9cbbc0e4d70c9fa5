//! TensorFlow and TensorBoard read what is written here. `COATI_TEST_PYTHON` names a Python that has both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use coati_checkpoint::bundle::{DataFileWriter, Reader, Slice};
use coati_checkpoint::keep::{self, Options};
use coati_checkpoint::saver;
use coati_common::events::EventWriter;
use serde_json::{Value, json};

use crate::support::{counting, manifest, write_pieces};

/// Runs a script of `tests/python`; what it prints is JSON.
fn python(script: &str, arguments: &[&Path]) -> Option<Value> {
    let Some(python) = std::env::var_os("COATI_TEST_PYTHON") else {
        println!("skipped: COATI_TEST_PYTHON is not set");
        return None;
    };
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/python")).join(script);
    let output = Command::new(python)
        .arg(script)
        .args(arguments)
        .env("TF_CPP_MIN_LOG_LEVEL", "3")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// Each tensor of a checkpoint as TensorFlow reads it.
fn tensorflow_reads(prefix: &Path) -> Option<Vec<(Value, Vec<u8>)>> {
    let out = tempfile::tempdir().unwrap();
    let listing = python("read_checkpoint.py", &[prefix, out.path()])?;
    let bytes = |index: usize| fs::read(out.path().join(index.to_string())).unwrap();
    Some(
        listing
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.clone(), bytes(index)))
            .collect(),
    )
}

fn agree(prefix: &Path) -> Option<()> {
    let theirs = tensorflow_reads(prefix)?;
    let ours = Reader::open(prefix).unwrap();
    assert_eq!(ours.entries().len(), theirs.len());
    for (entry, (tensor, bytes)) in ours.entries().zip(theirs) {
        assert_eq!(tensor["name"], entry.name);
        assert_eq!(tensor["shape"], json!(entry.shape));
        assert_eq!(tensor["dtype"], coati_checkpoint::bundle::dtype_name(entry.dtype));
        assert_eq!(ours.read_raw(&entry.name).unwrap(), bytes, "{}", entry.name);
    }
    Some(())
}

#[test]
fn tensorflow_reads_a_whole_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = saver::prefix(dir.path(), 3);
    // Enough names for several blocks in the index.
    let names: Vec<String> = (0..20_000)
        .map(|index| format!("FeatureExtractor/a_rather_long_scope/Conv2d_{index}/weights"))
        .collect();
    let values = counting(12);
    let tensors: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), [2i64, 6].as_slice(), values.as_slice()))
        .collect();
    saver::save(&prefix, &tensors, &[("global_step", 3)], Some(manifest(3))).unwrap();
    assert!(fs::metadata(dir.path().join("model.ckpt-3.index")).unwrap().len() > 262_144);
    agree(&prefix);
}

#[test]
fn tensorflow_reads_partitioned_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = saver::prefix(dir.path(), 4);
    // Cut where no row begins, over three servers; and one tensor by columns, in the last data file.
    let mut saved = write_pieces(&prefix, "scope/rows \u{e9}", &[300, 7, 5], &[1234, 7777]);
    let mut columns = DataFileWriter::create(&prefix, 3, 4).unwrap();
    for start in [0, 150, 300] {
        let slice = Slice {
            start: vec![0, start],
            length: vec![3, 150],
        };
        let rows: Vec<f32> = (0..3)
            .flat_map(|row| (0..150).map(move |at| (row * 450 + start + at) as f32))
            .collect();
        columns
            .append_f32("columns", &[3, 450], Some(&slice), [rows.as_slice()])
            .unwrap();
    }
    saved.extend(columns.finish().unwrap());
    for shard in 0..3 {
        let from = dir.path().join(format!("model.ckpt-4.data-{shard:05}-of-00003"));
        fs::rename(from, dir.path().join(format!("model.ckpt-4.data-{shard:05}-of-00004"))).unwrap();
    }
    saver::publish(&prefix, 4, &saved, manifest(4)).unwrap();
    if agree(&prefix).is_some() {
        let reader = Reader::open(&prefix).unwrap();
        assert!(reader.entry("scope/rows \u{e9}").unwrap().slices.len() > 3);
        assert_eq!(reader.read_f32("columns").unwrap(), counting(1350));
    }
}

#[test]
fn tensorflow_finds_the_latest() {
    let dir = tempfile::tempdir().unwrap();
    let values = counting(1);
    for step in 1..=7 {
        let prefix = saver::prefix(dir.path(), step);
        saver::save(&prefix, &[("a", &[1], &values)], &[], Some(manifest(step))).unwrap();
        keep::update(dir.path(), &prefix, 1.7e9 + step as f64, Options::default()).unwrap();
    }
    let Some(answer) = python("latest_checkpoint.py", &[dir.path()]) else {
        return;
    };
    let path = |step: u64| saver::prefix(dir.path(), step).to_string_lossy().into_owned();
    assert_eq!(answer["latest"], path(7));
    assert_eq!(answer["all"], json!((3..=7).map(path).collect::<Vec<_>>()));
    assert_eq!(answer["times"][4], json!(1.7e9 + 7.0));
}

/// The smallest PNG: one white pixel.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90wS\xde\0\0\0\x0cIDATx\x9cc\xf8\xff\xff?\0\x05\xfe\x02\xfe\r\xefF\xb8\0\0\0\0IEND\xaeB`\x82";

fn write_events(dir: &Path) -> PathBuf {
    let mut writer = EventWriter::create(dir, ".test").unwrap();
    for step in [0, 10, 20] {
        let total = 3.0 - step as f32 / 16.0;
        writer
            .scalars(step, &[("Loss/TotalLoss", total), ("global_step/sec", 2.5)])
            .unwrap();
    }
    writer.scalar("DetectionBoxes_Precision/mAP", 20, 0.25).unwrap();
    writer.histogram("staleness", 20, &[0.0, 0.0, 1.0, 3.0, -2.0]).unwrap();
    writer.image_png("image-0", 20, 1, 1, PNG.to_vec()).unwrap();
    writer.text("pipeline_config", 0, "model { }").unwrap();
    writer.path().to_owned()
}

#[test]
fn tensorboard_reads_events() {
    let dir = tempfile::tempdir().unwrap();
    write_events(dir.path());
    let Some(answer) = python("read_events.py", &[dir.path()]) else {
        return;
    };
    assert_eq!(answer["version"], 2.0);
    assert_eq!(
        answer["scalars"]["Loss/TotalLoss"],
        json!([[0, 3.0], [10, 2.375], [20, 1.75]])
    );
    assert_eq!(
        answer["scalars"]["global_step/sec"],
        json!([[0, 2.5], [10, 2.5], [20, 2.5]])
    );
    assert_eq!(answer["scalars"]["DetectionBoxes_Precision/mAP"], json!([[20, 0.25]]));
    assert_eq!(
        answer["histograms"]["staleness"],
        json!([[20, -2.0, 3.0, 5.0, 2.0, 5.0]])
    );
    assert_eq!(answer["images"]["image-0"], json!([[20, 1, 1, PNG.len()]]));
    assert_eq!(answer["texts"]["pipeline_config"], json!([[0, "model { }"]]));
}
