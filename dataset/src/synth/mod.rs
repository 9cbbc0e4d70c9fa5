//! Made-up detection data: coloured shapes on textured backgrounds, written as JPEG and Pascal VOC XML.
//!
//! Small detectors learn it from scratch in minutes, yet position, size, colour, rotation and background vary enough that no
//! constant box scores on it. Each image depends on `(seed, split, index)` alone.

mod scene;
mod shape;
mod texture;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image::ImageEncoder as _;
use rayon::prelude::*;

pub use scene::{Object, Scene, render};
pub use shape::Shape;

/// What to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder for `JPEGImages`, `Annotations`, `ImageSets/Main` and `label_map.pbtxt`.
    pub output_dir: PathBuf,
    /// Images in `ImageSets/Main/train.txt`.
    pub num_train: usize,
    /// Images in `ImageSets/Main/val.txt`.
    pub num_val: usize,
    /// Width and height in pixels.
    pub image_size: u32,
    /// Changes everything.
    pub seed: u64,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// JPEG files written.
    pub images: usize,
    /// `(class, boxes)`.
    pub boxes: Vec<(String, usize)>,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be written.
    #[error("{path}: {source}\nhint: is the folder writable, and is there room on the disk?")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An option out of its range.
    #[error("{0}")]
    Option(String),
}

/// JPEG quality: high enough that compression is not what a detector learns.
const QUALITY: u8 = 90;

/// Makes the data set; the same options give the same bytes.
pub fn generate(options: &Options) -> Result<Report, Error> {
    if !(64..=2048).contains(&options.image_size) {
        return Err(Error::Option(format!(
            "image_size is {}; 64 to 2048 pixels are possible",
            options.image_size
        )));
    }
    if options.num_train + options.num_val == 0 {
        return Err(Error::Option(
            "no images asked for\nhint: give --num_train or --num_val".to_owned(),
        ));
    }
    let folder = |name: &str| options.output_dir.join(name);
    for name in ["JPEGImages", "Annotations", "ImageSets/Main"] {
        coati_storage::create_dir_all(&folder(name)).map_err(|source| Error::Write {
            path: folder(name),
            source,
        })?;
    }
    let mut boxes = vec![0; Shape::ALL.len()];
    for (split, (name, count)) in [("train", options.num_train), ("val", options.num_val)]
        .into_iter()
        .enumerate()
    {
        let scenes: Vec<Scene> = (0..count)
            .into_par_iter()
            .map(|index| {
                let scene = render(options.seed, split as u64, index as u64, options.image_size);
                write_image(&options.output_dir, &stem(name, index), &scene)?;
                Ok(scene)
            })
            .collect::<Result<_, Error>>()?;
        for object in scenes.iter().flat_map(|scene| &scene.objects) {
            boxes[object.shape as usize] += 1;
        }
        let list: String = (0..count).map(|index| stem(name, index) + "\n").collect();
        write(&folder("ImageSets/Main").join(format!("{name}.txt")), list.as_bytes())?;
    }
    let map: String = Shape::ALL
        .iter()
        .enumerate()
        .map(|(index, shape)| format!("item {{\n  id: {}\n  name: '{}'\n}}\n", index + 1, shape.name()))
        .collect();
    write(&folder("label_map.pbtxt"), map.as_bytes())?;
    Ok(Report {
        images: options.num_train + options.num_val,
        boxes: Shape::ALL
            .iter()
            .map(|shape| shape.name().to_owned())
            .zip(boxes)
            .collect(),
    })
}

fn stem(split: &str, index: usize) -> String {
    format!("{split}_{index:05}")
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = if coati_storage::is_remote(path) {
        coati_storage::put(path, bytes)
    } else {
        fs::write(path, bytes)
    };
    written.map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

fn write_image(folder: &Path, stem: &str, scene: &Scene) -> Result<(), Error> {
    let path = folder.join("JPEGImages").join(format!("{stem}.jpg"));
    let mut jpeg = Vec::new();
    let (width, height) = scene.picture.dimensions();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .write_image(&scene.picture, width, height, image::ExtendedColorType::Rgb8)
        .map_err(|error| Error::Write {
            path: path.clone(),
            source: io::Error::other(error),
        })?;
    write(&path, &jpeg)?;
    write(
        &folder.join("Annotations").join(format!("{stem}.xml")),
        annotation(stem, scene).as_bytes(),
    )
}

fn annotation(stem: &str, scene: &Scene) -> String {
    use std::fmt::Write as _;
    let (width, height) = scene.picture.dimensions();
    let mut xml = format!(
        "<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{stem}.jpg</filename>\n  <source><database>coati data synth</database></source>\n  \
         <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n  <segmented>0</segmented>\n"
    );
    for Object {
        shape,
        bounds: [ymin, xmin, ymax, xmax],
    } in &scene.objects
    {
        // Writing to a String cannot fail.
        let _ = write!(
            xml,
            "  <object>\n    <name>{}</name>\n    <pose>Unspecified</pose>\n    <truncated>0</truncated>\n    <difficult>0</difficult>\n    \
             <bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>\n  </object>\n",
            shape.name()
        );
    }
    xml + "</annotation>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &Path, seed: u64) -> Options {
        Options {
            output_dir: folder.to_owned(),
            num_train: 3,
            num_val: 2,
            image_size: 96,
            seed,
        }
    }

    #[test]
    fn same_seed_same_bytes_other_seed_other_bytes() {
        let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        for (folder, seed) in folders.iter().zip([5, 5, 6]) {
            generate(&options(folder.path(), seed)).unwrap();
        }
        let read = |i: usize, name: &str| fs::read(folders[i].path().join(name)).unwrap();
        for name in ["JPEGImages/train_00002.jpg", "Annotations/val_00001.xml"] {
            assert_eq!(read(0, name), read(1, name), "{name}");
            assert_ne!(read(0, name), read(2, name), "{name}");
        }
        assert_eq!(read(0, "ImageSets/Main/val.txt"), b"val_00000\nval_00001\n");
    }

    #[test]
    fn refuses_impossible_options() {
        let folder = tempfile::tempdir().unwrap();
        let none = Options {
            num_train: 0,
            num_val: 0,
            ..options(folder.path(), 1)
        };
        assert!(matches!(generate(&none), Err(Error::Option(_))));
        let tiny = Options {
            image_size: 3,
            ..options(folder.path(), 1)
        };
        assert!(matches!(generate(&tiny), Err(Error::Option(_))));
    }
}
