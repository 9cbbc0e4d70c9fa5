//! Bilinear resizing as `tf.image.resize_images` of TensorFlow 1 does it (`fixed_shape_resizer`): a pixel of the
//! output lies at `index * in / out` of the input, without half-pixel centres, corner alignment or antialiasing;
//! the result stays float.
//!
//! Cropping and mirroring are part of the same pass: a [`View`] says which part of the stored image is meant. That is the
//! way of nearly all images in training; [`ImageResizer`] knows the other resizers and interpolations.

mod image_resizer;
mod limits;
pub mod method;

pub use image_resizer::{Condition, ConfigError, ImageResizer, Resized};
pub use limits::Limits;
pub use method::Method;

use crate::decode::Image;

/// Sides beyond this are taken for a slip of the pen.
const LARGEST: usize = 1 << 14;

/// A rectangle of a stored image, perhaps mirrored left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// First row.
    pub top: usize,
    /// First column in the stored image.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Columns are counted from the right.
    pub mirrored: bool,
}

impl View {
    /// All of an image of that size.
    pub fn whole(height: usize, width: usize) -> Self {
        Self {
            top: 0,
            left: 0,
            height,
            width,
            mirrored: false,
        }
    }

    /// The part of this view that starts at (`top`, `left`) as seen through it. Clamped to the view.
    #[must_use]
    pub fn crop(self, top: usize, left: usize, height: usize, width: usize) -> Self {
        let (top, left) = (top.min(self.height), left.min(self.width));
        let (height, width) = (height.min(self.height - top), width.min(self.width - left));
        let from_left = if self.mirrored { self.width - left - width } else { left };
        Self {
            top: self.top + top,
            left: self.left + from_left,
            height,
            width,
            ..self
        }
    }

    /// This view with left and right exchanged.
    #[must_use]
    pub fn flip(self) -> Self {
        Self {
            mirrored: !self.mirrored,
            ..self
        }
    }
}

/// Why nothing can be resized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The view reaches beyond the image, or has no pixels.
    #[error("view {view:?} does not lie in an image of {height} x {width}")]
    View {
        /// Which.
        view: View,
        /// Rows of the image.
        height: usize,
        /// Columns of the image.
        width: usize,
    },
    /// The output has another size.
    #[error("the output holds {found} floats, {height} x {width} x 3 are needed")]
    Output {
        /// Floats given.
        found: usize,
        /// Rows wanted.
        height: usize,
        /// Columns wanted.
        width: usize,
    },
    /// Too small for a model.
    #[error(
        "image_resizer leaves it {height} x {width} pixels, and the model takes sides of at least {least}\nhint: leave such images out of the records, or use an image_resizer that enlarges them"
    )]
    TooSmall {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// The least that is accepted.
        least: usize,
    },
    /// Too large for a model.
    #[error(
        "image_resizer leaves it {height} x {width} pixels, and the model takes sides of at most {most} and at most {pixels} in all\nhint: keep_aspect_ratio_resizer {{ min_dimension: 600 max_dimension: 1024 }} makes large images smaller"
    )]
    TooLarge {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// The longest side that is accepted.
        most: usize,
        /// The most pixels that are.
        pixels: usize,
    },
}

/// Resizes to one size; keeps its tables and buffers. One a thread.
#[derive(Debug, Clone)]
pub struct Resizer {
    height: usize,
    width: usize,
    columns: Vec<Column>,
    rows: [Row; 2],
}

/// Where a column comes from: byte offsets of the pixels left and right of it, and the weight of the right one.
#[derive(Debug, Clone, Copy)]
struct Column {
    low: usize,
    high: usize,
    weight: f32,
}

/// A row of the input, resized to the output's width.
#[derive(Debug, Clone, Default)]
struct Row {
    of: Option<usize>,
    values: Vec<f32>,
}

impl Resizer {
    /// A resizer to `height` rows and `width` columns.
    pub fn new(height: usize, width: usize) -> Self {
        Self {
            height,
            width,
            columns: Vec::with_capacity(width),
            rows: [Row::default(), Row::default()],
        }
    }

