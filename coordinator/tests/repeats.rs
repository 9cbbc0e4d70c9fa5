//! What is said twice changes nothing; what is said too late is refused.

use coati_common::rpc::ErrorCode;
use coati_coordinator::Outcome;
use coati_param_server::{Contributor, PsGroup, Tag};
use coati_proto::coati::v1::JobRef;

use crate::cluster::{Job, LIMIT, identity, latest, options, tensors};
use crate::replica::{Habits, Replica, code, gradient};

#[tokio::test(flavor = "multi_thread")]
async fn pushes_and_reports_said_twice_change_nothing() {
    let mut all = Vec::new();
    for twice in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut job = Job::start(3, options(folder.path(), 1)).await;
        job.all_replicas(&Habits {
            jitter: 2,
            twice,
            ..Habits::default()
        });
        let ended = job.end().await;
        assert_eq!(ended.outcome, Outcome::Completed, "{:?}", ended.seen);
        let (prefix, manifest) = latest(folder.path());
        assert_eq!(manifest.records_seen(), 20 * 12);
        all.push(tensors(&prefix));
    }
    assert!(all[0] == all[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_said_twice_and_an_old_incarnation_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), 4);
    options.workers = 0;
    options.num_steps = 2;
    let job = Job::start(3, options).await;
    let mut replica = Replica::join(&job.address, 0, &identity()).await.unwrap();
    let mut flat = vec![0.0; replica.servers.layout().flat_len()];
    let (leases, _) = replica.client.lease(0, 2).await.unwrap();
    assert_eq!(leases.len(), 2);
    replica.servers.pull(0, LIMIT, &mut flat).await.unwrap();
    let first = gradient(&flat, &leases[0], 0);
    let tag = Tag {
        replica: 0,
        sequence: 0,
        version: 0,
    };
    replica.servers.push(tag, &first, LIMIT).await.unwrap();

    // One who thinks the incarnation before is still running.
    let placement = replica.plan.placement.clone().unwrap();
    let old = JobRef {
        incarnation: 3,
        ..replica.client.job().clone()
    };
    let old = PsGroup::connect(placement, &job.ps_addresses, &old, LIMIT)
        .await
        .unwrap();
    let contributor = Contributor {
        replica: 0,
        sequence: 0,
        samples: 4,
    };
    for error in [
        old.push(tag, &first, LIMIT).await.unwrap_err(),
        old.commit(0, &[contributor], true, LIMIT).await.unwrap_err(),
    ] {
        assert_eq!(error.code(), Some(ErrorCode::StaleIncarnation), "{error}");
    }

    let request = replica.report(tag, &leases[0]);
    let reply = replica.client.report(request.clone(), |_| ()).await.unwrap();
    assert_eq!((reply.version, reply.last), (1, false));
    let mut after = vec![0.0; flat.len()];
    replica.servers.pull(1, LIMIT, &mut after).await.unwrap();
    assert_ne!(after, flat);
    replica.servers.commit(0, &[contributor], true, LIMIT).await.unwrap();
    replica.servers.push(tag, &first, LIMIT).await.unwrap();
    assert_eq!(replica.client.report(request.clone(), |_| ()).await.unwrap(), reply);
    let mut again = vec![0.0; flat.len()];
    assert_eq!(replica.servers.pull(1, LIMIT, &mut again).await.unwrap(), 1);
    assert_eq!(again, after);

    // A lease that was used, or is somebody else's, does not count.
    let next = Tag {
        sequence: 1,
        version: 1,
        ..tag
    };
    let wrong = replica
        .client
        .report(replica.report(next, &leases[0]), |_| ())
        .await
        .unwrap_err();
    assert_eq!(code(&wrong), Some(ErrorCode::InvalidRequest), "{wrong}");
    let second = gradient(&after, &leases[1], 0);
    replica.servers.push(next, &second, LIMIT).await.unwrap();
    let reply = replica
        .client
        .report(replica.report(next, &leases[1]), |_| ())
        .await
        .unwrap();
    assert_eq!((reply.version, reply.last), (2, true));
    // What was decided two contributions ago is not waited for.
    let late = replica.client.report(request, |_| ()).await.unwrap_err();
    assert_eq!(code(&late), Some(ErrorCode::TagReused), "{late}");
    let ended = job.end().await;
    assert_eq!(ended.outcome, Outcome::Completed);
}
