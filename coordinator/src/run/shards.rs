//! Whose variables lie in which process, and where their copies should be: decisions, from what the processes say.

use std::time::Duration;

use coati_proto::coati::v1::{JobRef, PsStatusReply, ShardStatus};

use tokio::time::Instant;

use crate::step_log::Log;

/// What the processes answered, by index; nothing where one did not.
pub(super) type Answers = [Option<PsStatusReply>];

/// Whether these variables can go on where the log ends: of its incarnation, at its end, or one step before with that step in
/// hand.
pub(super) fn fits(log: &Log, shard: &ShardStatus) -> bool {
    let job = shard.job.as_ref().filter(|job| job.job_id == log.job.job_id);
    // Or of one that was taking over from it.
    if !job.is_some_and(|job| (log.since..=log.job.incarnation).contains(&job.incarnation)) {
        return false;
    }
    let before = !log.steps.is_empty() && shard.version + 1 == log.end();
    match shard.state.as_str() {
        // Contributions are staged until a commit takes them.
        "serving" => before || shard.version == log.end(),
        // One that has the last step in hand makes it, also where the log began anew behind that step.
        "copy" => (shard.prepared && shard.version + 1 == log.end()) || shard.version == log.end(),
        _ => false,
    }
}

/// The process that holds each server's variables as they are where the log ends: their own if it can be, so that they
/// come home; nothing when some are in none.
pub(super) fn place(log: &Log, answers: &Answers) -> Option<Vec<usize>> {
    let count = answers.len();
    let holds = |process: usize, index: usize| {
        let shard = shard_of(answers.get(process)?.as_ref()?, index)?;
        fits(log, shard).then_some(process)
    };
    (0..count)
        .map(|index| (0..count).find_map(|next| holds((index + next) % count, index)))
        .collect()
}

/// What a process says of one server's variables.
pub(super) fn shard_of(answer: &PsStatusReply, index: usize) -> Option<&ShardStatus> {
    answer.shards.iter().find(|shard| shard.ps_index as usize == index)
}

/// What is left to do until every server's variables have a copy, and lie at home.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// A server's index, and the process that its copy should be in and is not.
    pub copies: Vec<(usize, usize)>,
    /// Servers without a whole copy.
    pub without: Vec<usize>,
    /// Servers whose variables could move home: the copy is there.
    pub guests: Vec<usize>,
}

/// `hosts` says in which process each server's variables lie, `absent` since when a process has not answered. One that was
/// lost is waited for so long before its copies go elsewhere.
pub(super) fn wanted(
    job: &JobRef,
    hosts: &[usize],
    addresses: &[String],
    answers: &Answers,
    absent: &[Option<Instant>],
    now: Instant,
    patience: Duration,
) -> Wanted {
    let mut wanted = Wanted::default();
    for (index, &host) in hosts.iter().enumerate() {
        let shard = answers
            .get(host)
            .and_then(Option::as_ref)
            .and_then(|answer| shard_of(answer, index));
        let Some(shard) = shard.filter(|shard| shard.job.as_ref() == Some(job)) else {
            // Whoever watches the servers ends the incarnation.
            wanted.without.push(index);
            continue;
        };
        let is_there = |process: usize| answers.get(process).is_some_and(Option::is_some);
        let is_hopeless =
            |process: usize| matches!(absent.get(process), Some(Some(since)) if now.duration_since(*since) > patience);
        let choice = candidates(index, host, hosts.len()).find(|&process| is_there(process) || !is_hopeless(process));
        let Some(to) = choice.filter(|&process| is_there(process)) else {
            wanted.without.push(index);
            continue;
        };
        let copy = answers[to].as_ref().and_then(|answer| shard_of(answer, index));
        let kept = copy.is_some_and(|copy| copy.job.as_ref() == Some(job) && copy.state != "serving");
        let sent = addresses.get(to) == Some(&shard.copy_address);
        match shard.copy_state.as_str() {
            "following" if sent && kept => {
                if to == index {
                    wanted.guests.push(index);
                }
            }
            "seeding" if sent && kept => wanted.without.push(index),
            _ => {
                wanted.copies.push((index, to));
                wanted.without.push(index);
            }
        }
    }
    wanted
}

