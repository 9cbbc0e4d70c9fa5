//! `coati data …`

pub(crate) mod expand_hierarchy;
pub(crate) mod import;
pub(crate) mod label_map;
pub(crate) mod split;
pub(crate) mod to_csv;
pub(crate) mod validate;

use coati_dataset::synth;

use crate::args::{DataCommand, SynthArgs};
use crate::console::say;

pub(crate) fn run(command: DataCommand) -> anyhow::Result<()> {
    match command {
        DataCommand::Synth(args) => make(&args),
        DataCommand::Import(command) => import::run(command),
        DataCommand::ToCsv(args) => to_csv::run(&args),
        DataCommand::ExpandHierarchy(args) => expand_hierarchy::run(&args),
        DataCommand::LabelMap(args) => label_map::run(&args),
        DataCommand::Split(args) => split::run(&args),
        DataCommand::Inspect(args) => super::inspect::run(&args),
        DataCommand::Validate(args) => validate::run(&args),
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

/// `triangle 12, circle 9`
fn per_class(boxes: &[(String, usize)]) -> String {
    let counts: Vec<String> = boxes.iter().map(|(class, count)| format!("{class} {count}")).collect();
    counts.join(", ")
}
