//! `coati data expand-hierarchy`: the reference's `oid_hierarchical_labels_expansion`.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

use std::path::PathBuf;

use clap::Args;
use coati_dataset::import::hierarchy::Hierarchy;

use crate::console::say;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Arguments {
    /// The hierarchy (bbox_labels_600_hierarchy.json).
    #[arg(long, value_name = "FILE")]
    json_hierarchy_file: PathBuf,
    /// Table of boxes, or with --annotation_type=2 of image-level labels.
    #[arg(long, value_name = "FILE")]
    input_annotations: PathBuf,
    /// Table to write.
    #[arg(long, value_name = "FILE")]
    output_annotations: PathBuf,
    /// 1: boxes; 2: image-level labels, where a Confidence of 0 goes down the hierarchy.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    annotation_type: u8,
}

pub(crate) fn run(args: &Arguments) -> anyhow::Result<()> {
    let hierarchy = Hierarchy::load(&args.json_hierarchy_file)?;
    let done = hierarchy.expand(
        &args.input_annotations,
        &args.output_annotations,
        args.annotation_type == 2,
    )?;
    if done.unknown > 0 {
        say(&format!(
            "warning: {}: {} rows have labels that the hierarchy does not; they are written as they are",
            args.input_annotations.display(),
            done.unknown
        ));
    }
    say(&format!(
        "{}: {} rows, {} of them added",
        args.output_annotations.display(),
        done.rows + done.added,
        done.added
    ));
    Ok(())
}
