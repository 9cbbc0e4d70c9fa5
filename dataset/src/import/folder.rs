//! The tree that `OIDv4_ToolKit` leaves, `<CLASS>/<image>.jpg` with `<CLASS>/Label/<image>.txt`, into TFRecords.
//!
//! An image that shows several classes lies in several folders, each time with the boxes of that class alone. All of its copies
//! become one record with all boxes: taken apart, each would teach the detector that the other classes are background.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coati_common::label_map::LabelMap;

use super::engine::{self, Labels, Notes, Outcome, Output, Progress, Ready};
use super::files::entries;
use super::objects::Objects;
use super::{Error, Report, picture, text};

/// What to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder with one folder a class, as `OID/Dataset/train`.
    pub data_dir: PathBuf,
    /// Where records go.
    pub output: Output,
}

/// An image, and the label files of all of its copies.
pub(in crate::import) struct Item {
    image: PathBuf,
    name: String,
    pub(in crate::import) labels: Vec<PathBuf>,
}

/// A line of a label file.
pub(in crate::import) struct Object {
    line: u32,
    pub(in crate::import) class: String,
    /// `[ymin, xmin, ymax, xmax]` in pixels.
    bounds: [f64; 4],
}

/// The images of the tree, by name.
pub(in crate::import) fn items(data_dir: &Path) -> Result<Vec<Item>, Error> {
    let mut items: BTreeMap<String, Item> = BTreeMap::new();
    let mut classes = 0;
    for folder in entries(data_dir)? {
        let labels = folder.join("Label");
        if !coati_storage::is_dir(&labels) {
            continue;
        }
        classes += 1;
        for image in entries(&folder)? {
            let (Some(stem), Some(ending)) = (image.file_stem(), image.extension()) else {
                continue;
            };
            let ending = ending.to_string_lossy().to_ascii_lowercase();
            if !["jpg", "jpeg", "png"].contains(&ending.as_str()) {
                continue;
            }
            let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut label = labels.join(stem).into_os_string();
            label.push(".txt");
            let item = items.entry(name.clone()).or_insert_with(|| Item {
                image: image.clone(),
                name,
                labels: Vec::new(),
            });
            item.labels.push(label.into());
        }
    }
    if classes == 0 {
        return Err(Error::Layout {
            folder: data_dir.to_owned(),
            what: "no folder of it has a folder `Label`".to_owned(),
            hint: "OIDv4_ToolKit leaves OID/Dataset/train/<Class>/Label/*.txt: give OID/Dataset/train".to_owned(),
        });
    }
    Ok(items.into_values().collect())
}

/// The boxes of a label file: a class, which may have blanks, and left, top, right, bottom.
pub(in crate::import) fn parse(path: &Path, content: &str) -> Result<Vec<Object>, Error> {
    let mut objects = Vec::new();
    for (line, words) in (1..).zip(content.lines().map(|line| line.split_whitespace().collect::<Vec<_>>())) {
        let wrong = |what: String| Error::Annotation {
            path: path.to_owned(),
            line,
            what,
            hint: "a line is: class left top right bottom, in pixels".to_owned(),
        };
        if words.is_empty() {
            continue;
        }
        let Some((class, &[left, top, right, bottom])) =
            words.split_last_chunk::<4>().filter(|(class, _)| !class.is_empty())
        else {
            return Err(wrong(format!("{} words, at least 5 are expected", words.len())));
        };
        let mut bounds = [0.0; 4];
        for (bound, word) in bounds.iter_mut().zip([top, left, bottom, right]) {
            *bound = word
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite())
                .ok_or_else(|| wrong(format!("`{word}` is not a number")))?;
        }
        objects.push(Object {
            line,
            class: class.join(" "),
            bounds,
        });
    }
    Ok(objects)
}

/// Imports; on an error nothing is left under the output's names.
pub fn import(options: &Options, labels: &LabelMap, progress: Progress) -> Result<Report, Error> {
    let items = items(&options.data_dir)?;
    let labels = Labels::new(labels);
    engine::run(items, &options.data_dir, &options.output, &labels, progress, |item| {
        record(options, &labels, item)
    })
}

fn record(options: &Options, labels: &Labels, item: &Item) -> Result<Outcome, Error> {
    let picture = match picture::read(&item.image, options.output.images) {
        Ok(picture) => picture,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let (width, height) = (picture.width, picture.height);
    let mut notes = Notes::default();
    let mut objects = Objects::default();
    for file in &item.labels {
        let content = match text::read(file, text::MOST_OF_ONE_IMAGE) {
            Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Outcome::Skipped(format!(
                    "{}: {} does not exist",
                    item.image.display(),
                    file.display()
                )));
            }
            other => other?,
        };
        for object in parse(file, &content)? {
            let id = labels.need(&object.class, file, object.line)?;
            let at = || format!("{}:{}: `{}`", file.display(), object.line, object.class);
            if let Some(bounds) = notes.usable(object.bounds, (width, height), at) {
                objects.push_px(&object.class, id, bounds, width, height);
            }
        }
    }
    let mut record = engine::head(picture, &item.name, &item.name);
    let classes = objects.classes();
    objects.into_record(&mut record);
    Ok(Outcome::Ready(Ready {
        record: record.serialise(),
        classes,
        size: (width, height),
        notes,
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn classes_with_blanks_and_errors() {
        let objects = parse(Path::new("a.txt"), "Traffic light 1 2 3.5 4\n\nCar 5 6 7 8\n").unwrap();
        assert_eq!(objects[0].class, "Traffic light");
        assert_eq!(objects[0].bounds, [2.0, 1.0, 4.0, 3.5]);
        assert_eq!(objects[1].line, 3);
        let error = |text| parse(Path::new("a.txt"), text).err().unwrap().to_string();
        assert!(error("1 2 3 4").starts_with("a.txt:1: 4 words"));
        assert!(error("Car 1 2 3 x").starts_with("a.txt:1: `x` is not a number"));
    }

    #[test]
    fn copies_of_an_image_become_one_record() {
        let folder = tempfile::tempdir().unwrap();
        for (class, boxes) in [
            ("Car", "Car 1 1 9 9\n"),
            ("Traffic light", "Traffic light 2 2 8 8\nTraffic light 0 0 50 5\n"),
        ] {
            let labels = folder.path().join(class).join("Label");
            fs::create_dir_all(&labels).unwrap();
            fs::write(labels.join("00a.txt"), boxes).unwrap();
            fs::write(
                folder.path().join(class).join("00a.png"),
                crate::testing::image("rgb.png"),
            )
            .unwrap();
        }
        let labels = LabelMap::parse("item { id: 1 name: 'Car' } item { id: 2 name: 'Traffic light' }", "map").unwrap();
        let options = Options {
            data_dir: folder.path().to_owned(),
            output: Output::to(folder.path().join("out.record")),
        };
        let report = import(&options, &labels, &|_, _| {}).unwrap();
        assert_eq!(report.images, 1);
        assert_eq!(report.boxes, [("Car".to_owned(), 1), ("Traffic light".to_owned(), 2)]);
        assert_eq!(
            report.warnings.len(),
            1,
            "one box is cut to the image: {:?}",
            report.warnings
        );
        let flat = Options {
            data_dir: folder.path().join("Car"),
            ..options
        };
        let error = import(&flat, &labels, &|_, _| {}).unwrap_err().to_string();
        assert!(
            error.contains("`Label`") && error.contains("OID/Dataset/train"),
            "{error}"
        );
    }
}
