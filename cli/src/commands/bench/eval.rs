//! How long COCO's box metrics take, on files that other evaluators can read, too.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use coati_evaluation::files::coco_json;
use coati_evaluation::{Evaluation, Options};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::spread;
use crate::console::report;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchEvalArgs {
    /// COCO's annotation file.
    #[arg(long, value_name = "FILE")]
    pub groundtruth: PathBuf,
    /// COCO's result file.
    #[arg(long, value_name = "FILE")]
    pub detections: PathBuf,
    /// Measured so often.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: u32,
}

/// Reading and parsing is not measured, as it is not for the peers; everything from the parsed lists to the twelve figures is.
pub(super) fn run(arguments: &BenchEvalArgs) -> anyhow::Result<()> {
    let read = coco_json::read(&arguments.groundtruth, &arguments.detections, false)?;
    let (mut wall, mut cpu, mut stats) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.repeats {
        let (begun, used) = (Instant::now(), cpu_seconds());
        let mut evaluation = Evaluation::new(&["coco_detection_metrics"], &read.categories, &Options::default())?;
        for sample in &read.samples {
            evaluation.add(sample)?;
        }
        stats = evaluation.evaluate()?;
        wall.push(begun.elapsed().as_secs_f64());
        cpu.push(cpu_seconds() - used);
    }
    let data = json!({
        "bench": "eval",
        "images": read.samples.len(),
        "detections": read.samples.iter().map(|sample| sample.detections.boxes.len()).sum::<usize>(),
        "seconds": spread(&wall),
        "cpu_seconds": spread(&cpu),
        "stats": stats.iter().map(|(_, value)| *value).collect::<Vec<f64>>(),
    });
    report(&serde_json::to_string(&data)?);
    Ok(())
}

/// Of all threads of this process, in user and system mode.
fn cpu_seconds() -> f64 {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(f64::NAN, |time| Duration::from(time).as_secs_f64())
}
