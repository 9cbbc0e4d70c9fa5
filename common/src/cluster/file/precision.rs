//! `coati.precision` and `coati.tf32`.

use super::coati::choice;
use super::security::switch;
use crate::cluster::plan::Devices;
use crate::cluster::precision::{Numerics, Precision};
use crate::cluster::yaml::{Document, Fault, Fields, Node};

pub(super) fn precision(document: &Document, node: &Node, key: &str) -> Result<Precision, Fault> {
    let value = document.text(node, key)?;
    value.parse().map_err(|_| match elsewhere(&value) {
        Some(ours) => document.fault(
            node.at,
            format!("unknown value `{value}` of `{key}`"),
            Some(format!("did you mean `{ours}`?")),
        ),
        None => choice(document, node, key, &value, &Precision::NAMES),
    })
}

/// What other programs call ours; by the letters alone `float16` would be nearest to `float32`.
fn elsewhere(value: &str) -> Option<Precision> {
    match value.to_lowercase().as_str() {
        "float" | "fp32" | "f32" => Some(Precision::Float32),
        "bfloat16" => Some(Precision::Bf16),
        "float16" | "half" | "f16" => Some(Precision::Fp16),
        _ => None,
    }
}

pub(super) fn tf32(document: &Document, node: &Node, key: &str) -> Result<bool, Fault> {
    switch(document, node, key)
}

/// What only GPUs do beside `devices: cpu`.
pub(super) fn check(
    document: &Document,
    fields: &Fields<'_>,
    numerics: Numerics,
    devices: &Devices,
) -> Result<(), Fault> {
    if *devices != Devices::Cpu {
        return Ok(());
    }
    let (key, value) = if numerics.precision.is_low() {
        ("precision", numerics.precision.name())
    } else if numerics.tf32 {
        ("tf32", "on")
    } else {
        return Ok(());
    };
    let at = fields.get(key).map_or(fields.at, |node| node.at);
    Err(document.fault(
        at,
        format!("`coati.{key}: {value}` with `devices: cpu`: the kernels for CPUs compute in float32"),
        Some(format!("leave `{key}` out, or `devices`")),
    ))
}

/// A switch that changes nothing.
pub(super) fn warning(numerics: Numerics) -> Option<String> {
    (numerics.tf32 && numerics.precision.is_low()).then(|| {
        format!(
            "`coati.tf32` has no effect beside `precision: {0}`: no product is left in float32 when convolutions are in {0}",
            numerics.precision
        )
    })
}
