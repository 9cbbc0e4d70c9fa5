//! The single shot detector's losses and their gradients with respect to the raw predictions: the reference's `SSDMetaArch.loss`.

use crate::Corners;
use crate::groundtruth::{self, Groundtruth};
use crate::hard_example_miner::HardExampleMiner;
use crate::losses::dice::{self, Dice};
use crate::losses::{Classification, Localization, Row, one_hot, sigmoid};
use crate::random_example_sampler::{self, RandomExampleSampler};
use crate::target_assigner::{TargetAssigner, Targets};

/// What is minimised: the message `Loss` and the parts of `Ssd` that bear on it.
#[derive(Clone, Debug, PartialEq)]
pub struct LossConfig {
    /// What each anchor should predict.
    pub assigner: TargetAssigner,
    /// The class loss.
    pub classification: Classification,
    /// The localisation loss.
    pub localization: Localization,
    /// Factor on the class loss.
    pub classification_weight: f32,
    /// Factor on the localisation loss.
    pub localization_weight: f32,
    /// Divide both losses by the sum of the matched anchors' weights over the batch, if that is above 1.
    pub normalize_loss_by_num_matches: bool,
    /// Divide the localisation loss by the length of a code.
    pub normalize_loc_loss_by_codesize: bool,
    /// Trains all positives and some negatives; the miner then sees no others.
    pub sampler: Option<RandomExampleSampler>,
    /// Trains the hardest anchors alone.
    pub miner: Option<HardExampleMiner>,
}

/// Raw predictions of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Predictions<'a> {
    /// `[batch, anchors, code_size]`
    pub box_encodings: &'a [f32],
    /// `[batch, anchors, columns]`
    pub class_logits: &'a [f32],
    /// Of the class predictions: `num_classes` and one for the background, unless that is one of the classes
    /// (`add_background_class: false`).
    pub columns: usize,
    /// As in the label map.
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
    /// Gradient of the sum of both losses: `[batch, anchors, code_size]`.
    pub d_box_encodings: Vec<f32>,
    /// Gradient of the sum of both losses: `[batch, anchors, columns]`.
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
        "{what} is {value} for image {index} of the batch ({source_id:?}): {cause}\nhint: lower the learning rate, or set gradient_clipping_by_norm; if it is always this image, look at its pixels and boxes"
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
        /// Whether the network or the record is to blame.
        cause: String,
    },
}

