//! Boxes and classes on their way into a record.

use super::feature::Record;

/// The lists of `image/object` that every format has.
#[derive(Debug, Default)]
pub(super) struct Objects {
    bounds: [Vec<f32>; 4],
    texts: Vec<Vec<u8>>,
    labels: Vec<i64>,
}

impl Objects {
    /// An object; `bounds` are `[ymin, xmin, ymax, xmax]` in pixels of an image of this size.
    pub(super) fn push_px(&mut self, class: &str, id: u32, bounds: [f64; 4], width: u32, height: u32) {
        let sizes = [height, width, height, width].map(f64::from);
        let [ymin, xmin, ymax, xmax] = std::array::from_fn(|side| (bounds[side] / sizes[side]) as f32);
        self.push(class, id, [ymin, xmin, ymax, xmax]);
    }

    /// An object; `bounds` are normalised.
    pub(super) fn push(&mut self, class: &str, id: u32, bounds: [f32; 4]) {
        for (column, value) in self.bounds.iter_mut().zip(bounds) {
            column.push(value);
        }
        self.texts.push(class.as_bytes().to_vec());
        self.labels.push(i64::from(id));
    }

    /// The ids, for the report.
    pub(super) fn classes(&self) -> Vec<u32> {
        self.labels.iter().map(|&label| label as u32).collect()
    }

    pub(super) fn into_record(self, record: &mut Record) {
        for (name, column) in ["ymin", "xmin", "ymax", "xmax"].into_iter().zip(self.bounds) {
            record.floats(&format!("image/object/bbox/{name}"), column);
        }
        record.bytes("image/object/class/text", self.texts);
        record.ints("image/object/class/label", self.labels);
    }
}

/// Why a box is left out, in the report's short words.
pub(super) const NO_AREA: &str = "no area";
/// As [`NO_AREA`].
pub(super) const OUTSIDE: &str = "outside the image";

/// The box cut to the image, with a note when that changed it; or why it is no box: in short and in full.
/// `bounds` are `[ymin, xmin, ymax, xmax]` in pixels.
pub(super) fn usable(
    bounds: [f64; 4],
    width: u32,
    height: u32,
) -> Result<([f64; 4], Option<String>), (&'static str, String)> {
    let [ymin, xmin, ymax, xmax] = bounds;
    // Written so that NaN is no box.
    if !(ymax > ymin && xmax > xmin) {
        return Err((
            NO_AREA,
            format!("its box has no area (x {xmin} to {xmax}, y {ymin} to {ymax})"),
        ));
    }
    let (w, h) = (f64::from(width), f64::from(height));
    let cut = [
        ymin.clamp(0.0, h),
        xmin.clamp(0.0, w),
        ymax.clamp(0.0, h),
        xmax.clamp(0.0, w),
    ];
    if cut[2] <= cut[0] || cut[3] <= cut[1] {
        return Err((
            OUTSIDE,
            format!("its box (x {xmin} to {xmax}, y {ymin} to {ymax}) lies outside the {width}x{height} image"),
        ));
    }
    let note = (cut != bounds)
        .then(|| format!("cut to the {width}x{height} image (was x {xmin} to {xmax}, y {ymin} to {ymax})"));
    Ok((cut, note))
}
