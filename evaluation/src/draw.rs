//! Boxes with labels and masks drawn into pictures.

use image::{ExtendedColorType, ImageEncoder as _, ImageError, Rgb, RgbImage, codecs};

use crate::mask::Mask;
use crate::palette::{of_class, text_on};
use crate::text::{self, Size, blend};

/// How much of a mask's colour covers what lies below (`draw_mask_on_image_array`).
const MASK_ALPHA: f32 = 0.4;

/// One box to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// `[ymin, xmin, ymax, xmax]`, pixels; parts outside the picture are cut off.
    pub box_px: [f32; 4],
    /// What stands above the box.
    pub text: String,
    /// The class's id in the label map, from 1: chooses the colour.
    pub colour: usize,
}

impl Label {
    fn is_finite(&self) -> bool {
        self.box_px.iter().all(|coordinate| coordinate.is_finite())
    }
}

/// Draws boxes and labels, the last ones on top. Line width and text size follow the picture's size.
pub fn draw_boxes(picture: &mut RgbImage, labels: &[Label]) {
    let side = picture.width().max(picture.height());
    let thickness = i64::from((side / 160).clamp(2, 24));
    for label in labels.iter().filter(|label| label.is_finite()) {
        outline(picture, label.box_px, of_class(label.colour), thickness);
    }
    for label in labels
        .iter()
        .filter(|label| label.is_finite() && !label.text.is_empty())
    {
        write_tag(picture, label, Size::for_picture(side));
    }
}

/// Draws one box in a colour of its own, without a label.
pub fn draw_outline(picture: &mut RgbImage, box_px: [f32; 4], colour: Rgb<u8>) {
    if box_px.iter().all(|coordinate| coordinate.is_finite()) {
        let thickness = (picture.width().max(picture.height()) / 160).clamp(2, 24);
        outline(picture, box_px, colour, thickness.into());
    }
}

/// Lays a mask of the picture's size over it, half transparent, in its class's colour. One of another size is left out.
pub fn draw_mask(picture: &mut RgbImage, mask: &Mask, class: usize) {
    let [height, width] = mask.size();
    if [picture.height(), picture.width()] != [height, width] || height == 0 {
        return;
    }
    for (from, to) in mask.foreground() {
        // Runs go down the columns.
        for at in from..to {
            let (x, y) = ((at / u64::from(height)) as i64, (at % u64::from(height)) as i64);
            blend(picture, x, y, of_class(class), MASK_ALPHA);
        }
    }
}

/// Two pictures side by side with a gap, as in "detections | groundtruth".
pub fn beside(left: &RgbImage, right: &RgbImage) -> RgbImage {
    let gap = 4;
    let mut both = RgbImage::from_pixel(
        left.width() + gap + right.width(),
        left.height().max(right.height()),
        Rgb([255, 255, 255]),
    );
    image::imageops::replace(&mut both, left, 0, 0);
    image::imageops::replace(&mut both, right, i64::from(left.width() + gap), 0);
    both
}

/// A picture as the bytes of a PNG file: quickly, since it is made while others wait.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>, ImageError> {
    use codecs::png::{CompressionType, FilterType, PngEncoder};
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub).write_image(
        picture,
        picture.width(),
        picture.height(),
        ExtendedColorType::Rgb8,
    )?;
    Ok(bytes)
}

/// A picture as the bytes of a JPEG file; `quality` is from 1 to 100.
pub fn jpeg(picture: &RgbImage, quality: u8) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality).write_image(
        picture,
        picture.width(),
        picture.height(),
        ExtendedColorType::Rgb8,
    )?;
    Ok(bytes)
}

/// Clamped, so that a coordinate far outside costs no time and overflows nothing.
fn pixel(value: f32) -> i64 {
    value.round().clamp(-1e6, 1e6) as i64
}

fn outline(picture: &mut RgbImage, corners: [f32; 4], colour: Rgb<u8>, thickness: i64) {
    let [top, left, bottom, right] = corners.map(pixel);
    fill(picture, [top, left, (top + thickness).min(bottom), right], colour);
    fill(picture, [(bottom - thickness).max(top), left, bottom, right], colour);
    fill(picture, [top, left, bottom, (left + thickness).min(right)], colour);
    fill(picture, [top, (right - thickness).max(left), bottom, right], colour);
}

/// Fills `[top, left, bottom, right]` as far as it lies in the picture; the last row and column stay.
pub(crate) fn fill(picture: &mut RgbImage, [top, left, bottom, right]: [i64; 4], colour: Rgb<u8>) {
    let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
    for y in top.max(0)..bottom.min(height) {
        for x in left.max(0)..right.min(width) {
            picture.put_pixel(x as u32, y as u32, colour);
        }
    }
}

/// The text on a filled strip above the box, or inside it where there is no room above.
fn write_tag(picture: &mut RgbImage, label: &Label, size: Size) {
    let colour = of_class(label.colour);
    let margin = size.height() / 8;
    let (width, height) = (size.width(&label.text) + 2 * margin, size.height());
    let [top, left, ..] = label.box_px.map(pixel);
    let left = left.clamp(0, (i64::from(picture.width()) - width).max(0));
    let top = if top < height { top.max(0) } else { top - height };
    fill(picture, [top, left, top + height, left + width], colour);
    text::write(picture, (left + margin, top), &label.text, size, text_on(colour));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_the_outline_and_leaves_the_inside() {
        let mut picture = RgbImage::new(100, 80);
        draw_boxes(
            &mut picture,
            &[Label {
                box_px: [20.0, 30.0, 60.0, 70.0],
                text: String::new(),
                colour: 1,
            }],
        );
        assert_eq!(*picture.get_pixel(30, 40), of_class(1));
        assert_eq!(*picture.get_pixel(50, 20), of_class(1));
        assert_eq!(*picture.get_pixel(50, 40), Rgb([0, 0, 0]));
    }

    #[test]
    fn boxes_beyond_the_picture_are_cut() {
        let mut picture = RgbImage::new(10, 10);
        let label = |box_px| Label {
            box_px,
            text: "a label".into(),
            colour: 1,
        };
        draw_boxes(
            &mut picture,
            &[
                label([-50.0, -50.0, 500.0, 500.0]),
                label([f32::NAN; 4]),
                label([f32::MAX; 4]),
            ],
        );
    }

    #[test]
    fn masks_shine_through() {
        let mut picture = RgbImage::from_pixel(3, 2, Rgb([100; 3]));
        let mask = Mask::from_rows(&[0, 1, 0, 0, 0, 1], 2, 3).unwrap();
        draw_mask(&mut picture, &mask, 2);
        let covered = Rgb([60, 162, 162]);
        let expected = [
            Rgb([100; 3]),
            covered,
            Rgb([100; 3]),
            Rgb([100; 3]),
            Rgb([100; 3]),
            covered,
        ];
        assert!(picture.pixels().eq(expected.iter()), "{picture:?}");
        let before = picture.clone();
        draw_mask(&mut picture, &Mask::empty(5, 5), 2);
        assert_eq!(picture, before);
    }

    #[test]
    fn files_hold_the_picture() {
        let picture = RgbImage::from_fn(7, 5, |x, y| Rgb([x as u8 * 30, y as u8 * 40, 9]));
        let read = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().to_rgb8();
        assert_eq!(read(&png(&picture).unwrap()), picture);
        assert_eq!(read(&jpeg(&picture, 90).unwrap()).dimensions(), (7, 5));
    }
}