/// Processes that can keep a server's copy, best first: its own when its variables lie elsewhere, then its neighbours.
fn candidates(index: usize, host: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count)
        .map(move |next| (index + next) % count)
        .filter(move |&process| process != host)
}

#[cfg(test)]
mod tests {
    use coati_checkpoint::manifest::DataPosition;

    use super::*;
    use crate::step_log::Step;

    fn job(incarnation: u64) -> JobRef {
        JobRef {
            job_id: "j".into(),
            incarnation,
        }
    }

    fn shard(index: u32, state: &str, version: u64) -> ShardStatus {
        ShardStatus {
            ps_index: index,
            job: Some(job(4)),
            state: state.into(),
            version,
            ..ShardStatus::default()
        }
    }

    fn process(shards: Vec<ShardStatus>) -> Option<PsStatusReply> {
        Some(PsStatusReply {
            shards,
            ..PsStatusReply::default()
        })
    }

    fn log(steps: &[u64]) -> Log {
        let step = |&version| Step {
            version,
            contributors: Vec::new(),
        };
        Log {
            job: job(4),
            since: 4,
            version: 10,
            data: DataPosition::default(),
            steps: steps.iter().map(step).collect(),
        }
    }

    #[test]
    fn variables_are_of_use_only_where_the_log_knows_every_step() {
        let serving = |version| shard(0, "serving", version);
        let long = log(&[10, 11]);
        assert!(fits(&long, &serving(12)));
        assert!(fits(&long, &serving(11)), "the last commit did not reach it");
        assert!(!fits(&long, &serving(13)), "a step that the log does not know");
        assert!(!fits(&long, &serving(10)), "it lacks an earlier step");
        let other = ShardStatus {
            job: Some(job(3)),
            ..serving(12)
        };
        assert!(!fits(&long, &other), "another incarnation's");
        assert!(!fits(&long, &shard(0, "loading", 0)), "started again");
        let begun = log(&[]);
        assert!(fits(&begun, &serving(10)));
        assert!(!fits(&begun, &serving(9)));
        let copy = |version, prepared| ShardStatus {
            prepared,
            ..shard(0, "copy", version)
        };
        assert!(
            fits(&begun, &copy(9, true)),
            "it has the step in hand behind which the log begins"
        );
        assert!(!fits(&begun, &copy(9, false)));
        let taken_over = Log {
            job: job(6),
            ..long.clone()
        };
        let of = |incarnation| ShardStatus {
            job: Some(job(incarnation)),
            ..serving(12)
        };
        let found: Vec<u64> = (2..8)
            .filter(|&incarnation| fits(&taken_over, &of(incarnation)))
            .collect();
        assert_eq!(found, [4, 5, 6], "coordinators died before they had told all servers");
        // A copy that is behind needs the step in hand.
        assert!(fits(&long, &shard(0, "copy", 12)));
        assert!(!fits(&long, &shard(0, "copy", 11)));
        let in_hand = ShardStatus {
            prepared: true,
            ..shard(0, "copy", 11)
        };
        assert!(fits(&long, &in_hand));
    }

    #[test]
    fn a_lost_servers_variables_are_found_in_its_neighbour() {
        let log = log(&[10]);
        let whole = vec![
            process(vec![shard(0, "serving", 11), shard(2, "copy", 11)]),
            process(vec![shard(1, "serving", 11), shard(0, "copy", 11)]),
            process(vec![shard(2, "serving", 11), shard(1, "copy", 11)]),
        ];
        assert_eq!(place(&log, &whole), Some(vec![0, 1, 2]));
        for lost in 0..3 {
            let mut answers = whole.clone();
            answers[lost] = None;
            let mut expected = vec![0, 1, 2];
            expected[lost] = (lost + 1) % 3;
            assert_eq!(place(&log, &answers), Some(expected));
            answers[(lost + 1) % 3] = process(Vec::new());
            assert_eq!(place(&log, &answers), None, "a server and its copy");
        }
    }

