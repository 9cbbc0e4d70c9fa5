use std::fs;

use coati_common::tfrecord::Reader;

use super::*;
use crate::example::wire::Features;

const BOXES: &str = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n\
    0a,xclick,/m/01,1,0.1,0.5,0.2,0.75,1,0,0,0,0\n\
    0a,xclick,/m/02,1,0.25,1,0,0.5,0,1,1,-1,0\n\
    0a,xclick,/m/99,1,0.1,0.5,0.2,0.75,0,0,0,0,0\n\
    0a,xclick,/m/01,1,0.5,0.5,0.2,0.75,0,0,0,0,0\n\
    ff,xclick,/m/01,1,0.1,0.5,0.2,0.75,0,0,0,0,0\n";
const LABELS: &str =
    "ImageID,Source,LabelName,Confidence\n0a,verification,/m/02,1\n0b,verification,/m/01,0\n0b,verification,/m/77,1\n";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("images")).unwrap();
    for name in ["0a", "0b"] {
        fs::write(
            folder.path().join(format!("images/{name}.jpg")),
            crate::testing::image("rgb420.jpg"),
        )
        .unwrap();
    }
    fs::write(folder.path().join("boxes.csv"), BOXES).unwrap();
    fs::write(folder.path().join("labels.csv"), LABELS).unwrap();
    folder
}

fn labels() -> LabelMap {
    LabelMap::parse(
        "item { id: 5 name: '/m/01' display_name: 'Cat' } item { id: 6 name: '/m/02' }",
        "map",
    )
    .unwrap()
}

#[test]
fn every_image_of_the_folder_has_a_record_with_its_flags_and_labels() {
    let folder = folder();
    let options = Options {
        box_annotations_csv: folder.path().join("boxes.csv"),
        image_label_annotations_csv: Some(folder.path().join("labels.csv")),
        images_directory: folder.path().join("images"),
        output: Output::to(folder.path().join("out.record")),
    };
    let report = import(&options, &labels(), &|_, _| {}).unwrap();
    assert_eq!((report.images, report.images_without_boxes), (2, 1));
    assert_eq!(report.boxes, [("/m/01".to_owned(), 1), ("/m/02".to_owned(), 1)]);
    assert_eq!(report.boxes_left_out["label not in the map"], 2);
    assert_eq!(report.boxes_left_out[NO_AREA], 1);
    assert!(
        report
            .warnings
            .iter()
            .any(|text| text.contains("1 rows are of images that are not in")),
        "{:?}",
        report.warnings
    );

    let records: Vec<Vec<u8>> = Reader::open(&options.output.path)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for record in records {
        let features = Features::parse(&record).unwrap();
        let ints = |name: &str| features.ints(name).unwrap();
        let floats = |name: &str| features.floats(name).unwrap();
        if features.text("image/source_id").unwrap().unwrap() == "0a" {
            assert_eq!(features.text("image/filename").unwrap().unwrap(), "0a.jpg");
            assert_eq!(floats("image/object/bbox/xmin"), [0.1, 0.25]);
            assert_eq!(floats("image/object/bbox/ymax"), [0.75, 0.5]);
            assert_eq!(ints("image/object/class/label"), [5, 6]);
            assert_eq!(ints("image/object/occluded"), [1, 0]);
            assert_eq!(ints("image/object/truncated"), [0, 1]);
            assert_eq!(ints("image/object/group_of"), [0, 1]);
            assert_eq!(ints("image/object/depiction"), [0, -1]);
            assert_eq!(ints("image/class/label"), [6]);
            assert_eq!(features.bytes("image/class/text").unwrap(), [b"/m/02"]);
            assert_eq!(floats("image/class/confidence"), [1.0]);
        } else {
            assert!(ints("image/object/class/label").is_empty());
            assert_eq!(ints("image/class/label"), [5]);
            assert_eq!(floats("image/class/confidence"), [0.0]);
        }
    }
}

#[test]
fn a_table_without_a_column_says_which() {
    let folder = folder();
    let options = Options {
        box_annotations_csv: folder.path().join("labels.csv"),
        image_label_annotations_csv: None,
        images_directory: folder.path().join("images"),
        output: Output::to(folder.path().join("out.record")),
    };
    let error = import(&options, &labels(), &|_, _| {}).unwrap_err().to_string();
    assert!(error.contains("labels.csv:1: there is no column `YMin`"), "{error}");
}
