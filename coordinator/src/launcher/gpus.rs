//! Finds NVIDIA GPUs without loading CUDA, which a launcher should not do.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A driver in trouble can make `nvidia-smi` hang.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `CUDA_VISIBLE_DEVICES` says, if it is set.
pub(super) fn visible() -> Option<String> {
    std::env::var("CUDA_VISIBLE_DEVICES").ok()
}

/// The GPUs that tasks may use, as `CUDA_VISIBLE_DEVICES` names them.
pub(super) fn detect() -> Vec<String> {
    if let Some(visible) = visible() {
        return listed(&visible);
    }
    // Where there is no driver there is nothing to ask.
    let driver = Path::new("/proc/driver/nvidia/gpus");
    let count = list_command()
        .or_else(|| Some(std::fs::read_dir(driver).ok()?.count()))
        .unwrap_or(0);
    (0..count).map(|index| index.to_string()).collect()
}

/// Entries of `CUDA_VISIBLE_DEVICES`; as in CUDA, everything from the first invalid one (`-1`) on does not count.
fn listed(visible: &str) -> Vec<String> {
    visible
        .split(',')
        .map(|name| name.trim().to_owned())
        .take_while(|name| !name.is_empty() && !name.starts_with('-'))
        .collect()
}

/// `nvidia-smi -L` knows which GPUs a container may use; the driver's directory lists all of the machine.
fn list_command() -> Option<usize> {
    let mut child = Command::new("nvidia-smi")
        .arg("-L")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
    let output = child.wait_with_output().ok()?;
    Some(count_lines(&String::from_utf8_lossy(&output.stdout)))
}

fn count_lines(list: &str) -> usize {
    list.lines().filter(|line| line.starts_with("GPU ")).count()
}

#[cfg(test)]
mod tests {
    use super::{count_lines, listed};

    #[test]
    fn the_variable_limits_gpus_as_cuda_reads_it() {
        assert_eq!(listed("0, 2"), ["0", "2"]);
        assert_eq!(listed("GPU-8f3a"), ["GPU-8f3a"]);
        assert_eq!(listed("1,-1,2"), ["1"]);
        assert!(listed("").is_empty());
        assert!(listed("-1").is_empty());
    }

    #[test]
    fn listed_gpus_are_counted_without_their_partitions() {
        let text = "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g.18gb Device 0: (UUID: MIG-2)\nGPU 1: NVIDIA H200 (UUID: GPU-3)\n";
        assert_eq!(count_lines(text), 2);
        assert_eq!(count_lines("No devices were found\n"), 0);
    }
}
