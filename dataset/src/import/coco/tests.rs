use std::fs;

use coati_common::tfrecord::Reader;

use super::*;
use crate::example::wire::Features;

/// 34 x 21 pixels.
const IMAGE: &str = "rgb.png";

const OBJECTS: &str = r#"{
  "images": [{"id": 7, "file_name": "a/one.png", "width": 34, "height": 21}, {"id": "x", "file_name": "two.png"}],
  "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 90, "name": "dog"}],
  "annotations": [
    {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 3, 10, 5], "area": 31.5, "iscrowd": 0,
     "segmentation": [[2, 3, 12, 3, 12, 8, 2, 8], [20, 10, 22, 10, 22, 12, 20, 12]]},
    {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 2, 2], "iscrowd": 1,
     "segmentation": {"counts": [0, 2, 19, 2, 691], "size": [21, 34]}},
    {"id": 3, "image_id": 7, "category_id": 3, "bbox": [1, 1, 0, 5], "iscrowd": 0, "segmentation": []},
    {"id": 4, "image_id": 7, "category_id": 3, "bbox": [30, 1, 10, 5], "iscrowd": 0, "segmentation": []}
  ]}"#;

const CAPTIONS: &str = r#"{"images": [{"id": 7, "file_name": "a/one.png"}],
  "annotations": [{"id": 1, "image_id": 7, "caption": "a dog"}, {"id": 2, "image_id": 7, "caption": "no cat"}]}"#;

fn options(folder: &Path) -> Options {
    fs::create_dir_all(folder.join("images/a")).unwrap();
    for name in ["a/one.png", "two.png"] {
        fs::write(folder.join("images").join(name), crate::testing::image(IMAGE)).unwrap();
    }
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap();
        Some(folder.join(name))
    };
    Options {
        image_dir: folder.join("images"),
        image_info_file: None,
        object_annotations_file: write("objects.json", OBJECTS),
        caption_annotations_file: write("captions.json", CAPTIONS),
        masks: Some(MaskType::Png),
        output: Output::to(folder.join("out.record")),
    }
}

fn records(path: &Path) -> Vec<Vec<u8>> {
    Reader::open(path).unwrap().map(Result::unwrap).collect()
}

#[test]
fn boxes_masks_crowds_areas_and_captions() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let report = import(&options, &|_, _| {}).unwrap();
    assert_eq!((report.images, report.images_without_boxes), (2, 1));
    assert_eq!(report.boxes, [("cat".to_owned(), 1), ("dog".to_owned(), 1)]);
    assert_eq!(report.boxes_left_out[NO_AREA], 1);
    assert_eq!(report.boxes_left_out[OUTSIDE], 1);
    assert!(
        report
            .warnings
            .iter()
            .any(|text| text.contains("annotation 4 of image 7: `cat` left out")),
        "{:?}",
        report.warnings
    );

    let all = records(&options.output.path);
    let record = all.iter().find(|record| {
        Features::parse(record)
            .unwrap()
            .text("image/source_id")
            .unwrap()
            .unwrap()
            == "7"
    });
    let features = Features::parse(record.unwrap()).unwrap();
    assert_eq!(features.text("image/filename").unwrap().unwrap(), "a/one.png");
    assert_eq!(features.ints("image/object/class/label").unwrap(), [90, 3]);
    assert_eq!(
        features.bytes("image/object/class/text").unwrap(),
        [&b"dog"[..], b"cat"]
    );
    assert_eq!(features.ints("image/object/is_crowd").unwrap(), [0, 1]);
    assert_eq!(features.floats("image/object/area").unwrap(), [31.5, 4.0]);
    assert_eq!(
        features.floats("image/object/bbox/xmax").unwrap(),
        [12.0 / 34.0, 2.0 / 34.0]
    );
    assert_eq!(features.bytes("image/caption").unwrap(), [&b"a dog"[..], b"no cat"]);

    let masks: Vec<image::GrayImage> = features
        .bytes("image/object/mask")
        .unwrap()
        .into_iter()
        .map(|png| image::load_from_memory(png).unwrap().into_luma8())
        .collect();
    assert!(masks.iter().all(|mask| mask.dimensions() == (34, 21)));
    let on = |mask: &image::GrayImage| mask.pixels().map(|pixel| u32::from(pixel.0[0])).sum::<u32>();
    assert_eq!((on(&masks[0]), on(&masks[1])), (10 * 5 + 2 * 2, 4));
    assert_eq!((masks[0].get_pixel(2, 3).0, masks[0].get_pixel(12, 3).0), ([1], [0]));
    // Run lengths go down columns.
    assert_eq!((masks[1].get_pixel(0, 1).0, masks[1].get_pixel(1, 0).0), ([1], [1]));
}

#[test]
fn run_lengths_come_out_as_they_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let packed = hotcoco::mask::rle_to_string(&hotcoco::types::Rle {
        h: 21,
        w: 34,
        counts: vec![0, 2, 19, 2, 691],
    });
    let text = OBJECTS.replace("[0, 2, 19, 2, 691]", &format!("{packed:?}"));
    let options = Options {
        masks: Some(MaskType::Rle),
        ..options(folder.path())
    };
    fs::write(folder.path().join("objects.json"), text).unwrap();
    import(&options, &|_, _| {}).unwrap();
    let found = records(&options.output.path).iter().any(|record| {
        let features = Features::parse(record).unwrap();
        features
            .bytes("image/object/mask")
            .unwrap()
            .contains(&packed.as_bytes())
    });
    assert!(found);
}

#[test]
fn what_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let error = |text: &str| {
        fs::write(folder.path().join("objects.json"), text).unwrap();
        import(&options, &|_, _| {}).unwrap_err().to_string()
    };
    let cut = error(&OBJECTS[..400]);
    assert!(cut.contains("objects.json:") && cut.contains("EOF"), "{cut}");
    let class = error(&OBJECTS.replace("\"category_id\": 90", "\"category_id\": 91"));
    assert!(
        class.contains("annotation 1 of image 7: category_id 91 is not among"),
        "{class}"
    );
    let background = error(&OBJECTS.replace("\"id\": 3, \"name\"", "\"id\": 0, \"name\""));
    assert!(
        background.contains("\"cat\" has the id 0") && background.contains("hint: ids start at 1"),
        "{background}"
    );
    let bbox = error(&OBJECTS.replace("[2, 3, 10, 5]", "[2, 3]"));
    assert!(
        bbox.contains("annotation 1 of image 7: has no bbox of four numbers"),
        "{bbox}"
    );
    // Runs that are more than the image do not make a mask.
    fs::write(folder.path().join("objects.json"), OBJECTS.replace("691", "4000000000")).unwrap();
    let report = import(&options, &|_, _| {}).unwrap();
    assert_eq!(report.boxes_left_out["no mask"], 1);
}
