//! Training on a cluster and in one process, to the end and on from there.

use std::fs;
use std::path::Path;

use coati_common::config::PipelineConfig;
use coati_proto::tensorflow::{BytesList, Example, Int64List, feature::Kind};
use coati_tests::{Cluster, Job, records, tensors};
use serde_json::{Value, json};

/// Whether a folder holds a file whose name starts like this.
fn holds(folder: &Path, start: &str) -> bool {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(start))
}

/// What `coati checkpoint show` says of the newest checkpoint.
fn newest(job: &Job, model_dir: &str) -> Value {
    let shown = job
        .coati(["checkpoint", "show", model_dir, "--format", "json"])
        .run()
        .exits(0)
        .json();
    shown["checkpoints"].as_array().unwrap().last().unwrap().clone()
}

/// libtorch on the CPU stands for a GPU. The same seed gives the same run, resumed or not: gradients' scale is nothing to remember.
#[test]
fn a_job_in_float16_goes_on_as_if_it_had_not_stopped() {
    let job = Job::new();
    let train = |folder: &str, steps: u64| {
        let command = job
            .train(folder, steps)
            .with("--precision fp16")
            .env("COATI_DEVICE", "torch-cpu");
        let _ = command.env("COATI_THREADS", "1").run().exits(0);
    };
    train("whole", 6);
    train("parts", 3);
    train("parts", 6);
    let [whole, parts] = ["whole", "parts"].map(|folder| tensors::read(&job.path(folder), 6));
    tensors::assert_same_bits(&whole, &parts, "a run in one piece and one in two");
    let exact = job.train("exact", 6).env("COATI_DEVICE", "torch-cpu");
    let _ = exact.env("COATI_THREADS", "1").run().exits(0);
    assert_ne!(whole, tensors::read(&job.path("exact"), 6));
}

#[test]
fn a_cluster_trains_goes_on_and_evaluates() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    // With evaluation while it trains; `train` alone leaves it out.
    let train = |steps: &str| {
        let flags = "train --pipeline-config-path pipeline.config --model-dir model --num-train-steps";
        job.coati(flags.split(' ').chain([steps])).cluster(cluster)
    };
    let done = train("20").run().exits(0).says(&[
        "6 tasks on this machine",
        "training from step 0 to 20: 3 replicas x batch 4, 3 parameter servers, 48 records",
        "step 20/20  loss ",
        "checkpoint model/model.ckpt-20",
        "evaluation at step 20: AP ",
        "finished at step 20: ",
    ]);
    assert_eq!(done.stdout, "", "training has nothing to say on stdout: {done}");
    let model = job.path("model");
    for name in [
        "model.ckpt-20.index",
        "model.ckpt-20.data-00002-of-00003",
        "checkpoint",
        "events.out.tfevents.",
        "pipeline.config",
    ] {
        assert!(holds(&model, name), "no {name} in {}", model.display());
    }
    for log in ["master", "worker-0", "worker-1", "ps-0", "ps-1", "ps-2"] {
        assert!(holds(&model.join("logs"), &format!("{log}.log")), "no log of {log}");
    }
    let summary: Value = serde_json::from_str(&job.read("model/summary.json")).unwrap();
    assert_eq!(summary["step"], 20);
    for share in ["compute", "exchange", "input"] {
        assert!((0.0..=1.0).contains(&summary[share].as_f64().unwrap()), "{summary}");
    }
    // 20 steps of three replicas with four records each, five epochs of 48 records.
    let checkpoint = newest(&job, "model");
    assert_eq!(
        json!([
            checkpoint["step"],
            checkpoint["records_seen"],
            checkpoint["epoch"],
            checkpoint["replicas"]
        ]),
        json!([20, 240, 5, 3])
    );

    let _ = train("26").run().exits(0).says(&[
        "resuming from step 20 (model/model.ckpt-20)",
        "training from step 20 to 26",
        "step 26/26",
    ]);
    assert_eq!(newest(&job, "model")["records_seen"], 312);
    let again = train("26")
        .run()
        .exits(0)
        .says(&["model is at step 26 already: nothing to train up to 26"]);
    assert!(!again.stderr.contains("error:"), "{again}");

    let report = job.eval("model").run().exits(0).json();
    assert_eq!(json!([report["global_step"], report["images"]]), json!([26, 12]));
    let metrics = report["metrics"].as_object().unwrap();
    for name in [
        "DetectionBoxes_Precision/mAP",
        "DetectionBoxes_Precision/mAP@.50IOU",
        "DetectionBoxes_Precision/mAP@.75IOU",
        "DetectionBoxes_Precision/mAP (small)",
        "DetectionBoxes_Precision/mAP (medium)",
        "DetectionBoxes_Precision/mAP (large)",
        "DetectionBoxes_Recall/AR@1",
        "DetectionBoxes_Recall/AR@10",
        "DetectionBoxes_Recall/AR@100",
        "DetectionBoxes_Recall/AR@100 (small)",
        "DetectionBoxes_Recall/AR@100 (medium)",
        "DetectionBoxes_Recall/AR@100 (large)",
    ] {
        assert!(metrics.get(name).is_some_and(Value::is_number), "no {name} in {report}");
    }
}

