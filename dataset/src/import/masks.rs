//! Instance masks on their way into a record.

use hotcoco::mask;
use hotcoco::types::Rle;
use image::ImageEncoder as _;

use super::feature::Record;

/// How `image/object/mask` holds masks (`input_reader.mask_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaskType {
    /// A PNG an object, 1 on it and 0 elsewhere: `PNG_MASKS`.
    #[default]
    Png,
    /// All masks after each other as numbers, `[objects, height, width]`: `NUMERICAL_MASKS`.
    Numerical,
    /// COCO's compressed run lengths, a string an object. Small; for tools of one's own, since no reader of the reference has them.
    Rle,
}

/// Writes masks, each `[height, width]` of zeros and ones.
pub(super) fn into_record(
    masks: &[Vec<u8>],
    (width, height): (u32, u32),
    kind: MaskType,
    record: &mut Record,
) -> Result<(), String> {
    const FIELD: &str = "image/object/mask";
    match kind {
        MaskType::Numerical => {
            let values = masks.iter().flatten().map(|&pixel| f32::from(pixel)).collect();
            record.floats(FIELD, values);
        }
        MaskType::Png => {
            let files = masks.iter().map(|mask| png(mask, width, height));
            record.bytes(FIELD, files.collect::<Result<_, _>>()?);
        }
        MaskType::Rle => {
            let encode = |rows: &Vec<u8>| {
                let columns = turned(rows, height as usize, width as usize);
                let rle = mask::encode(&columns, height, width).map_err(|error| error.to_string())?;
                Ok::<_, String>(mask::rle_to_string(&rle).into_bytes())
            };
            record.bytes(FIELD, masks.iter().map(encode).collect::<Result<_, _>>()?);
        }
    }
    Ok(())
}

fn png(mask: &[u8], width: u32, height: u32) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    image::codecs::png::PngEncoder::new(&mut out)
        .write_image(mask, width, height, image::ExtendedColorType::L8)
        .map_err(|error| format!("the mask cannot be written as PNG: {error}"))?;
    Ok(out)
}

/// The pixels of run lengths, `[height, width]`.
pub(super) fn pixels(rle: &Rle) -> Vec<u8> {
    let (height, width) = (rle.h as usize, rle.w as usize);
    // COCO goes down columns.
    turned(&mask::decode(rle), width, height)
}

/// A matrix of `rows` rows and `columns` columns with the two exchanged.
fn turned(values: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).filter_map(|row| values.get(row * columns + column)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_lengths_and_pixels_are_the_same_mask() {
        // 3 rows, 4 columns.
        let rows = vec![0, 1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 1];
        let rle = mask::encode(&turned(&rows, 3, 4), 3, 4).unwrap();
        assert_eq!(rle.counts, [2, 2, 2, 2, 3, 1]);
        assert_eq!(pixels(&rle), rows);
    }
}
