//! Records that hold detections beside the groundtruth (`image/detection/…`), as the reference's `offline_eval_map_corloc` reads them; masks of
//! detections, for which it has no name, are in `image/detection/mask`.

use std::collections::HashSet;
use std::path::PathBuf;

use clap::Args;
use coati_dataset::example::wire::Features;
use coati_dataset::shards::Source;
use coati_evaluation::{Detections, Evaluation, Groundtruth, Options, Sample, set};

use super::{OutputArgs, by_name, masks, note, write};
use crate::failure::Failure;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct RecordsArgs {
    /// TFRecords: files, globs or NAME@SHARDS.
    #[arg(long, value_name = "FILES", required = true, num_args = 1..)]
    input_path: Vec<String>,
    /// Label map (.pbtxt).
    #[arg(long, value_name = "FILE")]
    label_map_path: PathBuf,
    /// Metrics by their names in eval_config, separated by commas.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "pascal_voc_detection_metrics"
    )]
    metrics_set: Vec<String>,
    /// Least overlap of a match, for metrics other than COCO's.
    #[arg(long, default_value_t = 0.5)]
    matching_iou_threshold: f64,
    /// Also report CorLoc, for metrics other than COCO's.
    #[arg(long)]
    corloc: bool,
    /// Evaluate so many records; 0 means all.
    #[arg(long, default_value_t = 0)]
    num_examples: u64,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &RecordsArgs) -> anyhow::Result<()> {
    if !(0.0..=1.0).contains(&args.matching_iou_threshold) {
        return Err(Failure::user(format!(
            "--matching_iou_threshold is {}\nhint: an overlap is a number from 0 to 1, usually 0.5",
            args.matching_iou_threshold
        ))
        .into());
    }
    let categories = by_name(&args.label_map_path)?;
    let source = Source::open(&args.input_path)?;
    let options = Options {
        matching_iou: args.matching_iou_threshold,
        corloc: args.corloc,
        ..Options::default()
    };
    let mut evaluation = Evaluation::new(&args.metrics_set, &categories, &options)?;
    let total = source.record_count();
    let mut notes = Vec::new();
    if args.num_examples > total {
        notes.push(format!(
            "--num_examples is {}, but there are {total} records; all are evaluated",
            args.num_examples
        ));
    }
    let wanted = if args.num_examples == 0 {
        total
    } else {
        args.num_examples.min(total)
    };
    let names = evaluation.names();
    let asked = Asked {
        masks: names.iter().any(|name| set::compares_masks(name)),
        pixels: names.iter().any(|name| name.starts_with("coco_")),
    };
    let mut without = 0_u64;
    let (mut ids, mut twice) = (HashSet::new(), Vec::new());
    for number in 0..wanted {
        let place = source.location(number);
        let record = source.read(number)?;
        let bad = |message: String| Failure::user(format!("{place}: {message}"));
        match sample(&record, asked).map_err(bad)? {
            Some(mut sample) => {
                // As in an evaluation: told apart by the record's number.
                if sample.image.is_empty() || !ids.insert(sample.image.clone()) {
                    if !sample.image.is_empty() {
                        twice.push(place.to_string());
                    }
                    sample.image = format!("{}#{number}", sample.image);
                }
                evaluation.add(&sample).map_err(|error| bad(error.to_string()))?;
            }
            None if without == 0 => {
                without = 1;
                notes.push(format!(
                    "{place}: no groundtruth or no detections (image/object/…, image/detection/…); such records are left out"
                ));
            }
            None => without += 1,
        }
    }
    if let Some(first) = twice.first() {
        notes.push(format!(
            "{} images have the id (image/source_id) of another one, the first is {first}; they are told apart by their records' numbers",
            twice.len()
        ));
    }
    if without > 1 {
        notes.push(format!("{without} records were left out"));
    }
    note(&notes);
    let metrics = evaluation
        .evaluate()
        .map_err(|error| Failure::user(format!("{}: {error}", args.input_path.join(", "))))?;
    note(&evaluation.notes());
    write(&metrics, &args.output)
}

/// What metrics ask for beside boxes.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// Masks of objects and detections.
    masks: bool,
    /// Boxes in pixels, since sizes count (COCO's small, medium and large objects).
    pixels: bool,
}

