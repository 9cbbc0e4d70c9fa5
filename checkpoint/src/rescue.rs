//! What to go on from when a checkpoint turns out to be damaged.
//!
//! Which checkpoint counts is told by names and sizes, which costs nothing. That a bit is wrong is noticed when the tensor
//! is read; then every byte of the older ones is read too, to offer one that is whole.

use std::path::{Path, PathBuf};

use crate::bundle::{self, Reader};
use crate::files::folder;
use crate::state;

/// The newest checkpoint older than `prefix` of which every byte is right.
pub fn newest_whole_before(prefix: &Path) -> Option<PathBuf> {
    let own = state::examine(prefix);
    let candidates = state::list(folder(prefix)).ok()?;
    let older = candidates.into_iter().rev().filter(|found| found.step < own.step);
    older
        .map(|found| found.prefix)
        .find(|found| Reader::open(found).and_then(|reader| reader.verify()).is_ok())
}

/// What can be done about an error of reading `prefix`: the message and, where the files are damaged, a hint that names
/// the checkpoint to use instead.
pub fn explain(prefix: &Path, error: &bundle::Error) -> (String, Option<String>) {
    let text = error.to_string();
    let (message, hint) = match text.split_once("\nhint: ") {
        Some((message, hint)) => (message.to_owned(), Some(hint.to_owned())),
        None => (text, None),
    };
    if !error.is_damage() {
        return (message, hint);
    }
    let hint = match newest_whole_before(prefix) {
        Some(whole) => format!(
            "{} is whole: move {}.* away to go on from it, or copy the damaged file again",
            whole.display(),
            prefix.display()
        ),
        None => format!(
            "copy the damaged file again; {} holds no older checkpoint that is whole",
            folder(prefix).display()
        ),
    };
    (message, Some(hint))
}
