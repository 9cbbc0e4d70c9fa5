//! From `train_config.data_augmentation_options` to [`Augmentation`]s (`preprocessor_builder.build`).

use coati_proto::object_detection::protos::PreprocessingStep;
use coati_proto::object_detection::protos::preprocessing_step::PreprocessingStep as Step;

use super::Augmentation;
use super::crop::{CropOperation, ssd_operations};
use super::sample::Constraints;

/// Why a step cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The step is not built yet.
    #[error(
        "train_config.data_augmentation_options[{index}]: {name} is not supported yet\nhint: supported are random_horizontal_flip, random_crop_image and ssd_random_crop"
    )]
    Unsupported {
        /// Which of the options, from 0.
        index: usize,
        /// As in pipeline.config.
        name: String,
    },
    /// Nothing is chosen.
    #[error(
        "train_config.data_augmentation_options[{index}] is empty\nhint: name a step, for example random_horizontal_flip {{ }}"
    )]
    EmptyStep {
        /// Which of the options, from 0.
        index: usize,
    },
    /// A value that makes no sense.
    #[error("train_config.data_augmentation_options[{index}].{field}: {value} must be {right}")]
    BadValue {
        /// Which of the options, from 0.
        index: usize,
        /// The path of the field below it.
        field: String,
        /// As configured.
        value: String,
        /// What would be right.
        right: &'static str,
    },
}

/// The steps that a configuration asks for, in order.
pub fn from_config(steps: &[PreprocessingStep]) -> Result<Vec<Augmentation>, Error> {
    steps
        .iter()
        .enumerate()
        .map(|(index, step)| one(index, step.preprocessing_step.as_ref()))
        .collect()
}

fn one(index: usize, step: Option<&Step>) -> Result<Augmentation, Error> {
    match step {
        None => Err(Error::EmptyStep { index }),
        Some(Step::RandomHorizontalFlip(flip)) => {
            let probability = flip.probability();
            check(
                index,
                "random_horizontal_flip.probability",
                probability,
                (0.0..=1.0).contains(&probability),
                SHARE,
            )?;
            Ok(Augmentation::HorizontalFlip { probability })
        }
        Some(Step::RandomCropImage(crop)) => {
            let operation = CropOperation {
                constraints: Constraints {
                    min_object_covered: crop.min_object_covered(),
                    aspect_ratio: (crop.min_aspect_ratio(), crop.max_aspect_ratio()),
                    area: (crop.min_area(), crop.max_area()),
                },
                overlap_thresh: crop.overlap_thresh(),
                clip_boxes: crop.clip_boxes(),
                random_coef: crop.random_coef(),
            };
            check_operation(index, "random_crop_image", &operation)?;
            Ok(Augmentation::Crop(operation))
        }
        Some(Step::SsdRandomCrop(crop)) if crop.operations.is_empty() => Ok(Augmentation::SsdCrop(ssd_operations())),
        Some(Step::SsdRandomCrop(crop)) => {
            let mut operations = Vec::with_capacity(crop.operations.len());
            for (number, row) in crop.operations.iter().enumerate() {
                let operation = CropOperation {
                    constraints: Constraints {
                        min_object_covered: row.min_object_covered(),
                        aspect_ratio: (row.min_aspect_ratio(), row.max_aspect_ratio()),
                        area: (row.min_area(), row.max_area()),
                    },
                    overlap_thresh: row.overlap_thresh(),
                    clip_boxes: row.clip_boxes(),
                    random_coef: row.random_coef(),
                };
                check_operation(index, &format!("ssd_random_crop.operations[{number}]"), &operation)?;
                operations.push(operation);
            }
            Ok(Augmentation::SsdCrop(operations))
        }
        Some(other) => Err(Error::Unsupported {
            index,
            name: field_name(other),
        }),
    }
}

const SHARE: &str = "from 0 to 1";