/// Losses and gradients of a batch; `groundtruth` has one entry an image.
pub fn loss(
    anchors: &[Corners],
    predictions: Predictions,
    groundtruth: &[Groundtruth],
    config: &LossConfig,
) -> Result<LossOutput, Error> {
    let (columns, code_size) = (predictions.columns, config.assigner.coder.code_size());
    let (boxes, logits) = (predictions.box_encodings, predictions.class_logits);
    check((anchors.len(), code_size), predictions, groundtruth)?;
    let mut targets: Vec<Targets> = groundtruth
        .iter()
        .map(|image| config.assigner.assign(anchors, image))
        .collect();
    if let Some(sampler) = &config.sampler {
        for (index, targets) in targets.iter_mut().enumerate() {
            let size = anchors.len() * columns;
            sample(*sampler, config, targets, &logits[index * size..(index + 1) * size]);
        }
    }
    let normalizer = normalizer(&targets, config);
    let factors = factors(&targets, config);
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
        let codes = index * anchors.len() * code_size..(index + 1) * anchors.len() * code_size;
        let classes = index * anchors.len() * columns..(index + 1) * anchors.len() * columns;
        let image = Image {
            anchors,
            targets,
            codes: &boxes[codes.clone()],
            logits: &logits[classes.clone()],
            columns,
            code_size,
        };
        let gradients = (&mut output.d_box_encodings[codes], &mut output.d_class_logits[classes]);
        let sums = image.loss(config, factors, gradients);
        let parts = [("classification loss", sums.class), ("localization loss", sums.corners)];
        if let Some((what, value)) = parts.into_iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::NotFinite {
                what,
                value: value as f32,
                index,
                source_id: named.source_id.clone(),
                cause: image.cause(named),
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
pub(crate) struct Factors {
    pub(crate) class: f32,
    pub(crate) corners: f32,
}

/// Those of a batch.
pub(crate) fn factors(targets: &[Targets], config: &LossConfig) -> Factors {
    let normalizer = normalizer(targets, config);
    let codesize = if config.normalize_loc_loss_by_codesize {
        config.assigner.coder.code_size() as f32
    } else {
        1.0
    };
    Factors {
        class: config.classification_weight / normalizer,
        corners: config.localization_weight / (normalizer * codesize),
    }
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
    codes: &'a [f32],
    logits: &'a [f32],
    columns: usize,
    code_size: usize,
}

impl Image<'_> {
    fn logits_of(&self, anchor: usize) -> &[f32] {
        &self.logits[anchor * self.columns..(anchor + 1) * self.columns]
    }

    fn code_of(&self, anchor: usize) -> &[f32] {
        &self.codes[anchor * self.code_size..(anchor + 1) * self.code_size]
    }

    /// Sums of the losses over the selected anchors, whose gradients are written.
    fn loss(&self, config: &LossConfig, factors: Factors, (d_codes, d_logits): (&mut [f32], &mut [f32])) -> Sums {
        let targets = self.targets;
        let count = self.anchors.len();
        let class_losses: Vec<f32> = match config.classification {
            Classification::Sigmoid => (0..count)
                .map(|i| sigmoid::loss(self.logits_of(i), targets.class_columns[i], targets.class_weights[i]))
                .collect(),
            _ => (0..count).map(|i| config.classification.loss(&self.row(i))).collect(),
        };
        let box_losses: Vec<f32> = (0..count).map(|i| self.box_loss(i, config.localization)).collect();
        let selected = match &config.miner {
            Some(miner) => {
                let decoded = config.assigner.coder.decode_all(self.codes, self.anchors);
                miner.select(&class_losses, &box_losses, &decoded, &targets.matches)
            }
            None => (0..count).collect(),
        };
        for &i in &selected {
            let to = &mut d_logits[i * self.columns..(i + 1) * self.columns];
            let (column, weight) = (targets.class_columns[i], targets.class_weights[i]);
            match config.classification {
                Classification::Sigmoid => sigmoid::gradient(self.logits_of(i), column, weight, factors.class, to),
                _ if weight == 0.0 => {}
                other => other.gradient(&self.row(i), factors.class, to),
            }
            if targets.box_weights[i] != 0.0 {
                let to = &mut d_codes[i * self.code_size..(i + 1) * self.code_size];
                let (target, weight) = (self.target_of(i), targets.box_weights[i]);
                config
                    .localization
                    .gradient(self.code_of(i), target, weight, factors.corners, to);
            }
        }
        let class = match config.classification {
            Classification::Dice(dice) => self.whole(dice, factors.class, d_logits),
            _ => total(&class_losses, &selected),
        };
        Sums {
            class,
            corners: total(&box_losses, &selected),
            selected: selected.len(),
        }
    }

    fn row(&self, anchor: usize) -> Row<'_, impl Fn(usize) -> f32, impl Fn(usize) -> f32> {
        let weight = self.targets.class_weights[anchor];
        Row {
            logits: self.logits_of(anchor),
            target: one_hot(self.targets.class_columns[anchor]),
            weight: move |_| weight,
        }
    }

    /// The loss that looks at the whole image.
    fn whole(&self, dice: Dice, factor: f32, d_logits: &mut [f32]) -> f64 {
        let (columns, weights) = (&self.targets.class_columns, &self.targets.class_weights);
        let image = dice::Image {
            predictions: self.logits,
            columns: self.columns,
            target: |anchor: usize, column: usize| one_hot(columns[anchor])(column),
            weight: |anchor: usize, _: usize| weights[anchor],
        };
        let losses = dice.image(&image, factor, d_logits);
        losses.into_iter().map(f64::from).sum()
    }

    fn target_of(&self, anchor: usize) -> &[f32] {
        &self.targets.box_codes[anchor * self.code_size..(anchor + 1) * self.code_size]
    }

    fn box_loss(&self, anchor: usize, localization: Localization) -> f32 {
        let (code, weight) = (self.code_of(anchor), self.targets.box_weights[anchor]);
        if weight == 0.0 {
            // The reference multiplies by the weight: 0, or NaN where the prediction is not a finite number.
            return if code.iter().all(|value| value.is_finite()) {
                0.0
            } else {
                f32::NAN
            };
        }
        localization.loss(code, self.target_of(anchor), weight)
    }

    /// Why a loss is not finite: what the network made of the image, or what the image's record says.
    fn cause(&self, groundtruth: &Groundtruth) -> String {
        let odd = |values: &[f32]| values.iter().position(|value| !value.is_finite());
        if let Some(at) = odd(self.logits) {
            return format!(
                "the network predicts {} for class column {}",
                self.logits[at],
                at % self.columns.max(1)
            );
        }
        if let Some(at) = odd(self.codes) {
            return format!("the network predicts {} for a box", self.codes[at]);
        }
        let broken = |corners: &&Corners| {
            let [ymin, xmin, ymax, xmax] = **corners;
            !(ymax > ymin && xmax > xmin && corners.iter().all(|value| value.is_finite()))
        };
        match groundtruth.boxes.iter().find(broken) {
            Some(corners) => format!("its groundtruth has the box {corners:?}"),
            None => "predictions and groundtruth are finite: the error itself is too large".to_owned(),
        }
    }
}

/// Takes the weight from anchors that are not drawn.
fn sample(sampler: RandomExampleSampler, config: &LossConfig, targets: &mut Targets, logits: &[f32]) {
    let background = config.assigner.add_background_class.then_some(0);
    let columns = targets.class_columns.iter().zip(&targets.class_weights);
    let anchors: Vec<Option<bool>> = columns
        .map(|(&column, &weight)| (weight != 0.0).then(|| column.is_some() && column != background))
        .collect();
    let drawn = sampler.sample(&anchors, random_example_sampler::seed(logits));
    for (index, drawn) in drawn.into_iter().enumerate() {
        if !drawn {
            targets.class_weights[index] = 0.0;
            targets.box_weights[index] = 0.0;
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

fn check(
    (anchors, code_size): (usize, usize),
    predictions: Predictions,
    groundtruth: &[Groundtruth],
) -> Result<(), Error> {
    let boxes = groundtruth.len() * anchors * code_size;
    let classes = groundtruth.len() * anchors * predictions.columns;
    let tensors = [
        (
            "box_encodings",
            predictions.box_encodings.len(),
            boxes,
            "images x anchors x code size",
        ),
        (
            "class_logits",
            predictions.class_logits.len(),
            classes,
            "images x anchors x class columns",
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
