//! A step that does not fit into memory, in a process of its own whose device pretends to have little of it.

use std::process::Command;

use coati_common::config::PipelineConfig;
use coati_detection::Groundtruth;
use coati_detection::accelerator::Device;
use coati_detection::model::{Options, Ssd};

use super::shared;

/// The library then says what libtorch says when its allocator has nothing left.
const LIMIT: &str = "COATI_TEST_TORCH_CPU_BYTES";
const BATCH: usize = 12;

#[test]
fn the_largest_batch_that_fits_is_found_and_said() {
    if shared("train_step/pipeline.config").is_none() {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::with_little_memory", "--nocapture"])
        .env(LIMIT, "40000000")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn with_little_memory() {
    if std::env::var(LIMIT).is_err() {
        return;
    }
    let text = std::fs::read_to_string(shared("train_step/pipeline.config").unwrap()).unwrap();
    // A loss on the device, so that all of a step's memory is there.
    let (before, after) = text.split_once("hard_example_miner {").unwrap();
    let text = format!("{before}{}", after.split_once('}').unwrap().1);
    let config = PipelineConfig::parse(&text, "pipeline.config").unwrap();
    let options = Options {
        threads: Some(1),
        device: Device::TorchCpu,
        ..Options::default()
    };
    let mut ssd = Ssd::new(config.model().unwrap(), &options).unwrap();
    let params = ssd.init_values(1);
    let images = vec![100.0; BATCH * 300 * 300 * 3];
    let groundtruth = vec![Groundtruth::default(); BATCH];
    let mut gradients = vec![0.0; params.len()];
    let pixels = 300 * 300 * 3;
    let mut step = |ssd: &mut Ssd, batch: usize| {
        ssd.train_step(
            &params,
            &images[..batch * pixels],
            &groundtruth[..batch],
            &mut gradients,
        )
    };
    step(&mut ssd, 2).unwrap();
    let error = step(&mut ssd, BATCH).unwrap_err().to_string();
    for part in [
        "device torch-cpu: out of memory in a training step of 12 images of 300 x 300: ",
        "were asked for",
        "are free",
        "the largest batch that fits is ",
        "hint: set train_config.batch_size to ",
    ] {
        assert!(error.contains(part), "no {part:?} in {error:?}");
    }
    let (_, rest) = error.split_once("batch_size to ").unwrap();
    let largest: usize = rest.split_whitespace().next().unwrap().parse().unwrap();
    assert!((1..BATCH).contains(&largest), "{error}");
    // It does fit, one more does not, and the session goes on.
    assert!(step(&mut ssd, largest + 1).is_err());
    step(&mut ssd, largest).unwrap();
    println!("{error}");
}
