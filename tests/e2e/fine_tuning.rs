//! Training that starts from another job's checkpoint, ours or TensorFlow's, and checkpoints that others read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use coati_tests::tensors::{self, Tensors};
use coati_tests::{Cluster, Job, judge, shared};
use serde_json::Value;

/// What one step with a learning rate of 0 leaves alone.
const STANDING_STILL: &str = "learning_rate { constant_learning_rate { learning_rate: 0.0 } }";

/// `name` is the reference's trained detector to be trained further, from `text` in `train_config`.
fn from_golden(job: &Job, name: &str, golden: &Path, text: &str) {
    let config = fs::read_to_string(golden.join("pipeline.config")).unwrap();
    let (begin, rest) = config.split_once("learning_rate { cosine").unwrap();
    let (_, end) = rest.split_once("} }").unwrap();
    let config = format!("{begin}{STANDING_STILL}{end}");
    let records = golden.parent().unwrap().join("bccd_tfrecord");
    let config = config.replace("../bccd_tfrecord", &records.display().to_string());
    let config = config.replace("batch_size: 8", &format!("batch_size: 2 {text}"));
    job.write(name, config);
}

fn prefix_of(golden: &Path) -> String {
    golden.join("model.ckpt-3200").display().to_string()
}

fn slots(name: &str) -> bool {
    ["Momentum", "ExponentialMovingAverage", "global_step"]
        .iter()
        .any(|slot| name.contains(slot))
}

fn moving(name: &str) -> bool {
    name.contains("moving_")
}

/// The tensors of the reference's checkpoint, by name.
fn reference(golden: &Path) -> Tensors {
    tensors::read(golden, 3200)
}

#[test]
fn the_references_trained_detector_trains_on() {
    let Some(golden) = shared("golden/ssd_bccd") else {
        return;
    };
    let job = Job::new();
    let checkpoint = format!("fine_tune_checkpoint: '{}'", prefix_of(&golden));
    from_golden(
        &job,
        "full.config",
        &golden,
        &format!("{checkpoint} fine_tune_checkpoint_type: 'full'"),
    );
    let done = job
        .train("full", 1)
        .with("--pipeline_config_path full.config")
        .run()
        .exits(0);
    let done = done.says(&["fine-tuning: ", " variables from ", "model.ckpt-3200 (full)"]);
    let (ours, theirs) = (tensors::read(&job.path("full"), 1), reference(&golden));
    let mut compared = 0;
    for (name, tensor) in theirs.iter().filter(|(name, _)| !slots(name) && !moving(name)) {
        assert!(ours[name] == *tensor, "{name} differs");
        compared += 1;
    }
    assert!(compared > 60, "{compared} compared: {done}");
    let table = job.read("full/fine_tune.tsv");
    let restored = table.lines().filter(|line| line.ends_with("\trestored")).count();
    assert_eq!(restored, theirs.keys().filter(|name| !slots(name)).count(), "{table}");

    // A job that goes on is its own, and needs the other checkpoint no more.
    let gone = job.read("full.config").replace("model.ckpt-3200", "model.ckpt-gone");
    job.write("full.config", gone);
    let done = job
        .train("full", 2)
        .with("--pipeline_config_path full.config")
        .run()
        .exits(0);
    assert!(!done.stderr.contains("fine-tuning: "), "{done}");
    assert!(done.stderr.contains("resuming from step 1"), "{done}");
}

#[test]
fn box_predictors_begin_anew_unless_they_are_asked_for() {
    let Some(golden) = shared("golden/ssd_bccd") else {
        return;
    };
    let job = Job::new();
    let text = format!(
        "fine_tune_checkpoint: '{}' from_detection_checkpoint: true",
        prefix_of(&golden)
    );
    from_golden(&job, "pipeline.config", &golden, &text);
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let done = job.train("model", 1).cluster(cluster).run().exits(0);
    let _ = done.says(&["fine-tuning: ", "(detection)", "BoxPredictor_0", "not asked for"]);
    let (ours, theirs) = (tensors::read(&job.path("model"), 1), reference(&golden));
    for (name, tensor) in theirs
        .iter()
        .filter(|(name, _)| name.ends_with("/weights") && !slots(name))
    {
        let same = name.starts_with("FeatureExtractor/");
        assert_eq!(ours[name] == *tensor, same, "{name}");
    }
}

