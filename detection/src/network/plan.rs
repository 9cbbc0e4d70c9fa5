//! The layers of a network in order, their shapes and their variables.

use std::ops::Range;

use coati_common::variables::{VariableKind, VariableSpec};

use super::config::{Hyperparams, Initializer, MIN_IMAGE_SIZE, NetworkConfig, Regularizer};
use super::error::Error;
use crate::kernels::padded;
pub use crate::kernels::patches::Window;

/// Where a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The images.
    Image,
    /// The output of an earlier layer.
    Layer(usize),
}

/// What a layer computes before its normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Every output channel reads all input channels.
    Convolution,
    /// Every channel on its own.
    Depthwise,
}

/// A weight variable `[kernel, kernel, inputs, columns]`; predictors have two, side by side.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// Where it begins in the flat vector.
    pub offset: usize,
    /// Output channels.
    pub columns: usize,
    /// First column in the layer's matrix.
    pub first: usize,
    /// Offset of the biases, if there are any.
    pub bias: Option<usize>,
    /// Penalty on it.
    pub regularizer: Regularizer,
}

/// Offsets of batch norm's variables.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Scale.
    pub gamma: Option<usize>,
    /// Offset.
    pub beta: Option<usize>,
    /// Moving mean.
    pub mean: usize,
    /// Moving variance.
    pub variance: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether training normalises with the batch's own statistics.
    pub train: bool,
}

/// A predictor's part of the outputs.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Anchors at each location.
    pub anchors: usize,
    /// Anchors of the feature maps before this one.
    pub first: usize,
}

/// A convolution with what follows it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Variable scope.
    pub name: String,
    /// What it computes.
    pub operation: Operation,
    /// What it reads.
    pub source: Source,
    /// Window, stride, padding and sizes.
    pub window: Window,
    /// Channels read, without padding.
    pub inputs: usize,
    /// Channels written, without padding.
    pub outputs: usize,
    /// Its weights; a predictor has those of the boxes and those of the classes.
    pub weights: Vec<Weights>,
    /// Batch norm; without it there may be biases.
    pub norm: Option<Norm>,
    /// The activation limits its values to this interval.
    pub limits: (f32, f32),
    /// Set on predictors.
    pub head: Option<Head>,
    /// Whether the layer is on the way from the image to the last feature map.
    pub trunk: bool,
    /// The layer's variables in the flat vector.
    pub flat: Range<usize>,
    /// Layers that read this one's output, in order.
    pub readers: Vec<usize>,
}

impl Layer {
    /// Channels as stored.
    pub(crate) fn padded_outputs(&self) -> usize {
        padded(self.outputs)
    }

    /// Channels of the input as stored: the image is read as it comes.
    pub(crate) fn padded_inputs(&self) -> usize {
        if self.source == Source::Image {
            self.inputs
        } else {
            padded(self.inputs)
        }
    }

    /// Rows of the weight matrix, a multiple of 16.
    pub(crate) fn patch(&self) -> usize {
        padded(self.window.kernel * self.window.kernel * self.padded_inputs())
    }
}

/// How a variable begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Initial {
    Constant(f32),
    Random(Initializer),
}

/// The whole network.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In order: each reads only earlier ones.
    pub layers: Vec<Layer>,
    /// The variables of the flat vector.
    pub variables: Vec<VariableSpec>,
    pub(crate) initial: Vec<Initial>,
    /// Elements of the flat vector.
    pub elements: usize,
    /// (height, width) of the feature maps.
    pub feature_maps: Vec<(usize, usize)>,
    /// Anchors of all feature maps together.
    pub anchors: usize,
}

const BASE: &str = "FeatureExtractor/MobilenetV1/";
/// Channels and stride of the thirteen separable convolutions.
const SEPARABLE: [(usize, usize); 13] = [
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
];
/// Channels of the extra feature maps.
const EXTRA: [usize; 4] = [512, 256, 256, 128];

