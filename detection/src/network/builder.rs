//! Adds layers to a plan, one call each: what feature extractors and predictors are written with.

use std::collections::HashMap;

use coati_common::variables::{VariableKind, VariableSpec};

use super::config::{Activation, BatchNorm, Hyperparams, InputRange, NetworkConfig, Regularizer};
use super::error::Error;
use super::extractors::Extractor;
use super::plan::{Affine, Head, Initial, Layer, Norm, Operation, Part, Plan, Source, Weights, Window};
use crate::kernels::depthwise::LARGEST;
pub(crate) use crate::kernels::patches::Padding;

/// `(rows and columns of the window, stride)`.
pub(crate) type Sliding = ((usize, usize), usize);

/// A square window.
pub(crate) fn square(kernel: usize, stride: usize) -> Sliding {
    ((kernel, kernel), stride)
}

/// How a layer's outputs are normalised.
#[derive(Clone, Copy)]
pub(crate) enum Normaliser<'a> {
    /// As the group's settings say: batch norm, or biases where they have none.
    Own,
    /// Batch norm whose variables lie in a scope of their own.
    Scope(&'a str),
    /// Biases.
    Biases,
    /// Nothing at all.
    Nothing,
}

/// A plan in the making.
pub(crate) struct Builder<'a> {
    pub(crate) plan: Plan,
    pub(crate) config: &'a NetworkConfig,
    /// How windows meet edges, until it is changed.
    pub(crate) padding: Padding,
    /// Where variables of a name begin, so that layers may share them.
    known: HashMap<String, usize>,
}

/// The offset of each channel. Means of red, green and blue are taken from images of just these, as in the reference's `preprocess`.
fn offsets(rgb: [f32; 3], channels: usize) -> Vec<f32> {
    let [red, green, blue] = rgb;
    match channels {
        3 => rgb.to_vec(),
        _ if red == green && green == blue => vec![red; channels],
        _ => vec![0.0; channels],
    }
}

impl<'a> Builder<'a> {
    pub(crate) fn new(config: &'a NetworkConfig, extractor: &Extractor) -> Self {
        let input = match config.input {
            InputRange::Bytes => (extractor.input.0, offsets(extractor.input.1, config.image_channels)),
            InputRange::Normalised => (1.0, vec![0.0; config.image_channels]),
        };
        let plan = Plan {
            layers: Vec::new(),
            variables: Vec::new(),
            initial: Vec::new(),
            elements: 0,
            image: (config.image_height, config.image_width),
            feature_maps: Vec::new(),
            anchors: 0,
            input,
            clip: config.predictor.box_encodings_clip_range,
        };
        let padding = if config.use_explicit_padding {
            Padding::Explicit
        } else {
            Padding::Same
        };
        Self {
            plan,
            config,
            padding,
            known: HashMap::new(),
        }
    }

    /// The reference's `depth_fn`: truncated towards zero, then limited from below.
    pub(crate) fn depth(&self, channels: usize) -> usize {
        ((channels as f64 * self.config.depth_multiplier) as usize).max(self.config.min_depth)
    }

    /// (height, width) of a source; of the images with what `pad_to_multiple` adds.
    pub(crate) fn size(&self, from: Source) -> (usize, usize) {
        match from {
            Source::Image => {
                let multiple = self.config.pad_to_multiple;
                (
                    self.config.image_height.next_multiple_of(multiple),
                    self.config.image_width.next_multiple_of(multiple),
                )
            }
            Source::Layer(layer) => self.plan.layers[layer].window.output,
        }
    }

    /// Channels of a source.
    pub(crate) fn channels(&self, from: Source) -> usize {
        match from {
            Source::Image => self.config.image_channels,
            Source::Layer(layer) => self.plan.layers[layer].outputs,
        }
    }

    /// Offset of a variable, and whether no layer had it before.
    fn variable(&mut self, name: String, shape: &[usize], kind: VariableKind, initial: Initial) -> (usize, bool) {
        if let Some(&offset) = self.known.get(&name) {
            return (offset, false);
        }
        let offset = self.plan.elements;
        self.known.insert(name.clone(), offset);
        let spec = VariableSpec {
            name,
            shape: shape.iter().map(|&d| d as i64).collect(),
            kind,
        };
        self.plan.elements += spec.elements();
        self.plan.variables.push(spec);
        self.plan.initial.push(initial);
        (offset, true)
    }

    fn weights(
        &mut self,
        name: String,
        shape: [usize; 4],
        columns: usize,
        hyper: &Hyperparams,
        regularizer: Regularizer,
    ) -> Weights {
        let initial = Initial::Random(hyper.initializer);
        let (offset, fresh) = self.variable(name, &shape, VariableKind::Trainable, initial);
        Weights {
            offset,
            columns,
            first: 0,
            bias: None,
            regularizer: if fresh { regularizer } else { Regularizer::None },
            adds: false,
        }
    }