#[test]
fn tensorflow_writes_a_classifier_and_reads_what_was_made_of_it() {
    let Some(golden) = shared("golden/ssd_bccd") else {
        return;
    };
    let job = Job::new();
    let prefix = PathBuf::from(prefix_of(&golden));
    let classifier = job.path("classifier.ckpt");
    let Some(taken) = judge("write_classifier.py", &[&prefix, &classifier]) else {
        return;
    };
    let taken: BTreeSet<String> = serde_json::from_value(taken).unwrap();
    from_golden(
        &job,
        "pipeline.config",
        &golden,
        "fine_tune_checkpoint: 'classifier.ckpt'",
    );
    let done = job.train("model", 1).run().exits(0);
    let _ = done.says(&[
        "classifier.ckpt (classification)",
        "FeatureExtractor/MobilenetV1/Conv2d_0/BatchNorm/beta: not in the checkpoint",
        "FeatureExtractor/MobilenetV1/Conv2d_1_depthwise/BatchNorm/beta: shape [3] in the checkpoint",
    ]);
    let table = job.read("model/fine_tune.tsv");
    let restored: BTreeSet<String> = table
        .lines()
        .filter(|line| line.ends_with("\trestored"))
        .map(|line| line.split('\t').nth(2).unwrap().to_owned())
        .collect();
    assert_eq!(restored, taken);
    assert!(
        table.contains("-\t-\tMobilenetV1/Logits/Conv2d_1c_1x1/biases\tnot used\n"),
        "{table}"
    );
    let (ours, theirs) = (tensors::read(&job.path("model"), 1), reference(&golden));
    for name in taken
        .iter()
        .map(|name| format!("FeatureExtractor/{name}"))
        .filter(|name| !moving(name))
    {
        assert!(ours[&name] == theirs[&name], "{name} differs");
    }

    // By name, all variables of the reference's checkpoint, slots too.
    let own = tensors::prefix(&job.path("model"), 1);
    let back = judge("restore_by_name.py", &[&own, &prefix]).unwrap();
    assert_eq!(back["restored"].as_u64().unwrap() as usize, theirs.len(), "{back}");
    // The reference's was saved without slots.
    let further = back["further"].as_array().unwrap();
    assert!(
        further.iter().all(|name| name.as_str().unwrap().ends_with("/Momentum")),
        "{back}"
    );
    let all = theirs.len() + further.len();

    let file = job.path("model.safetensors");
    let convert = ["checkpoint", "convert", "model/model.ckpt-1", "model.safetensors"];
    let _ = job.coati(convert).run().exits(0);
    let read = judge("read_safetensors.py", &[&file, &own]).unwrap();
    assert_eq!(read["tensors"].as_u64().unwrap() as usize, all);
    let _ = job
        .coati(convert)
        .run()
        .exits(2)
        .says(&["is there already", "--overwrite"]);
    let _ = job
        .coati(["checkpoint", "convert", "model.safetensors", "back/model.ckpt"])
        .run()
        .exits(0);
    let diff = "checkpoint diff model/model.ckpt-1 back/model.ckpt --format json";
    let found = job.coati(diff.split(' ')).run().exits(0).json();
    assert_eq!(found["equal"].as_u64().unwrap() as usize, all);
    assert_eq!(found["rows"], Value::Array(Vec::new()));
    let back = judge("restore_by_name.py", &[&job.path("back/model.ckpt"), &prefix]).unwrap();
    assert_eq!(back["restored"].as_u64().unwrap() as usize, theirs.len());
}

/// A job that starts from the checkpoint `path` of a job of the same model.
fn second_job(job: &Job, path: &str, further: &str) -> coati_tests::Finished {
    let text = format!("num_steps: 100 fine_tune_checkpoint: '{path}' {further}");
    job.configure("second.config", &[("num_steps: 100", &text)]);
    job.train("second", 1)
        .with("--pipeline_config_path second.config")
        .run()
}

