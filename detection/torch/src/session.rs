//! A network's plan, executed by libtorch with channels last; gradients by automatic differentiation.
//!
//! In bfloat16 and float16 it does as `torch.autocast` does: convolutions have inputs and weights of that kind, what lies between them (batch norm
//! with float32 statistics and coefficients, activations, sums) follows its input, and predictions leave as float32. Variables are float32 and
//! rounded at each use; their gradients are float32 from the convolution on.

use coati_detection::accelerator::Arithmetic;
use coati_detection::accelerator::abi::{Opening, Scaling};
use coati_detection::accelerator::loss::DeviceLoss;
use coati_detection::accelerator::numerics::{Hardware, choose};
use coati_detection::network::plan::{Affine, Layer, Norm, Operation, Part, Plan, Source, Weights, plan};
use coati_detection::network::{Activation, NetworkConfig, Regularizer};
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::loss::{self, Targets};
use crate::mask;
use crate::transfer::{self, Upload, length};
use crate::{context, cuda, scaling};

/// A network on a device, and what its backward pass needs.
#[derive(Debug)]
pub(crate) struct Session {
    config: NetworkConfig,
    plan: Plan,
    device: Device,
    arithmetic: Arithmetic,
    loss: Option<DeviceLoss>,
    columns: i64,
    image: [i64; 3],
    /// The offsets of [`Plan::input`] on the device.
    offset: Tensor,
    sizes: Vec<i64>,
    starts: Vec<usize>,
    /// The regularisers' factors of every parameter (L1, L2), where there are any.
    penalties: [Option<Tensor>; 2],
    /// What is dropped depends on it.
    key: u64,
    uploads: Uploads,
    pending: Option<Pending>,
    leaving: Option<Leaving>,
    /// The device may still read what was sent to it.
    busy: bool,
    /// Bytes of activations beyond which the CPU pretends to have no memory left.
    limit: Option<u64>,
}

/// Sets [`Session::limit`], so that tests see a device that runs out of memory; a CPU that does so takes the process with it.
const LIMIT: &str = "COATI_TEST_TORCH_CPU_BYTES";

/// What a step sends.
#[derive(Debug, Default)]
struct Uploads {
    params: Upload,
    images: Upload,
    targets: [Upload; 4],
    slopes: [Upload; 2],
}

/// Between a forward pass in training mode and its backward pass.
#[derive(Debug)]
struct Pending {
    params: Tensor,
    boxes: Tensor,
    classes: Tensor,
    statistics: Vec<Statistics>,
}

/// A step whose gradients are on their way to the host.
#[derive(Debug)]
struct Leaving {
    gradients: Tensor,
    /// Sums of losses of each image; empty where the host computed them.
    sums: Tensor,
    /// What it takes to do the backward pass again with a smaller scale.
    again: Option<Again>,
}

#[derive(Debug)]
struct Again {
    pending: Pending,
    slopes: [Tensor; 2],
    scale: Tensor,
    /// Whether all gradients were finite (1 or 0), and the scale.
    verdict: Tensor,
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
    /// What convolutions compute with.
    kind: Kind,
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

/// Height, width and channels.
fn image(config: &NetworkConfig) -> [i64; 3] {
    [config.image_height, config.image_width, config.image_channels].map(|side| side as i64)
}

impl Session {
    pub(crate) fn open(opening: &str) -> Result<Self, Error> {
        let opening: Opening = serde_json::from_str(opening)?;
        let wrong = || Error::Device(opening.device.clone());
        let (device, hardware) = match opening.device.strip_prefix("cuda:") {
            Some(index) => {
                let (device, gpu) = cuda::device(index.parse().map_err(|_| wrong())?)?;
                (device, Hardware::Gpu(gpu))
            }
            None if opening.device == "torch-cpu" => (Device::Cpu, Hardware::TorchCpu),
            None => return Err(wrong()),
        };
        let arithmetic = choose(opening.numerics, &hardware).map_err(Error::Refused)?;
        context::allow_tf32(opening.numerics.tf32);
        tch::set_num_threads(i32::try_from(opening.threads).unwrap_or(1));
        let config = opening.network;
        let plan = plan(&config)?;
        let (mut starts, mut sizes, mut start) = (Vec::new(), Vec::new(), 0);
        for spec in &plan.variables {
            starts.push(start);
            sizes.push(spec.elements() as i64);
            start += spec.elements();
        }
        let penalties = penalties(&plan, &starts, &sizes, device)?;
        let offset = Tensor::f_from_slice(&plan.input.1)?.f_to_device(device)?.f_view([
            1,
            config.image_channels as i64,
            1,
            1,
        ])?;
        Ok(Self {
            columns: config.num_classes as i64 + 1,
            image: image(&config),
            config,
            plan,
            device,
            arithmetic,
            loss: opening.loss,
            offset,
            sizes,
            starts,
            penalties,
            key: 0,
            uploads: Uploads::default(),
            pending: None,
            leaving: None,
            busy: false,
            limit: std::env::var(LIMIT).ok().and_then(|text| text.parse().ok()),
        })
    }