    /// Rows and columns of the output.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// Floats of the output.
    pub fn output_len(&self) -> usize {
        self.height * self.width * 3
    }

    /// Resizes what `view` shows of `image` into `output`, `[height, width, 3]`, values from 0 to 255.
    pub fn resize_into(&mut self, image: &Image, view: View, output: &mut [f32]) -> Result<(), Error> {
        let fits = |start: usize, length: usize, whole: usize| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= whole)
        };
        let whole = image
            .height
            .checked_mul(image.width)
            .and_then(|pixels| pixels.checked_mul(3));
        if !fits(view.top, view.height, image.height)
            || !fits(view.left, view.width, image.width)
            || whole != Some(image.pixels.len())
        {
            return Err(Error::View {
                view,
                height: image.height,
                width: image.width,
            });
        }
        if output.len() != self.output_len() {
            return Err(Error::Output {
                found: output.len(),
                height: self.height,
                width: self.width,
            });
        }
        if output.is_empty() {
            return Ok(());
        }
        self.place_columns(view);
        for row in &mut self.rows {
            row.of = None;
            row.values.resize(self.width * 3 + 1, 0.0);
        }
        let stride = image.width * 3;
        let scale = view.height as f32 / self.height as f32;
        for (index, output) in output.chunks_exact_mut(self.width * 3).enumerate() {
            let (low, high, weight) = interpolate(index, scale, view.height);
            let [first, second] = &mut self.rows;
            // Rows are used in rising order: what was the lower one is often the upper one of the next output row.
            if second.of == Some(low) {
                std::mem::swap(first, second);
            }
            for (row, of) in [(&mut *first, low), (&mut *second, high)] {
                if row.of != Some(of) {
                    let start = (view.top + of) * stride;
                    stretch(&image.pixels[start..], &self.columns, &mut row.values);
                    row.of = Some(of);
                }
            }
            for ((output, &above), &below) in output.iter_mut().zip(&first.values).zip(&second.values) {
                *output = above + (below - above) * weight;
            }
        }
        Ok(())
    }

    fn place_columns(&mut self, view: View) {
        let scale = view.width as f32 / self.width as f32;
        let offset = |column: usize| {
            let column = if view.mirrored { view.width - 1 - column } else { column };
            (view.left + column) * 3
        };
        self.columns.clear();
        self.columns.extend((0..self.width).map(|index| {
            let (low, high, weight) = interpolate(index, scale, view.width);
            Column {
                low: offset(low),
                high: offset(high),
                weight,
            }
        }));
    }
}

/// The neighbours of output `index` and the weight of the higher one (`compute_interpolation_weights`).
fn interpolate(index: usize, scale: f32, size: usize) -> (usize, usize, f32) {
    let position = index as f32 * scale;
    // Rounding of index * scale may reach the end itself.
    let low = (position.floor() as usize).min(size - 1);
    let high = (low + 1).min(size - 1);
    (low, high, position - position.floor())
}

/// Resizes one row of RGB bytes; `row` goes on behind its end where there is more. `output` has room for one more float:
/// four are computed at once, three colours and one that the next pixel overwrites.
fn stretch(row: &[u8], columns: &[Column], output: &mut [f32]) {
    for (index, column) in columns.iter().enumerate() {
        let Some(output) = output.get_mut(index * 3..).and_then(<[f32]>::first_chunk_mut::<4>) else {
            continue;
        };
        let (low, high) = (four(row, column.low), four(row, column.high));
        for ((output, low), high) in output.iter_mut().zip(low).zip(high) {
            let (low, high) = (f32::from(low), f32::from(high));
            *output = low + (high - low) * column.weight;
        }
    }
}

