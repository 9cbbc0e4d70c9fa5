//! `coati detect`, `coati infer` and the pictures and the page of an evaluation.

use std::fs;
use std::path::{Path, PathBuf};

use coati_common::tfrecord::IndexedFile;
use coati_tests::{Cluster, Job, judge, records};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const EVERY_SCORE: &str = "--score_threshold 0";

/// The data set's JPEG files.
fn pictures(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pictures(&path));
        } else if path.extension().is_some_and(|ending| ending == "jpg") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn raw_records(path: &Path) -> Vec<Vec<u8>> {
    let file = IndexedFile::open(path).unwrap();
    (0..file.len())
        .map(|index| file.read(index).unwrap().unwrap())
        .collect()
}

#[test]
fn pictures_are_looked_at_and_one_that_cannot_be_read_is_named() {
    let job = Job::new();
    let _ = job.train("model", 2).run().exits(0);
    fs::create_dir(job.path("frames")).unwrap();
    let all = pictures(&job.path("shapes"));
    for (index, from) in all[..10].iter().enumerate() {
        fs::copy(from, job.path(&format!("frames/{}.jpg", index + 1))).unwrap();
    }
    let png = image_as_png(&all[10]);
    job.write("frames/11.png", png);
    job.write("frames/7.jpg", "no picture");
    job.write("frames/notes.txt", "not looked at");
    let done = job
        .coati("detect --image frames --model_dir model --output_dir found --format json".split(' '))
        .with(EVERY_SCORE)
        .run()
        .exits(0)
        .says(&[
            "warning: frames/7.jpg: the image is of an unknown kind",
            "1 pictures could not be read",
        ]);
    let report = done.json();
    let images = report["images"].as_array().unwrap();
    let names: Vec<&str> = images.iter().map(|image| image["image"].as_str().unwrap()).collect();
    let expected: Vec<String> = (1..=10)
        .filter(|&number| number != 7)
        .map(|number| format!("frames/{number}.jpg"))
        .chain(["frames/11.png".to_owned()])
        .collect();
    assert_eq!(names, expected, "in the order of their numbers");
    assert_eq!(report["failed"][0]["image"], "frames/7.jpg");
    let stored: Value = serde_json::from_str(&job.read("found/detections.json")).unwrap();
    assert_eq!(stored, report);
    let mut detections = 0;
    for image in images {
        let picture = fs::read(job.path(image["picture"].as_str().unwrap())).unwrap();
        assert!(
            picture.starts_with(b"\xFF\xD8") || picture.starts_with(b"\x89PNG"),
            "{image}"
        );
        for detection in image["detections"].as_array().unwrap() {
            detections += 1;
            let side = |name: &str, side: usize| detection[name][side].as_f64().unwrap();
            assert!((side("box_px", 3) - 96.0 * side("box", 3)).abs() < 1e-3, "{detection}");
        }
    }
    assert!(detections > 0, "after two steps something is found at any score");
    assert_eq!(job.read("found/detections.csv").lines().count(), 1 + detections);

    // One picture, a pattern, no pictures written; without any picture it is an error.
    let one = job
        .coati(
            "detect --image frames/1.jpg --image frames/1?.* --no_pictures --model_dir model/model.ckpt-2".split(' '),
        )
        .with("--pipeline_config_path pipeline.config --format json")
        .run()
        .exits(0)
        .json();
    assert_eq!(one["images"].as_array().unwrap().len(), 3);
    assert!(!job.path("detections/pictures").exists());
    let nothing = job
        .coati("detect --image frames/7.jpg --model_dir model".split(' '))
        .run();
    let _ = nothing.exits(2).says(&["no picture could be read", "hint: "]);
    let missing = job
        .coati("detect --image frames --model_dir elsewhere".split(' '))
        .run();
    let _ = missing
        .exits(2)
        .says(&["elsewhere: no complete checkpoint", "hint: --model_dir"]);
    let deeper = job.coati("detect --image frames --model_dir no/where".split(' ')).run();
    let _ = deeper
        .exits(2)
        .says(&["no/where: no complete checkpoint", "hint: --model_dir"]);
}

