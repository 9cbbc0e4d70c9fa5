//! `keypoint_box_coder`

use super::{CODE_SIZE, EPSILON, FasterRcnn, centre};
use crate::Corners;

/// A box as [`FasterRcnn`] writes it, then the shift of each keypoint from the anchor's centre in units of the anchor's size: the
/// message `KeypointBoxCoder`. Codes are `[ty, tx, th, tw, tky0, tkx0, …]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keypoint {
    /// The box; its factors on `ty` and `tx` hold for keypoints too.
    pub corners: FasterRcnn,
    num_keypoints: usize,
}

impl Keypoint {
    /// Of so many keypoints.
    pub fn new(num_keypoints: usize, corners: FasterRcnn) -> Self {
        Self { corners, num_keypoints }
    }

    /// Numbers in a code.
    pub fn code_size(&self) -> usize {
        CODE_SIZE + 2 * self.num_keypoints
    }

    /// The code of a box and its keypoints (`[y, x]` each) relative to `anchor`.
    pub fn encode(&self, corners: Corners, keypoints: &[[f32; 2]], anchor: Corners) -> Vec<f32> {
        let (y_a, x_a, h_a, w_a) = centre(anchor);
        let mut code = self.corners.encode(corners, anchor).to_vec();
        for [y, x] in keypoints.iter().take(self.num_keypoints) {
            code.push((y - y_a) / (h_a + EPSILON) * self.corners.y_scale);
            code.push((x - x_a) / (w_a + EPSILON) * self.corners.x_scale);
        }
        code.resize(self.code_size(), f32::NAN);
        code
    }

    /// The keypoints that `code` stands for relative to `anchor`.
    pub fn decode_keypoints(&self, code: &[f32], anchor: Corners) -> Vec<[f32; 2]> {
        let (y_a, x_a, h_a, w_a) = centre(anchor);
        let (pairs, _) = code.get(CODE_SIZE..).unwrap_or_default().as_chunks::<2>();
        pairs
            .iter()
            .map(|[y, x]| {
                [
                    y / self.corners.y_scale * h_a + y_a,
                    x / self.corners.x_scale * w_a + x_a,
                ]
            })
            .collect()
    }
}
