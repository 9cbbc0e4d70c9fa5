//! A whole detector: images and groundtruth in, losses and gradients or detections out.

mod resident;
mod size;

use coati_common::cluster::Numerics;
use coati_common::variables::VariableSpec;
use coati_proto::object_detection::protos::{DetectionModel, TrainConfig};

use crate::Corners;
use crate::accelerator::loss::{BatchTargets, DeviceLoss, combine};
use crate::accelerator::{Accelerator, Arithmetic, Device, Settings, memory};
use crate::config::{self, NetworkOptions};
use crate::groundtruth::Groundtruth;
use crate::network::{self, Mode, Network, Outputs, Progress};
use crate::postprocess::{self, Detections, PostProcessor};
use crate::squash::Squash;
use crate::ssd_loss::{self, LossConfig, LossOutput, Predictions};
use crate::{accelerator, gradients};
use crate::{anchors, ssd_loss::loss};
pub use resident::ResidentStep;

/// What a detector is made with beside its message.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// `train_config.add_regularization_loss`: the penalty on the weights is part of the loss.
    pub regularization: bool,
    /// `train_config.freeze_variables`: regular expressions.
    pub freeze_variables: Vec<String>,
    /// `train_config.update_trainable_variables`: regular expressions; empty: all.
    pub update_trainable_variables: Vec<String>,
    /// Compute threads; `None`: what `COATI_THREADS` says, otherwise one a core.
    pub threads: Option<usize>,
    /// Of the images: 3, and as many more as `num_additional_channels` says; 1 with `convert_to_grayscale`.
    pub image_channels: usize,
    /// Where the network computes; `Auto`: what `COATI_DEVICE` says, otherwise a GPU if there is one.
    pub device: Device,
    /// What training computes with. Inference computes in float32.
    pub numerics: Numerics,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            regularization: true,
            freeze_variables: Vec::new(),
            update_trainable_variables: Vec::new(),
            threads: None,
            image_channels: 3,
            device: Device::Auto,
            numerics: Numerics::default(),
        }
    }
}

impl From<&TrainConfig> for Options {
    fn from(train: &TrainConfig) -> Self {
        Self {
            regularization: train.add_regularization_loss(),
            freeze_variables: train.freeze_variables.clone(),
            update_trainable_variables: train.update_trainable_variables.clone(),
            ..Self::default()
        }
    }
}

/// Why a detector was not built or does not accept what it was given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// Anchors.
    #[error(transparent)]
    Anchors(#[from] anchors::Error),
    /// The network.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// Groundtruth, or a loss that is not finite.
    #[error(transparent)]
    Loss(#[from] ssd_loss::Error),
    /// Predictions.
    #[error(transparent)]
    Postprocess(#[from] postprocess::Error),
    /// Frozen variables.
    #[error(transparent)]
    Freeze(#[from] gradients::Error),
    /// Weights that are not numbers.
    #[error(
        "regularization loss is {value}; the first variable that is not finite: {variable}\nhint: lower the learning rate, or start from an earlier checkpoint"
    )]
    Regularization {
        /// NaN or infinity.
        value: f32,
        /// Its name; `none` where only the sum is too large.
        variable: String,
    },
    /// Anchors and network disagree.
    #[error("the anchor generator makes {anchors} anchors, the network predicts {predicted}")]
    AnchorCount {
        /// Made.
        anchors: usize,
        /// Predicted.
        predicted: usize,
    },
}

impl Error {
    /// Whether a loss is NaN or infinite: the fault of a batch or of the variables, not of how it was called.
    pub fn is_not_finite(&self) -> bool {
        matches!(
            self,
            Self::Loss(ssd_loss::Error::NotFinite { .. }) | Self::Regularization { .. }
        )
    }

    /// Whether another image might do, since this one's size does not.
    pub fn is_of_size(&self) -> bool {
        match self {
            Self::Network(error) => error.is_of_size(),
            Self::Anchors(error) => matches!(error, anchors::Error::TooMany { .. }),
            _ => false,
        }
    }

    fn out_of_memory(&mut self) -> Option<&mut memory::OutOfMemory> {
        match self {
            Self::Network(network::Error::Accelerator(accelerator::Error::OutOfMemory(found))) => Some(found),
            _ => None,
        }
    }
}

/// Losses of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLosses {
    /// `Loss/classification_loss`
    pub classification: f32,
    /// `Loss/localization_loss`
    pub localization: f32,
    /// The penalty on the weights.
    pub regularization: f32,
    /// The sum, which is what is differentiated.
    pub total: f32,
}

