//! Training on all devices of a machine: processes that sum their gradients among themselves, without parameter servers.

use coati_tests::{Cluster, Finished, Job, Process, tensors};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::faults::pid_of;
use crate::recovery::records_seen;

const STEPS: u64 = 60;

/// Two processes on the CPU.
const TWO: &str = "--devices cpu:2";

/// Without parameter servers, two replicas.
fn two_ranks() -> Cluster {
    Cluster::new().workers(1).servers(0)
}

/// Trains to this step, and returns the end.
fn trained(job: &Job, model: &str, step: u64, how: &str) -> Finished {
    let train = job.train(model, step);
    let train = match how {
        "servers" => train.cluster(job.cluster("two.yaml", &Cluster::new().workers(1))),
        "one" => train,
        _ => train.with(TWO),
    };
    train.run().exits(0)
}

#[track_caller]
fn assert_same(job: &Job, one: &str, other: &str, step: u64) {
    let [first, second] = [one, other].map(|model| tensors::read(&job.path(model), step));
    tensors::assert_same_bits(&first, &second, &format!("{one} and {other}"));
    assert_eq!(records_seen(job, one, step), records_seen(job, other, step));
}

#[test]
fn ranks_make_the_steps_of_parameter_servers_and_each_goes_on_from_the_others_checkpoints() {
    let job = Job::new();
    let ends = [(5, "two"), (8, "one"), (13, "two"), (18, "two")];
    for (model, strategies) in [
        ("servers", ["servers", "one", "servers", "servers"]),
        ("mixed", ["ranks", "one", "servers", "ranks"]),
    ] {
        for ((step, _), how) in ends.iter().zip(strategies) {
            let done = trained(&job, model, *step, how);
            if how == "ranks" {
                assert!(
                    done.stderr.contains("2 replicas x batch 4, no parameter server"),
                    "{done}"
                );
            }
        }
    }
    assert_same(&job, "servers", "mixed", 18);
    // 15 steps of two replicas, three of one.
    assert_eq!(records_seen(&job, "mixed", 18), 15 * 8 + 3 * 4);
    let _ = trained(&job, "mixed", 18, "ranks").says(&["mixed is at step 18 already: nothing to train up to 18"]);
    // Between hosts the same sums are made over TCP.
    let over_tcp = two_ranks().coati("transport: tcp").coati("bucket_size: 64KiB");
    let over_tcp = job.cluster("tcp.yaml", &over_tcp);
    let _ = job.train("tcp", 5).cluster(over_tcp).run().exits(0);
    let _ = trained(&job, "tcp", 8, "one");
    let _ = job.train("tcp", 18).cluster(over_tcp).run().exits(0);
    assert_same(&job, "servers", "tcp", 18);
}

#[test]
fn everything_around_training_is_as_with_servers() {
    let job = Job::new();
    let flags = "train --pipeline_config_path pipeline.config --model_dir model --num_train_steps 12 --save_checkpoints_steps 4";
    let done = job
        .coati(flags.split(' '))
        .with("--devices cpu:2 --bucket_size 100KB --reduce_precision bf16")
        .run()
        .exits(0)
        .says(&[
            "2 tasks on this machine",
            "training from step 0 to 12: 2 replicas x batch 4, no parameter server, 48 records",
            "checkpoint model/model.ckpt-4",
            "checkpoint model/model.ckpt-12",
            "evaluation at step 12: AP ",
            "finished at step 12: ",
        ]);
    assert_eq!(done.stdout, "");
    let summary: serde_json::Value = serde_json::from_str(&job.read("model/summary.json")).unwrap();
    assert_eq!(json!([summary["step"], summary["invariants_broken"]]), json!([12, 0]));
    let mut files = std::fs::read_dir(job.path("model")).unwrap().flatten();
    assert!(files.any(|file| file.file_name().to_string_lossy().starts_with("events.out.tfevents.")));
    let manifest: serde_json::Value = serde_json::from_str(&job.read("model/model.ckpt-12.coati.json")).unwrap();
    assert_eq!(
        json!([manifest["replicas"], manifest["data"]["position"]]),
        json!([2, 96])
    );
    let status = job.coati("status --model_dir model".split(' ')).run().exits(0);
    assert!(status.stdout.contains("ended: the job is done"), "{status}");
}

