//! Others' programs read what is written here and come to the same numbers.

use std::collections::BTreeSet;
use std::fs;

use coati_common::tfrecord::{IndexedFile, Writer};
use coati_dataset::example::rewrite::{Detections, with_detections};
use coati_dataset::example::{self, Extras};
use coati_dataset::{bad, batch, decode, fit, order, shards};
use coati_proto::tensorflow::feature::Kind;
use coati_proto::tensorflow::{BytesList, Example};
use coati_tests::{Cluster, Job, cluster_config, judge, records, repository, shared, tensors};
use serde_json::{Value, json};

/// Trains 20 steps on a cluster and evaluates.
fn trained(further: &str) -> Job {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let train = "train --pipeline_config_path pipeline.config --model_dir model --num_train_steps 20";
    let _ = job
        .coati(train.split(' '))
        .with(further)
        .cluster(cluster)
        .run()
        .exits(0);
    job
}

#[test]
fn tensorflow_reads_a_clusters_checkpoint() {
    let job = trained("--no_eval --save_checkpoints_steps 10");
    let (model, out) = (job.path("model"), job.path("out"));
    fs::create_dir(&out).unwrap();
    let prefix = tensors::prefix(&model, 20);
    let Some(listing) = judge("read_checkpoint.py", &[&prefix, &out]) else {
        return;
    };
    let ours = tensors::read(&model, 20);
    let listing = listing.as_array().unwrap();
    assert_eq!(listing.len(), ours.len());
    for (index, tensor) in listing.iter().enumerate() {
        let name = tensor["name"].as_str().unwrap();
        let own = ours.get(name).unwrap_or_else(|| panic!("TensorFlow lists {name}"));
        assert_eq!(
            json!([tensor["dtype"], tensor["shape"]]),
            json!([own.dtype, own.shape]),
            "{name}"
        );
        assert!(
            fs::read(out.join(index.to_string())).unwrap() == own.bytes,
            "{name} differs"
        );
    }
    assert_eq!(ours["global_step"].bytes, 20_i64.to_le_bytes());

    let shown = job
        .coati("checkpoint show model --format json".split(' '))
        .run()
        .exits(0)
        .json();
    let names = |list: &Value| -> Vec<Value> {
        let entries = list.as_array().unwrap().iter();
        entries
            .map(|entry| json!([entry["name"], entry["dtype"], entry["shape"]]))
            .collect()
    };
    assert_eq!(names(&json!(listing)), names(&shown["variables"]));

    let state = judge("latest_checkpoint.py", &[&model]).unwrap();
    assert_eq!(state["latest"], prefix.to_str().unwrap());
    assert_eq!(state["all"].as_array().unwrap().len(), 2, "{state}");
}

#[test]
fn tensorboard_shows_the_curves() {
    let job = trained("");
    let Some(training) = judge("read_events.py", &[job.path("model")]) else {
        return;
    };
    let curves = training["scalars"].as_object().unwrap();
    for tag in [
        "Loss/classification_loss",
        "Loss/localization_loss",
        "Loss/regularization_loss",
        "Loss/total_loss",
        "loss",
        "learning_rate",
        "global_step/sec",
    ] {
        let points = curves
            .get(tag)
            .unwrap_or_else(|| panic!("no {tag} among {:?}", curves.keys()));
        let steps: Vec<&Value> = points.as_array().unwrap().iter().map(|point| &point[0]).collect();
        assert_eq!(steps, [10, 20], "{tag}");
        assert!(
            points
                .as_array()
                .unwrap()
                .iter()
                .all(|point| point[1].as_f64().unwrap() > 0.0),
            "{tag}: {points}"
        );
    }
    // Step 20 is the last one of the warm-up from 0.01 to 0.04, which the schedule counts from 0.
    let rate = curves["learning_rate"][1][1].as_f64().unwrap();
    assert!((rate - (0.01 + 0.03 * 19.0 / 20.0)).abs() < 1e-6, "{rate}");

    let evaluation = judge("read_events.py", &[job.path("model/eval")]).unwrap();
    let report = job.eval("model").run().exits(0).json();
    for (name, value) in report["metrics"].as_object().unwrap() {
        let point = &evaluation["scalars"][name][0];
        assert_eq!(point[0], 20, "{name}");
        assert!(
            (point[1].as_f64().unwrap() - value.as_f64().unwrap()).abs() < 1e-6,
            "{name}: {point}, {value}"
        );
    }
    assert!(evaluation["scalars"]["DetectionBoxes_Precision/mAP"].is_array());
}

