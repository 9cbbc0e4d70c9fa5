//! What single layers compute.

use coati_detection::network::Activation;
use coati_detection::network::plan::{Layer, Norm, Operation, Weights};
use tch::{Kind, Tensor};

use crate::error::Error;
use crate::pass::{Statistics, Variables};

pub(crate) fn convolution(
    layer: &Layer,
    weights: &Weights,
    variables: &Variables,
    x: &Tensor,
) -> Result<Tensor, Error> {
    let window = layer.window;
    let depthwise = layer.operation == Operation::Depthwise;
    // [height, width, in, out] to [out, in / groups, height, width].
    let order: [i64; 4] = if depthwise { [2, 3, 0, 1] } else { [3, 2, 0, 1] };
    let groups = if depthwise { layer.inputs as i64 } else { 1 };
    let mut kernel = variables.at(weights.offset)?.f_permute(order)?;
    if depthwise {
        let size = kernel.size();
        kernel = kernel.f_reshape([-1, 1, size[2], size[3]])?;
    }
    let kind = variables.kind;
    let kernel = kernel.f_to_kind(kind)?;
    let bias = variables.optional(weights.bias)?;
    let bias = bias.map(|bias| bias.f_to_kind(kind)).transpose()?;
    let x = &x.f_to_kind(kind)?;
    let ((top, left), (bottom, right)) = (window.before, window.after());
    let stride = window.stride as i64;
    let even = (top, left) == (bottom, right);
    let pad = if even { [top as i64, left as i64] } else { [0, 0] };
    let padded;
    let x = if even {
        x
    } else {
        padded = x.f_constant_pad_nd([left as i64, right as i64, top as i64, bottom as i64])?;
        &padded
    };
    Ok(x.f_conv2d(&kernel, bias.as_ref(), [stride, stride], pad, [1, 1], groups)?)
}

/// A layer without weights.
pub(crate) fn junction(layer: &Layer, x: &Tensor, others: &[&Tensor]) -> Result<Tensor, Error> {
    let window = layer.window;
    let kernel = [window.kernel.0 as i64, window.kernel.1 as i64];
    let stride = [window.stride as i64, window.stride as i64];
    let ((top, left), (bottom, right)) = (window.before, window.after());
    let pad = [left as i64, right as i64, top as i64, bottom as i64];
    Ok(match layer.operation {
        Operation::Add => {
            let mut sum = x.shallow_clone();
            for other in others {
                sum = sum.f_add(&enlarged(other, &x.size())?)?;
            }
            sum
        }
        Operation::Concat => {
            let mut all = vec![x.shallow_clone()];
            all.extend(others.iter().map(|other| other.shallow_clone()));
            Tensor::f_cat(&all, 1)?
        }
        Operation::Gate => match others {
            [gate, ..] => x.f_mul(gate)?,
            [] => x.shallow_clone(),
        },
        Operation::Dropout { .. } => x.shallow_clone(),
        Operation::GroupNorm { groups, epsilon } => {
            let nothing = None::<&Tensor>;
            x.f_group_norm(groups as i64, nothing, nothing, f64::from(epsilon), false)?
        }
        Operation::MaxPool => {
            // About the least number of the kind.
            let outside = match x.kind() {
                Kind::Half => -65504.0,
                Kind::BFloat16 => -3.38e38,
                _ => f64::from(f32::MIN),
            };
            let padded = x.f_pad(pad, "constant", Some(outside))?;
            padded.f_max_pool2d(kernel, stride, [0, 0], [1, 1], false)?
        }
        _ => {
            let mean = |x: &Tensor| -> Result<Tensor, Error> {
                let padded = x.f_constant_pad_nd(pad)?;
                Ok(padded.f_avg_pool2d(kernel, stride, [0, 0], false, true, None)?)
            };
            // What lies outside does not count.
            mean(x)?.f_div(&mean(&x.f_ones_like()?.f_detach()?)?)?
        }
    })
}

/// Each pixel repeated along sides that are smaller than `size`.
fn enlarged(x: &Tensor, size: &[i64]) -> Result<Tensor, Error> {
    let mut x = x.shallow_clone();
    for dim in [2, 3] {
        if x.size()[dim] != size[dim] {
            let doubled = x.f_repeat_interleave_self_int(2, dim as i64, None)?;
            x = doubled.f_narrow(dim as i64, 0, size[dim])?;
        }
    }
    Ok(x)
}

pub(crate) fn normalised(
    layer: &Layer,
    norm: Norm,
    variables: &Variables,
    y: &Tensor,
    training: bool,
    statistics: &mut Vec<Statistics>,
) -> Result<Tensor, Error> {
    let (gamma, beta) = (variables.optional(norm.gamma)?, variables.optional(norm.beta)?);
    let epsilon = f64::from(norm.epsilon);
    if !(training && norm.train) {
        let mean = variables.at(norm.mean)?.f_detach()?;
        let variance = variables.at(norm.variance)?.f_detach()?;
        return Ok(y.f_batch_norm(gamma, beta, Some(&mean), Some(&variance), false, 0.0, epsilon, true)?);
    }
    // With a momentum of 1 the moving statistics become the batch's own.
    let channels = layer.outputs as i64;
    let mean = Tensor::f_zeros([channels], (Kind::Float, y.device()))?;
    let variance = mean.f_zeros_like()?;
    let normal = y.f_batch_norm(gamma, beta, Some(&mean), Some(&variance), true, 1.0, epsilon, true)?;
    let (mean, mut variance) = (mean.f_detach()?, variance.f_detach()?);
    if y.numel() == layer.outputs {
        // A single sample has no unbiased variance; the reference counts it as 0.
        variance = variance.f_zeros_like()?;
    }
    statistics.push(Statistics { norm, mean, variance });
    Ok(normal)
}

pub(crate) fn activated(activation: Activation, y: Tensor) -> Result<Tensor, Error> {
    let raised = |y: &Tensor| y.f_add_scalar(3.0)?.f_relu6();
    Ok(match activation {
        Activation::None => y,
        Activation::Relu => y.f_relu()?,
        Activation::Relu6 => y.f_relu6()?,
        Activation::Swish => y.f_silu()?,
        Activation::HardSwish => y.f_mul(&raised(&y)?)?.f_mul_scalar(1.0 / 6.0)?,
        Activation::HardSigmoid => raised(&y)?.f_mul_scalar(0.16667)?,
    })
}
