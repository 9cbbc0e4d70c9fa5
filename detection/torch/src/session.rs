//! A network's plan, executed by libtorch in float32 with channels last; gradients by automatic differentiation.

use coati_detection::network::plan::{Affine, Layer, Norm, Operation, Part, Plan, Source, Weights, plan};
use coati_detection::network::{Activation, NetworkConfig, Regularizer};
use tch::{Device, Kind, Tensor};

use crate::cuda;
use crate::error::Error;
use crate::mask;

/// A network on a device, and what its backward pass needs.
#[derive(Debug)]
pub(crate) struct Session {
    plan: Plan,
    device: Device,
    columns: i64,
    image: [i64; 3],
    sizes: Vec<i64>,
    starts: Vec<usize>,
    /// The regularisers' factors of every parameter (L1, L2), where there are any.
    penalties: [Option<Tensor>; 2],
    /// What is dropped depends on it.
    key: u64,
    pending: Option<Pending>,
}

/// Between a forward pass in training mode and its backward pass.
#[derive(Debug)]
struct Pending {
    params: Tensor,
    boxes: Tensor,
    classes: Tensor,
    statistics: Vec<Statistics>,
}

/// A layer's batch mean and unbiased variance.
#[derive(Debug)]
struct Statistics {
    norm: Norm,
    mean: Tensor,
    variance: Tensor,
}

/// The parameters of one pass, cut into variables.
struct Variables<'a> {
    starts: &'a [usize],
    values: Vec<Tensor>,
}

impl Variables<'_> {
    fn at(&self, offset: usize) -> Result<&Tensor, Error> {
        let index = self.starts.binary_search(&offset);
        let index = index.map_err(|_| Error::NoVariable(offset))?;
        self.values.get(index).ok_or(Error::NoVariable(offset))
    }

    fn optional(&self, offset: Option<usize>) -> Result<Option<&Tensor>, Error> {
        offset.map(|offset| self.at(offset)).transpose()
    }
}

impl Session {
    pub(crate) fn open(config: &str, device: &str, threads: usize) -> Result<Self, Error> {
        let config: NetworkConfig = serde_json::from_str(config)?;
        let wrong = || Error::Device(device.to_owned());
        let device = match device.strip_prefix("cuda:") {
            Some(index) => cuda::device(index.parse().map_err(|_| wrong())?)?,
            None if device == "torch-cpu" => Device::Cpu,
            None => return Err(wrong()),
        };
        tch::set_num_threads(i32::try_from(threads).unwrap_or(1));
        let plan = plan(&config)?;
        let (mut starts, mut sizes, mut start) = (Vec::new(), Vec::new(), 0);
        for spec in &plan.variables {
            starts.push(start);
            sizes.push(spec.elements() as i64);
            start += spec.elements();
        }
        let penalties = penalties(&plan, &starts, &sizes, device)?;
        Ok(Self {
            plan,
            device,
            columns: config.num_classes as i64 + 1,
            image: [config.image_height, config.image_width, config.image_channels].map(|side| side as i64),
            sizes,
            starts,
            penalties,
            key: 0,
            pending: None,
        })
    }

    /// Sets what the next forward passes drop.
    pub(crate) fn set_key(&mut self, key: u64) {
        self.key = key;
    }

