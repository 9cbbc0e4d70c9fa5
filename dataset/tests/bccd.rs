//! The blood cell images in `shared/golden`; skipped where that folder is absent.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coati_dataset::batch::{self, Lease, Loader};
use coati_dataset::example::{self, Classes};
use coati_dataset::{eval, shards::Source};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden");

fn golden() -> bool {
    let there = Path::new(GOLDEN).is_dir();
    if !there {
        eprintln!("skipped: {GOLDEN} is absent");
    }
    there
}

fn source(name: &str) -> Arc<Source> {
    Arc::new(Source::open(&[format!("{GOLDEN}/bccd_tfrecord/{name}")]).unwrap())
}

fn example() -> example::Options {
    let classes = Classes::new([(1, "RBC", ""), (2, "WBC", ""), (3, "Platelets", "")]);
    example::Options { classes, strict: true }
}

fn array<T: npyz::Deserialize>(name: &str) -> Vec<T> {
    let mut archive = npyz::npz::NpzArchive::open(format!("{GOLDEN}/ssd_bccd/raw4.npz")).unwrap();
    archive.by_name(name).unwrap().unwrap().into_vec().unwrap()
}

#[test]
fn the_models_input_equals_the_references() {
    if !golden() {
        return;
    }
    let options = eval::Options {
        example: example(),
        max_bad_records: Some(0),
        ..eval::Options::default()
    };
    let examples: Vec<_> = eval::Examples::new(source("test.record"), options)
        .map(Result::unwrap)
        .collect();
    assert_eq!(examples.len(), 72);
    let stored: Vec<u8> = array("image_u8");
    let inputs: Vec<f32> = array("preprocessed");
    for (index, example) in examples[..4].iter().enumerate() {
        let size = 480 * 640 * 3;
        assert!(
            example.image.pixels == stored[index * size..][..size],
            "image {index} is decoded otherwise"
        );
        let size = 300 * 300 * 3;
        let expected = &inputs[index * size..][..size];
        let normalised = example.input.input.iter().map(|value| 2.0 / 255.0 * value - 1.0);
        let worst = normalised.zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "image {index}: {worst}");
    }
}

#[test]
fn training_batches_hold_all_objects() {
    if !golden() {
        return;
    }
    let source = source("train.record-?????-of-00003");
    assert_eq!(source.record_count(), 292);
    let options = batch::Options {
        example: example(),
        height: 32,
        width: 32,
        ..batch::Options::default()
    };
    let loader = Loader::new(source, options).unwrap();
    loader.request(Lease {
        id: 0,
        first_position: 0,
        count: 292,
    });
    let (_, batch) = loader.next(Instant::now() + Duration::from_secs(120)).unwrap();
    let mut counts = [0; 3];
    batch
        .groundtruth
        .iter()
        .flat_map(|objects| &objects.classes)
        .for_each(|&class| counts[class as usize] += 1);
    assert_eq!(counts, [3348, 301, 292]);
    assert!(batch.bad_records.is_empty());
}