/// Refuses what cannot be built, then lays out the layers as `SSDMobileNetV1FeatureExtractor` and `ConvolutionalBoxPredictor` do.
pub fn plan(config: &NetworkConfig) -> Result<Plan, Error> {
    validate(config)?;
    let mut builder = Builder {
        plan: empty(),
        depth_multiplier: config.depth_multiplier,
        min_depth: config.min_depth,
    };
    let size = (config.image_height, config.image_width);
    let mut last = builder.convolution(
        &format!("{BASE}Conv2d_0"),
        (Source::Image, size, 3),
        (3, 2),
        32,
        &config.base,
    );
    let mut maps = Vec::new();
    for (i, (channels, stride)) in SEPARABLE.into_iter().enumerate() {
        let i = i + 1;
        last = builder.depthwise(&format!("{BASE}Conv2d_{i}_depthwise"), last, stride, &config.base);
        let from = builder.reading(last);
        last = builder.convolution(
            &format!("{BASE}Conv2d_{i}_pointwise"),
            from,
            (1, 1),
            channels,
            &config.base,
        );
        if i == 11 || i == 13 {
            maps.push(last);
        }
    }
    for (i, &channels) in EXTRA.iter().enumerate().take(config.anchors_per_location.len() - 2) {
        let (half, full) = (builder.depth(channels / 2), builder.depth(channels));
        let stem = format!("{BASE}Conv2d_13_pointwise");
        let from = builder.reading(last);
        let name = format!("{stem}_1_Conv2d_{}_1x1_{half}", i + 2);
        last = builder.convolution(&name, from, (1, 1), channels / 2, &config.extra);
        let from = builder.reading(last);
        let name = format!("{stem}_2_Conv2d_{}_3x3_s2_{full}", i + 2);
        last = builder.convolution(&name, from, (3, 2), channels, &config.extra);
        maps.push(last);
    }
    for (i, (&map, &anchors)) in maps.iter().zip(&config.anchors_per_location).enumerate() {
        builder.predictor(i, map, anchors, config);
    }
    let mut plan = builder.plan;
    for i in 0..plan.layers.len() {
        if let Source::Layer(source) = plan.layers[i].source {
            plan.layers[source].readers.push(i);
        }
    }
    Ok(plan)
}