/// A single shot detector (arXiv:1512.02325). Owns no parameters: they come with every call as one flat vector, all
/// [`Ssd::variables`] in order.
#[derive(Debug)]
pub struct Ssd {
    network: Network,
    /// Does the network's work where it is set.
    accelerator: Option<Accelerator>,
    variables: Vec<VariableSpec>,
    generator: anchors::Generator,
    anchors: Vec<Corners>,
    loss: LossConfig,
    post: PostProcessor,
    input_size: (usize, usize),
    channels: usize,
    head: Head,
    squash: Squash,
}

/// What the class predictions hold.
#[derive(Clone, Copy, Debug)]
struct Head {
    /// As in the label map.
    num_classes: usize,
    /// With the background, unless that is one of the classes.
    columns: usize,
}

impl Ssd {
    /// Builds what `model` describes; what is not built is refused by name.
    pub fn new(model: &DetectionModel, options: &Options) -> Result<Self, Error> {
        let ssd = config::ssd(model)?;
        let generator = config::anchor_generator(ssd.anchor_generator.as_ref())?;
        let (loss, post) = (config::loss(ssd)?, config::post_processor(ssd)?);
        let input_size = config::image_size(ssd)?;
        let network_options = NetworkOptions {
            regularization: options.regularization,
            threads: options.threads,
        };
        let mut network_config = config::network(ssd, generator.anchors_per_location()?, network_options)?;
        let num_classes = config::num_classes(ssd)?;
        let head = Head {
            num_classes,
            columns: num_classes + usize::from(ssd.add_background_class()),
        };
        // The network has one column more than classes.
        network_config.num_classes = head.columns - 1;
        network_config.image_channels = options.image_channels;
        let network = Network::new(&network_config)?;
        let anchors = size::anchors(&generator, &network.feature_map_shapes(), network.anchors(), input_size)?;
        let mut variables = network.variables().to_vec();
        gradients::freeze(
            &mut variables,
            &options.freeze_variables,
            &options.update_trainable_variables,
        )?;
        let device = match options.device {
            Device::Auto => Device::from_environment().map_err(network::Error::from)?,
            device => device,
        };
        let settings = Settings {
            device,
            numerics: options.numerics,
            loss: DeviceLoss::of(&loss),
        };
        let accelerator = Accelerator::open(settings, &network_config, &network).map_err(network::Error::from)?;
        Ok(Self {
            network,
            accelerator,
            variables,
            generator,
            anchors,
            loss,
            post,
            input_size,
            channels: options.image_channels,
            head,
            squash: config::squash(ssd),
        })
    }

    /// The variables in declared order, frozen ones constant.
    pub fn variables(&self) -> &[VariableSpec] {
        &self.variables
    }

    /// First values of all variables (flat); depends on the variables' names and the seed alone.
    pub fn init_values(&self, seed: u64) -> Vec<f32> {
        self.network.init_values(seed)
    }

    /// (height, width) in pixels of the images: see [`Ssd::set_input_size`].
    pub fn input_size(&self) -> (usize, usize) {
        self.input_size
    }

    /// Of the images.
    pub fn image_channels(&self) -> usize {
        self.channels
    }

    /// Without the background.
    pub fn num_classes(&self) -> usize {
        self.head.num_classes
    }