fn image_as_png(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let image = coati_dataset::decode::Decoder::new(coati_dataset::decode::Options::default())
        .decode(&bytes)
        .unwrap();
    let picture = image::RgbImage::from_raw(image.width as u32, image.height as u32, image.pixels).unwrap();
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

#[test]
fn inference_keeps_records_adds_detections_and_goes_on_where_it_stopped() {
    let job = Job::new();
    let _ = job.train("model", 2).run().exits(0);
    // One record without a usable image.
    let third = job.path("train.record-00002-of-00003");
    let mut examples = records::read(&third);
    records::set_image(&mut examples[1], b"no picture");
    records::write(&third, &examples);
    let infer = |further: &str| {
        job.coati("infer --model_dir model --format json".split(' '))
            .with(further)
    };
    let sharded = "--input_tfrecord_paths train.record-?????-of-00003 --output_tfrecord_path out/found.record";
    let done = infer(sharded)
        .run()
        .exits(0)
        .says(&["warning: train.record-00002-of-00003: record 1: the image is of an unknown kind"]);
    let report = done.json();
    assert_eq!(report["made"].as_array().unwrap().len(), 3);
    assert_eq!(
        json!([report["records"], report["without_image_count"]]),
        json!([48, 1])
    );
    for index in 0..3 {
        let (input, output) = (
            job.path(&format!("train.record-{index:05}-of-00003")),
            job.path(&format!("out/found.record-{index:05}-of-00003")),
        );
        let (before, after) = (raw_records(&input), raw_records(&output));
        assert_eq!(before.len(), after.len());
        for (number, (before, after)) in before.iter().zip(&after).enumerate() {
            if (index, number) == (2, 1) {
                assert_eq!(before, after, "a record without an image stays as it is");
                continue;
            }
            // Behind the length of the message come its features, byte for byte.
            let features = &before[before.len() - 1000..];
            assert!(
                after.windows(features.len()).any(|window| window == features),
                "{index} {number}"
            );
        }
    }
    let found = records::read(&job.path("out/found.record-00000-of-00003"));
    let features = &found[0].features.as_ref().unwrap().feature;
    for name in ["bbox/ymin", "bbox/xmin", "bbox/ymax", "bbox/xmax", "label", "score"] {
        assert!(features.contains_key(&format!("image/detection/{name}")), "{name}");
    }

    // Nothing to do; then one output is gone, one was cut short, and one lies half written.
    let outputs = |report: &Value, what: &str| report[what].as_array().unwrap().len();
    let again = infer(sharded).run().exits(0).json();
    assert_eq!([outputs(&again, "made"), outputs(&again, "complete")], [0, 3]);
    let whole: Vec<Vec<u8>> = (0..3)
        .map(|index| fs::read(job.path(&format!("out/found.record-{index:05}-of-00003"))).unwrap())
        .collect();
    fs::remove_file(job.path("out/found.record-00000-of-00003")).unwrap();
    job.write("out/found.record.infer/00000-of-00003.partial", &whole[0][..500]);
    records::cut(&job.path("out/found.record-00001-of-00003"), 7);
    let rest = infer(sharded)
        .run()
        .exits(0)
        .says(&["which an earlier run left incomplete"])
        .json();
    assert_eq!([outputs(&rest, "made"), outputs(&rest, "complete")], [2, 1]);
    for (index, whole) in whole.iter().enumerate() {
        let now = fs::read(job.path(&format!("out/found.record-{index:05}-of-00003"))).unwrap();
        assert!(now == *whole, "shard {index} is the same as before");
    }

    // Other flags are no reason to write over what is there.
    let other = infer(sharded).with("--discard_image_pixels").run().exits(2);
    let _ = other.says(&[
        "was made from another model, other input or with other flags",
        "--overwrite",
    ]);
    let small = infer("--discard_image_pixels --input_tfrecord_paths val.record --output_tfrecord_path small.record");
    let _ = small.run().exits(0);
    let examples = records::read(&job.path("small.record"));
    assert_eq!(examples.len(), 12);
    for example in &examples {
        let features = &example.features.as_ref().unwrap().feature;
        assert!(!features.contains_key("image/encoded") && features.contains_key("image/filename"));
    }
    let over = infer("--input_tfrecord_paths val.record --output_tfrecord_path val.record").run();
    let _ = over.exits(2).says(&["val.record: is an input, too", "hint: "]);
}

#[test]
fn replicas_of_a_cluster_share_the_inputs_and_a_killed_run_goes_on() {
    let job = Job::new();
    let _ = job.train("model", 2).run().exits(0);
    // Enough to be stopped in the middle of.
    let examples: Vec<_> = std::iter::repeat_with(|| records::read(&job.path("val.record")))
        .take(10)
        .flatten()
        .collect();
    for shard in 0..4 {
        records::write(&job.path(&format!("in.record-{shard:05}-of-00004")), &examples);
    }
    job.cluster("cluster.yaml", &Cluster::new().workers(1).servers(1));
    let infer = || {
        let flags = "infer --input_tfrecord_paths in.record-?????-of-00004 --output_tfrecord_path out.record --model_dir model --format json";
        job.coati(flags.split(' '))
    };
    let killed = infer().cluster("cluster.yaml").start();
    killed.wait_for("shard 1 of 4: out.record-00000-of-00004");
    killed.signal(Signal::SIGKILL);
    drop(killed);

    // Somebody else has one of the outputs for a while: the others are made meanwhile, and it is waited for.
    let complete = |shard: u32| job.path(&format!("out.record-{shard:05}-of-00004")).exists();
    let taken = (0..4).find(|&shard| !complete(shard)).unwrap();
    let partial = job.path(&format!("out.record.infer/{taken:05}-of-00004.partial"));
    let partial = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(partial)
        .unwrap();
    let lock = Flock::lock(partial, FlockArg::LockExclusive).unwrap();
    let running = infer().cluster("cluster.yaml").start();
    for shard in (taken + 1..4).filter(|&shard| !complete(shard)) {
        running.wait_for(&format!("shard {} of 4", shard + 1));
    }
    running.assert_alive();
    drop(lock);
    let done = running.finish().exits(0);
    let done = done.says(&["inference has no use for its 1 parameter servers"]);
    let report = done.json();
    let count = |what: &str| report[what].as_array().unwrap().len();
    assert_eq!(count("made") + count("complete"), 4, "{done}");
    assert_eq!(report["records"], 120 * count("made"), "{done}");
    assert!(report["detections"].as_u64().unwrap() > 0, "{done}");
    // The same as one process makes.
    let whole = |name: &str| fs::read(job.path(name)).unwrap();
    let before = whole("out.record-00003-of-00004");
    fs::remove_file(job.path("out.record-00003-of-00004")).unwrap();
    let alone = infer().run().exits(0).json();
    assert_eq!(
        json!([alone["made"], alone["records"]]),
        json!([["out.record-00003-of-00004"], 120])
    );
    assert!(before == whole("out.record-00003-of-00004"));
}

#[test]
fn metrics_of_inferred_detections_are_those_of_the_evaluation() {
    let job = Job::new();
    job.configure(
        "pipeline.config",
        &[("coco_detection_metrics", "pascal_voc_detection_metrics")],
    );
    let _ = job.train("model", 12).run().exits(0);
    let evaluated = job.eval("model").run().exits(0).json();
    let infer = "infer --input_tfrecord_paths val.record --output_tfrecord_path found.record --model_dir model --discard_image_pixels=true";
    let _ = job.coati(infer.split(' ')).run().exits(0);
    let metrics = "metrics records --input_path found.record --label_map_path shapes/label_map.pbtxt --format json";
    let offline = job.coati(metrics.split(' ')).run().exits(0).json();
    let name = "PascalBoxes_Precision/mAP@0.5IOU";
    let value = |report: &Value| {
        let found = report
            .get("metrics")
            .unwrap_or(report)
            .get(name)
            .and_then(Value::as_f64);
        found.unwrap_or_else(|| panic!("no {name} in {report}"))
    };
    let (a, b) = (value(&evaluated), value(&offline));
    assert!((a - b).abs() < 1e-6, "evaluation says {a}, the inferred records {b}");
}

#[test]
fn an_evaluation_shows_pictures_in_tensorboard_and_in_a_page() {
    let job = Job::new();
    job.configure(
        "pipeline.config",
        &[(
            "eval_config {",
            "eval_config {\n  num_visualizations: 4\n  min_score_threshold: 0.02\n  visualization_export_dir: \"exported\"",
        )],
    );
    let _ = job.train("model", 4).run().exits(0);
    let _ = job.eval("model").with("--report page/report.html").run().exits(0);
    let page = job.read("page/report.html");
    for part in [
        "DetectionBoxes_Precision/mAP@.50IOU",
        "circle",
        "Worst images",
        "feature_extractor {",
        "model.ckpt-4",
    ] {
        assert!(page.contains(part), "no {part} in the page");
    }
    for elsewhere in ["http:", "https:", "<script", "<link"] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    assert_eq!(page.matches("data:image/png;base64,").count(), 2);
    assert!(page.contains("data:image/jpeg;base64,"));
    for plot in [
        "page/report.precision_recall.png",
        "page/report.confusion_matrix.png",
        "exported/export-image-3.png",
    ] {
        assert!(fs::read(job.path(plot)).unwrap().starts_with(b"\x89PNG"), "{plot}");
    }
    assert!(!job.path("exported/export-image-4.png").exists());

    let Some(events) = judge("read_events.py", &[job.path("model/eval")]) else {
        return;
    };
    let images = events["images"].as_object().unwrap();
    let of = |tag: &str| {
        images
            .get(tag)
            .unwrap_or_else(|| panic!("no {tag} among {:?}", images.keys()))[0]
            .clone()
    };
    for number in 0..4 {
        let shown = of(&format!("Detections_Left_Groundtruth_Right/{number}/0"));
        assert_eq!(json!([shown[0], shown[1], shown[2]]), json!([4, 96 + 4 + 96, 96]));
    }
    assert_eq!(images.len(), 4 + 2, "{:?}", images.keys());
    let plots = [of("PrecisionRecall"), of("ConfusionMatrix")];
    assert!(
        plots
            .iter()
            .all(|plot| plot[0] == 4 && plot[3].as_u64().unwrap() > 1000)
    );
}
