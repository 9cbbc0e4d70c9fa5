//! Random windows, as `tf.image.sample_distorted_bounding_box` draws them.

use crate::random::Stream;

/// A window in whole pixels; the far sides are exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// What a window must satisfy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constraints {
    /// At least one box must lie in the window with at least this share of its area.
    pub min_object_covered: f32,
    /// Smallest and largest width / height.
    pub aspect_ratio: (f32, f32),
    /// Smallest and largest share of the image's area.
    pub area: (f32, f32),
}

/// As the reference asks of TensorFlow.
const ATTEMPTS: u32 = 100;

/// Draws a window of an image of `height` x `width` pixels; the whole image when 100 attempts find none.
/// `boxes` are normalised; without any, the image itself is the box to be covered.
pub fn sample_window(
    height: usize,
    width: usize,
    boxes: &[[f32; 4]],
    constraints: &Constraints,
    random: &mut Stream,
) -> Window {
    let whole = Window {
        top: 0,
        left: 0,
        height,
        width,
    };
    let mut objects: Vec<Rectangle> = boxes
        .iter()
        .map(|bounds| Rectangle::pixels(bounds, height, width))
        .collect();
    if objects.is_empty() {
        objects.push(Rectangle::of(whole));
    }
    let (low, high) = constraints.aspect_ratio;
    for _ in 0..ATTEMPTS {
        let aspect_ratio = random.unit() * (high - low) + low;
        if let Some(window) = random_window(height, width, constraints.area, aspect_ratio, random)
            && covers(Rectangle::of(window), constraints.min_object_covered, &objects)
        {
            return window;
        }
    }
    whole
}

/// A window of the given aspect ratio (`GenerateRandomCrop`); its height is uniform within what the area allows.
fn random_window(
    height: usize,
    width: usize,
    area: (f32, f32),
    aspect_ratio: f32,
    random: &mut Stream,
) -> Option<Window> {
    let (rows, columns) = (height as f32, width as f32);
    let (min_area, max_area) = (area.0 * columns * rows, area.1 * columns * rows);
    // Written so that NaN is refused, too.
    let sensible = max_area > 0.0 && aspect_ratio > 0.0 && area.0 <= area.1 && rows >= 1.0 && columns >= 1.0;
    if !sensible {
        return None;
    }
    // `as` saturates, so absurd settings end in the range check below.
    let round = |value: f32| value.round_ties_even() as i64;
    let mut tallest = round((max_area / aspect_ratio).sqrt());
    if round(tallest as f32 * aspect_ratio) > width as i64 {
        // The largest height whose rounded width still fits.
        tallest = ((columns + 0.5 - 1e-7) / aspect_ratio) as i64;
    }
    tallest = tallest.min(height as i64);
    let shortest = round((min_area / aspect_ratio).sqrt()).min(tallest);
    let mut window_height = shortest;
    if shortest < tallest {
        window_height += random.below((tallest - shortest + 1) as u64) as i64;
    }
    let width_of = |window_height: i64| round(window_height as f32 * aspect_ratio);
    let area_of = |window_height: i64| width_of(window_height) as f32 * window_height as f32;
    // Rounding may have left the allowed areas by a row.
    if area_of(window_height) < min_area {
        window_height += 1;
    }
    if area_of(window_height) > max_area {
        window_height -= 1;
    }
    let (window_width, window_area) = (width_of(window_height), area_of(window_height));
    let allowed = window_area >= min_area
        && window_area <= max_area
        && (1..=width as i64).contains(&window_width)
        && (1..=height as i64).contains(&window_height);
    if !allowed {
        return None;
    }
    let (window_height, window_width) = (window_height as usize, window_width as usize);
    // The last possible place is never drawn: so does TensorFlow.
    let top = random.below((height - window_height) as u64) as usize;
    let left = random.below((width - window_width) as u64) as usize;
    Some(Window {
        top,
        left,
        height: window_height,
        width: window_width,
    })
}

/// In pixels.
#[derive(Debug, Clone, Copy)]
struct Rectangle {
    low: [i64; 2],
    high: [i64; 2],
}

impl Rectangle {
    fn of(window: Window) -> Self {
        Self {
            low: [window.top as i64, window.left as i64],
            high: [(window.top + window.height) as i64, (window.left + window.width) as i64],
        }
    }

    fn pixels(bounds: &[f32; 4], height: usize, width: usize) -> Self {
        let pixel = |value: f32, size: usize| (value.clamp(0.0, 1.0) * size as f32) as i64;
        let [ymin, xmin, ymax, xmax] = *bounds;
        Self {
            low: [pixel(ymin, height), pixel(xmin, width)],
            high: [pixel(ymax, height), pixel(xmax, width)],
        }
    }

    fn area(self) -> f32 {
        ((self.high[0] - self.low[0]) * (self.high[1] - self.low[1])) as f32
    }

    fn intersection_area(self, other: Self) -> f32 {
        let side = |axis: usize| (self.high[axis].min(other.high[axis]) - self.low[axis].max(other.low[axis])).max(0);
        (side(0) * side(1)) as f32
    }
}

/// `SatisfiesOverlapConstraints`: boxes of less than a pixel do not count.
fn covers(window: Rectangle, min_object_covered: f32, objects: &[Rectangle]) -> bool {
    objects.iter().any(|object| {
        let area = object.area();
        area >= 1.0 && window.intersection_area(*object) / area >= min_object_covered
    })
}
