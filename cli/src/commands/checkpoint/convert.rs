//! `coati checkpoint convert`

use std::path::Path;

use anyhow::Context as _;
use coati_checkpoint::{bundle, locate, safetensors};

use crate::args::CheckpointConvertArgs;
use crate::console::say;
use crate::failure::Failure;

const ENDING: &str = "safetensors";

pub(super) fn run(args: &CheckpointConvertArgs) -> anyhow::Result<()> {
    let CheckpointConvertArgs { from, to, overwrite } = args;
    let is_tensors = |path: &Path| path.extension().is_some_and(|ending| ending == ENDING);
    let there = if is_tensors(to) {
        to.clone()
    } else {
        bundle::index_path(to)
    };
    if coati_storage::is_file(&there) && !overwrite {
        let text = format!(
            "{} is there already\nhint: choose another name, or give --overwrite",
            there.display()
        );
        return Err(Failure::user(text).into());
    }
    let converted = match (is_tensors(from), is_tensors(to)) {
        (false, true) => {
            let reader = locate::open(from)?;
            make_folder(to)?;
            safetensors::write(&reader, to)?
        }
        (true, false) => {
            make_folder(to)?;
            safetensors::read(from, to)?
        }
        (both, _) => {
            let what = if both { "both names end" } else { "neither name ends" };
            let text =
                format!("{what} in .{ENDING}\nhint: one side is a checkpoint's prefix, the other a file NAME.{ENDING}");
            return Err(Failure::user(text).into());
        }
    };
    for name in &converted.left_out {
        say(&format!(
            "warning: {name} is left out: its type has no place in a .{ENDING} file"
        ));
    }
    say(&format!(
        "{}: {} tensors, {:.1} MB",
        to.display(),
        converted.tensors,
        converted.bytes as f64 / 1e6
    ));
    Ok(())
}

/// As every command that writes.
fn make_folder(to: &Path) -> anyhow::Result<()> {
    let folder = to.parent().unwrap_or(Path::new(""));
    coati_storage::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}
