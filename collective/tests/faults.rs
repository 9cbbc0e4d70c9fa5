//! Ranks that do not come, do not fit, stop or die: all others hear who.

use crate::ranks::Ranks;

const TRANSPORTS: [&str; 3] = ["shm", "tcp", "local"];

#[test]
fn a_killed_rank_is_named_to_all() {
    for transport in TRANSPORTS {
        let mut ranks = Ranks::new(transport, "silent", 3);
        ranks.start_all(&[]);
        ranks.read("silent");
        let victim = format!("pid {}) is gone", ranks.pid(2));
        ranks.kill(2);
        for rank in 0..2 {
            let text = ranks.end(rank);
            assert!(
                text.contains(&victim) && text.contains("rank 2 ("),
                "{transport}: {text}"
            );
            assert!(text.contains("operation"), "{transport}: {text}");
        }
    }
}

#[test]
fn a_rank_that_stays_away_is_named_with_where_everybody_is() {
    for transport in TRANSPORTS {
        let mut ranks = Ranks::new(transport, "silent", 3);
        ranks.start_all(&[("RANKS_WAIT_MS", "700")]);
        ranks.read("silent");
        let victim = format!("pid {})", ranks.pid(2));
        for rank in 0..2 {
            let text = ranks.end(rank);
            assert!(
                text.contains("s for rank 2 (") && text.contains(&victim),
                "{transport}: {text}"
            );
            assert!(text.contains("all-reduce of 300000 elements"), "{transport}: {text}");
            let at = text.lines().find(|line| line.starts_with("  rank 2 (")).unwrap();
            assert!(at.ends_with("barrier"), "{transport}: {text}");
        }
    }
}

/// Its process is there and holds its locks and connections; only its signs of life end.
#[test]
fn a_stopped_rank_is_named_long_before_the_wait_is_over() {
    for transport in TRANSPORTS {
        let mut ranks = Ranks::new(transport, "silent", 3);
        ranks.start_all(&[("RANKS_SILENCE_MS", "1500")]);
        ranks.read("silent");
        let victim = format!("pid {}) shows no sign of life for ", ranks.pid(2));
        ranks.stop(2);
        for rank in 0..2 {
            let text = ranks.end(rank);
            assert!(
                text.contains(&victim) && text.contains("rank 2 ("),
                "{transport}: {text}"
            );
        }
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    for transport in TRANSPORTS {
        let mut ranks = Ranks::new(transport, "sums", 3);
        for rank in 0..2 {
            ranks.start(rank, &[("RANKS_COME_MS", "1500")]);
        }
        for rank in 0..2 {
            let text = ranks.end(rank);
            assert!(text.contains("rank 2 did not come"), "{transport}: {text}");
        }
    }
}

#[test]
fn other_versions_worlds_and_configurations_are_refused_by_name() {
    for transport in TRANSPORTS {
        for (setting, value, words) in [
            ("RANKS_VERSION", "1.1", "has version 1.1, but rank 0 ("),
            ("RANKS_WORLD", "5", "has world size 5, but rank 0 ("),
            (
                "RANKS_DIGEST",
                "2",
                "has configuration digest 020202020202, but rank 0 (",
            ),
        ] {
            let mut ranks = Ranks::new(transport, "sums", 2);
            ranks.start(0, &[]);
            ranks.start(1, &[(setting, value)]);
            for rank in 0..2 {
                let text = ranks.end(rank);
                assert!(
                    text.contains(words) && text.contains("rank 1 ("),
                    "{transport}, {setting}: {text}"
                );
            }
        }
    }
}

#[test]
fn another_token_is_no_rank() {
    let mut ranks = Ranks::new("tcp", "sums", 2);
    ranks.start(0, &[("RANKS_COME_MS", "3000")]);
    ranks.start(1, &[("RANKS_TOKEN", "6")]);
    let text = ranks.end(1);
    assert!(text.contains("token"), "{text}");
    let text = ranks.end(0);
    assert!(
        text.contains("rank 1 did not come; 1 connections were no ranks of this job"),
        "{text}"
    );
}

#[test]
fn different_lengths_and_operations_are_named() {
    for transport in TRANSPORTS {
        for (scene, one, other) in [
            (
                "sizes",
                "all-reduce of 300000 elements",
                "all-reduce of 300001 elements",
            ),
            ("operations", "all-reduce of 10 elements", "barrier"),
        ] {
            let mut ranks = Ranks::new(transport, scene, 2);
            ranks.start_all(&[]);
            for rank in 0..2 {
                let text = ranks.end(rank);
                assert!(text.contains(one) && text.contains(other), "{transport}: {text}");
            }
        }
    }
}

#[test]
fn a_communicator_that_is_dropped_aborts() {
    for transport in TRANSPORTS {
        let mut ranks = Ranks::new(transport, "panics", 3);
        ranks.start_all(&[]);
        assert_eq!(ranks.end(1), "ok");
        for rank in [0, 2] {
            let text = ranks.end(rank);
            assert!(
                text.contains("ended without closing") && text.contains("rank 1 ("),
                "{transport}: {text}"
            );
        }
    }
}
