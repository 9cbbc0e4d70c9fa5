//! Whether a server's part fits into memory, before anything is allocated: a wrong placement must not end the process.

use std::fs;

use coati_common::rpc::{ErrorCode, ServiceError};

use crate::optimizer::OptimizerConfig;
use crate::placement::ServerLayout;

/// Bytes of variables, slots and averages, and of one staged contribution.
pub(super) fn needed(server: &ServerLayout, optimizer: &OptimizerConfig) -> u64 {
    let vectors = optimizer.rule.slots().len() + usize::from(optimizer.moving_average_decay.is_some());
    let slotted = (server.slotted_len as u64).saturating_mul(vectors as u64);
    let elements = (server.arena_len as u64)
        .saturating_add(slotted)
        .saturating_add(server.pushed_len as u64);
    elements.saturating_mul(size_of::<f32>() as u64)
}

/// Refuses what this machine cannot hold; where its memory is unknown, what no machine holds.
pub(super) fn check(ps: u32, needed: u64, memory: Option<u64>) -> Result<(), ServiceError> {
    let limit = memory.unwrap_or(1 << 44);
    if needed <= limit {
        return Ok(());
    }
    let message = format!(
        "ps-{ps} would hold {:.1} GB of variables, slots and gradients, its host has {:.1} GB of memory",
        needed as f64 / 1e9,
        limit as f64 / 1e9
    );
    Err(ServiceError::new(ErrorCode::OutOfSpace, message)
        .with_hint("use more parameter servers, or hosts with more memory"))
}

/// Bytes that this process may have: the machine's, or its control group's if that is less.
pub(super) fn of_this_machine() -> Option<u64> {
    let total = total(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse().ok());
    Some(group.map_or(total, |group: u64| group.min(total)))
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_both_sizes() {
        check(1, 8_000_000_000, Some(16_000_000_000)).unwrap();
        let error = check(1, 3_200_000_000_000, Some(16_000_000_000)).unwrap_err();
        assert_eq!(error.code, ErrorCode::OutOfSpace);
        assert!(
            error.message.contains("ps-1 would hold 3200.0 GB") && error.message.contains("16.0 GB"),
            "{error}"
        );
        check(0, u64::MAX, None).unwrap_err();
    }

    #[test]
    fn memory_as_the_system_tells_it() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(total("MemTotal: 99999999999999999999 kB"), None);
        assert_eq!(total(""), None);
    }
}
