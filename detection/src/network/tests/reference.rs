//! The same network in libtorch, float64, differentiated automatically: the judge of the kernels.

use tch::{Kind, Tensor};

use super::super::dropout::Mask;
use super::super::plan::{Layer, Operation, Part, Plan, Source, Weights, plan};
use super::super::{
    Activation, BatchNorm, Hyperparams, InputRange, Mode, Network, NetworkConfig, Outputs, PredictorConfig,
    PredictorKind, Regularizer,
};
use super::{noise, pictures, relative_error, small};

struct Reference {
    plan: Plan,
    params: Vec<Tensor>,
    starts: Vec<usize>,
}

struct Forward {
    /// `[batch, anchors, 4]`
    boxes: Tensor,
    /// `[batch, anchors, columns]`
    classes: Tensor,
    /// Offsets of moving statistics with the batch's own (mean, or unbiased variance).
    statistics: Vec<(usize, Tensor)>,
}

impl Reference {
    fn new(config: &NetworkConfig, params: &[f32]) -> Self {
        let plan = plan(config).unwrap();
        let mut starts = Vec::new();
        let mut tensors = Vec::new();
        let mut at = 0;
        for spec in &plan.variables {
            let values = Tensor::from_slice(&params[at..at + spec.elements()]).to_kind(Kind::Double);
            tensors.push(values.reshape(&spec.shape[..]).set_requires_grad(true));
            starts.push(at);
            at += spec.elements();
        }
        Self {
            plan,
            params: tensors,
            starts,
        }
    }

    fn at(&self, offset: usize) -> &Tensor {
        &self.params[self.starts.binary_search(&offset).unwrap()]
    }

    fn convolution(&self, layer: &Layer, weights: &Weights, x: &Tensor) -> Tensor {
        let window = layer.window;
        let x = padded(layer, x);
        let depthwise = layer.operation == Operation::Depthwise;
        let order: [i64; 4] = if depthwise { [2, 3, 0, 1] } else { [3, 2, 0, 1] };
        let groups = if depthwise { layer.inputs as i64 } else { 1 };
        let stride = window.stride as i64;
        let mut kernel = self.at(weights.offset).permute(order);
        if depthwise {
            let size = kernel.size();
            kernel = kernel.reshape([-1, 1, size[2], size[3]]);
        }
        x.conv2d(&kernel, None::<Tensor>, [stride, stride], [0, 0], [1, 1], groups)
    }

