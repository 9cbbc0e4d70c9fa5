//! Records of any bytes: an error or a record, no panic, and no more memory than the file justifies.

use std::fs;

use coati_common::tfrecord::{IndexedFile, Reader, Writer, index_path};
use coati_dataset::example::{self, Classes, wire::Features};
use coati_proto::tensorflow::{self as tf, feature::Kind};
use proptest::prelude::*;
use prost::Message as _;

fn framed(records: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for record in records {
        writer.write(record).unwrap();
    }
    writer.into_inner()
}

fn packed(bytes: &[u8], zlib: bool) -> Vec<u8> {
    use std::io::Write as _;
    let level = flate2::Compression::fast();
    if zlib {
        let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), level);
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    } else {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), level);
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    }
}

/// Reads a file in both ways, which agree on what is good.
fn read_file(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.record");
    fs::write(&path, bytes).unwrap();
    let sequential: Vec<_> = Reader::open(&path).unwrap().collect();
    let indexed = IndexedFile::open(&path);
    if let Ok(file) = &indexed {
        assert_eq!(sequential.len(), file.len());
        for (index, found) in sequential.iter().enumerate() {
            let at_random = file.read(index).unwrap();
            assert_eq!(found.as_ref().ok(), at_random.as_ref().ok(), "record {index}");
        }
    } else {
        let last = sequential.last().map(Result::is_err);
        assert_eq!(last, Some(true), "{indexed:?}");
    }
}

fn decode(record: &[u8]) {
    for strict in [false, true] {
        let options = example::Options {
            classes: Classes::new([(1, "cat", ""), (2, "dog", "hound")]),
            strict,
        };
        let _ = example::decode(record, &options);
    }
    if let Ok(features) = Features::parse(record) {
        let names: Vec<&str> = features.names().collect();
        for name in names {
            let _ = (
                features.bytes(name),
                features.text(name),
                features.floats(name),
                features.ints(name),
            );
        }
    }
}

const NAMES: [&str; 8] = [
    "image/encoded",
    "image/height",
    "image/object/bbox/ymin",
    "image/object/bbox/xmax",
    "image/object/class/label",
    "image/object/class/text",
    "image/object/is_crowd",
    "image/source_id",
];

fn kind() -> impl Strategy<Value = Option<Kind>> {
    let bytes = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..4);
    prop_oneof![
        Just(None),
        bytes.prop_map(|value| Some(Kind::BytesList(tf::BytesList { value }))),
        prop::collection::vec(any::<f32>(), 0..4).prop_map(|value| Some(Kind::FloatList(tf::FloatList { value }))),
        prop::collection::vec(any::<i64>(), 0..4).prop_map(|value| Some(Kind::Int64List(tf::Int64List { value }))),
    ]
}

fn an_example() -> impl Strategy<Value = Vec<u8>> {
    let features = prop::collection::hash_map(prop::sample::select(&NAMES[..]), kind(), 0..8);
    features.prop_map(|features| {
        let feature = features
            .into_iter()
            .map(|(name, kind)| (name.to_owned(), tf::Feature { kind }));
        tf::Example {
            features: Some(tf::Features {
                feature: feature.collect(),
            }),
        }
        .encode_to_vec()
    })
}

type Changes = Vec<(prop::sample::Index, u8)>;

fn changes() -> impl Strategy<Value = Changes> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)
}

fn change(bytes: &mut [u8], changes: Changes) {
    if !bytes.is_empty() {
        for (at, byte) in changes {
            bytes[at.index(bytes.len())] = byte;
        }
    }
}

