//! A step that does not fit into memory, in a process of its own that may have little of it.

use std::process::Command;

use coati_common::config::PipelineConfig;
use coati_detection::Groundtruth;
use coati_detection::accelerator::Device;
use coati_detection::model::{Options, Ssd};
use nix::sys::resource::{Resource, setrlimit};

use super::shared;

const LIMIT: &str = "COATI_TEST_MEMORY";
const BATCH: usize = 96;

#[test]
fn the_largest_batch_that_fits_is_found_and_said() {
    if shared("train_step/pipeline.config").is_none() {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::with_little_memory", "--nocapture"])
        .env(LIMIT, "800")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Virtual memory of this process, in bytes.
fn used() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn with_little_memory() {
    let Some(megabytes) = std::env::var(LIMIT).ok().and_then(|text| text.parse::<u64>().ok()) else {
        return;
    };
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

    let limit = used() + megabytes * 1_000_000;
    setrlimit(Resource::RLIMIT_AS, limit, limit).unwrap();
    let error = step(&mut ssd, BATCH).unwrap_err().to_string();
    for part in [
        "device torch-cpu: out of memory in a training step of 96 images of 300 x 300: ",
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
    // It does fit, and the session goes on.
    step(&mut ssd, largest).unwrap();
    println!("{error}");
}