    /// The prior boxes, normalised.
    pub fn anchors(&self) -> &[Corners] {
        &self.anchors
    }

    /// Sets what the next step drops, where the predictors have dropout: a [`network::dropout::key`].
    pub fn set_key(&mut self, key: u64) {
        self.network.set_key(key);
        if let Some(accelerator) = &mut self.accelerator {
            accelerator.set_key(key);
        }
    }

    /// Where the network computes.
    pub fn device(&self) -> Device {
        self.accelerator.as_ref().map_or(Device::Cpu, Accelerator::device)
    }

    /// What training computes with.
    pub fn arithmetic(&self) -> Arithmetic {
        let accelerator = self.accelerator.as_ref();
        accelerator.map_or(Arithmetic::Float32, Accelerator::arithmetic)
    }

    /// The network under the losses: layer times (of our own kernels), threads.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Whether batch norm is to use statistics over all replicas (`sync_batch_norm`).
    pub fn is_synchronised(&self) -> bool {
        self.network.is_synchronised()
    }

    /// As [`Network::set_together`]; false where that cannot be: in float16 each replica repeats backward passes by itself.
    pub fn set_together(&mut self, together: Option<Box<dyn network::Together>>) -> bool {
        let can = self.arithmetic() != Arithmetic::Fp16 || together.is_none();
        match &mut self.accelerator {
            _ if !can => {}
            Some(accelerator) => accelerator.set_together(together),
            None => self.network.set_together(together),
        }
        can
    }

    /// Forward and backward pass of a batch. `images` are `[batch, height, width, channels]` of 0 to 255, `groundtruth` has one entry an
    /// image.
    ///
    /// Writes all of `gradients` (flat): of trainable variables the gradient of the total loss, of moving statistics the batch's mean and
    /// unbiased variance, of constants 0. After an error its content means nothing.
    pub fn train_step(
        &mut self,
        params: &[f32],
        images: &[f32],
        groundtruth: &[Groundtruth],
        gradients: &mut [f32],
    ) -> Result<StepLosses, Error> {
        self.train_step_with(params, images, groundtruth, gradients, &mut |_, _| {})
    }

    /// As [`Ssd::train_step`]; `progress` is told of gradients as soon as they are complete, from the predictors to the image, all
    /// but those of constants. An accelerator completes all of them at once. Not called unless the losses are finite.
    pub fn train_step_with(
        &mut self,
        params: &[f32],
        images: &[f32],
        groundtruth: &[Groundtruth],
        gradients: &mut [f32],
        progress: Progress<'_>,
    ) -> Result<StepLosses, Error> {
        let losses = if self.accelerator.is_some() {
            let losses = self
                .step_on_device(params, images, groundtruth, gradients)
                .map_err(|error| {
                    self.with_largest_batch(error, images, groundtruth, |this, images, groundtruth| {
                        this.step_on_device(params, images, groundtruth, gradients)
                    })
                })?;
            progress(0..gradients.len(), gradients);
            losses
        } else {
            self.step_on_cpu(params, images, groundtruth, gradients, progress)?
        };
        gradients::clear_constants(gradients, &self.variables);
        Ok(losses)
    }

    fn step_on_cpu(
        &mut self,
        params: &[f32],
        images: &[f32],
        groundtruth: &[Groundtruth],
        gradients: &mut [f32],
        progress: Progress<'_>,
    ) -> Result<StepLosses, Error> {
        let outputs = self.forward(params, images, groundtruth.len(), Mode::Train)?;
        let found = self
            .loss_of(&outputs, groundtruth)
            .and_then(|found| Ok((self.step_losses(params, &found)?, found)));
        let (losses, mut found) = match found {
            Ok(found) => found,
            Err(error) => {
                let error = self.explained(error, params, groundtruth);
                if error.is_not_finite() && self.network.is_together() {
                    // Other replicas' backward passes wait for this one's part of batch norm's sums.
                    let (boxes, classes) = outputs.without_slopes();
                    self.network.backward(params, &boxes, &classes, gradients)?;
                }
                return Err(error);
            }
        };
        self.squash.back(&outputs.class_logits, &mut found.d_class_logits);
        let (d_box, d_class) = (&found.d_box_encodings, &found.d_class_logits);
        self.network
            .backward_with(params, d_box, d_class, gradients, progress)?;
        Ok(losses)
    }

