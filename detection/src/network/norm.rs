//! Batch normalisation's arithmetic per channel, between the blocks' sums and the coefficients that the kernels apply.

use super::buffers::NormState;
use super::plan::Layer;
use super::together::Hook;

/// Adds up `[blocks, 2, channels]` in the order of the blocks.
fn totals(sums: &[f32], blocks: usize, channels: usize) -> Vec<f64> {
    let mut totals = vec![0.0; 2 * channels];
    for block in sums.chunks_exact(2 * channels).take(blocks) {
        for (total, &part) in totals.iter_mut().zip(block) {
            *total += f64::from(part);
        }
    }
    totals
}

/// Coefficients from the batch's own sums (`Σ y`, `Σ y²`), or from those of all replicas.
pub(crate) fn from_batch(
    layer: &Layer,
    params: &[f32],
    sums: &[f32],
    blocks: usize,
    count: usize,
    state: &mut NormState,
    hook: &mut Hook,
) -> Result<(), String> {
    let channels = layer.padded_outputs();
    let mut totals = totals(sums, blocks, channels);
    let n = everybodys(layer, &mut totals, count, hook)?;
    for c in 0..layer.outputs {
        let mean = totals[c] / n;
        let variance = (totals[channels + c] / n - mean * mean).max(0.0);
        state.batch_mean_mut()[c] = mean as f32;
        // The moving average gets the unbiased variance; a single sample counts as the reference counts it.
        state.batch_variance_mut()[c] = (variance * n / (n - 1.0).max(1.0)) as f32;
        set(layer, params, c, mean, variance, state);
    }
    Ok(())
}

/// Adds up the replicas' sums and the numbers of pixels behind them, where the layer's statistics are everybody's.
fn everybodys(layer: &Layer, totals: &mut Vec<f64>, count: usize, hook: &mut Hook) -> Result<f64, String> {
    let n = count as f64;
    if !layer.norm.is_some_and(|norm| norm.sync) || !hook.is_set() {
        return Ok(n);
    }
    totals.push(n);
    hook.sum(totals)?;
    Ok(totals.pop().unwrap_or(n))
}

/// Coefficients from the moving statistics, or a bias alone.
pub(crate) fn from_moving(layer: &Layer, params: &[f32], state: &mut NormState) {
    if let Some(norm) = layer.norm {
        for c in 0..layer.outputs {
            let (mean, variance) = (params[norm.mean + c], params[norm.variance + c]);
            set(layer, params, c, f64::from(mean), f64::from(variance), state);
        }
        return;
    }
    if let Some(affine) = layer.affine {
        state.scale_mut()[..layer.outputs].copy_from_slice(&params[affine.gamma..affine.gamma + layer.outputs]);
        state.shift_mut()[..layer.outputs].copy_from_slice(&params[affine.beta..affine.beta + layer.outputs]);
        return;
    }
    let bias = layer.weights.first().and_then(|weights| weights.bias);
    for c in 0..layer.outputs {
        state.scale_mut()[c] = 1.0;
        state.shift_mut()[c] = bias.map_or(0.0, |at| params[at + c]);
    }
}

fn set(layer: &Layer, params: &[f32], c: usize, mean: f64, variance: f64, state: &mut NormState) {
    let Some(norm) = layer.norm else { return };
    let inverse = 1.0 / (variance + f64::from(norm.epsilon)).sqrt();
    let gamma = norm.gamma.map_or(1.0, |at| f64::from(params[at + c]));
    let beta = norm.beta.map_or(0.0, |at| f64::from(params[at + c]));
    state.mean_mut()[c] = mean as f32;
    state.inverse_mut()[c] = inverse as f32;
    state.scale_mut()[c] = (gamma * inverse) as f32;
    state.shift_mut()[c] = (beta - mean * gamma * inverse) as f32;
}

/// Gradients of the layer's normalisation variables from the blocks' sums (`Σ dz`, `Σ dz (y - mean)`), and the coefficients of `dy`.
#[allow(clippy::too_many_arguments, reason = "one caller; the parts are borrowed separately")]
pub(crate) fn backward(
    layer: &Layer,
    params: &[f32],
    sums: &[f32],
    blocks: usize,
    count: usize,
    state: &mut NormState,
    grads: &mut [f32],
    hook: &mut Hook,
) -> Result<(), String> {
    let channels = layer.padded_outputs();
    let own = totals(sums, blocks, channels);
    // What the statistics depend on is everybody's; the gradients of scale and offset are this replica's part.
    let mut all = own.clone();
    let n = everybodys(layer, &mut all, count, hook)?;
    for c in 0..layer.outputs {
        let (sum, product) = (own[c], own[channels + c]);
        let Some(norm) = layer.norm else {
            if let Some(affine) = layer.affine {
                grads[affine.gamma + c] = product as f32;
                grads[affine.beta + c] = sum as f32;
            }
            if let Some((bias, adds)) = layer
                .weights
                .first()
                .and_then(|weights| Some((weights.bias?, weights.adds)))
            {
                grads[bias + c] = sum as f32 + if adds { grads[bias + c] } else { 0.0 };
            }
            state.k1_mut()[c] = 1.0;
            continue;
        };
        let inverse = f64::from(state.inverse()[c]);
        let gamma = norm.gamma.map_or(1.0, |at| f64::from(params[at + c]));
        if let Some(at) = norm.gamma {
            grads[at + c] = (product * inverse) as f32;
        }
        if let Some(at) = norm.beta {
            grads[at + c] = sum as f32;
        }
        let k1 = gamma * inverse;
        state.k1_mut()[c] = k1 as f32;
        if norm.train {
            state.k2_mut()[c] = (-k1 * inverse * inverse * all[channels + c] / n) as f32;
            state.k3_mut()[c] = (-k1 * all[c] / n) as f32;
            grads[norm.mean + c] = state.batch_mean()[c];
            grads[norm.variance + c] = state.batch_variance()[c];
        } else {
            state.k2_mut()[c] = 0.0;
            state.k3_mut()[c] = 0.0;
            grads[norm.mean + c] = 0.0;
            grads[norm.variance + c] = 0.0;
        }
    }
    Ok(())
}
