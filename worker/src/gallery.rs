//! Pictures of an evaluation: detections beside groundtruth, for TensorBoard, for folders and for the report.

use std::path::{Path, PathBuf};

use coati_dataset::eval::Example;
use coati_dataset::pixels::Pixels;
use coati_detection::Detections;
use coati_evaluation::draw::{self, Label, beside, draw_boxes, draw_mask, draw_outline};
use coati_evaluation::{Category, Mask, palette};
use coati_proto::object_detection::protos::EvalConfig;
use image::RgbImage;

use crate::evaluate::Error;

/// The reference's name for them in TensorBoard (`VisualizeSingleFrameDetections`).
const TAG: &str = "Detections_Left_Groundtruth_Right";

/// A picture for TensorBoard's Images tab.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Its name there.
    pub tag: String,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// The bytes of a PNG file.
    pub png: Vec<u8>,
}

impl Shown {
    /// Encodes a picture.
    pub fn new(tag: impl Into<String>, picture: &RgbImage) -> Result<Self, image::ImageError> {
        Ok(Self {
            tag: tag.into(),
            width: picture.width(),
            height: picture.height(),
            png: draw::png(picture)?,
        })
    }
}

/// What is drawn of detections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// Only detections with at least this score (`min_score_threshold`).
    pub min_score: f32,
    /// No more of an image (`max_num_boxes_to_visualize`); 0: all.
    pub most: usize,
    /// Without the numbers (`skip_scores`).
    pub skip_scores: bool,
    /// Without the names (`skip_labels`).
    pub skip_labels: bool,
}

impl From<&EvalConfig> for Style {
    fn from(settings: &EvalConfig) -> Self {
        Self {
            min_score: settings.min_score_threshold(),
            most: usize::try_from(settings.max_num_boxes_to_visualize()).unwrap_or(0),
            skip_scores: settings.skip_scores(),
            skip_labels: settings.skip_labels(),
        }
    }
}

/// A class's name; its id where the label map has none. `class` is from 0.
pub fn class_name(categories: &[Category], class: usize) -> String {
    let id = class + 1;
    categories
        .iter()
        .find(|category| category.id as usize == id)
        .map_or_else(|| id.to_string(), |category| category.name.clone())
}

/// Draws an image's detections, the surest on top.
pub fn draw_detections(picture: &mut RgbImage, found: &Detections, categories: &[Category], style: Style) {
    let (height, width) = (picture.height() as f32, picture.width() as f32);
    let most = if style.most == 0 { usize::MAX } else { style.most };
    let mut labels: Vec<Label> = (0..found.scores.len())
        .filter(|&index| found.scores[index] >= style.min_score)
        .take(most)
        .map(|index| {
            let [ymin, xmin, ymax, xmax] = found.boxes[index];
            Label {
                box_px: [ymin * height, xmin * width, ymax * height, xmax * width],
                text: text(
                    &class_name(categories, found.classes[index]),
                    found.scores[index],
                    style,
                ),
                colour: found.classes[index] + 1,
            }
        })
        .collect();
    labels.reverse();
    draw_boxes(picture, &labels);
}

/// `cat: 93%`, as the reference labels boxes.
fn text(name: &str, score: f32, style: Style) -> String {
    let percent = format!("{:.0}%", score * 100.0);
    match (style.skip_labels, style.skip_scores) {
        (false, false) => format!("{name}: {percent}"),
        (false, true) => name.to_owned(),
        (true, false) => percent,
        (true, true) => String::new(),
    }
}

/// Draws the examples of an evaluation.
#[derive(Debug)]
pub struct Gallery<'a> {
    /// Where the user wants files (`--pictures_dir`).
    folder: Option<PathBuf>,
    /// Where the configuration wants files (`visualization_export_dir`).
    export: Option<PathBuf>,
    settings: &'a EvalConfig,
    categories: Vec<Category>,
    /// How many images are still to be drawn.
    left: usize,
    shown: Vec<Shown>,
    written: Vec<PathBuf>,
}

