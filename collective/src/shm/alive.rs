//! Who is alive: each rank holds a lock on one byte of the file, which the kernel lifts with the process, however that ends.

use std::fs::File;
use std::os::fd::AsRawFd as _;

fn lock(rank: usize) -> libc::flock {
    // SAFETY: a struct of numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = rank as libc::off_t;
    lock.l_len = 1;
    lock
}

/// Takes a rank's lock for this opening of the file; false where another one has it.
pub(super) fn take(file: &File, rank: usize) -> std::io::Result<bool> {
    let wanted = lock(rank);
    // SAFETY: an open file and a lock of the right type.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const wanted) } == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Whether another opening of the file holds a rank's lock. Where the system does not say, it counts as held.
pub(super) fn holds(file: &File, rank: usize) -> bool {
    let mut asked = lock(rank);
    // SAFETY: as above; the kernel writes the holder into it.
    let failed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut asked) } != 0;
    failed || asked.l_type != libc::F_UNLCK as libc::c_short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_by_others_and_ends_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .unwrap()
        };
        let (a, b) = (open(), open());
        assert!(take(&a, 1).unwrap());
        assert!(holds(&b, 1) && !holds(&b, 0));
        assert!(!take(&b, 1).unwrap(), "it is taken");
        drop(a);
        assert!(!holds(&b, 1) && take(&b, 1).unwrap());
    }
}
