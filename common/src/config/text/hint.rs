//! Nearest known names.

use prost_reflect::MessageDescriptor;

/// The known name most like `name`, if it is alike enough to be a slip.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(&lower, &candidate.to_ascii_lowercase()),
                candidate,
            )
        })
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|(a, left), (b, right)| a.total_cmp(b).then_with(|| right.cmp(left)))
        .map(|(_, candidate)| candidate)
}

/// Fields that older versions of the schema had, and what replaced them.
const GONE: &[(&str, &str, &str)] = &[(
    "SsdFeatureExtractor",
    "batch_norm_trainable",
    "it was replaced by `conv_hyperparams { batch_norm { train: … } }`",
)];

/// What an unknown field name may have been meant to be.
pub(super) fn unknown_field(name: &str, message: &MessageDescriptor) -> Option<String> {
    if let Some((.., hint)) = GONE
        .iter()
        .find(|(owner, field, _)| *owner == message.name() && *field == name)
    {
        return Some((*hint).to_owned());
    }
    let fields: Vec<_> = message.fields().collect();
    let near = nearest(name, fields.iter().map(prost_reflect::FieldDescriptor::name));
    if let Some(near) = near.filter(|near| strsim::damerau_levenshtein(name, near) <= 2) {
        return Some(format!("did you mean `{near}`?"));
    }
    let elsewhere = owners(name, message);
    if !elsewhere.is_empty() {
        return Some(format!("`{name}` belongs in {}", elsewhere.join(" or ")));
    }
    if let Some(near) = near {
        return Some(format!("did you mean `{near}`?"));
    }
    match fields.len() {
        0 => Some(format!("`{}` has no fields", message.name())),
        1..=12 => {
            let names: Vec<_> = fields.iter().map(|field| format!("`{}`", field.name())).collect();
            Some(format!("`{}` has {}", message.name(), names.join(", ")))
        }
        _ => None,
    }
}

/// Messages of the same package that have a field of this name; empty if there are many.
fn owners(name: &str, message: &MessageDescriptor) -> Vec<String> {
    let package = message.package_name().to_owned();
    let owners: Vec<_> = message
        .parent_pool()
        .all_messages()
        .filter(|other| other.package_name() == package && !other.is_map_entry())
        .filter(|other| other.get_field_by_name(name).is_some())
        .map(|other| format!("`{}`", other.name()))
        .collect();
    if owners.len() <= 3 { owners } else { Vec::new() }
}
