//! Jobs whose data, configuration, checkpoints and events are in a bucket.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use coati_storage::{self as storage, File};
use coati_tests::bucket::{Faults, Proxy, Server, gs_at, s3_at};
use coati_tests::{Cluster, Job, records, tensors};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

/// Names the folder to work in, in the process of its own that a suite has: credentials are of a process.
const PLACE: &str = "COATI_TEST_PLACE";

/// The folder of a part that runs in a process of its own; none in the process that starts such parts.
fn own_place() -> Option<PathBuf> {
    std::env::var_os(PLACE).map(PathBuf::from)
}

/// What every place must do. Runs in a process of its own, started by the tests below.
#[test]
fn suite() {
    let Some(place) = own_place() else { return };
    whole_files(&place.join("whole"));
    conditions(&place.join("conditions"));
    ranges(&place.join("ranges"));
    patterns(&place.join("patterns"));
}

fn whole_files(folder: &Path) {
    storage::create_dir_all(&folder.join("sub")).unwrap();
    let file = folder.join("a.txt");
    assert!(storage::read(&file).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound));
    storage::put(&file, b"one").unwrap();
    storage::put(&file, b"two").unwrap();
    storage::put(&folder.join("sub/b.txt"), b"").unwrap();
    assert_eq!(storage::read_to_string(&file).unwrap(), "two");
    let names: Vec<(String, bool, u64)> = storage::list(folder)
        .unwrap()
        .into_iter()
        .filter(|entry| entry.is_file)
        .map(|entry| (entry.name, entry.is_file, entry.bytes))
        .collect();
    assert_eq!(names, [("a.txt".to_owned(), true, 3)]);
    assert!(
        storage::list(folder)
            .unwrap()
            .iter()
            .any(|entry| entry.name == "sub" && !entry.is_file)
    );
    assert!(storage::is_dir(folder) && storage::is_file(&file) && !storage::is_file(folder));
    let many = [file.clone(), folder.join("sub/b.txt")];
    assert_eq!(storage::read_many(&many).unwrap(), [b"two".to_vec(), Vec::new()]);
    let stat = storage::stat(&file).unwrap();
    assert!(
        stat.bytes == 3 && stat.modified_ns > 1_600_000_000_000_000_000,
        "{stat:?}"
    );
    storage::remove_many(&many).unwrap();
    assert!(!storage::is_file(&many[0]) && !storage::is_file(&many[1]));
    storage::remove_many(&many).unwrap();
}

fn conditions(folder: &Path) {
    storage::create_dir_all(folder).unwrap();
    let file = folder.join("lock");
    assert!(storage::put_new(&file, b"first").unwrap());
    assert!(!storage::put_new(&file, b"second").unwrap());
    assert_eq!(storage::read(&file).unwrap(), b"first");
}

