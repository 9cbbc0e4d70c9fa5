use std::collections::HashMap;
use std::fs;

use coati_common::tfrecord::Reader;
use coati_proto::tensorflow::{Example, Feature};
use prost::Message as _;

use super::*;

fn labels() -> LabelMap {
    LabelMap::parse(
        "item { id: 1 name: 'RBC' } item { id: 2 name: 'WBC' } item { id: 3 name: 'Platelets' }",
        "map",
    )
    .unwrap()
}

fn options(data_dir: &Path, out: &Path) -> Options {
    Options {
        data_dir: data_dir.to_owned(),
        year: None,
        set: None,
        annotations_dir: None,
        ignore_difficult_instances: false,
        output: Output {
            seed: 1,
            max_skipped: 2,
            ..Output::to(out.join("t.record"))
        },
    }
}

fn read(files: &[PathBuf]) -> HashMap<String, HashMap<String, Feature>> {
    let mut records = HashMap::new();
    for file in files {
        let mut reader = Reader::open(file).unwrap();
        let mut data = Vec::new();
        while reader.read_into(&mut data).unwrap() {
            let features = Example::decode(data.as_slice()).unwrap().features.unwrap().feature;
            let name = format!("{:?}", features["image/filename"]);
            records.insert(name, features);
        }
    }
    records
}

