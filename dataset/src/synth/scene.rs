//! One picture: a textured background, clutter without label, and one to four shapes.

use image::{Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::shape::Shape;
use super::texture::fractal;

/// A shape in a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Its class.
    pub shape: Shape,
    /// `[ymin, xmin, ymax, xmax]` in whole pixels, tight around what is visible.
    pub bounds: [u32; 4],
}

/// A picture and what is in it.
#[derive(Clone, Debug)]
pub struct Scene {
    /// RGB.
    pub picture: RgbImage,
    /// In drawing order; they do not overlap by more than a fifth.
    pub objects: Vec<Object>,
}

struct Placed {
    shape: Shape,
    centre: [f32; 2],
    radius: f32,
    angle: f32,
    colour: [f32; 3],
    grain: u64,
}

/// The picture with number `index` of split `split`.
pub fn render(seed: u64, split: u64, index: u64, size: u32) -> Scene {
    let mut key = [0_u8; 32];
    for (bytes, word) in key.chunks_mut(8).zip([seed, split, index, 0x00C0_A71D]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut picture = background(&mut rng, size);
    clutter(&mut rng, &mut picture);
    let mut objects: Vec<Object> = Vec::new();
    let wanted = rng.random_range(1..=4);
    for _ in 0..wanted {
        // A few attempts to find room; a crowded picture simply has fewer objects.
        for _ in 0..8 {
            let placed = place(&mut rng, size);
            if let Some(bounds) = bounds(&placed, size)
                && objects.iter().all(|other| overlap(&bounds, &other.bounds) < 0.2)
            {
                paint(&mut picture, &placed);
                objects.push(Object {
                    shape: placed.shape,
                    bounds,
                });
                break;
            }
        }
    }
    Scene { picture, objects }
}

fn random_colour(rng: &mut ChaCha8Rng) -> [f32; 3] {
    std::array::from_fn(|_| rng.random_range(20.0..235.0))
}

/// Duller than any shape, of any hue.
fn muted_colour(rng: &mut ChaCha8Rng) -> [f32; 3] {
    let colour = random_colour(rng);
    let grey = colour.iter().sum::<f32>() / 3.0;
    colour.map(|channel| grey + 0.5 * (channel - grey))
}

/// A bright colour from the shape's third of the colour wheel.
fn vivid_colour(rng: &mut ChaCha8Rng, shape: Shape) -> [f32; 3] {
    let hue = shape.hue() + rng.random_range(-0.11..0.11);
    let saturation = rng.random_range(0.6..1.0);
    let value = rng.random_range(120.0..245.0);
    std::array::from_fn(|channel| {
        // Hue to RGB: each channel is a trapezoid around its own third of the wheel.
        let distance = (hue * 6.0 - 2.0 * channel as f32 + 3.0).rem_euclid(6.0) - 3.0;
        let part: f32 = (2.0 - distance.abs()).clamp(0.0, 1.0);
        value * (1.0 - saturation * (1.0 - part))
    })
}

fn background(rng: &mut ChaCha8Rng, size: u32) -> RgbImage {
    let (one, two) = (muted_colour(rng), muted_colour(rng));
    let scale = rng.random_range(0.06..0.4) * size as f32;
    let (seed, grain_seed) = (rng.random(), rng.random());
    RgbImage::from_fn(size, size, |x, y| {
        let t = (fractal(seed, x as f32, y as f32, scale) * 1.6 - 0.3).clamp(0.0, 1.0);
        let grain = (fractal(grain_seed, x as f32, y as f32, 3.0) - 0.5) * 36.0;
        // Half contrast: shapes stand out from the background without being trivial.
        Rgb(std::array::from_fn(|c| {
            (one[c] * (1.0 - t) + (one[c] * 0.5 + two[c] * 0.5) * t + grain).clamp(0.0, 255.0) as u8
        }))
    })
}

/// Lines that belong to no class.
fn clutter(rng: &mut ChaCha8Rng, picture: &mut RgbImage) {
    let size = picture.width() as f32;
    for _ in 0..rng.random_range(0..5) {
        let colour = random_colour(rng).map(|c| c as u8);
        let (x0, y0) = (rng.random_range(0.0..size), rng.random_range(0.0..size));
        let angle: f32 = rng.random_range(0.0..std::f32::consts::TAU);
        let length = rng.random_range(0.1..0.6) * size;
        let (sin, cos) = angle.sin_cos();
        for step in 0..(length * 2.0) as u32 {
            let (x, y) = (x0 + cos * step as f32 / 2.0, y0 + sin * step as f32 / 2.0);
            if x >= 0.0 && y >= 0.0 && x < size && y < size {
                picture.put_pixel(x as u32, y as u32, Rgb(colour));
            }
        }
    }
}

fn place(rng: &mut ChaCha8Rng, size: u32) -> Placed {
    let size = size as f32;
    let radius = rng.random_range(0.12..0.3) * size;
    let shape = Shape::ALL[rng.random_range(0..Shape::ALL.len())];
    Placed {
        shape,
        centre: [
            rng.random_range(radius..size - radius),
            rng.random_range(radius..size - radius),
        ],
        radius,
        angle: rng.random_range(0.0..std::f32::consts::TAU),
        colour: vivid_colour(rng, shape),
        grain: rng.random(),
    }
}

impl Placed {
    /// How much of the pixel the shape covers, 0 to 1.
    fn coverage(&self, x: u32, y: u32) -> f32 {
        let (dx, dy) = (x as f32 + 0.5 - self.centre[1], y as f32 + 0.5 - self.centre[0]);
        let (sin, cos) = self.angle.sin_cos();
        let (u, v) = ((dx * cos + dy * sin) / self.radius, (dy * cos - dx * sin) / self.radius);
        (0.5 - self.shape.distance(u, v) * self.radius).clamp(0.0, 1.0)
    }

    fn window(&self, size: u32) -> [u32; 4] {
        let low = |c: f32| (c - self.radius - 1.0).max(0.0) as u32;
        let high = |c: f32| ((c + self.radius + 2.0) as u32).min(size);
        [
            low(self.centre[0]),
            low(self.centre[1]),
            high(self.centre[0]),
            high(self.centre[1]),
        ]
    }
}

fn bounds(placed: &Placed, size: u32) -> Option<[u32; 4]> {
    let [top, left, bottom, right] = placed.window(size);
    let mut found: Option<[u32; 4]> = None;
    for y in top..bottom {
        for x in left..right {
            if placed.coverage(x, y) >= 0.5 {
                let [ymin, xmin, ymax, xmax] = found.unwrap_or([y, x, y, x]);
                found = Some([ymin.min(y), xmin.min(x), ymax.max(y + 1), xmax.max(x + 1)]);
            }
        }
    }
    found
}

fn paint(picture: &mut RgbImage, placed: &Placed) {
    let [top, left, bottom, right] = placed.window(picture.width());
    for y in top..bottom {
        for x in left..right {
            let coverage = placed.coverage(x, y);
            if coverage > 0.0 {
                let grain = (fractal(placed.grain, x as f32, y as f32, 5.0) - 0.5) * 30.0;
                let Rgb(below) = *picture.get_pixel(x, y);
                let pixel = std::array::from_fn(|c| {
                    (f32::from(below[c]) * (1.0 - coverage) + (placed.colour[c] + grain).clamp(0.0, 255.0) * coverage)
                        as u8
                });
                picture.put_pixel(x, y, Rgb(pixel));
            }
        }
    }
}

fn overlap(a: &[u32; 4], b: &[u32; 4]) -> f32 {
    let height = a[2].min(b[2]).saturating_sub(a[0].max(b[0])) as f32;
    let width = a[3].min(b[3]).saturating_sub(a[1].max(b[1])) as f32;
    let area = |r: &[u32; 4]| ((r[2] - r[0]) * (r[3] - r[1])) as f32;
    height * width / area(a).min(area(b)).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_tight_and_inside() {
        for index in 0..40 {
            let scene = render(3, 0, index, 128);
            assert!(!scene.objects.is_empty());
            for object in &scene.objects {
                let [ymin, xmin, ymax, xmax] = object.bounds;
                assert!(ymin < ymax && xmin < xmax && ymax <= 128 && xmax <= 128, "{object:?}");
                assert!(ymax - ymin >= 12, "{object:?}");
            }
        }
    }
}
