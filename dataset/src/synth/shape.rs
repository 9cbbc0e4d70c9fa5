//! The shapes, as signed distances.

/// A class of the made-up data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Id 1.
    Circle = 0,
    /// Id 2.
    Square = 1,
    /// Id 3.
    Triangle = 2,
}

impl Shape {
    /// In the order of their ids.
    pub const ALL: [Self; 3] = [Self::Circle, Self::Square, Self::Triangle];

    /// As in the label map.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
        }
    }

    /// The middle of its colours on the wheel, 0 to 1: red, green, blue. Outline alone takes a small detector ten times as long to learn.
    pub(super) fn hue(self) -> f32 {
        match self {
            Self::Circle => 0.0,
            Self::Square => 1.0 / 3.0,
            Self::Triangle => 2.0 / 3.0,
        }
    }

    /// Distance from a point to the outline of the shape of radius 1 around the origin; negative inside.
    pub fn distance(self, x: f32, y: f32) -> f32 {
        match self {
            Self::Circle => x.hypot(y) - 1.0,
            Self::Square => {
                // Half the side of the square inscribed in the unit circle.
                let half = std::f32::consts::FRAC_1_SQRT_2;
                (x.abs() - half).max(y.abs() - half)
            }
            // Half planes of the equilateral triangle inscribed in the unit circle; its inradius is 1/2.
            Self::Triangle => [0.0_f32, 120.0, 240.0]
                .iter()
                .map(|degrees| {
                    let (sin, cos) = degrees.to_radians().sin_cos();
                    y * cos + x * sin - 0.5
                })
                .fold(f32::MIN, f32::max),
        }
    }
}
