//! `faster_rcnn_box_coder`

use super::{CODE_SIZE, EPSILON, centre};
use crate::Corners;

/// Shift of the centre in units of the anchor's size, and logarithm of the ratio of sizes (arXiv:1506.01497, equation 2), each times a
/// factor: the message `FasterRcnnBoxCoder`. Codes are `[ty, tx, th, tw]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FasterRcnn {
    /// Factor on `ty`.
    pub y_scale: f32,
    /// Factor on `tx`.
    pub x_scale: f32,
    /// Factor on `th`.
    pub height_scale: f32,
    /// Factor on `tw`.
    pub width_scale: f32,
}

impl Default for FasterRcnn {
    fn default() -> Self {
        Self {
            y_scale: 10.0,
            x_scale: 10.0,
            height_scale: 5.0,
            width_scale: 5.0,
        }
    }
}

impl FasterRcnn {
    /// The code of `corners` relative to `anchor`. Zero sizes give large finite codes, sizes below zero NaN.
    pub fn encode(&self, corners: Corners, anchor: Corners) -> [f32; CODE_SIZE] {
        let (y_a, x_a, h_a, w_a) = centre(anchor);
        let (y, x, h, w) = centre(corners);
        let (h_a, w_a, h, w) = (h_a + EPSILON, w_a + EPSILON, h + EPSILON, w + EPSILON);
        [
            (y - y_a) / h_a * self.y_scale,
            (x - x_a) / w_a * self.x_scale,
            (h / h_a).ln() * self.height_scale,
            (w / w_a).ln() * self.width_scale,
        ]
    }

    /// The box that `code` stands for relative to `anchor`; not clipped, infinite where the code is too large.
    pub fn decode(&self, code: [f32; CODE_SIZE], anchor: Corners) -> Corners {
        let (y_a, x_a, h_a, w_a) = centre(anchor);
        let [ty, tx, th, tw] = code;
        let h = (th / self.height_scale).exp() * h_a;
        let w = (tw / self.width_scale).exp() * w_a;
        let y = ty / self.y_scale * h_a + y_a;
        let x = tx / self.x_scale * w_a + x_a;
        [y - h / 2.0, x - w / 2.0, y + h / 2.0, x + w / 2.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_undoes_encoding() {
        let coder = FasterRcnn::default();
        let (corners, anchor) = ([0.1, 0.2, 0.6, 0.9], [0.0, 0.3, 0.5, 0.8]);
        let back = coder.decode(coder.encode(corners, anchor), anchor);
        assert!(back.iter().zip(corners).all(|(a, b)| (a - b).abs() < 1e-6), "{back:?}");
    }

    #[test]
    fn extreme_codes_do_not_panic() {
        let coder = FasterRcnn::default();
        assert!(coder.decode([0.0, 0.0, 1e6, 0.0], [0.0, 0.0, 1.0, 1.0])[2].is_infinite());
        assert!(coder.decode([f32::NAN; 4], [0.0, 0.0, 1.0, 1.0])[0].is_nan());
        assert!(coder.encode([0.5; 4], [0.5; 4]).iter().all(|code| code.is_finite()));
    }
}
