//! The confusion matrix.

use image::{Rgb, RgbImage};

use super::{FAINT, INK, TEXT, WHITE, shortened};
use crate::draw::fill;
use crate::review::Confusion;
use crate::text;

/// Letters of a class's name.
const NAME: usize = 18;
/// Matrices of more classes have cells of a few pixels and neither names nor numbers.
const NAMED: usize = 40;
/// The matrix is about so wide.
const WIDTH: i64 = 900;

/// A row for each class that is there and one for *nothing*, a column for each that was detected and one for *missed*. Colours are shares of the row,
/// numbers are counts.
pub fn confusion(names: &[String], matrix: &Confusion) -> RgbImage {
    let count = matrix.classes() + 1;
    let named = count <= NAMED + 1;
    let cell = if named {
        (WIDTH / count as i64).clamp(34, 90)
    } else {
        (WIDTH / count as i64).max(3)
    };
    let longest = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0)
        .clamp(7, NAME);
    let label = if named {
        TEXT.advance() * longest as i64 + 16
    } else {
        16
    };
    let (left, top) = (30 + label, 62 + label);
    let side = cell * count as i64;
    let note = "rows: what is there, columns: what was detected";
    let width = (left + side + 24).max(TEXT.width(note) + 40);
    let mut picture = RgbImage::from_pixel(width as u32, (top + side + 24) as u32, WHITE);
    text::write(&mut picture, (16, 12), note, TEXT, INK);
    for row in 0..count {
        let total = matrix.row_total(row);
        for column in 0..count {
            let number = matrix.count(row, column);
            let share = if total == 0 { 0.0 } else { number as f64 / total as f64 };
            let colour = shade(share, row == column);
            let (x, y) = (left + column as i64 * cell, top + row as i64 * cell);
            fill(
                &mut picture,
                [y, x, y + cell, x + cell],
                if named { FAINT } else { colour },
            );
            if !named {
                continue;
            }
            fill(&mut picture, [y, x, y + cell - 1, x + cell - 1], colour);
            let text = short_number(number);
            if number > 0 {
                let at = (x + (cell - TEXT.width(&text)) / 2, y + (cell - TEXT.height()) / 2);
                text::write(&mut picture, at, &text, TEXT, if share > 0.55 { WHITE } else { INK });
            }
        }
    }
    if named {
        for index in 0..count {
            let name = |nothing: &str| {
                names
                    .get(index)
                    .map_or(nothing.to_owned(), |name| shortened(name, NAME))
            };
            let offset = index as i64 * cell + (cell - TEXT.height()) / 2;
            let row = name("nothing");
            let at = (left - 8 - TEXT.width(&row), top + offset);
            text::write(&mut picture, at, &row, TEXT, INK);
            let column = name("missed");
            let at = (left + offset, top - 8 - TEXT.width(&column));
            text::write_upwards(&mut picture, at, &column, TEXT, INK);
        }
    }
    picture
}

/// White to blue on the diagonal, to red elsewhere.
fn shade(share: f64, right: bool) -> Rgb<u8> {
    let full = if right { [8.0, 69.0, 148.0] } else { [165.0, 15.0, 21.0] };
    // The root lets rare mistakes be seen.
    let weight = if right { share } else { share.sqrt() };
    Rgb(full.map(|value: f64| (255.0 + (value - 255.0) * weight).round() as u8))
}

/// `950`, `12k`, `3M`: what fits into a cell.
fn short_number(number: u64) -> String {
    match number {
        0..=9_999 => number.to_string(),
        10_000..=999_999 => format!("{}k", number / 1000),
        _ => format!("{}M", number / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::{Options, Review};
    use crate::sample::{Category, Sample};

    #[test]
    fn a_found_object_is_blue_on_the_diagonal_and_a_missed_one_red_at_the_right() {
        let categories: Vec<_> = (1..=2)
            .map(|id| Category {
                id,
                name: format!("class {id}"),
            })
            .collect();
        let mut review = Review::new(categories, Options::default());
        let corners = [0.0, 0.0, 5.0, 5.0];
        let mut sample = Sample::default();
        sample.groundtruth.boxes = vec![corners, [10.0, 10.0, 20.0, 20.0]];
        sample.groundtruth.classes = vec![1, 2];
        sample.detections.boxes = vec![corners];
        sample.detections.classes = vec![1];
        sample.detections.scores = vec![0.9];
        review.add(&sample, "", &mut Vec::new);
        let names = ["class 1".to_owned(), "class 2".to_owned()];
        let picture = confusion(&names, review.confusion());
        let has = |colour: Rgb<u8>| picture.pixels().filter(|pixel| **pixel == colour).count() > 1000;
        assert!(has(shade(1.0, true)) && has(shade(1.0, false)));
    }

    #[test]
    fn many_classes_fit() {
        let categories: Vec<_> = (1..=600)
            .map(|id| Category {
                id,
                name: format!("{id}"),
            })
            .collect();
        let names: Vec<String> = categories.iter().map(|category| category.name.clone()).collect();
        let review = Review::new(categories, Options::default());
        let picture = confusion(&names, review.confusion());
        assert!(
            picture.width() < 2000 && picture.height() < 2000,
            "{:?}",
            picture.dimensions()
        );
        assert_eq!(short_number(12_345), "12k");
    }
}
