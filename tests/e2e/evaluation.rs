//! `coati eval`: which checkpoints, which examples, what besides the metrics.

use std::fs;

use coati_tests::{Cluster, Job};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::faults::pid_of;

const AP: &str = "DetectionBoxes_Precision/mAP";

/// Trains 12 steps with a checkpoint every 4, each of which is evaluated at once.
const TRAIN: &str = "train --pipeline_config_path pipeline.config --model_dir model --num_train_steps 12 --save_checkpoints_steps 4 \
                     --keep_checkpoint_max 1";

fn evaluating_at_once(further: &str) -> Job {
    let job = Job::new();
    let text = format!("eval_config {{\n  eval_interval_secs: 0\n  {further}");
    job.configure("pipeline.config", &[("eval_config {", text.as_str())]);
    job
}

fn json_file(job: &Job, name: &str) -> Value {
    serde_json::from_str(&job.read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The steps that an evaluator noted.
fn evaluated(job: &Job) -> Vec<u64> {
    let noted = json_file(job, "model/eval/evaluations.json");
    let entries = noted["evaluations"].as_array().unwrap().iter();
    entries.map(|entry| entry["step"].as_u64().unwrap()).collect()
}

#[test]
fn each_checkpoint_is_evaluated_as_it_appears() {
    let job = Job::new();
    job.configure("pipeline.config", &[("num_steps: 100", "num_steps: 8")]);
    let _ = job.train("model", 4).run().exits(0);
    let follow = "eval --pipeline_config_path pipeline.config --checkpoint_dir model";
    let following = job.coati(follow.split(' ')).start();
    following.wait_for("step 4: 12 images");
    // The last step of the configuration is the last checkpoint to wait for.
    let _ = job.train("model", 8).run().exits(0);
    let done = following.finish().exits(0);
    assert!(done.stdout.contains("step 8: 12 images"), "{done}");
    assert!(done.stdout.contains("DetectionBoxes_Precision/mAP@.50IOU"), "{done}");
}

#[test]
fn waiting_for_a_checkpoint_ends_with_an_error_that_names_the_folder() {
    let job = Job::light();
    let flags = "eval --pipeline_config_path pipeline.config --checkpoint_dir model --eval_timeout_secs 1";
    let _ = job
        .coati(flags.split(' '))
        .run()
        .exits(1)
        .says(&["model: no new checkpoint for 1 s", "hint: "]);
}

#[test]
fn examples_can_be_sampled_and_taken_from_the_training_set() {
    let job = Job::new();
    let _ = job.train("model", 2).run().exits(0);
    let images = |flags: &str| job.eval("model").with(flags).run().exits(0).json()["images"].clone();
    assert_eq!(images(""), 12);
    assert_eq!(images("--sample_1_of_n_eval_examples 5"), 3);
    assert_eq!(images("--eval_training_data"), 48);
    assert_eq!(images("--eval_training_data --sample_1_of_n_eval_examples 5"), 10);
    let events = |folder: &str| fs::read_dir(job.path(folder)).unwrap().count();
    assert_eq!([events("model/eval"), events("model/eval_on_train")], [2, 2]);
}

#[test]
fn pictures_and_the_constant_box_come_when_asked_for() {
    let job = Job::new();
    job.configure(
        "pipeline.config",
        &[("eval_config {", "eval_config {\n  num_visualizations: 5")],
    );
    let _ = job.train("model", 2).run().exits(0);
    let plain = job.eval("model").run().exits(0).json();
    assert_eq!(json!([plain["pictures"], plain["constant_box"]]), json!([[], null]));
    let report = job
        .eval("model")
        .with("--pictures_dir pictures --constant_box")
        .run()
        .exits(0)
        .json();
    let pictures = report["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), 5, "{report}");
    for picture in pictures {
        let bytes = fs::read(job.path(picture.as_str().unwrap())).unwrap();
        assert!(bytes.starts_with(b"\x89PNG"), "{picture}");
    }
    let floor = report["constant_box"]["metrics"]["DetectionBoxes_Precision/mAP@.50IOU"].as_f64();
    assert!(floor.is_some_and(|ap50| (0.0..0.5).contains(&ap50)), "{report}");
}

#[test]
fn an_evaluator_of_its_own_is_started_again_and_the_best_checkpoint_stays() {
    let job = evaluating_at_once("");
    let cluster = Cluster::new().workers(1).servers(1).evaluator();
    let cluster = cluster
        .coati("keep_best: Loss/total_loss")
        .coati("restart: {max: 3, window: 10m}");
    job.cluster("cluster.yaml", &cluster);
    let running = job.coati(TRAIN.split_whitespace()).cluster("cluster.yaml").start();
    running.wait_for("evaluator-0 | waiting for the first checkpoint in model");
    kill(pid_of(&job, "evaluator-0"), Signal::SIGKILL).unwrap();
    let done = running.finish().exits(0).says(&[
        "evaluator-0 was killed by SIGKILL; started again (1 of 3)",
        "evaluator-0 | evaluation at step 12: AP ",
        "evaluator-0 | the last checkpoint (step 12) is evaluated",
        "the job is done",
    ]);
    assert!(
        !done.stderr.contains("master      | evaluation"),
        "the master leaves it to the evaluator: {done}"
    );
    assert_eq!(evaluated(&job).last(), Some(&12), "{done}");

    // The job kept its newest checkpoint alone; the best one is whole, and is read as any model folder.
    let best = json_file(&job, "model/best/best.json");
    assert_eq!(best["metric"], "Loss/total_loss");
    let step = best["step"].as_u64().unwrap();
    assert!(evaluated(&job).contains(&step), "{best}");
    let report = job.eval("model/best").run().exits(0).json();
    assert_eq!(report["global_step"], step);
    let (again, noted) = (
        report["metrics"]["Loss/total_loss"].as_f64().unwrap(),
        best["value"].as_f64().unwrap(),
    );
    assert!((again - noted).abs() < 1e-9, "{again} and {noted}");
}

#[test]
fn a_master_alone_may_have_an_evaluator_too() {
    let job = evaluating_at_once("max_evals: 1");
    job.cluster("cluster.yaml", &Cluster::new().workers(0).servers(0).evaluator());
    let done = job
        .coati(TRAIN.split_whitespace())
        .cluster("cluster.yaml")
        .run()
        .exits(0);
    let done = done.says(&["evaluator-0 | 1 evaluations are done (eval_config.max_evals)"]);
    assert_eq!(evaluated(&job).len(), 1, "{done}");
    assert!(!job.path("model/best").exists(), "nobody asked for it");
}

#[test]
fn an_evaluator_that_cannot_go_on_is_named_and_training_is_not_disturbed() {
    let job = evaluating_at_once("");
    let cluster = Cluster::new()
        .workers(0)
        .servers(0)
        .evaluator()
        .coati("restart: {max: 0}");
    job.cluster("cluster.yaml", &cluster);
    let running = job.coati(TRAIN.split_whitespace()).cluster("cluster.yaml").start();
    running.wait_for("evaluator-0 | waiting for the first checkpoint");
    kill(pid_of(&job, "evaluator-0"), Signal::SIGKILL).unwrap();
    let _ = running.finish().exits(0).says(&[
        "warning: evaluator-0 was killed by SIGKILL (perhaps because memory ran out): training goes on without evaluation",
        "hint: `coati eval`",
        "finished at step 12",
    ]);
}

#[test]
fn the_best_checkpoint_of_a_job_in_one_process_is_kept() {
    let job = evaluating_at_once("");
    let wrong = job
        .coati(TRAIN.split_whitespace())
        .with("--keep_best DetectionBoxes_Precision/map")
        .run();
    let _ = wrong.exits(2).says(&[
        "is no figure of this evaluation; did you mean `DetectionBoxes_Precision/mAP`?",
        "hint: eval_config.metrics_set",
    ]);
    assert!(!job.path("model").exists(), "refused before anything starts");
    let none = job
        .coati(TRAIN.split_whitespace())
        .with(&format!("--no_eval --keep_best {AP}"))
        .run();
    let _ = none.exits(2).says(&["this job evaluates nothing"]);

    let done = job
        .coati(TRAIN.split_whitespace())
        .with("--keep_best Loss/total_loss")
        .run()
        .exits(0);
    let done = done.says(&["best so far by Loss/total_loss: ", "kept in model/best"]);
    let best = json_file(&job, "model/best/best.json");
    let kept = coati_checkpoint::state::latest(&job.path("model/best"))
        .unwrap()
        .unwrap();
    assert_eq!(json!(kept.step), best["step"], "{done}");
    assert_eq!(coati_checkpoint::state::list(&job.path("model/best")).unwrap().len(), 1);
    // `coati eval` keeps it as well.
    fs::remove_dir_all(job.path("model/best")).unwrap();
    let again = job
        .eval("model")
        .with("--keep_best Loss/total_loss")
        .run()
        .exits(0)
        .json();
    assert_eq!(json_file(&job, "model/best/best.json")["step"], again["global_step"]);
}

#[test]
fn evaluations_of_a_set_say_what_is_odd_and_name_what_is_wrong() {
    let job = evaluating_at_once("num_examples: 100");
    let _ = job.train("model", 2).run().exits(0);
    let done = job.eval("model").run().exits(0);
    let done =
        done.says(&["warning: eval_config.num_examples is 100, but the set has 12 images; all of them are evaluated"]);
    assert_eq!(done.json()["images"], 12);
    // The same record twice, one without an image, one whose boxes are pixels.
    let path = job.path("val.record");
    let mut examples = coati_tests::records::read(&path);
    examples[3] = examples[2].clone();
    coati_tests::records::set_image(&mut examples[4], b"no picture");
    coati_tests::records::set_boxes(&mut examples[5], &[[10.0, 10.0, 40.0, 50.0]], "circle", 1);
    coati_tests::records::write(&path, &examples);
    let done = job.eval("model").run().exits(0);
    let done = done.says(&[
        "val.record: record 3",
        "1 images have the id (image/source_id) of another one",
        "val.record: record 4",
        "val.record: record 5",
    ]);
    assert_eq!(done.json()["images"], 11, "{done}");
}

#[test]
fn a_scheduler_may_start_the_evaluator_outside_of_the_cluster() {
    let job = evaluating_at_once("");
    let config = r#"{"cluster": {"chief": ["127.0.0.1:9"]}, "task": {"type": "evaluator", "index": 0}}"#;
    let second = config.replace("\"index\": 0", "\"index\": 1");
    let refused = job.coati(TRAIN.split_whitespace()).env("TF_CONFIG", &second).run();
    let _ = refused
        .exits(2)
        .says(&["evaluator-1: a job has one evaluator", "hint: its index is 0"]);
    let evaluator = job.coati(TRAIN.split_whitespace()).env("TF_CONFIG", config).start();
    evaluator.wait_for("waiting for the first checkpoint in model");
    let _ = job.train("model", 12).run().exits(0);
    let done = evaluator.finish().exits(0);
    let _ = done.says(&[
        "evaluation at step 12: AP ",
        "the last checkpoint (step 12) is evaluated",
    ]);
}

#[test]
fn masks_of_coco_files_are_read_where_a_metric_asks_for_them() {
    let job = Job::new();
    let square = json!([[2, 2, 6, 2, 6, 6, 2, 6]]);
    let objects = json!({
        "images": [{"id": 1, "height": 16, "width": 16}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4], "area": 16, "iscrowd": 0, "segmentation": square}],
    });
    let found = json!([{"image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4], "score": 0.5, "segmentation": square}]);
    job.write("objects.json", objects.to_string());
    job.write("found.json", found.to_string());
    let flags = "metrics coco --groundtruth objects.json --detections found.json --format json --metrics_set \
                 coco_detection_metrics,coco_mask_metrics";
    let figures = job.coati(flags.split_whitespace()).run().exits(0).json();
    for name in [AP, "DetectionMasks_Precision/mAP"] {
        assert!(
            (figures[name].as_f64().unwrap() - 1.0).abs() < 1e-9,
            "{name}: {figures}"
        );
    }
    job.write(
        "found.json",
        r#"[{"image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4], "score": 0.5}]"#,
    );
    let _ = job.coati(flags.split_whitespace()).run().exits(2).says(&[
        "found.json: detections[0]: no segmentation",
        "hint: masks are compared, since --iou_type segm or a metric of masks asks for them",
    ]);
}
