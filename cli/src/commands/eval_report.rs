//! `coati eval --report`: the page and its plots.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use coati_common::config::PipelineConfig;
use coati_evaluation::report::{self, Page};
use coati_worker::evaluate::Outcome;

use crate::args::EvalArgs;
use crate::console::say;

/// How many of the worst images a page shows.
pub(crate) const WORST_IMAGES: usize = 12;

/// Writes the page at `path`, its plots beside it.
pub(crate) fn write(
    path: &Path,
    args: &EvalArgs,
    config: &PipelineConfig,
    checkpoint: &Path,
    outcome: &Outcome,
) -> anyhow::Result<()> {
    let page = page(args, config, checkpoint, outcome);
    let report = report::write(&page, &outcome.review).context("the report's pictures")?;
    let files = [
        (path.to_owned(), report.html.as_bytes()),
        (beside(path, "precision_recall"), &report.precision_recall),
        (beside(path, "confusion_matrix"), &report.confusion_matrix),
    ];
    for (path, bytes) in &files {
        coati_storage::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    say(&format!("report: {}", path.display()));
    Ok(())
}

/// `report.html` gives `report.precision_recall.png`.
fn beside(path: &Path, what: &str) -> PathBuf {
    path.with_extension(format!("{what}.png"))
}

fn page(args: &EvalArgs, config: &PipelineConfig, checkpoint: &Path, outcome: &Outcome) -> Page {
    let result = &outcome.report;
    let fact = |what: &str, value: String| (what.to_owned(), value);
    let set = if args.eval_training_data {
        "training set"
    } else {
        "evaluation set"
    };
    let mut facts = vec![
        fact("configuration", config.name().to_owned()),
        fact("checkpoint", checkpoint.display().to_string()),
        fact("global step", result.global_step.to_string()),
        fact("images", format!("{} of the {set}", result.images)),
        fact(
            "time",
            format!(
                "{:.1} s, {:.1} s of it in the network",
                result.seconds, result.model_seconds
            ),
        ),
        fact("made by", format!("coati {}", env!("CARGO_PKG_VERSION"))),
    ];
    if let Some(floor) = &outcome.floor {
        let (ap, ap50) = (floor.metrics.ap(), floor.metrics.ap50());
        facts.push(fact(
            "best constant box",
            format!("mAP {ap:.4}, mAP@.50IOU {ap50:.4} ({})", floor.rule),
        ));
    }
    let metrics = result.metrics.iter();
    let file = Path::new(config.name())
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    Page {
        title: format!("{file} at step {}", result.global_step),
        facts,
        metrics: metrics
            .map(|(name, value)| (name.clone(), value.as_f64().unwrap_or(f64::NAN)))
            .collect(),
        notes: result.notes.iter().chain(&result.bad_records).cloned().collect(),
        configuration: config.effective_text(),
    }
}