/// What TensorFlow demands of `sample_distorted_bounding_box`.
fn check_operation(index: usize, path: &str, operation: &CropOperation) -> Result<(), Error> {
    let Constraints {
        min_object_covered,
        aspect_ratio,
        area,
    } = operation.constraints;
    let share = |value: f32| (0.0..=1.0).contains(&value);
    let one = |field: &str, value: f32, good: bool, right| check(index, &format!("{path}.{field}"), value, good, right);
    one(
        "min_object_covered",
        min_object_covered,
        share(min_object_covered),
        SHARE,
    )?;
    one(
        "min_aspect_ratio",
        aspect_ratio.0,
        aspect_ratio.0 > 0.0,
        "greater than 0",
    )?;
    one(
        "max_aspect_ratio",
        aspect_ratio.1,
        aspect_ratio.1 >= aspect_ratio.0,
        "at least min_aspect_ratio",
    )?;
    one(
        "min_area",
        area.0,
        area.0 > 0.0 && area.0 <= 1.0,
        "greater than 0 and at most 1",
    )?;
    one(
        "max_area",
        area.1,
        area.1 >= area.0 && area.1 <= 1.0,
        "from min_area to 1",
    )?;
    one(
        "overlap_thresh",
        operation.overlap_thresh,
        share(operation.overlap_thresh),
        SHARE,
    )?;
    one(
        "random_coef",
        operation.random_coef,
        share(operation.random_coef),
        SHARE,
    )
}

fn check(index: usize, field: &str, value: f32, good: bool, right: &'static str) -> Result<(), Error> {
    if good {
        Ok(())
    } else {
        Err(Error::BadValue {
            index,
            field: field.to_owned(),
            value: value.to_string(),
            right,
        })
    }
}

/// The variant's name as the configuration spells it.
fn field_name(step: &Step) -> String {
    let shown = format!("{step:?}");
    let mut name = String::new();
    for character in shown.chars().take_while(char::is_ascii_alphanumeric) {
        if character.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use coati_proto::object_detection::protos as config;

    use super::*;

    fn convert(step: Step) -> Result<Augmentation, String> {
        let step = PreprocessingStep {
            preprocessing_step: Some(step),
        };
        from_config(&[step])
            .map(|mut steps| steps.remove(0))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_the_references() {
        let flip = convert(Step::RandomHorizontalFlip(config::RandomHorizontalFlip::default()));
        assert_eq!(flip, Ok(Augmentation::HorizontalFlip { probability: 0.5 }));
        let crop = convert(Step::RandomCropImage(config::RandomCropImage::default()));
        assert_eq!(crop, Ok(Augmentation::Crop(CropOperation::default())));
        let Ok(Augmentation::SsdCrop(table)) = convert(Step::SsdRandomCrop(config::SsdRandomCrop::default())) else {
            panic!("not a crop")
        };
        let covered: Vec<_> = table.iter().map(|row| row.constraints.min_object_covered).collect();
        assert_eq!(covered, [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]);
        assert!(
            table
                .iter()
                .all(|row| row.overlap_thresh == row.constraints.min_object_covered)
        );
        assert!(table.iter().all(|row| row.random_coef == 0.15 && row.clip_boxes));
    }

    fn row() -> config::SsdRandomCropOperation {
        config::SsdRandomCropOperation {
            min_object_covered: Some(0.4),
            min_aspect_ratio: Some(0.8),
            max_aspect_ratio: Some(1.25),
            min_area: Some(0.2),
            max_area: Some(0.9),
            overlap_thresh: Some(0.45),
            random_coef: Some(0.3),
            clip_boxes: None,
        }
    }

    #[test]
    fn a_configured_table_is_taken_over() {
        let crop = config::SsdRandomCrop {
            operations: vec![row()],
        };
        let constraints = Constraints {
            min_object_covered: 0.4,
            aspect_ratio: (0.8, 1.25),
            area: (0.2, 0.9),
        };
        let expected = CropOperation {
            constraints,
            overlap_thresh: 0.45,
            clip_boxes: true,
            random_coef: 0.3,
        };
        assert_eq!(
            convert(Step::SsdRandomCrop(crop)),
            Ok(Augmentation::SsdCrop(vec![expected]))
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        let crop = config::SsdRandomCrop {
            operations: vec![
                row(),
                config::SsdRandomCropOperation {
                    min_area: None,
                    ..row()
                },
            ],
        };
        let error = convert(Step::SsdRandomCrop(crop)).unwrap_err();
        let expected = "data_augmentation_options[0].ssd_random_crop.operations[1].min_area: 0 must be greater than 0";
        assert!(error.contains(expected), "{error}");
        let error = convert(Step::RandomRotation90(config::RandomRotation90::default())).unwrap_err();
        assert!(
            error.contains("random_rotation90 is not supported") && error.contains("ssd_random_crop"),
            "{error}"
        );
        assert!(from_config(&[PreprocessingStep::default()]).is_err());
    }
}
