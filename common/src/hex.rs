//! Bytes as text.

use std::fmt::Write as _;

/// Two lower-case digits a byte, as digests are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    #[test]
    fn leading_zeros_stay() {
        assert_eq!(super::hex(&[0, 10, 255]), "000aff");
    }
}
