//! One record, from its file to pixels and boxes.

use super::{Error, Options};
use crate::bad::Ledger;
use crate::decode::{Decoder, Image};
use crate::groundtruth::Groundtruth;
use crate::order::Place;
use crate::resize::Resizer;
use crate::shards::Source;
use crate::{augment, example};

/// What a batch keeps of a record beside its pixels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Item {
    /// Number of the record that was used.
    pub record: u64,
    /// The objects.
    pub groundtruth: Groundtruth,
    /// `image/source_id`.
    pub source_id: String,
    /// `image/filename`.
    pub filename: String,
    /// Height and width of the stored image.
    pub original_size: [usize; 2],
    /// Problems of this record and of those that it replaces.
    pub bad_records: Vec<String>,
    /// Objects beyond `max_number_of_boxes`.
    pub objects_cut: usize,
}

/// Prepares records one after the other; one a thread.
#[derive(Debug)]
pub struct Preparer {
    decoder: Decoder,
    resizer: Resizer,
    image: Image,
}

impl Preparer {
    /// For batches with these options.
    pub fn new(options: &Options) -> Self {
        Self {
            decoder: Decoder::new(options.decode),
            resizer: Resizer::new(options.height, options.width),
            image: Image::default(),
        }
    }

    /// Prepares the record at `place` into `output`, `[height, width, 3]`. The result depends on the options'
    /// seed and the place alone.
    ///
    /// A record that cannot be used is entered in the ledger and replaced by the next good one in file order (the
    /// first record follows the last), which is then augmented as itself in that epoch.
    pub fn prepare(
        &mut self,
        source: &Source,
        options: &Options,
        ledger: &Ledger,
        place: Place,
        output: &mut [f32],
    ) -> Result<Item, Error> {
        let count = source.record_count();
        let mut bad_records = Vec::new();
        for offset in 0..count {
            // Both are below the count of records that a machine can hold; no overflow.
            let record = (place.record + offset) % count;
            match self.attempt(source, options, place.epoch, record, output) {
                Ok((mut item, flaws)) => {
                    if !flaws.is_empty() {
                        let flaws: Vec<_> = flaws.iter().map(ToString::to_string).collect();
                        let report = format!("{}: left out {}", source.location(record), flaws.join("; "));
                        ledger.enter(record, &report)?;
                        bad_records.push(report);
                    }
                    item.bad_records = bad_records;
                    return Ok(item);
                }
                Err(problem) => {
                    let report = format!("{problem}\nthe next good record takes its place");
                    ledger.enter(record, &problem)?;
                    bad_records.push(report);
                }
            }
        }
        Err(Error::NoneGood {
            count,
            first: bad_records.into_iter().next().unwrap_or_default(),
        })
    }

    /// Prepares one record; the error is a report that names file and record.
    fn attempt(
        &mut self,
        source: &Source,
        options: &Options,
        epoch: u64,
        record: u64,
        output: &mut [f32],
    ) -> Result<(Item, Vec<example::BadObject>), String> {
        // A reading error names the file and record itself.
        let bytes = source.read(record).map_err(|error| error.to_string())?;
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", source.location(record));
        let annotated = example::decode(&bytes, &options.example).map_err(|error| at(&error))?;
        let name = |error: &dyn std::fmt::Display| at(&format!("image {:?}: {error}", annotated.filename));
        self.decoder
            .decode_into(annotated.image, &mut self.image)
            .map_err(|error| name(&error))?;
        let (height, width) = (self.image.height, self.image.width);

        let mut groundtruth = annotated.objects;
        let mut random = augment::stream(options.seed, epoch, record);
        let view = augment::apply(&options.augmentations, height, width, &mut groundtruth, &mut random);
        self.resizer
            .resize_into(&self.image, view, output)
            .map_err(|error| name(&error))?;
        let objects_cut = groundtruth.truncate(options.max_number_of_boxes);
        let item = Item {
            record,
            groundtruth,
            source_id: annotated.source_id,
            filename: annotated.filename,
            original_size: [height, width],
            bad_records: Vec::new(),
            objects_cut,
        };
        Ok((item, annotated.bad_objects))
    }
}
