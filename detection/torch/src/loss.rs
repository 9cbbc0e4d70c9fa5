//! The losses of `coati_detection::losses` on the device, and their slopes by automatic differentiation.

use coati_detection::accelerator::loss::{BoxLoss, ClassLoss, DeviceLoss};
use tch::{Kind, Tensor};

use crate::error::Error;

/// `coati_detection::accelerator::loss::BatchTargets` on the device.
#[derive(Debug)]
pub(crate) struct Targets {
    /// `[batch, anchors]`; -1: none.
    pub(crate) columns: Tensor,
    /// `[batch, anchors]`
    pub(crate) class_weights: Tensor,
    /// `[batch, anchors, 4]`
    pub(crate) codes: Tensor,
    /// `[batch, anchors]`
    pub(crate) box_weights: Tensor,
    pub(crate) class_factor: f64,
    pub(crate) box_factor: f64,
}

/// What a batch's losses come to.
#[derive(Debug)]
pub(crate) struct Found {
    /// Of the loss by boxes (`[batch, anchors, 4]`) and class logits (`[batch, anchors, columns]`).
    pub(crate) slopes: [Tensor; 2],
    /// Each image's sum over anchors: of classes, then of boxes.
    pub(crate) sums: Tensor,
}

/// Losses of predictions, which may come from a network but are constants here.
pub(crate) fn losses(loss: &DeviceLoss, targets: &Targets, boxes: &Tensor, classes: &Tensor) -> Result<Found, Error> {
    let leaf = |outputs: &Tensor| -> Result<Tensor, Error> { Ok(outputs.f_detach()?.set_requires_grad(true)) };
    let (boxes, classes) = (leaf(boxes)?, leaf(classes)?);
    let over_anchors = |each: &Tensor| each.f_sum_dim_intlist(1_i64, false, Kind::Float);
    let class_sums = over_anchors(&class_losses(&loss.classification, targets, &classes)?)?;
    let box_sums = over_anchors(&box_losses(loss.localization, targets, &boxes)?)?;
    let total = class_sums
        .f_sum(Kind::Float)?
        .f_mul_scalar(targets.class_factor)?
        .f_add(&box_sums.f_sum(Kind::Float)?.f_mul_scalar(targets.box_factor)?)?;
    let mut slopes = Tensor::f_run_backward(&[&total], &[&boxes, &classes], false, false)?;
    let (Some(d_classes), Some(d_boxes)) = (slopes.pop(), slopes.pop()) else {
        return Err(Error::NoForward);
    };
    Ok(Found {
        slopes: [d_boxes, d_classes],
        sums: Tensor::f_cat(&[class_sums.f_detach()?, box_sums.f_detach()?], 0)?,
    })
}

/// `[batch, anchors]`, weighted. Of an anchor's columns at most one should be 1: the losses are those of zeros everywhere, and what that one
/// changes.
fn class_losses(loss: &ClassLoss, targets: &Targets, logits: &Tensor) -> Result<Tensor, Error> {
    let has = targets.columns.f_ge(0.0)?.f_to_kind(Kind::Float)?;
    let column = targets.columns.f_clamp_min(0.0)?.f_to_kind(Kind::Int64)?;
    let at = |values: &Tensor| -> Result<Tensor, Error> {
        Ok(values
            .f_gather(-1, &column.f_unsqueeze(-1)?, false)?
            .f_squeeze_dim(-1)?)
    };
    let over_columns = |each: &Tensor| each.f_sum_dim_intlist(-1_i64, false, Kind::Float);
    let losses = match *loss {
        // softplus(-x) = softplus(x) - x
        ClassLoss::Sigmoid => over_columns(&logits.f_softplus()?)?.f_sub(&at(logits)?.f_mul(&has)?)?,
        ClassLoss::Focal { gamma, alpha } => {
            let (one, zero) = alpha.map_or((1.0, 1.0), |alpha| (f64::from(alpha), 1.0 - f64::from(alpha)));
            // Wrong by the probability `p` of what should be 0.
            let should_be_zero = |x: &Tensor| -> Result<Tensor, Error> {
                Ok(modulated(&x.f_softplus()?, &x.f_sigmoid()?, gamma)?.f_mul_scalar(zero)?)
            };
            let own = at(logits)?;
            let opposite = own.f_neg()?;
            let should_be_one = modulated(&opposite.f_softplus()?, &opposite.f_sigmoid()?, gamma)?.f_mul_scalar(one)?;
            let change = should_be_one.f_sub(&should_be_zero(&own)?)?;
            over_columns(&should_be_zero(logits)?)?.f_add(&change.f_mul(&has)?)?
        }
        ClassLoss::Softmax { scale } => {
            let logarithms = logits.f_div_scalar(f64::from(scale))?.f_log_softmax(-1, Kind::Float)?;
            at(&logarithms)?.f_neg()?.f_mul(&has)?
        }
    };
    Ok(losses.f_mul(&targets.class_weights)?)
}

fn modulated(losses: &Tensor, wrong: &Tensor, gamma: f32) -> Result<Tensor, Error> {
    if gamma == 0.0 {
        return Ok(losses.shallow_clone());
    }
    Ok(wrong.f_pow_tensor_scalar(f64::from(gamma))?.f_mul(losses)?)
}

/// `[batch, anchors]`, weighted.
fn box_losses(loss: BoxLoss, targets: &Targets, boxes: &Tensor) -> Result<Tensor, Error> {
    let error = boxes.f_sub(&targets.codes)?;
    // Targets that are NaN count as met.
    let error = error.f_masked_fill(&targets.codes.f_isnan()?, 0.0)?;
    let over_code = |each: &Tensor| each.f_sum_dim_intlist(-1_i64, false, Kind::Float);
    let weight = &targets.box_weights;
    Ok(match loss {
        BoxLoss::SmoothL1 { delta } => {
            let delta = f64::from(delta);
            let size = error.f_abs()?;
            let quadratic = size.f_clamp_max(delta)?;
            let linear = size.f_sub(&quadratic)?.f_mul_scalar(delta)?;
            let each = quadratic.f_square()?.f_mul_scalar(0.5)?.f_add(&linear)?;
            over_code(&each)?.f_mul(weight)?
        }
        BoxLoss::L2 => {
            let weighted = error.f_mul(&weight.f_unsqueeze(-1)?)?;
            over_code(&weighted.f_square()?)?.f_mul_scalar(0.5)?
        }
        BoxLoss::L1 => over_code(&error.f_abs()?)?.f_mul(weight)?,
    })
}
