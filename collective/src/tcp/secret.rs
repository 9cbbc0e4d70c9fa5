//! What ranks share so that strangers stay outside, and how they show that they have it without sending it.

use std::fmt;

use rand::RngCore as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// A job's secret: 256 random bits, never shown. `coati_common::rpc`'s token in its hexadecimal form is one.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Of 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From 64 hexadecimal digits; nothing where it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Some(Self(bytes))
    }

    /// What one end of a connection shows: HMAC-SHA-256 (RFC 2104) of its role and both ends' nonces.
    pub(super) fn proof(&self, role: u8, own: &[u8; 32], other: &[u8; 32]) -> [u8; 32] {
        let pad = |with: u8| {
            let mut block = [with; 64];
            for (byte, key) in block.iter_mut().zip(self.0) {
                *byte ^= key;
            }
            Sha256::new().chain_update(block)
        };
        let inner = pad(0x36)
            .chain_update([role])
            .chain_update(own)
            .chain_update(other)
            .finalize();
        pad(0x5c).chain_update(inner).finalize().into()
    }
}

/// Takes as long whatever differs.
pub(super) fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// One that nobody has had before.
pub(super) fn nonce() -> [u8; 32] {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_depends_on_everything() {
        let (a, b) = ([1; 32], [2; 32]);
        let secret = Secret::parse(&"07".repeat(32)).unwrap();
        let proof = secret.proof(0, &a, &b);
        assert!(equal(&proof, &Secret::new([7; 32]).proof(0, &a, &b)));
        for other in [
            secret.proof(1, &a, &b),
            secret.proof(0, &b, &a),
            secret.proof(0, &a, &a),
            Secret::new([8; 32]).proof(0, &a, &b),
        ] {
            assert!(!equal(&proof, &other));
        }
        assert!(Secret::parse("07").is_none() && Secret::parse(&"g".repeat(64)).is_none());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}
