//! `coati data` and `coati checkpoint show`.

use std::fs;

use coati_tests::{Cluster, Job, records};
use serde_json::{Value, json};

#[test]
fn made_up_data_depend_on_the_seed_alone() {
    let job = Job::light();
    for (folder, seed) in [("a", "3"), ("b", "3"), ("c", "4")] {
        let flags = "data synth --num_train 3 --num_val 1 --image_size 64 --output_dir";
        let _ = job
            .coati(flags.split(' ').chain([folder, "--seed", seed]))
            .run()
            .exits(0)
            .says(&["4 images"]);
    }
    let image = |folder: &str| {
        let images = job.path(folder).join("JPEGImages");
        let mut names: Vec<_> = fs::read_dir(images)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        assert_eq!(names.len(), 4);
        fs::read(&names[0]).unwrap()
    };
    assert_eq!(image("a"), image("b"));
    assert_ne!(image("a"), image("c"));
}

#[test]
fn an_import_keeps_every_image_and_box_in_any_number_of_shards() {
    let job = Job::light();
    let inspect = |paths: &[&str]| {
        let arguments = [
            "data",
            "inspect",
            "--label_map_path",
            "shapes/label_map.pbtxt",
            "--format",
            "json",
        ];
        job.coati(arguments.iter().chain(paths)).run().exits(0).json()
    };
    let shards = inspect(&["train.record@3"]);
    assert_eq!(
        json!([shards["records"], shards["bad"], shards["images_without_boxes"]]),
        json!([48, [], 0])
    );
    assert_eq!(shards["files"].as_array().unwrap().len(), 3);
    assert_eq!(
        shards["image_sizes"],
        json!([{"width": 96, "height": 96, "images": 48}])
    );
    assert_eq!(shards, inspect(&["train.record-?????-of-00003"]));

    let flags = "data import voc --data_dir shapes --set train --label_map_path shapes/label_map.pbtxt --output_path one.record --format json";
    let imported = job.coati(flags.split(' ')).run().exits(0).json();
    assert_eq!(imported["images"], 48);
    assert_eq!(imported["files"], json!(["one.record"]));
    let one = inspect(&["one.record"]);
    assert_eq!(one["boxes"], shards["boxes"]);
    assert_eq!(imported["boxes"], one["boxes"]);
    let boxes: u64 = one["boxes"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    let written: usize = records::read(&job.path("one.record"))
        .iter()
        .map(
            |example| match &example.features.as_ref().unwrap().feature["image/object/bbox/xmin"].kind {
                Some(coati_proto::tensorflow::feature::Kind::FloatList(list)) => list.value.len(),
                other => panic!("xmin is {other:?}"),
            },
        )
        .sum();
    assert_eq!(boxes, written as u64);
}

#[test]
fn one_record_is_shown_with_its_picture() {
    let job = Job::light();
    let flags = "data inspect val.record --record 2 --picture picture.png --label_map_path shapes/label_map.pbtxt --format json";
    let record = job.coati(flags.split(' ')).run().exits(0).json();
    assert_eq!(
        json!([record["record"], record["width"], record["height"], record["format"]]),
        json!([2, 96, 96, "jpeg"])
    );
    let objects = record["objects"].as_array().unwrap();
    assert!(!objects.is_empty(), "{record}");
    for object in objects {
        assert!(
            ["circle", "square", "triangle"].contains(&object["class"].as_str().unwrap()),
            "{object}"
        );
        let sides: Vec<f64> = object["box"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        assert!(0.0 <= sides[0] && sides[0] < sides[2] && sides[2] <= 1.0, "{object}");
    }
    assert!(fs::read(job.path("picture.png")).unwrap().starts_with(b"\x89PNG"));
    let _ = job
        .coati(["data", "inspect", "val.record", "--record", "99"])
        .run()
        .exits(2)
        .says(&["99", "12"]);
}

#[test]
fn a_checkpoint_is_shown() {
    let job = Job::new();
    let _ = job.train("model", 3).run().exits(0);
    let shown = job
        .coati("checkpoint show model --format json".split(' '))
        .run()
        .exits(0)
        .json();
    assert_eq!(shown["latest"], "model/model.ckpt-3");
    let checkpoint = &shown["checkpoints"][0];
    assert_eq!(
        json!([
            checkpoint["step"],
            checkpoint["condition"],
            checkpoint["writer"],
            checkpoint["records_seen"]
        ]),
        json!([3, "complete", "coati", 12])
    );
    let variables = shown["variables"].as_array().unwrap();
    let find = |name: &str| {
        let found = variables.iter().find(|variable| variable["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}")).clone()
    };
    let first = "FeatureExtractor/MobilenetV1/Conv2d_0/weights";
    assert_eq!(
        json!([find(first)["dtype"], find(first)["shape"]]),
        json!(["float32", [3, 3, 3, 8]])
    );
    for slot in ["Momentum", "ExponentialMovingAverage"] {
        assert_eq!(find(&format!("{first}/{slot}"))["shape"], json!([3, 3, 3, 8]));
    }
    assert_eq!(
        json!([find("global_step")["dtype"], find("global_step")["shape"]]),
        json!(["int64", []])
    );
    let prefix = job
        .coati("checkpoint show model/model.ckpt-3 --format json".split(' '))
        .run()
        .exits(0)
        .json();
    assert_eq!(prefix["variables"], shown["variables"]);
    let text = job.coati("checkpoint show model --variables".split(' ')).run().exits(0);
    assert!(
        text.stdout.contains("model/model.ckpt-3  step 3  complete") && text.stdout.contains(first),
        "{text}"
    );
    let _ = job
        .coati("checkpoint show nowhere".split(' '))
        .run()
        .exits(2)
        .says(&["nowhere"]);
}

#[test]
fn records_are_indexed_once_for_all_tasks() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let _ = job.train("model", 2).cluster(cluster).run().exits(0);
    let folder = job.path("model/index");
    let listing = || {
        let mut files: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name(), entry.metadata().unwrap().modified().unwrap())
            })
            .collect();
        files.sort();
        files
    };
    let made = listing();
    assert_eq!(made.len(), 3, "one for each of the three shards: {made:?}");
    let again = job.train("model", 4).cluster(cluster).run().exits(0);
    assert_eq!(listing(), made, "they are used: {again}");
    // A changed file is indexed again.
    let shard = job.path("train.record-00001-of-00003");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes).unwrap();
    let _ = job.train("model", 5).run().exits(0);
    let changed: Vec<_> = listing().into_iter().filter(|file| !made.contains(file)).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
}