    fn addresses() -> Vec<String> {
        (0..3).map(|index| format!("host:{index}")).collect()
    }

    fn copied(index: u32, to: usize, state: &str) -> ShardStatus {
        ShardStatus {
            copy_address: addresses()[to].clone(),
            copy_state: state.into(),
            ..shard(index, "serving", 11)
        }
    }

    fn ask(hosts: &[usize], answers: &Answers, absent: &[Option<Instant>], now: Instant) -> Wanted {
        wanted(
            &job(4),
            hosts,
            &addresses(),
            answers,
            absent,
            now,
            Duration::from_secs(30),
        )
    }

    #[test]
    fn every_servers_copy_goes_to_the_next_process() {
        let now = Instant::now();
        let fresh: Vec<_> = (0..3).map(|index| process(vec![shard(index, "serving", 11)])).collect();
        let all = ask(&[0, 1, 2], &fresh, &[None; 3], now);
        assert_eq!(all.copies, [(0, 1), (1, 2), (2, 0)]);
        assert_eq!(all.without, [0, 1, 2]);
        let whole = vec![
            process(vec![copied(0, 1, "following"), shard(2, "copy", 11)]),
            process(vec![copied(1, 2, "following"), shard(0, "copy", 11)]),
            process(vec![copied(2, 0, "following"), shard(1, "copy", 11)]),
        ];
        assert_eq!(ask(&[0, 1, 2], &whole, &[None; 3], now), Wanted::default());
        // One that was started again holds no copy, whatever the original still believes.
        let mut again = whole.clone();
        again[1] = process(vec![copied(1, 2, "following")]);
        assert_eq!(ask(&[0, 1, 2], &again, &[None; 3], now).copies, [(0, 1)]);
        let mut broken = whole;
        broken[2] = process(vec![copied(2, 0, "ps-2: connection refused"), shard(1, "copy", 11)]);
        assert_eq!(ask(&[0, 1, 2], &broken, &[None; 3], now).copies, [(2, 0)]);
    }

    #[test]
    fn a_lost_process_is_waited_for_and_its_variables_come_home() {
        let now = Instant::now();
        // Process 1 is gone, process 2 has taken its variables over.
        let mut answers = vec![
            process(vec![copied(0, 1, "ps-0: connection refused"), shard(2, "copy", 11)]),
            None,
            process(vec![copied(2, 0, "following"), shard(1, "serving", 11)]),
        ];
        let waiting = ask(&[0, 2, 2], &answers, &[None, Some(now), None], now);
        assert_eq!((waiting.copies.len(), &waiting.without[..]), (0, &[0, 1][..]));
        let later = now + Duration::from_secs(31);
        let elsewhere = ask(&[0, 2, 2], &answers, &[None, Some(now), None], later);
        assert_eq!(elsewhere.copies, [(0, 2), (1, 0)]);
        answers[1] = process(Vec::new());
        let back = ask(&[0, 2, 2], &answers, &[None; 3], later);
        assert_eq!(back.copies, [(0, 1), (1, 1)]);
        answers[2] = process(vec![copied(2, 0, "following"), copied(1, 1, "following")]);
        answers[1] = process(vec![shard(1, "copy", 11), shard(0, "copy", 11)]);
        answers[0] = process(vec![copied(0, 1, "following"), shard(2, "copy", 11)]);
        let home = ask(&[0, 2, 2], &answers, &[None; 3], later);
        assert_eq!(
            home,
            Wanted {
                guests: vec![1],
                ..Wanted::default()
            }
        );
    }
}