/// Under way, with a checkpoint.
fn under_way(job: &Job, how: impl FnOnce(coati_tests::Coati) -> coati_tests::Coati) -> Process {
    let train = job
        .train("model", STEPS)
        .with("--save_checkpoints_steps 10 --keep_checkpoint_max 100");
    let running = how(train).start();
    running.wait_for("checkpoint model/model.ckpt-10");
    running
}

#[test]
fn a_running_job_tells_how_far_it_is() {
    let job = Job::new();
    let running = under_way(&job, |train| train.with(TWO));
    let status = job.coati("status --model_dir model".split(' ')).run().exits(0);
    for part in [
        " running, launcher pid ",
        "\n  worker-0 ",
        "\nstep ",
        " of 60: training; epoch ",
    ] {
        assert!(status.stdout.contains(part), "no `{part}` in {status}");
    }
    running.signal(Signal::SIGTERM);
    let _ = running.finish().exits(130);
}

fn loses(task: &str, words: &[&str]) {
    let job = Job::new();
    let running = under_way(&job, |train| train.with(TWO));
    kill(pid_of(&job, task), Signal::SIGKILL).unwrap();
    let done = running.finish().exits(0).says(&[
        &format!("{task} was killed by SIGKILL; started again (1 of 10)"),
        "no step is lost",
        &format!("checkpoint model/model.ckpt-{STEPS}"),
        "the job is done",
    ]);
    for word in words {
        assert!(done.stderr.contains(word), "no `{word}` in {done}");
    }
    let _ = trained(&job, "calm", STEPS, "ranks");
    assert_same(&job, "calm", "model", STEPS);
}

#[test]
fn a_rank_that_is_killed_is_replaced_and_no_step_is_lost() {
    loses(
        "worker-0",
        &["rank 1 (", "its process ended", "all 2 ranks are here again"],
    );
}

#[test]
fn when_rank_0_is_killed_the_others_hold_what_it_held() {
    // Whoever held the newest step.
    loses("master", &["training goes on from step "]);
}

#[test]
fn a_rank_that_hangs_is_named_and_replaced() {
    for task in ["worker-0", "master"] {
        let job = Job::new();
        let cluster = two_ranks()
            .coati("heartbeat_interval: 200ms")
            .coati("heartbeat_timeout: 2s");
        let cluster = job.cluster("cluster.yaml", &cluster);
        let running = under_way(&job, |train| train.cluster(cluster));
        kill(pid_of(&job, task), Signal::SIGSTOP).unwrap();
        let _ = running.finish().exits(0).says(&[
            &format!("{task} is killed, for a new process to take its place: it shows no sign of life"),
            "no step is lost",
            "the job is done",
        ]);
    }
}

#[test]
fn a_signal_writes_a_checkpoint_and_the_job_goes_on_from_it() {
    let job = Job::new();
    let running = job
        .train("model", 1_000_000)
        .with(TWO)
        .with("--save_checkpoints_steps 5")
        .start();
    running.wait_for("checkpoint model/model.ckpt-5");
    running.signal(Signal::SIGTERM);
    let done = running
        .finish()
        .exits(130)
        .says(&["stopped on request; a checkpoint of step "]);
    let saved = done.stderr.split("a checkpoint of step ").nth(1).unwrap();
    let step: u64 = saved.split(' ').next().unwrap().parse().unwrap();
    let resumed = format!("resuming from step {step} (model/model.ckpt-{step})");
    let _ = trained(&job, "model", step + 3, "ranks").says(&[&resumed]);
    // Nobody is left when the launcher is killed; what was saved is there.
    let running = job
        .train("model", 1_000_000)
        .with(TWO)
        .with("--save_checkpoints_steps 5")
        .start();
    running.wait_for("checkpoint model/model.ckpt-");
    running.signal(Signal::SIGKILL);
    let _ = running.finish();
}

#[test]
fn without_new_starts_a_lost_rank_ends_the_job_with_a_checkpoint_of_all_steps() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &two_ranks().coati("restart: {max: 0}"));
    let running = under_way(&job, |train| train.cluster(cluster));
    kill(pid_of(&job, "worker-0"), Signal::SIGKILL).unwrap();
    let _ = running.finish().exits(1).says(&["worker-0 was killed by SIGKILL"]);
    let _ = job
        .train("model", STEPS)
        .cluster(cluster)
        .run()
        .exits(0)
        .says(&["resuming from step "]);
}

