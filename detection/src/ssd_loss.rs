//! The single shot detector's losses and their gradients with respect to the raw predictions: the reference's `SSDMetaArch.loss`.

use crate::Corners;
use crate::box_coder::CODE_SIZE;
use crate::groundtruth::{self, Groundtruth};
use crate::hard_example_miner::HardExampleMiner;
use crate::losses::{sigmoid, smooth_l1};
use crate::target_assigner::{TargetAssigner, Targets};

/// What is minimised: the message `Loss` and the parts of `Ssd` that bear on it. The class loss is `weighted_sigmoid`, the localisation
/// loss `weighted_smooth_l1`.
#[derive(Clone, Debug, PartialEq)]
pub struct LossConfig {
    /// What each anchor should predict.
    pub assigner: TargetAssigner,
    /// Where smooth L1 turns linear.
    pub delta: f32,
    /// Factor on the class loss.
    pub classification_weight: f32,
    /// Factor on the localisation loss.
    pub localization_weight: f32,
    /// Divide both losses by the sum of the matched anchors' weights over the batch, if that is above 1.
    pub normalize_loss_by_num_matches: bool,
    /// Divide the localisation loss by the length of a code.
    pub normalize_loc_loss_by_codesize: bool,
    /// Trains the hardest anchors alone.
    pub miner: Option<HardExampleMiner>,
}

/// Raw predictions of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Predictions<'a> {
    /// `[batch, anchors, 4]`
    pub box_encodings: &'a [f32],
    /// `[batch, anchors, num_classes + 1]`; column 0 is the background.
    pub class_logits: &'a [f32],
    /// Without the background.
    pub num_classes: usize,
}

/// Losses of a batch and their gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOutput {
    /// Normalised and weighted.
    pub classification: f32,
    /// Normalised and weighted.
    pub localization: f32,
    /// What the sums over anchors were divided by.
    pub normalizer: f32,
    /// Anchors that are matched.
    pub positives: usize,
    /// Anchors that were trained on.
    pub selected: usize,
    /// Gradient of the sum of both losses: `[batch, anchors, 4]`.
    pub d_box_encodings: Vec<f32>,
    /// Gradient of the sum of both losses: `[batch, anchors, num_classes + 1]`.
    pub d_class_logits: Vec<f32>,
}

/// Why there is no loss.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor of the wrong size.
    #[error("{what} has {found} elements, {expected} are needed ({why})")]
    Length {
        /// Which.
        what: &'static str,
        /// Its elements.
        found: usize,
        /// What it should have.
        expected: usize,
        /// How that is made up.
        why: &'static str,
    },
    /// Groundtruth that does not fit the model.
    #[error(transparent)]
    Groundtruth(#[from] groundtruth::Error),
    /// Training has diverged, or an image or box is broken.
    #[error(
        "{what} is {value} for image {index} of the batch ({source_id:?})\nhint: lower the learning rate, or set gradient_clipping_by_norm; if it is always this image, look at its pixels and boxes"
    )]
    NotFinite {
        /// `classification loss` or `localization loss`.
        what: &'static str,
        /// NaN or infinity.
        value: f32,
        /// The image's place in the batch.
        index: usize,
        /// Its groundtruth's name.
        source_id: String,
    },
}

/// Losses and gradients of a batch; `groundtruth` has one entry an image.
pub fn loss(
    anchors: &[Corners],
    predictions: Predictions,
    groundtruth: &[Groundtruth],
    config: &LossConfig,
) -> Result<LossOutput, Error> {
    let columns = predictions.num_classes + 1;
    let (boxes, logits) = (predictions.box_encodings, predictions.class_logits);
    check(anchors.len(), predictions, groundtruth)?;
    let targets: Vec<Targets> = groundtruth
        .iter()
        .map(|image| config.assigner.assign(anchors, image))
        .collect();
    let normalizer = normalizer(&targets, config);
    let codesize = if config.normalize_loc_loss_by_codesize {
        CODE_SIZE as f32
    } else {
        1.0
    };
    let factors = Factors {
        class: config.classification_weight / normalizer,
        corners: config.localization_weight / (normalizer * codesize),
    };
    let mut output = LossOutput {
        classification: 0.0,
        localization: 0.0,
        normalizer,
        positives: targets
            .iter()
            .flat_map(|image| &image.matches)
            .filter(|found| found.row().is_some())
            .count(),
        selected: 0,
        d_box_encodings: vec![0.0; boxes.len()],
        d_class_logits: vec![0.0; logits.len()],
    };
    let (mut classification, mut localization) = (0.0, 0.0);
    for (index, (targets, named)) in targets.iter().zip(groundtruth).enumerate() {
        let codes = index * anchors.len() * CODE_SIZE..(index + 1) * anchors.len() * CODE_SIZE;
        let classes = index * anchors.len() * columns..(index + 1) * anchors.len() * columns;
        let image = Image {
            anchors,
            targets,
            codes: boxes[codes.clone()].as_chunks().0,
            logits: &logits[classes.clone()],
            columns,
        };
        let gradients = (&mut output.d_box_encodings[codes], &mut output.d_class_logits[classes]);
        let sums = image.loss(config, factors, gradients);
        let parts = [("classification loss", sums.class), ("localization loss", sums.corners)];
        if let Some((what, value)) = parts.into_iter().find(|(_, value)| !value.is_finite()) {
            let source_id = named.source_id.clone();
            return Err(Error::NotFinite {
                what,
                value: value as f32,
                index,
                source_id,
            });
        }
        classification += sums.class;
        localization += sums.corners;
        output.selected += sums.selected;
    }
    output.classification = (classification * f64::from(factors.class)) as f32;
    output.localization = (localization * f64::from(factors.corners)) as f32;
    Ok(output)
}

