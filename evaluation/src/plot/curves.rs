//! Precision over recall, a curve for each class.

use image::{Rgb, RgbImage};

use super::{FAINT, INK, TEXT, WHITE, line, shortened};
use crate::review::{Curve, mean};
use crate::text;

/// Dark enough for a white ground, and apart from each other.
const COLOURS: [[u8; 3]; 10] = [
    [31, 119, 180],
    [214, 39, 40],
    [44, 140, 44],
    [148, 103, 189],
    [230, 120, 10],
    [23, 160, 180],
    [140, 86, 75],
    [210, 90, 170],
    [120, 120, 20],
    [90, 90, 90],
];
/// The side of the square that the curves lie in, and where it begins.
const SIDE: f64 = 480.0;
const LEFT: f64 = 76.0;
const TOP: f64 = 48.0;
/// Letters of a class's name in the legend.
const NAME: usize = 20;

/// All curves with a legend of classes and their average precision. Beyond ten classes the five best and the five worst have colours, the others are
/// faint; the mean of all classes is black.
pub fn precision_recall(curves: &[Curve]) -> RgbImage {
    let mut order: Vec<usize> = (0..curves.len()).filter(|&index| curves[index].objects > 0).collect();
    order.sort_by(|&a, &b| {
        let value = |index: usize| curves[index].average_precision.unwrap_or(0.0);
        value(b).total_cmp(&value(a))
    });
    let named: Vec<usize> = if order.len() <= COLOURS.len() {
        order.clone()
    } else {
        [&order[..5], &order[order.len() - 5..]].concat()
    };
    let legend = TEXT.advance() * (NAME as i64 + 8) + 60;
    let (width, height) = ((LEFT + SIDE) as i64 + legend, (TOP + SIDE) as i64 + 70);
    let mut picture = RgbImage::from_pixel(width as u32, height as u32, WHITE);
    axes(&mut picture);
    for &index in order.iter().filter(|index| !named.contains(index)) {
        trace(&mut picture, &curves[index].points, 1.0, Rgb([205, 205, 205]));
    }
    let left = (LEFT + SIDE) as i64 + 20;
    let mut top = TOP as i64;
    if !order.is_empty() {
        // Over the numbers.
        let place = left + 32 + TEXT.advance() * (NAME as i64 + 4);
        text::write(&mut picture, (place, top - TEXT.height() - 6), "AP", TEXT, INK);
    }
    let mut entry = |picture: &mut RgbImage, colour: Rgb<u8>, name: &str, ap: f64| {
        let middle = (top + TEXT.height() / 2) as f64;
        line(
            picture,
            (left as f64, middle),
            (left as f64 + 22.0, middle),
            3.0,
            colour,
        );
        let text = format!("{:<NAME$} {ap:.3}", shortened(name, NAME));
        text::write(picture, (left + 32, top), &text, TEXT, INK);
        top += TEXT.height() + 8;
    };
    for (place, &index) in named.iter().enumerate() {
        let curve = &curves[index];
        let colour = Rgb(COLOURS[place % COLOURS.len()]);
        trace(&mut picture, &curve.points, 2.0, colour);
        entry(
            &mut picture,
            colour,
            &curve.class,
            curve.average_precision.unwrap_or(0.0),
        );
    }
    if !order.is_empty() {
        let sum: f64 = order.iter().filter_map(|&index| curves[index].average_precision).sum();
        let black = Rgb([0; 3]);
        if order.len() > 1 {
            trace(&mut picture, &mean(curves), 3.0, black);
        }
        entry(&mut picture, black, "mean of classes", sum / order.len() as f64);
    }
    let without = curves.len() - order.len();
    if without > 0 {
        let text = if without == 1 {
            "1 class without objects".to_owned()
        } else {
            format!("{without} classes without objects")
        };
        let below = top + if order.is_empty() { 0 } else { 8 };
        text::write(&mut picture, (left + 32, below), &text, TEXT, INK);
    }
    picture
}

fn x_of(recall: f64) -> f64 {
    LEFT + recall.clamp(0.0, 1.0) * SIDE
}

fn y_of(precision: f64) -> f64 {
    TOP + (1.0 - precision.clamp(0.0, 1.0)) * SIDE
}