#[test]
fn the_usual_mistakes_are_named_before_anything_starts() {
    let job = Job::new();
    let _ = job.train("model", 1).run().exits(0);
    for (path, words) in [
        ("model/model.ckpt-1.index", "have in common: model/model.ckpt-1"),
        (
            "model/model.ckpt-1.data-00000-of-00001",
            "have in common: model/model.ckpt-1",
        ),
        ("model", "this is a folder; its newest checkpoint is model/model.ckpt-1"),
        ("model/model.ckpt", "in this folder there is model/model.ckpt-1"),
    ] {
        let _ = second_job(&job, path, "")
            .exits(2)
            .says(&["train_config.fine_tune_checkpoint: ", words]);
    }
    let _ = second_job(&job, "model/model.ckpt-1", "").exits(2).says(&[
        "none of its ",
        "MobilenetV1/Conv2d_0/weights",
        "fine_tune_checkpoint_type: \"detection\" would restore ",
    ]);
    let _ = second_job(&job, "model/model.ckpt-1", "fine_tune_checkpoint_version: V2")
        .exits(2)
        .says(&["V2 is a TF2 checkpoint"]);
    let check = "check --pipeline_config_path second.config --format json";
    let _ = second_job(&job, "model/model.ckpt-1.index", "");
    let report = job.coati(check.split(' ')).run().exits(2).json();
    assert!(
        report["problems"][0].as_str().unwrap().contains("have in common"),
        "{report}"
    );
    fs::rename(
        job.path("model/model.ckpt-1.data-00000-of-00001"),
        job.path("elsewhere"),
    )
    .unwrap();
    let _ = second_job(&job, "model/model.ckpt-1", "from_detection_checkpoint: true")
        .exits(2)
        .says(&[
            "index is there, but model/model.ckpt-1.data-00000-of-00001 is not",
            "hint: copy model.ckpt-1.data",
        ]);
    assert!(!job.path("second").exists(), "a refused job has left a folder");
    fs::rename(
        job.path("elsewhere"),
        job.path("model/model.ckpt-1.data-00000-of-00001"),
    )
    .unwrap();
    let _ = second_job(&job, "model/model.ckpt-1", "from_detection_checkpoint: true").exits(0);
    let report = job.coati(check.split(' ')).run().exits(0).json();
    assert_eq!(report["fine_tune"]["type"], "detection", "{report}");
}

#[test]
fn a_checkpoint_is_listed_with_figures() {
    let job = Job::new();
    let _ = job.train("model", 2).run().exits(0);
    let list = "checkpoint list model/model.ckpt-2";
    let listed = job.coati(list.split(' ')).with("--format json").run().exits(0).json();
    let tensors = listed["tensors"].as_array().unwrap();
    let of = |name: &str| tensors.iter().find(|tensor| tensor["name"] == name).unwrap();
    assert_eq!(of("global_step")["statistics"]["mean"], 2.0);
    // Two steps have not moved it far from its initialiser's 0.03, of which truncation leaves 0.88.
    let weights = of("BoxPredictor_0/BoxEncodingPredictor/weights");
    assert_eq!(
        (&weights["kind"], &weights["dtype"]),
        (&"variable".into(), &"float32".into())
    );
    let stddev = weights["statistics"]["stddev"].as_f64().unwrap();
    assert!((0.024..0.029).contains(&stddev), "{weights}");
    let kinds: BTreeSet<&str> = tensors.iter().map(|tensor| tensor["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["average", "slot", "statistic", "step", "variable"].into());
    let text = job.coati(list.split(' ')).run().exits(0).stdout;
    assert!(
        text.lines().count() == tensors.len() + 2 && text.starts_with("name "),
        "{text}"
    );
    let _ = job
        .coati(["checkpoint", "list", "model"])
        .run()
        .exits(2)
        .says(&["its newest checkpoint is model/model.ckpt-2"]);
}
