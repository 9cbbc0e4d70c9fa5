//! Pascal VOC XML into TFRecords, with the fields of the reference's `create_pascal_tf_record`.

mod layout;
pub(in crate::import) mod xml;

use std::path::{Path, PathBuf};

use coati_common::label_map::LabelMap;

use super::engine::{self, Labels, Notes, Outcome, Output, Progress, Ready};
use super::objects::Objects;
use super::{Error, Report, picture};
use xml::{Annotation, Object};

/// What to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder with `Annotations` and `JPEGImages`, or with images and XML files side by side.
    pub data_dir: PathBuf,
    /// Subfolder of `data_dir`, as `VOC2012` in the original sets; `merged` takes `VOC2007` and `VOC2012`.
    pub year: Option<String>,
    /// `train`, `val`, `trainval`, `test` or any other list in `ImageSets/Main`; all annotations without it.
    pub set: Option<String>,
    /// Name of the folder with the XML files, when it is none of the usual ones.
    pub annotations_dir: Option<String>,
    /// Leave out objects marked difficult.
    pub ignore_difficult_instances: bool,
    /// Where records go.
    pub output: Output,
}

/// An annotation file and the folders where its image may lie.
pub(in crate::import) struct Item {
    pub(in crate::import) file: PathBuf,
    pub(in crate::import) image_folders: std::sync::Arc<Vec<PathBuf>>,
}

/// The annotation files of a folder.
pub(in crate::import) fn items(
    data_dir: &Path,
    year: Option<&str>,
    set: Option<&str>,
    annotations_dir: Option<&str>,
) -> Result<Vec<Item>, Error> {
    let years: Vec<Option<&str>> = match year {
        Some("merged") => vec![Some("VOC2007"), Some("VOC2012")],
        year => vec![year],
    };
    let mut items = Vec::new();
    for year in years {
        let found = layout::find(data_dir, year, set, annotations_dir)?;
        let image_folders = std::sync::Arc::new(found.image_folders);
        items.extend(found.annotations.into_iter().map(|file| Item {
            file,
            image_folders: image_folders.clone(),
        }));
    }
    Ok(items)
}

/// Imports; on an error nothing is left under the output's names.
pub fn import(options: &Options, labels: &LabelMap, progress: Progress) -> Result<Report, Error> {
    let items = items(
        &options.data_dir,
        options.year.as_deref(),
        options.set.as_deref(),
        options.annotations_dir.as_deref(),
    )?;
    let labels = Labels::new(labels);
    engine::run(items, &options.data_dir, &options.output, &labels, progress, |item| {
        record(options, &labels, item)
    })
}

fn record(options: &Options, labels: &Labels, item: &Item) -> Result<Outcome, Error> {
    let file = &item.file;
    let annotation = match xml::read(file) {
        Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Outcome::Skipped(format!(
                "{}: listed in the image set, but the file does not exist",
                file.display()
            )));
        }
        other => other?,
    };
    let Some(image_path) = find_image(&item.image_folders, file, &annotation) else {
        let name = annotation.filename.as_deref().unwrap_or("?");
        return Ok(Outcome::Skipped(format!(
            "{}: no image `{name}` beside it or in the image folder",
            file.display()
        )));
    };
    let picture = match picture::read(&image_path, options.output.images) {
        Ok(picture) => picture,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let (width, height) = (picture.width, picture.height);
    let mut notes = Notes::default();
    if let Some(size) = annotation.size
        && size != (width, height)
    {
        notes.warnings.push(format!(
            "{}: <size> says {}x{}, the image has {width}x{height}; the image's own size is used",
            file.display(),
            size.0,
            size.1
        ));
    }
    let mut columns = Columns::default();
    for object in &annotation.objects {
        if options.ignore_difficult_instances && object.difficult {
            notes.left_out.push("difficult");
            continue;
        }
        let class = labels.need(&object.name, file, object.line)?;
        let at = || format!("{}:{}: `{}`", file.display(), object.line, object.name);
        if let Some(bounds) = notes.usable(object.bounds, (width, height), at) {
            columns.push(object, class, bounds, width, height);
        }
    }
    let name = image_path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut record = engine::head(picture, &name, &name);
    let classes = columns.objects.classes();
    columns.into_record(&mut record);
    Ok(Outcome::Ready(Ready {
        record: record.serialise(),
        classes,
        size: (width, height),
        notes,
    }))
}

/// What Pascal VOC says of objects beyond box and class.
#[derive(Default)]
pub(in crate::import) struct Columns {
    pub(in crate::import) objects: Objects,
    difficult: Vec<i64>,
    truncated: Vec<i64>,
    views: Vec<Vec<u8>>,
}

impl Columns {
    fn push(&mut self, object: &Object, class: u32, bounds: [f64; 4], width: u32, height: u32) {
        self.objects.push_px(&object.name, class, bounds, width, height);
        self.flags(object);
    }

    /// All but box and class.
    pub(in crate::import) fn flags(&mut self, object: &Object) {
        self.difficult.push(i64::from(object.difficult));
        self.truncated.push(i64::from(object.truncated));
        self.views.push(object.view.clone().into_bytes());
    }

    pub(in crate::import) fn into_record(self, record: &mut super::feature::Record) {
        self.objects.into_record(record);
        record.ints("image/object/difficult", self.difficult);
        record.ints("image/object/truncated", self.truncated);
        record.bytes("image/object/view", self.views);
    }
}

/// The image under the name that the annotation gives, else under the annotation's own.
pub(in crate::import) fn find_image(folders: &[PathBuf], xml: &Path, annotation: &Annotation) -> Option<PathBuf> {
    // VoTT and LabelImg on Windows write whole paths, some of them with backslashes.
    let named = annotation
        .filename
        .as_deref()
        .and_then(|name| name.rsplit(['/', '\\']).next())
        .filter(|name| !name.is_empty());
    let stem = xml.file_stem()?;
    for folder in folders {
        if let Some(path) = named
            .map(|name| folder.join(name))
            .filter(|path| coati_storage::is_file(path))
        {
            return Some(path);
        }
        for extension in ["jpg", "jpeg", "png", "JPG", "JPEG", "PNG"] {
            let mut name = stem.to_owned();
            name.push(".");
            name.push(extension);
            let path = folder.join(name);
            if coati_storage::is_file(&path) {
                return Some(path);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests;
