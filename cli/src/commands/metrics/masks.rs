//! Masks in records, as the reference stores them: a PNG file an object, or a float a pixel for all objects together.

use coati_dataset::decode::{self, Decoder};
use coati_dataset::example::wire::Features;
use coati_evaluation::Mask;

/// The masks of a feature, one for each of `boxes`; none where it is absent. `size` is what `image/height` and `image/width` say.
pub(super) fn read(features: &Features, name: &str, size: Option<[u32; 2]>, boxes: usize) -> Result<Vec<Mask>, String> {
    let masks = if let Ok(files) = features.bytes(name) {
        of_files(name, &files)?
    } else {
        let floats = features.floats(name).map_err(|error| error.to_string())?;
        of_floats(name, &floats, size, boxes)?
    };
    if masks.is_empty() || masks.len() == boxes {
        return Ok(masks);
    }
    Err(format!(
        "{name}: {} masks for {boxes} boxes\nhint: each box has one",
        masks.len()
    ))
}

fn of_files(name: &str, files: &[&[u8]]) -> Result<Vec<Mask>, String> {
    let mut decoder = Decoder::new(decode::Options::default());
    let one = |(index, file): (usize, &&[u8])| {
        let image = decoder
            .decode(file)
            .map_err(|error| format!("{name}: mask {index}: {error}"))?;
        // Masks are grey: all three channels say the same.
        let first: Vec<u8> = image.pixels.iter().step_by(3).copied().collect();
        let (height, width) = (side(image.height), side(image.width));
        Mask::from_rows(&first, height, width)
            .ok_or_else(|| format!("{name}: mask {index}: no {height} x {width} pixels"))
    };
    files.iter().enumerate().map(one).collect()
}

fn of_floats(name: &str, values: &[f32], size: Option<[u32; 2]>, boxes: usize) -> Result<Vec<Mask>, String> {
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let [height, width] = size.ok_or_else(|| format!("{name}: masks of floats need image/height and image/width"))?;
    let pixels = height as usize * width as usize;
    if pixels == 0 || values.len() != pixels.saturating_mul(boxes) {
        return Err(format!(
            "{name}: {} values\nhint: {boxes} masks of {height} x {width} pixels (image/height, image/width) have {}",
            values.len(),
            pixels.saturating_mul(boxes)
        ));
    }
    let belongs: Vec<u8> = values.iter().map(|&value| u8::from(value > 0.0)).collect();
    let masks = belongs
        .chunks_exact(pixels)
        .map(|one| Mask::from_rows(one, height, width));
    Ok(masks.flatten().collect())
}

fn side(pixels: usize) -> u32 {
    u32::try_from(pixels).unwrap_or(u32::MAX)
}