    /// What a forward pass in float64 gives.
    fn forward(&self, images: &Tensor, columns: i64, training: bool) -> Forward {
        let batch = images.size()[0];
        let mut features: Vec<Tensor> = Vec::new();
        let (mut boxes, mut classes, mut statistics) = (Vec::new(), Vec::new(), Vec::new());
        for (index, layer) in self.plan.layers.iter().enumerate() {
            let x = match layer.source {
                Source::Image => images.shallow_clone(),
                Source::Layer(source) => features[source].shallow_clone(),
            };
            if layer.head.is_some() {
                let head = layer.head.unwrap();
                for (weights, part) in layer.weights.iter().zip(head.parts) {
                    let (to, width) = match part {
                        Part::Boxes => (&mut boxes, 4),
                        Part::Classes => (&mut classes, columns),
                    };
                    let bias = self.at(weights.bias.unwrap()).reshape([1, -1, 1, 1]);
                    let y = self.convolution(layer, weights, &x) + bias;
                    to.push(y.permute([0, 2, 3, 1]).reshape([batch, -1, width]));
                }
                features.push(Tensor::new());
                continue;
            }
            let Some(weights) = layer.weights.first() else {
                let others: Vec<&Tensor> = layer.others.iter().map(|&other| &features[other]).collect();
                let mut y = match layer.operation {
                    Operation::Dropout { keep } if training => &x * dropped(index, keep, &x),
                    _ => junction(layer, &x, &others),
                };
                if let Some(affine) = layer.affine {
                    let [gamma, beta] = [affine.gamma, affine.beta].map(|at| self.at(at).reshape([1, -1, 1, 1]));
                    y = y * gamma + beta;
                }
                features.push(activated(layer.activation, y));
                continue;
            };
            let mut y = self.convolution(layer, weights, &x);
            if let Some(bias) = weights.bias {
                y += self.at(bias).reshape([1, -1, 1, 1]);
            }
            if let Some(norm) = layer.norm {
                let per_channel = |t: &Tensor| t.reshape([1, -1, 1, 1]);
                let (mean, variance) = if training && norm.train {
                    let mean = y.mean_dim([0_i64, 2, 3].as_slice(), true, None);
                    let variance = (&y - &mean).square().mean_dim([0_i64, 2, 3].as_slice(), true, None);
                    let n = (batch as usize * layer.window.outputs()) as f64;
                    statistics.push((norm.mean, mean.flatten(0, -1)));
                    statistics.push((norm.variance, variance.flatten(0, -1) * (n / (n - 1.0).max(1.0))));
                    (mean, variance)
                } else {
                    (
                        per_channel(self.at(norm.mean)).detach(),
                        per_channel(self.at(norm.variance)).detach(),
                    )
                };
                y = (y - mean) / (variance + f64::from(norm.epsilon)).sqrt();
                if let Some(gamma) = norm.gamma {
                    y *= per_channel(self.at(gamma));
                }
                if let Some(beta) = norm.beta {
                    y += per_channel(self.at(beta));
                }
            }
            features.push(activated(layer.activation, y));
        }
        Forward {
            boxes: match self.plan.clip {
                Some((lo, hi)) => Tensor::cat(&boxes, 1).clamp(f64::from(lo), f64::from(hi)),
                None => Tensor::cat(&boxes, 1),
            },
            classes: Tensor::cat(&classes, 1),
            statistics,
        }
    }

    fn penalty(&self) -> Tensor {
        let mut total = Tensor::from(0.0_f64);
        for weights in self.plan.layers.iter().flat_map(|layer| &layer.weights) {
            let values = self.at(weights.offset);
            let penalty = match weights.regularizer {
                Regularizer::None => continue,
                Regularizer::L1 { weight } => values.abs().sum(Kind::Double) * f64::from(weight),
                Regularizer::L2 { weight } => values.square().sum(Kind::Double) * (0.5 * f64::from(weight)),
            };
            total += penalty;
        }
        total
    }
}

/// The key of every step here.
const KEY: u64 = 77;

fn activated(activation: Activation, y: Tensor) -> Tensor {
    let raised = |y: &Tensor| (y + 3.0).clamp(0.0, 6.0);
    match activation {
        Activation::None => y,
        Activation::Relu => y.clamp_min(0.0),
        Activation::Relu6 => y.clamp(0.0, 6.0),
        Activation::Swish => y.sigmoid() * &y,
        Activation::HardSwish => raised(&y) * &y / 6.0,
        Activation::HardSigmoid => raised(&y) * 0.16667,
    }
}

/// The factors of dropout, which are the kernels' own.
fn dropped(layer: usize, keep: f32, x: &Tensor) -> Tensor {
    let size = x.size();
    let values = size[1..].iter().product::<i64>() as usize;
    let factors: Vec<f32> = (0..size[0] as usize)
        .flat_map(|image| {
            let mask = Mask::new(KEY, layer, image, keep);
            (0..values).map(move |index| mask.factor(index))
        })
        .collect();
    let factors = Tensor::from_slice(&factors).to_kind(Kind::Double);
    factors
        .reshape([size[0], size[2], size[3], size[1]])
        .permute([0, 3, 1, 2])
}

/// With the zeros that a layer's window reads beyond the edges.
fn padded(layer: &Layer, x: &Tensor) -> Tensor {
    let ((top, left), (bottom, right)) = (layer.window.before, layer.window.after());
    x.constant_pad_nd([left as i64, right as i64, top as i64, bottom as i64])
}

