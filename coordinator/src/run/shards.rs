//! Whose variables lie in which process, and where their copies should be: decisions, from what the processes say.

use coati_param_server::Contributor;
use coati_proto::coati::v1::{JobRef, PsStatusReply, ShardStatus};

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
    let before = shard.version + 1 == log.end();
    match shard.state.as_str() {
        // Contributions are staged until a commit takes them.
        "serving" => (before && !log.steps.is_empty()) || shard.version == log.end(),
        // One that has the last step in hand makes it. In hand, too, may be one that was never decided.
        "copy" => (before && has_in_hand(shard, &log.newest())) || shard.version == log.end(),
        _ => false,
    }
}

fn has_in_hand(shard: &ShardStatus, by: &[Contributor]) -> bool {
    !by.is_empty() && shard.in_hand.iter().map(Contributor::from).eq(by.iter().copied())
}

/// Whether a process holds a server's variables so that they can go on where the log ends.
pub(super) fn fitting(log: &Log, answer: &PsStatusReply, index: usize) -> bool {
    shards_of(answer, index).any(|shard| fits(log, shard))
}

/// The process that holds each server's variables as they are where the log ends: their own if it can be, so that they
/// come home; nothing when some are in none.
pub(super) fn place(log: &Log, answers: &Answers) -> Option<Vec<usize>> {
    let count = answers.len();
    let holds = |process: usize, index: usize| fitting(log, answers.get(process)?.as_ref()?, index).then_some(process);
    (0..count)
        .map(|index| (0..count).find_map(|next| holds((index + next) % count, index)))
        .collect()
}

/// What a process says of one server's variables; also what an earlier incarnation left, while a copy is made in its place.
fn shards_of(answer: &PsStatusReply, index: usize) -> impl Iterator<Item = &ShardStatus> {
    answer
        .shards
        .iter()
        .filter(move |shard| shard.ps_index as usize == index)
}

/// What is left to do until every server's variables have a copy, and lie at home.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// A server's index, and the process that its copy should be in and is not.
    pub copies: Vec<(usize, usize)>,
    /// Servers without a whole copy.
    pub without: Vec<usize>,
    /// A copy is made, or can be.
    pub under_way: bool,
    /// Servers whose variables could move home: the copy is there.
    pub guests: Vec<usize>,
    /// Processes that hold something of a server for nobody, once all copies are whole.
    pub strays: Vec<(usize, usize)>,
}

/// `hosts` says in which process each server's variables lie.
pub(super) fn wanted(job: &JobRef, hosts: &[usize], addresses: &[String], answers: &Answers) -> Wanted {
    let mut wanted = Wanted::default();
    let mut kept = Vec::new();
    for (index, &host) in hosts.iter().enumerate() {
        let of = |process: usize| {
            let answer = answers.get(process)?.as_ref()?;
            shards_of(answer, index).find(|shard| shard.job.as_ref() == Some(job))
        };
        let is_there = |process: usize| answers.get(process).is_some_and(Option::is_some);
        let Some(original) = of(host) else {
            // Whoever watches the servers ends the incarnation.
            wanted.without.push(index);
            continue;
        };
        let is_made = matches!(original.copy_state.as_str(), "following" | "seeding");
        let at = addresses.iter().position(|address| *address == original.copy_address);
        let at = at.filter(|_| is_made);
        // One that does not answer may be slow: its original will say if it is gone.
        if at.is_some_and(|process| !is_there(process)) {
            wanted.without.push(index);
            continue;
        }
        // One that was started again holds no copy, whatever its original still believes.
        let at = at.filter(|&process| of(process).is_some_and(|copy| copy.state != "serving"));
        let home = (host != index && is_there(index)).then_some(index);
        let choice = home.or(at);
        let choice = choice.or_else(|| candidates(index, host, hosts.len()).find(|&process| is_there(process)));
        match choice {
            Some(to) if at == Some(to) && original.copy_state == "following" => {
                kept.push((to, index));
                if to == index {
                    wanted.guests.push(index);
                }
            }
            Some(to) => {
                if at != Some(to) {
                    wanted.copies.push((index, to));
                }
                wanted.under_way = true;
                wanted.without.push(index);
            }
            None => wanted.without.push(index),
        }
    }
    if wanted.without.is_empty() {
        wanted.strays = strays(job, hosts, answers, &kept);
    }
    wanted
}

