//! `coati metrics`: figures from files of groundtruth and detections, without a model.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use coati_common::label_map::LabelMap;
use coati_evaluation::files::{coco_json, open_images, vrd};
use coati_evaluation::vrd::Target;
use coati_evaluation::{Category, Evaluation, Metric, Options, Sample, set};

use crate::args::Format;
use crate::console::{report, say};
use crate::failure::Failure;

mod masks;
mod records;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// COCO's annotation and result files.
    Coco(CocoArgs),
    /// Open Images' detection and segmentation challenges (oid_challenge_evaluation).
    #[command(name = "oid-challenge", alias = "oid_challenge")]
    OidChallenge(OidChallengeArgs),
    /// Open Images' visual relationships challenge (oid_vrd_challenge_evaluation).
    #[command(name = "oid-vrd", alias = "oid_vrd")]
    OidVrd(OidVrdArgs),
    /// TFRecords that hold groundtruth and detections, as inference writes them (offline_eval_map_corloc).
    Records(records::RecordsArgs),
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IouType {
    /// Boxes.
    Bbox,
    /// Masks.
    Segm,
}

/// Where figures go.
#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct OutputArgs {
    /// Also write the figures here, as CSV.
    #[arg(long, value_name = "FILE")]
    output_metrics: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct CocoArgs {
    /// Annotation file: images, annotations, categories.
    #[arg(long, value_name = "FILE")]
    groundtruth: PathBuf,
    /// Result file: a list of image_id, category_id, bbox [x, y, width, height] or segmentation, score.
    #[arg(long, value_name = "FILE")]
    detections: PathBuf,
    /// Compare boxes or masks, where --metrics_set does not say it.
    #[arg(long, value_enum, default_value_t = IouType::Bbox)]
    iou_type: IouType,
    /// Metrics by their names in eval_config, separated by commas; COCO's by default.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    metrics_set: Vec<String>,
    /// Also mAP of each category.
    #[arg(long)]
    include_metrics_per_category: bool,
    /// All twelve figures of each category.
    #[arg(long)]
    all_metrics_per_category: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct OidChallengeArgs {
    /// Boxes: ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf.
    #[arg(long, value_name = "FILE")]
    input_annotations_boxes: PathBuf,
    /// Verified labels of whole images: ImageID,LabelName,Confidence.
    #[arg(long, value_name = "FILE")]
    input_annotations_labels: PathBuf,
    /// Masks of some of the boxes: then masks are compared.
    #[arg(long, value_name = "FILE")]
    input_annotations_segm: Option<PathBuf>,
    /// ImageID,LabelName,Score and XMin,XMax,YMin,YMax, or ImageWidth,ImageHeight,Mask.
    #[arg(long, value_name = "FILE")]
    input_predictions: PathBuf,
    /// Label map (.pbtxt) whose names are the files' LabelName.
    #[arg(long, value_name = "FILE")]
    input_class_labelmap: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct OidVrdArgs {
    /// Relationships: ImageID,LabelName1,LabelName2,RelationshipLabel,XMin1,…,YMax2.
    #[arg(long, value_name = "FILE", alias = "input_annotations_boxes")]
    input_annotations_vrd: PathBuf,
    /// Verified labels of whole images: ImageID,LabelName.
    #[arg(long, value_name = "FILE")]
    input_annotations_labels: PathBuf,
    /// As the relationships, and Score.
    #[arg(long, value_name = "FILE")]
    input_predictions: PathBuf,
    /// Label map (.pbtxt) of the classes.
    #[arg(long, value_name = "FILE")]
    input_class_labelmap: PathBuf,
    /// Label map (.pbtxt) of the relationships.
    #[arg(long, value_name = "FILE")]
    input_relationship_labelmap: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Coco(args) => coco(args),
        Command::OidChallenge(args) => oid_challenge(args),
        Command::OidVrd(args) => oid_vrd(args),
        Command::Records(args) => records::run(args),
    }
}

fn coco(args: &CocoArgs) -> anyhow::Result<()> {
    let default = match args.iou_type {
        IouType::Bbox => "coco_detection_metrics",
        IouType::Segm => "coco_mask_metrics",
    };
    let names = match args.metrics_set.as_slice() {
        [] => vec![default],
        names => names
            .iter()
            .map(|name| set::resolve(name))
            .collect::<Result<Vec<_>, _>>()?,
    };
    // Who names a metric of masks need not ask for masks again.
    let masks = args.iou_type == IouType::Segm || names.iter().any(|name| set::compares_masks(name));
    let options = Options {
        include_metrics_per_category: args.include_metrics_per_category || args.all_metrics_per_category,
        all_metrics_per_category: args.all_metrics_per_category,
        ..Options::default()
    };
    let read = coco_json::read(&args.groundtruth, &args.detections, masks)?;
    let evaluation = Evaluation::new(&names, &read.categories, &options)?;
    let files = [args.groundtruth.as_path(), &args.detections];
    write(&evaluated(evaluation, &read.samples, &files)?, &args.output)
}

fn oid_challenge(args: &OidChallengeArgs) -> anyhow::Result<()> {
    let categories = by_name(&args.input_class_labelmap)?;
    let files = open_images::Files {
        boxes: &args.input_annotations_boxes,
        labels: &args.input_annotations_labels,
        predictions: &args.input_predictions,
        masks: args.input_annotations_segm.as_deref(),
    };
    let read = open_images::read(&files, &categories)?;
    note(&read.notes);
    let name = match files.masks {
        Some(_) => "oid_challenge_segmentation_metrics",
        None => "oid_challenge_detection_metrics",
    };
    let options = Options {
        group_of_weight: Some(1.0),
        ..Options::default()
    };
    let evaluation = Evaluation::new(&[name], &categories, &options)?;
    let files = [files.boxes, files.predictions];
    write(&evaluated(evaluation, &read.samples, &files)?, &args.output)
}

fn oid_vrd(args: &OidVrdArgs) -> anyhow::Result<()> {
    let categories = by_name(&args.input_class_labelmap)?;
    let relations = by_name(&args.input_relationship_labelmap)?;
    let files = vrd::Files {
        triples: &args.input_annotations_vrd,
        labels: &args.input_annotations_labels,
        predictions: &args.input_predictions,
    };
    let (samples, notes) = vrd::read(&files, &categories, &relations)?;
    note(&notes);
    let name = |id: u32| {
        let known = relations.iter().find(|relation| relation.id == id);
        known.map_or_else(|| id.to_string(), |relation| relation.name.clone())
    };
    let mut metrics = Vec::new();
    for target in [Target::Relations, Target::Phrases] {
        let mut evaluator = coati_evaluation::vrd::Evaluator::new(target, 0.5);
        for sample in &samples {
            evaluator.add(sample)?;
        }
        metrics.extend(evaluator.evaluate(&name)?);
    }
    write(&metrics, &args.output)
}

/// What is wrong with the samples is wrong with one of the two `files`: objects, detections.
fn evaluated(mut evaluation: Evaluation, samples: &[Sample], files: &[&Path; 2]) -> anyhow::Result<Vec<Metric>> {
    let bad = |error: coati_evaluation::Error| {
        let [objects, detections] = files.map(|path| path.display());
        Failure::user(format!("{objects}, {detections}: {error}"))
    };
    for sample in samples {
        evaluation.add(sample).map_err(bad)?;
    }
    let metrics = evaluation.evaluate().map_err(bad)?;
    note(&evaluation.notes());
    Ok(metrics)
}

/// A label map's items under the names that the files use; `display_name` is for people.
fn by_name(path: &Path) -> anyhow::Result<Vec<Category>> {
    let category = |item: &coati_common::label_map::Item| Category {
        id: item.id,
        name: item.name.clone(),
    };
    Ok(LabelMap::load(path)?.items.iter().map(category).collect())
}

fn note(notes: &[String]) {
    for note in notes {
        say(&format!("warning: {note}"));
    }
}

fn write(metrics: &[Metric], output: &OutputArgs) -> anyhow::Result<()> {
    if let Some(path) = &output.output_metrics {
        // As the reference's tools do: a name and a figure a line, no header.
        let lines: Vec<String> = metrics
            .iter()
            .map(|(name, value)| format!("{},{value}\n", quoted(name)))
            .collect();
        coati_storage::write(path, lines.concat().as_bytes()).map_err(|error| {
            Failure::job(format!(
                "{}: cannot be written: {error}\nhint: does its folder exist?",
                path.display()
            ))
        })?;
    }
    match output.format {
        Format::Json => {
            let named: serde_json::Map<_, _> = metrics
                .iter()
                .map(|(name, value)| (name.clone(), (*value).into()))
                .collect();
            report(&serde_json::to_string(&named).context("the metrics")?);
        }
        Format::Text => {
            let width = metrics.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
            for (name, value) in metrics {
                report(&format!("{name:<width$} {value:.4}"));
            }
        }
    }
    Ok(())
}

/// A field of CSV.
fn quoted(name: &str) -> String {
    if name.contains([',', '"', '\n']) {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_commas_stay_one_field() {
        assert_eq!(quoted("AP@0.5IOU/cup"), "AP@0.5IOU/cup");
        assert_eq!(quoted("[0.0,0.8]Recall \"x\""), "\"[0.0,0.8]Recall \"\"x\"\"\"");
    }
}
