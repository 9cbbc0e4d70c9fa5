//! Boxes written relative to anchors: the message `BoxCoder`.

mod faster_rcnn;
mod keypoint;
mod mean_stddev;
mod square;

pub use faster_rcnn::FasterRcnn;
pub use keypoint::Keypoint;
pub use mean_stddev::MeanStddev;
pub use square::Square;

use crate::Corners;

/// Numbers in a code of four.
pub const CODE_SIZE: usize = 4;

/// Added to sizes before division and logarithm, in encoding alone.
const EPSILON: f32 = 1e-8;

/// How boxes are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BoxCoder {
    /// Four numbers: centre and size.
    FasterRcnn(FasterRcnn),
    /// Four numbers: the corners.
    MeanStddev(MeanStddev),
    /// Three numbers: centre and side.
    Square(Square),
    /// As the first, then two numbers a keypoint.
    Keypoint(Keypoint),
}

impl From<FasterRcnn> for BoxCoder {
    fn from(coder: FasterRcnn) -> Self {
        Self::FasterRcnn(coder)
    }
}

impl BoxCoder {
    /// Numbers in a code.
    pub fn code_size(&self) -> usize {
        match self {
            Self::FasterRcnn(_) | Self::MeanStddev(_) => CODE_SIZE,
            Self::Square(_) => square::CODE_SIZE,
            Self::Keypoint(coder) => coder.code_size(),
        }
    }

    /// Writes the code of `corners` relative to `anchor` to `code`, which has [`BoxCoder::code_size`] numbers. Keypoints are not
    /// known here: theirs become NaN, which a localisation loss takes as met.
    pub fn encode(&self, corners: Corners, anchor: Corners, code: &mut [f32]) {
        match self {
            Self::FasterRcnn(coder) => copy(&coder.encode(corners, anchor), code),
            Self::MeanStddev(coder) => copy(&coder.encode(corners, anchor), code),
            Self::Square(coder) => copy(&coder.encode(corners, anchor), code),
            Self::Keypoint(coder) => {
                code.fill(f32::NAN);
                copy(&coder.corners.encode(corners, anchor), code);
            }
        }
    }

    /// The box that `code` stands for relative to `anchor`; not clipped, infinite where the code is too large, NaN where it is too
    /// short.
    pub fn decode(&self, code: &[f32], anchor: Corners) -> Corners {
        match self {
            Self::FasterRcnn(coder) => first(code).map_or(UNKNOWN, |code| coder.decode(code, anchor)),
            Self::MeanStddev(coder) => first(code).map_or(UNKNOWN, |code| coder.decode(code, anchor)),
            Self::Square(coder) => first(code).map_or(UNKNOWN, |code| coder.decode(code, anchor)),
            Self::Keypoint(coder) => first(code).map_or(UNKNOWN, |code| coder.corners.decode(code, anchor)),
        }
    }

    /// Decodes one image's codes (`[anchors, code_size]`), paired with the anchors.
    pub fn decode_all(&self, codes: &[f32], anchors: &[Corners]) -> Vec<Corners> {
        let pairs = codes.chunks_exact(self.code_size()).zip(anchors);
        match self {
            // The common one without a choice for each anchor.
            Self::FasterRcnn(coder) => {
                let codes = codes.as_chunks::<CODE_SIZE>().0;
                codes
                    .iter()
                    .zip(anchors)
                    .map(|(&code, &anchor)| coder.decode(code, anchor))
                    .collect()
            }
            _ => pairs.map(|(code, &anchor)| self.decode(code, anchor)).collect(),
        }
    }
}

const UNKNOWN: Corners = [f32::NAN; 4];

fn copy(from: &[f32], to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = from;
    }
}

fn first<const N: usize>(code: &[f32]) -> Option<[f32; N]> {
    code.first_chunk().copied()
}

/// (centre y, centre x, height, width)
fn centre([ymin, xmin, ymax, xmax]: Corners) -> (f32, f32, f32, f32) {
    let (h, w) = (ymax - ymin, xmax - xmin);
    (ymin + h / 2.0, xmin + w / 2.0, h, w)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_wrong_length_do_not_panic() {
        let anchor = [0.0, 0.0, 1.0, 1.0];
        for coder in [
            BoxCoder::FasterRcnn(FasterRcnn::default()),
            BoxCoder::MeanStddev(MeanStddev { stddev: 0.01 }),
            BoxCoder::Square(Square::default()),
            BoxCoder::Keypoint(Keypoint::new(2, FasterRcnn::default())),
        ] {
            assert!(coder.decode(&[0.0; 2], anchor)[0].is_nan(), "{coder:?}");
            let mut code = vec![0.0; coder.code_size()];
            coder.encode([0.2, 0.2, 0.4, 0.4], anchor, &mut code);
            let back = coder.decode(&code, anchor);
            assert!(
                back.iter().zip([0.2, 0.2, 0.4, 0.4]).all(|(a, b)| (a - b).abs() < 1e-6),
                "{coder:?}: {back:?}"
            );
            coder.encode([0.2, 0.2, 0.4, 0.4], anchor, &mut code[..1]);
        }
    }
}