/// Annotations of every format, each as its files are.
const ANNOTATIONS: [(&str, &str); 5] = [
    (
        "a.xml",
        "<annotation><filename>a.png</filename><size><width>4</width><height>4</height></size><object><name>cat</name>\
         <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></object></annotation>",
    ),
    (
        "t.csv",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,4,4,cat,1,1,3,3\na.png,4,4,\"big dog\",0,0,2,2\n",
    ),
    (
        "c.json",
        r#"{"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat"}], "annotations":
        [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "segmentation": {"counts": [0, 2, 14], "size": [4, 4]}},
         {"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "segmentation": [[1, 1, 3, 1, 3, 3]]}]}"#,
    ),
    (
        "o.csv",
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,0.1,0.5,0.2,0.6,1\na,cat,,,,,\n",
    ),
    (
        "training/label_2/000000.txt",
        "cat 0.1 0 -1.5 1 1 3 3 1 1 1 1 1 1 0\ndontcare -1 -1 -10 2 2 4 4 -1 -1 -1 -1 -1 -1 -10\n",
    ),
];

/// Imports the annotations of one format beside an image of 4 x 4 pixels; an error or records.
fn import_any(which: usize, content: &[u8]) {
    use coati_dataset::import::{Output, coco, csv, kitti, masks::MaskType, oid, voc};
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("training/label_2")).unwrap();
    fs::create_dir_all(at("training/image_2")).unwrap();
    let picture = image::RgbImage::new(4, 4);
    for name in ["a.png", "training/image_2/000000.png"] {
        picture.save(at(name)).unwrap();
    }
    picture.save(at("a.jpg")).unwrap();
    fs::write(at(ANNOTATIONS[which].0), content).unwrap();
    let map = "item { id: 1 name: 'cat' } item { id: 2 name: 'big dog' }";
    let labels = coati_common::label_map::LabelMap::parse(map, "map").unwrap();
    let (output, silent) = (Output::to(at("out.record")), |_: usize, _: usize| {});
    let data_dir = folder.path().to_owned();
    let done = match which {
        0 => {
            let options = voc::Options {
                data_dir,
                year: None,
                set: None,
                annotations_dir: None,
                ignore_difficult_instances: false,
                output,
            };
            voc::import(&options, &labels, &silent).map(|report| report.images)
        }
        1 => {
            let options = csv::Options {
                csv_input: at("t.csv"),
                image_dir: data_dir,
                output,
            };
            csv::import(&options, &labels, &silent).map(|report| report.images)
        }
        2 => {
            let options = coco::Options {
                image_dir: data_dir,
                image_info_file: None,
                object_annotations_file: Some(at("c.json")),
                caption_annotations_file: None,
                masks: Some(MaskType::Png),
                output,
            };
            coco::import(&options, &silent).map(|report| report.images)
        }
        3 => {
            let options = oid::Options {
                box_annotations_csv: at("o.csv"),
                image_label_annotations_csv: None,
                images_directory: data_dir,
                output,
            };
            oid::import(&options, &labels, &silent).map(|report| report.images)
        }
        _ => {
            let options = kitti::Options {
                data_dir,
                classes_to_use: vec!["cat".to_owned()],
                validation_set_size: 0,
                output,
            };
            kitti::import(&options, &labels, &silent).map(|sets| sets.len())
        }
    };
    match done {
        Ok(images) => assert!(images > 0),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("hint:") || text.contains("MiB"), "{text}");
            assert!(!at("out.record").exists());
        }
    }
}

#[test]
fn annotations_as_they_should_be_are_imported() {
    for (which, (name, content)) in ANNOTATIONS.iter().enumerate() {
        import_any(which, content.as_bytes());
        assert!(!content.is_empty(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn annotations_with_changed_bytes(which in 0..ANNOTATIONS.len(), changes in changes(), cut in 0_usize..30) {
        let mut bytes = ANNOTATIONS[which].1.as_bytes().to_vec();
        change(&mut bytes, changes);
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        import_any(which, &bytes);
    }

    #[test]
    fn annotations_of_any_bytes(which in 0..ANNOTATIONS.len(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        import_any(which, &bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn packed_files_with_changed_bytes(
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5),
        changes in changes(),
        cut in 0_usize..10,
        zlib: bool,
    ) {
        let mut bytes = packed(&framed(&records), zlib);
        change(&mut bytes, changes);
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.record");
        fs::write(&path, &bytes).unwrap();
        let good = Reader::open(&path).unwrap().take_while(Result::is_ok).count();
        if let Ok(file) = IndexedFile::open(&path) {
            prop_assert_eq!(file.len(), good);
        }
    }

    #[test]
    fn records_of_any_features_are_validated(record in an_example(), changes in changes()) {
        use coati_dataset::validate::check;
        let mut record = record;
        change(&mut record, changes);
        let classes = Classes::new([(1, "cat", ""), (2, "dog", "hound")]);
        let first = check(&record, Some(&classes));
        if let Some(repaired) = first.repaired {
            // What was repaired needs no second repair.
            prop_assert!(check(&repaired, Some(&classes)).repaired.is_none());
        }
    }

    #[test]
    fn files_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_file(&bytes);
    }

    #[test]
    fn files_with_changed_bytes(
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5),
        changes in changes(),
        cut in 0usize..20,
    ) {
        let mut bytes = framed(&records);
        change(&mut bytes, changes);
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        read_file(&bytes);
    }

    /// A kept index of any content beside a good file: the records are the file's.
    #[test]
    fn kept_indexes_of_any_content(
        index in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..100),
            prop::collection::vec(any::<u8>(), 0..100).prop_map(|bytes| framed(&[bytes])),
        ],
        changes in changes(),
        mine: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.record");
        let records: Vec<Vec<u8>> = (0u8..9).map(|n| vec![n; usize::from(n) * 3]).collect();
        fs::write(&path, framed(&records)).unwrap();
        let kept = index_path(folder.path(), &path);
        if mine {
            IndexedFile::open(&path).unwrap().keep(folder.path());
            let mut bytes = fs::read(&kept).unwrap();
            change(&mut bytes, changes);
            fs::write(&kept, bytes).unwrap();
        } else {
            fs::write(&kept, index).unwrap();
        }
        let file = IndexedFile::open_kept(&path, folder.path()).unwrap();
        prop_assert_eq!(file.len(), records.len());
        for (index, record) in records.iter().enumerate() {
            prop_assert_eq!(&file.read(index).unwrap().unwrap(), record);
        }
    }

    #[test]
    fn examples_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode(&bytes);
    }

    #[test]
    fn examples_of_any_features(record in an_example(), changes in changes()) {
        let mut record = record;
        decode(&record);
        change(&mut record, changes);
        decode(&record);
    }
}
