//! What can be seen of NCCL without a GPU: the calls, on a library of the tests' own that keeps NCCL's rules on host memory
//! (`fixtures/gpu_stand_in.c`). What it cannot show are NVIDIA's own libraries.

use std::path::Path;

use coati_collective::nccl::Libraries;

use crate::ranks::Ranks;
use crate::stand_in::libraries;

/// Ranks on the stand-in's GPUs, each on the one of its number unless `devices` says otherwise.
struct Job {
    ranks: Ranks,
    notes: tempfile::TempDir,
}

impl Job {
    fn start(scene: &'static str, world: usize, devices: &[&str], settings: &[(&str, &str)]) -> Self {
        Self::on(libraries().to_str().unwrap(), scene, world, devices, settings)
    }

    fn on(libraries: &str, scene: &'static str, world: usize, devices: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut job = Self {
            ranks: Ranks::new("nccl", scene, world),
            notes: tempfile::tempdir().unwrap(),
        };
        for rank in 0..world {
            let own = rank.to_string();
            let mut all = vec![
                ("RANKS_LIBRARIES", libraries),
                ("STAND_IN_FOLDER", job.notes.path().to_str().unwrap()),
                ("RANKS_DEVICE", devices.get(rank).copied().unwrap_or(&own)),
            ];
            all.extend_from_slice(settings);
            job.ranks.start(rank, &all);
        }
        job
    }

    /// How a rank ended, and which calls it made to end things.
    fn end(&mut self, rank: usize) -> (String, String) {
        let calls = self.notes.path().join(format!("calls-{}", self.ranks.pid(rank)));
        let text = self.ranks.end(rank);
        (text, std::fs::read_to_string(calls).unwrap_or_default())
    }
}

/// What a rank calls that leaves because of a failure: NCCL is aborted, which empties the stream, before anything else is given up.
const ABORTED: &str = "ncclCommAbort\n";
const IN_ORDER: &str = "ncclCommFinalize\nncclCommDestroy\n";

#[test]
fn sums_go_through_the_gpus_and_communicators_end_in_order() {
    for world in 1..=3 {
        let mut job = Job::start("sums", world, &[], &[]);
        for rank in 0..world {
            let (text, calls) = job.end(rank);
            assert_eq!(text, "ok", "rank {rank} of {world}");
            assert!(calls.contains(IN_ORDER) && !calls.contains("Abort"), "{calls}");
            assert!(calls.ends_with("cudaFree\ncudaStreamDestroy\n"), "{calls}");
        }
    }
    let mut job = Job::start("background", 2, &[], &[]);
    assert_eq!((job.end(0).0, job.end(1).0), ("ok".to_owned(), "ok".to_owned()));
}

#[test]
fn buckets_on_the_gpus_are_summed_where_they_lie() {
    for world in 1..=3 {
        let mut job = Job::start("device", world, &[], &[]);
        for rank in 0..world {
            let (text, calls) = job.end(rank);
            assert_eq!(text, "ok", "rank {rank} of {world}");
            assert!(calls.starts_with(IN_ORDER), "{calls}");
        }
    }
    // A GPU that never finishes what was begun.
    let mut job = Job::start("device", 2, &["0", "7"], &[("RANKS_WAIT_MS", "1500")]);
    for rank in 0..2 {
        let (text, calls) = job.end(rank);
        assert_ne!(text, "ok");
        assert!(calls.starts_with(ABORTED), "{calls}");
    }
}

#[test]
fn the_watchdog_aborts_nccl_and_names_the_rank_that_is_missing() {
    let mut job = Job::start("silent", 3, &[], &[("RANKS_WAIT_MS", "1500")]);
    for rank in 0..2 {
        let (text, calls) = job.end(rank);
        assert!(text.contains("rank 2 ("), "{text}");
        assert!(
            calls.starts_with(ABORTED) && !calls.contains("with work in it"),
            "{calls}"
        );
    }
}

#[test]
fn a_rank_that_dies_is_named_at_once() {
    let mut job = Job::start("silent", 3, &[], &[]);
    job.ranks.read("silent");
    job.ranks.kill(2);
    for rank in 0..2 {
        let (text, calls) = job.end(rank);
        assert!(text.contains("rank 2 ("), "{text}");
        assert!(calls.starts_with(ABORTED), "{calls}");
    }
}

