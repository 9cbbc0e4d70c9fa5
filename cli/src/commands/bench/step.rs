//! One training step: pull, forward, backward, update; without input.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use coati_common::cluster::Numerics;
use coati_common::config::PipelineConfig;
use coati_dataset::batch::Batch;
use coati_detection::Groundtruth;
use coati_detection::accelerator::Device;
use coati_detection::accelerator::abi::Update;
use coati_detection::accelerator::resident::Resident;
use coati_detection::model::Ssd;
use coati_param_server::optimizer::AdamPowers;
use coati_param_server::schedule::learning_rate;
use coati_param_server::{Contributor, Layout, OptimizerConfig, Store, Strategy, Tag, plan, store};
use coati_proto::coati::v1::JobRef;
use coati_worker::model::{self, Trainer};
use coati_worker::replica::Model as _;
use serde_json::json;

use super::{made_up, median, peak_memory_mb};
use crate::console::report;

/// Where the variables are.
enum Place {
    Host(Box<OnHost>),
    /// On an accelerator, with the optimiser.
    Device(Resident, OptimizerConfig, Option<AdamPowers>),
}

/// In a store of this process.
struct OnHost {
    store: Store,
    layout: Layout,
    job: JobRef,
    flat: Vec<f32>,
    arena: Vec<f32>,
    gradients: Vec<f32>,
}

/// Milliseconds of a step's model and of its update.
struct Spent {
    model: f64,
    update: f64,
}

impl OnHost {
    fn new(trainer: &mut Trainer, optimizer: OptimizerConfig) -> anyhow::Result<Self> {
        let job = JobRef {
            job_id: "bench".to_owned(),
            incarnation: 1,
        };
        let placement = plan(trainer.ssd().variables(), 1, Strategy::Balanced)?;
        let layout = Layout::new(&placement)?;
        let store = Store::new(store::Options::default());
        store.configure(&job, 0, &placement, optimizer, 0)?;
        let flat = trainer.ssd().init_values(1);
        let mut arena = Vec::new();
        layout.gather(0, &flat, &mut arena);
        store.load(&job, arena.clone(), 0)?;
        Ok(Self {
            store,
            layout,
            job,
            gradients: vec![0.0; flat.len()],
            flat,
            arena,
        })
    }

    fn step(&mut self, trainer: &mut Trainer, batch: &Batch, step: u64) -> anyhow::Result<Spent> {
        let server = self.layout.server(0).context("no server in the placement")?;
        let begun = Instant::now();
        self.store.pull(&self.job, step)?.scatter(server, &mut self.flat);
        let pulled = begun.elapsed();
        trainer
            .step(&self.flat, batch, None, &mut self.gradients, &mut |_, _| {})
            .map_err(anyhow::Error::msg)?;
        let computed = begun.elapsed();
        let update = Instant::now();
        self.arena.clear();
        server.gather(0, server.pushed_len, &self.gradients, &mut self.arena);
        let tag = Tag {
            replica: 0,
            sequence: step,
            version: step,
        };
        self.store.push(&self.job, tag, &self.arena)?;
        let who = Contributor {
            replica: 0,
            sequence: step,
            samples: batch.len() as u32,
        };
        self.store.commit(&self.job, step, &[who], true)?;
        Ok(Spent {
            model: computed.saturating_sub(pulled).as_secs_f64() * 1e3,
            update: (update.elapsed() + pulled).as_secs_f64() * 1e3,
        })
    }
}

impl Place {
    fn new(trainer: &mut Trainer, optimizer: OptimizerConfig) -> anyhow::Result<Self> {
        let values = trainer.ssd().init_values(1);
        if let Some(resident) = trainer.reside_alone(&optimizer, values)? {
            let powers = AdamPowers::initial(&optimizer.rule);
            return Ok(Self::Device(resident, optimizer, powers));
        }
        Ok(Self::Host(Box::new(OnHost::new(trainer, optimizer)?)))
    }