fn junction(layer: &Layer, x: &Tensor, others: &[&Tensor]) -> Tensor {
    let window = layer.window;
    let kernel = [window.kernel.0 as i64, window.kernel.1 as i64];
    let stride = [window.stride as i64, window.stride as i64];
    match layer.operation {
        Operation::Add => {
            let size = x.size();
            let mut sum = x.shallow_clone();
            for other in others {
                let mut other = other.shallow_clone();
                for dim in [2_i64, 3] {
                    if other.size()[dim as usize] != size[dim as usize] {
                        let doubled = other.repeat_interleave_self_int(2, dim, None);
                        other = doubled.narrow(dim, 0, size[dim as usize]);
                    }
                }
                sum += other;
            }
            sum
        }
        Operation::Concat => {
            let mut all = vec![x.shallow_clone()];
            all.extend(others.iter().map(|other| other.shallow_clone()));
            Tensor::cat(&all, 1)
        }
        Operation::Gate => x * others[0],
        Operation::Dropout { .. } => x.shallow_clone(),
        Operation::GroupNorm { groups, epsilon } => {
            let size = x.size();
            let groups = x.reshape([size[0], groups as i64, -1]);
            let mean = groups.mean_dim(-1, true, None);
            let variance = (&groups - &mean).square().mean_dim(-1, true, None);
            ((groups - mean) / (variance + f64::from(epsilon)).sqrt()).reshape(&size[..])
        }
        Operation::MaxPool => {
            // Outside counts as less than anything.
            let outside = (padded(layer, &x.ones_like()) - 1.0) * 1e30;
            (padded(layer, x) + outside).max_pool2d(kernel, stride, [0, 0], [1, 1], false)
        }
        _ => {
            let mean = |x: &Tensor| padded(layer, x).avg_pool2d(kernel, stride, [0, 0], false, true, None);
            mean(x) / mean(&x.ones_like())
        }
    }
}

/// The images as the first layer reads them: `[batch, channels, height, width]`.
fn input(config: &NetworkConfig, images: &[f32]) -> Tensor {
    let channels = config.image_channels as i64;
    let shape = [-1, config.image_height as i64, config.image_width as i64, channels];
    let x = Tensor::from_slice(images)
        .to_kind(Kind::Double)
        .reshape(shape)
        .permute([0, 3, 1, 2]);
    match config.input {
        InputRange::Bytes => {
            let (multiplier, offset) = plan(config).unwrap().input;
            let offset = Tensor::from_slice(&offset).to_kind(Kind::Double);
            x * f64::from(multiplier) + offset.reshape([1, channels, 1, 1])
        }
        InputRange::Normalised => x,
    }
}

/// Outputs in training mode, in float64.
pub(super) fn predictions(config: &NetworkConfig, params: &[f32], images: &[f32]) -> Outputs {
    let reference = Reference::new(config, params);
    let found = reference.forward(&input(config, images), config.num_classes as i64 + 1, true);
    Outputs {
        box_encodings: floats(&found.boxes),
        class_logits: floats(&found.classes),
    }
}

fn floats(t: &Tensor) -> Vec<f32> {
    Vec::try_from(t.detach().flatten(0, -1).to_kind(Kind::Float)).unwrap()
}

/// Compares outputs and gradients of one step on every instruction set.
///
/// Where some value lies within float32's rounding of a corner of its activation, float64 may see the other side of it. The slope there is
/// another, and on small maps one such value moves whole gradients by percents. So parameters are drawn anew until none does; kernels that are
/// wrong are wrong for all of them.
fn agrees(config: &NetworkConfig, batch: usize, tolerance: f64) {
    let images = pictures(batch, config, 5);
    for isa in crate::kernels::Isa::available() {
        let mut complaints = (9..25).map(|seed| agrees_on(config, &images, seed, tolerance, isa));
        let first = complaints.next().unwrap();
        if let Err(complaint) = first {
            println!("{complaint}");
            assert!(complaints.any(|other| other.is_ok()), "{complaint}");
        }
    }
}

