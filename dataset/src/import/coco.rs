//! COCO JSON into TFRecords, with the fields of the reference's `create_coco_tf_record`.
//!
//! Classes are the file's own categories, under their own numbers. As there, a box that has no area or reaches beyond its image
//! is left out; here the report says so.

mod file;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use coati_common::label_map::{Item as Class, LabelMap};

use super::engine::{self, Labels, Notes, Outcome, Output, Progress, Ready};
use super::objects::{NO_AREA, OUTSIDE, Objects};
use super::{Error, Report, masks, picture};
use file::{Annotation, Id, Image};
pub(in crate::import) use file::{Content, read};
use masks::MaskType;

/// What to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the images.
    pub image_dir: PathBuf,
    /// JSON whose `images` are imported; the objects' file without it, else the captions'.
    pub image_info_file: Option<PathBuf>,
    /// JSON with boxes and masks (`instances_train2017.json`).
    pub object_annotations_file: Option<PathBuf>,
    /// JSON with captions (`captions_train2017.json`).
    pub caption_annotations_file: Option<PathBuf>,
    /// Write masks, and how.
    pub masks: Option<MaskType>,
    /// Where records go.
    pub output: Output,
}

/// The classes of a COCO file.
pub fn label_map(categories: &[(i64, String)]) -> LabelMap {
    let item = |(id, name): &(i64, String)| {
        Some(Class {
            id: u32::try_from(*id).ok().filter(|&id| id > 0)?,
            name: name.clone(),
            display_name: name.clone(),
        })
    };
    LabelMap {
        items: categories.iter().filter_map(item).collect(),
    }
}

/// What was read of the files, and of whose annotations it is.
struct Set<'a> {
    options: &'a Options,
    objects: &'a [Annotation<'a>],
    objects_of: HashMap<&'a Id, Vec<usize>>,
    captions: &'a [Annotation<'a>],
    captions_of: HashMap<&'a Id, Vec<usize>>,
    names: HashMap<i64, &'a str>,
    objects_path: PathBuf,
}

/// Imports one set; on an error nothing is left under the output's names.
pub fn import(options: &Options, progress: Progress) -> Result<Report, Error> {
    let text = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
    let objects_text = text(&options.object_annotations_file)?;
    let captions_text = text(&options.caption_annotations_file)?;
    let info_text = text(&options.image_info_file)?;
    let objects = content(options.object_annotations_file.as_deref(), objects_text.as_deref())?;
    let captions = content(options.caption_annotations_file.as_deref(), captions_text.as_deref())?;
    let info = content(options.image_info_file.as_deref(), info_text.as_deref())?;
    let Some(images) = [&info, &objects, &captions].into_iter().flatten().next() else {
        return Err(Error::Layout {
            folder: options.image_dir.clone(),
            what: "no annotation file".to_owned(),
            hint: "--object_annotations_file names a file like instances_train2017.json".to_owned(),
        });
    };
    let categories: Vec<(i64, String)> = objects
        .iter()
        .flat_map(|content| &content.categories)
        .map(|category| (category.id, category.name.clone()))
        .collect();
    let map = label_map(&categories);
    if let Some((id, name)) = categories.iter().find(|(id, _)| *id < 1) {
        return Err(Error::Annotation {
            path: options.object_annotations_file.clone().unwrap_or_default(),
            line: 1,
            what: format!("category {name:?} has the id {id}"),
            hint: "ids start at 1, 0 is the background: add 1 to all of them".to_owned(),
        });
    }
    let none: &[Annotation] = &[];
    let set = Set {
        options,
        objects: objects.as_ref().map_or(none, |content| &content.annotations),
        objects_of: file::by_image(objects.as_ref().map_or(none, |content| &content.annotations)),
        captions: captions.as_ref().map_or(none, |content| &content.annotations),
        captions_of: file::by_image(captions.as_ref().map_or(none, |content| &content.annotations)),
        names: categories.iter().map(|(id, name)| (*id, name.as_str())).collect(),
        objects_path: options.object_annotations_file.clone().unwrap_or_default(),
    };
    let labels = Labels::new(&map);
    let images: Vec<&Image> = images.images.iter().collect();
    engine::run(
        images,
        &options.image_dir,
        &options.output,
        &labels,
        progress,
        |image| set.record(image),
    )
}

fn content<'a>(path: Option<&Path>, text: Option<&'a str>) -> Result<Option<Content<'a>>, Error> {
    path.zip(text)
        .map(|(path, text)| Content::parse(path, text))
        .transpose()
}

