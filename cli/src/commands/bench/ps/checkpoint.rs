//! How long a worker waits because a checkpoint is being written.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use coati_param_server::{Contributor, PsGroup};
use serde_json::json;

use super::super::spread;
use super::{LIMIT, tag};
use crate::args::BenchPsArgs;

/// Steps before each checkpoint, to know how long one takes.
const BETWEEN: u64 = 12;

/// Push, commit, pull; now and then a checkpoint is written meanwhile. The pause is by how much the longest step from the
/// snapshot until the checkpoint is complete exceeds the median of the steps before.
pub(super) async fn measure(
    group: &PsGroup,
    folder: &Path,
    arguments: &BenchPsArgs,
) -> anyhow::Result<serde_json::Value> {
    std::fs::create_dir_all(folder)?;
    let prefix = folder.join("model.ckpt-bench").display().to_string();
    let mut variables = vec![0.0f32; group.layout().flat_len()];
    let gradients = Arc::new(vec![1e-6f32; variables.len()]);
    let mut version = 0;
    let mut step = async |kept: bool| {
        let begun = Instant::now();
        if kept {
            group.snapshot(version, LIMIT).await?;
        }
        let snapshot = begun.elapsed();
        group.push_shared(tag(0, version), &gradients, LIMIT).await?;
        let contributor = Contributor {
            replica: 0,
            sequence: version,
            samples: 8,
        };
        group.commit(version, &[contributor], true, LIMIT).await?;
        version += 1;
        group.pull(version, LIMIT, &mut variables).await?;
        anyhow::Ok((begun.elapsed().as_secs_f64(), snapshot.as_secs_f64(), version))
    };
    let (mut pauses, mut writing, mut snapshots, mut usual) = (vec![], vec![], vec![], vec![]);
    let begun = Instant::now();
    while pauses.len() < 5 || begun.elapsed().as_secs_f64() < arguments.seconds {
        let mut steps = Vec::new();
        for i in 0..BETWEEN {
            let (seconds, _, _) = step(false).await?;
            if i >= 2 {
                steps.push(seconds);
            }
        }
        steps.sort_by(f64::total_cmp);
        let median = steps[steps.len() / 2];
        let (seconds, snapshot, after) = step(true).await?;
        let saving = {
            let (group, prefix) = (group.clone(), prefix.clone());
            tokio::spawn(async move {
                let begun = Instant::now();
                let saved = group.save(&prefix, after - 1, LIMIT).await;
                saved.map(|_| begun.elapsed().as_secs_f64())
            })
        };
        let mut longest = seconds;
        while !saving.is_finished() {
            longest = longest.max(step(false).await?.0);
        }
        writing.push(saving.await??);
        pauses.push((longest - median).max(0.0));
        snapshots.push(snapshot);
        usual.push(median);
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("model.ckpt-bench.") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(json!({
        "bench": "ps_checkpoint", "servers": arguments.servers, "megabytes": arguments.megabytes,
        "pause_s": spread(&pauses), "snapshot_s": spread(&snapshots), "step_s": spread(&usual), "writing_s": spread(&writing),
    }))
}