fn agrees_on(
    config: &NetworkConfig,
    images: &[f32],
    seed: u64,
    tolerance: f64,
    isa: crate::kernels::Isa,
) -> Result<(), String> {
    let mut network = Network::with_isa(config, isa).unwrap();
    network.set_key(KEY);
    let mut params = network.init_values(3);
    // Scrambled, so that nothing sits at a special value.
    for (p, x) in params.iter_mut().zip(noise(network.elements(), seed)) {
        *p += 0.1 * p.abs().max(0.2) * x;
    }
    let params = &params[..];
    let outputs = network.forward(params, images, Mode::Train).unwrap();
    let d_box: Vec<f32> = noise(outputs.box_encodings.len(), 11);
    let d_class: Vec<f32> = noise(outputs.class_logits.len(), 12);
    let mut grads = vec![f32::NAN; params.len()];
    let mut order = Vec::new();
    network
        .backward_with(params, &d_box, &d_class, &mut grads, &mut |range, _| order.push(range))
        .unwrap();
    order.sort_by_key(|range| range.start);
    assert!(
        order.windows(2).all(|pair| pair[0].end == pair[1].start),
        "every variable is reported once"
    );
    assert_eq!(order.last().unwrap().end, params.len());

    let reference = Reference::new(config, params);
    let columns = network.class_columns() as i64;
    let x = input(config, images);
    let Forward {
        boxes,
        classes,
        statistics,
    } = reference.forward(&x, columns, true);
    let errors = [
        relative_error(&outputs.box_encodings, &floats(&boxes)),
        relative_error(&outputs.class_logits, &floats(&classes)),
    ];
    assert!(errors.iter().all(|&e| e < tolerance), "{isa:?} outputs {errors:?}");

    let cotangent = |values: &[f32], like: &Tensor| Tensor::from_slice(values).to_kind(Kind::Double).view_as(like);
    let loss = (&boxes * cotangent(&d_box, &boxes)).sum(Kind::Double)
        + (&classes * cotangent(&d_class, &classes)).sum(Kind::Double)
        + reference.penalty();
    loss.backward();
    let whole = grads.iter().fold(0.0_f64, |m, &x| m.max(f64::from(x.abs())));
    for (spec, (&start, tensor)) in reference
        .plan
        .variables
        .iter()
        .zip(reference.starts.iter().zip(&reference.params))
    {
        let found = &grads[start..start + spec.elements()];
        let statistic = statistics.iter().find(|(at, _)| *at == start);
        let expected = match statistic {
            Some((_, value)) => floats(value),
            None if tensor.grad().defined() => floats(&tensor.grad()),
            None => vec![0.0; spec.elements()],
        };
        let error = relative_error(found, &expected);
        let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        // Where batch norm takes out again what a variable adds, its gradient is nothing but rounding of much larger ones.
        if error >= tolerance && error * f64::from(largest) >= 1e-6 * whole.max(1.0) {
            return Err(format!("{isa:?} seed {seed} {}: {error} of {largest}", spec.name));
        }
    }

    let outputs = network.forward(params, images, Mode::Eval).unwrap();
    let found = reference.forward(&x, columns, false);
    assert!(relative_error(&outputs.box_encodings, &floats(&found.boxes)) < tolerance);
    assert!(relative_error(&outputs.class_logits, &floats(&found.classes)) < tolerance);
    Ok(())
}

/// Without batch statistics: their gradients through maps of one pixel are too ill-conditioned to compare closely.
fn frozen(hyper: &Hyperparams) -> Hyperparams {
    let norm = BatchNorm {
        train: false,
        epsilon: 0.001,
        center: true,
        scale: true,
        decay: 0.9,
        sync: false,
    };
    Hyperparams {
        batch_norm: Some(norm),
        ..hyper.clone()
    }
}

