//! Steps with the variables on a device.

use super::{Error, Ssd, StepLosses};
use crate::accelerator::loss::{BatchTargets, combine};
use crate::accelerator::resident::{Residence, Resident, Role, Vectors};
use crate::accelerator::{Images, OnDevice};
use crate::groundtruth::Groundtruth;
use crate::network::{self, Mode};
use coati_common::variables::VariableKind;

/// A batch for variables on a device.
#[derive(Clone, Copy, Debug)]
pub struct ResidentStep<'a> {
    /// `[batch, height, width, channels]` of 0 to 255.
    pub images: &'a [f32],
    /// Whether these images are the ones that the step before sent as its `next`.
    pub staged: bool,
    /// One entry an image.
    pub groundtruth: &'a [Groundtruth],
    /// Images of the next step, if they are known: the device takes them while it computes this step.
    pub next: Option<&'a [f32]>,
}

impl Ssd {
    /// What the variables are to the optimiser.
    pub fn roles(&self) -> Vec<Role> {
        let role = |spec: &coati_common::variables::VariableSpec| match spec.kind {
            VariableKind::Trainable if crate::gradients::is_bias(&spec.name) => Role::Bias,
            VariableKind::Trainable => Role::Trainable,
            VariableKind::MovingStatistic { decay } => Role::Statistic { decay },
            VariableKind::Constant => Role::Constant,
        };
        self.variables.iter().map(role).collect()
    }

    /// Brings the variables to the accelerator, where they stay while it trains; none where there is no accelerator.
    pub fn reside(&mut self, residence: &Residence, vectors: &Vectors) -> Result<Option<Resident>, Error> {
        let Some(accelerator) = &mut self.accelerator else {
            return Ok(None);
        };
        Ok(Some(accelerator.reside(residence, vectors)?))
    }

    /// Forward and backward pass with the variables on the accelerator, where the gradient stays. Where it is summed over ranks, `progress` is
    /// told of parts that lie where that is done, from the predictors to the image; of none where they are not final before the last.
    pub fn train_resident(
        &mut self,
        step: &ResidentStep<'_>,
        resident: &Resident,
        progress: OnDevice<'_>,
    ) -> Result<StepLosses, Error> {
        let (images, groundtruth) = (step.images, step.groundtruth);
        self.resident_step(step, resident, progress).map_err(|error| {
            self.with_largest_batch(error, images, groundtruth, |this, images, groundtruth| {
                let part = ResidentStep {
                    images,
                    staged: false,
                    groundtruth,
                    next: None,
                };
                this.resident_step(&part, resident, &mut |_| {})
            })
        })
    }

    fn resident_step(
        &mut self,
        step: &ResidentStep<'_>,
        resident: &Resident,
        progress: OnDevice<'_>,
    ) -> Result<StepLosses, Error> {
        let groundtruth = step.groundtruth;
        self.check_images(step.images, groundtruth.len())?;
        let applies = self.squash.applies(Mode::Train);
        let Some(accelerator) = &mut self.accelerator else {
            return Err(network::Error::NoForward.into());
        };
        let given = Images::Given(step.images);
        accelerator.start_resident(if step.staged && accelerator.has_staged() {
            Images::Staged(groundtruth.len())
        } else {
            given
        })?;
        let computes = accelerator.computes_losses() && !applies;
        let mut told = false;
        if computes {
            let targets = BatchTargets::assign(&self.anchors, groundtruth, self.head.num_classes, &self.loss)?;
            accelerator.train(&targets, progress)?;
            if let Some(next) = step.next {
                accelerator.stage(next)?;
            }
            let (sums, penalty) = accelerator.collect_resident(true)?;
            if let Some((classification, localization)) = combine(&sums, &targets) {
                let penalty = self.finite_resident(penalty, resident)?;
                return Ok(StepLosses::of(classification, localization, penalty));
            }
            // Which image and which prediction it was, the host can tell.
            accelerator.alone(|accelerator| accelerator.start_resident(given))?;
            told = true;
        }
        let mut outputs = accelerator.predictions()?;
        self.squash.apply(Mode::Train, &mut outputs.class_logits);
        let mut found = match self.loss_of(&outputs, groundtruth) {
            Ok(found) => found,
            Err(error) if error.is_not_finite() => {
                if let (Some(accelerator), false) = (&mut self.accelerator, told) {
                    // Other ranks sum theirs; what this one adds is left out afterwards.
                    let (boxes, classes) = outputs.without_slopes();
                    accelerator.backward_resident(&boxes, &classes, progress)?;
                    accelerator.collect_resident(false)?;
                }
                let params = resident.read()?.params;
                return Err(self.explained(error, &params, groundtruth));
            }
            Err(error) => return Err(error),
        };
        self.squash.back(&outputs.class_logits, &mut found.d_class_logits);
        let Some(accelerator) = &mut self.accelerator else {
            return Err(network::Error::NoForward.into());
        };
        // Parts of a gradient are told of once.
        let nobody: OnDevice<'_> = &mut |_| {};
        let progress = if told { nobody } else { progress };
        accelerator.backward_resident(&found.d_box_encodings, &found.d_class_logits, progress)?;
        if let Some(next) = step.next {
            accelerator.stage(next)?;
        }
        let (_, penalty) = accelerator.collect_resident(false)?;
        let penalty = self.finite_resident(penalty, resident)?;
        Ok(StepLosses::new(&found, penalty))
    }

    fn finite_resident(&self, penalty: f32, resident: &Resident) -> Result<f32, Error> {
        if penalty.is_finite() {
            return Ok(penalty);
        }
        let params = resident.read()?.params;
        self.finite(penalty, &params)
    }
}
