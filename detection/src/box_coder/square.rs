//! `square_box_coder`

use super::{EPSILON, centre};
use crate::Corners;

/// Numbers in a code.
pub(super) const CODE_SIZE: usize = 3;

/// Squares of the box's area, for things that are as high as wide: the message `SquareBoxCoder`. Codes are `[ty, tx, tl]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Square {
    /// Factor on `ty`.
    pub y_scale: f32,
    /// Factor on `tx`.
    pub x_scale: f32,
    /// Factor on `tl`.
    pub length_scale: f32,
}

impl Default for Square {
    fn default() -> Self {
        Self {
            y_scale: 10.0,
            x_scale: 10.0,
            length_scale: 5.0,
        }
    }
}

impl Square {
    /// The code of `corners` relative to `anchor`; both count as squares of their area.
    pub fn encode(&self, corners: Corners, anchor: Corners) -> [f32; CODE_SIZE] {
        let (y_a, x_a, h_a, w_a) = centre(anchor);
        let (y, x, h, w) = centre(corners);
        let (l_a, l) = ((h_a * w_a).sqrt() + EPSILON, (h * w).sqrt() + EPSILON);
        [
            (y - y_a) / l_a * self.y_scale,
            (x - x_a) / l_a * self.x_scale,
            (l / l_a).ln() * self.length_scale,
        ]
    }

    /// The square that `code` stands for relative to `anchor`; not clipped.
    pub fn decode(&self, [ty, tx, tl]: [f32; CODE_SIZE], anchor: Corners) -> Corners {
        let (y_a, x_a, h_a, w_a) = centre(anchor);
        let l_a = (h_a * w_a).sqrt();
        let l = (tl / self.length_scale).exp() * l_a;
        let (y, x) = (ty / self.y_scale * l_a + y_a, tx / self.x_scale * l_a + x_a);
        [y - l / 2.0, x - l / 2.0, y + l / 2.0, x + l / 2.0]
    }
}
