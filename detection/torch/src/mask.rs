//! Masks of dropout, made by the same function as on the CPU.

use coati_detection::network::dropout::Mask;
use tch::Tensor;

use crate::error::Error;

/// What each value of `x` (`[batch, channels, height, width]`) is multiplied by in layer `layer`.
pub(crate) fn of(key: u64, layer: usize, keep: f32, x: &Tensor) -> Result<Tensor, Error> {
    let size = x.size();
    let (batch, values) = (size[0], size[1..].iter().product::<i64>() as usize);
    let factors: Vec<f32> = (0..batch as usize)
        .flat_map(|image| {
            let mask = Mask::new(key, layer, image, keep);
            (0..values).map(move |index| mask.factor(index))
        })
        .collect();
    // Values are counted row, column, channel.
    Ok(Tensor::f_from_slice(&factors)?
        .f_view([batch, size[2], size[3], size[1]])?
        .f_permute([0, 3, 1, 2])?
        .f_to_device(x.device())?)
}
