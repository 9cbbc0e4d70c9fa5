//! Numbers of incarnations: each is taken by one coordinator, whatever the others can see.
//!
//! The lock of the job's folder keeps a second coordinator away, where the disk knows locks and nobody removed it. This holds
//! without: a number belongs to whoever makes its file, which the disk lets only one do, and servers refuse the smaller
//! number. Two coordinators that were parted from each other thus never speak for the same incarnation, and the one with the
//! smaller number ends.

use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};

/// The file's name without its number.
const PREFIX: &str = "coati-incarnation-";

fn file(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{number}"))
}

/// The numbers that were taken and not removed.
fn taken(folder: &Path) -> impl Iterator<Item = u64> {
    let entries = coati_storage::list(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.name.strip_prefix(PREFIX)?.parse().ok())
}

/// Makes the file of a number, and removes those of smaller ones. False where somebody has made it before, or a larger one: the
/// largest is always there, so that a number whose file was removed is not taken again.
fn make(folder: &Path, number: u64) -> io::Result<bool> {
    coati_storage::create_dir_all(folder)?;
    // For people who wonder, and for whoever asks a bucket whether it was itself that made this.
    let host = nix::unistd::gethostname().unwrap_or_default();
    let once = std::hash::RandomState::new().build_hasher().finish();
    let by = format!(
        "process {} on {}, {once:016x}\n",
        std::process::id(),
        host.to_string_lossy()
    );
    if !coati_storage::put_new(&file(folder, number), by.as_bytes())? {
        return Ok(false);
    }
    for older in taken(folder).filter(|older| *older < number) {
        let _ = coati_storage::remove(&file(folder, older));
    }
    Ok(taken(folder).all(|other| other <= number))
}

/// For a coordinator that starts: a number that nobody took before, not below `at_least`.
pub(super) fn first(folder: &Path, at_least: u64) -> io::Result<u64> {
    let mut number = taken(folder).map(|taken| taken + 1).fold(at_least, u64::max);
    while !make(folder, number)? {
        number += 1;
    }
    Ok(number)
}

/// For a coordinator that goes on as incarnation `own`: the next number. None where another coordinator has begun since.
pub(super) fn next(folder: &Path, own: u64) -> io::Result<Option<u64>> {
    if taken(folder).any(|taken| taken > own) {
        return Ok(None);
    }
    Ok(make(folder, own + 1)?.then_some(own + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_coordinators_take_the_same_number() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert_eq!(first(folder, 3).unwrap(), 3);
        assert_eq!(next(folder, 3).unwrap(), Some(4));
        // Another one, which knows nothing of what the first did meanwhile.
        assert_eq!(first(folder, 4).unwrap(), 5);
        assert_eq!(next(folder, 4).unwrap(), None, "it was taken over");
        assert_eq!(next(folder, 5).unwrap(), Some(6));
        assert_eq!(taken(folder).collect::<Vec<_>>(), [6]);
        assert_eq!(
            next(folder, 3).unwrap(),
            None,
            "its next number is free again, and too small"
        );
    }

    #[test]
    fn many_at_a_time_get_different_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let numbers: Vec<u64> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| first(folder.path(), 1).unwrap()))
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        let different: std::collections::BTreeSet<u64> = numbers.iter().copied().collect();
        assert_eq!(different.len(), 8, "{numbers:?}");
    }
}
