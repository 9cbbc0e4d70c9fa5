//! How the allocator treats large blocks.

/// Lets the allocator keep large blocks that were freed for their next use. What is received from other tasks lies in blocks of
/// up to a MiB for moments; glibc would give them back to the system and take them anew, page by page, at a tenth of what
/// receiving costs. Tensors of a step are of the same kind.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn keep_large_blocks() {
    const MAPPED_FROM: libc::c_int = 32 << 20;
    const GIVEN_BACK_FROM: libc::c_int = 256 << 20;
    // SAFETY: changes two settings of the allocator; called before other threads are started.
    let kept = unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM) & libc::mallopt(libc::M_TRIM_THRESHOLD, GIVEN_BACK_FROM)
    };
    if kept == 0 {
        tracing::debug!("the allocator keeps its own settings");
    }
}

/// Other allocators decide for themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_large_blocks() {}
