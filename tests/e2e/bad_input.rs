//! Spoiled data: what is wrong is named with its file and record, and little of it does not end a job.

use std::fs;
use std::net::TcpListener;

use coati_tests::{Cluster, Finished, Job, records};
use serde_json::json;

/// A job whose training set is the one file `bad.record`, made from the good examples by `spoil`.
fn job_with(spoil: impl FnOnce(&mut Vec<coati_proto::tensorflow::Example>)) -> Job {
    let job = Job::new();
    let mut examples: Vec<_> = (0..3)
        .flat_map(|shard| records::read(&job.path(&format!("train.record-{shard:05}-of-00003"))))
        .collect();
    spoil(&mut examples);
    records::write(&job.path("bad.record"), &examples);
    job.configure("pipeline.config", &[("train.record-?????-of-00003", "bad.record")]);
    job
}

/// An epoch of training: every record is read.
fn epoch(job: &Job) -> Finished {
    job.train("model", 14).run()
}

/// What `coati data inspect` lists as bad.
fn bad(job: &Job) -> Vec<String> {
    let flags = "data inspect bad.record --label_map_path shapes/label_map.pbtxt --format json";
    let report = job.coati(flags.split(' ')).run().exits(0).json();
    let listed = report["bad"].as_array().unwrap().iter();
    listed.map(|problem| problem.as_str().unwrap().to_owned()).collect()
}

/// The record is named by training, which goes on without it, and by `inspect`.
fn is_a_warning(job: &Job, record: usize, words: &[&str]) {
    let done = epoch(job).exits(0);
    let place = format!("bad.record: record {record}");
    let mut parts = vec![place.as_str()];
    parts.extend(words);
    let line = done
        .stderr
        .lines()
        .find(|line| parts.iter().all(|part| line.contains(part)));
    assert!(line.is_some(), "no line with {parts:?} in {done}");
    let listed = bad(job);
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(
        parts.iter().all(|part| listed[0].contains(part)),
        "{parts:?}: {listed:?}"
    );
}

#[test]
fn a_file_that_was_cut_short() {
    let job = job_with(|_| {});
    records::cut(&job.path("bad.record"), 100);
    let words = [
        "bad.record: record 47 at byte ",
        "are left in the file",
        "hint: the file was cut short",
    ];
    let _ = epoch(&job).exits(2).says(&words);
    let _ = job
        .coati("check --pipeline_config_path pipeline.config".split(' '))
        .run()
        .exits(2)
        .says(&words);
    let _ = job.coati(["data", "inspect", "bad.record"]).run().exits(2).says(&words);
    assert!(!job.path("model").exists(), "a refused job has left a folder");
}

#[test]
fn a_flipped_bit() {
    let job = job_with(|_| {});
    records::flip_a_bit(&job.path("bad.record"), 17);
    is_a_warning(&job, 17, &["CRC"]);
}

#[test]
fn an_image_that_does_not_decode() {
    let job = job_with(|examples| records::set_image(&mut examples[5], b"\xff\xd8\xff not a picture"));
    is_a_warning(&job, 5, &[]);
}

#[test]
fn too_many_images_that_do_not_decode() {
    let job = job_with(|examples| {
        for example in examples.iter_mut().take(30) {
            records::set_image(example, b"nothing");
        }
    });
    let _ = epoch(&job).exits(1).says(&[
        "25 bad records, more than the 24 allowed among 48",
        "bad.record: record ",
        "and 20 more",
    ]);
}

#[test]
fn boxes_outside_the_image() {
    let job = job_with(|examples| {
        records::set_boxes(
            &mut examples[11],
            &[[0.1, 0.1, 0.5, 0.5], [0.2, 1.2, 0.4, 1.4]],
            "circle",
            1,
        );
    });
    is_a_warning(&job, 11, &["box", "outside"]);
}

#[test]
fn inverted_boxes() {
    let job = job_with(|examples| records::set_boxes(&mut examples[11], &[[0.6, 0.1, 0.2, 0.5]], "circle", 1));
    is_a_warning(&job, 11, &["inverted"]);
}

#[test]
fn a_label_that_is_not_in_the_map() {
    let job = job_with(|examples| records::set_boxes(&mut examples[11], &[[0.2, 0.1, 0.6, 0.5]], "hexagon", 9));
    is_a_warning(&job, 11, &["hexagon"]);
}

#[test]
fn an_import_with_a_label_that_is_not_in_the_map() {
    let job = Job::light();
    let map = job.read("shapes/label_map.pbtxt").replace("triangle", "hexagon");
    job.write("other.pbtxt", map);
    let flags = "data import voc --data_dir shapes --label_map_path other.pbtxt --output_path other.record";
    let _ = job.coati(flags.split(' ')).run().exits(2).says(&[
        "class `triangle` is not in the label map",
        ".xml:",
        "circle, square, hexagon",
    ]);
}

