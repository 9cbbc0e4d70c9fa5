//! How alike two boxes are: the message `RegionSimilarityCalculator`.

use crate::Corners;

/// What makes boxes alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Similarity {
    /// `iou_similarity`: intersection over union.
    Iou,
    /// `ioa_similarity`: intersection over the anchor's area; NaN for anchors without one.
    Ioa,
    /// `neg_sq_dist_similarity`: the squared distance of the four coordinates, negative.
    NegSqDist,
    /// `thresholded_iou_similarity`: the groundtruth's score where intersection over union is above the threshold, else 0.
    ThresholdedIou {
        /// `iou_threshold`
        threshold: f32,
    },
}

impl Similarity {
    /// Of each groundtruth box with each anchor: `[groundtruth, anchors]`, row by row. `score` is the foreground probability of a
    /// groundtruth box, which [`Similarity::ThresholdedIou`] alone looks at.
    pub fn matrix(&self, groundtruth: &[Corners], anchors: &[Corners], score: impl Fn(usize) -> f32) -> Vec<f32> {
        match *self {
            Self::Iou => iou_matrix(groundtruth, anchors),
            Self::Ioa => each(groundtruth, anchors, |row, anchor| {
                intersection(row, anchor) / area(anchor)
            }),
            Self::NegSqDist => each(groundtruth, anchors, |row, anchor| -squared_distance(row, anchor)),
            Self::ThresholdedIou { threshold } => {
                let mut matrix = iou_matrix(groundtruth, anchors);
                for (row, values) in matrix.chunks_exact_mut(anchors.len().max(1)).enumerate() {
                    let score = score(row);
                    for value in values {
                        *value = if *value > threshold { score } else { 0.0 };
                    }
                }
                matrix
            }
        }
    }
}

fn each(rows: &[Corners], columns: &[Corners], of: impl Fn(Corners, Corners) -> f32) -> Vec<f32> {
    let of = &of;
    rows.iter()
        .flat_map(|&row| columns.iter().map(move |&column| of(row, column)))
        .collect()
}

/// As the reference computes it, `|a|^2 - 2 a b + |b|^2`.
fn squared_distance(a: Corners, b: Corners) -> f32 {
    let dot = |a: Corners, b: Corners| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, a) - 2.0 * dot(a, b) + dot(b, b)
}

/// Intersection over union; 0 for boxes that do not meet, NaN where a coordinate is.
pub fn iou(a: Corners, b: Corners) -> f32 {
    over_union(a, area(a), b, area(b))
}

/// `iou` of each groundtruth box with each anchor: `[groundtruth, anchors]`, row by row.
pub fn iou_matrix(groundtruth: &[Corners], anchors: &[Corners]) -> Vec<f32> {
    let areas: Vec<f32> = anchors.iter().map(|&anchor| area(anchor)).collect();
    let mut matrix = Vec::with_capacity(groundtruth.len().saturating_mul(anchors.len()));
    for &row in groundtruth {
        let row_area = area(row);
        matrix.extend(
            anchors
                .iter()
                .zip(&areas)
                .map(|(&anchor, &area)| over_union(row, row_area, anchor, area)),
        );
    }
    matrix
}

fn area([ymin, xmin, ymax, xmax]: Corners) -> f32 {
    (ymax - ymin) * (xmax - xmin)
}

fn intersection(a: Corners, b: Corners) -> f32 {
    let height = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let width = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    height * width
}

fn over_union(a: Corners, area_a: f32, b: Corners, area_b: f32) -> f32 {
    let intersection = intersection(a, b);
    if intersection == 0.0 {
        0.0
    } else {
        intersection / (area_a + area_b - intersection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_without_area_have_no_overlap() {
        assert_eq!(iou([0.5; 4], [0.5; 4]), 0.0);
        assert_eq!(iou([0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5]), 0.0);
        assert_eq!(iou([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]), 1.0);
    }
}
