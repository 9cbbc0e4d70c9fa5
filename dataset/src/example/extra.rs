//! What records may hold beside boxes: masks, scores, keypoints, further channels.

use super::{Error, Extras};
use crate::decode::{self, Decoder};
use crate::example::wire::Features;
use crate::groundtruth::Groundtruth;
use crate::pixels::Pixels;

/// How masks are stored (`mask_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskType {
    /// `NUMERICAL_MASKS`: a float a pixel, all masks in one list.
    Numerical,
    /// `PNG_MASKS`: a file a mask.
    Png,
}

const MASK: &str = "image/object/mask";
const SCORES: &str = "image/object/class/multiclass_scores";
const CHANNELS: &str = "image/additional_channels/encoded";

fn wrong(name: &'static str, problem: String) -> Error {
    Error::Feature { name, problem }
}

/// Reads what `extras` ask for; of a record's `count` objects those at the places `good`.
pub(super) fn read(
    features: &Features<'_>,
    extras: &Extras,
    count: usize,
    good: &[usize],
    objects: &mut Groundtruth,
) -> Result<(), Error> {
    if let Some(kind) = extras.masks {
        let masks = masks(features, kind, count)?;
        objects.masks = good.iter().filter_map(|&index| masks.get(index).cloned()).collect();
        let weights = features.floats("image/object/mask/weight")?;
        if weights.len() == count {
            objects.mask_weights = good.iter().map(|&index| weights[index]).collect();
        } else if !weights.is_empty() {
            let problem = format!("holds {} values for {count} objects", weights.len());
            return Err(wrong("image/object/mask/weight", problem));
        }
    }
    if extras.multiclass_scores {
        let scores = features.floats(SCORES)?;
        if count > 0 && scores.len() % count != 0 {
            let problem = format!("{} scores cannot be shared out among {count} objects", scores.len());
            return Err(wrong(SCORES, problem));
        }
        if let Some(classes) = scores.len().checked_div(count).filter(|&classes| classes > 0) {
            let one = |&index: &usize| scores[index * classes..(index + 1) * classes].to_vec();
            objects.multiclass_scores = good.iter().map(one).collect();
        }
    }
    if extras.num_keypoints > 0 {
        keypoints(features, extras.num_keypoints, count, good, objects)?;
    }
    Ok(())
}

/// Masks of all objects (`_reshape_instance_masks`, `_decode_png_instance_masks`): 1 where the stored value is above 0.
fn masks(features: &Features<'_>, kind: MaskType, count: usize) -> Result<Vec<Pixels>, Error> {
    let masks = match kind {
        MaskType::Numerical => {
            let first = |name| Ok::<_, Error>(features.ints(name)?.first().copied());
            let (height, width) = (first("image/height")?.unwrap_or(1), first("image/width")?.unwrap_or(1));
            let side = |value: i64| usize::try_from(value).unwrap_or(0);
            let (height, width) = (side(height), side(width));
            let values = features.floats(MASK)?;
            let size = height.checked_mul(width).unwrap_or(0);
            if size == 0 || values.len() != size.saturating_mul(count) {
                let problem = format!(
                    "holds {} values; {count} masks of {height} x {width} pixels (image/height, image/width) need {}",
                    values.len(),
                    size.saturating_mul(count)
                );
                return Err(wrong(MASK, problem));
            }
            let plane = |mask: &[f32]| Pixels {
                height,
                width,
                channels: 1,
                values: mask.iter().map(|&value| f32::from(u8::from(value > 0.0))).collect(),
            };
            values.chunks_exact(size).map(plane).collect::<Vec<_>>()
        }
        MaskType::Png => {
            let files = features.bytes(MASK)?;
            let mut decoder = Decoder::new(decode::Options::default());
            let mut masks = Vec::with_capacity(files.len());
            for (index, file) in files.into_iter().enumerate() {
                let image = decoder
                    .decode(file)
                    .map_err(|error| wrong(MASK, format!("mask {index}: {error}")))?;
                masks.push(Pixels {
                    height: image.height,
                    width: image.width,
                    channels: 1,
                    // Masks are grey: all three channels say the same.
                    values: image
                        .pixels
                        .iter()
                        .step_by(3)
                        .map(|&byte| f32::from(u8::from(byte > 0)))
                        .collect(),
                });
            }
            masks
        }
    };
    if masks.len() != count {
        return Err(wrong(MASK, format!("holds {} masks for {count} objects", masks.len())));
    }
    Ok(masks)
}

fn keypoints(
    features: &Features<'_>,
    points: usize,
    count: usize,
    good: &[usize],
    objects: &mut Groundtruth,
) -> Result<(), Error> {
    const X: &str = "image/object/keypoint/x";
    let (y, x) = (features.floats("image/object/keypoint/y")?, features.floats(X)?);
    if x.len() != y.len() || x.len() != count.saturating_mul(points) {
        let problem = format!(
            "holds {} values, image/object/keypoint/y {}; {count} objects with num_keypoints: {points} need {}",
            x.len(),
            y.len(),
            count.saturating_mul(points)
        );
        return Err(wrong(X, problem));
    }
    // 0 is not labelled, 1 hidden, 2 seen; where the record does not say, a point that is there is seen.
    let stored = features.ints("image/object/keypoint/visibility")?;
    let visible = |place: usize| {
        if stored.len() == x.len() {
            matches!(stored[place], 1 | 2)
        } else {
            !x[place].is_nan()
        }
    };
    for &index in good {
        let places = index * points..(index + 1) * points;
        objects
            .keypoints
            .push(places.clone().map(|place| [y[place], x[place]]).collect());
        objects.keypoint_visibilities.push(places.map(visible).collect());
    }
    Ok(())
}

/// The files of the further channels.
pub(super) fn additional_channels<'a>(features: &Features<'a>, count: usize) -> Result<Vec<&'a [u8]>, Error> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let files = features.bytes(CHANNELS)?;
    if files.len() != count {
        let problem = format!("holds {} images; num_additional_channels is {count}", files.len());
        return Err(wrong(CHANNELS, problem));
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
