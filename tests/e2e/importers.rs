//! `coati data import FORMAT` and what goes with it, judged by TensorFlow's own parser where it is there.

use std::collections::BTreeMap;
use std::fs;

use coati_tests::{Job, judge, records, shared};
use serde_json::{Value, json};

const LABELS: &str = "shapes/label_map.pbtxt";

/// Objects of the made-up training set, by image: class and `[xmin, ymin, xmax, ymax]` in pixels of 96 x 96 images.
fn table(job: &Job) -> BTreeMap<String, Vec<(String, [f64; 4])>> {
    let _ = job
        .coati("data to-csv shapes --set train --csv_output train.csv".split(' '))
        .run()
        .exits(0);
    let mut images: BTreeMap<String, Vec<(String, [f64; 4])>> = BTreeMap::new();
    for line in job.read("train.csv").lines().skip(1) {
        let words: Vec<&str> = line.split(',').collect();
        let sides = [4, 5, 6, 7].map(|column: usize| words[column].parse().unwrap());
        images
            .entry(words[0].to_owned())
            .or_default()
            .push((words[3].to_owned(), sides));
    }
    assert_eq!(images.len(), 48);
    images
}

/// Records as TensorFlow parses them, by file name without its folder.
fn parsed(job: &Job, truncated: &str, files: &[&str]) -> Option<BTreeMap<String, Value>> {
    let mut arguments = vec![truncated.to_owned()];
    arguments.extend(files.iter().map(|file| job.path(file).display().to_string()));
    let all = judge("parse_records.py", &arguments)?;
    let name = |record: &Value| {
        record["image/filename"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
            .to_owned()
    };
    Some(
        all.as_array()
            .unwrap()
            .iter()
            .map(|record| (name(record), record.clone()))
            .collect(),
    )
}

fn assert_boxes(record: &Value, objects: &[(String, [f64; 4])], what: &str) {
    for (side, column) in [("xmin", 0), ("ymin", 1), ("xmax", 2), ("ymax", 3)] {
        let found = record[format!("image/object/bbox/{side}")].as_array().unwrap();
        let expected: Vec<f32> = objects.iter().map(|(_, sides)| (sides[column] / 96.0) as f32).collect();
        let found: Vec<f32> = found.iter().map(|value| value.as_f64().unwrap() as f32).collect();
        assert_eq!(found, expected, "{what} {side}");
    }
    let classes: Vec<&str> = objects.iter().map(|(class, _)| class.as_str()).collect();
    assert_eq!(record["image/object/class/text"], json!(classes), "{what}");
    assert_eq!(record["shape"], json!([96, 96, 3]), "{what}");
    assert_eq!(
        json!([record["image/height"], record["image/width"]]),
        json!([96, 96]),
        "{what}"
    );
}

#[test]
fn tensorflow_parses_pascal_voc_and_tables_alike() {
    let job = Job::light();
    let images = table(&job);
    let import = format!(
        "data import csv --csv_input train.csv --image_dir shapes/JPEGImages --label_map_path {LABELS} --output_path csv.record --num_shards 2 --format json"
    );
    let report = job.coati(import.split(' ')).run().exits(0).json();
    assert_eq!(
        json!([report["images"], report["files"]]),
        json!([48, ["csv.record-00000-of-00002", "csv.record-00001-of-00002"]])
    );
    assert_eq!(
        report["image_sizes"],
        json!([{"width": 96, "height": 96, "images": 48}])
    );
    let again = "data to-csv csv.record@2 --csv_output again.csv";
    let _ = job.coati(again.split(' ')).run().exits(0);
    let sorted = |name: &str| {
        let mut lines: Vec<String> = job.read(name).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted("train.csv"), sorted("again.csv"));

    let shards = [
        "train.record-00000-of-00003",
        "train.record-00001-of-00003",
        "train.record-00002-of-00003",
    ];
    let Some(voc) = parsed(&job, "int", &shards) else {
        return;
    };
    let csv = parsed(&job, "int", &["csv.record-00000-of-00002", "csv.record-00001-of-00002"]).unwrap();
    assert_eq!((voc.len(), csv.len()), (48, 48));
    for (name, objects) in &images {
        assert_boxes(&voc[name], objects, name);
        assert_boxes(&csv[name], objects, name);
        assert_eq!(voc[name]["image/object/difficult"], json!(vec![0; objects.len()]));
        assert_eq!(
            voc[name]["image/object/view"],
            json!(vec!["Unspecified"; objects.len()])
        );
        for field in [
            "image/key/sha256",
            "image/format",
            "image/source_id",
            "bytes",
            "image/object/class/label",
        ] {
            assert_eq!(voc[name][field], csv[name][field], "{name} {field}");
        }
        let file = fs::metadata(job.path("shapes/JPEGImages").join(name)).unwrap();
        assert_eq!(voc[name]["bytes"], json!(file.len()), "images are copied unchanged");
    }
}

#[test]
fn tensorflow_and_pycocotools_agree_on_coco() {
    let job = Job::light();
    let images = table(&job);
    let ids = BTreeMap::from([("circle", 1), ("square", 4), ("triangle", 90)]);
    let (mut list, mut annotations) = (Vec::new(), Vec::new());
    for (id, (name, objects)) in (1..).zip(&images) {
        list.push(json!({"id": id, "file_name": name, "width": 96, "height": 96}));
        for (class, [xmin, ymin, xmax, ymax]) in objects {
            let number = annotations.len() + 1;
            let crowd = number % 5 == 0;
            let segmentation = if crowd {
                json!({"counts": [100, number % 40 + 1, 9216 - 101 - number % 40], "size": [96, 96]})
            } else {
                let middle = (xmin + xmax) / 2.0;
                json!([
                    [middle, ymin, xmax, ymax, xmin, ymax],
                    [xmin, ymin, middle + 0.3, ymin + 1.7, xmin + 0.2, ymin + 4.1]
                ])
            };
            annotations.push(json!({"id": number, "image_id": id, "category_id": ids[class.as_str()],
                "bbox": [xmin, ymin, xmax - xmin, ymax - ymin], "area": 7.5 * number as f64, "iscrowd": u8::from(crowd),
                "segmentation": segmentation}));
        }
    }
    let categories: Vec<Value> = ids.iter().map(|(name, id)| json!({"id": id, "name": name})).collect();
    let content = json!({"images": list, "annotations": annotations, "categories": categories});
    job.write("objects.json", content.to_string());
    let import = "data import coco --image_dir shapes/JPEGImages --object_annotations_file objects.json --include_masks --output_path coco.record --format json";
    let report = job.coati(import.split(' ')).run().exits(0).json();
    assert_eq!(json!([report["images"], report["boxes_left_out"]]), json!([48, {}]));
    let map = job
        .coati("data label-map objects.json --output_path coco.pbtxt".split(' '))
        .run()
        .exits(0);
    let _ = map.says(&["3 classes"]);
    assert!(job.read("coco.pbtxt").contains("id: 90"), "{}", job.read("coco.pbtxt"));

    let Some(found) = parsed(&job, "int", &["coco.record"]) else {
        return;
    };
    let areas = judge("coco_mask_areas.py", &[job.path("objects.json")]).unwrap();
    let mut number = 0;
    for (name, objects) in &images {
        let record = &found[name];
        assert_boxes(record, objects, name);
        let labels: Vec<i32> = objects.iter().map(|(class, _)| ids[class.as_str()]).collect();
        assert_eq!(record["image/object/class/label"], json!(labels));
        for index in 0..objects.len() {
            number += 1;
            let mask = &record["masks"][index];
            assert_eq!(mask["shape"], json!([96, 96]));
            assert_eq!(mask["area"], areas[number.to_string()], "annotation {number}");
            assert_eq!(record["image/object/area"][index], json!(7.5 * f64::from(number)));
            assert_eq!(record["image/object/is_crowd"][index], json!(u8::from(number % 5 == 0)));
        }
    }
}

#[test]
fn tensorflow_parses_kitti_and_open_images() {
    let job = Job::light();
    let images = table(&job);
    let at = |name: &str| job.path(name);
    for folder in [
        "kitti/training/label_2",
        "kitti/data_object_image_2/training/image_2",
        "oid",
    ] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    let mut boxes =
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction\n"
            .to_owned();
    let mut order = Vec::new();
    for (number, (name, objects)) in images.iter().take(6).enumerate() {
        let image = at("shapes/JPEGImages").join(name);
        let id = format!("{number:06}");
        fs::copy(
            &image,
            at(&format!("kitti/data_object_image_2/training/image_2/{id}.jpg")),
        )
        .unwrap();
        fs::copy(&image, at(&format!("oid/{id}.jpg"))).unwrap();
        let mut lines = String::new();
        for (class, [xmin, ymin, xmax, ymax]) in objects {
            lines += &format!(
                "{} 0.25 1 -1.5 {xmin} {ymin} {xmax} {ymax} 1 2 3 4 5 6 7\n",
                class.to_uppercase()
            );
            let [x, y, u, v] = [xmin, ymin, xmax, ymax].map(|side| side / 96.0);
            boxes += &format!("{id},xclick,{class},1,{x},{u},{y},{v},1,0,{},-1\n", number % 2);
        }
        fs::write(at(&format!("kitti/training/label_2/{id}.txt")), lines).unwrap();
        order.push((format!("{id}.jpg"), objects));
    }
    job.write("boxes.csv", boxes);
    let kitti = format!(
        "data import kitti --data_dir kitti --output_path kitti --classes_to_use circle,square,triangle,dontcare --validation_set_size 2 --label_map_path {LABELS} --format json"
    );
    let report = job.coati(kitti.split(' ')).run().exits(0).json();
    assert_eq!(
        json!([report["train"]["images"], report["val"]["images"]]),
        json!([4, 2])
    );
    let oid = format!(
        "data import oid --input_box_annotations_csv boxes.csv --input_images_directory oid --input_label_map {LABELS} --output_tf_record_path_prefix oid.record --num_shards 2"
    );
    let _ = job
        .coati(oid.split(' '))
        .run()
        .exits(0)
        .says(&["6 images in 2 file(s)"]);

    let Some(kitti) = parsed(&job, "float", &["kitti_train.tfrecord", "kitti_val.tfrecord"]) else {
        return;
    };
    let oid = parsed(&job, "int", &["oid.record-00000-of-00002", "oid.record-00001-of-00002"]).unwrap();
    for (number, (name, objects)) in order.iter().enumerate() {
        assert_boxes(&kitti[name], objects, name);
        assert_boxes(&oid[name], objects, name);
        assert_eq!(kitti[name]["image/object/truncated"], json!(vec![0.25; objects.len()]));
        assert_eq!(kitti[name]["image/object/difficult"], json!(vec![0; objects.len()]));
        assert_eq!(
            oid[name]["image/object/group_of"],
            json!(vec![number % 2; objects.len()])
        );
        assert_eq!(oid[name]["image/object/occluded"], json!(vec![1; objects.len()]));
        assert_eq!(oid[name]["image/object/depiction"], json!(vec![-1; objects.len()]));
        assert_eq!(oid[name]["image/source_id"], json!(name.trim_end_matches(".jpg")));
    }
}

#[test]
fn packed_records_of_tensorflow_are_read() {
    let job = Job::light();
    let paths = ["val.record", "val.gz", "val.zz"].map(|name| job.path(name));
    if judge("pack_records.py", &paths).is_none() {
        return;
    }
    let inspect = |name: &str| {
        let flags = format!("data inspect {name} --label_map_path {LABELS} --format json");
        job.coati(flags.split(' ')).run().exits(0).json()
    };
    let plain = inspect("val.record");
    for name in ["val.gz", "val.zz"] {
        let packed = inspect(name);
        for field in ["records", "boxes", "image_sizes", "bad", "box_sizes"] {
            assert_eq!(packed[field], plain[field], "{name} {field}");
        }
    }
}

#[test]
fn real_raccoons_come_in_by_xml_and_by_table() {
    let Some(raccoon) = shared("data/raccoon") else { return };
    let job = Job::light();
    let folder = raccoon.display();
    let _ = job
        .coati(format!("data label-map {folder} --output_path r.pbtxt").split(' '))
        .run()
        .exits(0);
    let xml =
        format!("data import voc --data_dir {folder} --label_map_path r.pbtxt --output_path xml.record --format json");
    let xml = job.coati(xml.split(' ')).run().exits(0).json();
    assert_eq!(
        json!([xml["images"], xml["boxes"], xml["skipped_images"]]),
        json!([200, {"raccoon": 217}, []])
    );
    let mut images = 0;
    for set in ["train", "test"] {
        let csv = format!(
            "data import csv --csv_input {folder}/data/{set}_labels.csv --image_dir {folder}/images --label_map_path r.pbtxt --output_path {set}_csv.record --format json"
        );
        images += job.coati(csv.split(' ')).run().exits(0).json()["images"]
            .as_u64()
            .unwrap();
    }
    assert_eq!(images, 200);
}

#[test]
fn a_split_has_every_class_on_both_sides_and_validation_finds_doubles() {
    let job = Job::light();
    let split = "data split train.record@3 --train_output_path a.record --eval_output_path b.record --eval_share 0.25 --seed 3 --format json";
    let report = job.coati(split.split(' ')).run().exits(0).json();
    assert_eq!(report["train"].as_u64().unwrap() + report["eval"].as_u64().unwrap(), 48);
    assert_eq!(report["one_sided"], json!([]));
    for (class, [train, eval]) in report["classes"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(class, sides)| (class, [&sides[0], &sides[1]]))
    {
        assert!(train.as_u64() > Some(0) && eval.as_u64() > Some(0), "{class}");
    }
    let good = format!("data validate a.record --eval_input_path b.record --label_map_path {LABELS} --format json");
    let good = job.coati(good.split(' ')).run().exits(0).json();
    assert_eq!(json!([good["records"], good["findings"]]), json!([48, []]));

    let mut bad = records::read(&job.path("b.record"));
    let first = records::read(&job.path("a.record")).remove(0);
    records::set_boxes(&mut bad[0], &[[0.6, 0.1, 0.2, 0.5]], "circle", 0);
    bad.push(first);
    records::write(&job.path("c.record"), &bad);
    let found = format!("data validate a.record --eval_input_path c.record --label_map_path {LABELS}");
    let _ = job.coati(found.split(' ')).run().exits(2).says(&["hint: --fix"]);
    let found_json = job
        .coati(format!("{found} --format json").split(' '))
        .run()
        .exits(2)
        .json();
    assert_eq!(
        found_json["counts"],
        json!({"box_inverted": 1, "image_in_two_sets": 1, "label_not_positive": 1})
    );
    let first = &found_json["findings"][0];
    assert_eq!(
        json!([first["file"], first["record"], first["field"], first["repair"]]),
        json!(["c.record", 0, "image/object/bbox/ymin", "correct"])
    );
    let fixed = job
        .coati(format!("{found} --fix --output_dir fixed").split(' '))
        .run()
        .exits(2);
    let _ = fixed.says(&["what remains has no single right answer"]);
    let again = format!("data validate fixed/c.record --label_map_path {LABELS}");
    let _ = job.coati(again.split(' ')).run().exits(0);
}

#[test]
fn boxes_are_compared_with_a_models_anchors() {
    let job = Job::light();
    let flags = format!(
        "data inspect train.record@3 --label_map_path {LABELS} --pipeline_config_path pipeline.config --format json"
    );
    let report = job.coati(flags.split(' ')).run().exits(0).json();
    let anchors = &report["anchors"];
    let all: u64 = report["boxes"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(anchors["boxes"], json!(all));
    assert!(
        anchors["anchors"].as_u64() > Some(0) && anchors["unmatched"].as_u64() < Some(all),
        "{anchors}"
    );
    // A box of half a percent of the image's sides is smaller than any anchor.
    let mut tiny = records::read(&job.path("val.record"));
    tiny.truncate(1);
    records::set_boxes(&mut tiny[0], &[[0.5, 0.5, 0.505, 0.505]], "circle", 1);
    records::write(&job.path("tiny.record"), &tiny);
    let flags = format!(
        "data inspect tiny.record --label_map_path {LABELS} --pipeline_config_path pipeline.config --format json"
    );
    let report = job.coati(flags.split(' ')).run().exits(0).json();
    assert_eq!(report["anchors"]["unmatched"], json!(1));
    assert_eq!(report["anchors"]["first_unmatched"][0]["class"], "circle");
}