#[test]
fn one_process_trains_and_exchanges_checkpoints_with_a_cluster() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new().workers(1));
    let _ = job
        .train("model", 4)
        .run()
        .exits(0)
        .says(&["1 replica x batch 4, no parameter server"]);
    let _ = job.train("model", 8).cluster(cluster).run().exits(0).says(&[
        "resuming from step 4 (model/model.ckpt-4)",
        "2 replicas x batch 4, 3 parameter servers",
    ]);
    let _ = job
        .train("model", 12)
        .run()
        .exits(0)
        .says(&["resuming from step 8 (model/model.ckpt-8)"]);
    // 4 and 4 steps of one replica, 4 of two.
    assert_eq!(newest(&job, "model")["records_seen"], 64);
    let (before, after) = (
        tensors::read(&job.path("model"), 8),
        tensors::read(&job.path("model"), 12),
    );
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
}

#[test]
fn an_asynchronous_job_trains() {
    let job = Job::new();
    job.configure("pipeline.config", &[("sync_replicas: true", "sync_replicas: false")]);
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let _ = job
        .train("model", 30)
        .cluster(cluster)
        .run()
        .exits(0)
        .says(&["finished at step 30"]);
    // A step is one replica's batch.
    assert_eq!(newest(&job, "model")["records_seen"], 120);
    let _ = job
        .train("model", 35)
        .cluster(cluster)
        .run()
        .exits(0)
        .says(&["resuming from step 30"]);
    assert_eq!(newest(&job, "model")["records_seen"], 140);
    // One process first uses the records that were handed out and came to nothing, if there are any: 15 steps of 4.
    let _ = job.train("model", 50).run().exits(0).says(&["resuming from step 35"]);
    let manifest: Value = serde_json::from_str(&job.read("model/model.ckpt-50.coati.json")).unwrap();
    assert_eq!(manifest["data"], json!({"position": 200, "open": []}));
}

#[test]
fn old_checkpoints_go_and_the_newest_stay() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new().workers(1).servers(1));
    let saving = "--save_checkpoints_steps 2 --keep_checkpoint_max 3";
    let _ = job.train("model", 12).with(saving).cluster(cluster).run().exits(0);
    let shown = job
        .coati(["checkpoint", "show", "model", "--format", "json"])
        .run()
        .exits(0)
        .json();
    let steps: Vec<&Value> = shown["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["step"])
        .collect();
    assert_eq!(steps, [8, 10, 12]);
}

#[test]
fn a_scheduler_can_start_the_tasks_by_tf_config() {
    let job = Job::new();
    let ports: Vec<String> = {
        let held: Vec<_> = (0..3)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        held.iter()
            .map(|listener| listener.local_addr().unwrap().to_string())
            .collect()
    };
    let start = |kind: &str| {
        let cluster = json!({"master": [ports[0]], "worker": [ports[1]], "ps": [ports[2]]});
        let config = json!({"cluster": cluster, "task": {"type": kind, "index": 0}});
        job.train("model", 6).env("TF_CONFIG", &config.to_string()).start()
    };
    let (server, worker, master) = (start("ps"), start("worker"), start("master"));
    let _ = master
        .finish()
        .exits(0)
        .says(&["2 replicas x batch 4, 1 parameter server", "finished at step 6"]);
    let _ = worker.finish().exits(0);
    let _ = server.finish().exits(0);
}

/// `coati infer` with `model` on the twelve records of `val.record`.
fn infers_all(job: &Job) {
    let infer =
        "infer --input_tfrecord_paths val.record --output_tfrecord_path found.record --model_dir model --format json";
    let report = job.coati(infer.split(' ')).run().exits(0).json();
    assert_eq!(
        (&report["records"], &report["without_image_count"]),
        (&json!(12), &json!(0))
    );
}

/// The shape of the first convolution's weights in a job's checkpoint.
fn first_weights(job: &Job, prefix: &str) -> Value {
    let list = format!("checkpoint list {prefix} --no_statistics --format json");
    let all = job.coati(list.split(' ')).run().exits(0).json();
    let tensors = all["tensors"].as_array().unwrap();
    let found = tensors.iter().find(|tensor| {
        let name = tensor["name"].as_str().unwrap();
        name == "FeatureExtractor/MobilenetV1/Conv2d_0/weights"
    });
    found.unwrap()["shape"].clone()
}

