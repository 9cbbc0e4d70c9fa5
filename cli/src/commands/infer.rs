//! `coati infer`: the reference's `infer_detections`.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use coati_common::cluster::{ClusterFile, ClusterPlan, MachineRole, TaskId, TaskType, TfConfig};
use coati_common::exit::ExitCode;
use coati_coordinator::launcher;
use coati_worker::detect::{self, Detector};
use coati_worker::infer::{self, Report, Watcher};
use indicatif::ProgressBar;

use crate::args::Format;
use crate::console::{report, say};
use crate::failure::Failure;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct InferArgs {
    /// TFRecords with images, separated by commas: files, patterns (`-?????-of-00003`), `name@3`.
    #[arg(long, value_name = "FILES", required = true, num_args = 1..)]
    pub input_tfrecord_paths: Vec<String>,
    /// TFRecord to write; as many shards as there are inputs.
    #[arg(long, value_name = "FILE")]
    pub output_tfrecord_path: PathBuf,
    /// A job's folder, or a checkpoint's prefix (`…/model.ckpt-2000`).
    #[arg(long, value_name = "FOLDER")]
    pub model_dir: PathBuf,
    /// The model's pipeline.config; the one in --model_dir by default.
    #[arg(long, value_name = "FILE")]
    pub pipeline_config_path: Option<PathBuf>,
    /// Leave the images' bytes out of the output.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub discard_image_pixels: bool,
    /// Images that go through the network together.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch_size: u32,
    /// Cluster file: its master and workers run as processes on this machine, with its devices divided among them, and share the inputs.
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Make outputs anew that were made from another model or input.
    #[arg(long)]
    pub overwrite: bool,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

pub(crate) fn run(args: &InferArgs) -> anyhow::Result<()> {
    let task = TfConfig::from_env()?;
    let plan = args.cluster.as_deref().map(ClusterFile::load).transpose()?;
    if let Some(task) = &task
        && matches!(task.task.kind, TaskType::Ps | TaskType::Evaluator)
    {
        return Err(Failure::user(format!(
            "TF_CONFIG: this task is {}, and inference has a master and workers alone\nhint: leave the others out",
            task.task
        ))
        .into());
    }
    let mut detector = Detector::open(&detect::Options {
        model_dir: args.model_dir.clone(),
        pipeline_config_path: args.pipeline_config_path.clone(),
        label_map_path: None,
    })?;
    let options = infer::Options {
        input_tfrecord_paths: args.input_tfrecord_paths.clone(),
        output_tfrecord_path: args.output_tfrecord_path.clone(),
        discard_image_pixels: args.discard_image_pixels,
        batch_size: args.batch_size as usize,
        overwrite: args.overwrite,
        // The master is the one whose end is the end.
        wait: task.as_ref().is_some_and(|task| task.task == TaskId::MASTER),
    };
    if let Some(plan) = plan.filter(|plan| task.is_none() && plan.workers.count > 0) {
        return launch(args, plan, &detector, &options);
    }
    let mut progress = Progress(ProgressBar::no_length());
    let done = infer::run(&mut detector, &options, &mut progress);
    progress.0.finish_and_clear();
    let done = done.map_err(failure)?;
    // A task's stdout is its launcher's log.
    if args.format == Format::Json && task.is_none() {
        report(&serde_json::to_string(&done).context("the report")?);
    }
    tell(&done);
    Ok(())
}

fn failure(error: infer::Error) -> anyhow::Error {
    match error {
        // The disk, or what became of the input meanwhile.
        infer::Error::File { .. } | infer::Error::Stuck { .. } => Failure::job(error.to_string()).into(),
        other => other.into(),
    }
}

/// Runs the plan's master and workers here, each with its share of the devices. Whoever is free takes the next input.
fn launch(
    args: &InferArgs,
    mut plan: ClusterPlan,
    detector: &Detector,
    options: &infer::Options,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let before = infer::survey(detector, options).map_err(failure)?;
    let unused = [
        ("parameter servers", plan.parameter_servers.count),
        ("evaluators", plan.evaluators.count),
    ];
    for (what, count) in unused.into_iter().filter(|&(_, count)| count > 0) {
        say(&format!(
            "{}: inference has no use for its {count} {what}",
            plan.path.display()
        ));
    }
    plan.parameter_servers = MachineRole::default();
    plan.evaluators = MachineRole::default();
    let binary = std::env::current_exe().context("cannot find this program's own file")?;
    let mut launch = launcher::Options::new(plan, binary, std::env::args_os().skip(1).collect());
    launch.probe = false;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the launcher")?;
    let outcome = runtime.block_on(launcher::run(launch)).map_err(|error| Failure {
        code: error.exit_code(),
        message: error.to_string(),
    })?;
    for warning in &outcome.warnings {
        say(&format!("warning: {warning}"));
    }
    if outcome.exit != ExitCode::Success {
        let failures: Vec<String> = outcome.failures.iter().map(ToString::to_string).collect();
        let message = if failures.is_empty() {
            outcome.reason
        } else {
            failures.join("\n")
        };
        return Err(Failure {
            code: outcome.exit,
            message: format!("{message}\nhint: the same command goes on with the outputs that are not complete"),
        }
        .into());
    }
    // What the tasks made is in the outputs' notes.
    let after = infer::survey(
        detector,
        &infer::Options {
            overwrite: true,
            ..options.clone()
        },
    )
    .map_err(failure)?;
    let done = Report {
        made: after
            .complete
            .iter()
            .filter(|path| !before.complete.contains(path))
            .cloned()
            .collect(),
        complete: before.complete,
        records: after.records - before.records,
        detections: after.detections - before.detections,
        without_image_count: after.without_image_count - before.without_image_count,
        seconds: begun.elapsed().as_secs_f64(),
        ..Report::default()
    };
    if args.format == Format::Json {
        report(&serde_json::to_string(&done).context("the report")?);
    }
    tell(&done);
    Ok(())
}

fn tell(done: &Report) {
    for warning in done.damaged.iter().chain(&done.without_image) {
        say(&format!("warning: {warning}"));
    }
    let unnamed = done.without_image_count - done.without_image.len() as u64;
    if unnamed > 0 && !done.without_image.is_empty() {
        say(&format!(
            "warning: and {unnamed} further records without a usable image"
        ));
    }
    if done.without_image_count > 0 {
        say(&format!(
            "{} records without a usable image were written as they are, without detections",
            done.without_image_count
        ));
    }
    for path in &done.elsewhere {
        say(&format!("{}: another process is at it", path.display()));
    }
    say(&format!(
        "{} output(s) made, {} complete before; {} records, {} detections, {:.1} images/s",
        done.made.len(),
        done.complete.len(),
        done.records,
        done.detections,
        done.records as f64 / done.seconds.max(1e-9)
    ));
}

struct Progress(ProgressBar);

impl Watcher for Progress {
    fn shard(&mut self, number: usize, shards: usize, path: &Path, again: bool) {
        let incomplete = if again {
            ", which an earlier run left incomplete"
        } else {
            ""
        };
        self.0
            .suspend(|| say(&format!("shard {number} of {shards}: {}{incomplete}", path.display())));
    }

    fn records(&mut self, done: u64) {
        self.0.set_position(done);
    }
}
