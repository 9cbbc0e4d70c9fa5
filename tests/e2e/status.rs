//! `coati status` and `coati scale` of real jobs.

use coati_tests::{Cluster, Job};
use nix::sys::signal::Signal;

#[test]
fn a_job_is_looked_at_while_it_runs_and_afterwards() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let running = job.under_way(cluster);
    let status = |format: &str| job.coati(["status", "--model_dir", "model", "--format", format]).run();
    let text = status("text").exits(0).stdout;
    for part in [
        ": running, launcher pid ",
        "\n  worker-1  127.0.0.1:",
        "\nstep ",
        " of 1000000: training; epoch ",
    ] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let pid = super::faults::pid_of(&job, "ps-2");
    assert!(text.contains(&format!("  pid {pid}  running")), "{text}");
    let json = status("json").exits(0).stdout;
    assert!(
        json.contains(r#""alive":true"#) && json.contains(r#""num_steps":1000000"#),
        "{json}"
    );

    let scale = |workers: &str| job.coati(["scale", "--model_dir", "model", "--workers", workers]).run();
    let _ = scale("5000")
        .exits(2)
        .says(&["error: 5000 workers are too many for this machine: at most "]);
    let same = scale("2").exits(0).stdout;
    assert_eq!(same.trim(), "the job has 2 workers already");
    // A second job in the same folder would write the same files.
    let _ = job.train("model", 1_000_000).cluster(cluster).run().exits(2).says(&[
        "error: model: another coordinator runs this job: process ",
        "hint: wait for it to end or stop it",
    ]);

    running.signal(Signal::SIGTERM);
    let _ = running.finish().exits(130);
    let text = status("text").exits(0).stdout;
    assert!(
        text.contains(": ended: SIGTERM: ") && text.contains("  not running"),
        "{text}"
    );
    let _ = scale("3").exits(2).says(&[
        "error: job job-",
        " in model has ended: ",
        "hint: start it again with `coati train`",
    ]);
    let _ = job.coati(["status", "--model_dir", "."]).run().exits(2).says(&[
        "error: there is no job in .: it has no coati-cluster.json",
        "hint: give the --model_dir of",
    ]);
}
