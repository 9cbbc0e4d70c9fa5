//! AWS profiles: `~/.aws/credentials` and `~/.aws/config`, as `aws configure` writes them.

use std::collections::BTreeMap;

/// The settings of a profile.
pub(crate) type Profile = BTreeMap<String, String>;

/// What `credentials` and `config` say of a profile; none where neither names it. The first counts where both say something.
pub(crate) fn find(name: &str, credentials: &str, config: &str) -> Option<Profile> {
    let in_config = if name == "default" {
        sections(config)
            .remove("default")
            .or_else(|| sections(config).remove("profile default"))
    } else {
        sections(config).remove(&format!("profile {name}"))
    };
    let in_credentials = sections(credentials).remove(name);
    if in_config.is_none() && in_credentials.is_none() {
        return None;
    }
    let mut found = in_config.unwrap_or_default();
    found.extend(in_credentials.unwrap_or_default());
    Some(found)
}

fn sections(text: &str) -> BTreeMap<String, Profile> {
    let mut sections: BTreeMap<String, Profile> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        let indented = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let name = name.0.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(name.clone()).or_default();
            current = Some(name);
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !indented)
            && let Some(section) = current.as_ref().and_then(|name| sections.get_mut(name))
        {
            // Indented lines are settings of a setting (`s3 =`), of which none matters here.
            section.insert(key.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str =
        "[default]\naws_access_key_id = A\naws_secret_access_key=B = C\n# x\n[work]\naws_access_key_id=W\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\n[profile  work]\nregion=us-east-2\nendpoint_url = http://s\ns3 =\n  endpoint_url = http://nested\n";

    #[test]
    fn both_files_make_a_profile() {
        let found = find("default", CREDENTIALS, CONFIG).unwrap();
        assert_eq!(found["aws_secret_access_key"], "B = C");
        assert_eq!(found["region"], "eu-west-1");
        let work = find("work", CREDENTIALS, CONFIG).unwrap();
        assert_eq!(
            (work["aws_access_key_id"].as_str(), work["endpoint_url"].as_str()),
            ("W", "http://s")
        );
        assert_eq!(find("other", CREDENTIALS, CONFIG), None);
        assert_eq!(find("default", "", ""), None);
    }
}
