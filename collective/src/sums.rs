//! The arithmetic: sums in rank order and bfloat16. Plain loops over slices of equal length, which compilers turn into SIMD.

use crate::Wire;

/// Most bytes that a rank may give to [`crate::Communicator::all_gather`].
pub const GATHER_LIMIT: usize = 1 << 20;

/// A block that stays in the first-level cache while all ranks' values are added to it.
const BLOCK: usize = 2048;

/// What [`crate::Communicator::all_reduce_sum`] computes on CPUs, of everybody's values in rank order: `((x0 + x1) + x2) + …` in
/// float32. With [`Wire::Bf16`] each `x` is rounded to bfloat16 first, and so is the sum afterwards.
///
/// # Panics
/// Where lengths differ.
pub fn reference(inputs: &[Vec<f32>], wire: Wire) -> Vec<f32> {
    let round = |value: f32| match wire {
        Wire::F32 => value,
        Wire::Bf16 => from_bf16(to_bf16(value)),
    };
    let mut sums: Vec<f32> = inputs
        .first()
        .map(|first| first.iter().map(|&x| round(x)).collect())
        .unwrap_or_default();
    for input in inputs.iter().skip(1) {
        assert_eq!(input.len(), sums.len(), "ranks hold equal lengths");
        for (sum, &value) in sums.iter_mut().zip(input) {
            *sum += round(value);
        }
    }
    sums.into_iter().map(round).collect()
}

/// To nearest, ties to even; NaN stays NaN.
#[inline]
pub fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 0x40;
    (if value.is_nan() { nan } else { rounded }) as u16
}

/// Exact.
#[inline]
pub fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Rounds `from` into `to`.
pub(crate) fn encode(from: &[f32], to: &mut [u16]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = to_bf16(from);
    }
}

/// Widens `from` into `to`.
pub(crate) fn decode(from: &[u16], to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = from_bf16(from);
    }
}

/// Adds up `world` ranks' values in rank order into the own ones, `mine`, which count as rank `rank`'s. `other(r)` are those of
/// rank `r`, as long as `mine`.
pub(crate) fn add_f32<'a>(mine: &mut [f32], rank: usize, world: usize, other: impl Fn(usize) -> &'a [f32]) {
    add_f32_to(mine, &mut [], rank, world, other);
}

/// As [`add_f32`]; the sums go to `out` as well, unless it is empty: while they are in the cache.
pub(crate) fn add_f32_to<'a>(
    mine: &mut [f32],
    out: &mut [f32],
    rank: usize,
    world: usize,
    other: impl Fn(usize) -> &'a [f32],
) {
    let mut sums = [0.0_f32; BLOCK];
    let count = mine.len();
    for start in (0..count).step_by(BLOCK) {
        let at = start..(start + BLOCK).min(count);
        let mine = &mut mine[at.clone()];
        if world == 2 {
            // A sum of two has no order.
            for (mine, &other) in mine.iter_mut().zip(&other(1 - rank)[at.clone()]) {
                *mine += other;
            }
        } else {
            let sums = &mut sums[..mine.len()];
            for from in 0..world {
                let values = if from == rank { &*mine } else { &other(from)[at.clone()] };
                if from == 0 {
                    sums.copy_from_slice(values);
                } else {
                    for (sum, &value) in sums.iter_mut().zip(values) {
                        *sum += value;
                    }
                }
            }
            mine.copy_from_slice(sums);
        }
        if !out.is_empty() {
            out[at].copy_from_slice(mine);
        }
    }
}

/// As [`add_f32`] with [`Wire::Bf16`]: the rounded sum goes to `mine` and, as it travels, to `out`.
pub(crate) fn add_bf16<'a>(
    mine: &mut [f32],
    out: &mut [u16],
    rank: usize,
    world: usize,
    other: impl Fn(usize) -> &'a [u16],
) {
    encode(mine, out);
    add_halves(out, rank, world, other);
    decode(out, mine);
}

/// As [`add_f32`] for what is rounded already: the rounded sum, with float32 in between.
pub(crate) fn add_halves<'a>(mine: &mut [u16], rank: usize, world: usize, other: impl Fn(usize) -> &'a [u16]) {
    let mut sums = [0.0_f32; BLOCK];
    for (index, mine) in mine.chunks_mut(BLOCK).enumerate() {
        let at = index * BLOCK..index * BLOCK + mine.len();
        let sums = &mut sums[..mine.len()];
        for from in 0..world {
            let values = if from == rank { &*mine } else { &other(from)[at.clone()] };
            if from == 0 {
                decode(values, sums);
            } else {
                for (sum, &value) in sums.iter_mut().zip(values) {
                    *sum += from_bf16(value);
                }
            }
        }
        encode(sums, mine);
    }
}

