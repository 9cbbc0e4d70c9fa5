//! Cross entropy of independent classes.

/// The sum over classes of the cross entropy of `sigmoid(logits)` with the one-hot target of which `column` is 1 (`None`: all are 0),
/// times `weight`; the reference's `WeightedSigmoidClassificationLoss`, summed as the single shot detector does.
pub fn loss(logits: &[f32], column: Option<usize>, weight: f32) -> f32 {
    let hit = column.and_then(|column| logits.get(column)).copied().unwrap_or(0.0);
    weight * (softplus_sum(logits) - f64::from(hit)) as f32
}

/// The sum of `ln(1 + exp(x))`.
///
/// With `e = exp(-|x|)` that is `max(x, 0) + ln(1 + e)`, and a sum of logarithms is the logarithm of a product: of factors between 1 and
/// 2, 512 fit into a double, so one logarithm does for that many classes.
fn softplus_sum(logits: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sum = 0.0;
    for some in logits.chunks(512) {
        let (whole, rest) = some.as_chunks::<LANES>();
        let (mut positive, mut product) = ([0.0_f64; LANES], [1.0_f64; LANES]);
        for lanes in whole {
            for i in 0..LANES {
                positive[i] += f64::from(above_zero(lanes[i]));
                product[i] *= 1.0 + f64::from(exp_of_negative(-lanes[i].abs()));
            }
        }
        for &logit in rest {
            positive[0] += f64::from(above_zero(logit));
            product[0] *= 1.0 + f64::from(exp_of_negative(-logit.abs()));
        }
        sum += positive.iter().sum::<f64>() + product.iter().product::<f64>().ln();
    }
    sum
}

/// `max(x, 0)`, but NaN stays NaN.
fn above_zero(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// `exp(x)` for `x` not above 0, within 2e-7 of its value; without branches or calls, so that the compiler computes many at once.
///
/// `x = n ln 2 + r` with `|r|` at most half of `ln 2`: the exponential of `r` is a polynomial (Cephes' `expf`), the power of two goes
/// straight into the exponent's bits.
fn exp_of_negative(x: f32) -> f32 {
    // Adding and taking away 1.5 * 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.max(-87.0);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
    (p * r * r + r + 1.0) * power
}

/// Writes the gradient of [`loss`] with respect to the logits, times `factor`, to `gradient` (as long as `logits`).
pub fn gradient(logits: &[f32], column: Option<usize>, weight: f32, factor: f32, gradient: &mut [f32]) {
    let scale = weight * factor;
    for (i, (to, &logit)) in gradient.iter_mut().zip(logits).enumerate() {
        let target = if Some(i) == column { 1.0 } else { 0.0 };
        *to = scale * (sigmoid(logit) - target);
    }
}

/// The cross entropy of `sigmoid(logit)` with a target between 0 and 1.
pub fn entry(logit: f32, target: f32) -> f32 {
    above_zero(logit) - logit * target + (-logit.abs()).exp().ln_1p()
}

/// `1 / (1 + exp(-x))`
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_logits_stay_finite() {
        assert_eq!(loss(&[100.0, -100.0], Some(0), 1.0), 0.0);
        assert_eq!(loss(&[-100.0, 100.0], Some(0), 0.5), 100.0);
        let mut to = [0.0; 2];
        gradient(&[-1e4, 1e4], Some(0), 1.0, 2.0, &mut to);
        assert_eq!(to, [-2.0, 2.0]);
    }

    #[test]
    fn the_exponential_and_the_sum_are_exact_enough() {
        let mut logits = Vec::new();
        for i in 0..20_000 {
            let x = -0.005 * i as f32;
            let exact = f64::from(x.max(-87.0)).exp();
            assert!((f64::from(exp_of_negative(x)) / exact - 1.0).abs() < 2e-7, "{x}");
            logits.push(if i % 2 == 0 { x } else { -x });
            if i % 997 == 0 {
                let plain: f64 = logits.iter().map(|&x| f64::from(x).exp().ln_1p()).sum();
                assert!((softplus_sum(&logits) / plain - 1.0).abs() < 1e-6, "{i}");
            }
        }
    }

    #[test]
    fn nan_shows() {
        for at in 0..20 {
            let mut logits = [0.5; 20];
            logits[at] = f32::NAN;
            assert!(loss(&logits, None, 1.0).is_nan(), "{at}");
            logits[at] = f32::INFINITY;
            assert!(loss(&logits, None, 1.0).is_infinite(), "{at}");
        }
    }
}
