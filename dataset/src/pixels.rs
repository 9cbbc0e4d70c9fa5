//! Images as floats, of any number of channels: what augmentation and resizing work on.

use crate::decode::Image;

/// An image or a mask of floats: `[height, width, channels]`, rows from the top.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pixels {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 3 for colours, 1 for grey images and masks; more where a record has additional channels.
    pub channels: usize,
    /// `height * width * channels` values; of an image from 0 to 255, of a mask 0 or 1.
    pub values: Vec<f32>,
}

impl Pixels {
    /// All values equal.
    pub fn filled(height: usize, width: usize, channels: usize, value: f32) -> Self {
        Self {
            height,
            width,
            channels,
            values: vec![value; height * width * channels],
        }
    }

    /// A mask or grey image of these values; `None` when they are too few or too many.
    pub fn plane(height: usize, width: usize, values: Vec<f32>) -> Option<Self> {
        (height.checked_mul(width) == Some(values.len())).then_some(Self {
            height,
            width,
            channels: 1,
            values,
        })
    }

    /// Values in a row.
    fn stride(&self) -> usize {
        self.width * self.channels
    }

    /// The rows, one after the other.
    pub fn rows(&self) -> impl DoubleEndedIterator<Item = &[f32]> {
        // A row without values would be no row at all.
        self.values.chunks_exact(self.stride().max(1))
    }

    /// The rows, to be changed.
    pub fn rows_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut [f32]> {
        let stride = self.stride().max(1);
        self.values.chunks_exact_mut(stride)
    }

    /// Keeps a window. Clamped to the image.
    pub fn crop(&mut self, top: usize, left: usize, height: usize, width: usize) {
        let (top, left) = (top.min(self.height), left.min(self.width));
        let (height, width) = (height.min(self.height - top), width.min(self.width - left));
        if (top, left, height, width) == (0, 0, self.height, self.width) {
            return;
        }
        let (stride, channels) = (self.stride(), self.channels);
        let mut values = Vec::with_capacity(height * width * channels);
        for row in top..top + height {
            let start = row * stride + left * channels;
            values.extend_from_slice(&self.values[start..start + width * channels]);
        }
        (self.height, self.width, self.values) = (height, width, values);
    }

    /// Mirrors left and right.
    pub fn flip_left_right(&mut self) {
        let channels = self.channels;
        for row in self.rows_mut() {
            row.reverse();
            // Channels were reversed with the columns.
            row.chunks_exact_mut(channels).for_each(<[f32]>::reverse);
        }
    }

    /// Mirrors top and bottom.
    pub fn flip_up_down(&mut self) {
        let values = self.rows().rev().flatten().copied().collect();
        self.values = values;
    }

    /// Turns by 90 degrees counter-clockwise (`tf.image.rot90`).
    pub fn rotate_90(&mut self) {
        let mut values = Vec::with_capacity(self.values.len());
        for column in (0..self.width).rev() {
            for row in 0..self.height {
                let start = (row * self.width + column) * self.channels;
                values.extend_from_slice(&self.values[start..start + self.channels]);
            }
        }
        (self.height, self.width, self.values) = (self.width, self.height, values);
    }

    /// Puts the image on a canvas of `height` x `width` so that its corner lies at (`top`, `left`); what does not fit is
    /// cut off. `color` has a value a channel, or one for all.
    pub fn pad(&mut self, top: usize, left: usize, height: usize, width: usize, color: &[f32]) {
        let channels = self.channels;
        let pixel: Vec<f32> = (0..channels)
            .map(|c| color.get(c).or(color.first()).copied().unwrap_or(0.0))
            .collect();
        let mut canvas = Self {
            height,
            width,
            channels,
            values: pixel.repeat(height * width),
        };
        let columns = self.width.min(width.saturating_sub(left)) * channels;
        for (from, to) in self.rows().zip(canvas.rows_mut().skip(top)) {
            if columns > 0 {
                to[left * channels..left * channels + columns].copy_from_slice(&from[..columns]);
            }
        }
        *self = canvas;
    }

    /// Puts the image below itself.
    pub fn repeat_down(&mut self) {
        self.values.extend_from_within(..);
        self.height *= 2;
    }

    /// Puts the image to the right of itself.
    pub fn repeat_right(&mut self) {
        self.values = self.rows().flat_map(|row| row.iter().chain(row).copied()).collect();
        self.width *= 2;
    }