fn ranges(folder: &Path) {
    storage::create_dir_all(folder).unwrap();
    let path = folder.join("large");
    let content: Vec<u8> = (0..20_000_000u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    let mut writer = storage::create(&path).unwrap();
    for part in content.chunks(1_234_567) {
        writer.write_all(part).unwrap();
    }
    assert!(
        !storage::is_remote(&path) || !storage::is_file(&path),
        "it appears when it is finished"
    );
    writer.finish().unwrap();
    drop(storage::create(&folder.join("given-up")).map(|mut writer| writer.write_all(&content)));
    assert!(!storage::is_remote(&path) || !storage::is_file(&folder.join("given-up")));

    assert!(storage::read(&path).unwrap() == content);
    for file in [File::open(&path).unwrap(), File::open_for_blocks(&path).unwrap()] {
        assert_eq!(file.len().unwrap(), content.len() as u64);
        file.prefetch(77, 9_000_000);
        for (offset, length) in [(77, 9_000_000), (0, 1), (8_388_600, 20), (19_999_990, 10), (5, 0)] {
            let mut buffer = vec![0; length];
            file.read_exact_at(&mut buffer, offset as u64).unwrap();
            assert!(buffer == content[offset..offset + length], "{offset}+{length}");
        }
        let beyond = file.read_exact_at(&mut [0; 11], 19_999_990).unwrap_err();
        assert_eq!(beyond.kind(), std::io::ErrorKind::UnexpectedEof);
    }
    let mut all = Vec::new();
    let mut stream = File::open(&path).unwrap().sequential().unwrap();
    std::io::Read::read_to_end(&mut stream, &mut all).unwrap();
    assert!(all == content);
    let mut stream = File::open(&path).unwrap().sequential().unwrap();
    let mut byte = [0];
    for (at, skip) in [(0, 300_000), (300_001, 15_000_000), (15_300_002, 0)] {
        std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
        assert_eq!(byte[0], content[at]);
        stream.skip(skip).unwrap();
    }
}

fn patterns(folder: &Path) {
    use coati_dataset::shards::pattern::expand;
    storage::create_dir_all(folder).unwrap();
    for name in ["t.record-00000-of-00002", "t.record-00001-of-00002", "v.record"] {
        storage::put(&folder.join(name), b"").unwrap();
    }
    let found = |pattern: &str| expand(&[folder.join(pattern).to_str().unwrap()]).map(|files| files.len());
    assert_eq!(found("t.record@2").unwrap(), 2);
    assert_eq!(found("t.record-*").unwrap(), 2);
    assert_eq!(
        found("../patterns/*.record").ok(),
        (!storage::is_remote(folder)).then_some(1)
    );
    assert_eq!(found("v.record").unwrap(), 1);
    assert!(found("t.record@3").unwrap_err().to_string().contains("-00000-of-00003"));
    assert!(found("x*").unwrap_err().to_string().contains("no file matches"));
    assert!(found("t.record").unwrap_err().to_string().contains("t.record@2"));
}

/// Runs a part of this file in a process of its own, with an environment of its own.
#[track_caller]
fn run_part(name: &str, place: &Path, environment: &[(String, String)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("bucket::{name}"), "--nocapture"])
        .env(PLACE, place)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[track_caller]
fn run_suite(place: &str, environment: &[(String, String)]) {
    run_part("suite", Path::new(place), environment);
}

#[test]
fn a_disk_and_buckets_of_both_kinds_do_the_same() {
    let disk = tempfile::tempdir().unwrap();
    run_suite(disk.path().to_str().unwrap(), &[]);
    let Some(server) = Server::start() else { return };
    run_suite("s3://coati/plain", &server.s3());
    let proxy = Proxy::start(&server, Faults::None);
    run_suite("gs://coati/google", &gs_at(proxy.address()));
}

#[test]
fn what_passes_is_ridden_out() {
    let Some(server) = Server::start() else { return };
    for (scheme, environment) in [("s3", s3_at as fn(_) -> _), ("gs", gs_at)] {
        let proxy = Proxy::start(&server, Faults::OneOf(4));
        run_suite(
            &format!("{scheme}://coati/faulty-{scheme}"),
            &environment(proxy.address()),
        );
        assert!(proxy.faulty() >= 10, "{} faults", proxy.faulty());
    }
}

#[test]
fn with_a_cache_nothing_differs() {
    let Some(server) = Server::start() else { return };
    let cache = tempfile::tempdir().unwrap();
    let mut environment = server.s3();
    environment.push(("COATI_CACHE_DIR".to_owned(), cache.path().to_str().unwrap().to_owned()));
    environment.push(("COATI_CACHE_BYTES".to_owned(), "9M".to_owned()));
    run_suite("s3://coati/cached", &environment);
    let held: u64 = std::fs::read_dir(cache.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!((1..=9 << 20).contains(&held), "{held} bytes");
}

#[test]
fn what_does_not_pass_names_bucket_key_and_status() {
    let Some(server) = Server::start() else { return };
    let job = Job::light();
    let check = |path: &str, environment: Vec<(String, String)>| {
        let mut command = job.coati(["check", "--pipeline_config_path", path]);
        for (name, value) in environment {
            command = command.env(&name, &value);
        }
        command.env("COATI_STORAGE_RETRY_SECONDS", "1").run().exits(2)
    };
    let _ = check("s3://coati/no/such.config", server.s3()).says(&[
        "s3://coati/no/such.config",
        "bucket `coati`, key `no/such.config`",
        "status 404",
        "hint: check the path",
    ]);
    let _ = check("s3://elsewhere/p.config", server.s3()).says(&["hint: there is no bucket `elsewhere`"]);
    let proxy = Proxy::start(&server, Faults::Always(503));
    let _ = check("s3://coati/p.config", s3_at(proxy.address())).says(&[
        "bucket `coati`, key `p.config`",
        "status 503 Service Unavailable: SlowDown: Please reduce your request rate. (after ",
        "hint: the bucket is asked more often than it allows",
    ]);
    let _ = check("s3:///x", server.s3()).says(&["no bucket is named", "hint: write gs://BUCKET/KEY"]);
}

/// The bucket that the environment leads to.
fn bucket() -> &'static str {
    match std::env::var_os("STORAGE_EMULATOR_HOST") {
        Some(_) => "gs://coati",
        None => "s3://coati",
    }
}

/// Puts the job's data and configuration into the bucket, by the storage package in a process of its own.
#[test]
fn upload() {
    let Some(from) = own_place() else { return };
    let data = format!("{}/data", bucket());
    for entry in storage::list(&from).unwrap().into_iter().filter(|entry| entry.is_file) {
        let content = std::fs::read(from.join(&entry.name)).unwrap();
        let content = match entry.name.as_str() {
            "pipeline.config" => String::from_utf8(content)
                .unwrap()
                .replace("input_path: \"train", &format!("input_path: \"{data}/train"))
                .replace("input_path: \"val", &format!("input_path: \"{data}/val"))
                .replace("label_map_path: \"", &format!("label_map_path: \"{data}/"))
                .into_bytes(),
            _ => content,
        };
        storage::put(&Path::new(&data).join(&entry.name), &content).unwrap();
    }
    let map = std::fs::read(from.join("shapes/label_map.pbtxt")).unwrap();
    storage::put(&Path::new(&data).join("shapes/label_map.pbtxt"), &map).unwrap();
}

/// Fetches a folder of the bucket.
#[test]
fn download() {
    let Some(to) = own_place() else { return };
    let from = Path::new("s3://coati/out");
    std::fs::create_dir_all(&to).unwrap();
    for entry in storage::list(from).unwrap().into_iter().filter(|entry| entry.is_file) {
        std::fs::write(to.join(&entry.name), storage::read(&from.join(&entry.name)).unwrap()).unwrap();
    }
}

/// The whole of it: data, label map, configuration, checkpoints, log, lock and events in a bucket that fails now and then. The master is
/// killed and loses no step; the job ends with the bits of one on a disk.
#[test]
fn a_cluster_trains_in_a_bucket_loses_its_master_goes_on_and_evaluates() {
    const STEPS: u64 = 40;
    let Some(server) = Server::start() else { return };
    let job = Job::new();
    let state = job.path("state");
    let proxy = Proxy::start(&server, Faults::OneOf(50));
    let mut environment = s3_at(proxy.address());
    environment.push(("XDG_STATE_HOME".to_owned(), state.to_str().unwrap().to_owned()));
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    run_part("upload", &job.path(""), &environment);

    let mut train = job.coati(
        "train --pipeline_config_path s3://coati/data/pipeline.config --model_dir s3://coati/out --no_eval".split(' '),
    );
    for (name, value) in &environment {
        train = train.env(name, value);
    }
    let train = |steps: u64| {
        train
            .clone()
            .with(&format!("--num_train_steps {steps} --save_checkpoints_steps 10"))
            .cluster(cluster)
            .limit(std::time::Duration::from_secs(400))
    };
    let running = train(STEPS).start();
    running.wait_for("checkpoint s3://coati/out/model.ckpt-10");
    let shown = job.coati("status --model_dir s3://coati/out --format json".split(' '));
    let shown = environment
        .iter()
        .fold(shown, |command, (name, value)| command.env(name, value));
    let shown = shown.run().exits(0).json();
    let tasks = shown["tasks"].as_array().unwrap();
    let master = tasks.iter().find(|task| task["task"] == "master").unwrap();
    let pid = i32::try_from(master["pid"].as_i64().unwrap()).unwrap();
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let done = running.finish().exits(0).says(&[
        "master was killed by SIGKILL; started again (1 of 10)",
        "training goes on from there",
        &format!("checkpoint s3://coati/out/model.ckpt-{STEPS}"),
        "the job is done",
    ]);
    assert!(!done.stderr.contains("going back from step "), "{done}");
    assert!(proxy.faulty() >= 5, "{} faults", proxy.faulty());

    // The same on a disk.
    let calm = job
        .train("calm", STEPS)
        .with("--save_checkpoints_steps 10")
        .cluster(cluster);
    let _ = calm.run().exits(0);
    run_part("download", &job.path("fetched"), &environment);
    let [calm, fetched] = ["calm", "fetched"].map(|folder| tensors::read(&job.path(folder), STEPS));
    tensors::assert_same_bits(&calm, &fetched, "a run on a disk and one in a bucket");
    let events = std::fs::read_dir(job.path("fetched")).unwrap().flatten();
    let events = events.filter(|entry| entry.file_name().to_string_lossy().starts_with("events.out.tfevents."));
    let records = events.map(|entry| {
        let records = coati_common::tfrecord::Reader::open(&entry.path()).unwrap();
        records.inspect(|record| assert!(record.is_ok(), "{record:?}")).count()
    });
    assert!(records.sum::<usize>() >= 4, "curves are in the bucket");

    // It goes on from there, and the evaluation reads from the bucket and writes to it.
    let _ = train(STEPS + 4).run().exits(0).says(&[
        &format!("resuming from step {STEPS} (s3://coati/out/model.ckpt-{STEPS})"),
        &format!("finished at step {}", STEPS + 4),
    ]);
    let eval = "eval --pipeline_config_path s3://coati/data/pipeline.config --run_once --format json --checkpoint_dir s3://coati/out";
    let eval = environment
        .iter()
        .fold(job.coati(eval.split(' ')), |command, (name, value)| {
            command.env(name, value)
        });
    let found: Value = eval.run().exits(0).json();
    assert_eq!(found["global_step"], STEPS + 4);
}

/// Looks at what the commands of the next test left in the bucket.
#[test]
fn written() {
    if own_place().is_none() {
        return;
    }
    let place = Path::new("gs://coati");
    for (name, start) in [
        ("one.jpg", b"\xff\xd8\xff".as_slice()),
        ("val.csv", b"filename,width"),
        ("images/val_00000.jpg", b"\xff\xd8\xff"),
        ("found/detections.json", b"["),
        ("found/detections.groundtruth.json", b"{"),
        ("report/report.html", b"<!"),
        ("report/report.precision_recall.png", b"\x89PNG"),
        ("figures.csv", b"DetectionBoxes_"),
        ("detected/detections.json", b"{"),
        ("detected/detections.csv", b"image,height"),
        ("detected/pictures/val_00000.jpg", b"\xff\xd8\xff"),
        ("model.safetensors", b""),
        ("again.ckpt.index", b""),
    ] {
        let content = storage::read(&place.join(name)).unwrap();
        assert!(!content.is_empty() && content.starts_with(start), "{name}");
    }
    let pictures = storage::list(&place.join("pictures")).unwrap();
    assert_eq!(pictures.len(), 10, "num_visualizations, which is 10 unless set");
    assert!(
        storage::list(&place.join("out/eval")).unwrap()[0]
            .name
            .starts_with("events")
    );
}

/// From annotations to a report, with every path in a bucket of the other kind. Nothing of it is on the disk.
#[test]
fn every_command_that_takes_a_path_takes_one_in_a_bucket() {
    let Some(server) = Server::start() else { return };
    let job = Job::new();
    let proxy = Proxy::start(&server, Faults::None);
    let mut environment = gs_at(proxy.address());
    environment.push((
        "XDG_STATE_HOME".to_owned(),
        job.path("state").to_str().unwrap().to_owned(),
    ));
    run_part("upload", &job.path(""), &environment);
    let before = std::fs::read_dir(job.path("")).unwrap().count();
    let coati = |line: &str| {
        let line = line.replace('@', "gs://coati/").replace('#', "@");
        let command = job.coati(line.split_whitespace());
        let command = environment
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value));
        command.run()
    };
    let map = "--label_map_path @data/shapes/label_map.pbtxt";

    for line in [
        "data synth --output_dir @shapes --num_train 6 --num_val 4 --image_size 64",
        "data label-map @shapes --output_path @made.pbtxt",
        &format!("data import voc --data_dir @shapes --set train --output_path @made.record --num_shards 2 {map}"),
        &format!("data validate @made.record#2 --eval_input_path @data/val.record {map}"),
        &format!("data validate @made.record#2 --fix --output_dir @mended {map}"),
        &format!("data inspect @made.record#2 --record 1 --picture @one.jpg {map}"),
        "data to-csv @data/val.record --csv_output @val.csv --image_dir @images",
        &format!("data import csv --csv_input @val.csv --image_dir @images --output_path @csv.record {map}"),
        "data split @data/train.record-* --train_output_path @part/train.record --eval_output_path @part/eval.record",
        "check --pipeline_config_path @data/pipeline.config --model_dir @out",
        "train --pipeline_config_path @data/pipeline.config --model_dir @out --num_train_steps 2 --no_eval",
        "eval --pipeline_config_path @data/pipeline.config --checkpoint_dir @out --run_once --pictures_dir @pictures \
         --detections_path @found/detections.json --report @report/report.html",
        "metrics coco --groundtruth @found/detections.groundtruth.json --detections @found/detections.json --output_metrics @figures.csv",
        "detect --image @images --model_dir @out --output_dir @detected --score_threshold 0",
        "infer --input_tfrecord_paths @data/val.record --output_tfrecord_path @inferred.record --model_dir @out",
        &format!("metrics records --input_path @inferred.record {map}"),
        "checkpoint show @out",
        "checkpoint list @out/model.ckpt-2",
        "checkpoint convert @out/model.ckpt-2 @model.safetensors",
        "checkpoint convert @model.safetensors @again.ckpt",
    ] {
        let _ = coati(line).exits(0);
    }
    let again =
        coati("infer --input_tfrecord_paths @data/val.record --output_tfrecord_path @inferred.record --model_dir @out");
    let _ = again.exits(0).says(&["0 output(s) made, 1 complete before"]);
    let diff = coati("checkpoint diff @out/model.ckpt-2 @again.ckpt").exits(0);
    assert!(diff.stdout.starts_with("equal: all "), "{diff}");
    let over = coati("checkpoint convert @out/model.ckpt-2 @model.safetensors").exits(2);
    let _ = over.says(&["gs://coati/model.safetensors is there already"]);
    run_part("written", Path::new("here"), &environment);
    let after = std::fs::read_dir(job.path("")).unwrap().count();
    assert!(
        after <= before + 1,
        "nothing but what belongs to this machine is written here"
    );
}

