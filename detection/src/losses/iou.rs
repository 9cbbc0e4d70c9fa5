//! Losses that compare boxes by their overlap. They take their four numbers for corners; the reference gives them box codes as they
//! are.

use crate::Corners;

/// `weight * (1 - intersection over union)`: the reference's `WeightedIOULocalizationLoss`.
pub fn loss(prediction: Corners, target: Corners, weight: f32) -> f32 {
    let over = Overlap::of(prediction, target);
    let iou = if over.intersection == 0.0 {
        0.0
    } else {
        over.intersection / over.union
    };
    weight * (1.0 - iou)
}

/// The gradient of [`loss`] with respect to the prediction.
pub fn gradient(prediction: Corners, target: Corners, weight: f32) -> Corners {
    let over = Overlap::of(prediction, target);
    if over.intersection == 0.0 {
        return [0.0; 4];
    }
    over.iou_slope(prediction).map(|slope| -weight * slope)
}

/// `weight * (1 - generalised intersection over union)` (arXiv:1902.09630): the reference's `WeightedGIOULocalizationLoss`.
pub fn generalised_loss(prediction: Corners, target: Corners, weight: f32) -> f32 {
    let over = Overlap::of(prediction, target);
    let iou = if over.union == 0.0 {
        0.0
    } else {
        over.intersection / over.union
    };
    let outside = if over.hull > 0.0 {
        (over.hull - over.union) / over.hull
    } else {
        iou
    };
    weight * (1.0 - (iou - outside))
}

/// The gradient of [`generalised_loss`] with respect to the prediction.
pub fn generalised_gradient(prediction: Corners, target: Corners, weight: f32) -> Corners {
    let over = Overlap::of(prediction, target);
    let iou = if over.union == 0.0 {
        [0.0; 4]
    } else {
        over.iou_slope(prediction)
    };
    if over.hull.is_nan() || over.hull <= 0.0 {
        // The reference takes away what it has added.
        return [0.0 * over.hull; 4];
    }
    let hull = over.hull_slope(prediction, target);
    let union = over.union_slope(prediction);
    // outside = 1 - union / hull
    std::array::from_fn(|i| {
        let outside = -union[i] / over.hull + over.union * hull[i] / (over.hull * over.hull);
        -weight * (iou[i] - outside)
    })
}

struct Overlap {
    intersection: f32,
    union: f32,
    hull: f32,
    /// Of the intersection.
    height: f32,
    width: f32,
    /// Which of the prediction's edges bound the intersection; of equal ones it is the prediction's, as TensorFlow's gradients have it.
    bounds: [bool; 4],
}

impl Overlap {
    fn of(p: Corners, t: Corners) -> Self {
        let area = |[ymin, xmin, ymax, xmax]: Corners| (ymax - ymin) * (xmax - xmin);
        let (height, width) = (
            larger(0.0, smaller(p[2], t[2]) - larger(p[0], t[0])),
            larger(0.0, smaller(p[3], t[3]) - larger(p[1], t[1])),
        );
        let intersection = height * width;
        let hull = (larger(p[2], t[2]) - smaller(p[0], t[0])) * (larger(p[3], t[3]) - smaller(p[1], t[1]));
        Self {
            intersection,
            union: area(p) + area(t) - intersection,
            hull,
            height,
            width,
            bounds: [p[0] >= t[0], p[1] >= t[1], p[2] <= t[2], p[3] <= t[3]],
        }
    }

    fn intersection_slope(&self) -> Corners {
        // Each side is bounded below by 0.
        let side = |bound: bool, other: f32, open: bool| if bound && open { other } else { 0.0 };
        let (tall, wide) = (self.height > 0.0, self.width > 0.0);
        [
            -side(self.bounds[0], self.width, tall),
            -side(self.bounds[1], self.height, wide),
            side(self.bounds[2], self.width, tall),
            side(self.bounds[3], self.height, wide),
        ]
    }

    fn union_slope(&self, [ymin, xmin, ymax, xmax]: Corners) -> Corners {
        let (height, width) = (ymax - ymin, xmax - xmin);
        let shared = self.intersection_slope();
        let area = [-width, -height, width, height];
        std::array::from_fn(|i| area[i] - shared[i])
    }

    fn iou_slope(&self, prediction: Corners) -> Corners {
        let (shared, union) = (self.intersection_slope(), self.union_slope(prediction));
        std::array::from_fn(|i| (shared[i] - self.intersection / self.union * union[i]) / self.union)
    }

    fn hull_slope(&self, p: Corners, t: Corners) -> Corners {
        let height = larger(p[2], t[2]) - smaller(p[0], t[0]);
        let width = larger(p[3], t[3]) - smaller(p[1], t[1]);
        let side = |bounds: bool, other: f32| if bounds { other } else { 0.0 };
        [
            -side(p[0] <= t[0], width),
            -side(p[1] <= t[1], height),
            side(p[2] >= t[2], width),
            side(p[3] >= t[3], height),
        ]
    }
}

/// NaN shows, unlike with `f32::max`.
fn larger(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}

fn smaller(a: f32, b: f32) -> f32 {
    if a <= b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_the_slopes_of_the_values() {
        let target = [0.2, 0.1, 0.7, 0.8];
        for prediction in [
            [0.1, 0.2, 0.5, 0.6],
            [0.3, 0.3, 0.4, 0.5],
            [0.8, 0.9, 1.2, 1.4],
            [0.0, 0.0, 1.0, 1.0],
        ] {
            type Pair = (fn(Corners, Corners, f32) -> f32, fn(Corners, Corners, f32) -> Corners);
            let both: [Pair; 2] = [(loss, gradient), (generalised_loss, generalised_gradient)];
            for (value, gradient) in both {
                let found = gradient(prediction, target, 2.0);
                for i in 0..4 {
                    let (mut up, mut down) = (prediction, prediction);
                    up[i] += 1e-3;
                    down[i] -= 1e-3;
                    let slope = (value(up, target, 2.0) - value(down, target, 2.0)) / 2e-3;
                    assert!(
                        (slope - found[i]).abs() < 5e-3,
                        "{prediction:?} {i}: {slope}, {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn boxes_without_area_cost_all_and_move_nothing() {
        assert_eq!(loss([0.5; 4], [0.5; 4], 1.0), 1.0);
        assert_eq!(gradient([0.5; 4], [0.5; 4], 1.0), [0.0; 4]);
        assert_eq!(generalised_loss([0.5; 4], [0.5; 4], 1.0), 1.0);
        assert_eq!(generalised_gradient([0.5; 4], [0.5; 4], 1.0), [0.0; 4]);
        assert!(loss([f32::NAN; 4], [0.0, 0.0, 1.0, 1.0], 1.0).is_nan());
        assert!(generalised_loss([f32::NAN, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], 1.0).is_nan());
    }
}