#[test]
fn pycocotools_agrees_with_the_evaluation() {
    let job = trained("--no_eval");
    let report = job
        .eval("model")
        .with("--detections_path found/detections.json")
        .run()
        .exits(0)
        .json();
    let files = [
        job.path("found/detections.groundtruth.json"),
        job.path("found/detections.json"),
    ];
    let Some(theirs) = judge("coco_metrics.py", &files) else {
        return;
    };
    let metrics = report["metrics"].as_object().unwrap();
    let boxes: BTreeSet<&String> = metrics
        .keys()
        .filter(|name| name.starts_with("DetectionBoxes_"))
        .collect();
    assert_eq!(boxes, theirs.as_object().unwrap().keys().collect());
    for name in boxes {
        let (ours, theirs) = (metrics[name].as_f64().unwrap(), theirs[name].as_f64().unwrap());
        assert!(
            (ours - theirs).abs() < 1e-6,
            "{name}: {ours} here, {theirs} with pycocotools"
        );
    }
    // Zeros would agree with anything.
    assert!(
        metrics["DetectionBoxes_Recall/AR@100"].as_f64().unwrap() > 0.01,
        "{report}"
    );
}

#[test]
fn a_checkpoint_of_the_reference_gives_its_metrics() {
    let (Some(golden), Some(_)) = (shared("golden/ssd_bccd"), shared("golden/bccd_tfrecord/test.record")) else {
        return;
    };
    let job = Job::new();
    let expected: Value = serde_json::from_slice(&fs::read(golden.join("metrics.json")).unwrap()).unwrap();
    let (config, prefix) = (golden.join("pipeline.config"), golden.join("model.ckpt-3200"));
    let flags =
        "eval --run_once --format json --model_dir eval --detections_path detections.json --pipeline_config_path";
    let command =
        job.coati(flags.split(' '))
            .with(&format!("{} --checkpoint_dir {}", config.display(), prefix.display()));
    let report = command.run().exits(0).json();
    let value = |report: &Value, name: &str| report["metrics"][name].as_f64().unwrap();
    for name in [
        "DetectionBoxes_Precision/mAP",
        "DetectionBoxes_Precision/mAP@.50IOU",
        "DetectionBoxes_Recall/AR@100",
    ] {
        let (ours, theirs) = (value(&report, name), value(&expected, name));
        assert!(
            (ours - theirs).abs() < 0.002,
            "{name}: {ours} here, {theirs} with the reference"
        );
    }
    assert!(
        (value(&report, "DetectionBoxes_Precision/mAP") - 0.4339).abs() < 0.002,
        "{report}"
    );
    assert_eq!(json!([report["images"], report["global_step"]]), json!([72, 3200]));
    let files = [job.path("detections.groundtruth.json"), job.path("detections.json")];
    if let Some(theirs) = judge("coco_metrics.py", &files) {
        for (name, theirs) in theirs.as_object().unwrap() {
            let ours = value(&report, name);
            assert!(
                (ours - theirs.as_f64().unwrap()).abs() < 1e-6,
                "{name}: {ours} here, {theirs} with pycocotools"
            );
        }
    }
}

#[test]
fn the_references_detections_give_its_metrics() {
    let (Some(expected), Some(records)) = (
        shared("golden/ssd_bccd/metrics.json"),
        shared("golden/bccd_tfrecord/test.record"),
    ) else {
        return;
    };
    let job = Job::light();
    let archive = repository().join("tests/fixtures/golden/ssd_bccd/detections.npz");
    let mut archive = npyz::npz::NpzArchive::open(archive).unwrap();
    let floats = |archive: &mut npyz::npz::NpzArchive<_>, name: &str| -> Vec<f32> {
        archive.by_name(name).unwrap().unwrap().into_vec().unwrap()
    };
    let (boxes, scores) = (floats(&mut archive, "boxes"), floats(&mut archive, "scores"));
    let mut whole = |name: &str| -> Vec<i32> { archive.by_name(name).unwrap().unwrap().into_vec().unwrap() };
    let (classes, counts) = (whole("classes"), whole("num"));
    let file = IndexedFile::open(&records).unwrap();
    let mut writer = Writer::new(Vec::new());
    assert_eq!(file.len(), counts.len());
    for (image, &count) in counts.iter().enumerate() {
        let (from, count) = (image * 100, usize::try_from(count).unwrap());
        let found = Detections {
            boxes: (from..from + count)
                .map(|at| [0, 1, 2, 3].map(|side| boxes[4 * at + side]))
                .collect(),
            labels: classes[from..from + count].iter().map(|&class| class.into()).collect(),
            scores: scores[from..from + count].to_vec(),
        };
        let record = file.read(image).unwrap().unwrap();
        writer.write(&with_detections(&record, &found, true).unwrap()).unwrap();
    }
    job.write("found.record", writer.into_inner());
    let map = records.parent().unwrap().join("label_map.pbtxt");
    let metrics = "metrics records --input_path found.record --format json --metrics_set";
    let names = "coco_detection_metrics,pascal_voc_detection_metrics";
    let command = job
        .coati(metrics.split(' '))
        .with(&format!("{names} --label_map_path {}", map.display()));
    let ours = command.run().exits(0).json();
    let expected: Value = serde_json::from_slice(&fs::read(expected).unwrap()).unwrap();
    let mut compared = 0;
    for (name, theirs) in expected["metrics"].as_object().unwrap() {
        if !name.contains("Boxes_") {
            continue;
        }
        let (ours, theirs) = (ours[name].as_f64().unwrap(), theirs.as_f64().unwrap());
        assert!(
            (ours - theirs).abs() < 1e-6,
            "{name}: {ours} here, {theirs} with the reference"
        );
        compared += 1;
    }
    assert_eq!(compared, 16);
}

