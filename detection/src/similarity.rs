//! How alike two boxes are.

use crate::Corners;

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

fn over_union(a: Corners, area_a: f32, b: Corners, area_b: f32) -> f32 {
    let height = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let width = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let intersection = height * width;
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
