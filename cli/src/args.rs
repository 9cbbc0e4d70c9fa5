//! The command line. Flags have the Object Detection API's names; dashes work as well as underscores.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use coati_common::cluster::{Devices, Precision, bucket_bytes};

/// Trains object detectors on one machine or on a cluster, from the files of the TensorFlow Object Detection API.
#[derive(Debug, Parser)]
#[command(
    name = "coati",
    version,
    max_term_width = 110,
    rename_all = "snake_case",
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Say more (repeat for even more); `COATI_LOG` takes a tracing filter.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model; with --cluster on a cluster, else on every GPU of this machine, or on its CPU.
    Train(TrainArgs),
    /// Evaluate checkpoints as they appear, or the newest one with --run_once.
    Eval(EvalArgs),
    /// Find objects in pictures: draws boxes, lists them as JSON and CSV.
    Detect(crate::commands::detect::DetectArgs),
    /// Find objects in all images of a data set: TFRecords in, TFRecords with detections out.
    Infer(crate::commands::infer::InferArgs),
    /// Show a cluster job that runs: where its tasks are and how far it has come.
    Status(StatusArgs),
    /// Give a cluster job that runs more workers or fewer.
    Scale(ScaleArgs),
    /// Check the files of a job and print the effective configuration, without starting anything.
    Check(CheckArgs),
    /// Make, import and look at data sets.
    #[command(subcommand)]
    Data(DataCommand),
    /// Look at checkpoints.
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Compute metrics from files of groundtruth and detections, without a model.
    #[command(subcommand)]
    Metrics(crate::commands::metrics::Command),
    /// Benchmarks (`scripts/bench` runs them beside their peers).
    #[command(subcommand, hide = true)]
    Bench(BenchCommand),
}

