//! Shorter forms of tensors: bfloat16, and the largest elements alone.

use coati_proto::coati::v1;

/// Bytes of an element of [`v1::Encoding::Topk`]: its index and its value.
pub(crate) const PAIR_BYTES: usize = 8;

/// How gradients travel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Gradients {
    /// As they are.
    #[default]
    Float32,
    /// The upper half of each float32, rounded to the nearest.
    Bfloat16,
    /// The share of largest elements; the replica keeps what is left for its next contribution (error feedback).
    TopK {
        /// Above 0, at most 1.
        fraction: f64,
    },
}

/// What travels in a shorter form than float32. Batch statistics and moving averages never do: they are few, and errors
/// in them do not average out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Compression {
    /// From replicas.
    pub gradients: Gradients,
    /// Trainable variables reach replicas as bfloat16.
    pub bf16_weights: bool,
}

impl From<&v1::Compression> for Compression {
    fn from(wire: &v1::Compression) -> Self {
        Self {
            gradients: match wire.gradients() {
                v1::Encoding::Float32 => Gradients::Float32,
                v1::Encoding::Bfloat16 => Gradients::Bfloat16,
                v1::Encoding::Topk => Gradients::TopK {
                    fraction: wire.topk_fraction,
                },
            },
            bf16_weights: wire.weights() == v1::Encoding::Bfloat16,
        }
    }
}

fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    // What is finite stays so.
    rounded - u16::from(rounded & 0x7fff == 0x7f80 && value.is_finite())
}

/// Appends the values as bfloat16.
pub(crate) fn write_bf16(values: &[f32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|&value| to_bf16(value).to_le_bytes()));
}

/// As many values as `bytes` holds, at most as many as `out` takes.
pub(crate) fn from_bf16(bytes: &[u8], out: &mut [f32]) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// The `keep` largest elements by magnitude, as pairs in ascending order of their indices; equal ones by their order. What
/// is sent is set to zero: the rest stays for the next time.
pub(crate) fn topk_pairs(values: &mut [f32], keep: usize, out: &mut Vec<u8>) {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    let keep = keep.min(order.len());
    if keep > 0 && keep < order.len() {
        // NaN is the largest of all: it is sent, and refused by name.
        let magnitude = |index: u32| values[index as usize].to_bits() & 0x7fff_ffff;
        order.select_nth_unstable_by_key(keep - 1, |&index| (std::cmp::Reverse(magnitude(index)), index));
    }
    order.truncate(keep);
    order.sort_unstable();
    for index in order {
        let value = std::mem::take(&mut values[index as usize]);
        out.extend_from_slice(&index.to_le_bytes());
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// Zeros, and the pairs in their places; says what is wrong with them.
pub(crate) fn unpack_topk(pairs: &[u8], out: &mut [f32]) -> Result<(), String> {
    out.fill(0.0);
    let mut next = 0;
    for pair in pairs.as_chunks::<PAIR_BYTES>().0 {
        let [a, b, c, d, value @ ..] = *pair;
        let index = u32::from_le_bytes([a, b, c, d]) as usize;
        let elements = out.len();
        let place = out
            .get_mut(index)
            .filter(|_| index >= next)
            .ok_or_else(|| format!("index {index} where one from {next} to {elements} (exclusive) may stand"))?;
        *place = f32::from_le_bytes(value);
        next = index + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even_and_keeps_what_is_finite() {
        let back = |value: f32| {
            let (mut bytes, mut out) = (Vec::new(), [0.0]);
            write_bf16(&[value], &mut bytes);
            from_bf16(&bytes, &mut out);
            out[0]
        };
        for (value, expected) in [
            (0.0, 0.0),
            (1.0, 1.0),
            (-2.5, -2.5),
            // Half way between 1 and the next one: to the even one, each time.
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (1.0 + 1.1 / 256.0, 1.0 + 2.0 / 256.0),
            (f32::MAX, f32::from_bits(0x7f7f_0000)),
            (f32::MIN, f32::from_bits(0xff7f_0000)),
            (f32::INFINITY, f32::INFINITY),
        ] {
            assert_eq!(back(value), expected, "{value}");
        }
        assert!(back(f32::NAN).is_nan());
        assert!(back(f32::from_bits(0x7f80_0001)).is_nan(), "not infinity");
    }

    #[test]
    fn the_largest_are_sent_and_the_rest_stays() {
        let mut values = [0.5, -3.0, 0.0, 2.0, -2.0, 1.0];
        let mut pairs = Vec::new();
        topk_pairs(&mut values, 2, &mut pairs);
        assert_eq!(values, [0.5, 0.0, 0.0, 0.0, -2.0, 1.0]);
        let mut out = [9.0; 6];
        unpack_topk(&pairs, &mut out).unwrap();
        assert_eq!(out, [0.0, -3.0, 0.0, 2.0, 0.0, 0.0]);
        let (mut all, mut pairs) = (vec![1.0, f32::NAN], Vec::new());
        topk_pairs(&mut all, 1, &mut pairs);
        assert!(f32::from_le_bytes([pairs[4], pairs[5], pairs[6], pairs[7]]).is_nan());
    }

    #[test]
    fn pairs_out_of_order_or_beyond_the_chunk_are_refused() {
        let pair = |index: u32| [index.to_le_bytes(), 1f32.to_le_bytes()].concat();
        for indices in [[1, 1], [2, 1], [0, 4]] {
            let error = unpack_topk(&indices.map(pair).concat(), &mut [0.0; 4]).unwrap_err();
            assert!(error.contains(&format!("index {}", indices[1])), "{error}");
        }
    }
}
