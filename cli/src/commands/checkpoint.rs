//! `coati checkpoint show`

use anyhow::Context as _;
use coati_checkpoint::show;

use crate::args::{CheckpointCommand, Format};
use crate::console::report;

pub(crate) fn run(command: &CheckpointCommand) -> anyhow::Result<()> {
    let CheckpointCommand::Show {
        path,
        variables,
        format,
    } = command;
    let found = show::report(path)?;
    if *format == Format::Json {
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
            line += &format!("  records seen {seen}, epoch {epoch}");
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
    if *variables {
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
