//! `coati.security` and `coati.on_nan`.

use std::path::PathBuf;

use super::coati::choice;
use crate::cluster::security::{OnNan, Security};
use crate::cluster::yaml::{Document, Fault, Fields, Node, Value};
use crate::rpc::security::OwnCertificate;

const KEYS: [&str; 5] = ["tls", "ca", "cert", "key", "token_file"];

pub(super) fn read(document: &Document, node: &Node) -> Result<Security, Fault> {
    if !matches!(node.value, Value::Map(_)) {
        return Err(document.fault(
            node.at,
            "`coati.security` must be a mapping".to_owned(),
            Some("write `security: {tls: off}` to switch TLS off, or leave it out".to_owned()),
        ));
    }
    let fields = document.fields(node, "coati.security", &KEYS, &[])?;
    let mut security = Security::default();
    if let Some(node) = fields.get("tls") {
        security.tls = switch(document, node, "coati.security.tls")?;
    }
    let path = |name: &str| {
        let node = fields.get(name);
        node.map(|node| {
            document
                .text(node, &format!("coati.security.{name}"))
                .map(PathBuf::from)
        })
        .transpose()
    };
    security.token_file = path("token_file")?;
    security.own = match (path("ca")?, path("cert")?, path("key")?) {
        (Some(ca), Some(cert), Some(key)) => Some(OwnCertificate { ca, cert, key }),
        (None, None, None) => None,
        (ca, cert, key) => {
            let given = [("ca", ca), ("cert", cert), ("key", key)];
            return Err(incomplete(document, &fields, &given));
        }
    };
    Ok(security)
}

fn incomplete(document: &Document, fields: &Fields<'_>, given: &[(&str, Option<PathBuf>)]) -> Fault {
    let names = |wanted: bool| -> Vec<&str> {
        let with = given.iter().filter(|(_, path)| path.is_some() == wanted);
        with.map(|(name, _)| *name).collect()
    };
    let at = names(true).first().map_or(fields.at, |name| fields.key_position(name));
    let message = format!(
        "`coati.security` has `{}` without `{}`",
        names(true).join("` and `"),
        names(false).join("` and `")
    );
    let hint =
        "give all three (authority, certificate, private key, each a PEM file), or none for files that coati makes";
    document.fault(at, message, Some(hint.to_owned()))
}

/// `on` and `off` are booleans in older YAML and texts in newer one.
pub(super) fn switch(document: &Document, node: &Node, key: &str) -> Result<bool, Fault> {
    if let Value::Bool(value) = node.value {
        return Ok(value);
    }
    let value = document.text(node, key)?;
    match value.as_str() {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(choice(document, node, key, &value, &["on", "off"])),
    }
}

pub(super) fn on_nan(document: &Document, node: &Node, key: &str) -> Result<OnNan, Fault> {
    let value = document.text(node, key)?;
    match value.as_str() {
        "stop" => Ok(OnNan::Stop),
        "skip" => Ok(OnNan::Skip),
        "apply" => Ok(OnNan::Apply),
        _ => Err(choice(document, node, key, &value, &["stop", "skip", "apply"])),
    }
}
