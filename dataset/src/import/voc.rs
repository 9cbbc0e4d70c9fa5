//! Pascal VOC XML into TFRecords, with the fields of the reference's `create_pascal_tf_record`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use coati_common::hex;
use coati_common::label_map::LabelMap;
use rand::SeedableRng;
use rand::seq::SliceRandom as _;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::feature::{Record, serialise};
use super::sharded::Shards;
use super::voc_xml::{self, Annotation, Object};
use super::{Error, Report, voc_layout};
use crate::decode::{self, Decoder};

/// What to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder with `Annotations` and `JPEGImages`, or with images and XML files side by side.
    pub data_dir: PathBuf,
    /// Subfolder of `data_dir`, as `VOC2012` in the original sets.
    pub year: Option<String>,
    /// `train`, `val`, `trainval`, `test` or any other list in `ImageSets/Main`; all annotations without it.
    pub set: Option<String>,
    /// Name of the folder with the XML files, when it is none of the usual ones.
    pub annotations_dir: Option<String>,
    /// File to write, or the start of the shards' names.
    pub output_path: PathBuf,
    /// Number of shards; a single unsuffixed file without it.
    pub num_shards: Option<u32>,
    /// Leave out objects marked difficult.
    pub ignore_difficult_instances: bool,
    /// Records are shuffled with this seed.
    pub seed: u64,
    /// Unusable images (missing, undecodable) beyond this are an error.
    pub max_skipped: usize,
}

/// Images are read and checked in groups of this many, so that memory stays small.
const GROUP: usize = 64;

struct Ready {
    record: Vec<u8>,
    classes: Vec<u32>,
    warnings: Vec<String>,
}

/// Imports; on an error nothing is left under the output's names. `progress` hears of done and total images.
pub fn import(options: &Options, labels: &LabelMap, progress: &(dyn Fn(usize, usize) + Sync)) -> Result<Report, Error> {
    let layout = voc_layout::find(
        &options.data_dir,
        options.year.as_deref(),
        options.set.as_deref(),
        options.annotations_dir.as_deref(),
    )?;
    let mut files = layout.annotations;
    files.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(options.seed));

    let mut shards = Shards::create(&options.output_path, options.num_shards)?;
    let mut report = Report::default();
    let mut boxes: BTreeMap<u32, usize> = BTreeMap::new();
    for group in files.chunks(GROUP) {
        let done: Vec<Result<Result<Ready, String>, Error>> = group
            .par_iter()
            .map(|file| record(options, labels, &layout.image_folders, file))
            .collect();
        for outcome in done {
            match outcome? {
                Ok(ready) => {
                    shards.write(&ready.record)?;
                    report.images += 1;
                    report.warnings.extend(ready.warnings);
                    for class in ready.classes {
                        *boxes.entry(class).or_default() += 1;
                    }
                }
                Err(reason) => report.skipped_images.push(reason),
            }
            if report.skipped_images.len() > options.max_skipped {
                return Err(Error::TooManySkipped {
                    skipped: report.skipped_images.len(),
                    images: files.len(),
                    first: report.skipped_images.swap_remove(0),
                });
            }
        }
        progress(report.images + report.skipped_images.len(), files.len());
    }
    if report.images == 0 {
        return Err(Error::Empty {
            folder: options.data_dir.clone(),
            hint: report.skipped_images.join("; "),
        });
    }
    report.files = shards.finish()?;
    report.boxes = labels
        .items
        .iter()
        .map(|item| (item.name.clone(), boxes.get(&item.id).copied().unwrap_or(0)))
        .collect();
    Ok(report)
}

/// One record; `Ok(Err(reason))` where the image cannot be used.
fn record(
    options: &Options,
    labels: &LabelMap,
    image_folders: &[PathBuf],
    file: &Path,
) -> Result<Result<Ready, String>, Error> {
    let annotation = match voc_xml::read(file) {
        Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Err(format!(
                "{}: listed in the image set, but the file does not exist",
                file.display()
            )));
        }
        other => other?,
    };
    let Some(image_path) = find_image(image_folders, file, &annotation) else {
        let name = annotation.filename.as_deref().unwrap_or("?");
        return Ok(Err(format!(
            "{}: no image `{name}` beside it or in the image folder",
            file.display()
        )));
    };
    let encoded = match fs::read(&image_path) {
        Ok(encoded) => encoded,
        Err(error) => return Ok(Err(format!("{}: {error}", image_path.display()))),
    };
    let (format, width, height) = match check_image(&encoded) {
        Ok(found) => found,
        Err(reason) => return Ok(Err(format!("{}: {reason}", image_path.display()))),
    };
    let mut warnings = Vec::new();
    if let Some(size) = annotation.size
        && size != (width, height)
    {
        warnings.push(format!(
            "{}: <size> says {}x{}, the image has {width}x{height}; the image's own size is used",
            file.display(),
            size.0,
            size.1
        ));
    }
    let name = image_path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut columns = Columns::default();
    for object in &annotation.objects {
        if options.ignore_difficult_instances && object.difficult {
            continue;
        }
        let class = labels.id_of(&object.name).ok_or_else(|| Error::Annotation {
            path: file.to_owned(),
            line: object.line,
            what: format!("class `{}` is not in the label map", object.name),
            hint: format!("the label map has {}", known(labels)),
        })?;
        match usable(object, width, height) {
            Ok((bounds, note)) => {
                if let Some(note) = note {
                    warnings.push(format!("{}:{}: `{}` {note}", file.display(), object.line, object.name));
                }
                columns.push(object, class, bounds, width, height);
            }
            Err(reason) => warnings.push(format!(
                "{}:{}: `{}` left out: {reason}",
                file.display(),
                object.line,
                object.name
            )),
        }
    }
    let classes = columns.labels.iter().map(|&label| label as u32).collect();
    let mut record = Record::default();
    record.ints("image/height", vec![i64::from(height)]);
    record.ints("image/width", vec![i64::from(width)]);
    record.text("image/filename", &name);
    record.text("image/source_id", &name);
    record.text("image/key/sha256", &hex(&Sha256::digest(&encoded)));
    record.text("image/format", format);
    record.bytes("image/encoded", vec![encoded]);
    columns.into_record(&mut record);
    Ok(Ok(Ready {
        record: serialise(&record.finish()),
        classes,
        warnings,
    }))
}

