//! `mean_stddev_box_coder`

use super::CODE_SIZE;
use crate::Corners;

/// Shift of each corner from the anchor's, divided by one standard deviation: the message `MeanStddevBoxCoder`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeanStddev {
    /// Of the shifts.
    pub stddev: f32,
}

impl MeanStddev {
    /// The code of `corners` relative to `anchor`.
    pub fn encode(&self, corners: Corners, anchor: Corners) -> [f32; CODE_SIZE] {
        std::array::from_fn(|i| (corners[i] - anchor[i]) / self.stddev)
    }

    /// The box that `code` stands for relative to `anchor`; not clipped.
    pub fn decode(&self, code: [f32; CODE_SIZE], anchor: Corners) -> Corners {
        std::array::from_fn(|i| code[i] * self.stddev + anchor[i])
    }
}