    /// Fills `boxes` (`[batch, anchors, 4]`) and `classes` (`[batch, anchors, columns]`).
    pub(crate) fn forward(
        &mut self,
        params: &[f32],
        images: &[f32],
        training: bool,
        boxes: &mut [f32],
        classes: &mut [f32],
    ) -> Result<(), Error> {
        self.pending = None;
        length("params", params.len(), self.plan.elements)?;
        let pixels = self.image.iter().product::<i64>() as usize;
        let batch = images.len() / pixels;
        length("images", images.len(), batch.max(1) * pixels)?;
        let params = Tensor::f_from_slice(params)?
            .f_to_device(self.device)?
            .set_requires_grad(training);
        let [height, width, channels] = self.image;
        // Pixel by pixel in memory, which libtorch calls channels last.
        let images = Tensor::f_from_slice(images)?
            .f_to_device(self.device)?
            .f_view([batch as i64, height, width, channels])?
            .f_permute([0, 3, 1, 2])?
            .f_mul_scalar(f64::from(self.plan.input.0))?
            .f_add(
                &Tensor::f_from_slice(&self.plan.input.1)?
                    .f_to_device(self.device)?
                    .f_view([1, channels, 1, 1])?,
            )?;
        let pass = || self.outputs(&params, &images, training);
        let (found_boxes, found_classes, statistics) = if training { pass()? } else { tch::no_grad(pass)? };
        download("boxes", &found_boxes, boxes)?;
        download("classes", &found_classes, classes)?;
        self.pending = training.then_some(Pending {
            params,
            boxes: found_boxes,
            classes: found_classes,
            statistics,
        });
        Ok(())
    }

    /// Fills `grads`: of trainable variables the gradient with the regularisers', of moving statistics the batch's own values.
    pub(crate) fn backward(&mut self, d_box: &[f32], d_class: &[f32], grads: &mut [f32]) -> Result<(), Error> {
        let pending = self.pending.take().ok_or(Error::NoForward)?;
        let weighted = |outputs: &Tensor, slopes: &[f32]| -> Result<Tensor, Error> {
            length("output gradients", slopes.len(), outputs.numel())?;
            let slopes = Tensor::f_from_slice(slopes)?
                .f_to_device(self.device)?
                .f_view_as(outputs)?;
            Ok(outputs.f_mul(&slopes)?.f_sum(Kind::Float)?)
        };
        // The sum's gradient with respect to the outputs is what was given.
        weighted(&pending.boxes, d_box)?
            .f_add(&weighted(&pending.classes, d_class)?)?
            .f_backward()?;
        let mut found = pending.params.f_grad()?;
        let params = pending.params.f_detach()?;
        if let Some(l1) = &self.penalties[0] {
            found = found.f_add(&params.f_sign()?.f_mul(l1)?)?;
        }
        if let Some(l2) = &self.penalties[1] {
            found = found.f_add(&params.f_mul(l2)?)?;
        }
        download("grads", &found, grads)?;
        for layer in &self.plan.layers {
            // Without batch statistics the moving ones stay as they are.
            if let Some(norm) = layer.norm.filter(|norm| !norm.train) {
                grads[norm.mean..norm.mean + layer.outputs].fill(0.0);
                grads[norm.variance..norm.variance + layer.outputs].fill(0.0);
            }
        }
        for Statistics { norm, mean, variance } in &pending.statistics {
            for (start, values) in [(norm.mean, mean), (norm.variance, variance)] {
                download("statistics", values, &mut grads[start..start + values.numel()])?;
            }
        }
        Ok(())
    }