/// A flat folder with one PNG and its XML; `bounds` are xmin, ymin, xmax, ymax.
fn folder(objects: &[(&str, [i32; 4])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    image::RgbImage::new(40, 20).save(folder.path().join("a.png")).unwrap();
    let objects: String = objects
        .iter()
        .map(|(name, [xmin, ymin, xmax, ymax])| {
            format!("<object><name>{name}</name>\n<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>\n")
        })
        .collect();
    fs::write(
        folder.path().join("a.xml"),
        format!("<annotation>\n<filename>a.png</filename>\n{objects}</annotation>"),
    )
    .unwrap();
    folder
}

#[test]
fn equals_the_records_of_the_reference() {
    let shared = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    if !shared.join("golden").is_dir() {
        println!("skipped: no recorded data beside the checkout");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let bccd = shared.join("data/bccd");
    for (set, files, count) in [
        ("test", vec!["test.record".to_owned()], 72),
        (
            "trainval",
            (0..3).map(|i| format!("train.record-{i:05}-of-00003")).collect(),
            292,
        ),
    ] {
        let options = Options {
            set: Some(set.to_owned()),
            output: Output {
                num_shards: Some(2),
                ..Output::to(out.path().join("t.record"))
            },
            ..options(&bccd, out.path())
        };
        let report = import(&options, &labels(), &|_, _| {}).unwrap();
        assert_eq!((report.images, report.skipped_images.len()), (count, 0));
        let ours = read(&report.files);
        let theirs: Vec<PathBuf> = files
            .iter()
            .map(|file| shared.join("golden/bccd_tfrecord").join(file))
            .collect();
        let theirs = read(&theirs);
        assert_eq!(ours.len(), theirs.len());
        assert_eq!(ours.len(), count);
        for (name, theirs) in theirs {
            for (field, value) in &theirs {
                assert_eq!(ours[&name].get(field), Some(value), "{name} {field}");
            }
        }
        if set == "trainval" {
            assert_eq!(
                report.boxes,
                [("RBC".into(), 3348), ("WBC".into(), 301), ("Platelets".into(), 292)]
            );
            let degenerate = report
                .warnings
                .iter()
                .filter(|warning| warning.contains("has no area"))
                .count();
            assert_eq!(degenerate, 2, "{:?}", report.warnings);
        }
    }
}

#[test]
fn boxes_beyond_the_image_are_cut_inverted_ones_left_out() {
    let folder = folder(&[
        ("RBC", [-5, 2, 20, 25]),
        ("WBC", [10, 10, 5, 15]),
        ("RBC", [50, 0, 60, 10]),
    ]);
    let out = tempfile::tempdir().unwrap();
    let report = import(&options(folder.path(), out.path()), &labels(), &|_, _| {}).unwrap();
    assert_eq!(report.boxes[0], ("RBC".into(), 1));
    let text = report.warnings.join("\n");
    assert!(text.contains("a.xml:3: `RBC` cut to the 40x20 image"), "{text}");
    assert!(text.contains("a.xml:5: `WBC` left out: its box has no area"), "{text}");
    assert!(
        text.contains("a.xml:7: `RBC` left out") && text.contains("outside the 40x20 image"),
        "{text}"
    );
}

#[test]
fn an_unknown_class_stops_with_its_place_and_leaves_nothing() {
    let folder = folder(&[("cell", [1, 1, 5, 5])]);
    let out = tempfile::tempdir().unwrap();
    let error = import(&options(folder.path(), out.path()), &labels(), &|_, _| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a.xml:3: class `cell` is not in the label map"),
        "{error}"
    );
    assert!(error.contains("hint: the label map has RBC, WBC, Platelets"), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn an_image_that_does_not_decode_is_skipped_and_said() {
    let folder = folder(&[("RBC", [1, 1, 5, 5])]);
    fs::copy(folder.path().join("a.xml"), folder.path().join("b.xml")).unwrap();
    let xml = fs::read_to_string(folder.path().join("b.xml"))
        .unwrap()
        .replace("a.png", "b.jpg");
    fs::write(folder.path().join("b.xml"), xml).unwrap();
    fs::write(folder.path().join("b.jpg"), b"\xff\xd8\xff\xe0 cut").unwrap();
    let out = tempfile::tempdir().unwrap();
    let report = import(&options(folder.path(), out.path()), &labels(), &|_, _| {}).unwrap();
    assert_eq!(report.images, 1);
    assert!(
        report.skipped_images[0].contains("b.jpg"),
        "{:?}",
        report.skipped_images
    );
    let strict = Options {
        output: Output {
            max_skipped: 0,
            ..Output::to(out.path().join("t.record"))
        },
        ..options(folder.path(), out.path())
    };
    assert!(matches!(
        import(&strict, &labels(), &|_, _| {}),
        Err(Error::TooManySkipped { .. })
    ));
}

#[test]
fn a_missing_set_names_those_that_are_there() {
    let folder = folder(&[("RBC", [1, 1, 5, 5])]);
    fs::create_dir_all(folder.path().join("ImageSets/Main")).unwrap();
    fs::write(folder.path().join("ImageSets/Main/train.txt"), "a 1\n").unwrap();
    let out = tempfile::tempdir().unwrap();
    let options = Options {
        set: Some("val".to_owned()),
        ..options(folder.path(), out.path())
    };
    let error = import(&options, &labels(), &|_, _| {}).unwrap_err().to_string();
    assert!(
        error.contains("no image set `val`") && error.contains("sets here: train"),
        "{error}"
    );
    let train = Options {
        set: Some("train".to_owned()),
        ..options
    };
    assert_eq!(import(&train, &labels(), &|_, _| {}).unwrap().images, 1);
}

#[test]
fn hostile_xml_is_refused_and_deep_xml_is_read() {
    let folder = folder(&[("RBC", [1, 1, 5, 5])]);
    let out = tempfile::tempdir().unwrap();
    let error = |text: &str| {
        fs::write(folder.path().join("a.xml"), text).unwrap();
        import(&options(folder.path(), out.path()), &labels(), &|_, _| {})
            .unwrap_err()
            .to_string()
    };
    let laughs =
        "<?xml version='1.0'?>\n<!DOCTYPE a [<!ENTITY b 'ha'><!ENTITY c '&b;&b;&b;'>]>\n<annotation>&c;</annotation>";
    let refused = error(laughs);
    assert!(
        refused.contains("a.xml:2: a document type") && refused.contains("hint:"),
        "{refused}"
    );
    let file = error("<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><annotation>&b;</annotation>");
    assert!(file.contains("a document type"), "{file}");
    let deep = format!(
        "<annotation>{}{}</annotation>",
        "<a>".repeat(200_000),
        "</a>".repeat(200_000)
    );
    fs::write(folder.path().join("a.xml"), deep).unwrap();
    // Whether it is read or refused, it ends.
    match import(&options(folder.path(), out.path()), &labels(), &|_, _| {}) {
        Ok(report) => assert_eq!(report.images_without_boxes, 1),
        Err(error) => assert!(error.to_string().contains("a.xml"), "{error}"),
    }
}

#[test]
fn both_years_are_merged_and_lists_of_classes_do() {
    let root = tempfile::tempdir().unwrap();
    for (year, name) in [("VOC2007", "one"), ("VOC2012", "two")] {
        let at = |path: &str| root.path().join(year).join(path);
        for path in ["Annotations", "JPEGImages", "ImageSets/Main"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        let object = "<object><name>RBC</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>";
        let xml = format!("<annotation><folder>{year}</folder><filename>{name}.v1.png</filename>{object}</annotation>");
        fs::write(at(&format!("Annotations/{name}.v1.xml")), xml).unwrap();
        image::RgbImage::new(40, 20)
            .save(at(&format!("JPEGImages/{name}.v1.png")))
            .unwrap();
        // As VoTT lists them: by class, with the image's ending.
        fs::write(at("ImageSets/Main/RBC_train.txt"), format!("{name}.v1.png 1\n")).unwrap();
        fs::write(at("ImageSets/Main/WBC_train.txt"), format!("{name}.v1.png -1\n")).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let merged = Options {
        year: Some("merged".to_owned()),
        set: Some("train".to_owned()),
        ..options(root.path(), out.path())
    };
    let report = import(&merged, &labels(), &|_, _| {}).unwrap();
    assert_eq!((report.images, report.boxes[0].1), (2, 2));
    assert_eq!(
        report.image_sizes,
        [crate::import::Size {
            width: 40,
            height: 20,
            images: 2
        }]
    );
    let single = Options {
        year: Some("VOC2012".to_owned()),
        ..merged
    };
    assert_eq!(import(&single, &labels(), &|_, _| {}).unwrap().images, 1);
}

#[test]
fn the_seed_alone_decides_the_order() {
    let root = tempfile::tempdir().unwrap();
    for index in 0..200 {
        let name = format!("{index}");
        image::RgbImage::from_pixel(2, 2, image::Rgb([index as u8; 3]))
            .save(root.path().join(format!("{name}.png")))
            .unwrap();
        fs::write(
            root.path().join(format!("{name}.xml")),
            format!("<annotation><filename>{name}.png</filename></annotation>"),
        )
        .unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let bytes = |seed| {
        let options = Options {
            output: Output {
                seed,
                num_shards: Some(3),
                ..Output::to(out.path().join("s.record"))
            },
            ..options(root.path(), out.path())
        };
        let files = import(&options, &labels(), &|_, _| {}).unwrap().files;
        assert!(files[2].ends_with("s.record-00002-of-00003"), "{files:?}");
        files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(bytes(5), bytes(5));
    assert_ne!(bytes(5), bytes(6));
}