/// Elements added up at a time where all ranks' values are at hand: a block of each stays in the first-level cache until the sums are
/// written over them.
const DIRECT: usize = 1024;

/// Adds up what lies at `places` (one a rank, in rank order) and writes the sums over all of them.
///
/// # Safety
/// Each place holds `count` elements, no two overlap, and nobody else is at them.
pub(crate) unsafe fn add_in_place(places: &[*mut f32], count: usize, wire: Wire) {
    let mut sums = [0.0_f32; DIRECT];
    for start in (0..count).step_by(DIRECT) {
        let length = DIRECT.min(count - start);
        let sums = &mut sums[..length];
        for (rank, place) in places.iter().enumerate() {
            // SAFETY: the caller's promise.
            let values = unsafe { std::slice::from_raw_parts(place.add(start).cast_const(), length) };
            match (rank, wire) {
                (0, Wire::F32) => sums.copy_from_slice(values),
                (0, Wire::Bf16) => sums.iter_mut().zip(values).for_each(|(sum, &x)| *sum = rounded(x)),
                (_, Wire::F32) => sums.iter_mut().zip(values).for_each(|(sum, &x)| *sum += x),
                (_, Wire::Bf16) => sums.iter_mut().zip(values).for_each(|(sum, &x)| *sum += rounded(x)),
            }
        }
        if wire == Wire::Bf16 {
            for sum in sums.iter_mut() {
                *sum = rounded(*sum);
            }
        }
        for place in places {
            // SAFETY: as above.
            unsafe { std::slice::from_raw_parts_mut(place.add(start), length) }.copy_from_slice(sums);
        }
    }
}

#[inline]
fn rounded(value: f32) -> f32 {
    from_bf16(to_bf16(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(world: usize, count: usize) -> Vec<Vec<f32>> {
        let value = |rank: usize, i: usize| {
            let mixed = ((i * 31 + rank * 17 + 1) as u32).wrapping_mul(0x9E37_79B9);
            (mixed as i32 as f32) * 10f32.powi(i as i32 % 20 - 14)
        };
        (0..world)
            .map(|rank| (0..count).map(|i| value(rank, i)).collect())
            .collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn every_rank_finds_the_bits_of_the_sequential_sum() {
        for world in 1..=5 {
            let inputs = inputs(world, 2 * BLOCK + 77);
            let halves: Vec<Vec<u16>> = inputs.iter().map(|x| x.iter().map(|&x| to_bf16(x)).collect()).collect();
            for rank in 0..world {
                let mut mine = inputs[rank].clone();
                add_f32(&mut mine, rank, world, |other| &inputs[other]);
                if world > 1 {
                    assert_eq!(bits(&mine), bits(&reference(&inputs, Wire::F32)), "{rank} of {world}");
                }
                let (mut mine, mut out) = (inputs[rank].clone(), vec![0; inputs[rank].len()]);
                add_bf16(&mut mine, &mut out, rank, world, |other| &halves[other]);
                assert_eq!(bits(&mine), bits(&reference(&inputs, Wire::Bf16)), "{rank} of {world}");
                assert!(mine.iter().zip(&out).all(|(&value, &half)| from_bf16(half) == value));
            }
            for wire in [Wire::F32, Wire::Bf16] {
                let mut places = inputs.clone();
                let pointers: Vec<*mut f32> = places.iter_mut().map(Vec::as_mut_ptr).collect();
                // SAFETY: vectors of their own.
                unsafe { add_in_place(&pointers, inputs[0].len(), wire) };
                for place in &places {
                    assert_eq!(bits(place), bits(&reference(&inputs, wire)), "{world} in place");
                }
            }
        }
    }

    #[test]
    fn bfloat16_rounds_to_nearest_even_and_keeps_what_is_no_number() {
        for (value, expected) in [
            (1.0, 0x3f80),
            (-0.0, 0x8000),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::INFINITY, 0x7f80),
            (f32::MAX, 0x7f80),
        ] {
            assert_eq!(to_bf16(value), expected, "{value}");
        }
        for bits in [0x7f80_0001, 0xffff_ffff] {
            assert!(from_bf16(to_bf16(f32::from_bits(bits))).is_nan());
        }
    }
}