    /// Lays the network out for images of (height, width) pixels. A step that was started is forgotten.
    pub(crate) fn lay_out(&mut self, size: (usize, usize)) -> Result<(), Error> {
        let (config, plan) = self.plan.of_size(&self.config, size)?;
        self.pending = None;
        self.leaving = None;
        self.image = image(&config);
        (self.config, self.plan) = (config, plan);
        Ok(())
    }

    /// Sets what the next forward passes drop.
    pub(crate) fn set_key(&mut self, key: u64) {
        self.key = key;
    }

    /// libtorch's error where a batch's activations are more than [`Session::limit`].
    fn within_limit(&self, batch: usize) -> Result<(), Error> {
        let each = |layer: &Layer| (layer.window.output.0 * layer.window.output.1 * layer.outputs * 4) as u64;
        let bytes = batch as u64 * self.plan.layers.iter().map(each).sum::<u64>();
        match self.limit {
            Some(limit) if self.on_host() && bytes > limit => Err(Error::Panic(format!(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate {bytes} bytes. Error code 12 (Cannot allocate memory)"
            ))),
            _ => Ok(()),
        }
    }

    /// What it trains with.
    pub(crate) fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Whether it computes on the CPU.
    pub(crate) fn on_host(&self) -> bool {
        self.device == Device::Cpu
    }

    /// Sends parameters and images and has the forward pass computed in training mode.
    pub(crate) fn start(&mut self, params: &[f32], images: &[f32]) -> Result<(), Error> {
        let (params, images) = self.send(params, images)?;
        let params = params.set_requires_grad(true);
        let kind = match self.arithmetic {
            Arithmetic::Float32 => Kind::Float,
            Arithmetic::Bf16 => Kind::BFloat16,
            Arithmetic::Fp16 => Kind::Half,
        };
        let (boxes, classes, statistics) = self.outputs(&params, &images, true, kind)?;
        self.pending = Some(Pending {
            params,
            boxes,
            classes,
            statistics,
        });
        Ok(())
    }

    /// Fills `boxes` (`[batch, anchors, 4]`) and `classes` (`[batch, anchors, columns]`) with what the step predicts.
    pub(crate) fn predictions(&mut self, boxes: &mut [f32], classes: &mut [f32]) -> Result<(), Error> {
        let pending = self.pending.as_ref().ok_or(Error::NoForward)?;
        let found = (transfer::fetch(&pending.boxes)?, transfer::fetch(&pending.classes)?);
        transfer::wait(self.device);
        transfer::read("boxes", &found.0, boxes)?;
        transfer::read("classes", &found.1, classes)
    }

    /// As [`Session::start`] and [`Session::predictions`], in inference mode and float32.
    pub(crate) fn infer(
        &mut self,
        params: &[f32],
        images: &[f32],
        boxes: &mut [f32],
        classes: &mut [f32],
    ) -> Result<(), Error> {
        let (params, images) = self.send(params, images)?;
        let (found_boxes, found_classes, _) = tch::no_grad(|| self.outputs(&params, &images, false, Kind::Float))?;
        let found = (transfer::fetch(&found_boxes)?, transfer::fetch(&found_classes)?);
        transfer::wait(self.device);
        self.busy = false;
        transfer::read("boxes", &found.0, boxes)?;
        transfer::read("classes", &found.1, classes)
    }

