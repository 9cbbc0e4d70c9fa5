//! `coati data validate`: what makes training fail or explode, before it does.

#![allow(clippy::doc_markdown, reason = "these comments are the help that users read")]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use coati_common::label_map::LabelMap;
use coati_dataset::example::Classes;
use coati_dataset::shards::pattern;
use coati_dataset::validate::{self, Options};
use serde_json::json;

use crate::args::Format;
use crate::console::{harmless, report, say};
use crate::failure::Failure;

/// Findings that are shown one by one; the JSON report has all of them.
const SHOWN: usize = 100;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct Arguments {
    /// TFRecords to train on: files, patterns (`-?????-of-00003`), `name@3`.
    #[arg(required = true)]
    input_path: Vec<String>,
    /// TFRecords to evaluate on: looked at as well, and none of their images may be in the others.
    #[arg(long, value_name = "FILE")]
    eval_input_path: Vec<String>,
    /// Label map; without it, labels only have to be at least 1.
    #[arg(long, value_name = "FILE")]
    label_map_path: Option<PathBuf>,
    /// Repair what can be repaired without guessing: the files are written anew.
    #[arg(long)]
    fix: bool,
    /// With --fix: write the files here, under their names, and leave the old ones.
    #[arg(long, value_name = "FOLDER", requires = "fix")]
    output_dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(crate) fn run(args: &Arguments) -> anyhow::Result<()> {
    let classes = args.label_map_path.as_deref().map(LabelMap::load).transpose()?;
    let mut sets = vec![("train".to_owned(), pattern::expand(&args.input_path)?)];
    if !args.eval_input_path.is_empty() {
        sets.push(("eval".to_owned(), pattern::expand(&args.eval_input_path)?));
    }
    let options = Options {
        classes: classes.as_ref().map(Classes::from),
        fix: args.fix,
        output_dir: args.output_dir.clone(),
    };
    let bar = indicatif::ProgressBar::new_spinner();
    let done = validate::run(&sets, &options, &|records| {
        bar.set_position(records);
        bar.set_message(format!("{records} records"));
    });
    bar.finish_and_clear();
    let done = done?;
    let remaining = done.remaining(args.fix);
    match args.format {
        Format::Json => {
            let mut data = serde_json::to_value(&done).context("the report")?;
            if let Some(data) = data.as_object_mut() {
                data.insert("remaining".to_owned(), json!(remaining));
            }
            report(&serde_json::to_string(&data).context("the report")?);
        }
        Format::Text => {
            for finding in done.findings.iter().take(SHOWN) {
                let repair = match finding.repair {
                    Some(repair) if args.fix => format!(" (fixed: {repair})"),
                    Some(repair) => format!(" (--fix {repair})"),
                    None => String::new(),
                };
                report(&harmless(&format!("{finding}{repair}")));
            }
            if done.findings.len() > SHOWN {
                say(&format!(
                    "and {} more (--format json lists all)",
                    done.findings.len() - SHOWN
                ));
            }
            for (flaw, count) in &done.counts {
                say(&format!("{count:>8} {flaw}"));
            }
            say(&format!(
                "{} records, {} findings, {} of them {}",
                done.records,
                done.findings.len(),
                done.repairable,
                if args.fix { "fixed" } else { "for --fix" }
            ));
            for file in &done.files {
                say(&format!("written: {}", file.display()));
            }
        }
    }
    if remaining == 0 {
        return Ok(());
    }
    let is_something_else = ["no_records", "empty_set"]
        .iter()
        .any(|flaw| done.counts.contains_key(flaw));
    let hint = if is_something_else {
        "are these the files that are meant? `coati data import` makes records of images and annotations"
    } else if args.fix || done.repairable == 0 {
        "what remains has no single right answer: correct the annotations and import them again"
    } else {
        "--fix repairs what can be repaired without guessing"
    };
    Err(Failure::user(format!("{remaining} findings\nhint: {hint}")).into())
}