/// The pixel at `offset` and the byte behind it; 0 where the image ends.
#[inline]
fn four(row: &[u8], offset: usize) -> [u8; 4] {
    let rest = row.get(offset..).unwrap_or_default();
    rest.first_chunk::<4>().copied().unwrap_or(match *rest {
        [r, g, b, ..] => [r, g, b, 0],
        _ => [0; 4],
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(height: usize, width: usize) -> Image {
        let pixels = (0..height * width * 3).map(|index| (index * 37 % 251) as u8).collect();
        Image { height, width, pixels }
    }

    fn resized(image: &Image, view: View, height: usize, width: usize) -> Vec<f32> {
        let mut output = vec![f32::NAN; height * width * 3];
        Resizer::new(height, width)
            .resize_into(image, view, &mut output)
            .unwrap();
        output
    }

    fn golden(name: &str) -> (Vec<u64>, Vec<f32>) {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/golden/components/resizers.npz"
        );
        let mut archive = npyz::npz::NpzArchive::open(path).unwrap();
        let array = archive.by_name(name).unwrap().unwrap();
        let shape = array.shape().to_vec();
        if name.starts_with("image") {
            let pixels: Vec<u8> = array.into_vec().unwrap();
            return (shape, pixels.into_iter().map(f32::from).collect());
        }
        (shape, array.into_vec().unwrap())
    }

    #[test]
    fn agrees_with_the_reference() {
        for which in ["a", "b"] {
            let (shape, pixels) = golden(&format!("image_{which}"));
            let pixels = pixels.into_iter().map(|value| value as u8).collect();
            let image = Image {
                height: shape[0] as usize,
                width: shape[1] as usize,
                pixels,
            };
            for case in ["fixed_bilinear", "fixed_up2"] {
                let (shape, expected) = golden(&format!("{case}__{which}"));
                let whole = View::whole(image.height, image.width);
                let found = resized(&image, whole, shape[0] as usize, shape[1] as usize);
                let worst = found
                    .iter()
                    .zip(&expected)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(worst < 1e-4, "{case}__{which}: {worst}");
            }
        }
    }

    #[test]
    fn a_view_equals_a_copied_part() {
        let image = image(13, 17);
        let view = View {
            top: 3,
            left: 5,
            height: 7,
            width: 9,
            mirrored: true,
        };
        let mut part = Image {
            height: 7,
            width: 9,
            pixels: Vec::new(),
        };
        for row in 3..10 {
            for column in (5..14).rev() {
                let start = (row * 17 + column) * 3;
                part.pixels.extend_from_slice(&image.pixels[start..start + 3]);
            }
        }
        assert_eq!(resized(&image, view, 11, 6), resized(&part, View::whole(7, 9), 11, 6));
    }

    #[test]
    fn views_nest() {
        let whole = View::whole(10, 20);
        let part = whole.flip().crop(1, 2, 5, 6);
        assert_eq!(
            part,
            View {
                top: 1,
                left: 12,
                height: 5,
                width: 6,
                mirrored: true
            }
        );
        assert_eq!(
            part.flip().crop(0, 1, 9, 9),
            View {
                top: 1,
                left: 13,
                height: 5,
                width: 5,
                mirrored: false
            }
        );
        assert_eq!(whole.flip().flip(), whole);
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let image = image(9, 8);
        let expected: Vec<_> = image.pixels.iter().map(|&value| f32::from(value)).collect();
        assert_eq!(resized(&image, View::whole(9, 8), 9, 8), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let image = image(4, 4);
        let mut resizer = Resizer::new(2, 2);
        let view = View {
            top: 2,
            left: 0,
            height: 3,
            width: 4,
            mirrored: false,
        };
        assert!(matches!(
            resizer.resize_into(&image, view, &mut [0.0; 12]),
            Err(Error::View { .. })
        ));
        let whole = View::whole(4, 4);
        assert!(matches!(
            resizer.resize_into(&image, whole, &mut [0.0; 11]),
            Err(Error::Output { found: 11, .. })
        ));
        assert!(resizer.resize_into(&image, View::whole(0, 0), &mut [0.0; 12]).is_err());
    }

    proptest! {
        #[test]
        fn results_lie_between_the_pixels(h in 1_usize..20, w in 1_usize..20, oh in 1_usize..40, ow in 1_usize..40) {
            let output = resized(&image(h, w), View::whole(h, w), oh, ow);
            prop_assert!(output.iter().all(|value| (0.0..=250.0).contains(value)));
        }
    }
}
