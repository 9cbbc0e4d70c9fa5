//! `coati check` and what is refused before anything starts; the files that ship with Coati.

use std::fs;

use coati_tests::{Cluster, Finished, Job, cluster_config, repository};
use serde_json::{Value, json};

/// `coati check` of a configuration of the job, with further arguments.
fn check(job: &Job, config: &str, further: &str) -> Finished {
    let arguments = ["check", "--pipeline_config_path", config];
    job.coati(arguments).with(further).run()
}

#[test]
fn the_effective_configuration_reads_back_as_the_same() {
    let job = Job::light();
    let first = check(&job, "pipeline.config", "").exits(0);
    // Defaults are filled in, and what follows the configuration is a comment.
    assert!(first.stdout.contains("max_number_of_boxes: 100"), "{first}");
    assert!(
        first
            .stdout
            .contains("# train: 48 records in 3 file(s)\n# eval: 12 records in 1 file(s)"),
        "{first}"
    );
    job.write("effective.config", &first.stdout);
    let second = check(&job, "effective.config", "").exits(0);
    assert_eq!(first.stdout, second.stdout);
}

#[test]
fn the_report_is_one_json_object() {
    let job = Job::light();
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let report = check(&job, "pipeline.config", &format!("--format json --cluster {cluster}"))
        .exits(0)
        .json();
    assert_eq!(report["ok"], true);
    assert_eq!(report["problems"], json!([]));
    assert_eq!(report["data"]["train"], json!({"records": 48, "files": 3}));
    assert_eq!(report["pipeline"]["model"]["ssd"]["num_classes"], 3);
    assert_eq!(report["pipeline"]["train_config"]["max_number_of_boxes"], 100);
    assert_eq!(report["cluster"]["parameter_servers"]["count"], 3, "{report}");
}

#[test]
fn a_typo_is_shown_where_it_stands() {
    let job = Job::light();
    job.configure("typo.config", &[("    num_classes: 3", "    num_clases: 3")]);
    for command in ["check", "train --model_dir model", "eval --checkpoint_dir model"] {
        let _ = job
            .coati(command.split(' '))
            .with("--pipeline_config_path typo.config")
            .run()
            .exits(2)
            .says(&[
                "error: typo.config:3:5: unknown field `num_clases` in `Ssd`",
                "3 |     num_clases: 3\n",
                "hint: did you mean `num_classes`?",
            ]);
    }
    assert!(!job.path("model").exists(), "a refused job has left a folder");
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let job = Job::light();
    for (change, said) in [
        (
            ("\"ssd_mobilenet_v1\"", "\"ssd_mobiledet_cpu\""),
            &[
                "model.ssd.feature_extractor.type: \"ssd_mobiledet_cpu\"",
                "\"ssd_mobilenet_v1\"",
            ][..],
        ),
        (
            (
                "fixed_shape_resizer { height: 96 width: 96 }",
                "keep_aspect_ratio_resizer { min_dimension: 96 max_dimension: 128 }",
            ),
            &[
                "train_config.batch_size: 4, and keep_aspect_ratio_resizer without pad_to_max_dimension leaves images of many sizes",
                "hint: batch_size: 1 (of each worker), or",
            ],
        ),
    ] {
        job.configure("unsupported.config", &[change]);
        let _ = check(&job, "unsupported.config", "")
            .exits(2)
            .says(said)
            .says(&["unsupported.config:"]);
        let train = job.train("model", 1).with("--pipeline_config_path unsupported.config");
        let _ = train.run().exits(2).says(said);
        let report = check(&job, "unsupported.config", "--format json").exits(2).json();
        assert_eq!(report["ok"], false);
        assert!(report["problems"][0].as_str().unwrap().contains(said[0]), "{report}");
    }
}

