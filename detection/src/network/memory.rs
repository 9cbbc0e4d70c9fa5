//! Room for a step, or an error in words where there is none: images may be of any size, and what they take must not end the process.

use std::alloc::{Layout, alloc_zeroed};
use std::fs;

use super::error::Error;
use super::plan::Plan;

/// Growth below this is not worth asking the system what is free.
const SMALL: u64 = 64 << 20;

/// Makes each buffer at least so long; nothing of the old contents is kept where one grows.
pub(crate) fn grow(buffers: &mut [(&mut Vec<f32>, usize)], plan: &Plan, batch: usize) -> Result<(), Error> {
    let bytes = |len: usize| len as u64 * size_of::<f32>() as u64;
    let short = |(buffer, len): &&mut (&mut Vec<f32>, usize)| buffer.len() < *len;
    let (mut needed, mut given_up) = (0, 0);
    for (buffer, len) in buffers.iter_mut().filter(short) {
        needed += bytes(*len);
        given_up += bytes(buffer.len());
    }
    let more = needed.saturating_sub(given_up);
    let failed = |free| Error::Memory {
        batch,
        height: plan.image.0,
        width: plan.image.1,
        needed: more,
        free,
    };
    // Linux promises more than it has and kills whoever takes it.
    if more > SMALL
        && let Some(free) = free()
        && more > free
    {
        return Err(failed(Some(free)));
    }
    for (buffer, len) in buffers.iter_mut().filter(short) {
        // The old block goes first, so that both need not fit.
        **buffer = Vec::new();
        **buffer = zeroed(*len).ok_or_else(|| failed(None))?;
    }
    Ok(())
}

/// So many zeros; `None` where there is no memory. Pages that nobody writes cost nothing.
fn zeroed(len: usize) -> Option<Vec<f32>> {
    let layout = Layout::array::<f32>(len).ok()?;
    if layout.size() == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc_zeroed(layout) }.cast::<f32>();
    // SAFETY: the block is of this layout, which is that of a vector of `len` elements, all of them zeros.
    (!start.is_null()).then(|| unsafe { Vec::from_raw_parts(start, len, len) })
}

/// Bytes that this process can still take: of the machine's memory and swap, and of what its control group leaves.
fn free() -> Option<u64> {
    let machine = of_machine(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/memory.{name}")).ok();
    let group = || of_group(&read("max")?, &read("current")?, &read("stat")?);
    Some(group().map_or(machine, |group| group.min(machine)))
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let kilobytes = field("MemAvailable:")? + field("SwapFree:").unwrap_or(0);
    Some(kilobytes * 1024)
}

/// Pages of files count as free: the system gives them up.
fn of_group(max: &str, current: &str, stat: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let files = stat.lines().find_map(|line| line.strip_prefix("file "));
    let files: u64 = files.and_then(|files| files.trim().parse().ok()).unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::super::NetworkConfig;
    use super::super::buffers::Buffers;
    use super::super::plan::plan;
    use super::*;

    #[test]
    fn what_does_not_fit_is_said_and_leaves_the_buffers_usable() {
        let plan = plan(&NetworkConfig::ssd_mobilenet_v1(3)).unwrap();
        let mut buffers = Buffers::new(&plan);
        buffers.for_forward(&plan, 1).unwrap();
        // Terabytes.
        let error = buffers.for_forward(&plan, 1_000_000).unwrap_err().to_string();
        assert!(
            error.starts_with("1000000 x 300 x 300 pixels: the network's buffers take "),
            "{error}"
        );
        assert!(
            error.contains("TiB more") && error.contains("\nhint: smaller images"),
            "{error}"
        );
        assert!(buffers.for_backward(&plan, 1_000_000).is_err());
        buffers.for_forward(&plan, 1).unwrap();
        buffers.for_backward(&plan, 1).unwrap();
        // Without the box the compiler leaves out a block that nobody uses, and takes it for there.
        assert!(std::hint::black_box(zeroed(usize::MAX / 8)).is_none());
        assert_eq!(zeroed(3).unwrap(), [0.0; 3]);
    }

    #[test]
    fn what_is_free() {
        let meminfo = "MemTotal: 9 kB\nMemAvailable:   2048 kB\nSwapFree: 1024 kB\n";
        assert_eq!(of_machine(meminfo), Some(3 << 20));
        assert_eq!(of_group("1000\n", "700\n", "anon 500\nfile 200\n"), Some(500));
        assert_eq!(of_group("max\n", "700\n", ""), None);
        assert!(free().is_none_or(|free| free > 0));
    }
}
