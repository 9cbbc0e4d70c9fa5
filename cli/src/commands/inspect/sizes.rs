//! How large a set's boxes are.

use serde_json::{Value, json};

/// Boxes by size.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// Root of the area, 1 is the image.
    roots: Vec<f32>,
    /// Width by height, in pixels where the record says the image's size.
    aspects: Vec<f32>,
    /// Below 32x32, below 96x96, and larger, in pixels: COCO's small, medium and large.
    coco: [u64; 3],
}

impl Sizes {
    /// A box, normalised, of an image of this size; 0 where that is unknown.
    pub(super) fn add(&mut self, [ymin, xmin, ymax, xmax]: [f32; 4], height: u32, width: u32) {
        let (h, w) = (ymax - ymin, xmax - xmin);
        self.roots.push((h * w).sqrt());
        if height == 0 || width == 0 {
            self.aspects.push(w / h);
            return;
        }
        let (h, w) = (h * height as f32, w * width as f32);
        self.aspects.push(w / h);
        let area = h * w;
        self.coco[usize::from(area >= 32.0 * 32.0) + usize::from(area >= 96.0 * 96.0)] += 1;
    }

    pub(super) fn json(&self) -> Value {
        json!({"root_area": quantiles(&self.roots), "aspect_ratio": quantiles(&self.aspects),
            "small": self.coco[0], "medium": self.coco[1], "large": self.coco[2]})
    }

    pub(super) fn text(&self) -> Vec<String> {
        let line = |name: &str, values: &[f32]| {
            quantiles(values).map(|[least, tenth, median, ninetieth, most]| {
                format!("{name}: {least:.3} to {most:.3}, median {median:.3}, eight of ten from {tenth:.3} to {ninetieth:.3}")
            })
        };
        let [small, medium, large] = self.coco;
        let mut lines: Vec<String> = [
            line("box sizes (root of the area, 1 is the image)", &self.roots),
            line("aspect ratios (width by height)", &self.aspects),
        ]
        .into_iter()
        .flatten()
        .collect();
        if small + medium + large > 0 {
            lines.push(format!(
                "in pixels: {small} small (below 32x32), {medium} medium (below 96x96), {large} large"
            ));
        }
        lines
    }
}

/// Least, tenth part, median, ninetieth part, most.
fn quantiles(values: &[f32]) -> Option<[f32; 5]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some([0.0, 0.1, 0.5, 0.9, 1.0].map(|share: f64| sorted[(share * last as f64).round() as usize]))
}
