//! Before the first step everybody is looked at: what is wrong is named, all of it at once, and soon.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use coati_common::cluster::{Address, ClusterSpec, TaskId, TfConfig, tf_config};
use coati_tests::{Cluster, Coati, Finished, Job};

/// What is wrong must be named within this time.
const SOON: Duration = Duration::from_secs(30);

/// Ahead of or behind the others, in milliseconds.
const HOUR: &str = "3600000";

fn local(port: u16) -> Address {
    Address {
        host: "127.0.0.1".to_owned(),
        port,
    }
}

/// A port that nobody listens on: of a listener that is gone.
fn free() -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    local(listener.local_addr().unwrap().port())
}

/// A listener that does this with every connection, for as long as the test's process lives.
fn listener(mut handle: impl FnMut(std::net::TcpStream) + Send + 'static) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = local(listener.local_addr().unwrap().port());
    thread::spawn(move || listener.incoming().flatten().for_each(&mut handle));
    address
}

/// Who is where, in a job whose cluster file says nothing else of interest.
fn spec(job: &Job, workers: u32, ps: Vec<Address>) -> ClusterSpec {
    job.cluster("cluster.yaml", &Cluster::new().coati("heartbeat_interval: 200ms"));
    ClusterSpec {
        master: free(),
        workers: (0..workers).map(|_| free()).collect(),
        ps,
        evaluators: Vec::new(),
    }
}

/// One task of a job of four steps.
fn task(job: &Job, spec: &ClusterSpec, task: &str, model: &str) -> Coati {
    let config = TfConfig::new(spec.clone(), task.parse::<TaskId>().unwrap());
    job.train(model, 4)
        .cluster("cluster.yaml")
        .env("COATI_LOG", "coati=info,warn")
        .env(tf_config::VARIABLE, &config.to_json())
        .env("COATI_THREADS", "1")
}

#[track_caller]
fn named(done: Finished, parts: &[&str]) {
    let done = done
        .exits(1)
        .says(parts)
        .says(&["the cluster could not form", "hint: "]);
    assert!(done.took < SOON, "{done}");
}

#[test]
fn all_servers_that_are_of_no_use_are_named_at_once() {
    let job = Job::new();
    let nowhere = Address {
        host: "no-such-host.invalid".to_owned(),
        port: 4000,
    };
    let mut held = Vec::new();
    let silent = listener(move |connection| held.push(connection));
    let web = listener(|mut connection| {
        let mut request = [0; 1000];
        let _ = connection.read(&mut request);
        let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    let other = free();
    let spec = spec(
        &job,
        1,
        vec![nowhere, free(), silent.clone(), web.clone(), other.clone()],
    );
    // A server of another job, with certificates of its own.
    let stranger = task(&job, &spec, "ps-4", "other").start();
    stranger.wait_for("parameter server listens");
    let done = task(&job, &spec, "master", "model").run();
    let closed = spec.ps[1].to_string();
    named(
        done,
        &[
            "ps-0 (no-such-host.invalid:4000): dns: ",
            &format!("ps-1 ({closed}): connection refused"),
            &format!("ps-2 ({silent}): connecting timed out"),
            &format!("ps-3 ({web}): it does not speak TLS"),
            &format!("ps-4 ({other}): its certificate is not one of this job"),
            "not there yet: ",
            "worker-0",
        ],
    );
}

#[test]
fn a_server_with_another_jobs_token_is_named() {
    let job = Job::new();
    let spec = spec(&job, 0, vec![free()]);
    job.cluster("cluster.yaml", &Cluster::new().coati("security: {tls: off}"));
    let stranger = task(&job, &spec, "ps-0", "other").start();
    stranger.wait_for("parameter server listens");
    let done = task(&job, &spec, "master", "model").run();
    named(
        done,
        &[&format!("ps-0 ({})", spec.ps[0]), "carries the token of another job"],
    );
}

#[test]
fn clocks_that_differ_are_named_and_training_goes_on() {
    let job = Job::new();
    let spec = spec(&job, 1, vec![free()]);
    let behind = format!("-{HOUR}");
    let server = task(&job, &spec, "ps-0", "model").env("COATI_TEST_CLOCK_SHIFT_MS", &behind);
    let worker = task(&job, &spec, "worker-0", "model").env("COATI_TEST_CLOCK_SHIFT_MS", HOUR);
    let (server, worker) = (server.start(), worker.start());
    let done = task(&job, &spec, "master", "model").run().exits(0);
    let _ = done.says(&[
        &format!("the clock of ps-0 ({}) is 3600 s behind the master's", spec.ps[0]),
        "the clock of worker-0 is 3600 s ahead of the master's",
        "finished at step 4",
    ]);
    let _ = (server.finish().exits(0), worker.finish().exits(0));
}

#[test]
fn folders_and_files_that_a_task_does_not_see_are_named() {
    let (job, elsewhere) = (Job::new(), Job::light());
    let spec = spec(&job, 1, vec![free()]);
    elsewhere.cluster("cluster.yaml", &Cluster::new());
    // The same certificates, another folder.
    let certificates = job.path("model").display().to_string();
    std::fs::remove_file(elsewhere.path("train.record-00001-of-00003")).unwrap();
    let starts = |name| task(&elsewhere, &spec, name, &certificates).start();
    let (server, worker) = (starts("ps-0"), starts("worker-0"));
    let done = task(&job, &spec, "master", "model").run();
    let server_at = format!("ps-0 ({}): model cannot be read here", spec.ps[0]);
    let worker_at = format!("worker-0 ({}): ", spec.workers[0]);
    named(done, &[&server_at, &worker_at, "train.record", "2 reasons"]);
    let _ = worker.finish().exits(2).says(&["train.record"]);
    drop(server);
}

#[test]
fn two_processes_that_are_the_same_task_are_named() {
    let job = Job::new();
    let spec = spec(&job, 2, vec![free()]);
    let start = |name| task(&job, &spec, name, "model").start();
    let master = start("master");
    let (server, one, other) = (start("ps-0"), start("worker-0"), start("worker-0"));
    let done = master.finish();
    let same = "two processes say that they are worker-0: pid ";
    named(
        done,
        &[
            same,
            "not there yet: worker-1",
            "each task needs an index of its own in TF_CONFIG",
        ],
    );
    let _ = (one.finish().exits(1), other.finish().exits(1), server.finish());
}