#[test]
fn two_maps_with_batch_statistics() {
    let config = NetworkConfig {
        anchors_per_location: vec![3, 6],
        ..small(0.25, (129, 160))
    };
    agrees(&config, 2, 2e-3);
}

#[test]
fn channels_that_fill_no_vector() {
    let config = NetworkConfig {
        anchors_per_location: vec![2, 5],
        min_depth: 3,
        ..small(0.3, (97, 131))
    };
    agrees(&config, 3, 2e-3);
}

#[test]
fn grey_images_and_additional_channels() {
    for (extractor, image_channels) in [
        ("ssd_mobilenet_v1", 1),
        ("ssd_mobilenet_v1", 5),
        ("ssd_inception_v2", 4),
    ] {
        let mut config = other(extractor, (96, 130), &[2, 3, 3, 3, 3, 3]);
        config.image_channels = image_channels;
        agrees(&config, 2, 2e-3);
        let first = &plan(&config).unwrap().variables[0];
        assert_eq!(first.shape[2], image_channels as i64, "{}", first.name);
    }
    // Means are taken from red, green and blue alone.
    let mut config = other("ssd_resnet50_v1_fpn", (129, 135), &[2, 2, 2]);
    config.image_channels = 4;
    config.pad_to_multiple = 32;
    (config.fpn.min_level, config.fpn.max_level) = (4, 6);
    assert_eq!(plan(&config).unwrap().input, (1.0, vec![0.0; 4]));
    config.image_channels = 3;
    assert_eq!(plan(&config).unwrap().input.1, [-123.68, -116.779, -103.939]);
    config.image_channels = 65;
    let error = plan(&config).unwrap_err().to_string();
    assert!(error.starts_with("num_additional_channels is 62"), "{error}");
}

#[test]
fn all_maps_with_frozen_statistics() {
    let base = small(0.25, (96, 160));
    let config = NetworkConfig {
        base: frozen(&base.base),
        extra: frozen(&base.extra),
        ..base
    };
    agrees(&config, 2, 1e-3);
}

#[test]
fn biases_and_plain_activations() {
    let base = small(0.25, (65, 49));
    let bare = Hyperparams {
        batch_norm: None,
        activation: Activation::Relu,
        ..base.base.clone()
    };
    let linear = Hyperparams {
        batch_norm: None,
        activation: Activation::None,
        regularizer: Regularizer::L1 { weight: 0.001 },
        ..base.base.clone()
    };
    agrees(
        &NetworkConfig {
            base: bare,
            extra: linear,
            input: InputRange::Normalised,
            ..base
        },
        3,
        1e-3,
    );
}

#[test]
fn wide_predictors_after_more_layers() {
    let base = small(0.25, (100, 70));
    let hyper = frozen(&base.predictor.hyperparams);
    let predictor = PredictorConfig {
        hyperparams: hyper,
        kernel_size: 3,
        num_layers_before_predictor: 2,
        min_depth: 12,
        max_depth: 24,
        class_prediction_bias_init: -1.5,
        ..PredictorConfig::default()
    };
    let config = NetworkConfig {
        base: frozen(&base.base),
        extra: frozen(&base.extra),
        predictor,
        ..base
    };
    agrees(&config, 2, 1e-3);
}

#[test]
fn batch_norm_without_scale_or_center() {
    let base = small(0.25, (129, 97));
    let norm = BatchNorm {
        decay: 0.9,
        epsilon: 0.01,
        center: false,
        scale: false,
        train: true,
        sync: false,
    };
    let hyper = Hyperparams {
        batch_norm: Some(norm),
        regularizer: Regularizer::None,
        ..base.base.clone()
    };
    agrees(
        &NetworkConfig {
            base: hyper,
            anchors_per_location: vec![3, 6],
            ..base
        },
        2,
        2e-3,
    );
}