/// Factors that turn sums over anchors into losses.
#[derive(Clone, Copy)]
struct Factors {
    class: f32,
    corners: f32,
}

/// An image's sums over the selected anchors.
struct Sums {
    class: f64,
    corners: f64,
    selected: usize,
}

struct Image<'a> {
    anchors: &'a [Corners],
    targets: &'a Targets,
    codes: &'a [[f32; CODE_SIZE]],
    logits: &'a [f32],
    columns: usize,
}

impl Image<'_> {
    fn logits_of(&self, anchor: usize) -> &[f32] {
        &self.logits[anchor * self.columns..(anchor + 1) * self.columns]
    }

    /// Sums of the losses over the selected anchors, whose gradients are written.
    fn loss(&self, config: &LossConfig, factors: Factors, (d_codes, d_logits): (&mut [f32], &mut [f32])) -> Sums {
        let targets = self.targets;
        let count = self.anchors.len();
        let class_losses: Vec<f32> = (0..count)
            .map(|i| sigmoid::loss(self.logits_of(i), targets.class_columns[i], targets.class_weights[i]))
            .collect();
        let box_losses: Vec<f32> = (0..count)
            .map(|i| box_loss(self.codes[i], targets, i, config.delta))
            .collect();
        let selected = match &config.miner {
            Some(miner) => {
                let decoded = config.assigner.coder.decode_all(self.codes, self.anchors);
                miner.select(&class_losses, &box_losses, &decoded, &targets.matches)
            }
            None => (0..count).collect(),
        };
        let d_codes = d_codes.as_chunks_mut::<CODE_SIZE>().0;
        for &i in &selected {
            let to = &mut d_logits[i * self.columns..(i + 1) * self.columns];
            let (column, weight) = (targets.class_columns[i], targets.class_weights[i]);
            sigmoid::gradient(self.logits_of(i), column, weight, factors.class, to);
            if targets.box_weights[i] != 0.0 {
                let weight = targets.box_weights[i] * factors.corners;
                d_codes[i] = smooth_l1::gradient(self.codes[i], targets.box_codes[i], weight, config.delta);
            }
        }
        Sums {
            class: total(&class_losses, &selected),
            corners: total(&box_losses, &selected),
            selected: selected.len(),
        }
    }
}

/// The sum over the selected anchors; what is not finite shows wherever it is, since the miner never selects NaN.
fn total(losses: &[f32], selected: &[usize]) -> f64 {
    match losses.iter().find(|loss| !loss.is_finite()) {
        Some(&loss) => f64::from(loss),
        None => selected.iter().map(|&i| f64::from(losses[i])).sum(),
    }
}

fn box_loss(code: [f32; CODE_SIZE], targets: &Targets, anchor: usize, delta: f32) -> f32 {
    let weight = targets.box_weights[anchor];
    if weight == 0.0 {
        // The reference multiplies by the weight: 0, or NaN where the prediction is not a finite number.
        return if code.iter().all(|value| value.is_finite()) {
            0.0
        } else {
            f32::NAN
        };
    }
    smooth_l1::loss(code, targets.box_codes[anchor], weight, delta)
}

fn normalizer(targets: &[Targets], config: &LossConfig) -> f32 {
    if config.normalize_loss_by_num_matches {
        let sum: f64 = targets
            .iter()
            .flat_map(|image| &image.box_weights)
            .map(|&weight| f64::from(weight))
            .sum();
        (sum as f32).max(1.0)
    } else {
        1.0
    }
}

fn check(anchors: usize, predictions: Predictions, groundtruth: &[Groundtruth]) -> Result<(), Error> {
    let boxes = groundtruth.len() * anchors * CODE_SIZE;
    let classes = groundtruth.len() * anchors * (predictions.num_classes + 1);
    let tensors = [
        (
            "box_encodings",
            predictions.box_encodings.len(),
            boxes,
            "images x anchors x 4",
        ),
        (
            "class_logits",
            predictions.class_logits.len(),
            classes,
            "images x anchors x (num_classes + 1)",
        ),
    ];
    if let Some((what, found, expected, why)) = tensors.into_iter().find(|(_, found, expected, _)| found != expected) {
        return Err(Error::Length {
            what,
            found,
            expected,
            why,
        });
    }
    for image in groundtruth {
        image.check(predictions.num_classes)?;
    }
    Ok(())
}
