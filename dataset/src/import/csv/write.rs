//! Tables of records, and of Pascal VOC folders as the tutorials' `xml_to_csv` makes them.

use std::path::{Path, PathBuf};

use super::super::voc::{self, xml};
use super::super::{Error, picture};
use crate::decode::{self, Decoder};
use crate::example::wire::Features;
use crate::shards;

/// What a table is made of.
#[derive(Debug)]
pub enum Source<'a> {
    /// TFRecords.
    Records(&'a shards::Source),
    /// A folder as `coati data import voc` takes it.
    Voc {
        /// The folder.
        data_dir: &'a Path,
        /// A list in `ImageSets/Main`.
        set: Option<&'a str>,
    },
}

/// Images and boxes written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// Images; those without a box have a line of their own.
    pub images: usize,
    /// Boxes.
    pub boxes: usize,
}

/// Writes the table to `csv_path`; with `image_dir` the records' images too, under their names.
///
/// Coordinates are pixels, whole where they are within a thousandth of it. Boxes are written as they are, also where training would
/// leave them out.
pub fn write(source: &Source, csv_path: &Path, image_dir: Option<&Path>) -> Result<Written, Error> {
    let failed = |source| Error::Write {
        path: csv_path.to_owned(),
        source,
    };
    let mut table = csv::Writer::from_writer(Vec::new());
    let heading = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"];
    table.write_record(heading).map_err(|error| failed(error.into()))?;
    let mut written = Written::default();
    let mut image = |image: Image| -> Result<(), Error> {
        written.images += 1;
        written.boxes += image.boxes.len();
        let size = [image.width.to_string(), image.height.to_string()];
        if image.boxes.is_empty() {
            let line = [image.filename.as_str(), &size[0], &size[1], "", "", "", "", ""];
            table.write_record(line).map_err(|error| failed(error.into()))?;
        }
        for (class, [ymin, xmin, ymax, xmax]) in &image.boxes {
            let [a, b, c, d] = [xmin, ymin, xmax, ymax].map(|value| pixels(*value));
            let line = [&image.filename, &size[0], &size[1], class, &a, &b, &c, &d];
            table.write_record(line).map_err(|error| failed(error.into()))?;
        }
        Ok(())
    };
    match source {
        Source::Records(records) => {
            for number in 0..records.record_count() {
                image(of_record(records, number, image_dir)?)?;
            }
        }
        Source::Voc { data_dir, set } => {
            for item in voc::items(data_dir, None, *set, None)? {
                image(of_voc(&item)?)?;
            }
        }
    }
    let bytes = table.into_inner().map_err(|error| failed(error.into_error()))?;
    super::super::sharded::replace(csv_path, &bytes)?;
    Ok(written)
}

struct Image {
    filename: String,
    width: u32,
    height: u32,
    boxes: Vec<(String, [f64; 4])>,
}

/// `12`, or `12.345` where it is between two pixels.
fn pixels(value: f64) -> String {
    let whole = value.round();
    if (value - whole).abs() < 1e-3 {
        // No `-0`.
        format!("{}", whole + 0.0)
    } else {
        format!("{value:.3}")
    }
}

fn of_record(records: &shards::Source, number: u64, image_dir: Option<&Path>) -> Result<Image, Error> {
    let place = records.location(number);
    let wrong = |what: String| Error::Record {
        path: place.file.clone(),
        what: format!("record {}: {what}", place.record),
        hint: "`coati data validate` lists all that is wrong".to_owned(),
    };
    let bytes = records.read(number).map_err(|error| wrong(error.to_string()))?;
    let read = |bytes| -> Result<_, crate::example::wire::Error> {
        let features = Features::parse(bytes)?;
        let list = |side: &str| features.floats(&format!("image/object/bbox/{side}"));
        let bounds = [list("ymin")?, list("xmin")?, list("ymax")?, list("xmax")?];
        let texts = features.bytes("image/object/class/text")?;
        let labels = features.ints("image/object/class/label")?;
        let encoded = features.first_bytes("image/encoded")?.unwrap_or_default();
        let filename = features.text("image/filename")?.unwrap_or_default().into_owned();
        Ok((bounds, texts, labels, encoded, filename))
    };
    let (bounds, texts, labels, encoded, filename) = read(&bytes).map_err(|error| wrong(error.to_string()))?;
    let (height, width) = Decoder::new(decode::Options::default())
        .size(encoded)
        .map_err(|error| wrong(format!("feature image/encoded: {error}")))?;
    let filename = if filename.is_empty() {
        format!(
            "{number}.{}",
            if encoded.starts_with(&[0xff, 0xd8]) {
                "jpg"
            } else {
                "png"
            }
        )
    } else {
        filename
    };
    if let Some(folder) = image_dir {
        let name = filename.rsplit(['/', '\\']).next().unwrap_or(&filename);
        super::super::sharded::replace(&folder.join(name), encoded)?;
    }
    let count = bounds.iter().map(Vec::len).min().unwrap_or(0);
    let sizes = [height, width, height, width].map(|size| size as f64);
    let boxes = (0..count).map(|index| {
        let class = match (texts.get(index), labels.get(index)) {
            (Some(text), _) if !text.is_empty() => String::from_utf8_lossy(text).into_owned(),
            (_, Some(label)) => label.to_string(),
            _ => String::new(),
        };
        (
            class,
            std::array::from_fn(|side| f64::from(bounds[side][index]) * sizes[side]),
        )
    });
    Ok(Image {
        boxes: boxes.collect(),
        filename,
        width: width as u32,
        height: height as u32,
    })
}

fn of_voc(item: &voc::Item) -> Result<Image, Error> {
    let annotation = xml::read(&item.file)?;
    let found: Option<PathBuf> = voc::find_image(&item.image_folders, &item.file, &annotation);
    let filename = found
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned())
        .or(annotation.filename)
        .unwrap_or_default();
    let size = match (annotation.size, &found) {
        (Some(size), _) => size,
        (None, Some(path)) => picture::read(path, picture::Images::default())
            .map(|picture| (picture.width, picture.height))
            .unwrap_or_default(),
        (None, None) => (0, 0),
    };
    Ok(Image {
        filename,
        width: size.0,
        height: size.1,
        boxes: annotation
            .objects
            .into_iter()
            .map(|object| (object.name, object.bounds))
            .collect(),
    })
}
