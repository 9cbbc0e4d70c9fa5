//! One record, from its file to pixels and boxes.

use super::{Error, Options, Records};
use crate::augment::{self, Finished, Sample, Stored};
use crate::bad::Ledger;
use crate::decode::{self, Decoder, Image, Part};
use crate::example;
use crate::groundtruth::Groundtruth;
use crate::order::Place;
use crate::pixels::Pixels;
use crate::resize::method::{Method, resize};
use crate::resize::{self, ImageResizer, Resizer, View};

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
    /// Rows, columns and channels that hold picture and not padding.
    pub true_image_shape: [usize; 3],
    /// The model's input, where images come in many sizes ([`Options::many_sizes`]).
    pub own: Option<Pixels>,
    /// Problems of this record and of those that it replaces.
    pub bad_records: Vec<String>,
    /// Objects beyond `max_number_of_boxes`.
    pub objects_cut: usize,
}

/// Prepares records one after the other; one a thread.
#[derive(Debug)]
pub struct Preparer {
    decoder: Decoder,
    /// For additional channels.
    grey: Decoder,
    resizer: Resizer,
    image: Image,
}

impl Preparer {
    /// For batches with these options.
    pub fn new(options: &Options) -> Self {
        Self {
            decoder: Decoder::new(options.decode),
            grey: Decoder::new(decode::Options {
                grey: true,
                ..options.decode
            }),
            resizer: Resizer::new(options.height, options.width),
            image: Image::default(),
        }
    }

    /// Prepares the record at `place` into `output`, `[height, width, channels]`; where images come in many sizes, nothing is written there and
    /// the item has its own pixels. The result depends on the options' seed and the place alone.
    ///
    /// A record that cannot be used is entered in the ledger and replaced by the next good one in file order (the
    /// first record follows the last), which is then augmented as itself in that epoch.
    pub fn prepare(
        &mut self,
        source: &dyn Records,
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
        source: &dyn Records,
        options: &Options,
        epoch: u64,
        record: u64,
        output: &mut [f32],
    ) -> Result<(Item, Vec<example::BadObject>), String> {
        let bytes = source.read(record)?;
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", source.location(record));
        let annotated = example::decode_with(&bytes, &options.example, &options.extras).map_err(|error| at(&error))?;
        let name = |error: &dyn std::fmt::Display| at(&format!("image {:?}: {error}", annotated.filename));
        let (height, width) = self.decoder.size(annotated.image).map_err(|error| name(&error))?;
        for file in &annotated.additional_channels {
            self.grey
                .check_channel(file, (height, width))
                .map_err(|error| name(&error))?;
        }
        let objects = annotated.objects;
        if let Some(mask) = objects
            .masks
            .iter()
            .find(|mask| (mask.height, mask.width) != (height, width))
        {
            let sizes = format!("is {} x {}, the image {height} x {width}", mask.height, mask.width);
            return Err(name(&format!("feature image/object/mask: a mask {sizes}")));
        }
        let mut encoded = Encoded {
            decoder: &mut self.decoder,
            grey: &mut self.grey,
            buffer: &mut self.image,
            image: annotated.image,
            additional_channels: &annotated.additional_channels,
        };
        let mut random = augment::stream(options.seed, epoch, record);
        let mut sample = Sample::new(height, width, &mut encoded, objects);
        augment::apply(&options.augmentations, &mut sample, &mut random).map_err(|error| name(&error))?;
        if options.resizer.is_some() || !annotated.additional_channels.is_empty() {
            sample.picture.pixels().map_err(|error| name(&error))?;
        }
        let Sample {
            picture,
            objects: mut groundtruth,
        } = sample;
        let finished = picture.finish();
        let (true_image_shape, own) = self
            .resize(options, annotated.image, finished, &mut groundtruth, output)
            .map_err(|error| name(&error))?;
        let objects_cut = groundtruth.truncate(options.max_number_of_boxes);
        let item = Item {
            record,
            groundtruth,
            source_id: annotated.source_id,
            filename: annotated.filename,
            original_size: [height, width],
            true_image_shape,
            own,
            bad_records: Vec::new(),
            objects_cut,
        };
        Ok((item, annotated.bad_objects))
    }

