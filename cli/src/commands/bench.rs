//! Measurements that `scripts/bench` collects; one JSON object each.

use coati_common::cluster::Numerics;
use coati_dataset::batch::Batch;
use serde_json::json;

use crate::args::BenchCommand;

pub(crate) mod allreduce;
pub(crate) mod eval;
pub(crate) mod import;
mod input;
mod placement;
mod ps;
mod scale;
mod step;

pub(crate) fn run(command: &BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Step {
            batch_size,
            steps,
            pipeline_config_path,
            precision,
            tf32,
        } => {
            let numerics = Numerics {
                precision: *precision,
                tf32: *tf32,
            };
            step::run(*batch_size, *steps, pipeline_config_path, numerics)
        }
        BenchCommand::Ps(arguments) => ps::run(arguments),
        BenchCommand::Placement(arguments) => placement::run(arguments),
        BenchCommand::Scale(arguments) => scale::run(arguments),
        BenchCommand::Eval(arguments) => eval::run(arguments),
        BenchCommand::Import(arguments) => import::run(arguments),
        BenchCommand::Input(arguments) => input::run(arguments),
        BenchCommand::Allreduce(arguments) => allreduce::run(arguments),
        BenchCommand::Task(arguments) => ps::task(arguments),
    }
}

/// The most memory that this process has held, in MB; 0 where the system does not tell.
fn peak_memory_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1.024e-3
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median, least and most.
fn spread(values: &[f64]) -> serde_json::Value {
    json!({
        "median": median(values),
        "min": values.iter().copied().fold(f64::MAX, f64::min),
        "max": values.iter().copied().fold(f64::MIN, f64::max),
    })
}

/// Noise with a few boxes an image: what the losses do depends on the boxes, what the network does on nothing.
fn made_up(count: usize, (height, width): (usize, usize), classes: usize) -> Batch {
    let pixel = |i: usize| ((i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as f32;
    let groundtruth = (0..count)
        .map(|image| {
            let boxes: Vec<[f32; 4]> = (0..10)
                .map(|i| {
                    let (y, x) = (0.07 * i as f32, 0.08 * ((i + image) % 10) as f32);
                    [y, x, y + 0.2, x + 0.15]
                })
                .collect();
            coati_dataset::Groundtruth {
                classes: (0..boxes.len()).map(|i| (i % classes.max(1)) as i64).collect(),
                weights: vec![1.0; boxes.len()],
                boxes,
                ..Default::default()
            }
        })
        .collect();
    Batch {
        images: (0..count * height * width * 3).map(pixel).collect(),
        height,
        width,
        groundtruth,
        source_ids: vec![String::new(); count],
        filenames: vec!["made up".to_owned(); count],
        ..Batch::default()
    }
}