impl<'a> Gallery<'a> {
    /// Of the first `num_visualizations` images; none where `retain_original_images` is off and no folder is given.
    pub fn new(
        folder: Option<&Path>,
        export: Option<PathBuf>,
        settings: &'a EvalConfig,
        categories: Vec<Category>,
    ) -> Self {
        let count = settings.num_visualizations() as usize;
        Self {
            folder: folder.map(Path::to_owned),
            export,
            settings,
            categories,
            left: if settings.retain_original_images() || folder.is_some() {
                count
            } else {
                0
            },
            shown: Vec::new(),
            written: Vec::new(),
        }
    }

    /// Takes the next example, as long as pictures are wanted.
    pub fn add(&mut self, example: &Example, found: &Detections) -> Result<(), Error> {
        if self.left == 0 {
            return Ok(());
        }
        let Some(picture) = self.picture(example, found) else {
            return Ok(());
        };
        self.left -= 1;
        let number = self.shown.len();
        // The summary's name, the image's number, and the number that an Estimator puts behind each value of a summary.
        let shown = Shown::new(format!("{TAG}/{number}/0"), &picture);
        let stem = Path::new(&example.filename)
            .file_stem()
            .map_or_else(|| "image".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let path = self
            .folder
            .as_ref()
            .map(|folder| folder.join(format!("{:05}_{stem}.png", example.record)));
        let shown = shown.map_err(|error| Error::Picture {
            path: path.clone().unwrap_or_default(),
            message: error.to_string(),
        })?;
        if let Some(path) = path {
            save(&path, &shown.png)?;
            self.written.push(path);
        }
        if let Some(folder) = &self.export {
            save(&folder.join(self.exported(number, example)), &shown.png)?;
        }
        self.shown.push(shown);
        Ok(())
    }

    /// Detections left, groundtruth right; `None` for an image without pixels.
    pub fn picture(&self, example: &Example, found: &Detections) -> Option<RgbImage> {
        let (height, width) = (example.image.height as u32, example.image.width as u32);
        let mut left = RgbImage::from_raw(width, height, example.image.pixels.clone())?;
        let mut right = left.clone();
        if self.settings.visualize_groundtruth_boxes() {
            let name = self.settings.groundtruth_box_visualization_color();
            let colour = palette::named(name).unwrap_or(image::Rgb([0; 3]));
            for &box_px in &example.boxes_px {
                draw_outline(&mut left, box_px, colour);
            }
        }
        draw_detections(&mut left, found, &self.categories, Style::from(self.settings));
        let truth: Vec<Label> = example
            .boxes_px
            .iter()
            .zip(&example.groundtruth.classes)
            .map(|(&box_px, &class)| Label {
                box_px,
                text: class_name(&self.categories, class as usize),
                colour: class as usize + 1,
            })
            .collect();
        let masks = example.groundtruth.masks.iter().map(mask);
        for (mask, &class) in masks.zip(&example.groundtruth.classes) {
            if let Some(mask) = mask {
                draw_mask(&mut right, &mask, class as usize + 1);
            }
        }
        draw_boxes(&mut right, &truth);
        Some(beside(&left, &right))
    }

    /// What was drawn for TensorBoard, and the files that were written at the user's wish.
    pub fn finish(self) -> (Vec<Shown>, Vec<PathBuf>) {
        (self.shown, self.written)
    }

    /// The name that the reference exports a picture under.
    fn exported(&self, number: usize, example: &Example) -> String {
        if self.settings.keep_image_id_for_visualization_export() && !example.source_id.is_empty() {
            let id = example.source_id.replace(['/', '\\'], "_");
            format!("export-image-{number}-{id}.png")
        } else {
            format!("export-image-{number}.png")
        }
    }
}

/// The pixels of an object.
fn mask(pixels: &Pixels) -> Option<Mask> {
    let belongs: Vec<u8> = pixels.values.iter().map(|&value| u8::from(value > 0.0)).collect();
    let (height, width) = (u32::try_from(pixels.height).ok()?, u32::try_from(pixels.width).ok()?);
    Mask::from_rows(&belongs, height, width)
}

/// Writes a picture's file; its folder is made if need be.
fn save(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::Picture {
        path: path.to_owned(),
        message: error.to_string(),
    };
    coati_storage::write(path, bytes).map_err(failed)
}

#[cfg(test)]
mod tests {
    use coati_dataset::Groundtruth;
    use coati_dataset::decode::Image;
    use coati_evaluation::palette::of_class;