/// Small settings of another extractor and predictor.
fn other(extractor: &str, size: (usize, usize), anchors: &[usize]) -> NetworkConfig {
    let base = small(0.25, size);
    let hyper = frozen(&base.base);
    let predictor = PredictorConfig {
        hyperparams: hyper.clone(),
        ..PredictorConfig::default()
    };
    NetworkConfig {
        extractor: extractor.to_owned(),
        anchors_per_location: anchors.to_vec(),
        base: hyper.clone(),
        extra: hyper,
        predictor,
        ..base
    }
}

fn shared_towers(predictor: PredictorConfig) -> PredictorConfig {
    PredictorConfig {
        kind: PredictorKind::Shared,
        kernel_size: 3,
        num_layers_before_predictor: 2,
        depth: 20,
        class_prediction_bias_init: -2.0,
        ..predictor
    }
}

#[test]
fn mobilenet_v2_with_batch_statistics() {
    let base = other("ssd_mobilenet_v2", (129, 160), &[3, 6]);
    let config = NetworkConfig {
        base: Hyperparams::mobilenet_v1(),
        ..base
    };
    agrees(&config, 2, 3e-3);
}

#[test]
fn separable_layers_and_explicit_padding() {
    let mut config = other("ssd_mobilenet_v2", (130, 97), &[2, 3, 3, 3, 3, 3]);
    config.use_depthwise = true;
    config.use_explicit_padding = true;
    config.pad_to_multiple = 32;
    config.predictor.use_depthwise = true;
    config.predictor.kernel_size = 3;
    agrees(&config, 2, 1e-3);
}

#[test]
fn pyramids_with_shared_predictors() {
    let mut config = other("ssd_mobilenet_v1_fpn", (128, 160), &[4, 4, 4, 4, 4]);
    config.fpn.additional_layer_depth = 80;
    config.predictor = shared_towers(config.predictor);
    agrees(&config, 2, 1e-3);
    config.extractor = "ssd_mobilenet_v2_fpn".to_owned();
    config.predictor.share_prediction_tower = true;
    config.predictor.box_encodings_clip_range = Some((-0.5, 0.7));
    agrees(&config, 1, 1e-3);
    config.use_depthwise = true;
    config.use_explicit_padding = true;
    config.predictor.use_depthwise = true;
    config.predictor.hyperparams.batch_norm = None;
    config.image_height = 100;
    config.pad_to_multiple = 1;
    agrees(&config, 2, 1e-3);
}

/// Weights that are computed in slices: of whole places, and of some of a place's channels; predictors too.
#[test]
fn large_weights() {
    let mut config = other("ssd_mobilenet_v1_fpn", (128, 160), &[4, 4, 4, 4, 4]);
    config.fpn.additional_layer_depth = 400;
    config.predictor = shared_towers(config.predictor);
    config.predictor.depth = 350;
    let plan = plan(&config).unwrap();
    let sliced = |layer: &&Layer| super::super::sliced::source(layer).is_some();
    let of = |head| move |layer: &&Layer| layer.head.is_some() == head;
    for head in [false, true] {
        let found = plan.layers.iter().filter(sliced).filter(of(head)).count();
        assert!(found > 1, "{found} of {} layers, predictors: {head}", plan.layers.len());
    }
    agrees(&config, 2, 1e-3);
}

#[test]
fn residual_blocks() {
    let mut config = other("ssd_resnet50_v1_fpn", (129, 135), &[2, 2, 2]);
    config.depth_multiplier = 0.125;
    config.pad_to_multiple = 32;
    config.fpn.min_level = 4;
    config.fpn.max_level = 6;
    config.predictor = shared_towers(config.predictor);
    agrees(&config, 1, 2e-3);
}

#[test]
fn branches_and_pools() {
    for (extractor, size, anchors) in [
        ("ssd_inception_v2", (97, 113), &[2, 3, 3][..]),
        ("ssd_inception_v3", (121, 99), &[2, 3, 3, 3]),
    ] {
        let mut config = other(extractor, size, anchors);
        config.predictor.kernel_size = 3;
        agrees(&config, 1, 2e-3);
    }
}

