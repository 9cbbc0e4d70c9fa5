//! Records for evaluation: in file order, each once, never augmented.

use std::sync::Arc;

use crate::bad::{Ledger, TooMany};
use crate::decode::{self, Image};
use crate::example;
use crate::fit::{self, Fitter};
use crate::groundtruth::Groundtruth;
use crate::shards::Source;

/// How records are read for evaluation.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the model wants.
    pub fit: fit::Options,
    /// The label map.
    pub example: example::Options,
    /// What is read beyond boxes: masks.
    pub extras: example::Extras,
    /// Limits of image decoding.
    pub decode: decode::Options,
    /// `--sample_1_of_n_eval_examples`: records 0, n, 2n, …; 0 counts as 1.
    pub sample_1_of_n: u64,
    /// As in [`crate::batch::Options`].
    pub max_bad_records: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fit: fit::Options::new(300, 300),
            example: example::Options::default(),
            extras: example::Extras::default(),
            decode: decode::Options::default(),
            sample_1_of_n: 1,
            max_bad_records: None,
        }
    }
}

/// One image to evaluate.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Number of the record in the data set; unlike `source_id` always there and unique.
    pub record: u64,
    /// `image/source_id`.
    pub source_id: String,
    /// `image/filename`.
    pub filename: String,
    /// The stored image.
    pub image: Image,
    /// The model's input.
    pub input: fit::Fitted,
    /// The objects; boxes normalised to the stored image.
    pub groundtruth: Groundtruth,
    /// The boxes in absolute pixels of the stored image.
    pub boxes_px: Vec<[f32; 4]>,
    /// Ids in the label map of classes that were verified in the image (`image/class/label`); empty where the record says nothing.
    pub image_classes: Vec<i64>,
}

/// Records that are asked for before they are read.
const AHEAD: u64 = 16;

/// Iterates over the examples of a data set. Bad records are left out, entered in the ledger and, beyond the
/// limit, end the iteration with an error.
#[derive(Debug)]
pub struct Examples {
    source: Arc<Source>,
    options: Options,
    ledger: Ledger,
    fitter: Fitter,
    next: u64,
    /// What a bucket was asked for ends before this one.
    asked: u64,
}

impl Examples {
    /// From the first record.
    pub fn new(source: Arc<Source>, options: Options) -> Self {
        let ledger = Ledger::new(source.record_count(), options.max_bad_records);
        let fitter = Fitter::new(options.fit.clone(), options.decode);
        Self {
            source,
            options,
            ledger,
            fitter,
            next: 0,
            asked: 0,
        }
    }

    /// From a bucket, the next records come while this one is looked at.
    fn ask_ahead(&mut self, record: u64) {
        let step = self.options.sample_1_of_n.max(1);
        let end = record
            .saturating_add(step.saturating_mul(AHEAD))
            .min(self.source.record_count());
        self.asked = self.asked.max(record);
        while self.asked < end {
            self.source.prefetch(self.asked);
            self.asked = self.asked.saturating_add(step);
        }
    }

    /// How many records will be tried in all.
    pub fn total(&self) -> u64 {
        self.source.record_count().div_ceil(self.options.sample_1_of_n.max(1))
    }

    /// What was wrong with records so far.
    pub fn bad_records(&self) -> Vec<String> {
        self.ledger.reports()
    }

    fn read(&mut self, record: u64) -> Result<(Example, Vec<example::BadObject>), String> {
        let bytes = self.source.read(record).map_err(|error| error.to_string())?;
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", self.source.location(record));
        let extras = example::Extras {
            additional_channels: self.options.fit.additional_channels,
            ..self.options.extras.clone()
        };
        let annotated = example::decode_with(&bytes, &self.options.example, &extras).map_err(|error| at(&error))?;
        let (image, input) = self
            .fitter
            .decode(annotated.image, &annotated.additional_channels)
            .map_err(|error| at(&format!("image {:?}: {error}", annotated.filename)))?;
        let groundtruth = annotated.objects;
        let boxes_px = groundtruth.boxes_px(image.height, image.width);
        let (source_id, filename) = (annotated.source_id, annotated.filename);
        let example = Example {
            record,
            source_id,
            filename,
            image,
            input,
            groundtruth,
            boxes_px,
            image_classes: annotated.image_classes,
        };
        Ok((example, annotated.bad_objects))
    }
}