#[test]
fn a_communicator_of_gpus_that_is_dropped_aborts() {
    let mut job = Job::start("panics", 3, &[], &[]);
    let (text, calls) = job.end(1);
    assert_eq!(text, "ok");
    assert!(calls.starts_with(ABORTED), "{calls}");
    for rank in [0, 2] {
        let (text, calls) = job.end(rank);
        assert!(
            text.contains("ended without closing") && text.contains("rank 1 ("),
            "{text}"
        );
        assert!(calls.starts_with(ABORTED), "{calls}");
    }
}

#[test]
fn what_is_wrong_with_a_gpu_is_said_on_all_ranks() {
    for (device, own) in [
        ("9", "GPU 9 was asked for; this process sees 8"),
        (
            "5",
            "GPU 5 has no 2800004 bytes for a bucket: 1048576 of 2097152 are free (out of memory)",
        ),
        (
            "6",
            "NCCL cannot begin a sum on GPU 6: remote process exited or there was a network error: link 3 is down",
        ),
    ] {
        let mut job = Job::start("sums", 2, &["0", device], &[]);
        let (text, calls) = job.end(1);
        assert!(text.contains(own) && text.contains("\nhint: "), "{text}");
        assert!(calls.contains(ABORTED) || device == "9", "{calls}");
        let (text, calls) = job.end(0);
        assert!(text.contains("rank 1 (") && text.contains(own), "{device}: {text}");
        assert!(!calls.contains("ncclCommDestroy"), "{calls}");
    }
}

#[test]
fn a_gpu_that_does_not_finish_is_told_from_a_rank_that_is_missing() {
    let mut job = Job::start("sums", 2, &["0", "7"], &[("RANKS_WAIT_MS", "1500")]);
    for rank in 0..2 {
        let (text, calls) = job.end(rank);
        // Whichever was first.
        assert!(
            text.contains("did not sum within 1.5 s, although all ranks are there\nhint: "),
            "{text}"
        );
        assert!(calls.starts_with(ABORTED), "{calls}");
    }
}

#[test]
fn a_driver_that_is_older_than_the_runtime_is_refused() {
    for (driver, words) in [
        (
            "12080",
            "the driver knows CUDA 12.8, the runtime library is of CUDA 13.0",
        ),
        ("0", "there is no NVIDIA driver on this machine"),
    ] {
        let mut job = Job::start("sums", 1, &[], &[("STAND_IN_DRIVER", driver)]);
        let (text, _) = job.end(0);
        assert!(text.contains(words) && text.contains("\nhint: "), "{text}");
    }
}

/// `COATI_NCCL_FOLDERS`: where to look for NVIDIA's libraries besides, separated by colons.
fn folders() -> String {
    std::env::var("COATI_NCCL_FOLDERS").unwrap_or_default()
}

fn paths(folders: &str) -> Vec<&Path> {
    folders
        .split(':')
        .filter(|place| !place.is_empty())
        .map(Path::new)
        .collect()
}

#[test]
fn sums_go_through_real_gpus_where_there_are_any() {
    let folders = folders();
    let seen = Libraries::open(&paths(&folders)).map_or(0, |libraries| {
        (0..64)
            .take_while(|&index| libraries.cuda().check_device(index).is_ok())
            .count()
    });
    println!("{seen} GPUs");
    for world in [1, 2, seen] {
        if world == 0 || world > seen {
            continue;
        }
        // Two numbers have one sum; of more, NCCL's order is its own.
        let exact = if world > 2 { "0" } else { "1" };
        let mut job = Job::on(&folders, "sums", world, &[], &[("RANKS_EXACT", exact)]);
        for rank in 0..world {
            assert_eq!(job.end(rank).0, "ok", "rank {rank} of {world}");
        }
    }
}

#[test]
fn a_library_that_is_missing_names_what_to_install() {
    let folders = folders();
    let folders = paths(&folders);
    let libraries = match Libraries::open(&folders) {
        Ok(libraries) => libraries,
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("cannot be opened: lib") && text.contains("\nhint: install "),
                "{text}"
            );
            assert!(
                text.contains("libnccl2") || text.contains("nvidia-cuda-runtime"),
                "{text}"
            );
            return;
        }
    };
    println!("NCCL {}", libraries.version());
    // No machine has so many.
    let text = libraries.cuda().check_device(1000).unwrap_err().to_string();
    assert!(text.contains("\nhint: "), "{text}");
    println!("{text}");
}