    fn biases(&mut self, scope: &str, channels: usize, value: f32) -> usize {
        let initial = Initial::Constant(value);
        self.variable(format!("{scope}/biases"), &[channels], VariableKind::Trainable, initial)
            .0
    }

    fn batch_norm(&mut self, scope: &str, channels: usize, norm: BatchNorm) -> Norm {
        let trainable = VariableKind::Trainable;
        let moving = if norm.train {
            VariableKind::MovingStatistic { decay: norm.decay }
        } else {
            VariableKind::Constant
        };
        let mut add = |part: &str, kind, value| {
            let name = format!("{scope}/{part}");
            self.variable(name, &[channels], kind, Initial::Constant(value)).0
        };
        Norm {
            gamma: norm.scale.then(|| add("gamma", trainable, 1.0)),
            beta: norm.center.then(|| add("beta", trainable, 0.0)),
            mean: add("moving_mean", moving, 0.0),
            variance: add("moving_variance", moving, 1.0),
            epsilon: norm.epsilon,
            train: norm.train,
            sync: norm.sync && norm.train,
        }
    }

    /// The variables after a layer's weights.
    fn normalise(&mut self, name: &str, hyper: &Hyperparams, normaliser: Normaliser, layer: &mut Layer) {
        let scope = match normaliser {
            Normaliser::Nothing => return,
            Normaliser::Own => format!("{name}/BatchNorm"),
            Normaliser::Scope(scope) => scope.to_owned(),
            Normaliser::Biases => String::new(),
        };
        match hyper.batch_norm {
            Some(norm) if !scope.is_empty() => layer.norm = Some(self.batch_norm(&scope, layer.outputs, norm)),
            _ => {
                let bias = self.biases(name, layer.outputs, 0.0);
                for weights in &mut layer.weights {
                    weights.bias = Some(bias);
                }
            }
        }
    }

    fn layer(
        &self,
        name: &str,
        operation: Operation,
        from: Source,
        (kernel, stride): Sliding,
        outputs: usize,
    ) -> Result<Layer, Error> {
        let size = self.size(from);
        let too_small = || Error::ImageSize {
            height: self.config.image_height,
            width: self.config.image_width,
            least: self.config.image_height.min(self.config.image_width) + 1,
        };
        let mut window = Window::new(kernel, stride, self.padding, size).ok_or_else(too_small)?;
        if from == Source::Image {
            // What is beyond the image reads as zeros, which is what `pad_to_multiple` puts there.
            window.input = (self.config.image_height, self.config.image_width);
        }
        Ok(Layer {
            name: name.to_owned(),
            operation,
            source: from,
            others: Vec::new(),
            window,
            inputs: self.channels(from),
            outputs,
            weights: Vec::new(),
            norm: None,
            activation: Activation::None,
            affine: None,
            head: None,
            flat: self.plan.elements..self.plan.elements,
            readers: Vec::new(),
        })
    }

    /// Adds a layer with its normalisation and activation.
    fn finish(
        &mut self,
        mut layer: Layer,
        hyper: &Hyperparams,
        normaliser: Normaliser,
        activation: Activation,
    ) -> Result<Source, Error> {
        let name = layer.name.clone();
        if hyper.group_norm && matches!(normaliser, Normaliser::Own) {
            let linear = self.push(layer);
            return self.group_norm(&name, linear, activation);
        }
        layer.activation = activation;
        self.normalise(&name, hyper, normaliser, &mut layer);
        Ok(self.push(layer))
    }

    /// slim's `group_norm` with its own settings.
    fn group_norm(&mut self, name: &str, from: Source, activation: Activation) -> Result<Source, Error> {
        const GROUPS: usize = 32;
        let channels = self.channels(from);
        if !channels.is_multiple_of(GROUPS) {
            return Err(Error::Setting {
                setting: "group_norm",
                value: format!("asked for, and {name} has {channels} channels"),
                expected: "a multiple of 32 channels in every layer, since there are 32 groups",
            });
        }
        let operation = Operation::GroupNorm {
            groups: GROUPS,
            epsilon: 1e-6,
        };
        let scope = format!("{name}/GroupNorm");
        let mut layer = self.layer(&scope, operation, from, square(1, 1), channels)?;
        let mut add = |part: &str, value| {
            let initial = Initial::Constant(value);
            let name = format!("{scope}/{part}");
            self.variable(name, &[channels], VariableKind::Trainable, initial).0
        };
        let (beta, gamma) = (add("beta", 0.0), add("gamma", 1.0));
        layer.affine = Some(Affine { gamma, beta });
        layer.activation = activation;
        Ok(self.push(layer))
    }