    /// Makes the model's input of what augmentation left; returns how much of it is picture, and the input where it has a size of its own.
    fn resize(
        &mut self,
        options: &Options,
        file: &[u8],
        finished: Finished,
        objects: &mut Groundtruth,
        output: &mut [f32],
    ) -> Result<([usize; 3], Option<Pixels>), Problem> {
        let (height, width) = (options.height, options.width);
        let pixels = match finished {
            Finished::View(view) => {
                // Nearly all images: only what the crop shows is decoded, and resized straight into the batch.
                let view = decode_scaled(&mut self.decoder, file, view, (height, width), &mut self.image)?;
                self.resizer.resize_into(&self.image, view, output)?;
                let nearest = |mask: &Pixels| resize(mask, height, width, Method::NearestNeighbor, false);
                objects.masks = objects.masks.iter().map(nearest).collect();
                return Ok(([height, width, 3], None));
            }
            Finished::Pixels(pixels) => pixels,
        };
        let fixed = ImageResizer::fixed(height, width);
        let resizer = options.resizer.as_ref().unwrap_or(&fixed);
        if options.many_sizes() {
            // Before a small image is blown up beyond memory.
            options.limits.check(resizer.size_of((pixels.height, pixels.width)))?;
        }
        let resized = resizer.apply(&pixels, &objects.masks);
        let image = resized.image;
        objects.masks = resized.masks;
        let [rows, columns, _] = resized.true_shape;
        objects.stretch([image.height as f32 / rows as f32, image.width as f32 / columns as f32]);
        if options.many_sizes() {
            return Ok((resized.true_shape, Some(image)));
        }
        if image.values.len() != output.len() {
            return Err(resize::Error::Output {
                found: image.values.len(),
                height,
                width,
            }
            .into());
        }
        output.copy_from_slice(&image.values);
        Ok((resized.true_shape, None))
    }
}

/// What can go wrong between the file and the model's input.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Decode(#[from] decode::Error),
    #[error(transparent)]
    Resize(#[from] resize::Error),
}

/// A stored image, decoded only where and when somebody looks.
struct Encoded<'a> {
    decoder: &'a mut Decoder,
    grey: &'a mut Decoder,
    buffer: &'a mut Image,
    image: &'a [u8],
    additional_channels: &'a [&'a [u8]],
}

impl Stored for Encoded<'_> {
    fn pixels(&mut self, view: View) -> Result<Pixels, decode::Error> {
        let inner = decode_view(self.decoder, self.image, view, self.buffer)?;
        let mut pixels = Pixels::from(&*self.buffer);
        pixels.show(inner);
        for &file in self.additional_channels {
            let inner = decode_view(self.grey, file, view, self.buffer)?;
            let mut channel = Pixels::from(&*self.buffer);
            channel.show(inner);
            pixels.append_channel(&channel);
        }
        Ok(pixels)
    }
}

/// As [`decode_view`], perhaps of a smaller image that still has `least` rows and columns in the view.
fn decode_scaled(
    decoder: &mut Decoder,
    file: &[u8],
    view: View,
    least: (usize, usize),
    buffer: &mut Image,
) -> Result<View, decode::Error> {
    let part = Part {
        rows: view.top..view.top + view.height,
        columns: view.left..view.left + view.width,
    };
    let ((top, left), by) = decoder.decode_part_scaled(file, &part, least, buffer)?;
    // To the nearest pixel of the smaller image, and within it.
    let smaller = |start: usize, length: usize, from: usize, side: usize| {
        let start = ((start + by / 2) / by).saturating_sub(from).min(side.saturating_sub(1));
        (start, ((length + by / 2) / by).clamp(1, side - start))
    };
    let (top, height) = smaller(view.top, view.height, top, buffer.height);
    let (left, width) = smaller(view.left, view.width, left, buffer.width);
    Ok(View {
        top,
        left,
        height,
        width,
        ..view
    })
}

/// Decodes what a view shows; returns the view of what is then in `buffer`.
fn decode_view(decoder: &mut Decoder, file: &[u8], view: View, buffer: &mut Image) -> Result<View, decode::Error> {
    let part = Part {
        rows: view.top..view.top + view.height,
        columns: view.left..view.left + view.width,
    };
    let (top, left) = decoder.decode_part(file, &part, buffer)?;
    Ok(View {
        top: view.top - top,
        left: view.left - left,
        ..view
    })
}
