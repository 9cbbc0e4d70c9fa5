//! `coati data split`: one set of records becomes one to train on and one to evaluate on.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use coati_dataset::shards::Source;
use coati_dataset::split;

use crate::args::Format;
use crate::console::{report, say};
use crate::failure::Failure;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Arguments {
    /// TFRecords: files, patterns (`-?????-of-00003`), `name@3`.
    #[arg(required = true)]
    input_path: Vec<String>,
    /// TFRecord to train on; with --num_train_shards the start of the shards' names.
    #[arg(long, value_name = "FILE")]
    train_output_path: PathBuf,
    /// TFRecord to evaluate on; with --num_eval_shards the start of the shards' names.
    #[arg(long, value_name = "FILE")]
    eval_output_path: PathBuf,
    /// Share of the images to evaluate on.
    #[arg(long, default_value_t = 0.2)]
    eval_share: f64,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    num_train_shards: Option<u32>,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    num_eval_shards: Option<u32>,
    /// Changes who goes where.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(crate) fn run(args: &Arguments) -> anyhow::Result<()> {
    if !(args.eval_share > 0.0 && args.eval_share < 1.0) {
        return Err(Failure::user(format!(
            "--eval_share is {}\nhint: a share is between 0 and 1, as 0.2",
            args.eval_share
        ))
        .into());
    }
    let source = Source::open(&args.input_path)?;
    let done = split::run(
        &source,
        &split::Options {
            train_output_path: args.train_output_path.clone(),
            num_train_shards: args.num_train_shards,
            eval_output_path: args.eval_output_path.clone(),
            num_eval_shards: args.num_eval_shards,
            eval_share: args.eval_share,
            seed: args.seed,
        },
    )?;
    if args.format == Format::Json {
        report(&serde_json::to_string(&done).context("the split's report")?);
        return Ok(());
    }
    for class in &done.one_sided {
        say(&format!(
            "warning: class `{class}` is on one side only: its images cannot be parted without taking another class away"
        ));
    }
    say(&format!(
        "{} images to train on, {} to evaluate on ({} have a double that stays with them); images of each class:",
        done.train, done.eval, done.duplicates
    ));
    for (class, [train, eval]) in &done.classes {
        say(&format!("{train:>8} {eval:>8} {class}"));
    }
    Ok(())
}
