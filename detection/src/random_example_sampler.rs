//! Which negatives are trained on when they are drawn at random: the message `RandomExampleSampler`; the reference's
//! `BalancedPositiveNegativeSampler` without a batch size.

/// All positives, and so many negatives that positives have the wanted share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomExampleSampler {
    /// Share of positives: above 0, at most 1.
    pub positive_fraction: f32,
}

impl RandomExampleSampler {
    /// Which anchors are trained on: `None` can never be, `Some(true)` is positive. The same seed draws the same anchors.
    pub fn sample(&self, anchors: &[Option<bool>], seed: u64) -> Vec<bool> {
        let mut chosen: Vec<bool> = anchors.iter().map(|&anchor| anchor == Some(true)).collect();
        let positives = chosen.iter().filter(|&&chosen| chosen).count();
        let ratio = (1.0 - self.positive_fraction) / self.positive_fraction;
        let most = (ratio * positives as f32) as usize;
        let negative = |&(_, anchor): &(usize, &Option<bool>)| *anchor == Some(false);
        let mut drawn: Vec<(u64, usize)> = anchors
            .iter()
            .enumerate()
            .filter(negative)
            .map(|(index, _)| (mix(seed ^ mix(index as u64)), index))
            .collect();
        if most < drawn.len() {
            drawn.select_nth_unstable(most);
            drawn.truncate(most);
        }
        for (_, index) in drawn {
            chosen[index] = true;
        }
        chosen
    }
}

/// A seed from an image's predictions: they differ in each step, and whoever computes the step draws the same.
pub fn seed(predictions: &[f32]) -> u64 {
    const MOST: usize = 4096;
    let step = predictions.len() / MOST + 1;
    let values = predictions.iter().step_by(step);
    values.fold(predictions.len() as u64, |seed, value| {
        mix(seed ^ u64::from(value.to_bits()))
    })
}

/// The finaliser of `SplitMix64`.
fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positives_stay_and_negatives_are_drawn_to_the_ratio() {
        // Ten that must not be drawn, twenty positives, seventy negatives.
        let anchors: Vec<Option<bool>> = (0..100).map(|i| (i < 90).then_some(i < 20)).collect();
        for (positive_fraction, negatives) in [(0.5, 20), (0.25, 60), (0.01, 70), (1.0, 0)] {
            let sampler = RandomExampleSampler { positive_fraction };
            let chosen = sampler.sample(&anchors, 3);
            assert!(chosen[..20].iter().all(|&chosen| chosen));
            assert!(!chosen[90..].iter().any(|&chosen| chosen));
            assert_eq!(chosen[20..].iter().filter(|&&chosen| chosen).count(), negatives);
            assert_eq!(chosen, sampler.sample(&anchors, 3), "the same seed");
            let other = sampler.sample(&anchors, 4) != chosen;
            assert_eq!(
                other,
                (1..70).contains(&negatives),
                "another seed, {negatives} negatives"
            );
        }
        let none = RandomExampleSampler { positive_fraction: 0.5 }.sample(&[Some(false); 5], 1);
        assert_eq!(none, [false; 5], "an image without positives trains nothing");
    }

    #[test]
    fn seeds_follow_the_predictions() {
        assert_eq!(seed(&[1.0, 2.0]), seed(&[1.0, 2.0]));
        assert_ne!(seed(&[1.0, 2.0]), seed(&[2.0, 1.0]));
        assert_ne!(seed(&[]), seed(&[0.0]));
    }
}
