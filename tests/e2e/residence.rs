//! Training with the variables on an accelerator. libtorch on the CPU stands for a GPU, and for NCCL and CUDA a library that keeps their rules on
//! the host's memory (`collective/tests/fixtures/gpu_stand_in.c`).

use std::path::PathBuf;

use coati_tests::{Cluster, Coati, Finished, Job, tensors};
use nix::sys::signal::{Signal, kill};

use crate::faults::pid_of;
use crate::recovery::records_seen;
use crate::stand_in::libraries;

const TWO: &str = "--devices cpu:2";

/// A job whose replicas compute by libtorch, and sum over the stand-in where they sum among themselves.
struct Scene {
    job: Job,
    notes: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let job = Job::new();
        let notes = job.path("notes");
        std::fs::create_dir(&notes).unwrap();
        Self { job, notes }
    }

    fn train(&self, model: &str, steps: u64) -> Coati {
        let train = self.job.train(model, steps).env("COATI_DEVICE", "torch-cpu");
        train
            .env("COATI_THREADS", "1")
            .env("COATI_TEST_GPU_LIBRARIES", libraries().to_str().unwrap())
            .env("STAND_IN_FOLDER", self.notes.to_str().unwrap())
    }

    fn servers(&self, model: &str, steps: u64, replicas: u32) -> Finished {
        let name = format!("{replicas}.yaml");
        // As many threads as the others have: the order of sums within libtorch depends on it.
        let cluster = Cluster::new()
            .workers(replicas - 1)
            .servers(1)
            .coati("threads_per_replica: 1");
        let cluster = self.job.cluster(&name, &cluster);
        self.train(model, steps).cluster(cluster).run().exits(0)
    }

    /// What the processes called of the stand-in to end things.
    fn calls(&self) -> Vec<String> {
        let notes = std::fs::read_dir(&self.notes).unwrap().flatten();
        let calls = notes.filter(|note| note.file_name().to_string_lossy().starts_with("calls-"));
        calls
            .map(|note| std::fs::read_to_string(note.path()).unwrap())
            .collect()
    }
}

/// Each tensor's distance, as a share of its size.
#[track_caller]
fn assert_near(job: &Job, one: &str, other: &str, step: u64, most: f64) {
    let [first, second] = [one, other].map(|model| tensors::read(&job.path(model), step));
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    for (name, apart) in tensors::apart(&first, &second) {
        assert!(apart <= most, "{name} of {one} and {other}: {apart}");
    }
    assert_eq!(records_seen(job, one, step), records_seen(job, other, step));
}

#[test]
fn one_process_makes_the_steps_of_parameter_servers_and_goes_on_from_their_checkpoints() {
    let scene = Scene::new();
    let _ = scene.servers("servers", 4, 1);
    let _ = scene.servers("servers", 9, 1);
    let _ = scene.train("there", 4).run().exits(0);
    let _ = scene.train("there", 9).run().exits(0).says(&["resuming from step 4"]);
    let [first, second] = ["servers", "there"].map(|model| tensors::read(&scene.job.path(model), 9));
    tensors::assert_same_bits(&first, &second, "steps on the accelerator and on a server");
    // Images came in a stream beside them, in which nothing was left.
    assert_eq!(scene.calls(), ["cudaStreamDestroy\n"; 2]);
    // What one of them wrote the other goes on from.
    let _ = scene.servers("there", 12, 1).says(&["resuming from step 9"]);
    let _ = scene
        .train("servers", 12)
        .run()
        .exits(0)
        .says(&["resuming from step 9"]);
    let [first, second] = ["servers", "there"].map(|model| tensors::read(&scene.job.path(model), 12));
    tensors::assert_same_bits(&first, &second, "each with the other's checkpoint");
}

#[test]
fn ranks_sum_on_their_gpus_while_the_backward_pass_goes_on() {
    let scene = Scene::new();
    let _ = scene.servers("servers", 8, 2);
    let ranks = |model: &str, steps: u64, more: &str| scene.train(model, steps).with(TWO).with(more).run().exits(0);
    let _ = ranks("there", 5, "--bucket_size 64KiB").says(&["2 replicas x batch 4, no parameter server"]);
    let _ = ranks("there", 8, "--bucket_size 64KiB").says(&["resuming from step 5", "finished at step 8"]);
    assert_near(&scene.job, "servers", "there", 8, 1e-5);
    let calls = scene.calls();
    assert_eq!(calls.len(), 4, "two ranks, twice: {calls:?}");
    for call in &calls {
        assert!(call.starts_with("ncclCommFinalize\nncclCommDestroy\n"), "{call}");
    }
    // Evaluation while it trains, curves and summary are as ever.
    let flags = "train --pipeline_config_path pipeline.config --model_dir watched --num_train_steps 6 --save_checkpoints_steps 3";
    let watched = scene
        .job
        .coati(flags.split(' '))
        .with(TWO)
        .with("--reduce_precision bf16");
    let watched = watched
        .env("COATI_DEVICE", "torch-cpu")
        .env("COATI_THREADS", "1")
        .env("COATI_TEST_GPU_LIBRARIES", libraries().to_str().unwrap())
        .env("STAND_IN_FOLDER", scene.notes.to_str().unwrap());
    let _ = watched.run().exits(0).says(&[
        "checkpoint watched/model.ckpt-3",
        "evaluation at step 6: AP ",
        "finished at step 6: ",
    ]);
    assert_near(&scene.job, "watched", "watched", 6, 0.0);
}

