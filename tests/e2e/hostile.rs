//! Strangers on the ports of a running job.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use coati_tests::{Cluster, Job, tensors};

use crate::faults::pid_of;

/// The address of each task, from the first line of its log's newest start.
fn address_of(job: &Job, task: &str) -> String {
    let log = job.read(&format!("model/logs/{task}.log"));
    let start = format!(" {task} pid ");
    let line = log.lines().rev().find(|line| line.contains(&start));
    let address = line.and_then(|line| line.rsplit_once(" on "));
    address
        .unwrap_or_else(|| panic!("no `{start}` in {log}"))
        .1
        .trim()
        .to_owned()
}

fn garbage() -> Vec<Vec<u8>> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let noise: Vec<u8> = (0..100_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    vec![
        Vec::new(),
        noise.clone(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        preface[..10].to_vec(),
        [
            &preface[..],
            &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 1],
            &noise,
        ]
        .concat(),
        [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &noise[..20]].concat(),
        [&[0x16, 3, 1, 0xFF, 0xFF][..], &noise].concat(),
    ]
}

fn send(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    // Only so that a server that does not close shows as an error instead of a hang.
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    assert!(
        !read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
        "{address} does not let go of a connection that has ended"
    );
}

#[test]
fn garbage_on_every_port_changes_nothing_and_secrets_stay_secret() {
    let job = Job::new();
    let cluster = job.cluster("cluster.yaml", &Cluster::new());
    let train = |model: &str| {
        job.train(model, 40)
            .with("--save_checkpoints_steps 10")
            .cluster(cluster)
    };
    let _ = train("undisturbed").run().exits(0);

    let running = train("model").start();
    running.wait_for("checkpoint model/model.ckpt-10");
    for task in ["master", "ps-0", "ps-1", "ps-2"] {
        let address = address_of(&job, task);
        for bytes in garbage() {
            send(&address, &bytes);
        }
    }
    let token = job.read("model/tls/token");
    for task in ["master", "worker-0", "ps-0"] {
        let process = format!("/proc/{}/cmdline", pid_of(&job, task));
        let arguments = std::fs::read(process).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&arguments).contains(token.trim()), "{task}");
    }
    let done = running.finish().exits(0).says(&["finished at step 40"]);
    assert!(!done.stderr.contains(token.trim()), "the token is in the output");
    for task in ["master", "worker-0", "worker-1", "ps-0", "ps-1", "ps-2"] {
        let log = job.read(&format!("model/logs/{task}.log"));
        assert!(
            !log.contains(token.trim()) && !log.contains("panicked"),
            "{task}: {log}"
        );
    }
    for secret in ["token", "key.pem"] {
        let mode = std::fs::metadata(job.path(&format!("model/tls/{secret}")))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{secret} can be read by others");
    }
    tensors::assert_same_bits(
        &tensors::read(&job.path("undisturbed"), 40),
        &tensors::read(&job.path("model"), 40),
        "the disturbed job's last checkpoint",
    );
}

#[test]
fn tls_can_be_switched_off_and_the_token_remains() {
    let job = Job::new();
    let text = Cluster::new().workers(1).servers(1).yaml() + "coati:\n  security: {tls: off}\n";
    let cluster = job.write("cluster.yaml", text);
    let _ = job
        .train("model", 4)
        .cluster(cluster)
        .run()
        .exits(0)
        .says(&["finished at step 4"]);
    assert_eq!(job.read("model/tls/token").trim().len(), 64);
}

#[test]
fn credentials_that_are_no_use_are_named_before_anything_starts() {
    let job = Job::new();
    let yaml = Cluster::new().workers(1).servers(1).yaml();
    let given = job.write(
        "given.yaml",
        yaml.clone() + "coati:\n  security: {token_file: none/token}\n",
    );
    let _ = job
        .train("model", 2)
        .cluster(given)
        .run()
        .exits(2)
        .says(&["cannot read job token none/token", "hint: "]);
    let made = job.write("made.yaml", yaml);
    let _ = job.train("model", 2).cluster(made).run().exits(0);
    job.write("model/tls/key.pem", "");
    let _ = job
        .train("model", 4)
        .cluster(made)
        .run()
        .exits(2)
        .says(&["model/tls/key.pem", "hint: remove the folder"]);
}