#[test]
fn a_label_map_with_id_0() {
    let job = Job::light();
    let map = job.read("shapes/label_map.pbtxt").replace("id: 1", "id: 0");
    job.write("zero.pbtxt", map);
    job.configure("zero.config", &[("shapes/label_map.pbtxt", "zero.pbtxt")]);
    for command in ["train --model_dir model", "check", "eval --checkpoint_dir model"] {
        let command = job.coati(command.split(' ')).with("--pipeline_config_path zero.config");
        let _ = command.run().exits(2).says(&["zero.pbtxt:2", "id 0", "background"]);
    }
}

#[test]
fn a_head_with_more_classes_than_the_label_map() {
    let job = Job::light();
    job.configure("five.config", &[("num_classes: 3", "num_classes: 5")]);
    let _ = job
        .train("model", 1)
        .with("--pipeline_config_path five.config")
        .run()
        .exits(2)
        .says(&[
            "model.ssd.num_classes is 5, but the label map's largest id is 3: classes 4 to 5 would never be trained",
            "hint: set num_classes: 3",
        ]);
    assert!(!job.path("model").exists(), "a refused job has left a folder");
}

#[test]
fn a_label_map_with_more_classes_than_the_model() {
    let job = Job::light();
    job.configure("two.config", &[("num_classes: 3", "num_classes: 2")]);
    let _ = job
        .train("model", 1)
        .with("--pipeline_config_path two.config")
        .run()
        .exits(2)
        .says(&[
            "model.ssd.num_classes is 2, but the label map has id 3",
            "hint: set num_classes: 3",
        ]);
}

#[test]
fn an_empty_data_set() {
    let job = job_with(Vec::clear);
    let words = ["bad.record: the data set is empty", "hint: import images into it"];
    let _ = epoch(&job).exits(2).says(&words);
    let _ = job
        .coati("check --pipeline_config_path pipeline.config".split(' '))
        .run()
        .exits(2)
        .says(&words);
}

#[test]
fn records_that_are_not_there() {
    let job = Job::light();
    fs::remove_file(job.path("train.record-00001-of-00003")).unwrap();
    job.configure("list.config", &[("train.record-?????-of-00003", "train.record@3")]);
    let _ = job
        .train("model", 1)
        .with("--pipeline_config_path list.config")
        .run()
        .exits(2)
        .says(&["train.record-00001-of-00003"]);
    job.configure(
        "none.config",
        &[("train.record-?????-of-00003", "nothing-?????-of-00003")],
    );
    let _ = job
        .train("model", 1)
        .with("--pipeline_config_path none.config")
        .run()
        .exits(2)
        .says(&["nothing-?????-of-00003"]);
}

#[test]
fn a_missing_checkpoint() {
    let job = Job::light();
    let _ = job
        .eval("nowhere")
        .run()
        .exits(2)
        .says(&["nowhere: no complete checkpoint", "hint: --checkpoint_dir"]);
    fs::create_dir(job.path("empty")).unwrap();
    let _ = job
        .eval("empty")
        .run()
        .exits(2)
        .says(&["empty: no complete checkpoint"]);
}

#[test]
fn a_checkpoint_whose_data_are_gone() {
    let job = Job::new();
    let _ = job.train("model", 4).with("--save_checkpoints_steps 2").run().exits(0);
    // The newest one loses its data: the one before counts, and is said to.
    fs::remove_file(job.path("model/model.ckpt-4.data-00000-of-00001")).unwrap();
    let _ = job
        .train("model", 5)
        .run()
        .exits(0)
        .says(&["model.ckpt-4", "resuming from step 2 (model/model.ckpt-2)"]);
    // None is left: that is an error, not a fresh start.
    for step in [2, 5] {
        fs::remove_file(job.path(&format!("model/model.ckpt-{step}.data-00000-of-00001"))).unwrap();
    }
    let _ = job.train("model", 6).run().exits(2).says(&["model.ckpt-5", "hint: "]);
}

#[test]
fn a_port_in_use() {
    let job = Job::light();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for kind in ["ps", "master"] {
        let other = if kind == "ps" { "master" } else { "ps" };
        let cluster = json!({kind: [address], other: ["127.0.0.1:1"]});
        let config = json!({"cluster": cluster, "task": {"type": kind, "index": 0}});
        let task = job.train("model", 2).env("TF_CONFIG", &config.to_string());
        let _ = task.run().exits(1).says(&[&address, "in use"]);
    }
}