fn axes(picture: &mut RgbImage) {
    for tenth in 0..=10 {
        let at = f64::from(tenth) / 10.0;
        let colour = if tenth == 0 { INK } else { FAINT };
        line(picture, (x_of(at), y_of(0.0)), (x_of(at), y_of(1.0)), 1.0, colour);
        line(picture, (x_of(0.0), y_of(at)), (x_of(1.0), y_of(at)), 1.0, colour);
        if tenth % 2 == 0 {
            let label = format!("{at:.1}");
            let (width, height) = (TEXT.width(&label), TEXT.height());
            let below = (x_of(at) as i64 - width / 2, y_of(0.0) as i64 + 8);
            text::write(picture, below, &label, TEXT, INK);
            let beside = (x_of(0.0) as i64 - width - 10, y_of(at) as i64 - height / 2);
            text::write(picture, beside, &label, TEXT, INK);
        }
    }
    let middle = |text: &str| (SIDE as i64 - TEXT.width(text)) / 2;
    let title = "precision over recall, IoU 0.50";
    text::write(picture, (LEFT as i64 + middle(title), 16), title, TEXT, INK);
    text::write(
        picture,
        (LEFT as i64 + middle("recall"), (TOP + SIDE) as i64 + 36),
        "recall",
        TEXT,
        INK,
    );
    text::write_upwards(picture, (10, TOP as i64 + middle("precision")), "precision", TEXT, INK);
}

/// A curve as steps; it begins at recall 0 and ends on the axis, since no score finds more.
fn trace(picture: &mut RgbImage, points: &[(f64, f64)], width: f64, colour: Rgb<u8>) {
    for pair in corners(points).windows(2) {
        line(picture, pair[0], pair[1], width, colour);
    }
}

/// Where the steps turn, on whole pixels: lines that begin and end within a pixel of each other would show as dots.
fn corners(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let Some(&(_, first)) = points.first() else {
        return Vec::new();
    };
    let last = points.last().map_or(0.0, |point| point.0);
    let mut found = vec![(x_of(0.0).round(), y_of(first).round())];
    let mut add = |next: (f64, f64)| {
        if let [.., before, at] = found.as_slice()
            && ((before.0 == at.0 && at.0 == next.0) || (before.1 == at.1 && at.1 == next.1))
        {
            found.pop();
        }
        if found.last() != Some(&next) {
            found.push(next);
        }
    };
    let mut level = y_of(first).round();
    for &(recall, precision) in points.iter().chain(&[(last, 0.0)]) {
        let (x, y) = (x_of(recall).round(), y_of(precision).round());
        add((x, level));
        add((x, y));
        level = y;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::{Options, Review};
    use crate::sample::{Category, Sample};

    #[test]
    fn a_perfect_class_runs_along_the_upper_edge() {
        let category = Category {
            id: 1,
            name: "x".into(),
        };
        let mut review = Review::new(vec![category], Options::default());
        let corners = [0.0, 0.0, 5.0, 5.0];
        let mut sample = Sample::default();
        sample.groundtruth.boxes = vec![corners];
        sample.groundtruth.classes = vec![1];
        sample.detections.boxes = vec![corners];
        sample.detections.classes = vec![1];
        sample.detections.scores = vec![0.9];
        review.add(&sample, "", &mut Vec::new);
        let picture = precision_recall(&review.curves());
        let at = |recall: f64, precision: f64| *picture.get_pixel(x_of(recall) as u32, y_of(precision) as u32);
        assert_eq!(at(0.55, 1.0), Rgb(COLOURS[0]));
        assert_eq!(at(1.0, 0.45), Rgb(COLOURS[0]));
        assert_eq!(at(0.55, 0.55), WHITE);
    }

    #[test]
    fn steps_turn_only_where_precision_changes() {
        let thousands: Vec<(f64, f64)> = (0..=4000).map(|n| (f64::from(n) / 4000.0, 1.0)).collect();
        let (left, right, top, bottom) = (x_of(0.0), x_of(1.0), y_of(1.0), y_of(0.0));
        assert_eq!(corners(&thousands), [(left, top), (right, top), (right, bottom)]);
        let (half, low) = (x_of(0.5), y_of(0.25));
        assert_eq!(
            corners(&[(0.5, 1.0), (0.5, 0.25), (1.0, 0.25)]),
            [(left, top), (half, top), (half, low), (right, low), (right, bottom)]
        );
        assert_eq!(corners(&[]), []);
    }

    #[test]
    fn without_any_object_the_axes_stand_alone() {
        let empty = precision_recall(&[]);
        assert!(empty.pixels().any(|pixel| *pixel == INK));
    }
}