impl Set<'_> {
    fn record(&self, image: &Image) -> Result<Outcome, Error> {
        let path = file::image_path(&self.options.image_dir, &image.file_name);
        let picture = match picture::read(&path, self.options.output.images) {
            Ok(picture) => picture,
            Err(reason) => return Ok(Outcome::Skipped(reason)),
        };
        let size = (picture.width, picture.height);
        let mut notes = Notes::default();
        let mut columns = Columns::default();
        for &index in self.objects_of.get(&image.id).into_iter().flatten() {
            if let Some(annotation) = self.objects.get(index) {
                self.object(annotation, index, image, size, &mut columns, &mut notes)?;
            }
        }
        let mut record = engine::head(picture, &image.file_name, &image.id.to_string());
        let classes = columns.objects.classes();
        if self.options.object_annotations_file.is_some() {
            columns.objects.into_record(&mut record);
            record.ints("image/object/is_crowd", columns.is_crowd);
            record.floats("image/object/area", columns.area);
        }
        if let Some(kind) = self.options.masks {
            masks::into_record(&columns.masks, size, kind, &mut record).map_err(|reason| Error::Read {
                path: path.clone(),
                source: std::io::Error::other(reason),
            })?;
        }
        if self.options.caption_annotations_file.is_some() {
            let captions = self.captions_of.get(&image.id).into_iter().flatten();
            let captions = captions.filter_map(|&index| self.captions.get(index)?.caption.as_ref());
            record.bytes(
                "image/caption",
                captions.map(|text| text.clone().into_bytes()).collect(),
            );
        }
        Ok(Outcome::Ready(Ready {
            record: record.serialise(),
            classes,
            size,
            notes,
        }))
    }

    fn object(
        &self,
        annotation: &Annotation,
        index: usize,
        image: &Image,
        (width, height): (u32, u32),
        columns: &mut Columns,
        notes: &mut Notes,
    ) -> Result<(), Error> {
        let which = || match &annotation.id {
            Some(id) => format!("annotation {id} of image {}", image.id),
            None => format!("annotations[{index}] of image {}", image.id),
        };
        let wrong = |what: String, hint: &str| Error::Record {
            path: self.objects_path.clone(),
            what: format!("{}: {what}", which()),
            hint: hint.to_owned(),
        };
        let id = annotation.category_id.ok_or_else(|| {
            wrong(
                "has no category_id".to_owned(),
                "captions belong to --caption_annotations_file",
            )
        })?;
        let name = self.names.get(&id).copied().ok_or_else(|| {
            wrong(
                format!("category_id {id} is not among the file's categories"),
                "each category is listed under `categories` with its id and name",
            )
        })?;
        let Some(&[x, y, w, h]) = annotation.bbox.as_deref() else {
            return Err(wrong(
                "has no bbox of four numbers".to_owned(),
                "a bbox is [x, y, width, height] in pixels",
            ));
        };
        let mut leave_out = |kind, reason: String| {
            notes.leave_out(kind, format!("{}: `{name}` left out: {reason}", which()));
        };
        if !(w > 0.0 && h > 0.0) {
            leave_out(NO_AREA, format!("its box has no area ({w} x {h})"));
            return Ok(());
        }
        if x < 0.0 || y < 0.0 || x + w > f64::from(width) || y + h > f64::from(height) {
            let what = format!(
                "its box (x {x} to {}, y {y} to {}) reaches beyond the {width}x{height} image",
                x + w,
                y + h
            );
            leave_out(OUTSIDE, what);
            return Ok(());
        }
        if self.options.masks.is_some() {
            let found = annotation
                .segmentation
                .ok_or_else(|| "there is none".to_owned())
                .and_then(|raw| file::segmentation(raw, height, width));
            match found {
                Ok(rle) => columns.masks.push(masks::pixels(&rle)),
                Err(reason) => {
                    leave_out("no mask", format!("its segmentation cannot be used: {reason}"));
                    return Ok(());
                }
            }
        }
        columns
            .objects
            .push_px(name, id as u32, [y, x, y + h, x + w], width, height);
        columns.is_crowd.push(i64::from(annotation.iscrowd.0));
        columns.area.push(annotation.area.unwrap_or(w * h) as f32);
        Ok(())
    }
}

/// What COCO says of objects.
#[derive(Default)]
struct Columns {
    objects: Objects,
    is_crowd: Vec<i64>,
    area: Vec<f32>,
    masks: Vec<Vec<u8>>,
}

#[cfg(test)]
mod tests;
