use std::fmt;

use rand::RngCore as _;
use subtle::ConstantTimeEq as _;

const BYTES: usize = 32;

/// A job's secret: 256 random bits, written as 64 hexadecimal digits. Compared in constant time, never shown.
#[derive(Clone)]
pub struct Token([u8; BYTES]);

impl Token {
    /// One that nobody has had before.
    pub fn generate() -> Self {
        let mut bytes = [0; BYTES];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// From 64 hexadecimal digits; nothing where it is something else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: &[u8; 2 * BYTES] = text.try_into().ok()?;
        let mut bytes = [0; BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Some(Self(bytes))
    }

    /// As it travels and stands in its file.
    pub fn text(&self) -> String {
        crate::hex(&self.0)
    }

    /// Whether both are the same; takes as long either way.
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_its_text_and_differs_from_every_other() {
        let (token, other) = (Token::generate(), Token::generate());
        let read = Token::parse(token.text().as_bytes()).unwrap();
        assert!(read.is(&token) && !other.is(&token));
        let mut last = token.text();
        last.replace_range(63.., if last.ends_with('0') { "1" } else { "0" });
        assert!(!Token::parse(last.as_bytes()).unwrap().is(&token), "each digit counts");
        for bad in ["", "12", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65)] {
            assert!(Token::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
