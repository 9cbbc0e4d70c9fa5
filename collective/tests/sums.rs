//! Sums, on all transports.

use std::io::Write as _;
use std::net::TcpStream;

use crate::ranks::Ranks;

fn all_well(transport: &'static str, scene: &'static str, world: usize) {
    let mut ranks = Ranks::new(transport, scene, world);
    ranks.start_all(&[]);
    for rank in 0..world {
        assert_eq!(ranks.end(rank), "ok", "rank {rank} of {world}, {transport}");
    }
}

#[test]
fn shared_memory_gives_the_bits_of_the_sequential_sum() {
    for world in 1..=3 {
        all_well("shm", "sums", world);
    }
}

#[test]
fn tcp_gives_the_bits_of_the_sequential_sum() {
    for world in 1..=3 {
        all_well("tcp", "sums", world);
        all_well("local", "sums", world);
    }
}

#[test]
fn buckets_are_reduced_in_one_order_however_they_come() {
    all_well("shm", "background", 3);
    all_well("tcp", "background", 2);
    all_well("local", "background", 2);
}

#[test]
fn what_a_dead_job_left_is_passed_over_and_nothing_stays() {
    let mut ranks = Ranks::new("shm", "sums", 2);
    std::fs::write(ranks.folder.path().join("ranks"), "left over").unwrap();
    ranks.start(1, &[]);
    ranks.start(0, &[]);
    assert_eq!((ranks.end(0), ranks.end(1)), ("ok".to_owned(), "ok".to_owned()));
    let mut left: Vec<_> = std::fs::read_dir(ranks.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["end-0", "end-1"]);
}

#[test]
fn strangers_on_the_port_stop_nobody() {
    let mut ranks = Ranks::new("tcp", "sums", 2);
    ranks.start(0, &[]);
    let address = ranks.read("address");
    // They say nothing, too little, nonsense, too much.
    let mut strangers = Vec::new();
    for said in [&b""[..], b"COATITC1", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 10_000]] {
        let mut stranger = TcpStream::connect(&address).unwrap();
        // It may have hung up already.
        let _ = stranger.write_all(said);
        strangers.push(stranger);
    }
    ranks.start(1, &[]);
    assert_eq!((ranks.end(0), ranks.end(1)), ("ok".to_owned(), "ok".to_owned()));
}
