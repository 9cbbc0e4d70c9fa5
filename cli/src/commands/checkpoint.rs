//! `coati checkpoint`: `show` is here, the others are in files of their own.

mod convert;
mod diff;
mod list;

use std::path::Path;

use anyhow::Context as _;
use coati_checkpoint::manifest::OpenRange;
use coati_checkpoint::show;

use crate::args::{CheckpointCommand, Format};
use crate::console::report;

/// Ranges of records that are named one by one.
const SHOWN: usize = 4;

pub(crate) fn run(command: &CheckpointCommand) -> anyhow::Result<()> {
    match command {
        CheckpointCommand::Show {
            path,
            variables,
            format,
        } => show(path, *variables, *format),
        CheckpointCommand::List(args) => list::run(args),
        CheckpointCommand::Diff(args) => diff::run(args),
        CheckpointCommand::Convert(args) => convert::run(args),
    }
}

fn show(path: &Path, variables: bool, format: Format) -> anyhow::Result<()> {
    let found = show::report(path)?;
    if format == Format::Json {
        report(&serde_json::to_string(&found).context("the report")?);
        return Ok(());
    }
    for checkpoint in &found.checkpoints {
        let mut line = format!(
            "{}  step {}  {}",
            checkpoint.prefix.display(),
            checkpoint.step,
            checkpoint.condition
        );
        if let Some(problem) = &checkpoint.problem {
            line += &format!(" ({problem})");
        }
        if let Some(bytes) = checkpoint.bytes {
            line += &format!("  {:.1} MB", bytes as f64 / 1e6);
        }
        if let (Some(seen), Some(epoch)) = (checkpoint.records_seen, checkpoint.epoch) {
            let count = checkpoint.record_count.unwrap_or(0);
            line += &format!("  records seen {seen}, epoch {epoch} (of {count} records)");
        }
        if let Some(open) = &checkpoint.outstanding_leases {
            line += &format!("  outstanding leases: {}", leases(open));
        }
        report(&line);
    }
    match &found.latest {
        Some(latest) => report(&format!(
            "latest: {} ({} tensors, {} elements)",
            latest.display(),
            found.variables.len(),
            found.elements
        )),
        None => report(&format!("{}: no complete checkpoint", found.model_dir.display())),
    }
    if variables {
        for variable in &found.variables {
            let parts = if variable.slices > 1 {
                format!("  in {} parts", variable.slices)
            } else {
                String::new()
            };
            report(&format!(
                "  {} {} {:?}{parts}",
                variable.name, variable.dtype, variable.shape
            ));
        }
    }
    Ok(())
}

/// Ranges of positions, the first few by name.
fn leases(open: &[OpenRange]) -> String {
    if open.is_empty() {
        return "none".to_owned();
    }
    let records = open.iter().fold(0u64, |sum, range| sum.saturating_add(range.count));
    let shown: Vec<String> = open
        .iter()
        .take(SHOWN)
        .map(|range| format!("{}+{}", range.start, range.count))
        .collect();
    let rest = open.len().saturating_sub(SHOWN);
    let more = if rest > 0 {
        format!(" and {rest} more")
    } else {
        String::new()
    };
    format!("{records} records at positions {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_counted_and_the_first_few_named() {
        let open = |count: u64| -> Vec<OpenRange> {
            (0..count)
                .map(|index| OpenRange {
                    start: 100 * index,
                    count: 8,
                })
                .collect()
        };
        assert_eq!(leases(&[]), "none");
        assert_eq!(leases(&open(2)), "16 records at positions 0+8, 100+8");
        assert_eq!(
            leases(&open(6)),
            "48 records at positions 0+8, 100+8, 200+8, 300+8 and 2 more"
        );
    }
}