#[test]
fn every_cluster_file_that_ships_is_accepted() {
    let job = Job::light();
    let mut names: Vec<String> = fs::read_dir(cluster_config(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    // Workers and servers of each; a file that is added must be entered here.
    let expected = [
        ("asynchronous.yaml", 2, 3),
        ("cloud.yml", 9, 3),
        ("evaluator.yaml", 1, 1),
        ("local.yaml", 2, 3),
        ("one-master.yaml", 0, 0),
        ("pets.yaml", 5, 3),
    ];
    assert_eq!(names, expected.map(|(name, _, _)| name));
    for (name, workers, servers) in expected {
        let path = cluster_config(name);
        let report = check(
            &job,
            "pipeline.config",
            &format!("--format json --cluster {}", path.display()),
        )
        .exits(0)
        .json();
        let cluster = &report["cluster"];
        assert_eq!(
            json!([cluster["workers"]["count"], cluster["parameter_servers"]["count"]]),
            json!([workers, servers]),
            "{name}"
        );
    }
}

#[test]
fn the_figure_that_decides_which_checkpoint_is_kept_is_checked() {
    let job = Job::light();
    let cluster = Cluster::new()
        .evaluator()
        .coati("keep_best: DetectionBoxes_Precision/AP");
    let cluster = job.cluster("cluster.yaml", &cluster);
    let _ = check(&job, "pipeline.config", &format!("--cluster {cluster}")).exits(2).says(&[
        "keep_best: `DetectionBoxes_Precision/AP` is no figure of this evaluation; did you mean `DetectionBoxes_Precision/mAP`?",
        "hint: eval_config.metrics_set decides which there are",
    ]);
}

#[test]
fn dropping_the_slowest_replicas_is_warned_about() {
    let job = Job::light();
    let cluster = job.cluster("cluster.yaml", &Cluster::new().workers(4));
    let _ = check(&job, "pipeline.config", &format!("--cluster {cluster}"))
        .exits(0)
        .says(&[
            "warning: pipeline.config: replicas_to_aggregate is 3, the cluster has 5 training replicas",
            "hint: set replicas_to_aggregate: 5",
        ]);
}

#[test]
fn the_cluster_files_that_ship_run() {
    let job = Job::new();
    let run = |name: &str, says: &[&str]| {
        let model = format!("model-{name}");
        let _ = job
            .train(&model, 3)
            .cluster(cluster_config(name))
            .run()
            .exits(0)
            .says(says);
    };
    run("one-master.yaml", &["1 replica x batch 4, no parameter server"]);
    run("local.yaml", &["3 replicas x batch 4, 3 parameter servers"]);
    run(
        "pets.yaml",
        &[
            "6 replicas x batch 4, 3 parameter servers",
            "accepted without effect: runtimeVersion",
        ],
    );
    run(
        "cloud.yml",
        &["13 tasks on this machine", "10 replicas x batch 4, 3 parameter servers"],
    );
    let flags = "train --pipeline_config_path pipeline.config --model_dir model-evaluator --num_train_steps 3";
    let evaluated = job
        .coati(flags.split(' '))
        .cluster(cluster_config("evaluator.yaml"))
        .run()
        .exits(0);
    let _ = evaluated.says(&[
        "2 replicas x batch 4, 1 parameter server",
        "evaluator-0 | evaluation at step 3",
    ]);
}

#[test]
fn an_even_number_of_servers_is_refused_in_turn_and_warned_about_otherwise() {
    let job = Job::light();
    let even = Cluster::new().servers(4);
    job.cluster("turns.yaml", &even.clone().placement("round_robin"));
    job.cluster("balanced.yaml", &even.placement("balanced"));
    for refused in [
        check(&job, "pipeline.config", "--cluster turns.yaml"),
        job.train("model", 1).cluster("turns.yaml").run(),
    ] {
        let _ = refused.exits(2).says(&[
            "turns.yaml:6:25",
            "parameterServerCount",
            "even",
            "round-robin",
            "biases",
            "hint: ",
        ]);
    }
    let _ = check(&job, "pipeline.config", "--cluster balanced.yaml")
        .exits(0)
        .says(&["warning: ", "parameterServerCount"]);
}

#[test]
fn unknown_keys_and_flags_get_a_suggestion() {
    let job = Job::light();
    job.cluster("typo.yaml", &Cluster::new().training_input("workerCuont: 3"));
    let _ = check(&job, "pipeline.config", "--cluster typo.yaml").exits(2).says(&[
        "typo.yaml:8:3: unknown key `workerCuont`",
        "8 |   workerCuont: 3",
        "hint: did you mean `workerCount`?",
    ]);
    let _ = job
        .train("model", 1)
        .with("--modle_dir x")
        .run()
        .exits(2)
        .says(&["'--modle_dir'", "'--model_dir'"]);
}

#[test]
fn the_sample_configurations_are_accepted() {
    let job = Job::light();
    let mut checked = 0;
    for entry in fs::read_dir(repository().join("samples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "config") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // Their data are not there, all the rest must be right: the job's data take their place.
        let lines = text.lines().map(|line| {
            let (indent, key) = (line.len() - line.trim_start().len(), line.trim_start());
            let indent = &line[..indent];
            if key.starts_with("tf_record_input_reader") {
                format!("{indent}tf_record_input_reader {{ input_path: \"train.record@3\" }}\n")
            } else if key.starts_with("label_map_path") {
                format!("{indent}label_map_path: \"shapes/label_map.pbtxt\"\n")
            } else {
                format!("{line}\n")
            }
        });
        job.write("sample.config", lines.collect::<String>());
        let report = check(&job, "sample.config", "--format json").exits(0).json();
        assert_eq!(report["data"]["train"]["records"], 48, "{}", path.display());
        assert_eq!(report["warnings"], json!([]), "{}", path.display());
        checked += 1;
    }
    assert!(checked >= 2, "only {checked} samples");
}

#[test]
fn a_model_dir_of_another_configuration_is_refused_and_kept() {
    let job = Job::new();
    let _ = job.train("model", 2).run().exits(0);
    let before = fs::read(job.path("model/coati-job.json")).unwrap();
    job.configure("wider.config", &[("depth_multiplier: 0.25", "depth_multiplier: 0.5")]);
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let wider = || job.train("model", 4).with("--pipeline_config_path wider.config");
    for refused in [
        wider().run(),
        wider().cluster(cluster).run(),
        check(&job, "wider.config", "--model_dir model"),
    ] {
        let _ = refused.exits(2).says(&[
            "model belongs to another configuration: it was made with `depth_multiplier: 0.25`, wider.config has `depth_multiplier: 0.5`",
            "hint: choose another --model_dir",
        ]);
    }
    assert_eq!(fs::read(job.path("model/coati-job.json")).unwrap(), before);
    let _ = job.train("model", 4).run().exits(0).says(&["resuming from step 2 "]);
}

#[test]
fn a_precision_that_nothing_here_computes_in_is_refused_before_the_start() {
    let job = Job::light();
    let refused = |flags: &str, device: &str, words: &[&str]| {
        let _ = job
            .train("model", 2)
            .with(flags)
            .env("COATI_DEVICE", device)
            .run()
            .exits(2)
            .says(words);
        assert!(!job.path("model").exists(), "a refused job has left a folder");
    };
    refused(
        "--precision bf16",
        "cpu",
        &[
            "error: precision bf16 is asked for, but this replica computes on the CPU",
            "hint: leave it out",
        ],
    );
    refused("--tf32", "cpu", &["tf32 is asked for", "hint: "]);
    refused(
        "--precision half",
        "cpu",
        &["\"half\" is no precision; known are auto, float32, bf16, fp16"],
    );
    refused(
        "",
        "gpu",
        &["COATI_DEVICE is \"gpu\", which is no device", "hint: auto, cpu, cuda"],
    );
    let low = Cluster::new().coati("precision: fp16");
    job.cluster("cluster.yaml", &low);
    refused("--cluster cluster.yaml", "cpu", &["precision fp16 is asked for"]);
    job.cluster("cluster.yaml", &low.coati("devices: cpu"));
    refused(
        "--cluster cluster.yaml",
        "auto",
        &[
            "`coati.precision: fp16` with `devices: cpu`",
            "hint: leave `precision` out",
        ],
    );
}

#[test]
fn text_and_json_agree_about_problems() {
    let job = Job::light();
    job.configure(
        "two.config",
        &[("val.record", "nothing.record"), ("label_map.pbtxt", "no_map.pbtxt")],
    );
    let text = check(&job, "two.config", "").exits(2);
    let report = check(&job, "two.config", "--format json").exits(2).json();
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{report}");
    for problem in problems.iter().filter_map(Value::as_str) {
        assert!(text.stderr.contains(problem), "`{problem}` is not in {text}");
    }
}