/// Two processes with one command share the shards of an output in a bucket, and what a killed one had claimed is made by the next.
#[test]
fn processes_share_the_shards_of_an_inference_in_a_bucket() {
    let Some(server) = Server::start() else { return };
    let job = Job::new();
    let _ = job.train("model", 2).run().exits(0);
    let examples: Vec<_> = std::iter::repeat_with(|| records::read(&job.path("val.record")))
        .take(5)
        .flatten()
        .collect();
    for shard in 0..4 {
        records::write(&job.path(&format!("in.record-{shard:05}-of-00004")), &examples);
    }
    let environment = server.s3();
    let infer = |name: &str| {
        let command = job
            .coati("infer --input_tfrecord_paths in.record-?????-of-00004 --model_dir model --format json".split(' '));
        let command = command.with(&format!("--output_tfrecord_path s3://coati/{name}.record"));
        environment
            .iter()
            .fold(command, |command, (name, value)| command.env(name, value))
    };
    let both = [infer("shared").start(), infer("shared").start()];
    let reports = both.map(|process| process.finish().exits(0).json());
    let made: Vec<&str> = reports
        .iter()
        .flat_map(|report| report["made"].as_array().unwrap())
        .map(|path| path.as_str().unwrap())
        .collect();
    let different: std::collections::BTreeSet<&str> = made.iter().copied().collect();
    assert_eq!((made.len(), different.len()), (4, 4), "{reports:#?}");
    let records: u64 = reports.iter().map(|report| report["records"].as_u64().unwrap()).sum();
    assert_eq!(records, 4 * examples.len() as u64, "{reports:#?}");

    let killed = infer("again").start();
    killed.wait_for("shard 1 of 4: s3://coati/again.record-00000-of-00004");
    killed.signal(Signal::SIGKILL);
    drop(killed);
    let begun = std::time::Instant::now();
    let report = infer("again").run().exits(0).json();
    assert_eq!(report["made"].as_array().unwrap().len(), 4, "{report}");
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(25),
        "of a process of this machine it is known that it is gone"
    );
}
