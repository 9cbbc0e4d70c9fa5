//! What the environment sets beside credentials.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

/// Bytes of one request when much is read or written.
pub(crate) const PART_BYTES: usize = 8 << 20;
/// Parts of one upload that are on their way at once.
pub(crate) const PARTS_IN_FLIGHT: usize = 4;

/// Read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `COATI_STORAGE_RETRY_SECONDS`: how long one request is tried for (120).
    pub retry_for: Duration,
    /// `COATI_STORAGE_CONCURRENCY`: requests to a bucket at a time, at most (64).
    pub concurrency: usize,
    /// `COATI_CONDITIONAL_PUT=off`: look first where a server knows no conditional writes.
    pub conditional_put: bool,
    /// `COATI_CACHE_DIR`: a local folder for blocks that were read.
    pub cache: Option<PathBuf>,
    /// `COATI_CACHE_BYTES`: its limit (10 GiB; `K`, `M`, `G`, `T` for powers of 1024).
    pub cache_bytes: u64,
}

pub(crate) static SETTINGS: LazyLock<Settings> = LazyLock::new(|| Settings::read(&|name| std::env::var(name).ok()));

impl Settings {
    pub(crate) fn read(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            retry_for: Duration::from_secs(number(variable, "COATI_STORAGE_RETRY_SECONDS", 120)),
            concurrency: number(variable, "COATI_STORAGE_CONCURRENCY", 64).clamp(1, 1024),
            conditional_put: variable("COATI_CONDITIONAL_PUT").as_deref() != Some("off"),
            cache: variable("COATI_CACHE_DIR")
                .filter(|folder| !folder.is_empty())
                .map(PathBuf::from),
            cache_bytes: variable("COATI_CACHE_BYTES").map_or(10 << 30, |text| {
                bytes(&text).unwrap_or_else(|| {
                    tracing::warn!(
                        value = text,
                        "COATI_CACHE_BYTES is no number of bytes such as 20G; 10G is used"
                    );
                    10 << 30
                })
            }),
        }
    }
}

fn number<T: FromStr + std::fmt::Display>(variable: &dyn Fn(&str) -> Option<String>, name: &str, default: T) -> T {
    match variable(name) {
        None => default,
        Some(text) => text.trim().parse().unwrap_or_else(|_| {
            tracing::warn!(value = text, "{name} is no number; {default} is used");
            default
        }),
    }
}

/// `20G`
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let text = text.strip_suffix(['B', 'b']).unwrap_or(text);
    let text = text.strip_suffix('i').unwrap_or(text);
    let (digits, shift) = match text.chars().last()?.to_ascii_uppercase() {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_people_write_them() {
        let found = ["20G", "20GiB", "512 M", "7", "1tb", "", "x", "G"].map(bytes);
        let right = [
            Some(20 << 30),
            Some(20 << 30),
            Some(512 << 20),
            Some(7),
            Some(1 << 40),
            None,
            None,
            None,
        ];
        assert_eq!(found, right);
    }

    #[test]
    fn nonsense_is_the_default() {
        let read = |name: &str| match name {
            "COATI_STORAGE_CONCURRENCY" => Some("many".to_owned()),
            "COATI_CONDITIONAL_PUT" => Some("off".to_owned()),
            _ => None,
        };
        let found = Settings::read(&read);
        assert_eq!(
            (found.concurrency, found.conditional_put, found.cache),
            (64, false, None)
        );
    }
}