#[test]
fn replicas_of_one_host_sum_among_themselves_before_the_parameter_servers() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new().servers(1).coati("local_reduce: true"));
    let train = || {
        job.train("model", STEPS)
            .with("--save_checkpoints_steps 10 --keep_checkpoint_max 100")
            .cluster(cluster)
    };
    let running = train().start();
    running.wait_for("checkpoint model/model.ckpt-10");
    kill(pid_of(&job, "worker-1"), Signal::SIGKILL).unwrap();
    let done = running.finish().exits(0).says(&[
        "3 replicas x batch 4, 1 parameter server",
        "worker-1 was killed by SIGKILL; started again (1 of 10)",
        "the job is done",
    ]);
    assert!(!done.stderr.contains("going back from step"), "{done}");
    assert_eq!(records_seen(&job, "model", STEPS), STEPS * 12);
}

#[test]
fn batch_norm_over_all_ranks() {
    let job = Job::new();
    job.configure("sync.config", &[("batch_norm { train", "sync_batch_norm { train")]);
    let train = |model: &str| job.train(model, 6).with("--pipeline_config_path sync.config");
    let _ = train("ranks").with(TWO).run().exits(0).says(&["finished at step 6"]);
    let _ = trained(&job, "own", 6, "ranks");
    let [sync, own] = ["ranks", "own"].map(|model| tensors::read(&job.path(model), 6));
    let differ = tensors::differences(&sync, &own).len();
    assert!(
        differ * 2 > own.len(),
        "only {differ} tensors depend on whose statistics they are"
    );
    let cluster = job.cluster("cluster.yaml", &Cluster::new().workers(1));
    let _ = train("servers").cluster(cluster).run().exits(2).says(&[
        "sync.config: sync_batch_norm needs replicas that sum among themselves",
        "hint: train without parameter servers",
    ]);
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let job = Job::light();
    let refused = |devices: &str, visible: Option<&str>, words: &[&str]| {
        let train = job.train("model", 2).with("--devices").with(devices);
        let train = match visible {
            Some(visible) => train.env("CUDA_VISIBLE_DEVICES", visible),
            None => train,
        };
        let _ = train.run().exits(2).says(words);
        assert!(!job.path("model").exists(), "a refused job has left a folder");
    };
    refused("cpu:0", None, &["the number of processes must be 1 to 256"]);
    refused("gpus", None, &["`gpus` names no devices: write auto, cpu, cpu:2"]);
    refused("0,0", None, &["names GPU 0 twice"]);
    refused(
        "5",
        Some("0,1"),
        &[
            "GPU 5 is asked for",
            "CUDA_VISIBLE_DEVICES=0,1 hides it",
            "or ask for 0, 1",
        ],
    );
    refused(
        "gpu",
        Some("-1"),
        &["none was found on this machine (CUDA_VISIBLE_DEVICES=-1 hides others)"],
    );
    let cluster = job.cluster("topk.yaml", &two_ranks().coati("compression: {gradients: topk}"));
    let _ = job
        .train("model", 2)
        .cluster(cluster)
        .run()
        .exits(2)
        .says(&["gradients is topk", "bf16 halves the bytes"]);
}

/// Ranks as a scheduler starts them, of which one was given another command.
#[test]
fn ranks_of_different_configurations_are_refused_by_name() {
    let job = Job::new();
    let port = || {
        std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string()
    };
    let addresses = [port(), port()];
    let start = |kind: &str, flags: &str| {
        let cluster = json!({"master": [addresses[0]], "worker": [addresses[1]]});
        let config = json!({"cluster": cluster, "task": {"type": kind, "index": 0}});
        job.train("model", 6)
            .with(flags)
            .env("TF_CONFIG", &config.to_string())
            .start()
    };
    let (master, worker) = (start("master", ""), start("worker", "--seed 1"));
    for rank in [master, worker] {
        let done = rank.finish().exits(2);
        assert!(
            done.stderr.contains("has configuration digest ") && done.stderr.contains("rank 1 ("),
            "{done}"
        );
    }
    // The same command for both, and they train.
    let (master, worker) = (start("master", ""), start("worker", ""));
    let _ = master
        .finish()
        .exits(0)
        .says(&["2 replicas x batch 4, no parameter server", "finished at step 6"]);
    let _ = worker.finish().exits(0);
}
