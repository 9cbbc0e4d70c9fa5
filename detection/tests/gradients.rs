//! Clipping.

use coati_common::variables::{VariableKind, VariableSpec};
use coati_detection::gradients::clip_by_global_norm;

use crate::golden::{Npz, close};

#[test]
fn clipping_by_the_global_norm_equals_the_reference() {
    let mut npz = Npz::component("gradient_clipping");
    let parts: Vec<Vec<f32>> = (0..3).map(|i| npz.floats(&format!("grad_{i}"))).collect();
    let variables: Vec<VariableSpec> = parts
        .iter()
        .map(|part| VariableSpec {
            name: "v/weights".to_owned(),
            shape: vec![part.len() as i64],
            kind: VariableKind::Trainable,
        })
        .collect();
    let mut flat = parts.concat();
    let norm = clip_by_global_norm(&mut flat, &variables, 10.0);
    close("norm", &[norm], &npz.floats("global_norm"), 1e-5, 0.0);
    assert!(norm > 10.0);
    let expected: Vec<f32> = (0..3).flat_map(|i| npz.floats(&format!("global_{i}"))).collect();
    close("gradients", &flat, &expected, 1e-5, 1e-7);
}
