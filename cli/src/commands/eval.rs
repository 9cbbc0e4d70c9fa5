//! `coati eval`: the newest checkpoint, or every one as it appears.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use coati_checkpoint::state::Latest;
use coati_common::config::PipelineConfig;
use coati_common::config::supported::{self, Mode};
use coati_evaluation::floor::Floor;
use coati_worker::best::KeepBest;
use coati_worker::evaluate::{self, Outcome};
use coati_worker::evaluator::{self, Watcher};
use coati_worker::input::{self, Which};
use coati_worker::stop::StopFlag;
use coati_worker::{model, train};
use serde_json::json;

use super::eval_report;
use crate::args::{EvalArgs, Format};
use crate::console::{report, say};

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let mut config = PipelineConfig::load(&args.pipeline_config_path)?;
    for warning in supported::check(&config, Mode::Eval)?.warnings {
        say(&format!("warning: {warning}"));
    }
    let sample = u32::try_from(args.sample_1_of_n_eval_examples).unwrap_or(u32::MAX);
    if args.eval_training_data {
        config.evaluate_training_data();
    }
    // The training reader's own sampling stays where the flag says nothing.
    if !args.eval_training_data || sample > 1 {
        config.set_sample_1_of_n_eval_examples(sample);
    }
    let input = input::open(&config, Which::Eval)?;
    let keep_best = args.keep_best.clone().map(KeepBest::new);
    if let Some(wanted) = &keep_best {
        wanted.check(&config, &input::categories(&input.labels))?;
    }
    let mut model = model::build(&config, None)?;
    let options = evaluator::Options {
        checkpoint_dir: args.checkpoint_dir.clone(),
        events: events_folder(args),
        run_once: args.run_once,
        patience: Duration::from_secs(args.eval_timeout_secs),
        master: None,
        journal: false,
        keep_best,
        evaluate: evaluate::Options {
            pictures_dir: args.pictures_dir.clone(),
            constant_box: args.constant_box,
            detections_path: args.detections_path.clone(),
            worst_images: args.report.as_ref().map_or(0, |_| eval_report::WORST_IMAGES),
            ..evaluate::Options::default()
        },
        stop: StopFlag::default(),
        config: config.clone(),
    };
    let mut told = Told {
        args,
        config: &config,
        bar: indicatif::ProgressBar::new(0),
        last: None,
    };
    let ended = evaluator::follow(&options, &input, &mut model, &mut told);
    told.bar.finish_and_clear();
    ended.map_err(super::train::failure)?;
    if args.format == Format::Json
        && let Some(last) = &told.last
    {
        report(&serde_json::to_string(last).context("the metrics")?);
    }
    Ok(())
}

/// Prints evaluations, and writes the page of each.
struct Told<'a> {
    args: &'a EvalArgs,
    config: &'a PipelineConfig,
    bar: indicatif::ProgressBar,
    last: Option<serde_json::Value>,
}

impl Watcher for Told<'_> {
    fn progress(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    fn evaluated(&mut self, checkpoint: &Latest, outcome: &Outcome) -> Result<(), train::Error> {
        self.bar.reset();
        let failed = |error: anyhow::Error| train::Error::Job(format!("{error:#}"));
        if let Some(path) = &self.args.report {
            let write = || eval_report::write(path, self.args, self.config, &checkpoint.prefix, outcome);
            self.bar.suspend(write).map_err(failed)?;
        }
        self.bar.suspend(|| match self.args.format {
            Format::Text => print(outcome),
            Format::Json => told(outcome),
        });
        self.last = Some(as_json(outcome).map_err(failed)?);
        Ok(())
    }

    fn note(&mut self, text: &str) {
        // Who asked for one evaluation waits for nothing.
        self.bar.suspend(|| say(text));
    }

    fn warning(&mut self, text: &str) {
        self.bar.suspend(|| say(&format!("warning: {text}")));
    }
}

fn events_folder(args: &EvalArgs) -> PathBuf {
    let name = if args.eval_training_data {
        "eval_on_train"
    } else {
        "eval"
    };
    args.model_dir.clone().unwrap_or_else(|| {
        let folder = if coati_storage::is_dir(&args.checkpoint_dir) {
            args.checkpoint_dir.as_path()
        } else {
            args.checkpoint_dir.parent().unwrap_or(Path::new("."))
        };
        folder.join(name)
    })
}

fn as_json(outcome: &Outcome) -> anyhow::Result<serde_json::Value> {
    let mut value = serde_json::to_value(&outcome.report).context("the metrics")?;
    if let Some(Floor { rule, metrics }) = &outcome.floor {
        let named: serde_json::Map<_, _> = metrics
            .named()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        value["constant_box"] = json!({"rule": rule, "metrics": named});
    }
    Ok(value)
}

fn print(outcome: &Outcome) {
    let result = &outcome.report;
    report(&format!(
        "step {}: {} images, {:.1} s ({:.1} s of it in the network)",
        result.global_step, result.images, result.seconds, result.model_seconds
    ));
    let width = result
        .metrics
        .keys()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    for (name, value) in &result.metrics {
        report(&format!("{name:<width$} {:.4}", value.as_f64().unwrap_or(f64::NAN)));
    }
    if let Some(Floor { rule, metrics }) = &outcome.floor {
        report(&format!(
            "best constant box ({rule}): mAP {:.4}, mAP@.50IOU {:.4}",
            metrics.ap(),
            metrics.ap50()
        ));
    }
    told(outcome);
    if let Some(first) = result.pictures.first() {
        say(&format!(
            "{} pictures, the first: {}",
            result.pictures.len(),
            first.display()
        ));
    }
}

/// What the user should know beside the figures.
fn told(outcome: &Outcome) {
    for note in &outcome.report.notes {
        say(&format!("warning: {note}"));
    }
    // Each was named when it was read.
    let bad = outcome.report.bad_records.len();
    if bad > 0 {
        say(&format!(
            "warning: {bad} bad records, named above, are not part of these figures"
        ));
    }
}
