//! `random_jitter_boxes`: boxes that are not quite where they should be.

use coati_proto::object_detection::protos as config;
use config::random_jitter_boxes::JitterMode;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::random::Stream;

/// `random_jitter_boxes`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomJitterBoxes {
    ratio: f32,
    mode: JitterMode,
}

/// Sides shorter than this are taken for this long.
const LEAST: f32 = 1e-6;

impl RandomJitterBoxes {
    pub(super) fn from_config(jitter: &config::RandomJitterBoxes, at: &At) -> Result<Self, Error> {
        let (ratio, mode) = (jitter.ratio(), jitter.jitter_mode());
        at.check("ratio", ratio, ratio >= 0.0 && ratio.is_finite(), "at least 0")?;
        // Sides that shrink by more than they are long change places, and the reference dies at such boxes.
        let grows = matches!(
            mode,
            JitterMode::Expand | JitterMode::ExpandSymmetric | JitterMode::ExpandSymmetricXy
        );
        at.check(
            "ratio",
            ratio,
            grows || ratio <= 1.0,
            "from 0 to 1, but in modes that only expand",
        )?;
        Ok(Self { ratio, mode })
    }

    /// Where the corners of one box go.
    fn moved(&self, [ymin, xmin, ymax, xmax]: [f32; 4], random: &mut Stream) -> [f32; 4] {
        use JitterMode as Mode;
        let (height, width) = ((ymax - ymin).abs().max(LEAST), (xmax - xmin).abs().max(LEAST));
        let (y, x) = (ymin + (ymax - ymin) / 2.0, xmin + (xmax - xmin) / 2.0);
        let range = match self.mode {
            Mode::Default => (-self.ratio, self.ratio),
            Mode::Expand | Mode::ExpandSymmetric | Mode::ExpandSymmetricXy => (0.0, self.ratio),
            Mode::Shrink | Mode::ShrinkSymmetric | Mode::ShrinkSymmetricXy => (-self.ratio, 0.0),
        };
        let mut factor = || 1.0 + random.between(range);
        match self.mode {
            Mode::Default | Mode::Expand | Mode::Shrink => {
                let (top, left, bottom, right) = (factor(), factor(), factor(), factor());
                [
                    y - height * top / 2.0,
                    x - width * left / 2.0,
                    y + height * bottom / 2.0,
                    x + width * right / 2.0,
                ]
            }
            _ => {
                let mut factors = [factor(), factor()];
                // No further than the nearer border of the image.
                let mut most = [
                    (2.0 * y / height).min(2.0 * (1.0 - y) / height).abs(),
                    (2.0 * x / width).min(2.0 * (1.0 - x) / width).abs(),
                ];
                if matches!(self.mode, Mode::ExpandSymmetricXy | Mode::ShrinkSymmetricXy) {
                    factors[1] = factors[0];
                    most = [most[0].min(most[1]); 2];
                }
                let (high, wide) = (height * factors[0].min(most[0]), width * factors[1].min(most[1]));
                [y - high / 2.0, x - wide / 2.0, y + high / 2.0, x + wide / 2.0]
            }
        }
    }
}

impl Operation for RandomJitterBoxes {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        for object in &mut sample.objects.boxes {
            *object = self.moved(*object, random).map(|side| side.clamp(0.0, 1.0));
        }
        Ok(())
    }
}
