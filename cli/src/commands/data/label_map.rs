//! `coati data label-map`: a label map of the classes in the data.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use coati_dataset::import::discover::{self, Kind};
use coati_dataset::import::sharded;

use crate::console::{report, say};

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Arguments {
    /// Annotations: a folder of XML files, of KITTI's labels or of OIDv4_ToolKit's classes, a COCO .json, a .csv, or TFRecords.
    input_path: PathBuf,
    /// Label map to write; without it, it goes to stdout.
    #[arg(long, value_name = "FILE")]
    output_path: Option<PathBuf>,
    /// What the annotations are, where their looks mislead.
    #[arg(long = "kind", value_enum)]
    kind: Option<KindArgument>,
    /// Order of classes that have no ids of their own.
    #[arg(long, value_enum, default_value_t = Order::Name)]
    order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindArgument {
    Voc,
    Coco,
    Csv,
    Oid,
    Folder,
    Kitti,
    Records,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    /// By name.
    Name,
    /// Most boxes first.
    Boxes,
}

pub(crate) fn run(args: &Arguments) -> anyhow::Result<()> {
    let kind = match args.kind {
        None => discover::kind_of(&args.input_path)?,
        Some(KindArgument::Voc) => Kind::Voc,
        Some(KindArgument::Coco) => Kind::Coco,
        Some(KindArgument::Csv) => Kind::Csv,
        Some(KindArgument::Oid) => Kind::Oid,
        Some(KindArgument::Folder) => Kind::Folder,
        Some(KindArgument::Kitti) => Kind::Kitti,
        Some(KindArgument::Records) => Kind::Records,
    };
    let order = match args.order {
        Order::Name => discover::Order::Name,
        Order::Boxes => discover::Order::Boxes,
    };
    let found = discover::classes(&args.input_path, kind, order)?;
    let text = found.labels.to_pbtxt();
    let Some(path) = &args.output_path else {
        report(text.trim_end());
        return Ok(());
    };
    sharded::replace(path, text.as_bytes()).context("the label map")?;
    let boxes: Vec<String> = found
        .labels
        .items
        .iter()
        .zip(&found.boxes)
        .map(|(item, boxes)| format!("{} {boxes}", item.name))
        .collect();
    say(&format!(
        "{}: {} classes; boxes: {}",
        path.display(),
        found.labels.items.len(),
        boxes.join(", ")
    ));
    Ok(())
}
