//! Random numbers that are the same on every machine and stay the same when a crate is updated.
//!
//! `ChaCha8`'s key stream is fixed by its definition; how words become numbers is written out here.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// A stream of random numbers that depends on three numbers and a purpose alone.
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of (`seed`, `a`, `b`); streams with another `purpose` share nothing with it.
    pub fn new(purpose: [u8; 8], seed: u64, a: u64, b: u64) -> Self {
        let mut key = [0_u8; 32];
        for (slot, word) in key.chunks_exact_mut(8).zip([u64::from_le_bytes(purpose), seed, a, b]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `[0, 1)` with 24 bits, as `tf.random_uniform` of float32.
    pub fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1_u32 << 24) as f32
    }

    /// Uniform in `[low, high)`; `low` when they are equal.
    pub fn between(&mut self, (low, high): (f32, f32)) -> f32 {
        self.unit() * (high - low) + low
    }

    /// Uniform in `low..high`; `low` when that is empty.
    pub fn integer(&mut self, low: i64, high: i64) -> i64 {
        low.saturating_add(self.below(u64::try_from(high.saturating_sub(low)).unwrap_or(0)) as i64)
    }

    /// A pair of independent numbers of the standard normal distribution (Box and Muller, 1958).
    pub fn normals(&mut self) -> [f32; 2] {
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * f64::from(1.0 - self.unit()).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(self.unit());
        [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
    }

    /// Uniform in `0..n`; 0 when `n` is 0. The bias is below n / 2^64.
    pub fn below(&mut self, n: u64) -> u64 {
        scale(self.bits(), n)
    }
}

/// Maps 64 random bits to `0..n` (0 when `n` is 0).
pub(crate) fn scale(bits: u64, n: u64) -> u64 {
    ((u128::from(bits) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_pinned() {
        // Values of this implementation: a change would reorder the data of every resumed job.
        let mut stream = Stream::new(*b"a test..", 1, 2, 3);
        assert_eq!([stream.bits(), stream.bits()], PINNED);
        assert_ne!(Stream::new(*b"a test..", 1, 2, 4).bits(), PINNED[0]);
        assert_ne!(Stream::new(*b"another.", 1, 2, 3).bits(), PINNED[0]);
    }

    const PINNED: [u64; 2] = [1_912_609_403_082_381_549, 224_440_807_078_649_957];

    #[test]
    fn numbers_stay_in_range() {
        let mut stream = Stream::new(*b"a test..", 0, 0, 0);
        let mut seen = [0_u32; 5];
        for _ in 0..5000 {
            let unit = stream.unit();
            assert!((0.0..1.0).contains(&unit));
            seen[stream.below(5) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (850..1150).contains(&count)), "{seen:?}");
        assert_eq!(stream.below(0), 0);
        assert_eq!((stream.integer(3, 3), stream.between((0.5, 0.5))), (3, 0.5));
        assert!((0..100).all(|_| (-2..2).contains(&stream.integer(-2, 2))));
    }

    #[test]
    fn normals_have_their_moments() {
        let mut stream = Stream::new(*b"a test..", 0, 0, 1);
        let numbers: Vec<f64> = (0..50_000).flat_map(|_| stream.normals()).map(f64::from).collect();
        let moment = |power| numbers.iter().map(|x| x.powi(power)).sum::<f64>() / numbers.len() as f64;
        // Standard deviations: 0.0032, 0.0045, 0.031.
        assert!(moment(1).abs() < 0.013 && (moment(2) - 1.0).abs() < 0.018 && (moment(4) - 3.0).abs() < 0.13);
    }
}
