//! Checkpoints, compared bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coati_checkpoint::bundle::{Reader, dtype_name};

/// Type, shape and bytes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// `float32`, `int64`
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<i64>,
    /// Little-endian, in C order.
    pub bytes: Vec<u8>,
}

/// All tensors of a checkpoint, by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// `FOLDER/model.ckpt-STEP`
pub fn prefix(folder: &Path, step: u64) -> PathBuf {
    coati_checkpoint::saver::prefix(folder, step)
}

/// Reads the checkpoint of step `step` in `folder`.
pub fn read(folder: &Path, step: u64) -> Tensors {
    let prefix = prefix(folder, step);
    let reader = crate::or_panic(Reader::open(&prefix), "cannot open the checkpoint");
    let tensors: Tensors = reader
        .entries()
        .map(|entry| {
            let bytes = crate::or_panic(reader.read_raw(&entry.name), &entry.name);
            let tensor = Tensor {
                dtype: dtype_name(entry.dtype).to_owned(),
                shape: entry.shape.clone(),
                bytes,
            };
            (entry.name.clone(), tensor)
        })
        .collect();
    assert!(
        tensors.contains_key("global_step"),
        "{} has no global_step",
        prefix.display()
    );
    tensors
}

/// Names of tensors that one has and the other has not, or that differ in any bit.
pub fn differences(one: &Tensors, other: &Tensors) -> Vec<String> {
    let mut names: Vec<String> = one
        .iter()
        .filter(|(name, tensor)| other.get(*name) != Some(*tensor))
        .map(|(name, _)| name.clone())
        .collect();
    names.extend(other.keys().filter(|name| !one.contains_key(*name)).cloned());
    names
}

/// How far each tensor of float32 that both have is from the other one: the difference's length, as a share of the other's.
pub fn apart(one: &Tensors, other: &Tensors) -> Vec<(String, f64)> {
    let values = |tensor: &Tensor| -> Vec<f64> {
        let (values, _) = tensor.bytes.as_chunks::<4>();
        values
            .iter()
            .map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
            .collect()
    };
    let length = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
    one.iter()
        .filter(|(_, tensor)| tensor.dtype == "float32")
        .filter_map(|(name, tensor)| {
            let (first, second) = (values(tensor), values(other.get(name)?));
            let difference: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a - b).collect();
            Some((name.clone(), length(&difference) / length(&second).max(1e-12)))
        })
        .collect()
}

/// Panics unless both hold the same tensors, bit for bit.
#[track_caller]
pub fn assert_same_bits(one: &Tensors, other: &Tensors, what: &str) {
    let names = differences(one, other);
    assert!(
        names.is_empty(),
        "{what}: {} of {} tensors differ, such as {:?}",
        names.len(),
        one.len(),
        names.iter().take(5).collect::<Vec<_>>()
    );
}