#[test]
fn a_folder_that_cannot_be_written() {
    let job = Job::new();
    job.write("model", "a file, not a folder");
    let _ = job
        .train("model", 2)
        .run()
        .exits(2)
        .says(&["model", "hint: --model_dir must be a folder that can be written"]);
}

#[test]
fn a_flipped_bit_in_a_checkpoint() {
    let job = Job::new();
    let _ = job.train("model", 4).with("--save_checkpoints_steps 2").run().exits(0);
    let data = job.path("model/model.ckpt-4.data-00000-of-00001");
    let mut bytes = fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 8;
    fs::write(&data, &bytes).unwrap();
    let words = [
        "model/model.ckpt-4.data-00000-of-00001: tensor ",
        "CRC is",
        "hint: model/model.ckpt-2 is whole: move model/model.ckpt-4.* away",
    ];
    let _ = job.train("model", 6).run().exits(1).says(&words);
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let _ = job.train("model", 6).cluster(cluster).run().exits(1).says(&words);
    // An evaluation reads no slots: one bit in each kilobyte hits what it reads.
    for byte in bytes.iter_mut().step_by(1000) {
        *byte ^= 1;
    }
    fs::write(&data, &bytes).unwrap();
    let _ = job
        .eval("model")
        .run()
        .exits(2)
        .says(&["tensor ", "model/model.ckpt-2 is whole"]);
    // What the hint says works.
    for ending in ["index", "data-00000-of-00001", "coati.json"] {
        fs::remove_file(job.path(&format!("model/model.ckpt-4.{ending}"))).unwrap();
    }
    let _ = job
        .train("model", 3)
        .run()
        .exits(0)
        .says(&["resuming from step 2 (model/model.ckpt-2)"]);
}

#[test]
fn a_manifest_of_a_future_version() {
    let job = Job::new();
    let _ = job.train("model", 4).with("--save_checkpoints_steps 2").run().exits(0);
    job.write(
        "model/model.ckpt-4.coati.json",
        r#"{"version": 99, "software_version": "7.0"}"#,
    );
    let words = [
        "model.ckpt-4.coati.json",
        "version 99",
        "hint: use the Coati that wrote it (7.0)",
    ];
    let _ = job.train("model", 6).run().exits(2).says(&words);
    let _ = job.eval("model").run().exits(2).says(&words);
}

#[test]
fn two_coordinators_for_one_job() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new().coati("restart: {max: 0}"));
    let running = job.under_way(cluster);
    let master = crate::faults::pid_of(&job, "master").to_string();
    let held = format!("another coordinator runs this job: process {master} on ");
    let words = ["model: ", held.as_str(), "hint: wait for it to end or stop it"];
    let before = job.read("model/coati-job.json");
    let _ = job
        .train("model", 1_000_000)
        .cluster(cluster)
        .run()
        .exits(2)
        .says(&words);
    let _ = job.train("model", 1_000_000).run().exits(2).says(&words);
    // A master of its own, as a scheduler would start it.
    let tasks =
        json!({"cluster": {"master": ["127.0.0.1:1"], "ps": ["127.0.0.1:2"]}, "task": {"type": "master", "index": 0}});
    let second = job.train("model", 2).env("TF_CONFIG", &tasks.to_string());
    let _ = second.run().exits(2).says(&words);
    assert_eq!(job.read("model/coati-job.json"), before, "the job was not touched");
    // The lock dies with its process, however that ends.
    nix::sys::signal::kill(crate::faults::pid_of(&job, "master"), nix::sys::signal::Signal::SIGKILL).unwrap();
    let _ = running.finish().exits(1);
    let _ = job.train("model", 6).run().exits(0);
}

#[test]
fn settings_for_stale_gradients_in_a_synchronous_job() {
    let job = Job::light();
    let yaml =
        Cluster::new().yaml() + "coati:\n  consistency: {scale_learning_rate: true, delay_compensation: constant}\n";
    job.write("cluster.yaml", &yaml);
    let check = "check --pipeline_config_path pipeline.config --cluster cluster.yaml";
    let _ = job.coati(check.split(' ')).run().exits(0).says(&[
        "coati.consistency.scale_learning_rate, coati.consistency.delay_compensation has no effect",
        "sync_replicas: true",
    ]);
    job.write(
        "cluster.yaml",
        yaml.replace("delay_compensation", "delay_compensations"),
    );
    let _ = job
        .coati(check.split(' '))
        .run()
        .exits(2)
        .says(&["cluster.yaml:9", "did you mean `delay_compensation`?"]);
}
