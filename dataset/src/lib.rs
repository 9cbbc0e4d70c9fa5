//! Data sets: `TFRecord` files of `tf.Example` in the Object Detection API's schema, from files to batches.
//!
//! The way of a record in training: [`shards`] finds and indexes the files, [`order`] says which record stands at
//! which position of the endless sequence, [`example`] reads the record, [`decode`] its image, [`augment`] decides
//! on crops and flips, [`resize`] makes the model's input, and [`batch`] does all of that ahead of time on its own
//! threads. [`eval`] reads the records of an evaluation, in file order and as they are; [`fit`] makes
//! the model's input of them.

pub mod augment;
pub mod bad;
pub mod batch;
pub mod decode;
pub mod eval;
pub mod example;
pub mod fit;
pub mod import;
pub mod order;
pub mod pixels;
pub mod random;
pub mod resize;
pub mod shards;
pub mod split;
pub mod synth;
pub mod validate;

mod groundtruth;
#[cfg(test)]
mod testing;

pub use groundtruth::Groundtruth;