    use super::*;

    fn example(record: u64) -> Example {
        let (height, width) = (60, 80);
        let groundtruth = Groundtruth {
            boxes: vec![[0.5, 0.5, 0.9, 0.9]],
            classes: vec![1],
            ..Groundtruth::default()
        };
        Example {
            record,
            source_id: format!("a/{record}"),
            filename: format!("pictures/{record}.jpg"),
            image: Image {
                height,
                width,
                pixels: vec![50; height * width * 3],
            },
            input: coati_dataset::fit::Fitted::default(),
            boxes_px: groundtruth.boxes_px(height, width),
            groundtruth,
            image_classes: Vec::new(),
        }
    }

    fn found() -> Detections {
        Detections {
            boxes: vec![[0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.4, 0.4]],
            classes: vec![0, 0],
            scores: vec![0.9, 0.4],
            anchors: vec![0, 1],
        }
    }

    fn categories() -> Vec<Category> {
        [(1, "x"), (2, "y")]
            .map(|(id, name)| Category { id, name: name.into() })
            .into()
    }

    #[test]
    fn as_many_as_wanted_are_drawn_written_and_named_as_the_reference_does() {
        let folder = tempfile::tempdir().unwrap();
        let settings = EvalConfig {
            num_visualizations: Some(2),
            keep_image_id_for_visualization_export: Some(true),
            ..EvalConfig::default()
        };
        let (pictures, export) = (folder.path().join("pictures"), folder.path().join("export"));
        let mut gallery = Gallery::new(Some(&pictures), Some(export.clone()), &settings, categories());
        for record in 5..9 {
            gallery.add(&example(record), &found()).unwrap();
        }
        let (shown, written) = gallery.finish();
        let tags: Vec<_> = shown.iter().map(|shown| shown.tag.as_str()).collect();
        assert_eq!(
            tags,
            [
                "Detections_Left_Groundtruth_Right/0/0",
                "Detections_Left_Groundtruth_Right/1/0"
            ]
        );
        assert_eq!((shown[0].width, shown[0].height), (80 + 4 + 80, 60));
        assert_eq!(written, [pictures.join("00005_5.png"), pictures.join("00006_6.png")]);
        assert!(written.iter().all(|path| path.is_file()));
        assert!(export.join("export-image-1-a_6.png").is_file());
    }

    #[test]
    fn detections_stand_left_in_their_classes_colour_and_groundtruth_right() {
        let settings = EvalConfig::default();
        let gallery = Gallery::new(None, None, &settings, categories());
        let picture = gallery.picture(&example(0), &found()).unwrap();
        // The lower edges of the object's box, row 53 of columns 40 to 72.
        assert_eq!(*picture.get_pixel(56, 53), of_class(1));
        assert_eq!(*picture.get_pixel(56 + 84, 53), of_class(2));
        // The second detection lies below the threshold.
        assert_eq!(*picture.get_pixel(20, 23), image::Rgb([50; 3]));
    }

    #[test]
    fn masks_of_the_groundtruth_are_laid_over_it() {
        let settings = EvalConfig::default();
        let gallery = Gallery::new(None, None, &settings, categories());
        let mut example = example(0);
        let mut values = vec![0.0; 60 * 80];
        values[20 * 80 + 10] = 1.0;
        example.groundtruth.masks = vec![Pixels::plane(60, 80, values).unwrap()];
        let picture = gallery.picture(&example, &Detections::default()).unwrap();
        let grey = image::Rgb([50; 3]);
        assert_ne!(*picture.get_pixel(84 + 10, 20), grey);
        assert_eq!([*picture.get_pixel(10, 20), *picture.get_pixel(84 + 11, 20)], [grey; 2]);
    }

    #[test]
    fn names_and_scores_can_be_left_out() {
        let style = Style::from(&EvalConfig::default());
        assert_eq!(text("cat", 0.927, style), "cat: 93%");
        let skip = |skip_labels, skip_scores| Style {
            skip_scores,
            skip_labels,
            ..style
        };
        assert_eq!(text("cat", 0.927, skip(true, false)), "93%");
        assert_eq!(text("cat", 0.927, skip(false, true)), "cat");
        assert_eq!(text("cat", 0.927, skip(true, true)), "");
    }
}
