//! Which images a model takes, where a resizer leaves them many sizes.

use std::ops::RangeInclusive;

use super::Error;
use crate::augment::MAX_PIXELS;

/// Of the images that a resizer makes; those that it gives one size are checked with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Pixels of each side.
    pub sides: RangeInclusive<usize>,
    /// Pixels in all.
    pub pixels: usize,
}

impl Limits {
    /// Sides of any length that a configuration may ask for.
    pub fn new(sides: RangeInclusive<usize>) -> Self {
        Self {
            sides,
            pixels: MAX_PIXELS,
        }
    }

    /// Refuses an image of (height, width) pixels beyond the limits.
    pub fn check(&self, (height, width): (usize, usize)) -> Result<(), Error> {
        let (least, most, pixels) = (*self.sides.start(), *self.sides.end(), self.pixels);
        if height.min(width) < least {
            return Err(Error::TooSmall { height, width, least });
        }
        // Sides are limited first, so that the product fits.
        if height.max(width) > most || height * width > pixels {
            return Err(Error::TooLarge {
                height,
                width,
                most,
                pixels,
            });
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(1..=super::LARGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_them_are_told_with_a_way_out() {
        let limits = Limits::new(33..=16_384);
        for good in [(33, 33), (33, 16_384), (8192, 8192)] {
            assert_eq!(limits.check(good), Ok(()));
        }
        let small = limits.check((500, 32)).unwrap_err().to_string();
        assert_eq!(
            small,
            "image_resizer leaves it 500 x 32 pixels, and the model takes sides of at least 33\nhint: leave such images out of the records, or \
             use an image_resizer that enlarges them"
        );
        for large in [(33, 16_385), (8193, 8192), (usize::MAX, usize::MAX)] {
            let error = limits.check(large).unwrap_err().to_string();
            assert!(
                error.contains("sides of at most 16384 and at most 67108864 in all") && error.contains("max_dimension"),
                "{error}"
            );
        }
    }
}