    fn step(&mut self, trainer: &mut Trainer, batch: &Batch, step: u64) -> anyhow::Result<Spent> {
        match self {
            Self::Host(host) => host.step(trainer, batch, step),
            Self::Device(resident, optimizer, powers) => {
                let begun = Instant::now();
                trainer.place(step, step);
                trainer
                    .step(&[], batch, Some((step + 1, batch)), &mut [], &mut |_, _| {})
                    .map_err(anyhow::Error::msg)?;
                let computed = begun.elapsed();
                anyhow::ensure!(resident.is_finite()?, "the gradient of step {step} is not finite");
                let rate = learning_rate(&optimizer.learning_rate, step);
                resident.apply(Update {
                    rate,
                    powers: powers.map_or([0.0; 2], |powers| [powers.beta1, powers.beta2]),
                    divisor: 1.0,
                })?;
                *powers = powers.map(|powers| powers.next(&optimizer.rule));
                Ok(Spent {
                    model: computed.as_secs_f64() * 1e3,
                    update: (begun.elapsed() - computed).as_secs_f64() * 1e3,
                })
            }
        }
    }
}

/// The median time, in milliseconds, to find what the anchors should predict.
fn targets_ms(ssd: &Ssd, batch: &Batch) -> anyhow::Result<f64> {
    let groundtruth: Vec<Groundtruth> = batch
        .groundtruth
        .iter()
        .map(|objects| Groundtruth {
            boxes: objects.boxes.clone(),
            classes: objects.classes.clone(),
            ..Groundtruth::default()
        })
        .collect();
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        anyhow::ensure!(ssd.matched(&groundtruth).len() == batch.len(), "targets of all images");
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&times))
}

pub(super) fn run(
    batch_size: usize,
    steps: usize,
    pipeline_config_path: &Path,
    numerics: Numerics,
) -> anyhow::Result<()> {
    let config = PipelineConfig::load(pipeline_config_path)?;
    let mut trainer = Trainer::new(
        model::build_for_training(&config, None, numerics, Device::Auto)?,
        &config,
    );
    let variables = trainer.ssd().variables().to_vec();
    let optimizer = OptimizerConfig::try_from(&config.train_config().optimizer.clone().unwrap_or_default())?;
    let mut place = Place::new(&mut trainer, optimizer)?;
    let batch = made_up(batch_size, trainer.ssd().input_size(), trainer.ssd().num_classes());
    let (mut times, mut parts) = (Vec::new(), Vec::new());
    // Two steps warm memory and caches up.
    for step in 0..steps as u64 + 2 {
        let begun = Instant::now();
        let spent = place.step(&mut trainer, &batch, step)?;
        if step >= 2 {
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            let layers = trainer.ssd().network().layer_times();
            let sum = |of: fn(&coati_detection::network::LayerTime) -> f64| layers.iter().map(of).sum::<f64>() * 1e3;
            parts.push([sum(|l| l.forward_s), sum(|l| l.backward_s), spent.model, spent.update]);
        }
    }
    let threads = trainer.ssd().network().threads();
    // Of the last step.
    let layers: Vec<_> = trainer.ssd().network().layer_times().iter().map(of_layer).collect();
    let targets_ms = targets_ms(trainer.ssd(), &batch)?;
    let layout_ms = layout_ms(trainer.ssd());
    let part = |index: usize| median(&parts.iter().map(|part| part[index]).collect::<Vec<f64>>());
    let data = json!({
        "bench": "step", "device": trainer.ssd().device().to_string(), "resident": matches!(place, Place::Device(..)),
        "precision": trainer.ssd().arithmetic().precision(), "tf32": numerics.tf32, "batch_size": batch_size, "threads": threads, "steps": steps,
        "step_ms": {"median": median(&times), "min": times.iter().copied().fold(f64::MAX, f64::min), "max": times.iter().copied().fold(0.0, f64::max)},
        "forward_ms": part(0), "backward_ms": part(1), "model_ms": part(2), "update_ms": part(3), "targets_ms": targets_ms,
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
