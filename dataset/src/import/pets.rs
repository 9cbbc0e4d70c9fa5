//! The Oxford-IIIT pets into TFRecords, with the fields of the reference's `create_pet_tf_record`.
//!
//! The class is the file's name without its number. With faces the boxes are those of the XML files; with whole bodies box and
//! mask come from the trimaps, whose value 2 is the background. The reference writes the boxes of trimaps up to the last pixel's
//! index, not beyond it, and so does this.

use std::path::{Path, PathBuf};

use coati_common::label_map::LabelMap;
use rand::SeedableRng;
use rand::seq::SliceRandom as _;

use super::engine::{self, Labels, Notes, Outcome, Output, Progress, Ready};
use super::voc::{Columns, xml};
use super::{Error, Report, masks, picture, text};
use masks::MaskType;

/// What to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder with `images` and `annotations` (`xmls`, `trimaps`, `trainval.txt`).
    pub data_dir: PathBuf,
    /// Faces, or else whole bodies with masks.
    pub faces_only: bool,
    /// How masks are written.
    pub mask_type: MaskType,
    /// Share of the images that are trained on; the rest is the other set.
    pub train_share: f64,
    /// Where records go; `path` is the folder.
    pub output: Output,
}

/// The background in a trimap: 1 is the pet, 3 its border.
const BACKGROUND: u8 = 2;

/// Imports both sets: `("train", …)` and `("val", …)`.
pub fn import(options: &Options, labels: &LabelMap, progress: Progress) -> Result<Vec<(String, Report)>, Error> {
    let list = options.data_dir.join("annotations/trainval.txt");
    let listed = text::read(&list, 64 << 20)?;
    let mut names: Vec<String> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| !name.starts_with('#'))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(options.output.seed));
    let train = (names.len() as f64 * options.train_share.clamp(0.0, 1.0)) as usize;
    let val = names.split_off(train);
    let labels = Labels::new(labels);
    let mut reports = Vec::new();
    for (set, names) in [("train", names), ("val", val)] {
        if names.is_empty() {
            continue;
        }
        let name = if options.faces_only {
            format!("pet_faces_{set}.record")
        } else {
            format!("pets_fullbody_with_masks_{set}.record")
        };
        let output = Output {
            path: options.output.path.join(name),
            ..options.output.clone()
        };
        let report = engine::run(names, &options.data_dir, &output, &labels, progress, |name| {
            record(options, &labels, name)
        })?;
        reports.push((set.to_owned(), report));
    }
    if reports.is_empty() {
        return Err(Error::Empty {
            folder: list,
            hint: "a name a line is expected, as in the data set's own trainval.txt".to_owned(),
        });
    }
    Ok(reports)
}

/// `american_pit_bull_terrier_105` is an `american_pit_bull_terrier`.
fn class_of(name: &str) -> &str {
    match name.rsplit_once('_') {
        Some((class, number)) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => class,
        _ => name,
    }
}

fn record(options: &Options, labels: &Labels, name: &str) -> Result<Outcome, Error> {
    let annotations = options.data_dir.join("annotations");
    let file = annotations.join("xmls").join(format!("{name}.xml"));
    if !coati_storage::is_file(&file) {
        // The original set lacks some of them; the reference ignores those images, too.
        return Ok(Outcome::Skipped(format!("{}: does not exist", file.display())));
    }
    let annotation = xml::read(&file)?;
    let filename = annotation
        .filename
        .as_deref()
        .and_then(|name| name.rsplit(['/', '\\']).next())
        .map_or_else(|| format!("{name}.jpg"), str::to_owned);
    let image_path = options.data_dir.join("images").join(&filename);
    let picture = match picture::read(&image_path, options.output.images) {
        Ok(picture) => picture,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let (width, height) = (picture.width, picture.height);
    let body = if options.faces_only {
        None
    } else {
        let path = annotations.join("trimaps").join(format!("{name}.png"));
        match trimap(&path, width, height) {
            Ok(body) => Some(body),
            Err(reason) => return Ok(Outcome::Skipped(reason)),
        }
    };
    let class = class_of(filename.rsplit_once('.').map_or(filename.as_str(), |(stem, _)| stem));
    let id = labels.need(class, &file, 1)?;
    let mut columns = Columns::default();
    let mut notes = Notes::default();
    let mut found = Vec::new();
    for object in &annotation.objects {
        let bounds = body.as_ref().map_or(object.bounds, |body| body.bounds);
        let at = || format!("{}:{}: `{class}`", file.display(), object.line);
        if let Some(bounds) = notes.usable(bounds, (width, height), at) {
            columns.objects.push_px(class, id, bounds, width, height);
            columns.flags(object);
            found.extend(body.as_ref().map(|body| body.mask.clone()));
        }
    }
    let mut record = engine::head(picture, &filename, &filename);
    let classes = columns.objects.classes();
    columns.into_record(&mut record);
    if !options.faces_only {
        masks::into_record(&found, (width, height), options.mask_type, &mut record).map_err(|reason| Error::Read {
            path: image_path,
            source: std::io::Error::other(reason),
        })?;
    }
    Ok(Outcome::Ready(Ready {
        record: record.serialise(),
        classes,
        size: (width, height),
        notes,
    }))
}

struct Body {
    /// `[ymin, xmin, ymax, xmax]`, pixels' indices.
    bounds: [f64; 4],
    /// `[height, width]`, 1 on the pet and its border.
    mask: Vec<u8>,
}

fn trimap(path: &Path, width: u32, height: u32) -> Result<Body, String> {
    let at = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let bytes = coati_storage::read(path).map_err(|error| at(&error))?;
    let image = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png)
        .map_err(|error| at(&format!("is no PNG that can be read: {error}")))?;
    let image::DynamicImage::ImageLuma8(map) = image else {
        return Err(at(&"has colours; a trimap is a grey PNG with the values 1, 2 and 3"));
    };
    if map.dimensions() != (width, height) {
        let (w, h) = map.dimensions();
        return Err(at(&format!("has {w}x{h} pixels, its image {width}x{height}")));
    }
    let mask: Vec<u8> = map
        .as_raw()
        .iter()
        .map(|&value| u8::from(value != BACKGROUND))
        .collect();
    let on = |index: usize| (mask[index] != 0).then_some((index / width as usize, index % width as usize));
    let pixels = || (0..mask.len()).filter_map(on);
    let sides = (
        pixels().map(|(y, _)| y).min(),
        pixels().map(|(_, x)| x).min(),
        pixels().map(|(y, _)| y).max(),
        pixels().map(|(_, x)| x).max(),
    );
    let (Some(ymin), Some(xmin), Some(ymax), Some(xmax)) = sides else {
        return Err(at(&"has no pixel that is not background"));
    };
    Ok(Body {
        bounds: [ymin as f64, xmin as f64, ymax as f64, xmax as f64],
        mask,
    })
}

#[cfg(test)]
mod tests;
