//! From a stored image to a model's input, without augmentation: evaluation and inference.

use crate::decode::{self, Decoder, Image};
use crate::pixels::Pixels;
use crate::resize::{self, ImageResizer, Limits, Resizer, View};

/// What a model wants its images to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Rows; nothing where the resizer leaves many sizes.
    pub height: usize,
    /// Columns; likewise.
    pub width: usize,
    /// `image_resizer`, as in [`crate::batch::Options`].
    pub resizer: Option<ImageResizer>,
    /// Which sizes it may leave.
    pub limits: Limits,
    /// `num_additional_channels`
    pub additional_channels: usize,
}

impl Options {
    /// Three channels, and the resizer's defaults.
    pub fn new(height: usize, width: usize) -> Self {
        Self {
            height,
            width,
            resizer: None,
            limits: Limits::default(),
            additional_channels: 0,
        }
    }

    /// Whether images come out in many sizes.
    pub fn many_sizes(&self) -> bool {
        self.resizer.as_ref().is_some_and(|resizer| resizer.size().is_none())
    }

    /// Channels of the result.
    pub fn channels(&self) -> usize {
        let stored = 3 + self.additional_channels;
        self.resizer.as_ref().map_or(stored, |resizer| resizer.channels(stored))
    }
}

/// What a model is given of an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fitted {
    /// `[height, width, channels]`, values from 0 to 255.
    pub input: Vec<f32>,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Which part of it is picture and not padding, from the upper left corner: shares of its height and width.
    pub part: [f32; 2],
}

