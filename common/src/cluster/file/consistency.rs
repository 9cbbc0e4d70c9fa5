//! `coati.consistency`: how far replicas may drift apart, and what is done about it.

use super::coati::choice;
use crate::cluster::plan::{Consistency, DelayCompensation, DelayCompensationKind};
use crate::cluster::yaml::{Document, Fault, Node};

const KEYS: [&str; 4] = [
    "max_staleness",
    "scale_learning_rate",
    "delay_compensation",
    "delay_compensation_lambda",
];

/// `elsewhere` names keys that belong to the pipeline configuration.
pub(super) fn read(document: &Document, node: &Node, elsewhere: &[(&str, &[&str])]) -> Result<Consistency, Fault> {
    let fields = document.fields(node, "coati.consistency", &KEYS, elsewhere)?;
    let mut consistency = Consistency::default();
    if let Some(node) = fields.get("max_staleness") {
        let value = document.integer(node, "coati.consistency.max_staleness", 0, 1_000_000)?;
        consistency.max_staleness = u64::try_from(value).ok();
    }
    if let Some(node) = fields.get("scale_learning_rate") {
        consistency.scale_learning_rate = document.boolean(node, "coati.consistency.scale_learning_rate")?;
    }
    let kind = match fields.get("delay_compensation") {
        Some(node) => kind(document, node)?,
        None => None,
    };
    let lambda = fields
        .get("delay_compensation_lambda")
        .map(|node| document.positive_number(node, "coati.consistency.delay_compensation_lambda"))
        .transpose()?;
    consistency.delay_compensation = match (kind, lambda) {
        (Some(kind), lambda) => Some(DelayCompensation {
            kind,
            lambda: lambda.unwrap_or(kind.default_lambda()),
        }),
        (None, None) => None,
        (None, Some(_)) => {
            return Err(document.fault(
                fields.key_position("delay_compensation_lambda"),
                "`delay_compensation_lambda` is set, but delays are not compensated".to_owned(),
                Some("add `delay_compensation: constant` (or `adaptive`), or leave the lambda out".to_owned()),
            ));
        }
    };
    Ok(consistency)
}

fn kind(document: &Document, node: &Node) -> Result<Option<DelayCompensationKind>, Fault> {
    let key = "coati.consistency.delay_compensation";
    let value = document.text(node, key)?;
    match value.as_str() {
        "none" => Ok(None),
        "constant" => Ok(Some(DelayCompensationKind::Constant)),
        "adaptive" => Ok(Some(DelayCompensationKind::Adaptive)),
        _ => Err(choice(document, node, key, &value, &["none", "constant", "adaptive"])),
    }
}
