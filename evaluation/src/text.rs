//! Text in pictures, from pre-rendered letters: no font file is looked for.

use image::{Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const WEIGHT: FontWeight = FontWeight::Regular;

/// A size of letters, all equally wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    raster: RasterHeight,
    times: u32,
}

impl Size {
    /// 16 pixels high: plots, pictures up to 600 pixels.
    pub const SMALL: Self = Self {
        raster: RasterHeight::Size16,
        times: 1,
    };
    /// 24 pixels high.
    pub const MEDIUM: Self = Self {
        raster: RasterHeight::Size24,
        times: 1,
    };

    /// Readable in a picture whose longer side has so many pixels.
    pub fn for_picture(side: u32) -> Self {
        match side {
            0..=700 => Self::SMALL,
            701..=1400 => Self::MEDIUM,
            _ => Self {
                raster: RasterHeight::Size32,
                times: (side / 2000).clamp(1, 8),
            },
        }
    }

    /// Height of a line in pixels.
    pub fn height(self) -> i64 {
        (self.raster.val() as u32 * self.times).into()
    }

    /// Width of a letter in pixels.
    pub fn advance(self) -> i64 {
        (get_raster_width(WEIGHT, self.raster) as u32 * self.times).into()
    }

    /// Width of a text in pixels.
    pub fn width(self, text: &str) -> i64 {
        self.advance() * text.chars().count() as i64
    }
}

/// Writes a line of text with its upper left corner at (`left`, `top`); what lies outside is cut off. A letter that the font lacks is `?`.
pub fn write(picture: &mut RgbImage, (left, top): (i64, i64), text: &str, size: Size, colour: Rgb<u8>) {
    spread(text, size, &mut |x, y, coverage| {
        blend(picture, left + x, top + y, colour, coverage);
    });
}

/// As [`write`], from below upwards: the text's lower left corner comes to (`left`, `top + width`).
pub fn write_upwards(picture: &mut RgbImage, (left, top): (i64, i64), text: &str, size: Size, colour: Rgb<u8>) {
    let width = size.width(text);
    spread(text, size, &mut |x, y, coverage| {
        blend(picture, left + y, top + width - 1 - x, colour, coverage);
    });
}

/// Tells of each pixel (x, y) of a text and how much of it is covered, 0 to 1.
fn spread(text: &str, size: Size, pixel: &mut dyn FnMut(i64, i64, f32)) {
    let times = i64::from(size.times);
    for (index, character) in text.chars().enumerate() {
        let letter = get_raster(character, WEIGHT, size.raster).or_else(|| get_raster('?', WEIGHT, size.raster));
        let Some(letter) = letter else { continue };
        for (y, row) in letter.rows().enumerate() {
            for (x, &coverage) in row.iter().enumerate().filter(|&(_, &coverage)| coverage > 0) {
                for (dy, dx) in (0..times * times).map(|n| (n / times, n % times)) {
                    let x = index as i64 * size.advance() + x as i64 * times + dx;
                    pixel(x, y as i64 * times + dy, f32::from(coverage) / 255.0);
                }
            }
        }
    }
}

/// Lays `colour` over a pixel, which need not exist; `coverage` is from 0 to 1.
pub(crate) fn blend(picture: &mut RgbImage, x: i64, y: i64, Rgb(colour): Rgb<u8>, coverage: f32) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else {
        return;
    };
    if let Some(Rgb(pixel)) = picture.get_pixel_mut_checked(x, y) {
        for (old, new) in pixel.iter_mut().zip(colour) {
            *old = (f32::from(*old) + (f32::from(new) - f32::from(*old)) * coverage).round() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_cover_their_cell_and_no_more() {
        let (white, black) = (Rgb([255; 3]), Rgb([0; 3]));
        let mut picture = RgbImage::from_pixel(40, 20, white);
        write(&mut picture, (10, 2), "H\u{4e2d}", Size::SMALL, black);
        let dark = |from: u32, to: u32| (from..to).any(|x| (0..20).any(|y| picture.get_pixel(x, y)[0] < 128));
        let advance = Size::SMALL.advance() as u32;
        assert!(
            !dark(0, 10) && dark(10, 10 + advance),
            "the first letter stands in its place"
        );
        assert!(dark(10 + advance, 10 + 2 * advance), "an unknown letter leaves a mark");
        assert!(!dark(10 + 2 * advance, 40), "nothing stands behind the text");
    }

    #[test]
    fn text_outside_of_the_picture_is_cut_off() {
        let mut picture = RgbImage::new(5, 5);
        write(&mut picture, (-30, -3), "long text", Size::MEDIUM, Rgb([255; 3]));
        write_upwards(
            &mut picture,
            (3, i64::from(u32::MAX) + 5),
            "x",
            Size::SMALL,
            Rgb([255; 3]),
        );
    }
}
