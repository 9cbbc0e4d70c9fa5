//! What an import says while it runs and when it is done.

use anyhow::Context as _;
use coati_dataset::import::{Progress, Report};
use serde_json::json;

use crate::args::Format;
use crate::commands::data::per_class;
use crate::console::{report, say};

/// Warnings that are shown one by one; the JSON report has all of them.
const SHOWN: usize = 50;
/// Sizes that are shown.
const SIZES: usize = 5;

/// Runs an import behind a progress bar.
pub(super) fn with_bar<T, E>(import: impl FnOnce(Progress) -> Result<T, E>) -> Result<T, E> {
    let bar = indicatif::ProgressBar::new(0);
    if let Ok(style) = indicatif::ProgressStyle::with_template("{bar:30} {pos}/{len} images  {per_sec}  {eta} left") {
        bar.set_style(style);
    }
    let done = import(&|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    done
}

/// An import into one set of files.
pub(super) fn one(path: &str, done: &Report, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => report(&serde_json::to_string(done).context("the import's report")?),
        Format::Text => text(path, done),
    }
    Ok(())
}

/// An import into several.
pub(super) fn sets(sets: &[(String, Report)], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let all: serde_json::Map<_, _> = sets.iter().map(|(name, done)| (name.clone(), json!(done))).collect();
            report(&serde_json::to_string(&all).context("the import's report")?);
        }
        Format::Text => {
            for (name, done) in sets {
                text(name, done);
            }
        }
    }
    Ok(())
}

fn text(name: &str, done: &Report) {
    let warnings = done.warnings.iter().chain(&done.skipped_images);
    for warning in warnings.clone().take(SHOWN) {
        say(&format!("warning: {warning}"));
    }
    let more = warnings.count().saturating_sub(SHOWN);
    if more > 0 {
        say(&format!("warning: and {more} more (--format json lists all)"));
    }
    say(&format!(
        "{name}: {} images in {} file(s), {} without boxes, {} left out; boxes: {}",
        done.images,
        done.files.len(),
        done.images_without_boxes,
        done.skipped_images.len(),
        per_class(&done.boxes)
    ));
    let mut sizes: Vec<String> = done
        .image_sizes
        .iter()
        .take(SIZES)
        .map(|size| format!("{}x{} ({})", size.width, size.height, size.images))
        .collect();
    if done.image_sizes.len() > SIZES {
        sizes.push(format!("and {} other sizes", done.image_sizes.len() - SIZES));
    }
    say(&format!("image sizes: {}", sizes.join(", ")));
    if !done.boxes_left_out.is_empty() {
        let reasons: Vec<String> = done
            .boxes_left_out
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        say(&format!("boxes left out: {}", reasons.join(", ")));
    }
}
