//! `coati checkpoint diff`

use anyhow::Context as _;
use coati_checkpoint::diff::{self, Difference};
use coati_checkpoint::locate;

use crate::args::{CheckpointDiffArgs, Format};
use crate::console::report;

pub(super) fn run(args: &CheckpointDiffArgs) -> anyhow::Result<()> {
    let (first, second) = (locate::open(&args.first)?, locate::open(&args.second)?);
    let found = diff::compare(&first, &second)?;
    if args.format == Format::Json {
        report(&serde_json::to_string(&found).context("the report")?);
        return Ok(());
    }
    for row in &found.rows {
        report(&format!("{}: {}", row.name, words(&row.difference, args)));
    }
    let total = found.equal + found.rows.len();
    report(&match found.rows.len() {
        0 => format!("equal: all {total} tensors"),
        different => format!("{different} of {total} tensors differ, {} are equal", found.equal),
    });
    Ok(())
}

fn words(difference: &Difference, args: &CheckpointDiffArgs) -> String {
    match difference {
        Difference::OnlyInFirst => format!("only in {}", args.first.display()),
        Difference::OnlyInSecond => format!("only in {}", args.second.display()),
        Difference::Form { first, second } => format!("{first}, then {second}"),
        Difference::Values {
            elements,
            of,
            largest,
            relative,
        } => format!("{elements} of {of} elements differ, by {largest:.3e} at most (relative {relative:.2e})"),
    }
}
