//! What a process keeps of earlier incarnations while a copy is made in its place.

use coati_common::rpc::ErrorCode;
use coati_param_server::placement::Layout;
use coati_param_server::store::{Push, Store};
use coati_param_server::{OptimizerConfig, Strategy, plan};
use coati_proto::coati::v1::{JobRef, Placement};

use crate::cluster::{by, gradient, job, optimizer, specs, tag};

const MOMENTUM: &str = "momentum_optimizer { momentum_optimizer_value: 0.9 learning_rate { constant_learning_rate { learning_rate: 0.1 } } }";

fn placement() -> Placement {
    plan(&specs(), 1, Strategy::Balanced).unwrap()
}

fn configured(store: &Store, job: &JobRef, copy: bool) {
    let config = OptimizerConfig::decode(&optimizer(MOMENTUM)).unwrap();
    if copy {
        store.configure_copy(job, 0, &placement(), config, 0).unwrap();
    } else {
        store.configure(job, 0, &placement(), config, 0).unwrap();
    }
}

fn push(store: &Store, job: &JobRef, version: u64) {
    let layout = Layout::new(&placement()).unwrap();
    let server = layout.server(0).unwrap();
    let mut arena = Vec::new();
    layout.gather(0, &gradient(layout.flat_len(), 0, version), &mut arena);
    let Push::Wanted(mut staging) = store.begin_push(job, tag(0, version)).unwrap() else {
        panic!("it is wanted")
    };
    staging.take(0, &arena[..server.pushed_len]).unwrap();
    staging.finish().unwrap();
}

/// At version 1 in incarnation 1, with a step under way.
fn original() -> Store {
    let store = Store::default();
    configured(&store, &job(1), false);
    let layout = Layout::new(&placement()).unwrap();
    store
        .load(&job(1), vec![0.5; layout.server(0).unwrap().arena_len], 0)
        .unwrap();
    push(&store, &job(1), 0);
    store.commit(&job(1), 0, &[by(0, 0, 1)], true).unwrap();
    push(&store, &job(1), 1);
    store
}

fn values(store: &Store, job: &JobRef) -> Vec<f32> {
    let layout = Layout::new(&placement()).unwrap();
    let mut flat = vec![0.0; layout.flat_len()];
    let snapshot = store.pull(job, 0).unwrap();
    snapshot.scatter(layout.server(0).unwrap(), &mut flat);
    flat
}

/// Sends all that `from` holds to the copy.
fn seed(from: &Store, of: &JobRef, copy: &Store, job: &JobRef) {
    let (seed, _) = from.all(of).unwrap();
    let mut incoming = copy.follow(seed.begin(job.clone())).unwrap();
    for chunk in seed.chunks() {
        incoming.write(chunk.vector, chunk.offset, &chunk.data).unwrap();
    }
    copy.followed(incoming).unwrap();
}

#[test]
fn what_was_held_goes_on_where_the_copy_in_its_place_has_no_values_yet() {
    let store = original();
    let before = values(&store, &job(1));
    configured(&store, &job(2), true);
    let former = store.former().unwrap();
    assert_eq!(
        (former.job, former.version, former.copy),
        (Some(job(1)), Some(1), false)
    );
    assert_eq!(store.status().version, None, "the copy has nothing yet");
    let refused = store.pull(&job(1), 0).unwrap_err();
    assert_eq!(refused.code, ErrorCode::StaleIncarnation, "nobody is served from it");
    // A further incarnation that does not come to anything either.
    configured(&store, &job(3), true);
    assert_eq!(store.former().unwrap().job, Some(job(1)));

    assert_eq!(store.adopt(&job(4), 1).unwrap(), 1);
    assert_eq!(store.former(), None);
    assert_eq!(values(&store, &job(4)), before);
    // What was staged is still there.
    let committed = store.commit(&job(4), 1, &[by(0, 1, 1)], true).unwrap();
    assert_eq!(committed.version, 2);
}

#[test]
fn a_copy_that_has_its_values_takes_the_place_of_what_was_held() {
    let (first, second) = (original(), original());
    first.adopt(&job(2), 1).unwrap();
    configured(&second, &job(2), true);
    seed(&first, &job(2), &second, &job(2));
    assert_eq!(second.former(), None);
    let status = second.status();
    assert_eq!((status.job, status.version, status.copy), (Some(job(2)), Some(1), true));
    assert_eq!(second.adopt(&job(3), 1).unwrap(), 1);
    assert_eq!(values(&second, &job(3)), values(&first, &job(2)));
}

#[test]
fn variables_that_are_loaded_anew_leave_nothing_behind() {
    let store = original();
    configured(&store, &job(2), true);
    configured(&store, &job(3), false);
    assert_eq!(store.former(), None);
    let refused = store.adopt(&job(4), 1).unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotConfigured, "there is nothing to go on with");
}

#[tokio::test]
async fn who_waits_for_a_version_hears_when_another_incarnation_begins() {
    let store = std::sync::Arc::new(original());
    let waiting = {
        let store = std::sync::Arc::clone(&store);
        tokio::spawn(async move { store.wait_for(&job(1), 9).await })
    };
    tokio::task::yield_now().await;
    configured(&store, &job(2), true);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(30), waiting).await;
    let refused = ended.unwrap().unwrap().unwrap_err();
    assert_eq!(refused.code, ErrorCode::StaleIncarnation);
}

#[test]
fn what_is_of_no_use_is_forgotten_and_what_serves_stays() {
    let store = original();
    store.forget(&job(1)).unwrap();
    assert_eq!(store.status().version, Some(1), "it serves");
    configured(&store, &job(2), true);
    let refused = store.forget(&job(1)).unwrap_err();
    assert_eq!(refused.code, ErrorCode::StaleIncarnation);
    store.forget(&job(2)).unwrap();
    assert_eq!((store.status().job, store.former()), (None, None));
    let store = original();
    store.forget(&job(2)).unwrap();
    assert_eq!(store.status().job, None, "it is of an incarnation that is over");
}