/// Why an image does not become an input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The image or an additional channel.
    #[error(transparent)]
    Decode(#[from] decode::Error),
    /// The size.
    #[error(transparent)]
    Resize(#[from] resize::Error),
    /// Other additional channels than the model has.
    #[error("{found} additional channels, the model takes {expected} (num_additional_channels)")]
    Channels {
        /// Of the record.
        found: usize,
        /// Of the model.
        expected: usize,
    },
}

/// Makes inputs one after the other. One a thread.
#[derive(Debug)]
pub struct Fitter {
    options: Options,
    resizer: Resizer,
    decoder: Decoder,
    /// For additional channels.
    grey: Decoder,
}

impl Fitter {
    /// For a model.
    pub fn new(options: Options, decode: decode::Options) -> Self {
        Self {
            resizer: Resizer::new(options.height, options.width),
            decoder: Decoder::new(decode),
            grey: Decoder::new(decode::Options { grey: true, ..decode }),
            options,
        }
    }

    /// Decodes an image and makes the model's input of it and its additional channels, which are files too.
    pub fn decode(&mut self, image: &[u8], channels: &[&[u8]]) -> Result<(Image, Fitted), Error> {
        let image = self.decoder.decode(image)?;
        let fitted = self.fit(&image, channels)?;
        Ok((image, fitted))
    }

    fn fit(&mut self, image: &Image, channels: &[&[u8]]) -> Result<Fitted, Error> {
        let Options {
            height,
            width,
            resizer,
            limits,
            additional_channels,
        } = &self.options;
        if channels.len() != *additional_channels {
            return Err(Error::Channels {
                found: channels.len(),
                expected: *additional_channels,
            });
        }
        if resizer.is_none() && channels.is_empty() {
            let mut input = vec![0.0; self.resizer.output_len()];
            let whole = View::whole(image.height, image.width);
            self.resizer.resize_into(image, whole, &mut input)?;
            return Ok(Fitted {
                input,
                height: *height,
                width: *width,
                part: [1.0; 2],
            });
        }
        let (height, width) = match resizer {
            Some(resizer) if self.options.many_sizes() => {
                let size = resizer.size_of((image.height, image.width));
                // Before a small file is blown up beyond memory.
                limits.check(size)?;
                size
            }
            _ => (*height, *width),
        };
        let mut pixels = Pixels::from(image);
        for file in channels {
            self.grey.check_channel(file, (image.height, image.width))?;
            pixels.append_channel(&Pixels::from(&self.grey.decode(file)?));
        }
        let fixed = ImageResizer::fixed(height, width);
        let resized = resizer.as_ref().unwrap_or(&fixed).apply(&pixels, &[]);
        if (resized.image.height, resized.image.width) != (height, width) {
            return Err(resize::Error::Output {
                found: resized.image.values.len(),
                height,
                width,
            }
            .into());
        }
        let [rows, columns, _] = resized.true_shape;
        Ok(Fitted {
            input: resized.image.values,
            height,
            width,
            part: [rows as f32 / height as f32, columns as f32 / width as f32],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::image;

    fn fitter(resizer: Option<ImageResizer>, additional_channels: usize) -> Fitter {
        let options = Options {
            resizer,
            additional_channels,
            ..Options::new(8, 8)
        };
        Fitter::new(options, decode::Options::default())
    }

    #[test]
    fn what_is_picture_and_what_padding() {
        let resizer = ImageResizer::KeepAspectRatio {
            min: 4,
            max: 8,
            method: crate::resize::method::Method::Bilinear,
            pad: true,
            pad_value: vec![7.0, 8.0, 9.0],
            grayscale: false,
        };
        // 21 x 34 pixels.
        let (stored, fitted) = fitter(Some(resizer), 0).decode(&image("rgb.png"), &[]).unwrap();
        assert_eq!((stored.height, stored.width), (21, 34));
        // Both limits are met by 4 x 6: the longer side would allow 8, the shorter one ends it.
        assert_eq!(fitted.part, [0.5, 0.75]);
        assert_eq!(fitted.input.len(), 8 * 8 * 3);
        assert_eq!(fitted.input[8 * 8 * 3 - 3..], [7.0, 8.0, 9.0]);
    }

    #[test]
    fn images_of_many_sizes_up_to_the_limits() {
        let many = |limits: Limits, resizer: ImageResizer| {
            let options = Options {
                limits,
                ..fitter(Some(resizer), 0).options
            };
            let fitted = Fitter::new(options, decode::Options::default()).decode(&image("rgb.png"), &[]);
            fitted.map(|(_, fitted)| (fitted.height, fitted.width, fitted.input.len(), fitted.part))
        };
        let multiple = |multiple| ImageResizer::PadToMultiple {
            multiple,
            grayscale: false,
        };
        let all = Limits::default;
        assert_eq!(many(all(), ImageResizer::Identity), Ok((21, 34, 21 * 34 * 3, [1.0; 2])));
        let part = [21.0 / 32.0, 34.0 / 64.0];
        assert_eq!(many(all(), multiple(32)), Ok((32, 64, 32 * 64 * 3, part)));
        let small = many(Limits::new(22..=100), ImageResizer::Identity).unwrap_err();
        assert!(small.to_string().contains("21 x 34 pixels"), "{small}");
        // Nobody tries to make it.
        let thin = ImageResizer::Conditional {
            condition: crate::resize::Condition::Smaller,
            threshold: 16_384,
            method: crate::resize::method::Method::Bilinear,
            grayscale: false,
        };
        assert!(
            many(all(), thin)
                .unwrap_err()
                .to_string()
                .contains("16384 x 26526 pixels")
        );
    }

    #[test]
    fn further_channels_come_behind_the_colours() {
        let grey = image("grey.png");
        let (_, fitted) = fitter(None, 2).decode(&grey, &[&grey, &grey]).unwrap();
        assert_eq!((fitted.input.len(), fitted.part), (8 * 8 * 5, [1.0; 2]));
        for pixel in fitted.input.chunks_exact(5) {
            assert!(pixel.iter().all(|value| value == &pixel[0]), "{pixel:?}");
        }
        let none = fitter(None, 2).decode(&grey, &[]).unwrap_err();
        assert_eq!(
            none.to_string(),
            "0 additional channels, the model takes 2 (num_additional_channels)"
        );
    }

    #[test]
    fn one_channel_where_colours_are_left_out() {
        let resizer = ImageResizer::FixedShape {
            height: 8,
            width: 8,
            method: crate::resize::method::Method::Bilinear,
            grayscale: true,
        };
        let mut fitter = fitter(Some(resizer), 0);
        assert_eq!(fitter.options.channels(), 1);
        let (_, fitted) = fitter.decode(&image("rgb.png"), &[]).unwrap();
        assert_eq!(fitted.input.len(), 64);
    }
}
