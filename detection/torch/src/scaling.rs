//! The scale of gradients in float16, whose numbers end at 65504 and lose their bits below 6e-5.
//!
//! torch's `GradScaler` keeps one scale from step to step: it doubles every 2000 steps and halves when a gradient overflowed, and that step is
//! lost. It has to look for the scale blindly, because it never sees the loss's slopes. Here they are at hand when the backward pass begins, so
//! each step has a scale of its own: the power of two that brings its largest slope to 1 (between 0.5 and 1). That leaves a factor of 65504 for
//! what the network makes of it, and 2^-24 below. Where a gradient overflows all the same, the pass is repeated with a sixteenth, from the
//! activations that are still there, until nothing does.
//!
//! So no step is lost and no record goes unused, and the scale is a function of variables and batch alone: nothing to keep in a checkpoint,
//! nothing for replicas to agree on, and a resumed job computes the same bits. A power of two changes no bit of a number within range.

use tch::Tensor;

use crate::error::Error;

/// Each repetition divides the scale by this.
const BACKOFF: f64 = 16.0;

/// Repetitions after which a gradient counts as infinite itself: the scale is then 2^-24 of the first.
pub(crate) const MOST_REPEATS: u32 = 6;

/// Scales outside of these would leave float32's own range.
const EXPONENTS: (f64, f64) = (-40.0, 40.0);

/// The first scale for these slopes, as a tensor of one element on their device: nobody waits for it.
pub(crate) fn first(slopes: &[&Tensor]) -> Result<Tensor, Error> {
    let mut largest: Option<Tensor> = None;
    for slope in slopes {
        let one = slope.f_abs()?.f_max()?;
        largest = Some(match largest {
            None => one,
            Some(other) => other.f_maximum(&one)?,
        });
    }
    let largest = largest.ok_or(Error::NoForward)?;
    // A slope that is not a number has no scale; losses tell of it elsewhere.
    let exponent = largest.f_log2()?.f_floor()?.f_nan_to_num(0.0, 0.0, EXPONENTS.0)?;
    Ok(exponent
        .f_clamp(EXPONENTS.0, EXPONENTS.1)?
        .f_neg()?
        .f_sub_scalar(1.0)?
        .f_exp2()?)
}

/// After an overflow.
pub(crate) fn smaller(scale: &Tensor) -> Result<Tensor, Error> {
    Ok(scale.f_div_scalar(BACKOFF)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(slopes: &[f32]) -> f64 {
        first(&[&Tensor::from_slice(slopes), &Tensor::from_slice(&[0.0_f32])])
            .unwrap()
            .double_value(&[])
    }

    #[test]
    fn the_largest_slope_comes_to_one() {
        for (slopes, expected) in [
            (&[0.25, -0.1][..], 2.0),
            (&[-0.3], 2.0),
            (&[1.0], 0.5),
            (&[3e-5, 1e-9], 32768.0),
            (&[100.0], 1.0 / 128.0),
        ] {
            let found = scale(slopes);
            assert_eq!(found, expected, "{slopes:?}");
            let largest = slopes.iter().fold(0.0_f32, |most, slope| most.max(slope.abs()));
            assert!((0.5..=1.0).contains(&(found * f64::from(largest))), "{slopes:?}");
        }
    }

    #[test]
    fn slopes_without_a_size_have_a_scale_that_does_no_harm() {
        for slopes in [&[0.0][..], &[f32::NAN], &[f32::INFINITY], &[1e-45], &[3e38]] {
            let found = scale(slopes);
            assert!(
                found > 0.0 && found.is_finite() && (found as f32).is_normal(),
                "{slopes:?}: {found}"
            );
        }
        assert_eq!(smaller(&Tensor::from(32.0_f32)).unwrap().double_value(&[]), 2.0);
    }
}