    /// What the host does, it does while the device computes: it waits for nothing but the gradients, with which the losses come.
    fn step_on_device(
        &mut self,
        params: &[f32],
        images: &[f32],
        groundtruth: &[Groundtruth],
        gradients: &mut [f32],
    ) -> Result<StepLosses, Error> {
        self.check_images(images, groundtruth.len())?;
        let Some(accelerator) = &mut self.accelerator else {
            return Err(network::Error::NoForward.into());
        };
        accelerator.start(params, images)?;
        let mut told = false;
        if accelerator.computes_losses() && !self.squash.applies(Mode::Train) {
            let targets = BatchTargets::assign(&self.anchors, groundtruth, self.head.num_classes, &self.loss)?;
            accelerator.train(&targets, &mut |_| {})?;
            let regularization = self.network.regularization(params)?;
            let sums = accelerator.collect(gradients)?;
            if let Some((classification, localization)) = combine(&sums, &targets) {
                let regularization = self.finite(regularization, params)?;
                return Ok(StepLosses::of(classification, localization, regularization));
            }
            // Which image and which prediction it was, the host can tell.
            accelerator.alone(|accelerator| accelerator.start(params, images))?;
            told = true;
        }
        let mut outputs = accelerator.predictions()?;
        self.squash.apply(Mode::Train, &mut outputs.class_logits);
        let mut found = match self.loss_of(&outputs, groundtruth) {
            Ok(found) => found,
            Err(error) => {
                let together = self
                    .accelerator
                    .as_mut()
                    .filter(|accelerator| accelerator.is_together());
                if let (Some(accelerator), true, false) = (together, error.is_not_finite(), told) {
                    // As on the CPU.
                    let (boxes, classes) = outputs.without_slopes();
                    accelerator.backward(&boxes, &classes, gradients)?;
                }
                return Err(self.explained(error, params, groundtruth));
            }
        };
        self.squash.back(&outputs.class_logits, &mut found.d_class_logits);
        let losses = self.step_losses(params, &found)?;
        if let Some(accelerator) = &mut self.accelerator {
            accelerator.backward(&found.d_box_encodings, &found.d_class_logits, gradients)?;
        }
        Ok(losses)
    }

    /// Where a step ran out of memory, finds by trying how many of its images would have fitted.
    fn with_largest_batch(
        &mut self,
        mut error: Error,
        images: &[f32],
        groundtruth: &[Groundtruth],
        mut step: impl FnMut(&mut Self, &[f32], &[Groundtruth]) -> Result<StepLosses, Error>,
    ) -> Error {
        let Some(found) = error.out_of_memory() else {
            return error;
        };
        let pixels = images.len() / groundtruth.len().max(1);
        let apart = self.accelerator.as_mut().map(Accelerator::part);
        let largest = memory::largest(groundtruth.len(), |batch| {
            let step = step(self, &images[..batch * pixels], &groundtruth[..batch]);
            match step {
                // Near the limit libraries below libtorch fail in words of their own.
                Err(Error::Network(network::Error::Accelerator(
                    accelerator::Error::OutOfMemory(_) | accelerator::Error::Torch { .. },
                ))) => Ok(false),
                // A loss that is not finite came after all that takes memory but the backward pass, which takes little beside it.
                Err(error) if !error.is_not_finite() => Err(error),
                _ => Ok(true),
            }
        });
        found.largest = largest.ok();
        if let (Some(accelerator), Some(apart)) = (&mut self.accelerator, apart) {
            accelerator.join(apart);
        }
        error
    }