    /// Adds the first channel of an image of the same size.
    pub fn append_channel(&mut self, image: &Self) {
        let mut values = Vec::with_capacity(self.values.len() + self.height * self.width);
        let added = image.values.iter().step_by(image.channels.max(1));
        for (pixel, added) in self.values.chunks_exact(self.channels).zip(added) {
            values.extend_from_slice(pixel);
            values.push(*added);
        }
        self.values = values;
        self.channels += 1;
    }

    /// Mean of each channel.
    pub fn mean(&self) -> Vec<f32> {
        let mut sums = vec![0.0_f64; self.channels];
        for pixel in self.values.chunks_exact(self.channels.max(1)) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += f64::from(value);
            }
        }
        let count = (self.height * self.width).max(1) as f64;
        sums.into_iter().map(|sum| (sum / count) as f32).collect()
    }

    /// Applies `change` to the first three channels of each pixel; grey images are left as they are
    /// (`_augment_only_rgb_channels`).
    pub fn for_each_rgb(&mut self, mut change: impl FnMut(&mut [f32; 3])) {
        if self.channels < 3 {
            return;
        }
        for pixel in self.values.chunks_exact_mut(self.channels) {
            if let Some(rgb) = pixel.first_chunk_mut::<3>() {
                change(rgb);
            }
        }
    }

    /// One grey channel of red, green and blue (`rgb_to_gray`); the image itself where it has less than three.
    #[must_use]
    pub fn to_gray(self) -> Self {
        if self.channels < 3 {
            return self;
        }
        let values = self
            .values
            .chunks_exact(self.channels)
            .map(|pixel| gray([pixel[0], pixel[1], pixel[2]]))
            .collect();
        Self {
            channels: 1,
            values,
            ..self
        }
    }

    /// The first three channels as bytes, fractions cut off (`tf.cast` to uint8); grey becomes colours.
    pub fn to_image(&self) -> Image {
        let mut pixels = Vec::with_capacity(self.height * self.width * 3);
        for pixel in self.values.chunks_exact(self.channels.max(1)) {
            match *pixel {
                [r, g, b, ..] => pixels.extend([r as u8, g as u8, b as u8]),
                [grey, ..] => pixels.extend([grey as u8; 3]),
                [] => {}
            }
        }
        Image {
            height: self.height,
            width: self.width,
            pixels,
        }
    }
}

impl From<&Image> for Pixels {
    fn from(image: &Image) -> Self {
        Self {
            height: image.height,
            width: image.width,
            channels: 3,
            values: image.pixels.iter().copied().map(f32::from).collect(),
        }
    }
}

/// The reference's weights of red, green and blue (`_rgb_to_grayscale`).
pub(crate) fn gray([r, g, b]: [f32; 3]) -> f32 {
    r * 0.2989 + g * 0.587 + b * 0.114
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two channels, so that a mix-up of columns and channels shows.
    fn counted(height: usize, width: usize) -> Pixels {
        Pixels {
            height,
            width,
            channels: 2,
            values: (0..height * width * 2).map(|value| value as f32).collect(),
        }
    }

    #[test]
    fn windows_and_mirrors() {
        let mut image = counted(2, 3);
        image.crop(1, 1, 5, 2);
        assert_eq!((image.height, image.width), (1, 2));
        assert_eq!(image.values, [8., 9., 10., 11.]);
        image.flip_left_right();
        assert_eq!(image.values, [10., 11., 8., 9.]);
        let mut image = counted(2, 1);
        image.flip_up_down();
        assert_eq!(image.values, [2., 3., 0., 1.]);
    }

    #[test]
    fn four_quarter_turns_are_none() {
        let mut image = counted(2, 3);
        image.rotate_90();
        assert_eq!((image.height, image.width), (3, 2));
        assert_eq!(
            image.values[..4],
            [4., 5., 10., 11.],
            "the last column becomes the first row"
        );
        (0..3).for_each(|_| image.rotate_90());
        assert_eq!(image, counted(2, 3));
    }

    #[test]
    fn padding_and_repeating() {
        let mut image = counted(1, 1);
        image.pad(1, 0, 2, 2, &[7.0, 8.0]);
        assert_eq!(image.values, [7., 8., 7., 8., 0., 1., 7., 8.]);
        let mut image = counted(1, 2);
        image.repeat_right();
        assert_eq!(image.values, [0., 1., 2., 3., 0., 1., 2., 3.]);
        image.repeat_down();
        assert_eq!((image.height, image.width, image.values.len()), (2, 4, 16));
        assert_eq!(image.mean(), [1.0, 2.0]);
    }
}