#[test]
fn tensorboard_shows_how_stale_each_workers_gradients_were() {
    let job = Job::new();
    job.configure("async.config", &[("sync_replicas: true", "sync_replicas: false")]);
    let flags = "train --pipeline_config_path async.config --model_dir model --num_train_steps 25 --no_eval";
    let _ = job
        .coati(flags.split(' '))
        .cluster(cluster_config("asynchronous.yaml"))
        .run()
        .exits(0);
    let Some(training) = judge("read_events.py", &[job.path("model")]) else {
        return;
    };
    let histograms = training["histograms"].as_object().unwrap();
    let staleness: Vec<(&String, &Value)> = histograms
        .iter()
        .filter(|(tag, _)| tag.starts_with("staleness/"))
        .collect();
    let known = ["staleness/master", "staleness/worker-0", "staleness/worker-1"];
    assert!(
        staleness.iter().all(|(tag, _)| known.contains(&tag.as_str())),
        "{staleness:?}"
    );
    // Each of the 25 gradients is in one of them: step, smallest, largest, count, sum, sum of the buckets.
    let points = staleness.iter().flat_map(|(_, points)| points.as_array().unwrap());
    let mut count = 0.0;
    for point in points {
        let number = |index: usize| point[index].as_f64().unwrap();
        assert!([10.0, 20.0, 25.0].contains(&number(0)), "{point}");
        assert!(0.0 <= number(1) && number(2) <= 8.0, "{point}");
        assert_eq!(point[3], point[5], "{point}");
        count += number(3);
    }
    assert_eq!(count, 25.0, "{staleness:?}");
}

/// Colours of the image, then a channel of each further file: in training, and in evaluation and inference, as `tf.io` parses and decodes them.
#[test]
fn tensorflow_reads_the_same_additional_channels() {
    const SIZE: [usize; 2] = [21, 34];
    let folder = tempfile::tempdir().unwrap();
    let images = repository().join("tests/fixtures/images");
    let sets = [
        ("rgb420.jpg", ["grey.jpg", "grey.png"]),
        ("rgb.png", ["one_bit.png", "grey16.png"]),
        // One channel of colours.
        ("grey.jpg", ["rgb420.jpg", "progressive.jpg"]),
        ("progressive.jpg", ["rgb.png", "palette.png"]),
        ("exif_rotated.jpg", ["rgba.png", "grey_alpha.png"]),
    ];
    let made: Vec<Example> = sets
        .iter()
        .map(|(image, channels)| {
            let files = |names: &[&str]| {
                let value = names.iter().map(|name| fs::read(images.join(name)).unwrap()).collect();
                Kind::BytesList(BytesList { value })
            };
            let mut made = Example::default();
            records::set(&mut made, "image/encoded", files(&[image]));
            records::set(&mut made, "image/additional_channels/encoded", files(channels));
            made
        })
        .collect();
    let (path, out) = (folder.path().join("channels.record"), folder.path().join("out"));
    records::write(&path, &made);
    fs::create_dir(&out).unwrap();
    let Some(shapes) = judge("parse_additional_channels.py", &[&path, &out]) else {
        return;
    };

    let extras = Extras {
        additional_channels: 2,
        ..Extras::default()
    };
    let [height, width] = SIZE;
    let options = batch::Options {
        height,
        width,
        extras: extras.clone(),
        ..batch::Options::default()
    };
    let source = shards::Source::open(&[path.display().to_string()]).unwrap();
    let mut preparer = batch::Preparer::new(&options);
    let ledger = bad::Ledger::new(made.len() as u64, Some(0));
    let wanted = fit::Options {
        additional_channels: 2,
        ..fit::Options::new(height, width)
    };
    let mut fitter = fit::Fitter::new(wanted, decode::Options::default());
    for (record, (image, channels)) in sets.iter().enumerate() {
        let name = format!("{image} with {channels:?}");
        assert_eq!(shapes[record], json!([height, width, 5]), "{name}");
        let expected: Vec<f32> = fs::read(out.join(record.to_string()))
            .unwrap()
            .into_iter()
            .map(f32::from)
            .collect();
        let mut trained = vec![0.0; height * width * 5];
        let record = record as u64;
        let place = order::Place { epoch: 0, record };
        preparer
            .prepare(&source, &options, &ledger, place, &mut trained)
            .unwrap();
        let bytes = source.read(record).unwrap();
        let (file, further) = example::images(&bytes, &extras).unwrap();
        let (_, evaluated) = fitter.decode(file, &further).unwrap();
        for (way, found) in [("training", trained), ("evaluation", evaluated.input)] {
            let wrong = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
            assert_eq!((found.len(), wrong), (expected.len(), 0), "{way}: {name}");
        }
    }
}