fn empty() -> Plan {
    let (layers, variables, initial, feature_maps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    Plan {
        layers,
        variables,
        initial,
        elements: 0,
        feature_maps,
        anchors: 0,
    }
}

fn validate(config: &NetworkConfig) -> Result<(), Error> {
    const LARGEST: usize = 16_384;
    let (height, width) = (config.image_height, config.image_width);
    if height < MIN_IMAGE_SIZE || width < MIN_IMAGE_SIZE {
        return Err(Error::ImageSize {
            height,
            width,
            least: MIN_IMAGE_SIZE,
        });
    }
    let maps = config.anchors_per_location.len();
    if !(2..=6).contains(&maps) {
        return Err(Error::FeatureMaps { found: maps });
    }
    let least_anchors = config.anchors_per_location.iter().copied().min().unwrap_or(0);
    let most_anchors = config.anchors_per_location.iter().copied().max().unwrap_or(0);
    let predictor = &config.predictor;
    let depth = config.depth_multiplier;
    let checks = [
        (
            "image_resizer height",
            height.to_string(),
            height <= LARGEST,
            "at most 16384 pixels",
        ),
        (
            "image_resizer width",
            width.to_string(),
            width <= LARGEST,
            "at most 16384 pixels",
        ),
        (
            "num_classes",
            config.num_classes.to_string(),
            (1..=100_000).contains(&config.num_classes),
            "1 to 100000",
        ),
        (
            "depth_multiplier",
            depth.to_string(),
            depth > 0.0 && depth <= 16.0,
            "above 0, at most 16",
        ),
        (
            "min_depth",
            config.min_depth.to_string(),
            (1..=4096).contains(&config.min_depth),
            "1 to 4096",
        ),
        (
            "kernel_size",
            predictor.kernel_size.to_string(),
            (1..=9).contains(&predictor.kernel_size),
            "1 to 9",
        ),
        (
            "num_layers_before_predictor",
            predictor.num_layers_before_predictor.to_string(),
            predictor.num_layers_before_predictor <= 16,
            "at most 16",
        ),
        (
            "box predictor min_depth",
            predictor.min_depth.to_string(),
            predictor.min_depth <= 4096,
            "at most 4096",
        ),
        (
            "anchors per location",
            least_anchors.to_string(),
            least_anchors > 0,
            "at least one on each feature map",
        ),
        (
            "anchors per location",
            most_anchors.to_string(),
            most_anchors <= 1000,
            "at most 1000",
        ),
    ];
    match checks.into_iter().find(|(_, _, holds, _)| !holds) {
        Some((setting, value, _, expected)) => Err(Error::Setting {
            setting,
            value,
            expected,
        }),
        None => Ok(()),
    }
}

struct Builder {
    plan: Plan,
    depth_multiplier: f64,
    min_depth: usize,
}

impl Builder {
    /// The reference's `depth_fn`: truncated towards zero, then limited from below.
    fn depth(&self, channels: usize) -> usize {
        ((channels as f64 * self.depth_multiplier) as usize).max(self.min_depth)
    }

    fn reading(&self, layer: usize) -> (Source, (usize, usize), usize) {
        let from = &self.plan.layers[layer];
        (Source::Layer(layer), from.window.output, from.outputs)
    }

    fn variable(&mut self, name: String, shape: &[usize], kind: VariableKind, initial: Initial) -> usize {
        let offset = self.plan.elements;
        let spec = VariableSpec {
            name,
            shape: shape.iter().map(|&d| d as i64).collect(),
            kind,
        };
        self.plan.elements += spec.elements();
        self.plan.variables.push(spec);
        self.plan.initial.push(initial);
        offset
    }

    /// The variables after a layer's weights: batch norm's, or biases.
    fn normalisation(&mut self, name: &str, channels: usize, hyper: &Hyperparams, layer: &mut Layer) {
        let trainable = VariableKind::Trainable;
        let Some(norm) = hyper.batch_norm else {
            let bias = self.variable(format!("{name}/biases"), &[channels], trainable, Initial::Constant(0.0));
            for weights in &mut layer.weights {
                weights.bias = Some(bias);
            }
            return;
        };
        let moving = if norm.train {
            VariableKind::MovingStatistic { decay: norm.decay }
        } else {
            VariableKind::Constant
        };
        let mut add = |part: &str, kind, value| {
            self.variable(
                format!("{name}/BatchNorm/{part}"),
                &[channels],
                kind,
                Initial::Constant(value),
            )
        };
        layer.norm = Some(Norm {
            gamma: norm.scale.then(|| add("gamma", trainable, 1.0)),
            beta: norm.center.then(|| add("beta", trainable, 0.0)),
            mean: add("moving_mean", moving, 0.0),
            variance: add("moving_variance", moving, 1.0),
            epsilon: norm.epsilon,
            train: norm.train,
        });
    }

    fn add(&mut self, mut layer: Layer) -> usize {
        layer.flat.end = self.plan.elements;
        self.plan.layers.push(layer);
        self.plan.layers.len() - 1
    }

    fn layer(
        &self,
        name: &str,
        (source, size, inputs): (Source, (usize, usize), usize),
        (kernel, stride): (usize, usize),
        outputs: usize,
    ) -> Layer {
        Layer {
            name: name.to_owned(),
            operation: Operation::Convolution,
            source,
            window: Window::same(kernel, stride, size),
            inputs,
            outputs,
            weights: Vec::new(),
            norm: None,
            limits: (f32::NEG_INFINITY, f32::INFINITY),
            head: None,
            trunk: true,
            flat: self.plan.elements..self.plan.elements,
            readers: Vec::new(),
        }
    }

    fn convolution(
        &mut self,
        name: &str,
        from: (Source, (usize, usize), usize),
        window: (usize, usize),
        channels: usize,
        hyper: &Hyperparams,
    ) -> usize {
        let outputs = self.depth(channels);
        self.convolution_of(name, from, window, outputs, hyper, true)
    }

    fn convolution_of(
        &mut self,
        name: &str,
        from: (Source, (usize, usize), usize),
        window: (usize, usize),
        outputs: usize,
        hyper: &Hyperparams,
        trunk: bool,
    ) -> usize {
        let mut layer = self.layer(name, from, window, outputs);
        let shape = [window.0, window.0, from.2, outputs];
        let initial = Initial::Random(hyper.initializer);
        let offset = self.variable(format!("{name}/weights"), &shape, VariableKind::Trainable, initial);
        layer.weights.push(Weights {
            offset,
            columns: outputs,
            first: 0,
            bias: None,
            regularizer: hyper.regularizer,
        });
        layer.limits = hyper.activation.limits();
        layer.trunk = trunk;
        self.normalisation(name, outputs, hyper, &mut layer);
        self.add(layer)
    }

    fn depthwise(&mut self, name: &str, input: usize, stride: usize, hyper: &Hyperparams) -> usize {
        let from = self.reading(input);
        let mut layer = self.layer(name, from, (3, stride), from.2);
        let initial = Initial::Random(hyper.initializer);
        let name_of = format!("{name}/depthwise_weights");
        let offset = self.variable(name_of, &[3, 3, from.2, 1], VariableKind::Trainable, initial);
        layer.weights.push(Weights {
            offset,
            columns: from.2,
            first: 0,
            bias: None,
            regularizer: hyper.regularizer,
        });
        layer.operation = Operation::Depthwise;
        layer.limits = hyper.activation.limits();
        self.normalisation(name, from.2, hyper, &mut layer);
        self.add(layer)
    }

    fn predictor(&mut self, index: usize, map: usize, anchors: usize, config: &NetworkConfig) {
        let predictor = &config.predictor;
        let hyper = &predictor.hyperparams;
        let mut from = self.reading(map);
        let depth = from.2.min(predictor.max_depth).max(predictor.min_depth);
        if depth > 0 {
            for i in 0..predictor.num_layers_before_predictor {
                let name = format!("BoxPredictor_{index}/Conv2d_{i}_1x1_{depth}");
                let layer = self.convolution_of(&name, from, (1, 1), depth, hyper, false);
                from = self.reading(layer);
            }
        }
        let kernel = predictor.kernel_size;
        let parts = [
            ("BoxEncodingPredictor", 4 * anchors, 0.0),
            (
                "ClassPredictor",
                (config.num_classes + 1) * anchors,
                predictor.class_prediction_bias_init,
            ),
        ];
        let outputs = parts.iter().map(|(_, columns, _)| columns).sum();
        let mut layer = self.layer(&format!("BoxPredictor_{index}"), from, (kernel, 1), outputs);
        let mut first = 0;
        for (part, columns, bias) in parts {
            let name = format!("BoxPredictor_{index}/{part}");
            let initial = Initial::Random(hyper.initializer);
            let shape = [kernel, kernel, from.2, columns];
            let offset = self.variable(format!("{name}/weights"), &shape, VariableKind::Trainable, initial);
            let initial = Initial::Constant(bias);
            let bias = self.variable(format!("{name}/biases"), &[columns], VariableKind::Trainable, initial);
            layer.weights.push(Weights {
                offset,
                columns,
                first,
                bias: Some(bias),
                regularizer: hyper.regularizer,
            });
            first += columns;
        }
        layer.head = Some(Head {
            anchors,
            first: self.plan.anchors,
        });
        layer.trunk = false;
        self.plan.anchors += layer.window.outputs() * anchors;
        self.plan.feature_maps.push(layer.window.output);
        self.add(layer);
    }
}
