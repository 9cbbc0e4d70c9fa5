//! `coati data …`

use anyhow::Context as _;
use coati_common::label_map::LabelMap;
use coati_dataset::{import, synth};

use crate::args::{DataCommand, Format, ImportCommand, SynthArgs, VocArgs};
use crate::console::{report, say};

pub(crate) fn run(command: DataCommand) -> anyhow::Result<()> {
    match command {
        DataCommand::Synth(args) => make(&args),
        DataCommand::Import(ImportCommand::Voc(args)) => voc(&args),
        DataCommand::Inspect(args) => super::inspect::run(&args),
    }
}

fn make(args: &SynthArgs) -> anyhow::Result<()> {
    let made = synth::generate(&synth::Options {
        output_dir: args.output_dir.clone(),
        num_train: args.num_train,
        num_val: args.num_val,
        image_size: args.image_size,
        seed: args.seed,
    })?;
    say(&format!(
        "{}: {} images; boxes: {}",
        args.output_dir.display(),
        made.images,
        per_class(&made.boxes)
    ));
    Ok(())
}

fn voc(args: &VocArgs) -> anyhow::Result<()> {
    let labels = LabelMap::load(&args.label_map_path)?;
    let bar = indicatif::ProgressBar::new(0);
    let options = import::voc::Options {
        data_dir: args.data_dir.clone(),
        year: args.year.clone(),
        set: args.set.clone(),
        annotations_dir: args.annotations_dir.clone(),
        output_path: args.output_path.clone(),
        num_shards: args.num_shards,
        ignore_difficult_instances: args.ignore_difficult_instances,
        seed: args.seed,
        max_skipped: args.max_skipped,
    };
    let done = import::voc::import(&options, &labels, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let done = done?;
    if args.format == Format::Json {
        report(&serde_json::to_string(&done).context("the import's report")?);
        return Ok(());
    }
    for warning in done.warnings.iter().chain(&done.skipped_images) {
        say(&format!("warning: {warning}"));
    }
    say(&format!(
        "{}: {} images in {} file(s), {} left out; boxes: {}",
        args.output_path.display(),
        done.images,
        done.files.len(),
        done.skipped_images.len(),
        per_class(&done.boxes)
    ));
    Ok(())
}

/// `triangle 12, circle 9`
fn per_class(boxes: &[(String, usize)]) -> String {
    let counts: Vec<String> = boxes.iter().map(|(class, count)| format!("{class} {count}")).collect();
    counts.join(", ")
}
