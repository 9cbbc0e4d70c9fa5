//! Compares where a job ended with what its steps give, and with a run that nobody disturbed.

use std::path::Path;
use std::time::{Duration, SystemTime};

use coati_checkpoint::manifest::Manifest;
use coati_common::cluster::Numerics;
use coati_common::config::PipelineConfig;
use coati_dataset::order::Order;
use coati_worker::replay::{Part, Replay};
use coati_worker::stop::StopFlag;
use coati_worker::train;

use super::audit::{self, History};
use super::{CALM, MODEL, Mode, Options, Report};
use crate::{Job, or_panic, tensors};

/// Blocks that a replica leases ahead of their use, generously.
const LEASED_AHEAD: u64 = 32;

/// Writes into the report what came of the records, of the weights and of the loss.
pub(super) fn judge(job: &Job, options: &Options, history: &History, report: &mut Report) {
    let prefix = tensors::prefix(&job.path(MODEL), report.steps);
    let Some(manifest) = or_panic(Manifest::read(&prefix), prefix.display()) else {
        let finding = format!("{} has no manifest", prefix.display());
        report.findings.push(finding);
        return;
    };
    let mut order = Order::new(options.seed, manifest.record_count, true);
    let replicas = u64::from(options.workers + 1);
    let slack = manifest.record_count + LEASED_AHEAD * replicas * u64::from(manifest.batch_size);
    let records = audit::records(&history.steps, &mut order, &manifest.data, slack);
    report.records_used = records.used;
    report.records_lost = records.lost.len() as u64;
    report.records_doubled = records.doubled.len() as u64;
    report.records_outstanding = records.outstanding;
    for (what, named) in [("left out", &records.lost), ("used more than once", &records.doubled)] {
        for (epoch, record) in named.iter().take(5) {
            let finding = format!("record {record} was {what} in epoch {epoch}");
            report.findings.push(finding);
        }
    }
    report.findings.extend(records.contradictions);

    let calm = super::train(job, options, CALM, report.steps).finish();
    if calm.code() != Some(0) {
        let finding = format!("the run without faults failed: {calm}");
        report.findings.push(finding);
        return;
    }
    let lockstep = options.mode == Mode::Synchronous;
    let always_all = history.steps.iter().all(|step| step.len() as u64 == replicas);
    // Whoever was lost for a while gave its blocks to others.
    if lockstep && always_all && !options.victims.iter().any(|kind| kind == "worker") {
        let ours = tensors::read(&job.path(MODEL), report.steps);
        let theirs = tensors::read(&job.path(CALM), report.steps);
        report.weights_undisturbed = Some(tensors::differences(&ours, &theirs).is_empty());
        if report.weights_undisturbed == Some(false) {
            report
                .findings
                .push("the weights are not those of the undisturbed run".to_owned());
        }
    }

    let (mut replay, differ) = if options.mode == Mode::Asynchronous {
        // The log does not say from which version a gradient was computed.
        let nothing = History::default();
        (prove(job, options.seed, &nothing, &prefix).0, None)
    } else {
        let (replay, differ) = prove(job, options.seed, history, &prefix);
        (replay, Some(differ))
    };
    let loss = |replay: &mut Replay, prefix: &Path| {
        let values = or_panic(replay.checkpoint(prefix, false), prefix.display());
        or_panic(replay.loss(&values), "the loss")
    };
    report.final_loss = loss(&mut replay, &prefix);
    report.undisturbed_loss = loss(&mut replay, &tensors::prefix(&job.path(CALM), report.steps));
    report.weights_proven = differ.map(|differ| differ == [0, 0]);
    if let Some([weights, averages]) = differ.filter(|differ| *differ != [0, 0]) {
        report.findings.push(format!(
            "{weights} values of the weights and {averages} of their averages are not those that the committed steps give"
        ));
    }
}

/// Makes the steps once more, and counts the values of the checkpoint's weights, and of their moving averages, that differ.
pub fn prove(job: &Job, seed: u64, history: &History, prefix: &Path) -> (Replay, [usize; 2]) {
    let mut replay = or_panic(Replay::new(&options_of(job, seed)), "the proof");
    for step in &history.steps {
        let parts = step.iter().map(|share| Part {
            replica: share.replica,
            first: share.first,
            count: share.count as u32,
        });
        or_panic(replay.step(&parts.collect::<Vec<_>>()), "the proof");
    }
    let differ = [false, true].map(|averages| {
        let held = or_panic(replay.checkpoint(prefix, averages), prefix.display());
        let proven = or_panic(replay.values(averages), "the proof");
        let bits = |(a, b): &(&f32, &f32)| a.to_bits() != b.to_bits();
        held.iter().zip(&proven).filter(bits).count() + held.len().abs_diff(proven.len())
    });
    (replay, differ)
}

fn options_of(job: &Job, seed: u64) -> train::Options {
    train::Options {
        keep_best: None,
        numerics: Numerics::default(),
        on_nan: coati_common::cluster::OnNan::default(),
        config: or_panic(PipelineConfig::load(&job.path("pipeline.config")), "the configuration"),
        model_dir: job.path("proof"),
        seed,
        scaled_decode: false,
        save_every: Duration::from_secs(600),
        save_every_steps: None,
        keep: 1,
        eval: false,
        threads: None,
        stop: StopFlag::default(),
        started_at: SystemTime::now(),
        device: train::Device::default(),
    }
}
