//! Gradients that hold NaN, under each `coati.on_nan`.

use coati_common::cluster::OnNan;
use coati_coordinator::{Event, Outcome};

use crate::cluster::{Job, options};
use crate::replica::{Habits, uses};

fn broken(at: u64) -> Habits {
    Habits {
        broken_at: Some(at),
        ..Habits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_gradient_costs_its_replica_a_step_and_no_record() {
    for synchronous in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), 1);
        options.on_nan = OnNan::Skip;
        options.synchronous = synchronous;
        options.consistency.max_staleness = if synchronous { 0 } else { 12 };
        let mut job = Job::start(3, options).await;
        for rank in 0..3 {
            job.replica(rank, if rank == 1 { broken(2) } else { Habits::default() });
        }
        let ended = job.end().await;
        assert_eq!(ended.outcome, Outcome::Completed);
        let [dropped] = ended.seen[1].dropped[..] else {
            panic!("{:?}", ended.seen[1]);
        };
        // Its records went back and were used by whoever asked next.
        let used = uses(ended.seen.iter().flat_map(|seen| &seen.committed));
        for position in dropped.0..dropped.0 + u64::from(dropped.1) {
            assert_eq!(used.get(&position), Some(&1), "position {position}");
        }
        let said = ended.events.iter().any(|event| {
            matches!(event, Event::Warning(text) if text.starts_with("skipped: ps-")
                && text.contains("gradient of replica 1 for version") && text.contains("NaN in `Conv2d_0/weights`"))
        });
        assert!(said, "{:?}", ended.events);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_gradient_is_broken_the_job_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 1);
    options.on_nan = OnNan::Skip;
    let mut job = Job::start(1, options).await;
    job.all_replicas(&broken(2));
    let Outcome::Failed(reason) = job.end().await.outcome else {
        panic!("a job without a gradient went on");
    };
    assert!(
        reason.starts_with("step 3: no finite gradient is left") && reason.contains("`Conv2d_0/weights`"),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn applied_or_refused_as_the_job_wants_it() {
    for (on_nan, refused) in [(OnNan::Apply, false), (OnNan::Stop, true)] {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), 1);
        options.on_nan = on_nan;
        options.num_steps = 4;
        let mut job = Job::start(1, options).await;
        for rank in 0..3 {
            job.replica(rank, if rank == 1 { broken(2) } else { Habits::default() });
        }
        if refused {
            // The replica leaves with the servers' reason; what then becomes of the job is the launcher's and the heartbeat's.
            let replica = job.replicas.swap_remove(1);
            let end = replica.await.unwrap().unwrap().end;
            assert!(
                end.contains("gradient of replica 1 for version 2") && end.contains("`Conv2d_0/weights`"),
                "{end}"
            );
            job.handle.fail(&end);
        }
        let outcome = job.end().await.outcome;
        assert_eq!(matches!(outcome, Outcome::Completed), !refused, "{outcome:?}");
    }
}