    fn send(&mut self, params: &[f32], images: &[f32]) -> Result<(Tensor, Tensor), Error> {
        self.pending = None;
        self.leaving = None;
        if std::mem::replace(&mut self.busy, true) {
            // A step that nobody collected.
            transfer::wait(self.device);
        }
        let pixels = self.image.iter().product::<i64>() as usize;
        let batch = images.len() / pixels;
        length("params", params.len(), self.plan.elements)?;
        length("images", images.len(), batch.max(1) * pixels)?;
        self.within_limit(batch)?;
        let params = self.uploads.params.send(params, self.device)?;
        let [height, width, channels] = self.image;
        // Pixel by pixel in memory, which libtorch calls channels last.
        let images = self
            .uploads
            .images
            .send(images, self.device)?
            .f_view([batch as i64, height, width, channels])?
            .f_permute([0, 3, 1, 2])?
            .f_mul_scalar(f64::from(self.plan.input.0))?
            .f_add(&self.offset)?;
        Ok((params, images))
    }

    /// Losses and gradients of the step, from what it should predict.
    pub(crate) fn train(&mut self, targets: [&[f32]; 4], (class_factor, box_factor): (f32, f32)) -> Result<(), Error> {
        let loss = self.loss.ok_or(Error::NoLoss)?;
        let pending = self.pending.take().ok_or(Error::NoForward)?;
        let size = pending.boxes.size();
        let anchors = [size[0], size[1]];
        let mut sent = Vec::with_capacity(targets.len());
        for (upload, values) in self.uploads.targets.iter_mut().zip(targets) {
            sent.push(upload.send(values, self.device)?);
        }
        let [columns, class_weights, codes, box_weights] = &sent[..] else {
            return Err(Error::NoLoss);
        };
        let targets = Targets {
            columns: columns.f_view(anchors)?,
            class_weights: class_weights.f_view(anchors)?,
            codes: codes.f_view(&size[..])?,
            box_weights: box_weights.f_view(anchors)?,
            class_factor: f64::from(class_factor),
            box_factor: f64::from(box_factor),
        };
        let found = loss::losses(&loss, &targets, &pending.boxes, &pending.classes)?;
        self.propagate(pending, found.slopes, transfer::fetch(&found.sums)?)
    }

    /// Gradients of the step, from the loss's slopes by its predictions.
    pub(crate) fn backward(&mut self, d_box: &[f32], d_class: &[f32]) -> Result<(), Error> {
        let pending = self.pending.take().ok_or(Error::NoForward)?;
        length("box gradients", d_box.len(), pending.boxes.numel())?;
        length("class gradients", d_class.len(), pending.classes.numel())?;
        let [to_boxes, to_classes] = &mut self.uploads.slopes;
        let slopes = [
            to_boxes.send(d_box, self.device)?.f_view_as(&pending.boxes)?,
            to_classes.send(d_class, self.device)?.f_view_as(&pending.classes)?,
        ];
        self.propagate(pending, slopes, Tensor::f_empty([0], (Kind::Float, Device::Cpu))?)
    }

    /// Has the gradients computed and sent to the host.
    fn propagate(&mut self, pending: Pending, slopes: [Tensor; 2], sums: Tensor) -> Result<(), Error> {
        if self.arithmetic != Arithmetic::Fp16 {
            let gradients = transfer::fetch(&self.gradients(&pending, &slopes, None)?)?;
            self.leaving = Some(Leaving {
                gradients,
                sums,
                again: None,
            });
            return Ok(());
        }
        let scale = scaling::first(&[&slopes[0], &slopes[1]])?;
        self.leaving = Some(self.scaled(pending, slopes, scale, sums)?);
        Ok(())
    }

    /// In float16: gradients, and whether they are finite, which nobody waits for here.
    fn scaled(&self, pending: Pending, slopes: [Tensor; 2], scale: Tensor, sums: Tensor) -> Result<Leaving, Error> {
        let gradients = self.gradients(&pending, &slopes, Some(&scale))?;
        let finite = gradients.f_isfinite()?.f_all()?.f_to_kind(Kind::Float)?;
        let verdict = transfer::fetch(&Tensor::f_stack(&[&finite, &scale], 0)?)?;
        Ok(Leaving {
            gradients: transfer::fetch(&gradients)?,
            sums,
            again: Some(Again {
                pending,
                slopes,
                scale,
                verdict,
            }),
        })
    }

