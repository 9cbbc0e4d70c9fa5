//! KITTI's object detection set into TFRecords, with the fields of the reference's `create_kitti_tf_record`.
//!
//! As there, images below `validation_set_size` form the validation set, types are written in lower case, `dontcare` among the
//! classes takes away every box that meets such a region, and `truncated` is a number between 0 and 1.

use std::path::{Path, PathBuf};

use coati_common::label_map::LabelMap;

use super::engine::{self, Labels, Notes, Outcome, Output, Progress, Ready};
use super::files::entries;
use super::objects::Objects;
use super::{Error, Report, picture, text};

/// What to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder with `training/label_2`, and `data_object_image_2/training/image_2` or `training/image_2`.
    pub data_dir: PathBuf,
    /// Types to keep, in lower case.
    pub classes_to_use: Vec<String>,
    /// Images numbered below this are for validation.
    pub validation_set_size: u64,
    /// Where records go: `<path>_train.tfrecord` and `<path>_val.tfrecord`.
    pub output: Output,
}

const DONT_CARE: &str = "dontcare";

/// Imports both sets: `("train", …)` and `("val", …)`.
pub fn import(options: &Options, labels: &LabelMap, progress: Progress) -> Result<Vec<(String, Report)>, Error> {
    let images = image_folder(&options.data_dir)?;
    let (mut train, mut val) = (Vec::new(), Vec::new());
    for path in entries(&images)? {
        let number = path.file_stem().and_then(|stem| stem.to_str()).map(str::parse::<u64>);
        match number {
            Some(Ok(number)) if number < options.validation_set_size => val.push((number, path)),
            Some(Ok(number)) => train.push((number, path)),
            _ => {
                return Err(Error::Layout {
                    folder: images.clone(),
                    what: format!("{} is not named by a number", path.display()),
                    hint: "KITTI's images are called 000000.png, 000001.png, …".to_owned(),
                });
            }
        }
    }
    let labels = Labels::new(labels);
    let mut reports = Vec::new();
    for (set, mut items) in [("train", train), ("val", val)] {
        if items.is_empty() {
            continue;
        }
        items.sort();
        let mut path = options.output.path.clone().into_os_string();
        path.push(format!("_{set}.tfrecord"));
        let output = Output {
            path: path.into(),
            ..options.output.clone()
        };
        let report = engine::run(
            items,
            &options.data_dir,
            &output,
            &labels,
            progress,
            |(number, image)| record(options, &labels, *number, image),
        )?;
        reports.push((set.to_owned(), report));
    }
    if reports.is_empty() {
        return Err(Error::Empty {
            folder: images,
            hint: "images called 000000.png, 000001.png, … are expected".to_owned(),
        });
    }
    Ok(reports)
}

fn image_folder(data_dir: &Path) -> Result<PathBuf, Error> {
    let usual = ["data_object_image_2/training/image_2", "training/image_2", "image_2"];
    usual
        .iter()
        .map(|name| data_dir.join(name))
        .find(|folder| coati_storage::is_dir(folder))
        .ok_or_else(|| Error::Layout {
            folder: data_dir.to_owned(),
            what: format!("none of the folders {} is there", usual.join(", ")),
            hint: "unpack data_object_image_2.zip and data_object_label_2.zip into this folder".to_owned(),
        })
}

/// One line of a label file, as the development kit's readme has it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::import) struct Object {
    /// From 1.
    pub(in crate::import) line: u32,
    /// In lower case.
    pub(in crate::import) kind: String,
    truncated: f32,
    alpha: f32,
    /// `[ymin, xmin, ymax, xmax]` in pixels.
    bounds: [f64; 4],
    /// Height, width, length, x, y, z in metres, and the angle about y.
    space: [f32; 7],
}

/// The objects of a label file.
pub(in crate::import) fn parse(path: &Path, content: &str) -> Result<Vec<Object>, Error> {
    let mut objects = Vec::new();
    for (line, words) in (1..).zip(content.lines().map(|line| line.split_whitespace().collect::<Vec<_>>())) {
        let [kind, numbers @ ..] = words.as_slice() else {
            continue;
        };
        let wrong = |what: String| Error::Annotation {
            path: path.to_owned(),
            line,
            what,
            hint: "a line is: type truncated occluded alpha left top right bottom height width length x y z rotation_y"
                .to_owned(),
        };
        // Results have a score as their sixteenth word.
        if numbers.len() != 14 && numbers.len() != 15 {
            return Err(wrong(format!("{} words, 15 are expected", words.len())));
        }
        let mut values = [0.0_f64; 14];
        for (value, word) in values.iter_mut().zip(numbers) {
            *value = word
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite())
                .ok_or_else(|| wrong(format!("`{word}` is not a number")))?;
        }
        let [truncated, _occluded, alpha, left, top, right, bottom, space @ ..] = values;
        objects.push(Object {
            line,
            kind: kind.to_lowercase(),
            truncated: truncated as f32,
            alpha: alpha as f32,
            bounds: [top, left, bottom, right],
            space: space.map(|value| value as f32),
        });
    }
    Ok(objects)
}