#[test]
fn images_with_additional_channels_train_evaluate_and_infer() {
    let job = Job::new();
    let files: Vec<String> = (0..3)
        .map(|shard| format!("train.record-{shard:05}-of-00003"))
        .collect();
    for name in files.iter().map(String::as_str).chain(["val.record"]) {
        let mut examples = records::read(&job.path(name));
        for example in &mut examples {
            let image = example.features.as_ref().unwrap().feature["image/encoded"].clone();
            let Some(Kind::BytesList(image)) = image.kind else {
                panic!("no image")
            };
            let value = [image.value.clone(), image.value].concat();
            records::set(
                example,
                "image/additional_channels/encoded",
                Kind::BytesList(BytesList { value }),
            );
        }
        records::write(&job.path(name), &examples);
    }
    let two = |reader: &str| format!("{reader} {{ num_additional_channels: 2");
    let (train, eval) = (two("train_input_reader"), two("eval_input_reader"));
    let both = [("train_input_reader {", train.as_str()), ("eval_input_reader {", &eval)];
    job.configure("pipeline.config", &both);
    let _ = job.train("model", 2).run().exits(0);
    assert_eq!(first_weights(&job, "model/model.ckpt-2"), json!([3, 3, 5, 8]));
    assert_eq!(job.eval("model").run().exits(0).json()["images"], 12);
    infers_all(&job);
    let detect = "detect --image shapes/JPEGImages --model_dir model";
    let _ = job.coati(detect.split(' ')).run().exits(2).says(&[
        "this model takes 2 additional channels",
        "hint: `coati infer` reads them from records",
    ]);
    // Records without them are named one by one, and a reader that does not ask for them is refused at once.
    job.configure(
        "three.config",
        &[
            (
                "train_input_reader {",
                "train_input_reader { num_additional_channels: 3",
            ),
            ("eval_input_reader {", "eval_input_reader { num_additional_channels: 3"),
        ],
    );
    let _ = job
        .coati("train --pipeline_config_path three.config --model_dir other --num_train_steps 1 --no_eval".split(' '))
        .run()
        .exits(1)
        .says(&["image/additional_channels/encoded: holds 2 images; num_additional_channels is 3"]);
    job.configure("one.config", &both[..1]);
    let _ = job
        .coati("check --pipeline_config_path one.config".split(' '))
        .run()
        .exits(2)
        .says(&["hint: one network reads both: give both readers the same num_additional_channels"]);
}

/// Pictures of 96 x 96 lie in the upper left 64 x 64 of what the network sees.
#[test]
fn grey_images_with_padding_train_evaluate_and_are_looked_at() {
    let job = Job::new();
    let resizer = "keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 96 pad_to_max_dimension: true convert_to_grayscale: true }";
    job.configure(
        "pipeline.config",
        &[("fixed_shape_resizer { height: 96 width: 96 }", resizer)],
    );
    let _ = job.train("model", 2).run().exits(0);
    assert_eq!(first_weights(&job, "model/model.ckpt-2"), json!([3, 3, 1, 8]));
    assert_eq!(job.eval("model").run().exits(0).json()["images"], 12);
    let detect = "detect --image shapes/JPEGImages/val_00000.jpg --model_dir model --score_threshold 0 --format json";
    let found = job.coati(detect.split(' ')).run().exits(0).json();
    let detections = found["images"][0]["detections"].as_array().unwrap();
    let far = detections
        .iter()
        .map(|one| one["box_px"][3].as_f64().unwrap())
        .fold(0.0, f64::max);
    assert!(
        (95.9..=96.0).contains(&far),
        "boxes reach the picture's end and not beyond: {far}"
    );
}

/// Rows and columns of the images of a set, in turn; as they leave the resizer of the test below they are 96 x 64, 64 x 96, 64 x 64 and 38 x 96.
const SIZES: [(u32, u32); 4] = [(96, 64), (64, 96), (80, 80), (48, 120)];

/// The picture of a record; its boxes are shares of its sides and stay.
fn stretched(example: &mut Example, (height, width): (u32, u32)) -> image::RgbImage {
    let features = &example.features.as_ref().unwrap().feature;
    let Some(Kind::BytesList(encoded)) = &features["image/encoded"].kind else {
        panic!("no image")
    };
    let stored = image::load_from_memory(&encoded.value[0]).unwrap().to_rgb8();
    let picture = image::imageops::resize(&stored, width, height, image::imageops::FilterType::Triangle);
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    records::set_image(example, png.get_ref());
    for (name, side) in [("image/height", height), ("image/width", width)] {
        let value = vec![i64::from(side)];
        records::set(example, name, Kind::Int64List(Int64List { value }));
    }
    picture
}

