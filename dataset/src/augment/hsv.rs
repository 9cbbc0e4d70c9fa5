//! Hue and saturation as TensorFlow's kernels compute them (`adjust_hue_op.cc`, `adjust_saturation_op.cc`).

/// Multiplies the saturation, which stays from 0 to 1.
pub(super) fn scale_saturation(rgb: [f32; 3], factor: f32) -> [f32; 3] {
    let [r, g, b] = rgb;
    let value = r.max(g).max(b);
    let range = value - r.min(g).min(b);
    let saturation = if value > 0.0 { range / value } else { 0.0 };
    let norm = 1.0 / (6.0 * range);
    let mut hue = if r == value {
        norm * (g - b)
    } else if g == value {
        norm * (b - r) + 2.0 / 6.0
    } else {
        norm * (r - g) + 4.0 / 6.0
    };
    if range <= 0.0 {
        hue = 0.0;
    }
    if hue < 0.0 {
        hue += 1.0;
    }
    let saturation = (saturation * factor).clamp(0.0, 1.0);
    let around = hue * 6.0;
    let parts = [
        ((around - 3.0).abs() - 1.0).clamp(0.0, 1.0),
        (2.0 - (around - 2.0).abs()).clamp(0.0, 1.0),
        (2.0 - (around - 4.0).abs()).clamp(0.0, 1.0),
    ];
    parts.map(|part| ((1.0 - saturation) + saturation * part) * value)
}

/// Turns the hue by `delta` of a full circle.
pub(super) fn turn_hue(rgb: [f32; 3], delta: f32) -> [f32; 3] {
    let [r, g, b] = rgb;
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    if high == low {
        return rgb;
    }
    let middle = r + g + b - high - low;
    // Of the two that are not the largest, the middle one is taken as it is, so that nothing is rounded.
    let middle = [r, g, b].into_iter().find(|&c| c != high && c != low).unwrap_or(
        if (middle - high).abs() < (middle - low).abs() {
            high
        } else {
            low
        },
    );
    let ratio = (middle - low) / (high - low);
    // Sextants of the colour circle, from red on; in odd ones the middle colour falls.
    let hue = if r < g {
        if b < r {
            1.0 + (1.0 - ratio)
        } else if b > g {
            3.0 + (1.0 - ratio)
        } else {
            2.0 + ratio
        }
    } else if b < g {
        ratio
    } else if b > r {
        4.0 + ratio
    } else {
        5.0 + (1.0 - ratio)
    };
    let mut hue = hue + delta * 6.0;
    if hue < 0.0 {
        hue += 6.0;
    }
    if hue >= 6.0 {
        hue -= 6.0;
    }
    let sextant = hue.floor();
    let fraction = hue - sextant;
    let rising = low + fraction * (high - low);
    let falling = low + (1.0 - fraction) * (high - low);
    match sextant as i32 {
        0 => [high, rising, low],
        1 => [falling, high, low],
        2 => [low, high, rising],
        3 => [low, falling, high],
        4 => [rising, low, high],
        _ => [high, low, falling],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_the_circle_exchanges_colours() {
        let turned = turn_hue([0.9, 0.5, 0.1], 1.0 / 3.0);
        assert!(
            turned.iter().zip([0.1, 0.9, 0.5]).all(|(a, b)| (a - b).abs() < 1e-6),
            "{turned:?}"
        );
        let back = turn_hue(turned, -1.0 / 3.0);
        assert!(
            back.iter().zip([0.9, 0.5, 0.1]).all(|(a, b)| (a - b).abs() < 1e-6),
            "{back:?}"
        );
    }

    #[test]
    fn equal_pairs_and_greys_are_no_trap() {
        for rgb in [
            [0.5, 0.5, 0.1],
            [0.1, 0.5, 0.5],
            [0.5, 0.1, 0.5],
            [0.1, 0.1, 0.5],
            [0.5, 0.1, 0.1],
            [0.1, 0.5, 0.1],
        ] {
            let same = turn_hue(rgb, 0.0);
            assert!(
                same.iter().zip(rgb).all(|(a, b)| (a - b).abs() < 1e-6),
                "{rgb:?} {same:?}"
            );
            let same = scale_saturation(rgb, 1.0);
            assert!(
                same.iter().zip(rgb).all(|(a, b)| (a - b).abs() < 1e-6),
                "{rgb:?} {same:?}"
            );
        }
        assert_eq!(turn_hue([0.3; 3], 0.2), [0.3; 3]);
        assert_eq!(scale_saturation([0.0; 3], 2.0), [0.0; 3]);
    }
}