#[test]
fn batch_norm_over_all_ranks_is_that_of_the_cpu_s_kernels() {
    let scene = Scene::new();
    scene
        .job
        .configure("sync.config", &[("batch_norm { train", "sync_batch_norm { train")]);
    let train = |train: Coati| {
        train
            .with(TWO)
            .with("--pipeline_config_path sync.config")
            .run()
            .exits(0)
    };
    let _ = train(scene.train("there", 1).with("--bucket_size 64KiB"));
    let _ = train(scene.job.train("cpu", 1));
    let _ = scene.train("own", 1).with(TWO).run().exits(0);
    let [cpu, there, own] = ["cpu", "there", "own"].map(|model| {
        let mut tensors = tensors::read(&scene.job.path(model), 1);
        tensors.retain(|name, _| name.contains("/BatchNorm/moving_"));
        tensors
    });
    assert!(there.len() > 40, "{}", there.len());
    for (name, apart) in tensors::apart(&there, &cpu) {
        assert!(apart < 1e-3, "{name}: {apart}");
    }
    // Everybody's variance is larger than the mean of each one's.
    let others = tensors::apart(&there, &own)
        .into_iter()
        .filter(|(_, apart)| *apart > 1e-3);
    assert!(others.count() > 10);
}

#[test]
fn clipping_and_float16_sum_at_once() {
    let scene = Scene::new();
    scene.job.configure(
        "clipped.config",
        &[("train_config {", "train_config { gradient_clipping_by_norm: 0.5")],
    );
    let clipped = |train: Coati| train.with("--pipeline_config_path clipped.config").run().exits(0);
    let of = |servers| {
        Cluster::new()
            .workers(1)
            .servers(servers)
            .coati("threads_per_replica: 1")
            .coati("bucket_size: 64KiB")
    };
    let [servers, ranks] =
        [("servers.yaml", 1), ("ranks.yaml", 0)].map(|(name, servers)| scene.job.cluster(name, &of(servers)));
    let _ = clipped(scene.train("servers", 5).cluster(servers));
    let _ = clipped(scene.train("there", 5).cluster(ranks));
    assert_near(&scene.job, "servers", "there", 5, 1e-5);
    let half = |train: Coati| train.with("--precision fp16").run().exits(0);
    let _ = half(scene.train("half-servers", 3).cluster(servers));
    let _ = half(scene.train("half", 3).cluster(ranks));
    assert_near(&scene.job, "half-servers", "half", 3, 1e-5);
}

#[test]
fn a_rank_that_is_lost_is_replaced_and_the_others_hand_on_what_their_gpus_hold() {
    for task in ["worker-0", "master"] {
        let scene = Scene::new();
        let train = |model: &str| {
            scene
                .train(model, 40)
                .with(TWO)
                .with("--save_checkpoints_steps 10 --keep_checkpoint_max 100 --bucket_size 64KiB")
        };
        let running = train("model").start();
        running.wait_for("checkpoint model/model.ckpt-10");
        kill(pid_of(&scene.job, task), Signal::SIGKILL).unwrap();
        let _ = running.finish().exits(0).says(&[
            &format!("{task} was killed by SIGKILL; started again (1 of 10)"),
            "no step is lost",
            "the job is done",
        ]);
        assert!(
            scene.calls().iter().any(|calls| calls.starts_with("ncclCommAbort\n")),
            "{task}"
        );
        let _ = train("calm").run().exits(0);
        assert_near(&scene.job, "calm", "model", 40, 0.0);
    }
}

#[test]
fn what_is_not_finite_ends_the_job_or_is_skipped() {
    let scene = Scene::new();
    let hot = "learning_rate_base: 1e30 total_steps: 100 warmup_learning_rate: 1e30 warmup_steps: 20";
    scene.job.configure(
        "hot.config",
        &[(
            "learning_rate_base: 0.04 total_steps: 100 warmup_learning_rate: 0.01 warmup_steps: 20",
            hot,
        )],
    );
    let ranks = |what: &str| Cluster::new().workers(1).servers(0).coati(&format!("on_nan: {what}"));
    let [stop, skip] =
        [("stop.yaml", "stop"), ("skip.yaml", "skip")].map(|(name, what)| scene.job.cluster(name, &ranks(what)));
    let train = |model: &str| scene.train(model, 9).with("--pipeline_config_path hot.config");
    let _ = train("one").run().exits(1).says(&["step 1: ", "is not finite"]);
    let _ = train("stop").cluster(stop).run().exits(1).says(&["step 1: "]);
    // Nothing is left to go on with in the end; every record goes back meanwhile.
    let _ = train("skip").cluster(skip).run().exits(1).says(&[
        "no finite gradient is left to apply (100 skipped in a row)",
        "the gradient of rank 0 (",
        "the gradient of rank 1 (",
    ]);
}