/// The objects of the used classes; with `dontcare` among them, only those that meet no such region. Says how many went.
fn filter(objects: Vec<Object>, classes: &[String]) -> (Vec<Object>, usize) {
    let kept: Vec<Object> = objects
        .into_iter()
        .filter(|object| classes.contains(&object.kind))
        .collect();
    let regions: Vec<[f64; 4]> = kept
        .iter()
        .filter(|object| object.kind == DONT_CARE)
        .map(|object| object.bounds)
        .collect();
    let before = kept.iter().filter(|object| object.kind != DONT_CARE).count();
    let free: Vec<Object> = kept
        .into_iter()
        .filter(|object| object.kind != DONT_CARE && !regions.iter().any(|region| meet(object.bounds, *region)))
        .collect();
    let gone = before - free.len();
    (free, gone)
}

fn meet(a: [f64; 4], b: [f64; 4]) -> bool {
    let overlap = |axis: usize| a[axis + 2].min(b[axis + 2]) - a[axis].max(b[axis]);
    overlap(0) > 0.0 && overlap(1) > 0.0
}

fn record(options: &Options, labels: &Labels, number: u64, image: &Path) -> Result<Outcome, Error> {
    let file = options.data_dir.join(format!("training/label_2/{number:06}.txt"));
    let content = match text::read(&file, text::MOST_OF_ONE_IMAGE) {
        Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Outcome::Skipped(format!("{}: does not exist", file.display())));
        }
        other => other?,
    };
    let picture = match picture::read(image, options.output.images) {
        Ok(picture) => picture,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let (width, height) = (picture.width, picture.height);
    let (objects, in_regions) = filter(parse(&file, &content)?, &options.classes_to_use);
    let mut notes = Notes::default();
    notes
        .left_out
        .extend(std::iter::repeat_n("meets a dontcare region", in_regions));
    let mut columns = Objects::default();
    let mut kept = Vec::new();
    for object in objects {
        let id = labels.need(&object.kind, &file, object.line)?;
        let at = || format!("{}:{}: `{}`", file.display(), object.line, object.kind);
        if let Some(bounds) = notes.usable(object.bounds, (width, height), at) {
            columns.push_px(&object.kind, id, bounds, width, height);
            kept.push(object);
        }
    }
    let name = image.to_string_lossy();
    let mut record = engine::head(picture, &name, &name);
    let classes = columns.classes();
    columns.into_record(&mut record);
    record.ints("image/object/difficult", vec![0; kept.len()]);
    record.floats(
        "image/object/truncated",
        kept.iter().map(|object| object.truncated).collect(),
    );
    record.floats("image/object/alpha", kept.iter().map(|object| object.alpha).collect());
    for (index, field) in ["height", "width", "length", "x", "y", "z", "rot_y"]
        .into_iter()
        .enumerate()
    {
        let values = kept.iter().map(|object| object.space[index]).collect();
        record.floats(&format!("image/object/3d_bbox/{field}"), values);
    }
    Ok(Outcome::Ready(Ready {
        record: record.serialise(),
        classes,
        size: (width, height),
        notes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: &str = "Car 0.00 0 1.85 10 20 30 40 1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n\
        DontCare -1 -1 -10 25 30 60 60 -1 -1 -1 -1000 -1000 -1000 -10\n\
        Pedestrian 0.5 1 0.2 70 70 90 95 1.8 0.5 1.2 1 2 3 0.1\n";

    #[test]
    fn dontcare_takes_away_what_it_meets() {
        let objects = parse(Path::new("0.txt"), LABELS).unwrap();
        assert_eq!(objects[0].bounds, [20.0, 10.0, 40.0, 30.0]);
        let names = |classes: &[&str]| {
            let classes: Vec<String> = classes.iter().map(|&class| class.to_owned()).collect();
            let (kept, gone) = filter(objects.clone(), &classes);
            (kept.into_iter().map(|object| object.kind).collect::<Vec<_>>(), gone)
        };
        assert_eq!(
            names(&["car", "pedestrian"]),
            (vec!["car".into(), "pedestrian".into()], 0)
        );
        assert_eq!(
            names(&["car", "pedestrian", "dontcare"]),
            (vec!["pedestrian".into()], 1)
        );
    }

    #[test]
    fn errors_name_file_line_and_word() {
        let error = |text| parse(Path::new("7.txt"), text).unwrap_err().to_string();
        assert!(error("\nCar 1 2").starts_with("7.txt:2: 3 words, 15 are expected"));
        let word = LABELS.replace("0.5 1 0.2", "0.5 1 x");
        assert!(error(&word).starts_with("7.txt:3: `x` is not a number"));
    }
}
