//! Saving and restoring, also into another number of servers.

use std::path::Path;

use coati_checkpoint::bundle::{Reader, write_plain_index};
use coati_common::rpc::ErrorCode;
use coati_common::variables::{VariableKind, flat_elements};

use crate::cluster::{ADAM, COUNTING, Cluster, LIMIT, bits, by, gradient, specs, tag};

async fn steps(cluster: &Cluster, versions: std::ops::Range<u64>) {
    let elements = flat_elements(&specs());
    for version in versions {
        cluster
            .group
            .push(tag(0, version), &gradient(elements, 0, version), LIMIT)
            .await
            .unwrap();
        cluster
            .group
            .push(tag(1, version), &gradient(elements, 1, version), LIMIT)
            .await
            .unwrap();
        cluster.commit(version, &[by(0, version, 4), by(1, version, 4)]).await;
    }
}

async fn save(cluster: &Cluster, prefix: &Path, version: u64) {
    let saved = cluster
        .group
        .save(prefix.to_str().unwrap(), version, LIMIT)
        .await
        .unwrap();
    write_plain_index(prefix, cluster.servers.len() as u32, &saved.tensors).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_continues_bit_for_bit_on_other_servers() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("model.ckpt-3");
    let first = Cluster::start(&specs(), 3, ADAM, 0).await;
    first
        .group
        .load(&gradient(flat_elements(&specs()), 99, 0), 0, LIMIT)
        .await
        .unwrap();
    steps(&first, 0..3).await;
    save(&first, &prefix, 3).await;
    steps(&first, 3..6).await;
    let expected = folder.path().join("expected");
    save(&first, &expected, 6).await;
    let values = bits(&first.values(6).await);
    first.end().await;

    for servers in [1, 5] {
        let second = Cluster::start(&specs(), servers, ADAM, 0).await;
        let restored = second
            .group
            .restore(prefix.to_str().unwrap(), 3, false, LIMIT)
            .await
            .unwrap();
        assert!(restored.slots_initialised.is_empty());
        steps(&second, 3..6).await;
        assert_eq!(bits(&second.values(6).await), values, "{servers} servers");
        let found = folder.path().join(format!("found-{servers}"));
        save(&second, &found, 6).await;
        second.end().await;

        let (expected, found) = (Reader::open(&expected).unwrap(), Reader::open(&found).unwrap());
        let names = |reader: &Reader| reader.entries().map(|entry| entry.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&expected), names(&found));
        // 5 trainable variables with two slots and an average each, one statistic, one constant, step, two powers.
        assert_eq!(names(&expected).len(), 5 * 4 + 2 + 3);
        for name in names(&expected) {
            assert_eq!(
                expected.read_raw(&name).unwrap(),
                found.read_raw(&name).unwrap(),
                "{name}"
            );
        }
        assert_eq!(found.read_i64("global_step").unwrap(), [6]);
        for suffix in ["Adam", "Adam_1", "ExponentialMovingAverage"] {
            assert!(found.entry(&format!("scale/{suffix}")).is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_kept_is_written_while_steps_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (at_once, later) = (folder.path().join("at_once"), folder.path().join("later"));
    let cluster = Cluster::start(&specs(), 3, ADAM, 0).await;
    let start = gradient(flat_elements(&specs()), 99, 0);
    cluster.group.load(&start, 0, LIMIT).await.unwrap();
    steps(&cluster, 0..3).await;
    save(&cluster, &at_once, 3).await;
    cluster.group.snapshot(3, LIMIT).await.unwrap();
    let error = cluster.group.snapshot(4, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownVersion), "{error}");
    steps(&cluster, 3..6).await;
    save(&cluster, &later, 3).await;
    let (at_once, kept) = (Reader::open(&at_once).unwrap(), Reader::open(&later).unwrap());
    assert!(at_once.entries().count() > 20);
    for entry in at_once.entries() {
        let name = &entry.name;
        assert_eq!(at_once.read_raw(name).unwrap(), kept.read_raw(name).unwrap(), "{name}");
    }
    // Asked again because the answer was lost: the same answer. Elsewhere, or gone: it is not there any more.
    let prefix = later.to_str().unwrap();
    let again = cluster.group.save(prefix, 3, LIMIT).await.unwrap();
    assert_eq!(
        again.tensors.len(),
        kept.entries().map(|entry| entry.slices.len().max(1)).sum::<usize>()
    );
    let elsewhere = folder.path().join("elsewhere");
    for lost in [elsewhere.to_str().unwrap(), prefix] {
        for shard in 0..3 {
            let _ = std::fs::remove_file(format!("{lost}.data-{shard:05}-of-00003"));
        }
        let error = cluster.group.save(lost, 3, LIMIT).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::UnknownVersion), "{error}");
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_are_missing_start_afresh_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("model.ckpt-0");
    let first = Cluster::start(&specs(), 3, COUNTING, 0).await;
    let start = gradient(flat_elements(&specs()), 99, 0);
    first.group.load(&start, 0, LIMIT).await.unwrap();
    save(&first, &prefix, 0).await;
    first.end().await;

    let second = Cluster::start(&specs(), 3, ADAM, 0).await;
    let path = prefix.to_str().unwrap();
    let error = second.group.restore(path, 0, false, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Checkpoint), "{error}");
    let restored = second.group.restore(path, 0, true, LIMIT).await.unwrap();
    let trainable = specs()
        .iter()
        .filter(|spec| spec.kind == VariableKind::Trainable)
        .count();
    assert_eq!(restored.slots_initialised.len(), 3 * trainable + 2);
    assert_eq!(second.values(0).await, start);
    let mut averages = vec![0.0; start.len()];
    second.group.pull_averages(0, LIMIT, &mut averages).await.unwrap();
    assert_eq!(averages, start);
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_saved_or_restored_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let cluster = Cluster::start(&specs(), 1, COUNTING, 0).await;
    let error = cluster
        .group
        .restore(&path("absent"), 0, true, LIMIT)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Checkpoint));
    assert!(error.to_string().contains("absent"), "{error}");

    cluster
        .group
        .load(&vec![0.0; flat_elements(&specs())], 5, LIMIT)
        .await
        .unwrap();
    let error = cluster.group.save(&path("model.ckpt-4"), 4, LIMIT).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownVersion));
    assert!(
        std::fs::read_dir(folder.path()).unwrap().next().is_none(),
        "nothing is written"
    );
    let error = cluster
        .group
        .save("/dev/null/model.ckpt-5", 5, LIMIT)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Io), "{error}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("model.ckpt-0");
    let mut other = specs();
    other[0].shape = vec![3, 3, 3, 16];
    let first = Cluster::start(&other, 1, COUNTING, 0).await;
    first
        .group
        .load(&vec![0.0; flat_elements(&other)], 0, LIMIT)
        .await
        .unwrap();
    save(&first, &prefix, 0).await;
    first.end().await;
    let second = Cluster::start(&specs(), 1, COUNTING, 0).await;
    let error = second
        .group
        .restore(prefix.to_str().unwrap(), 0, true, LIMIT)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("has shape [3, 3, 3, 16], the model's variable has [3, 3, 3, 32]"),
        "{error}"
    );
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_names_tensor_and_file_and_offers_the_checkpoint_before() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&specs(), 3, COUNTING, 0).await;
    let values = gradient(flat_elements(&specs()), 99, 0);
    cluster.group.load(&values, 0, LIMIT).await.unwrap();
    for version in [0, 1] {
        save(&cluster, &folder.path().join(format!("model.ckpt-{version}")), version).await;
        steps(&cluster, version..version + 1).await;
    }
    cluster.end().await;
    let prefix = folder.path().join("model.ckpt-1");
    let entry = Reader::open(&prefix).unwrap().entries().next().unwrap().name.clone();
    let data = folder.path().join("model.ckpt-1.data-00001-of-00003");
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&data, bytes).unwrap();

    let cluster = Cluster::start(&specs(), 5, COUNTING, 0).await;
    let restored = cluster.group.restore(prefix.to_str().unwrap(), 1, false, LIMIT).await;
    let error = restored.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Checkpoint));
    let text = error.to_string();
    let known = specs();
    assert!(
        text.contains("model.ckpt-1.data-00001-of-00003: tensor \"")
            && known.iter().any(|spec| text.contains(&spec.name))
            && text.contains("CRC is "),
        "{text} ({entry})"
    );
    let offered = format!("hint: {} is whole: move ", folder.path().join("model.ckpt-0").display());
    assert!(text.contains(&offered), "{text}");
    cluster.end().await;
}