impl Iterator for Examples {
    type Item = Result<Example, TooMany>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.source.record_count() {
            let record = self.next;
            self.next = record.saturating_add(self.options.sample_1_of_n.max(1));
            self.ask_ahead(record);
            let entered = match self.read(record) {
                Ok((example, flaws)) if flaws.is_empty() => return Some(Ok(example)),
                Ok((example, flaws)) => {
                    let flaws: Vec<_> = flaws.iter().map(ToString::to_string).collect();
                    let report = format!("{}: left out {}", self.source.location(record), flaws.join("; "));
                    self.ledger.enter(record, &report).map(|()| Some(example))
                }
                Err(report) => self.ledger.enter(record, &report).map(|()| None),
            };
            match entered {
                Ok(Some(example)) => return Some(Ok(example)),
                Ok(None) => {}
                Err(error) => {
                    self.next = u64::MAX;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::Classes;
    use crate::testing::{file, good, image, record};

    #[allow(clippy::needless_pass_by_value, reason = "tests make them in place")]
    fn examples(records: &[Vec<u8>], options: Options) -> (tempfile::TempDir, Examples) {
        let (folder, path) = file(records);
        let source = Arc::new(Source::open_files(&[path]).unwrap());
        let example = example::Options {
            classes: Classes::numbered(3),
            strict: false,
        };
        (
            folder,
            Examples::new(
                source,
                Options {
                    fit: fit::Options::new(8, 9),
                    example,
                    ..options
                },
            ),
        )
    }

    #[test]
    fn all_records_come_once_in_file_order_as_they_are() {
        let (_folder, mut examples) = examples(&(0..5).map(good).collect::<Vec<_>>(), Options::default());
        assert_eq!(examples.total(), 5);
        let all: Vec<_> = examples.by_ref().map(Result::unwrap).collect();
        assert_eq!(
            all.iter().map(|example| example.record).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4]
        );
        let first = &all[0];
        assert_eq!(
            (first.image.height, first.image.width, first.input.input.len()),
            (21, 34, 8 * 9 * 3)
        );
        assert_eq!(first.groundtruth.boxes[0], [0.1, 0.2, 0.6, 0.7]);
        let expected = [2.1, 6.8, 12.6, 23.8];
        assert!(
            first.boxes_px[0]
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-4),
            "{:?}",
            first.boxes_px
        );
    }

    #[test]
    fn one_of_n_is_sampled() {
        let options = Options {
            sample_1_of_n: 3,
            ..Options::default()
        };
        let (_folder, examples) = examples(&(0..8).map(good).collect::<Vec<_>>(), options);
        assert_eq!(examples.total(), 3);
        assert_eq!(
            examples.map(|example| example.unwrap().record).collect::<Vec<_>>(),
            [0, 3, 6]
        );
    }

    #[test]
    fn bad_records_are_left_out_up_to_the_limit() {
        let mut records: Vec<_> = (0..6).map(good).collect();
        records[1] = record(1, image("rgb.png")[..60].to_vec(), &[]);
        records[4] = record(4, image("rgb.png"), &[[0.5, 0.5, 0.4, 0.6]]);
        let some = Options {
            max_bad_records: Some(2),
            ..Options::default()
        };
        let (_folder, mut all) = examples(&records, some);
        let found: Vec<_> = all.by_ref().map(|example| example.unwrap().record).collect();
        assert_eq!(found, [0, 2, 3, 4, 5]);
        assert_eq!(all.bad_records().len(), 2);
        let none = Options {
            max_bad_records: Some(1),
            ..Options::default()
        };
        let results: Vec<_> = examples(&records, none).1.collect();
        assert!(
            results
                .last()
                .unwrap()
                .as_ref()
                .unwrap_err()
                .to_string()
                .contains("2 bad records")
        );
        assert_eq!(results.len(), 4);
    }
}
