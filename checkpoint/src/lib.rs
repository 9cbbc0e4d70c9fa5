//! TensorFlow V2 checkpoints (tensor bundles), read and written, and what Coati keeps beside them.
//!
//! A checkpoint `P` is `P.index`, one or more `P.data-0000i-of-0000n` and, when a job of ours wrote it,
//! `P.coati.json` (the [`manifest`]), which is written last: without it such a checkpoint does not count. The order is
//! data files, index, manifest, the directory's `checkpoint` [`state`] file, and only then the removal of old ones
//! ([`keep`]).

pub mod best;
pub mod bundle;
pub mod contents;
pub mod diff;
mod fault;
pub mod files;
#[cfg(test)]
mod fuzz;
pub mod keep;
pub mod locate;
pub mod manifest;
pub mod rescue;
pub mod restore;
pub mod safetensors;
pub mod saver;
pub mod show;
pub mod state;
