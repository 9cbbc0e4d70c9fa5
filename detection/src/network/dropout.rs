//! Which values a step drops: a pure function of the step's key, the layer, the image's place in the batch and the value's place in the map, so
//! that a step can be made again, on any device.

/// The generator of one image's mask in one layer.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    start: u64,
    keep: f32,
}

/// Mixes bits so that neighbouring keys have nothing in common (splitmix64).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The key of a replica's step: of the job's seed, the step's number and where the replica's first record stands in the sequence of records.
pub fn key(seed: u64, step: u64, position: u64) -> u64 {
    mix(mix(mix(seed) ^ step) ^ position)
}

impl Mask {
    /// The mask of image `image` of the batch in layer `layer`; `keep` is the share of values that stay.
    pub fn new(key: u64, layer: usize, image: usize, keep: f32) -> Self {
        Self {
            start: mix(mix(key ^ ((layer as u64) << 32)) ^ image as u64),
            keep,
        }
    }

    /// What value `index` (row, column, channel) is multiplied by: 0, or 1 over the share that is kept.
    pub fn factor(self, index: usize) -> f32 {
        let uniform = (mix(self.start.wrapping_add(index as u64)) >> 40) as f32 / (1_u32 << 24) as f32;
        if uniform < self.keep { 1.0 / self.keep } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(mask: Mask) -> Vec<bool> {
        (0..20_000).map(|i| mask.factor(i) > 0.0).collect()
    }

    #[test]
    fn as_many_as_asked_for_are_kept_and_make_up_for_the_others() {
        for keep in [0.2, 0.5, 0.8, 1.0] {
            let mask = Mask::new(key(1, 2, 3), 7, 0, keep);
            let sum: f64 = (0..20_000).map(|i| f64::from(mask.factor(i))).sum();
            assert!((sum / 20_000.0 - 1.0).abs() < 0.05, "{keep}: {sum}");
        }
    }

    #[test]
    fn masks_have_nothing_in_common_but_with_themselves() {
        let mask = |seed, step, position, layer, image| kept(Mask::new(key(seed, step, position), layer, image, 0.5));
        let first = mask(1, 2, 3, 4, 5);
        assert_eq!(first, mask(1, 2, 3, 4, 5));
        for other in [
            mask(2, 2, 3, 4, 5),
            mask(1, 3, 3, 4, 5),
            mask(1, 2, 4, 4, 5),
            mask(1, 2, 3, 5, 5),
            mask(1, 2, 3, 4, 6),
        ] {
            let equal = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((9_700..10_300).contains(&equal), "{equal} of 20000");
        }
    }
}