    fn push(&mut self, mut layer: Layer) -> Source {
        layer.flat.end = self.plan.elements;
        self.plan.layers.push(layer);
        Source::Layer(self.plan.layers.len() - 1)
    }

    /// slim's `conv2d` in scope `name`.
    pub(crate) fn conv(
        &mut self,
        name: &str,
        from: Source,
        sliding: Sliding,
        channels: usize,
        hyper: &Hyperparams,
    ) -> Result<Source, Error> {
        let after = (Normaliser::Own, hyper.activation);
        self.conv_with((name, "weights"), from, sliding, channels, hyper, after)
    }

    /// As [`Builder::conv`], with the weights' own name, another normalisation and another activation.
    pub(crate) fn conv_with(
        &mut self,
        (name, variable): (&str, &str),
        from: Source,
        sliding: Sliding,
        channels: usize,
        hyper: &Hyperparams,
        (normaliser, activation): (Normaliser, Activation),
    ) -> Result<Source, Error> {
        let mut layer = self.layer(name, Operation::Convolution, from, sliding, channels)?;
        let (rows, columns) = sliding.0;
        let shape = [rows, columns, layer.inputs, channels];
        let name_of = format!("{name}/{variable}");
        let weights = self.weights(name_of, shape, channels, hyper, hyper.regularizer);
        layer.weights.push(weights);
        self.finish(layer, hyper, normaliser, activation)
    }

    /// slim's `separable_conv2d` without outputs of its own: a depthwise convolution alone.
    pub(crate) fn depthwise(
        &mut self,
        name: &str,
        from: Source,
        sliding: Sliding,
        hyper: &Hyperparams,
    ) -> Result<Source, Error> {
        self.depthwise_with(name, from, (sliding, 1), hyper, (Normaliser::Own, hyper.activation))
    }

    fn depthwise_with(
        &mut self,
        name: &str,
        from: Source,
        (sliding, multiplier): (Sliding, usize),
        hyper: &Hyperparams,
        (normaliser, activation): (Normaliser, Activation),
    ) -> Result<Source, Error> {
        let (kernel, _) = sliding;
        // What the kernels can do; the stem of Inception reads the image and is computed as a product of matrices.
        if from != Source::Image && (kernel.0 != kernel.1 || kernel.0 > LARGEST || multiplier != 1) {
            return Err(Error::Setting {
                setting: "use_depthwise",
                value: format!("true, and the window of {name} {} x {}", kernel.0, kernel.1),
                expected: "square windows of at most 9 x 9",
            });
        }
        let outputs = self.channels(from) * multiplier;
        let mut layer = self.layer(name, Operation::Depthwise, from, sliding, outputs)?;
        let (rows, columns) = sliding.0;
        let shape = [rows, columns, layer.inputs, multiplier];
        let name_of = format!("{name}/depthwise_weights");
        let regularizer = if hyper.regularize_depthwise {
            hyper.regularizer
        } else {
            Regularizer::None
        };
        let weights = self.weights(name_of, shape, outputs, hyper, regularizer);
        layer.weights.push(weights);
        self.finish(layer, hyper, normaliser, activation)
    }

    /// slim's `separable_conv2d`: a depthwise convolution and a 1x1 convolution with nothing in between.
    pub(crate) fn separable(
        &mut self,
        name: &str,
        from: Source,
        (sliding, multiplier): (Sliding, usize),
        channels: usize,
        hyper: &Hyperparams,
        after: (Normaliser, Activation),
    ) -> Result<Source, Error> {
        let nothing = (Normaliser::Nothing, Activation::None);
        let linear = self.depthwise_with(name, from, (sliding, multiplier), hyper, nothing)?;
        self.conv_with(
            (name, "pointwise_weights"),
            linear,
            square(1, 1),
            channels,
            hyper,
            after,
        )
    }

    /// A depthwise convolution and nothing else.
    pub(crate) fn linear_depthwise(
        &mut self,
        name: &str,
        from: Source,
        sliding: Sliding,
        hyper: &Hyperparams,
    ) -> Result<Source, Error> {
        self.depthwise_with(name, from, (sliding, 1), hyper, (Normaliser::Nothing, Activation::None))
    }

    /// A convolution, separable or not, with the group's own normalisation and activation.
    pub(crate) fn conv_or_separable(
        &mut self,
        name: &str,
        from: Source,
        sliding: Sliding,
        channels: usize,
        hyper: &Hyperparams,
        separable: bool,
    ) -> Result<Source, Error> {
        if separable {
            let after = (Normaliser::Own, hyper.activation);
            return self.separable(name, from, (sliding, 1), channels, hyper, after);
        }
        self.conv(name, from, sliding, channels, hyper)
    }

    /// slim's `max_pool2d`, with `SAME` padding unless [`Builder::padding`] is `Valid`.
    pub(crate) fn max_pool(&mut self, name: &str, from: Source, kernel: usize, stride: usize) -> Result<Source, Error> {
        self.pool(name, Operation::MaxPool, from, square(kernel, stride))
    }

