//! `coati eval`: which checkpoints, which examples, what besides the metrics.

use std::fs;

use coati_tests::Job;
use serde_json::json;

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
    let events = |folder: &str| fs::read_dir(job.path(folder)).unwrap().count();
    assert_eq!([events("model/eval"), events("model/eval_on_train")], [2, 1]);
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
