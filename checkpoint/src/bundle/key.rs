//! Keys of slices: TensorFlow's `checkpoint::EncodeTensorNameSlice`, which is built of `strings::OrderedCode`, an
//! encoding whose bytewise order is the order of what it encodes.

/// One dimension of a slice as stored: start and length; a length of -1 stands for the whole dimension.
pub(super) type StoredExtent = (i64, i64);

/// The key under which the entry of a slice of `name` stands.
pub(super) fn encode(name: &str, extents: &[StoredExtent]) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 8 + extents.len() * 4);
    // The leading 0 sorts slices after the header (the empty key) and before every name.
    push_unsigned(&mut key, 0);
    push_string(&mut key, name.as_bytes());
    push_unsigned(&mut key, extents.len() as u64);
    for &(start, length) in extents {
        push_signed(&mut key, start);
        push_signed(&mut key, length);
    }
    key
}

/// `OrderedCode::WriteNumIncreasing`: number of bytes, then the value in big endian without leading zeros.
fn push_unsigned(key: &mut Vec<u8>, value: u64) {
    let bytes = value.to_be_bytes();
    let used = 8 - value.leading_zeros() as usize / 8;
    key.push(used as u8);
    key.extend_from_slice(&bytes[8 - used..]);
}

/// `OrderedCode::WriteString`: 00 and FF are escaped, 00 01 ends it.
fn push_string(key: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        key.push(byte);
        match byte {
            0x00 => key.push(0xff),
            0xff => key.push(0x00),
            _ => {}
        }
    }
    key.extend_from_slice(&[0x00, 0x01]);
}

/// `OrderedCode::WriteSignedNumIncreasing`: two's complement in big endian, as few bytes as do (7 bits a byte); the number
/// of bytes is written in unary into the leading bits, inverted for negative values.
fn push_signed(key: &mut Vec<u8>, value: i64) {
    let magnitude = if value < 0 { !value } else { value } as u64;
    let bits = 64 - magnitude.leading_zeros() as usize;
    let length = bits / 7 + 1;
    let sign = if value < 0 { 0xff } else { 0x00 };
    let mut bytes = [sign; 10];
    bytes[2..].copy_from_slice(&value.to_be_bytes());
    let bytes = &mut bytes[10 - length..];
    // `length` leading ones, spread over the first two bytes.
    let ones = !(u16::MAX.checked_shr(length as u32).unwrap_or(0));
    let [high, low] = ones.to_be_bytes();
    bytes[0] ^= high;
    if let Some(second) = bytes.get_mut(1) {
        *second ^= low;
    }
    key.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signed(value: i64) -> Vec<u8> {
        let mut key = Vec::new();
        push_signed(&mut key, value);
        key
    }

    #[test]
    fn keys_are_tensorflows() {
        // From an index that TensorFlow 2.15 wrote.
        let columns = b"\x00columns\x00\x01\x01\x02\x80\x83\xc0\x43\xc0\x43";
        assert_eq!(encode("columns", &[(0, 3), (67, 67)]), columns);
        let columns = b"\x00columns\x00\x01\x01\x02\x80\x83\xc0\x86\xc0\x42";
        assert_eq!(encode("columns", &[(0, 3), (134, 66)]), columns);
    }

    #[test]
    fn numbers_are_ordered_codes() {
        assert_eq!(signed(-1), [0x7f]);
        assert_eq!(signed(63), [0xbf]);
        assert_eq!(signed(64), [0xc0, 0x40]);
        assert_eq!(signed(-64), [0x40]);
        assert_eq!(signed(-65), [0x3f, 0xbf]);
        assert_eq!(signed(1 << 20), [0xf0, 0x10, 0x00, 0x00]);
        assert_eq!(
            signed(i64::MAX),
            [0xff, 0xc0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]
        );
        let mut key = Vec::new();
        push_unsigned(&mut key, 0);
        push_unsigned(&mut key, 300);
        assert_eq!(key, [0, 2, 1, 44]);
        let mut key = Vec::new();
        push_string(&mut key, b"a\0\xff");
        assert_eq!(key, b"a\x00\xff\xff\x00\x00\x01");
    }

    proptest! {
        #[test]
        fn order_is_kept(a in any::<i64>(), b in any::<i64>(), shift in 0u32..63) {
            let (a, b) = (a >> shift, b >> shift);
            prop_assert_eq!(signed(a).cmp(&signed(b)), a.cmp(&b));
        }
    }
}