    /// slim's `avg_pool2d`, padded alike.
    pub(crate) fn average_pool(
        &mut self,
        name: &str,
        from: Source,
        kernel: usize,
        stride: usize,
    ) -> Result<Source, Error> {
        self.pool(name, Operation::AveragePool, from, square(kernel, stride))
    }

    fn pool(&mut self, name: &str, operation: Operation, from: Source, sliding: Sliding) -> Result<Source, Error> {
        let before = self.padding;
        if before == Padding::Explicit {
            self.padding = Padding::Same;
        }
        let layer = self.layer(name, operation, from, sliding, self.channels(from));
        self.padding = before;
        Ok(self.push(layer?))
    }

    /// The mean of each channel over the whole map: one pixel.
    pub(crate) fn global_average(&mut self, name: &str, from: Source) -> Result<Source, Error> {
        let before = std::mem::replace(&mut self.padding, Padding::Valid);
        let layer = self.layer(
            name,
            Operation::AveragePool,
            from,
            (self.size(from), 1),
            self.channels(from),
        );
        self.padding = before;
        Ok(self.push(layer?))
    }

    /// `from`, each channel multiplied by the one pixel of `gate`.
    pub(crate) fn gate(&mut self, name: &str, from: Source, gate: Source) -> Result<Source, Error> {
        let mut layer = self.layer(name, Operation::Gate, from, square(1, 1), self.channels(from))?;
        if let Source::Layer(gate) = gate {
            layer.others.push(gate);
        }
        Ok(self.push(layer))
    }

    /// slim's `dropout`.
    pub(crate) fn dropout(&mut self, name: &str, from: Source, keep: f32) -> Result<Source, Error> {
        let operation = Operation::Dropout { keep };
        let layer = self.layer(name, operation, from, square(1, 1), self.channels(from))?;
        Ok(self.push(layer))
    }

    /// The sum of `from` and `other`, activated. `other` has the same channels and either the same size or, rounded up, half of it.
    pub(crate) fn add(
        &mut self,
        name: &str,
        from: Source,
        other: Source,
        activation: Activation,
    ) -> Result<Source, Error> {
        let mut layer = self.layer(name, Operation::Add, from, square(1, 1), self.channels(from))?;
        if let Source::Layer(other) = other {
            layer.others.push(other);
        }
        layer.activation = activation;
        Ok(self.push(layer))
    }

    /// The channels of `parts`, which have the same size, one after the other.
    pub(crate) fn concat(&mut self, name: &str, parts: &[Source]) -> Result<Source, Error> {
        let outputs = parts.iter().map(|&part| self.channels(part)).sum();
        let first = parts.first().copied().unwrap_or(Source::Image);
        let mut layer = self.layer(name, Operation::Concat, first, square(1, 1), outputs)?;
        layer.others = parts[1..]
            .iter()
            .filter_map(|part| match part {
                Source::Layer(layer) => Some(*layer),
                Source::Image => None,
            })
            .collect();
        Ok(self.push(layer))
    }

    /// A predictor that reads `from`: weights and biases of each part, side by side. `anchors` is their number at each location, `first` the
    /// number of those before.
    pub(crate) fn head(
        &mut self,
        name: &str,
        from: Source,
        kernel: usize,
        parts: &'static [Part],
        scopes: &[(&str, usize, f32)],
        variable: &str,
        (anchors, first): (usize, usize),
    ) -> Result<(), Error> {
        let hyper = &self.config.predictor.hyperparams;
        let outputs = scopes.iter().map(|(_, columns, _)| columns).sum();
        let explicit = std::mem::replace(&mut self.padding, Padding::Same);
        let layer = self.layer(name, Operation::Convolution, from, square(kernel, 1), outputs);
        self.padding = explicit;
        let mut layer = layer?;
        let mut column = 0;
        for &(scope, columns, bias) in scopes {
            let shape = [kernel, kernel, layer.inputs, columns];
            let mut weights = self.weights(format!("{scope}/{variable}"), shape, columns, hyper, hyper.regularizer);
            weights.bias = Some(self.biases(scope, columns, bias));
            weights.first = column;
            layer.weights.push(weights);
            column += columns;
        }
        layer.head = Some(Head { parts, anchors, first });
        self.push(layer);
        Ok(())
    }

    /// Notes a feature map that `anchors` at each location are predicted from; returns the number of anchors before.
    pub(crate) fn feature_map(&mut self, map: Source, anchors: usize) -> usize {
        let (height, width) = self.size(map);
        let first = self.plan.anchors;
        self.plan.anchors += height * width * anchors;
        self.plan.feature_maps.push((height, width));
        first
    }
}