/// One record; none where it lacks groundtruth or detections altogether (`TfExampleDetectionAndGTParser`).
fn sample(record: &[u8], asked: Asked) -> Result<Option<Sample>, String> {
    let features = Features::parse(record).map_err(|error| error.to_string())?;
    let needed = [
        "image/object/bbox/xmin",
        "image/object/class/label",
        "image/detection/bbox/xmin",
        "image/detection/score",
    ];
    if needed.iter().any(|name| !features.names().any(|known| known == *name)) {
        return Ok(None);
    }
    let floats = |name: &str| features.floats(name).map_err(|error| error.to_string());
    let ints = |name: &str| features.ints(name).map_err(|error| error.to_string());
    let boxes = |what: &str| -> Result<Vec<[f64; 4]>, String> {
        let sides = ["ymin", "xmin", "ymax", "xmax"].map(|side| floats(&format!("image/{what}/bbox/{side}")));
        let [ymin, xmin, ymax, xmax] = sides;
        let sides = [ymin?, xmin?, ymax?, xmax?];
        let count = sides[0].len();
        if sides.iter().any(|side| side.len() != count) {
            return Err(format!(
                "image/{what}/bbox: {:?} values of ymin, xmin, ymax, xmax\nhint: each box has one of each",
                sides.map(|side| side.len())
            ));
        }
        let boxes: Vec<[f64; 4]> = (0..count)
            .map(|i| [0, 1, 2, 3].map(|side: usize| f64::from(sides[side][i])))
            .collect();
        if let Some((index, value)) = boxes.iter().enumerate().find(|(_, b)| b.iter().any(|v| v.abs() > 2.0)) {
            return Err(format!(
                "image/{what}/bbox: box {index} is {value:?}; fractions of the image's height and width are due\nhint: these look like pixels; divide y by the height and x by the width"
            ));
        }
        Ok(boxes)
    };
    let classes = |name: &str| -> Result<Vec<u32>, String> {
        let class = |id: i64| u32::try_from(id).map_err(|_| format!("{name}: class {id}\nhint: classes start at 1"));
        ints(name)?.into_iter().map(class).collect()
    };
    let flags = |name: &str| ints(name).map(|list| list.into_iter().map(|flag| flag != 0).collect::<Vec<bool>>());
    let verified = classes("image/class/label")?;
    let image = features
        .text("image/source_id")
        .map_err(|error| error.to_string())?
        .unwrap_or_default();
    let size = size(&features)?;
    let mut objects = boxes("object")?;
    let mut found = boxes("detection")?;
    let masks = |name: &str, boxes: usize| {
        if asked.masks {
            masks::read(&features, name, size, boxes)
        } else {
            Ok(Vec::new())
        }
    };
    let (object_masks, found_masks) = (
        masks("image/object/mask", objects.len())?,
        masks("image/detection/mask", found.len())?,
    );
    if asked.pixels {
        let [height, width] = size
            .ok_or("image/height, image/width: absent or 0\nhint: COCO's metrics tell small objects from large ones in pixels")?
            .map(f64::from);
        for [ymin, xmin, ymax, xmax] in objects.iter_mut().chain(&mut found) {
            (*ymin, *xmin, *ymax, *xmax) = (*ymin * height, *xmin * width, *ymax * height, *xmax * width);
        }
    }
    let area = floats("image/object/area")?.into_iter().map(f64::from).collect();
    Ok(Some(Sample {
        image: image.into_owned(),
        size: size.filter(|_| asked.pixels).map(|size| size.map(f64::from)),
        groundtruth: Groundtruth {
            boxes: objects,
            classes: classes("image/object/class/label")?,
            difficult: flags("image/object/difficult")?,
            group_of: flags("image/object/group_of")?,
            is_crowd: flags("image/object/is_crowd")?,
            area,
            masks: object_masks,
            image_classes: (!verified.is_empty()).then_some(verified),
            ..Groundtruth::default()
        },
        detections: Detections {
            boxes: found,
            masks: found_masks,
            scores: floats("image/detection/score")?.into_iter().map(f64::from).collect(),
            classes: classes("image/detection/label")?,
            ..Detections::default()
        },
    }))
}

/// Height and width, where the record has both.
fn size(features: &Features) -> Result<Option<[u32; 2]>, String> {
    let side = |name: &str| -> Result<Option<u32>, String> {
        let first = features.ints(name).map_err(|error| error.to_string())?.first().copied();
        Ok(first
            .and_then(|value| u32::try_from(value).ok())
            .filter(|&side| side > 0))
    };
    Ok(side("image/height")?
        .zip(side("image/width")?)
        .map(|(height, width)| [height, width]))
}

#[cfg(test)]
mod tests {
    use coati_proto::tensorflow::{self as tf, feature::Kind};
    use prost::Message as _;

    use super::*;

    fn floats(value: &[f32]) -> Kind {
        Kind::FloatList(tf::FloatList { value: value.to_vec() })
    }

    fn ints(value: &[i64]) -> Kind {
        Kind::Int64List(tf::Int64List { value: value.to_vec() })
    }

