//! `coati.compression`: what travels in a shorter form.

use super::coati::choice;
use crate::cluster::plan::{Compression, GradientCompression, WeightCompression};
use crate::cluster::yaml::{Document, Fault, Node, Value};

const KEYS: [&str; 3] = ["gradients", "weights", "topk_fraction"];

/// `none` (also `false`), or a section.
pub(super) fn read(document: &Document, node: &Node, key: &str) -> Result<Compression, Fault> {
    let mut compression = Compression::default();
    match &node.value {
        Value::Bool(false) => return Ok(compression),
        Value::Map(_) => {}
        _ => {
            let value = document.text(node, key)?;
            return if value == "none" {
                Ok(compression)
            } else {
                Err(document.fault(
                    node.at,
                    format!("unknown value `{value}` of `{key}`"),
                    Some("write `none`, or a section such as {gradients: bf16, weights: bf16}".to_owned()),
                ))
            };
        }
    }
    let fields = document.fields(node, key, &KEYS, &[])?;
    for name in fields.names() {
        let Some(node) = fields.get(name) else { continue };
        let key = format!("{key}.{name}");
        match name {
            "gradients" => {
                let value = document.text(node, &key)?;
                compression.gradients = match value.as_str() {
                    "none" => GradientCompression::None,
                    "bf16" => GradientCompression::Bf16,
                    "topk" => GradientCompression::TopK,
                    _ => return Err(choice(document, node, &key, &value, &["none", "bf16", "topk"])),
                };
            }
            "weights" => {
                let value = document.text(node, &key)?;
                compression.weights = match value.as_str() {
                    "none" => WeightCompression::None,
                    "bf16" => WeightCompression::Bf16,
                    _ => return Err(choice(document, node, &key, &value, &["none", "bf16"])),
                };
            }
            _ => {
                let text = document.text(node, &key)?;
                compression.topk_fraction = text
                    .parse()
                    .ok()
                    .filter(|&share: &f64| share > 0.0 && share <= 1.0)
                    .ok_or_else(|| {
                        let message = format!("`{key}` must be above 0 and at most 1, found `{text}`");
                        document.fault(node.at, message, Some("0.01 sends one element of a hundred".to_owned()))
                    })?;
            }
        }
    }
    if let Some(node) = fields.get("topk_fraction")
        && compression.gradients != GradientCompression::TopK
    {
        let message = format!("`{key}.topk_fraction` without `gradients: topk`");
        return Err(document.fault(
            node.at,
            message,
            Some("add `gradients: topk`, or leave it out".to_owned()),
        ));
    }
    Ok(compression)
}
