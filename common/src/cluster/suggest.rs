//! The nearest known name, for `did you mean`.

/// Similarity below which a suggestion would only confuse.
const THRESHOLD: f64 = 0.62;

/// The candidate most like `written`, ignoring case, if one is near enough.
pub fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = written.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(&wanted, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(score, _)| *score >= THRESHOLD)
        // On a tie the first candidate wins, so that the answer does not depend on anything but the list.
        .fold(None, |best: Option<(f64, &str)>, (score, candidate)| match best {
            Some((top, _)) if top >= score => best,
            _ => Some((score, candidate)),
        })
        .map(|(_, candidate)| candidate)
}

/// `camelCase` as `snake_case`; a name that is snake case already stays what it is.
pub(crate) fn snake_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
            out.push(c.to_ascii_lowercase());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{nearest, snake_case};

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = ["workerCount", "workerType", "workerConfig"];
        assert_eq!(nearest("workerCout", names), Some("workerCount"));
        assert_eq!(nearest("WORKERTYPE", names), Some("workerType"));
        assert_eq!(nearest("region", names), None);
        assert_eq!(nearest("", names), None);
    }

    #[test]
    fn both_spellings_meet_in_snake_case() {
        assert_eq!(snake_case("useChiefInTfConfig"), "use_chief_in_tf_config");
        assert_eq!(snake_case("use_chief_in_tf_config"), "use_chief_in_tf_config");
    }
}