    fn outputs(
        &self,
        params: &Tensor,
        images: &Tensor,
        training: bool,
    ) -> Result<(Tensor, Tensor, Vec<Statistics>), Error> {
        // One cut into pieces: its gradient is one concatenation.
        let pieces = params.f_split_with_sizes(&self.sizes[..], 0)?;
        let values = pieces.iter().zip(&self.plan.variables);
        let variables = Variables {
            starts: &self.starts,
            values: values
                .map(|(piece, spec)| piece.f_view(&spec.shape[..]))
                .collect::<Result<_, _>>()?,
        };
        let batch = images.size()[0];
        let (mut boxes, mut classes, mut statistics) = (Vec::new(), Vec::new(), Vec::new());
        let mut features: Vec<Option<Tensor>> = Vec::new();
        for (index, layer) in self.plan.layers.iter().enumerate() {
            let x = match layer.source {
                Source::Image => images,
                Source::Layer(source) => features
                    .get(source)
                    .and_then(Option::as_ref)
                    .ok_or(Error::NoVariable(source))?,
            };
            if layer.head.is_some() {
                let parts = layer.head.map_or(&[][..], |head| head.parts);
                for (weights, part) in layer.weights.iter().zip(parts) {
                    let (to, width) = match part {
                        Part::Boxes => (&mut boxes, 4),
                        Part::Classes => (&mut classes, self.columns),
                    };
                    let y = convolution(layer, weights, &variables, x)?;
                    to.push(y.f_permute([0, 2, 3, 1])?.f_reshape([batch, -1, width])?);
                }
                features.push(None);
                continue;
            }
            let Some(weights) = layer.weights.first() else {
                let others = layer.others.iter().map(|&other| {
                    let found = features.get(other).and_then(Option::as_ref);
                    found.ok_or(Error::NoVariable(other))
                });
                let mut y = match layer.operation {
                    Operation::Dropout { keep } if training => x.f_mul(&mask::of(self.key, index, keep, x)?)?,
                    _ => junction(layer, x, &others.collect::<Result<Vec<_>, _>>()?)?,
                };
                if let Some(Affine { gamma, beta }) = layer.affine {
                    let (gamma, beta) = (variables.at(gamma)?, variables.at(beta)?);
                    let channels = [1, -1, 1, 1];
                    y = y.f_mul(&gamma.f_view(channels)?)?.f_add(&beta.f_view(channels)?)?;
                }
                features.push(Some(activated(layer.activation, y)?));
                continue;
            };
            let mut y = convolution(layer, weights, &variables, x)?;
            if let Some(norm) = layer.norm {
                y = normalised(layer, norm, &variables, &y, training, &mut statistics)?;
            }
            features.push(Some(activated(layer.activation, y)?));
        }
        let mut boxes = Tensor::f_cat(&boxes, 1)?;
        if let Some((lo, hi)) = self.plan.clip {
            boxes = boxes.f_clamp(f64::from(lo), f64::from(hi))?;
        }
        Ok((boxes, Tensor::f_cat(&classes, 1)?, statistics))
    }
}

fn convolution(layer: &Layer, weights: &Weights, variables: &Variables, x: &Tensor) -> Result<Tensor, Error> {
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
    let bias = variables.optional(weights.bias)?;
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
    Ok(x.f_conv2d(&kernel, bias, [stride, stride], pad, [1, 1], groups)?)
}

/// A layer without weights.
fn junction(layer: &Layer, x: &Tensor, others: &[&Tensor]) -> Result<Tensor, Error> {
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
            let outside = f64::from(f32::MIN);
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

fn normalised(
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

fn activated(activation: Activation, y: Tensor) -> Result<Tensor, Error> {
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

/// The factors of `sign(w)` and of `w` in the regularisers' gradient.
fn penalties(plan: &Plan, starts: &[usize], sizes: &[i64], device: Device) -> Result<[Option<Tensor>; 2], Error> {
    let mut factors = [None, None];
    for weights in plan.layers.iter().flat_map(|layer| &layer.weights) {
        let (which, factor) = match weights.regularizer {
            Regularizer::None => continue,
            Regularizer::L1 { weight } => (0, weight),
            Regularizer::L2 { weight } => (1, weight),
        };
        let index = starts.binary_search(&weights.offset);
        let index = index.map_err(|_| Error::NoVariable(weights.offset))?;
        let all = factors[which].get_or_insert_with(|| vec![0.0_f32; plan.elements]);
        all[weights.offset..weights.offset + sizes[index] as usize].fill(factor);
    }
    let [l1, l2] = factors.map(|all| {
        all.map(|all| Tensor::f_from_slice(&all)?.f_to_device(device))
            .transpose()
    });
    Ok([l1?, l2?])
}

fn length(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Length { what, found, expected })
}

fn download(what: &'static str, from: &Tensor, to: &mut [f32]) -> Result<(), Error> {
    length(what, to.len(), from.numel())?;
    let from = from.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let len = to.len();
    Ok(from.f_copy_data(to, len)?)
}