    /// The losses of a batch in inference mode (batch norm with moving statistics), as the reference reports them in evaluation.
    pub fn evaluation_losses(
        &mut self,
        params: &[f32],
        images: &[f32],
        groundtruth: &[Groundtruth],
    ) -> Result<StepLosses, Error> {
        let outputs = self.forward(params, images, groundtruth.len(), Mode::Eval)?;
        let found = self.loss_of(&outputs, groundtruth)?;
        self.step_losses(params, &found)
    }

    /// Matched anchors of each image: what a step does first. The steps themselves do it on their own; this is for measuring it.
    pub fn matched(&self, groundtruth: &[Groundtruth]) -> Vec<usize> {
        let assigner = &self.loss.assigner;
        groundtruth
            .iter()
            .map(|objects| assigner.assign(&self.anchors, objects))
            .map(|targets| targets.matches.iter().filter(|found| found.row().is_some()).count())
            .collect()
    }

    /// Detections in each of the `images` (`[batch, height, width, channels]` of 0 to 255).
    pub fn detect(&mut self, params: &[f32], images: &[f32]) -> Result<Vec<Detections>, Error> {
        self.detect_within(params, images, &[])
    }

    /// As [`Ssd::detect`]. Of each image only a part, `[height, width]` as shares of the whole, is picture and the rest padding;
    /// boxes are clipped to that part and relative to it. No parts: all of all images.
    pub fn detect_within(
        &mut self,
        params: &[f32],
        images: &[f32],
        parts: &[[f32; 2]],
    ) -> Result<Vec<Detections>, Error> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let outputs = self.predict(params, images, Mode::Eval)?;
        Ok(self
            .post
            .run_within(&self.anchors, predictions(&outputs, &self.head), parts)?)
    }

    /// Detections in each image and its losses, from one forward pass in inference mode. Each image counts by itself, as in the reference,
    /// which evaluates batches of one.
    pub fn evaluate(
        &mut self,
        params: &[f32],
        images: &[f32],
        groundtruth: &[Groundtruth],
    ) -> Result<(Vec<Detections>, Vec<StepLosses>), Error> {
        self.evaluate_within(params, images, groundtruth, &[])
    }

    /// As [`Ssd::evaluate`] and [`Ssd::detect_within`]; groundtruth is relative to the images with their padding.
    pub fn evaluate_within(
        &mut self,
        params: &[f32],
        images: &[f32],
        groundtruth: &[Groundtruth],
        parts: &[[f32; 2]],
    ) -> Result<(Vec<Detections>, Vec<StepLosses>), Error> {
        let outputs = self.forward(params, images, groundtruth.len(), Mode::Eval)?;
        let whole = predictions(&outputs, &self.head);
        let regularization = self.regularization(params)?;
        let anchors = self.anchors.len();
        let losses = whole
            .box_encodings
            .chunks_exact(anchors * self.loss.assigner.coder.code_size())
            .zip(whole.class_logits.chunks_exact(anchors * self.head.columns))
            .zip(groundtruth)
            .map(|((box_encodings, class_logits), objects)| {
                let one = Predictions {
                    box_encodings,
                    class_logits,
                    ..whole
                };
                let found = loss(&self.anchors, one, std::slice::from_ref(objects), &self.loss)?;
                Ok(StepLosses::new(&found, regularization))
            })
            .collect::<Result<_, Error>>()?;
        Ok((self.post.run_within(&self.anchors, whole, parts)?, losses))
    }

    /// Raw predictions.
    pub fn predict(&mut self, params: &[f32], images: &[f32], mode: Mode) -> Result<Outputs, Error> {
        let mut outputs = match &mut self.accelerator {
            Some(accelerator) => accelerator.forward(params, images, mode)?,
            None => self.network.forward(params, images, mode)?,
        };
        self.squash.apply(mode, &mut outputs.class_logits);
        Ok(outputs)
    }

    fn forward(&mut self, params: &[f32], images: &[f32], batch: usize, mode: Mode) -> Result<Outputs, Error> {
        self.check_images(images, batch)?;
        self.predict(params, images, mode)
    }

    fn check_images(&self, images: &[f32], batch: usize) -> Result<(), Error> {
        let (height, width) = self.input_size;
        let channels = self.channels;
        let expected = batch * height * width * channels;
        if batch == 0 || images.len() != expected {
            return Err(network::Error::Length {
                what: "images",
                found: images.len(),
                expected: expected.max(height * width * channels),
                why: format!("groundtruth of {batch} images, at least one, x {height} x {width} x {channels}"),
            }
            .into());
        }
        Ok(())
    }

    fn loss_of(&self, outputs: &Outputs, groundtruth: &[Groundtruth]) -> Result<LossOutput, Error> {
        Ok(loss(
            &self.anchors,
            predictions(outputs, &self.head),
            groundtruth,
            &self.loss,
        )?)
    }

    /// A loss that is not finite tells of the variables too: one that is not finite itself, or else the largest; and of the layer and image in
    /// which it began. Batch norm spreads it to all images of the batch, so the image of the loss may be another.
    fn explained(&self, mut error: Error, params: &[f32], groundtruth: &[Groundtruth]) -> Error {
        if let Error::Loss(ssd_loss::Error::NotFinite {
            cause,
            index,
            source_id,
            ..
        }) = &mut error
        {
            let place = params.iter().position(|value| !value.is_finite());
            let largest = || (0..params.len()).max_by(|&a, &b| params[a].abs().total_cmp(&params[b].abs()));
            let found = place
                .or_else(largest)
                .and_then(|at| Some((self.variable_at(at)?, params[at])));
            if let Some((name, value)) = found {
                *cause += &match place {
                    Some(_) => format!("; the first variable that is not finite is {name} ({value})"),
                    None => format!("; all variables are finite, the largest value is {value:e} in {name}"),
                };
            }
            if let Some((layer, image)) = self.network.first_not_finite() {
                *cause += &format!("; the first layer that is not finite is {layer}");
                if let Some(objects) = groundtruth.get(image) {
                    (*index, *source_id) = (image, objects.source_id.clone());
                }
            }
        }
        error
    }

    /// The variable that an element of the flat vector belongs to.
    fn variable_at(&self, element: usize) -> Option<&str> {
        let mut end = 0;
        let own = self.variables.iter().find(|spec| {
            end += spec.elements();
            element < end
        });
        own.map(|spec| spec.name.as_str())
    }

    fn step_losses(&self, params: &[f32], found: &LossOutput) -> Result<StepLosses, Error> {
        Ok(StepLosses::new(found, self.regularization(params)?))
    }

    fn regularization(&self, params: &[f32]) -> Result<f32, Error> {
        self.finite(self.network.regularization(params)?, params)
    }

    fn finite(&self, value: f32, params: &[f32]) -> Result<f32, Error> {
        if value.is_finite() {
            return Ok(value);
        }
        let broken = params.iter().position(|value| !value.is_finite());
        let variable = broken.and_then(|at| self.variable_at(at)).unwrap_or("none").to_owned();
        Err(Error::Regularization { value, variable })
    }
}

impl StepLosses {
    fn new(found: &LossOutput, regularization: f32) -> Self {
        Self::of(found.classification, found.localization, regularization)
    }

    fn of(classification: f32, localization: f32, regularization: f32) -> Self {
        Self {
            classification,
            localization,
            regularization,
            total: classification + localization + regularization,
        }
    }
}

fn predictions<'a>(outputs: &'a Outputs, shape: &Head) -> Predictions<'a> {
    Predictions {
        box_encodings: &outputs.box_encodings,
        class_logits: &outputs.class_logits,
        columns: shape.columns,
        num_classes: shape.num_classes,
    }
}
