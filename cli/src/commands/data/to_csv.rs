//! `coati data to-csv`: records, or a Pascal VOC folder, as the tutorials' table.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

use std::path::{Path, PathBuf};

use clap::Args;
use coati_dataset::import::csv::{self, Source};
use coati_dataset::shards;

use crate::console::say;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Arguments {
    /// TFRecords (files, patterns, `name@3`), or one folder of Pascal VOC XML files.
    #[arg(required = true)]
    input_path: Vec<String>,
    /// Table to write.
    #[arg(long, value_name = "FILE")]
    csv_output: PathBuf,
    /// Of a Pascal VOC folder: the list in ImageSets/Main.
    #[arg(long)]
    set: Option<String>,
    /// Write the records' images here.
    #[arg(long, value_name = "FOLDER")]
    image_dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Arguments) -> anyhow::Result<()> {
    let folder = match args.input_path.as_slice() {
        [only] => Some(Path::new(only)).filter(|path| coati_storage::is_dir(path)),
        _ => None,
    };
    let written = if let Some(data_dir) = folder {
        let set = args.set.as_deref();
        csv::write(&Source::Voc { data_dir, set }, &args.csv_output, None)?
    } else {
        let records = shards::Source::open(&args.input_path)?;
        csv::write(&Source::Records(&records), &args.csv_output, args.image_dir.as_deref())?
    };
    say(&format!(
        "{}: {} boxes of {} images",
        args.csv_output.display(),
        written.boxes,
        written.images
    ));
    Ok(())
}