    /// A record with one object, one detection, and what `more` says instead or besides.
    fn record(more: Vec<(&str, Option<Kind>)>) -> Vec<u8> {
        let side = |what: &str, side: &str| format!("image/{what}/bbox/{side}");
        let mut features = vec![
            (
                "image/source_id".to_owned(),
                Some(Kind::BytesList(tf::BytesList {
                    value: vec![b"x".to_vec()],
                })),
            ),
            ("image/object/class/label".to_owned(), Some(ints(&[2]))),
            ("image/object/group_of".to_owned(), Some(ints(&[1]))),
            ("image/class/label".to_owned(), Some(ints(&[3]))),
            ("image/detection/label".to_owned(), Some(ints(&[1]))),
            ("image/detection/score".to_owned(), Some(floats(&[0.5]))),
        ];
        for what in ["object", "detection"] {
            for (name, value) in [("ymin", 0.0), ("xmin", 0.25), ("ymax", 0.5), ("xmax", 1.0)] {
                features.push((side(what, name), Some(floats(&[value]))));
            }
        }
        for (name, kind) in more {
            features.retain(|(known, _)| known != name);
            features.push((name.to_owned(), kind));
        }
        let feature = features
            .into_iter()
            .filter_map(|(name, kind)| Some((name, tf::Feature { kind: Some(kind?) })))
            .collect();
        tf::Example {
            features: Some(tf::Features { feature }),
        }
        .encode_to_vec()
    }

    #[test]
    fn groundtruth_and_detections_of_a_record() {
        let sample = sample(&record(vec![]), Asked::default()).unwrap().unwrap();
        assert_eq!(sample.image, "x");
        assert_eq!(sample.groundtruth.boxes, [[0.0, 0.25, 0.5, 1.0]]);
        assert_eq!(
            (sample.groundtruth.classes, sample.groundtruth.group_of),
            (vec![2], vec![true])
        );
        assert_eq!(sample.groundtruth.image_classes, Some(vec![3]));
        assert_eq!(
            (sample.detections.classes, sample.detections.scores),
            (vec![1], vec![0.5])
        );
    }

    #[test]
    fn records_without_detections_are_told_apart_from_bad_ones() {
        assert!(
            sample(&record(vec![("image/detection/score", None)]), Asked::default())
                .unwrap()
                .is_none()
        );
        let pixels = sample(
            &record(vec![("image/detection/bbox/xmax", Some(floats(&[320.0])))]),
            Asked::default(),
        )
        .unwrap_err();
        assert!(
            pixels.contains("fractions of the image's height and width are due\nhint:"),
            "{pixels}"
        );
        let uneven = sample(
            &record(vec![("image/object/bbox/xmax", Some(floats(&[0.5, 0.6])))]),
            Asked::default(),
        )
        .unwrap_err();
        assert!(uneven.contains("image/object/bbox: [1, 1, 1, 2] values"), "{uneven}");
        let class = sample(
            &record(vec![("image/detection/label", Some(ints(&[-1])))]),
            Asked::default(),
        )
        .unwrap_err();
        assert!(class.contains("class -1\nhint: classes start at 1"), "{class}");
    }

    fn sized(more: Vec<(&str, Option<Kind>)>) -> Vec<u8> {
        let mut all = vec![("image/height", Some(ints(&[4]))), ("image/width", Some(ints(&[2])))];
        all.extend(more);
        record(all)
    }

    #[test]
    fn sizes_count_in_pixels() {
        let pixels = Asked {
            pixels: true,
            ..Asked::default()
        };
        let with_area = sized(vec![("image/object/area", Some(floats(&[3.0])))]);
        let found = sample(&with_area, pixels).unwrap().unwrap();
        assert_eq!(found.groundtruth.boxes, [[0.0, 0.5, 2.0, 2.0]]);
        assert_eq!((found.size, found.groundtruth.area), (Some([4.0, 2.0]), vec![3.0]));
        let unknown = sample(&record(vec![]), pixels).unwrap_err();
        assert!(
            unknown.contains("image/height, image/width: absent or 0\nhint:"),
            "{unknown}"
        );
    }

    #[test]
    fn masks_are_files_or_floats() {
        let asked = Asked {
            masks: true,
            ..Asked::default()
        };
        let picture = image::GrayImage::from_fn(2, 4, |x, y| image::Luma([if x == 1 && y < 2 { 255 } else { 0 }]));
        let mut png = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
        let file = Kind::BytesList(tf::BytesList {
            value: vec![png.into_inner()],
        });
        let plane = floats(&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
        let both = sized(vec![
            ("image/object/mask", Some(file)),
            ("image/detection/mask", Some(plane)),
        ]);
        let found = sample(&both, asked).unwrap().unwrap();
        let (truth, seen) = (&found.groundtruth.masks[0], &found.detections.masks[0]);
        assert_eq!((truth.area(), seen.area(), truth.intersection(seen)), (2, 3, 2));
        assert!(
            sample(&both, Asked::default())
                .unwrap()
                .unwrap()
                .groundtruth
                .masks
                .is_empty()
        );
        let short = sized(vec![("image/object/mask", Some(floats(&[1.0; 7])))]);
        let error = sample(&short, asked).unwrap_err();
        assert!(
            error.contains("image/object/mask: 7 values\nhint: 1 masks of 4 x 2 pixels"),
            "{error}"
        );
    }
}