#[test]
fn pooled_maps_and_layers_that_nothing_reads() {
    let mut config = other("ssd_mobilenet_v1_ppn", (97, 113), &[3; 6]);
    config.predictor = shared_towers(config.predictor);
    agrees(&config, 2, 1e-3);
}

#[test]
fn projections_to_the_commonest_depth() {
    let mut config = other("embedded_ssd_mobilenet_v1", (256, 256), &[3; 5]);
    config.predictor = shared_towers(config.predictor);
    agrees(&config, 1, 1e-3);
}

#[test]
fn squeezed_and_excited_channels_and_hard_swish() {
    for (extractor, anchors) in [
        ("ssd_mobilenet_v3_large", &[2, 3, 3, 3, 3, 3][..]),
        ("ssd_mobilenet_v3_small", &[3, 6]),
        ("ssd_mobilenet_edgetpu", &[2, 3, 3]),
    ] {
        let mut config = other(extractor, (97, 130), anchors);
        config.use_depthwise = true;
        config.predictor.use_depthwise = true;
        config.predictor.kernel_size = 3;
        agrees(&config, 2, 1e-3);
    }
    let config = NetworkConfig {
        base: Hyperparams::mobilenet_v1(),
        ..other("ssd_mobilenet_v3_small", (129, 160), &[3, 6])
    };
    agrees(&config, 2, 3e-3);
}

#[test]
fn depthwise_windows_of_every_size() {
    for kernel_size in [1, 2, 4, 5, 7, 9] {
        let mut config = other("ssd_mobilenet_v1", (70, 97), &[2, 3]);
        config.predictor.use_depthwise = true;
        config.predictor.kernel_size = kernel_size;
        agrees(&config, 2, 1e-3);
    }
    // Its last extra map has a window of 2 x 2 with stride 2.
    let mut config = other("embedded_ssd_mobilenet_v1", (256, 256), &[3; 5]);
    config.use_depthwise = true;
    agrees(&config, 1, 1e-3);
}

#[test]
fn group_norm_swish_and_dropout() {
    let grouped = |hyper: &Hyperparams| Hyperparams {
        batch_norm: None,
        group_norm: true,
        activation: Activation::Swish,
        ..hyper.clone()
    };
    let mut config = other("ssd_mobilenet_v1", (97, 130), &[2, 3, 3]);
    config.min_depth = 32;
    (config.base, config.extra) = (grouped(&config.base), grouped(&config.extra));
    config.predictor.hyperparams = grouped(&config.predictor.hyperparams);
    config.predictor.num_layers_before_predictor = 1;
    (config.predictor.min_depth, config.predictor.max_depth) = (32, 64);
    config.predictor.dropout_keep = Some(0.6);
    agrees(&config, 2, 2e-3);
    // A shared predictor's towers have biases in its place.
    let mut config = other("ssd_mobilenet_v1_ppn", (97, 113), &[3; 6]);
    config.predictor = shared_towers(config.predictor);
    config.predictor.hyperparams = grouped(&config.predictor.hyperparams);
    config.predictor.dropout_keep = Some(0.8);
    let names = plan(&config).unwrap().variables;
    assert!(
        names
            .iter()
            .all(|spec| !spec.name.contains("Norm") || spec.name.starts_with("FeatureExtractor/"))
    );
    assert!(
        names
            .iter()
            .any(|spec| spec.name.ends_with("BoxPredictionTower/conv2d_0/biases"))
    );
    agrees(&config, 2, 1e-3);
}

#[test]
fn layers_that_no_32_groups_fit_are_refused() {
    let mut config = other("ssd_mobilenet_v1", (97, 130), &[2, 3, 3]);
    config.base.group_norm = true;
    let error = plan(&config).unwrap_err().to_string();
    assert!(error.contains("MobilenetV1/Conv2d_0 has 8 channels"), "{error}");
}