/// How a report is written to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// A form of gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReducePrecision {
    /// As float32.
    F32,
    /// Rounded to bfloat16; sums are float32.
    Bf16,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct TrainArgs {
    /// The job's pipeline.config.
    #[arg(long, value_name = "FILE")]
    pub pipeline_config_path: Option<PathBuf>,
    /// Folder for checkpoints, events and logs; training resumes from its newest checkpoint.
    #[arg(long, value_name = "FOLDER")]
    pub model_dir: Option<PathBuf>,
    /// Cluster file (Cloud ML Engine's YAML); its tasks run as processes on this machine.
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// What to train on: auto (every GPU, else the CPU), cpu, cpu:N (N processes on the CPU), gpu, or GPUs by number such as 0,2. One process
    /// a device; without parameter servers they sum their gradients among themselves.
    #[arg(long, value_name = "DEVICES", value_parser = Devices::parse)]
    pub devices: Option<Devices>,
    /// Sum gradients in buckets of this size (4MiB), while the backward pass goes on.
    #[arg(long, value_name = "SIZE", value_parser = bucket_bytes)]
    pub bucket_size: Option<u64>,
    /// How gradients travel between the processes of this machine.
    #[arg(long, value_enum)]
    pub reduce_precision: Option<ReducePrecision>,
    /// Train until this global step instead of `train_config.num_steps`.
    #[arg(long, value_name = "N")]
    pub num_train_steps: Option<u64>,
    /// Use one of every N examples of the evaluation set.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub sample_1_of_n_eval_examples: u64,
    /// Seconds between checkpoints.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub save_checkpoints_secs: u64,
    /// Steps between checkpoints, instead of seconds.
    #[arg(long, value_name = "N")]
    pub save_checkpoints_steps: Option<u64>,
    /// How many checkpoints to keep.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub keep_checkpoint_max: usize,
    /// Do not evaluate while training.
    #[arg(long)]
    pub no_eval: bool,
    /// Keep the best checkpoint by this figure (its name in TensorBoard: DetectionBoxes_Precision/mAP) in MODEL_DIR/best.
    #[arg(long, value_name = "METRIC")]
    pub keep_best: Option<String>,
    /// Seed of the initial weights, the order of the records and the augmentation.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Decode JPEGs at a half, a quarter or an eighth of their size where that is still more than the network takes. Faster for
    /// large images, and no longer the reference's pixels.
    #[arg(long)]
    pub scaled_decode: bool,
    /// What convolutions compute with: auto (float32 on CPUs, bf16 on GPUs from 2020 on, fp16 on older ones), float32, bf16 or fp16.
    /// Instead of the cluster file's `coati.precision`.
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<Precision>,
    /// Let a GPU make products of float32 from TF32, with 11 bits of precision.
    #[arg(long)]
    pub tf32: bool,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct EvalArgs {
    /// The job's pipeline.config.
    #[arg(long, value_name = "FILE")]
    pub pipeline_config_path: PathBuf,
    /// Folder with checkpoints, or a checkpoint's prefix (`…/model.ckpt-2000`).
    #[arg(long, value_name = "FOLDER")]
    pub checkpoint_dir: PathBuf,
    /// Where the events go; `CHECKPOINT_DIR/eval` by default.
    #[arg(long, value_name = "FOLDER")]
    pub model_dir: Option<PathBuf>,
    /// Evaluate the newest checkpoint and stop, instead of waiting for further ones.
    #[arg(long)]
    pub run_once: bool,
    /// Evaluate on the training set.
    #[arg(long)]
    pub eval_training_data: bool,
    /// Use one of every N examples of the evaluation set.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub sample_1_of_n_eval_examples: u64,
    /// Write pictures with detections (left) and groundtruth (right) here.
    #[arg(long, value_name = "FOLDER")]
    pub pictures_dir: Option<PathBuf>,
    /// Write the detections here as COCO's results file, and the groundtruth beside them (`FILE.groundtruth.json`).
    #[arg(long, value_name = "FILE")]
    pub detections_path: Option<PathBuf>,
    /// Also report what the best constant box would score.
    #[arg(long)]
    pub constant_box: bool,
    /// Write a page with metrics, curves, the worst images and the configuration here (HTML that needs no network); its plots go beside it as PNG.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Keep the best of the evaluated checkpoints by this figure (its name in TensorBoard) in CHECKPOINT_DIR/best.
    #[arg(long, value_name = "METRIC")]
    pub keep_best: Option<String>,
    /// Give up after this many seconds without a new checkpoint (without --run_once).
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub eval_timeout_secs: u64,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct StatusArgs {
    /// The job's folder.
    #[arg(long, value_name = "FOLDER")]
    pub model_dir: PathBuf,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct ScaleArgs {
    /// The job's folder.
    #[arg(long, value_name = "FOLDER")]
    pub model_dir: PathBuf,
    /// How many workers the job shall have beside the master.
    #[arg(long, value_name = "N")]
    pub workers: u32,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct CheckArgs {
    /// The job's pipeline.config.
    #[arg(long, value_name = "FILE")]
    pub pipeline_config_path: PathBuf,
    /// The job's cluster file.
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// The job's folder, to see whether it belongs to this configuration.
    #[arg(long, value_name = "FOLDER")]
    pub model_dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Make a data set of coloured shapes (JPEG + Pascal VOC XML).
    Synth(SynthArgs),
    /// Import annotations into TFRecords.
    #[command(subcommand)]
    Import(crate::commands::data::import::Command),
    /// Write TFRecords or a Pascal VOC folder as a table: filename,width,height,class,xmin,ymin,xmax,ymax.
    ToCsv(crate::commands::data::to_csv::Arguments),
    /// Add the classes above (of what is there) and below (of what is not) to a table of Open Images.
    ExpandHierarchy(crate::commands::data::expand_hierarchy::Arguments),
    /// Make a label map of the classes in the data.
    LabelMap(crate::commands::data::label_map::Arguments),
    /// Split records into a set to train on and one to evaluate on, with every class on both sides.
    Split(crate::commands::data::split::Arguments),
    /// Show a data set's statistics or one record.
    Inspect(InspectArgs),
    /// Find what makes training fail or explode: bad boxes and labels, images that do not decode, images in both sets.
    Validate(crate::commands::data::validate::Arguments),
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct SynthArgs {
    /// Folder to fill.
    #[arg(long, value_name = "FOLDER")]
    pub output_dir: PathBuf,
    /// Images to train on.
    #[arg(long, default_value_t = 1200)]
    pub num_train: usize,
    /// Images to evaluate on.
    #[arg(long, default_value_t = 150)]
    pub num_val: usize,
    /// Width and height in pixels.
    #[arg(long, default_value_t = 256)]
    pub image_size: u32,
    /// Changes every image.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct InspectArgs {
    /// TFRecords: files, patterns (`-?????-of-00003`), `name@3`.
    #[arg(required = true)]
    pub input_path: Vec<String>,
    /// Label map, to name the classes.
    #[arg(long, value_name = "FILE")]
    pub label_map_path: Option<PathBuf>,
    /// Show this record instead of the statistics.
    #[arg(long)]
    pub record: Option<u64>,
    /// Write the record's picture with its boxes here (PNG); with --record.
    #[arg(long, requires = "record")]
    pub picture: Option<PathBuf>,
    /// Compare the boxes with the anchors of this pipeline.config: which of them no anchor can match?
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    pub pipeline_config_path: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// What a model folder or a checkpoint holds.
    Show {
        /// Model folder, or a checkpoint's prefix.
        path: PathBuf,
        /// List every variable.
        #[arg(long)]
        variables: bool,
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Every tensor of a checkpoint: name, kind, type, shape, and figures about its values.
    List(CheckpointListArgs),
    /// What two checkpoints have in common and where they differ.
    Diff(CheckpointDiffArgs),
    /// From a checkpoint to a safetensors file, or back; which way, the ending `.safetensors` says.
    Convert(CheckpointConvertArgs),
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct CheckpointListArgs {
    /// A checkpoint's prefix, such as model/model.ckpt-2000.
    pub prefix: PathBuf,
    /// Do not read the values.
    #[arg(long)]
    pub no_statistics: bool,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct CheckpointDiffArgs {
    /// A checkpoint's prefix.
    pub first: PathBuf,
    /// Another one's.
    pub second: PathBuf,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct CheckpointConvertArgs {
    /// A checkpoint's prefix, or a .safetensors file.
    pub from: PathBuf,
    /// What to write: a .safetensors file, or a checkpoint's prefix.
    pub to: PathBuf,
    /// Write over what is there.
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// One training step of a configuration's model.
    #[command(rename_all = "snake_case")]
    Step {
        #[arg(long, default_value_t = 8)]
        batch_size: usize,
        #[arg(long, default_value_t = 12)]
        steps: usize,
        #[arg(long, value_name = "FILE")]
        pipeline_config_path: PathBuf,
        /// As `coati train`'s.
        #[arg(long, value_name = "PRECISION", default_value_t = Precision::Auto)]
        precision: Precision,
        /// As `coati train`'s.
        #[arg(long)]
        tf32: bool,
    },
    /// Variables and gradients between workers and parameter servers on loopback, beside a plain TCP stream.
    Ps(BenchPsArgs),
    /// How evenly variables are spread.
    Placement(BenchPlacementArgs),
    /// What the control plane costs as the number of replicas grows.
    Scale(BenchScaleArgs),
    /// COCO box metrics of a large set.
    Eval(crate::commands::bench::eval::BenchEvalArgs),
    /// Made-up Pascal VOC images into TFRecords, copied unchanged.
    Import(crate::commands::bench::import::Arguments),
    /// From records to batches that are ready: flipped, cropped as SSD does, 300x300.
    Input(BenchInputArgs),
    /// Sums over ranks of this machine, beside what memory or TCP allows.
    Allreduce(crate::commands::bench::allreduce::Arguments),
    /// Internal: a process of `ps`.
    #[command(hide = true)]
    Task(BenchTaskArgs),
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchPsArgs {
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub servers: u32,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// All variables together.
    #[arg(long, default_value_t = 100.0)]
    pub megabytes: f64,
    /// Measured for so long.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Form of gradients: none, bf16, topk.
    #[arg(long, default_value = "none", value_parser = ["none", "bf16", "topk"])]
    pub gradients: String,
    /// Form of variables: none, bf16.
    #[arg(long, default_value = "none", value_parser = ["none", "bf16"])]
    pub weights: String,
    /// Measure instead how long a worker waits while checkpoints are written to this folder.
    #[arg(long, value_name = "FOLDER")]
    pub checkpoint: Option<PathBuf>,
    /// With certificates on both sides and a token, as jobs have them. The stream beside it stays plain.
    #[arg(long)]
    pub tls: bool,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchPlacementArgs {
    /// Of ssd_mobilenet_v1.
    #[arg(long, value_name = "FILE")]
    pub pipeline_config_path: PathBuf,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchScaleArgs {
    /// Numbers of replicas, the master's counted.
    #[arg(long, value_delimiter = ',', default_value = "4,8,16,32,64", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: Vec<u32>,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub servers: u32,
    /// Steps that are measured.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchInputArgs {
    /// Record files or patterns.
    #[arg(long, value_name = "PATTERN", required = true)]
    pub input_path: Vec<String>,
    #[arg(long, default_value_t = 8, value_parser = positive)]
    pub batch_size: usize,
    #[arg(long, default_value_t = 2, value_parser = positive)]
    pub threads: usize,
    /// Batches of a repeat.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub batches: u64,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Measure instead whether memory grows while so many GB of records go by; they are the given ones, over and over.
    #[arg(long, value_name = "GB", default_value_t = 0.0)]
    pub virtual_gb: f64,
    /// Measure instead how fast the files are read from their first record to their last, checksums and all; nothing is decoded.
    #[arg(long)]
    pub sequential: bool,
    /// Decode as `coati train --scaled_decode` does.
    #[arg(long)]
    pub scaled_decode: bool,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(value) if (1..=1024).contains(&value) => Ok(value),
        _ => Err("must be from 1 to 1024".to_owned()),
    }
}

/// What a process of `bench ps` is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TaskRole {
    Server,
    Worker,
    Source,
    Sink,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchTaskArgs {
    #[arg(value_enum)]
    pub role: TaskRole,
    #[arg(long, default_value_t = 0)]
    pub index: u32,
    #[arg(long, default_value_t = 0)]
    pub bytes: u64,
    #[arg(long, default_value_t = 1.0)]
    pub megabytes: f64,
    #[arg(long, default_value = "none")]
    pub gradients: String,
    #[arg(long, default_value = "none")]
    pub weights: String,
    #[arg(long, value_delimiter = ',')]
    pub addresses: Vec<String>,
    #[arg(long)]
    pub credentials: Option<PathBuf>,
}

/// The process's arguments with dashes in flag names turned into underscores (`--model-dir` is `--model_dir`).
pub(crate) fn normalised(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut literal = false;
    arguments
        .map(|argument| {
            let Some(text) = argument.to_str().filter(|text| !literal && text.starts_with("--")) else {
                return argument;
            };
            if text == "--" {
                literal = true;
                return argument;
            }
            let (name, value) = text
                .split_once('=')
                .map_or((text, None), |(name, value)| (name, Some(value)));
            let mut normal = format!("--{}", name[2..].replace('-', "_"));
            if let Some(value) = value {
                normal.push('=');
                normal.push_str(value);
            }
            normal.into()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_are_underscores_in_names_only() {
        let given = ["coati", "--model-dir=a-b", "--", "--not-touched"].map(OsString::from);
        let expected = ["coati", "--model_dir=a-b", "--", "--not-touched"].map(OsString::from);
        assert_eq!(normalised(given.into_iter()), expected);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        let parsed = Cli::try_parse_from(normalised(
            [
                "coati",
                "train",
                "--pipeline-config-path",
                "p",
                "--model_dir",
                "m",
                "--num-train-steps=5",
            ]
            .map(OsString::from)
            .into_iter(),
        ));
        assert!(matches!(
            parsed.unwrap().command,
            Command::Train(TrainArgs {
                num_train_steps: Some(5),
                ..
            })
        ));
    }
}
