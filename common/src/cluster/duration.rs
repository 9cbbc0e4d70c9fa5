//! Durations as people write them: `7200s`, `1h30m`, `250ms`.

use std::fmt::Write;
use std::time::Duration;

const UNITS: [(&str, f64); 9] = [
    ("ms", 1e-3),
    ("s", 1.0),
    ("sec", 1.0),
    ("m", 60.0),
    ("min", 60.0),
    ("h", 3600.0),
    ("hour", 3600.0),
    ("d", 86_400.0),
    ("day", 86_400.0),
];

/// Longest duration accepted; beyond it adding to a clock could overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What a duration may look like, for error messages.
pub const EXPECTED: &str = "a number with a unit (ms, s, m, h or d), such as `90s`, `1h30m` or `250ms`";

/// Reads `7200s`, `3.5s`, `1h30m`, `2 h 5 min`. Zero needs a unit too (`0s`).
///
/// Returns `None` for anything else: no unit, an unknown unit, a sign, more than ten years.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(rest.len());
        let amount: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?.trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = rest.get(..letters)?;
        rest = rest.get(letters..)?.trim_start();
        let (_, seconds) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(Duration::try_from_secs_f64(amount * seconds).ok()?)?;
        if total > LONGEST {
            return None;
        }
    }
    Some(total)
}

/// Writes a duration in the shortest exact form that [`parse`] reads: `90s` is `1m30s`, zero is `0s`.
pub fn format(duration: Duration) -> String {
    let (mut seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    if seconds == 0 && millis == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    for (unit, size) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if seconds >= size {
            let _ = write!(out, "{}{unit}", seconds / size);
            seconds %= size;
        }
    }
    if millis > 0 {
        let _ = write!(out, "{millis}ms");
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{format, parse};

    #[test]
    fn usual_forms_are_read() {
        assert_eq!(parse("7200s"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("3.5s"), Some(Duration::from_millis(3500)));
        assert_eq!(parse("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse(" 2 h 5 min "), Some(Duration::from_secs(7500)));
        assert_eq!(parse("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse("7d"), Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(parse("0s"), Some(Duration::ZERO));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "7200",
            "s",
            "-1s",
            "1 fortnight",
            "1h30",
            "1.2.3s",
            "1e9s",
            "99999999999d",
            "1s!",
            "é",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn written_durations_are_read_back() {
        for (millis, text) in [
            (0, "0s"),
            (90_000, "1m30s"),
            (5_400_000, "1h30m"),
            (250, "250ms"),
            (86_401_001, "1d1s1ms"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(format(duration), text);
            assert_eq!(parse(text), Some(duration));
        }
    }
}
