//! Measurements that `scripts/bench` collects; one JSON object each.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use coati_common::cluster::Numerics;
use coati_common::config::PipelineConfig;
use coati_dataset::batch::Batch;
use coati_detection::Groundtruth;
use coati_detection::accelerator::Device;
use coati_detection::model::Ssd;
use coati_param_server::{Contributor, Layout, OptimizerConfig, Store, Strategy, Tag, plan, store};
use coati_proto::coati::v1::JobRef;
use coati_worker::model::{self, Trainer};
use coati_worker::replica::Model as _;
use serde_json::json;

use crate::args::BenchCommand;
use crate::console::report;

pub(crate) mod allreduce;
pub(crate) mod eval;
pub(crate) mod import;
mod input;
mod placement;
mod ps;
mod scale;

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
            step(*batch_size, *steps, pipeline_config_path, numerics)
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

fn step(batch_size: usize, steps: usize, pipeline_config_path: &Path, numerics: Numerics) -> anyhow::Result<()> {
    let config = PipelineConfig::load(pipeline_config_path)?;
    let mut trainer = Trainer::new(
        model::build_for_training(&config, None, numerics, Device::Auto)?,
        &config,
    );
    let variables = trainer.ssd().variables().to_vec();
    let job = JobRef {
        job_id: "bench".to_owned(),
        incarnation: 1,
    };
    let placement = plan(&variables, 1, Strategy::Balanced)?;
    let layout = Layout::new(&placement)?;
    let server = layout.server(0).context("no server in the placement")?;
    let store = Store::new(store::Options::default());
    let optimizer = OptimizerConfig::try_from(&config.train_config().optimizer.clone().unwrap_or_default())?;
    store.configure(&job, 0, &placement, optimizer, 0)?;
    let mut flat = trainer.ssd().init_values(1);
    let mut arena = Vec::new();
    layout.gather(0, &flat, &mut arena);
    store.load(&job, arena.clone(), 0)?;

    let batch = made_up(batch_size, trainer.ssd().input_size(), trainer.ssd().num_classes());
    let mut gradients = vec![0.0; flat.len()];
    let groundtruth: Vec<Groundtruth> = batch
        .groundtruth
        .iter()
        .map(|objects| Groundtruth {
            boxes: objects.boxes.clone(),
            classes: objects.classes.clone(),
            ..Groundtruth::default()
        })
        .collect();
    let (mut times, mut parts) = (Vec::new(), Vec::new());
    // Two steps warm memory and caches up.
    for step in 0..steps as u64 + 2 {
        let begun = Instant::now();
        store.pull(&job, step)?.scatter(server, &mut flat);
        let pulled = begun.elapsed();
        trainer
            .step(&flat, &batch, &mut gradients, &mut |_, _| {})
            .map_err(anyhow::Error::msg)?;
        let computed = begun.elapsed();
        let update = Instant::now();
        arena.clear();
        server.gather(0, server.pushed_len, &gradients, &mut arena);
        store.push(
            &job,
            Tag {
                replica: 0,
                sequence: step,
                version: step,
            },
            &arena,
        )?;
        store.commit(
            &job,
            step,
            &[Contributor {
                replica: 0,
                sequence: step,
                samples: batch_size as u32,
            }],
            true,
        )?;
        if step >= 2 {
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            let update = update.elapsed() + pulled;
            let begun = Instant::now();
            let matched = trainer.ssd().matched(&groundtruth);
            anyhow::ensure!(matched.len() == batch_size, "targets of all images");
            let targets = begun.elapsed();
            let layers = trainer.ssd().network().layer_times();
            let sum = |of: fn(&coati_detection::network::LayerTime) -> f64| layers.iter().map(of).sum::<f64>() * 1e3;
            parts.push([
                sum(|l| l.forward_s),
                sum(|l| l.backward_s),
                computed.saturating_sub(pulled).as_secs_f64() * 1e3,
                update.as_secs_f64() * 1e3,
                targets.as_secs_f64() * 1e3,
            ]);
        }
    }
    let threads = trainer.ssd().network().threads();
    // Of the last step.
    let layers: Vec<_> = trainer.ssd().network().layer_times().iter().map(of_layer).collect();
    let layout_ms = layout_ms(trainer.ssd());
    let part = |index: usize| median(&parts.iter().map(|part| part[index]).collect::<Vec<f64>>());
    let data = json!({
        "bench": "step", "device": trainer.ssd().device().to_string(),
        "precision": trainer.ssd().arithmetic().precision(), "tf32": numerics.tf32, "batch_size": batch_size, "threads": threads, "steps": steps,
        "step_ms": {"median": median(&times), "min": times.iter().copied().fold(f64::MAX, f64::min), "max": times.iter().copied().fold(0.0, f64::max)},
        "forward_ms": part(0), "backward_ms": part(1), "model_ms": part(2), "update_ms": part(3), "targets_ms": part(4),
        "layout_ms": layout_ms,
        "peak_memory_mb": peak_memory_mb(),
        "images_per_s": batch_size as f64 * 1e3 / median(&times),
        "layers": layers,
        "parameters": variables.iter().map(coati_common::variables::VariableSpec::elements).sum::<usize>(),
    });
    report(&serde_json::to_string(&data)?);
    Ok(())
}

/// What it costs to lay the detector out for another size, as it is done for images of many sizes; `None` for one that has only one.
fn layout_ms(ssd: &mut Ssd) -> Option<f64> {
    let (height, width) = ssd.input_size();
    let sizes = [(height, width + 32), (height, width)].into_iter().cycle();
    let times = sizes.take(10).map(|size| {
        let begun = Instant::now();
        ssd.set_input_size(size).ok()?;
        Some(begun.elapsed().as_secs_f64() * 1e3)
    });
    Some(median(&times.collect::<Option<Vec<f64>>>()?))
}

fn of_layer(time: &coati_detection::network::LayerTime) -> serde_json::Value {
    json!({
        "name": time.name, "kind": time.kind, "multiply_adds_an_image": time.multiply_adds,
        "forward_ms": time.forward_s * 1e3, "backward_ms": time.backward_s * 1e3,
    })
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