    /// Of trainable variables the gradient with the regularisers', of moving statistics the batch's own values.
    fn gradients(&self, pending: &Pending, slopes: &[Tensor; 2], scale: Option<&Tensor>) -> Result<Tensor, Error> {
        let weighted = |outputs: &Tensor, slopes: &Tensor| -> Result<Tensor, Error> {
            let slopes = match scale {
                Some(scale) => slopes.f_mul(scale)?,
                None => slopes.shallow_clone(),
            };
            Ok(outputs.f_mul(&slopes)?.f_sum(Kind::Float)?)
        };
        // The sum's gradient with respect to the outputs is what was given.
        let sum = weighted(&pending.boxes, &slopes[0])?.f_add(&weighted(&pending.classes, &slopes[1])?)?;
        // Where it may have to be done again, the graph stays.
        let found = Tensor::f_run_backward(&[&sum], &[&pending.params], scale.is_some(), false)?;
        let mut found = found.into_iter().next().ok_or(Error::NoForward)?;
        if let Some(scale) = scale {
            found = found.f_div(scale)?;
        }
        let params = pending.params.f_detach()?;
        if let Some(l1) = &self.penalties[0] {
            found = found.f_add(&params.f_sign()?.f_mul(l1)?)?;
        }
        if let Some(l2) = &self.penalties[1] {
            found = found.f_add(&params.f_mul(l2)?)?;
        }
        let found = found.f_detach()?;
        let at = |start: usize, len: usize| found.f_narrow(0, start as i64, len as i64);
        for layer in &self.plan.layers {
            // Without batch statistics the moving ones stay as they are.
            if let Some(norm) = layer.norm.filter(|norm| !norm.train) {
                let _ = at(norm.mean, layer.outputs)?.f_zero_()?;
                let _ = at(norm.variance, layer.outputs)?.f_zero_()?;
            }
        }
        for Statistics { norm, mean, variance } in &pending.statistics {
            for (start, values) in [(norm.mean, mean), (norm.variance, variance)] {
                at(start, values.numel())?.f_copy_(values)?;
            }
        }
        Ok(found)
    }

    /// Waits for the step. Fills `grads`, and `sums` after [`Session::train`].
    pub(crate) fn collect(&mut self, grads: &mut [f32], sums: &mut [f32]) -> Result<Scaling, Error> {
        let mut leaving = self.leaving.take().ok_or(Error::NoForward)?;
        let mut scaling = Scaling { scale: 1.0, repeats: 0 };
        transfer::wait(self.device);
        while let Some(again) = leaving.again.take() {
            let mut verdict = [0.0; 2];
            transfer::read("verdict", &again.verdict, &mut verdict)?;
            scaling.scale = verdict[1];
            if verdict[0] == 1.0 || scaling.repeats == scaling::MOST_REPEATS {
                break;
            }
            scaling.repeats += 1;
            let scale = scaling::smaller(&again.scale)?;
            leaving = self.scaled(again.pending, again.slopes, scale, leaving.sums)?;
            transfer::wait(self.device);
        }
        self.busy = false;
        if !sums.is_empty() || leaving.sums.numel() > 0 {
            transfer::read("sums", &leaving.sums, sums)?;
        }
        transfer::read("grads", &leaving.gradients, grads).map(|()| scaling)
    }

    fn outputs(
        &self,
        params: &Tensor,
        images: &Tensor,
        training: bool,
        kind: Kind,
    ) -> Result<(Tensor, Tensor, Vec<Statistics>), Error> {
        // One cut into pieces: its gradient is one concatenation.
        let pieces = params.f_split_with_sizes(&self.sizes[..], 0)?;
        let values = pieces.iter().zip(&self.plan.variables);
        let variables = Variables {
            starts: &self.starts,
            values: values
                .map(|(piece, spec)| piece.f_view(&spec.shape[..]))
                .collect::<Result<_, _>>()?,
            kind,
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
                    let y = y.f_permute([0, 2, 3, 1])?.f_reshape([batch, -1, width])?;
                    to.push(y.f_to_kind(Kind::Float)?);
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
