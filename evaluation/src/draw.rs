//! Boxes with labels drawn into pictures.

use font8x8::UnicodeFonts as _;
use image::{Rgb, RgbImage};

/// One box to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// `[ymin, xmin, ymax, xmax]`, pixels; parts outside the picture are cut off.
    pub box_px: [f32; 4],
    /// What stands above the box.
    pub text: String,
    /// Chooses the colour: equal numbers, equal colours.
    pub colour: usize,
}

/// Bright colours that stay apart from each other and from most photographs, by class.
const PALETTE: [[u8; 3]; 12] = [
    [127, 255, 0],
    [0, 255, 255],
    [255, 140, 0],
    [255, 105, 180],
    [255, 215, 0],
    [138, 120, 255],
    [64, 224, 208],
    [250, 128, 114],
    [173, 255, 47],
    [30, 144, 255],
    [218, 112, 214],
    [245, 222, 179],
];

/// The colour of a class.
pub fn colour(index: usize) -> Rgb<u8> {
    Rgb(PALETTE[index % PALETTE.len()])
}

/// Draws boxes and labels, the last ones on top. Line width and text size follow the picture's size.
pub fn draw_boxes(picture: &mut RgbImage, labels: &[Label]) {
    let scale = (picture.width().max(picture.height()) / 400).clamp(1, 6);
    for label in labels {
        if label.box_px.iter().any(|coordinate| !coordinate.is_finite()) {
            continue;
        }
        outline(picture, label.box_px, colour(label.colour), i64::from(scale) * 2);
    }
    for label in labels {
        if label.box_px.iter().any(|coordinate| !coordinate.is_finite()) || label.text.is_empty() {
            continue;
        }
        write_tag(picture, label, i64::from(scale));
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

fn outline(picture: &mut RgbImage, [ymin, xmin, ymax, xmax]: [f32; 4], colour: Rgb<u8>, thickness: i64) {
    let [top, left, bottom, right] = [ymin, xmin, ymax, xmax].map(|v| v.round() as i64);
    fill(picture, left, top, right, top + thickness, colour);
    fill(picture, left, bottom - thickness, right, bottom, colour);
    fill(picture, left, top, left + thickness, bottom, colour);
    fill(picture, right - thickness, top, right, bottom, colour);
}

fn fill(picture: &mut RgbImage, left: i64, top: i64, right: i64, bottom: i64, colour: Rgb<u8>) {
    let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
    for y in top.max(0)..bottom.min(height) {
        for x in left.max(0)..right.min(width) {
            picture.put_pixel(x as u32, y as u32, colour);
        }
    }
}

/// The text on a filled strip above the box, or inside it where there is no room above.
fn write_tag(picture: &mut RgbImage, label: &Label, scale: i64) {
    let margin = scale;
    let height = 8 * scale + 2 * margin;
    let width = 8 * scale * label.text.chars().count() as i64 + 2 * margin;
    let left = (label.box_px[1].round() as i64).clamp(0, (i64::from(picture.width()) - width).max(0));
    let mut top = label.box_px[0].round() as i64 - height;
    if top < 0 {
        top = label.box_px[0].round().max(0.0) as i64;
    }
    fill(picture, left, top, left + width, top + height, colour(label.colour));
    for (index, character) in label.text.chars().enumerate() {
        let glyph = font8x8::BASIC_FONTS
            .get(character)
            .or_else(|| font8x8::LATIN_FONTS.get(character))
            .unwrap_or([0; 8]);
        for (row, bits) in glyph.iter().enumerate() {
            for column in 0..8 {
                if bits >> column & 1 == 1 {
                    let x = left + margin + (index as i64 * 8 + column) * scale;
                    let y = top + margin + row as i64 * scale;
                    fill(picture, x, y, x + scale, y + scale, Rgb([0, 0, 0]));
                }
            }
        }
    }
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
                colour: 0,
            }],
        );
        assert_eq!(*picture.get_pixel(30, 40), colour(0));
        assert_eq!(*picture.get_pixel(50, 20), colour(0));
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
}