#[derive(Default)]
struct Columns {
    bounds: [Vec<f32>; 4],
    texts: Vec<Vec<u8>>,
    labels: Vec<i64>,
    difficult: Vec<i64>,
    truncated: Vec<i64>,
    views: Vec<Vec<u8>>,
}

impl Columns {
    fn push(&mut self, object: &Object, class: u32, bounds: [f64; 4], width: u32, height: u32) {
        let sizes = [height, width, height, width].map(f64::from);
        for (column, (value, size)) in self.bounds.iter_mut().zip(bounds.into_iter().zip(sizes)) {
            column.push((value / size) as f32);
        }
        self.texts.push(object.name.clone().into_bytes());
        self.labels.push(i64::from(class));
        self.difficult.push(i64::from(object.difficult));
        self.truncated.push(i64::from(object.truncated));
        self.views.push(object.view.clone().into_bytes());
    }

    fn into_record(self, record: &mut Record) {
        for (name, column) in ["ymin", "xmin", "ymax", "xmax"].into_iter().zip(self.bounds) {
            record.floats(&format!("image/object/bbox/{name}"), column);
        }
        record.bytes("image/object/class/text", self.texts);
        record.ints("image/object/class/label", self.labels);
        record.ints("image/object/difficult", self.difficult);
        record.ints("image/object/truncated", self.truncated);
        record.bytes("image/object/view", self.views);
    }
}

/// The box cut to the image, with a note when that changed it; or why it is no box.
fn usable(object: &Object, width: u32, height: u32) -> Result<([f64; 4], Option<String>), String> {
    let [ymin, xmin, ymax, xmax] = object.bounds;
    if ymax <= ymin || xmax <= xmin {
        return Err(format!("its box has no area (x {xmin} to {xmax}, y {ymin} to {ymax})"));
    }
    let (w, h) = (f64::from(width), f64::from(height));
    let cut = [
        ymin.clamp(0.0, h),
        xmin.clamp(0.0, w),
        ymax.clamp(0.0, h),
        xmax.clamp(0.0, w),
    ];
    if cut[2] <= cut[0] || cut[3] <= cut[1] {
        return Err(format!(
            "its box (x {xmin} to {xmax}, y {ymin} to {ymax}) lies outside the {width}x{height} image"
        ));
    }
    let note = (cut != object.bounds)
        .then(|| format!("cut to the {width}x{height} image (was x {xmin} to {xmax}, y {ymin} to {ymax})"));
    Ok((cut, note))
}

fn find_image(folders: &[PathBuf], xml: &Path, annotation: &Annotation) -> Option<PathBuf> {
    let named = annotation
        .filename
        .as_deref()
        .and_then(|name| Path::new(name).file_name());
    let stem = xml.file_stem()?;
    for folder in folders {
        if let Some(path) = named.map(|name| folder.join(name)).filter(|path| path.is_file()) {
            return Some(path);
        }
        for extension in ["jpg", "jpeg", "png", "JPG", "JPEG", "PNG"] {
            let path = folder.join(stem).with_extension(extension);
            if path.is_file() {
                return Some(path);
            }
        }
    }
    None
}

/// Format name, width and height of an image that decodes whole.
fn check_image(encoded: &[u8]) -> Result<(&'static str, u32, u32), String> {
    let format = match image::guess_format(encoded) {
        Ok(image::ImageFormat::Jpeg) => "jpeg",
        Ok(image::ImageFormat::Png) => "png",
        Ok(other) => return Err(format!("is {other:?}; JPEG and PNG can be imported")),
        Err(_) => return Err("is neither JPEG nor PNG".to_owned()),
    };
    let image = Decoder::new(decode::Options::default())
        .decode(encoded)
        .map_err(|error| error.to_string())?;
    Ok((format, image.width as u32, image.height as u32))
}

fn known(labels: &LabelMap) -> String {
    let names: Vec<&str> = labels.items.iter().map(|item| item.name.as_str()).take(20).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