#[test]
fn images_of_many_sizes_train_evaluate_and_are_looked_at() {
    let job = Job::new();
    fs::create_dir(job.path("pictures")).unwrap();
    for name in [
        "train.record-00000-of-00003",
        "train.record-00001-of-00003",
        "train.record-00002-of-00003",
        "val.record",
    ] {
        let mut examples = records::read(&job.path(name));
        for (i, example) in examples.iter_mut().enumerate() {
            let picture = stretched(example, SIZES[i % SIZES.len()]);
            if name == "val.record" {
                picture.save(job.path(&format!("pictures/{i:02}.png"))).unwrap();
            }
        }
        records::write(&job.path(name), &examples);
    }
    let (fixed, batch) = (
        "fixed_shape_resizer { height: 96 width: 96 }",
        ("batch_size: 4", "batch_size: 1"),
    );
    let keep = "keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 96 }";
    job.configure("pipeline.config", &[(fixed, keep), batch]);
    let _ = job.train("model", 8).run().exits(0);
    // Which sizes a network was laid out for before changes no bit.
    for steps in [3, 8] {
        let _ = job.train("again", steps).run().exits(0);
    }
    let [model, again] = ["model", "again"].map(|folder| tensors::read(&job.path(folder), 8));
    tensors::assert_same_bits(&model, &again, "a run in one piece and one in two");
    // Variables are those of a network for one size.
    let padded = keep.replace(" }", " pad_to_max_dimension: true }");
    job.configure("padded.config", &[(fixed, &padded), batch]);
    let _ = job
        .train("padded", 8)
        .with("--pipeline_config_path padded.config")
        .run()
        .exits(0);
    let names = |found: &tensors::Tensors| found.keys().cloned().collect::<Vec<_>>();
    let padded = tensors::read(&job.path("padded"), 8);
    assert_eq!(names(&model), names(&padded));
    assert_ne!(model, padded);

    let report = job.eval("model").run().exits(0).json();
    assert_eq!(report["images"], 12, "{report}");
    infers_all(&job);
    let detect = "detect --image pictures --model_dir model --score_threshold 0 --format json";
    let found = job.coati(detect.split(' ')).run().exits(0).json();
    for (i, one) in found["images"].as_array().unwrap().iter().enumerate() {
        let (height, width) = SIZES[i % SIZES.len()];
        let furthest = |side: usize| {
            let boxes = one["detections"].as_array().unwrap().iter();
            boxes
                .map(|one| one["box_px"][side].as_f64().unwrap())
                .fold(0.0, f64::max)
        };
        let (height, width) = (f64::from(height), f64::from(width));
        assert!(
            (0.9 * height..=height).contains(&furthest(2)) && (0.9 * width..=width).contains(&furthest(3)),
            "boxes reach the ends of picture {i} and not beyond: {} of {height}, {} of {width}",
            furthest(2),
            furthest(3)
        );
    }
    // A network for one size sees the same of a picture that has this size already, rows as rows and columns as columns.
    let one_size = "fixed_shape_resizer { height: 64 width: 96 }";
    job.configure("fixed.config", &[(fixed, one_size), batch]);
    let config = PipelineConfig::load(&job.path("fixed.config")).unwrap();
    let mut network = coati_worker::model::build(&config, Some(1)).unwrap();
    let prefix = job.path("model/model.ckpt-8");
    let variables = coati_worker::model::read_variables(&network, &prefix, false).unwrap();
    let picture = image::open(job.path("pictures/01.png")).unwrap().to_rgb8();
    let pixels: Vec<f32> = picture.as_raw().iter().map(|&value| f32::from(value)).collect();
    let seen = network.detect(&variables, &pixels).unwrap().remove(0);
    let listed = found["images"][1]["detections"].as_array().unwrap();
    assert_eq!(listed.len(), seen.scores.len());
    for (listed, (score, bounds)) in listed.iter().zip(seen.scores.iter().zip(&seen.boxes)) {
        let off = |listed: &Value, seen: f32| (listed.as_f64().unwrap() - f64::from(seen)).abs();
        assert!(off(&listed["score"], *score) < 1e-6, "{listed}, and {score}");
        assert!(
            (0..4).all(|side| off(&listed["box"][side], bounds[side]) < 1e-5),
            "{listed}, and {bounds:?}"
        );
    }
    // Detections of one picture do not depend on those beside it.
    let alone = detect.replace("--image pictures", "--image pictures/03.png");
    let alone = job.coati(alone.split(' ')).run().exits(0).json();
    assert_eq!(alone["images"][0]["detections"], found["images"][3]["detections"]);

    // One that is too small for the network is told apart from the others.
    image::RgbImage::new(300, 20)
        .save(job.path("pictures/small.png"))
        .unwrap();
    let done = job.coati(detect.split(' ')).run().exits(0).says(&[
        "pictures/small.png: image_resizer leaves it 6 x 96 pixels, and the model takes sides of at least 33",
        "12 pictures",
    ]);
    assert_eq!(done.json()["images"].as_array().unwrap().len(), 12);
}