/// What is held and is neither a server's variables nor the copy of them that is `kept`.
fn strays(job: &JobRef, hosts: &[usize], answers: &Answers, kept: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut strays = Vec::new();
    for (process, answer) in answers.iter().enumerate() {
        for shard in answer.iter().flat_map(|answer| &answer.shards) {
            let index = shard.ps_index as usize;
            let is_copy = kept.contains(&(process, index)) && shard.job.as_ref() == Some(job);
            if hosts.get(index) != Some(&process) && !is_copy {
                strays.push((process, index));
            }
        }
    }
    strays.dedup();
    strays
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

    fn by(version: u64) -> Contributor {
        Contributor {
            replica: 0,
            sequence: version,
            samples: 1,
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
            contributors: vec![(by(version), 0, 1)],
        };
        Log {
            job: job(4),
            since: 4,
            version: 10,
            last: vec![by(9)],
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
        let copy = |version, in_hand: &[u64]| ShardStatus {
            in_hand: in_hand.iter().map(|&sequence| by(sequence).into()).collect(),
            ..shard(0, "copy", version)
        };
        assert!(
            fits(&begun, &copy(9, &[9])),
            "it has the step in hand behind which the log begins"
        );
        assert!(!fits(&begun, &copy(9, &[])));
        assert!(!fits(&begun, &copy(9, &[8])), "in hand is one that was never decided");
        let unknown = Log {
            last: Vec::new(),
            ..begun.clone()
        };
        assert!(!fits(&unknown, &copy(9, &[9])));
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
        assert!(fits(&long, &copy(12, &[])));
        assert!(fits(&long, &copy(12, &[12])), "what is in hand was not decided");
        assert!(!fits(&long, &copy(11, &[])));
        assert!(fits(&long, &copy(11, &[11])));
        assert!(!fits(&long, &copy(11, &[10])));
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

    fn ask(hosts: &[usize], answers: &Answers) -> Wanted {
        wanted(&job(4), hosts, &addresses(), answers)
    }

    #[test]
    fn every_servers_copy_goes_to_the_next_process() {
        let fresh: Vec<_> = (0..3).map(|index| process(vec![shard(index, "serving", 11)])).collect();
        let all = ask(&[0, 1, 2], &fresh);
        assert_eq!(all.copies, [(0, 1), (1, 2), (2, 0)]);
        assert_eq!((&all.without[..], all.under_way), (&[0, 1, 2][..], true));
        let whole = vec![
            process(vec![copied(0, 1, "following"), shard(2, "copy", 11)]),
            process(vec![copied(1, 2, "following"), shard(0, "copy", 11)]),
            process(vec![copied(2, 0, "following"), shard(1, "copy", 11)]),
        ];
        assert_eq!(ask(&[0, 1, 2], &whole), Wanted::default());
        let mut made = whole.clone();
        made[1] = process(vec![copied(1, 2, "seeding"), shard(0, "copy", 11)]);
        let made = ask(&[0, 1, 2], &made);
        assert_eq!(
            (made.copies.len(), &made.without[..], made.under_way),
            (0, &[1][..], true)
        );
        // One that was started again holds no copy, whatever the original still believes.
        let mut again = whole.clone();
        again[1] = process(vec![copied(1, 2, "following")]);
        assert_eq!(ask(&[0, 1, 2], &again).copies, [(0, 1)]);
        let mut broken = whole.clone();
        broken[2] = process(vec![copied(2, 0, "ps-2: connection refused"), shard(1, "copy", 11)]);
        assert_eq!(ask(&[0, 1, 2], &broken).copies, [(2, 0)]);
        // One that does not answer this time is neither given up nor relied on, and no step waits for it.
        let mut slow = whole;
        slow[1] = None;
        let slow = ask(&[0, 1, 2], &slow);
        assert_eq!(
            (slow.copies.len(), &slow.without[..], slow.under_way),
            (0, &[0, 1][..], false)
        );
    }

    #[test]
    fn a_lost_processs_copies_go_elsewhere_and_its_variables_come_home() {
        // Process 1 is gone, process 2 has taken its variables over.
        let mut answers = vec![
            process(vec![copied(0, 1, "ps-0: connection refused"), shard(2, "copy", 11)]),
            None,
            process(vec![copied(2, 0, "following"), shard(1, "serving", 11)]),
        ];
        assert_eq!(ask(&[0, 2, 2], &answers).copies, [(0, 2), (1, 0)]);
        answers[0] = process(vec![
            copied(0, 2, "following"),
            shard(1, "copy", 11),
            shard(2, "copy", 11),
        ]);
        answers[2] = process(vec![
            shard(0, "copy", 11),
            copied(1, 0, "following"),
            copied(2, 0, "following"),
        ]);
        assert_eq!(ask(&[0, 2, 2], &answers), Wanted::default());
        // It is back: its own variables come home, other copies stay where they are.
        answers[1] = process(Vec::new());
        assert_eq!(ask(&[0, 2, 2], &answers).copies, [(1, 1)]);
        answers[1] = process(vec![shard(1, "copy", 11)]);
        answers[2] = process(vec![
            shard(0, "copy", 11),
            copied(1, 1, "following"),
            copied(2, 0, "following"),
        ]);
        let home = ask(&[0, 2, 2], &answers);
        assert_eq!((home.copies.len(), &home.guests[..]), (0, &[1][..]));
        assert_eq!(home.strays, [(0, 1)], "nobody keeps it up to date any more");
    }

    #[test]
    fn what_earlier_incarnations_left_serves_until_there_is_something_in_its_place() {
        let before = |index, state, version, in_hand: &[u64]| ShardStatus {
            job: Some(job(3)),
            in_hand: in_hand.iter().map(|&sequence| by(sequence).into()).collect(),
            ..shard(index, state, version)
        };
        let left = before(0, "copy", 10, &[10]);
        let loading = process(vec![shard(1, "serving", 11), shard(0, "loading", 0), left.clone()]);
        let chain = Log { since: 3, ..log(&[10]) };
        let answers = [None, loading, process(vec![before(1, "copy", 11, &[])])];
        assert!(fitting(&chain, answers[1].as_ref().unwrap(), 0));
        assert!(
            !fitting(&log(&[10]), answers[1].as_ref().unwrap(), 0),
            "variables were loaded since"
        );
        let whole = vec![
            process(vec![copied(0, 1, "following")]),
            process(vec![copied(1, 0, "following"), shard(0, "copy", 11)]),
            process(vec![before(1, "copy", 10, &[10])]),
        ];
        let mut whole_of_two = whole;
        whole_of_two[0] = process(vec![copied(0, 1, "following"), shard(1, "copy", 11)]);
        assert_eq!(ask(&[0, 1], &whole_of_two).strays, [(2, 1)]);
    }
}
