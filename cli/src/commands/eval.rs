//! `coati eval`: the newest checkpoint, or every one as it appears.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use coati_checkpoint::state::{self, Latest};
use coati_common::config::PipelineConfig;
use coati_common::config::supported::{self, Mode};
use coati_detection::model::Ssd;
use coati_evaluation::floor::Floor;
use coati_worker::evaluate::{self, Outcome};
use coati_worker::input::{self, Input, Which};
use coati_worker::{model, tensorboard};
use serde_json::json;

use super::eval_report;
use crate::args::{EvalArgs, Format};
use crate::console::{report, say};
use crate::failure::Failure;

/// How often a folder is looked at for a new checkpoint.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let mut config = PipelineConfig::load(&args.pipeline_config_path)?;
    for warning in supported::check(&config, Mode::Eval)?.warnings {
        say(&format!("warning: {warning}"));
    }
    config.set_sample_1_of_n_eval_examples(u32::try_from(args.sample_1_of_n_eval_examples).unwrap_or(u32::MAX));
    if args.eval_training_data {
        config.evaluate_training_data();
    }
    let input = input::open(&config, Which::Eval)?;
    let mut model = model::build(&config, None)?;
    let events = events_folder(args);

    let mut evaluated = None;
    let mut waiting_since = Instant::now();
    let mut reports = Vec::new();
    loop {
        match newest(&args.checkpoint_dir)? {
            Some(latest) if evaluated != Some(latest.step) => {
                let outcome = one(args, &config, &input, &mut model, &latest)?;
                tensorboard::write_evaluation(&events, &outcome.report)?;
                if let Some(path) = &args.report {
                    eval_report::write(path, args, &config, &latest.prefix, &outcome)?;
                }
                if args.format == Format::Text {
                    print(&outcome);
                }
                evaluated = Some(latest.step);
                reports.push(outcome);
                waiting_since = Instant::now();
            }
            None if args.run_once => {
                return Err(Failure::user(format!(
                    "{}: no complete checkpoint\nhint: --checkpoint_dir is the --model_dir of a job that has saved, or a prefix such as …/model.ckpt-2000",
                    args.checkpoint_dir.display()
                ))
                .into());
            }
            _ if waiting_since.elapsed() >= Duration::from_secs(args.eval_timeout_secs) => {
                return Err(Failure::job(format!(
                    "{}: no new checkpoint for {} s\nhint: is the job still running? --run_once evaluates what is there",
                    args.checkpoint_dir.display(),
                    args.eval_timeout_secs
                ))
                .into());
            }
            _ => std::thread::sleep(LOOK_EVERY),
        }
        let last = evaluated.is_some_and(|step| step >= u64::from(config.train_config().num_steps()));
        let enough = config.eval_config().max_evals() > 0 && reports.len() >= config.eval_config().max_evals() as usize;
        if evaluated.is_some() && (args.run_once || last || enough) {
            break;
        }
    }
    if args.format == Format::Json
        && let Some(outcome) = reports.last()
    {
        report(&serde_json::to_string(&as_json(outcome)?).context("the metrics")?);
    }
    Ok(())
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

/// A folder's newest checkpoint, or the one with this prefix.
fn newest(path: &Path) -> anyhow::Result<Option<Latest>> {
    if coati_storage::is_dir(path) || !coati_storage::is_file(&coati_checkpoint::bundle::index_path(path)) {
        return Ok(state::latest(path)?);
    }
    let step = model::step_of(path)?;
    Ok(Some(Latest {
        prefix: path.to_owned(),
        step,
        manifest: None,
    }))
}

fn one(
    args: &EvalArgs,
    config: &PipelineConfig,
    input: &Input,
    model: &mut Ssd,
    latest: &Latest,
) -> anyhow::Result<Outcome> {
    let variables = model::read_variables(model, &latest.prefix, config.eval_config().use_moving_averages())?;
    let bar = indicatif::ProgressBar::new(0);
    let options = evaluate::Options {
        pictures_dir: args.pictures_dir.clone(),
        constant_box: args.constant_box,
        detections_path: args.detections_path.clone(),
        worst_images: args.report.as_ref().map_or(0, |_| eval_report::WORST_IMAGES),
    };
    let outcome = evaluate::evaluate(
        model,
        &variables,
        latest.step,
        config,
        input,
        &options,
        &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        },
    );
    bar.finish_and_clear();
    Ok(outcome?)
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
    for (name, value) in &result.metrics {
        report(&format!("{name:<44} {:.4}", value.as_f64().unwrap_or(f64::NAN)));
    }
    if let Some(Floor { rule, metrics }) = &outcome.floor {
        report(&format!(
            "best constant box ({rule}): mAP {:.4}, mAP@.50IOU {:.4}",
            metrics.ap(),
            metrics.ap50()
        ));
    }
    for record in result.notes.iter().chain(&result.bad_records) {
        say(&format!("warning: {record}"));
    }
    if let Some(first) = result.pictures.first() {
        say(&format!(
            "{} pictures, the first: {}",
            result.pictures.len(),
            first.display()
        ));
    }
}
