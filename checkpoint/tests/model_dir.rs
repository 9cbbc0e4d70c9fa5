//! A folder of checkpoints: what counts, what goes, what a full disk does.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use coati_checkpoint::bundle::{DataFileWriter, Reader, write_index};
use coati_checkpoint::keep::{self, Options};
use coati_checkpoint::saver::{self, prefix};
use coati_checkpoint::state::{self, Condition, Latest, State};
use coati_checkpoint::{manifest, rescue, show};

use crate::support::{counting, manifest as make_manifest};

/// Saves a small checkpoint of one data file and says so in the state file.
fn save(dir: &Path, step: u64) -> PathBuf {
    let prefix = save_unlisted(dir, step);
    keep::update(
        dir,
        &prefix,
        step as f64,
        Options {
            max_to_keep: 2,
            ..Options::default()
        },
    )
    .unwrap();
    prefix
}

fn save_unlisted(dir: &Path, step: u64) -> PathBuf {
    let prefix = prefix(dir, step);
    let values = counting(6);
    let tensors = [("b", [2i64, 3].as_slice(), values.as_slice()), ("a", &[], &values[..1])];
    saver::save(
        &prefix,
        &tensors,
        &[("global_step", step as i64)],
        Some(make_manifest(step)),
    )
    .unwrap();
    prefix
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = dir
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn latest_step(dir: &Path) -> Option<u64> {
    state::latest(dir).unwrap().map(|latest| latest.step)
}

fn set_modified(path: &Path, seconds_from_now: i64) {
    let shift = Duration::from_secs(seconds_from_now.unsigned_abs());
    let now = SystemTime::now();
    let time = if seconds_from_now < 0 { now - shift } else { now + shift };
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

#[test]
fn nothing_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(state::latest(dir.path()).unwrap(), None);
    assert_eq!(state::latest(&dir.path().join("not there")).unwrap(), None);
    assert_eq!(keep::clean(dir.path()).unwrap(), [] as [PathBuf; 0]);
    assert_eq!(show::report(dir.path()).unwrap().checkpoints, []);
}

#[test]
fn saving_updates_the_state_and_deletes_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    for step in [5, 10, 100] {
        save(dir.path(), step);
    }
    let expect =
        |step: u64| ["coati.json", "data-00000-of-00001", "index"].map(|end| format!("model.ckpt-{step}.{end}"));
    let expected: Vec<_> = ["checkpoint".to_owned()]
        .into_iter()
        .chain(expect(10))
        .chain(expect(100))
        .collect();
    assert_eq!(names(dir.path()), expected);
    let text = fs::read_to_string(dir.path().join("checkpoint")).unwrap();
    assert!(
        text.starts_with(
            "model_checkpoint_path: \"model.ckpt-100\"\nall_model_checkpoint_paths: \"model.ckpt-10\"\nall_model_checkpoint_paths: \"model.ckpt-100\"\n"
        ),
        "{text}"
    );
    let latest = state::latest(dir.path()).unwrap().unwrap();
    let expected = Latest {
        prefix: dir.path().join("model.ckpt-100"),
        step: 100,
        manifest: manifest::Manifest::read(&dir.path().join("model.ckpt-100")).unwrap(),
    };
    assert_eq!(latest, expected);
    assert_eq!(latest.manifest.unwrap().files.len(), 2);
    assert_eq!(
        state::list(dir.path())
            .unwrap()
            .iter()
            .map(|found| found.step)
            .collect::<Vec<_>>(),
        [10, 100]
    );
}

#[test]
fn a_checkpoint_counts_only_when_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 5);
    let newest = save(dir.path(), 10);
    let report = |expected: &str| {
        let report = show::report(dir.path()).unwrap();
        let broken = report.checkpoints.last().unwrap();
        assert_eq!((broken.step, latest_step(dir.path())), (10, Some(5)));
        let text = format!("{} {}", broken.condition, broken.problem.as_deref().unwrap_or_default());
        assert!(text.contains(expected), "{text}");
    };
    let data = dir.path().join("model.ckpt-10.data-00000-of-00001");
    let bytes = fs::read(&data).unwrap();
    fs::write(&data, &bytes[..7]).unwrap();
    report("broken");
    fs::remove_file(&data).unwrap();
    report("model.ckpt-10.data-00000-of-00001: is missing");
    fs::write(&data, &bytes).unwrap();
    assert_eq!(latest_step(dir.path()), Some(10));
    fs::remove_file(manifest::path(&newest)).unwrap();
    report("unfinished");
}

#[test]
fn the_state_file_decides_unless_it_is_behind() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 5);
    save(dir.path(), 10);
    // Somebody goes back to an older one by hand.
    fs::write(
        dir.path().join("checkpoint"),
        "model_checkpoint_path: \"model.ckpt-5\"\n",
    )
    .unwrap();
    set_modified(&dir.path().join("checkpoint"), 60);
    assert_eq!(latest_step(dir.path()), Some(5));
    // A checkpoint was finished, and then the process ended before it wrote the state.
    let prefix = save_unlisted(dir.path(), 20);
    set_modified(&manifest::path(&prefix), 120);
    assert_eq!(latest_step(dir.path()), Some(20));
    // Nonsense is an error, not a fresh start.
    fs::write(dir.path().join("checkpoint"), "model_checkpoint_path 5").unwrap();
    let error = state::latest(dir.path()).unwrap_err().to_string();
    assert!(error.contains("checkpoint: not a readable checkpoint state"), "{error}");
    fs::remove_file(dir.path().join("checkpoint")).unwrap();
    assert_eq!(latest_step(dir.path()), Some(20));
}

#[test]
fn a_state_without_its_checkpoint_is_no_fresh_start() {
    let dir = tempfile::tempdir().unwrap();
    keep::delete(&save(dir.path(), 5)).unwrap();
    let error = state::latest(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("model.ckpt-5, which is not complete") && error.contains("hint: "),
        "{error}"
    );
}

#[test]
fn a_moved_folder_with_absolute_paths_still_works() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 5);
    let state = State {
        latest: "/somewhere/else/model.ckpt-5".to_owned(),
        ..State::default()
    };
    state.write(dir.path()).unwrap();
    assert_eq!(latest_step(dir.path()), Some(5));
}

#[test]
fn unfinished_ones_are_cleaned_up_and_others_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 5);
    // A server wrote its data file, and no more came.
    let mut writer = DataFileWriter::create(&prefix(dir.path(), 7), 1, 2).unwrap();
    writer.append_f32("a", &[1], None, [[1.0].as_slice()]).unwrap();
    writer.finish().unwrap();
    // The index was written, the manifest not.
    let mut writer = DataFileWriter::create(&prefix(dir.path(), 8), 0, 1).unwrap();
    writer.append_f32("a", &[1], None, [[1.0].as_slice()]).unwrap();
    let saved = writer.finish().unwrap();
    write_index(&prefix(dir.path(), 8), 1, &saved).unwrap();
    // Left while saving.
    fs::write(dir.path().join("model.ckpt-9.index.tmp"), "x").unwrap();
    // Not ours: TensorFlow's, newer than all others; a backup; notes.
    let values = counting(2);
    saver::save(&prefix(dir.path(), 300), &[("a", &[2], &values)], &[], None).unwrap();
    fs::write(dir.path().join("best.data-00000-of-00001"), "x").unwrap();
    fs::write(dir.path().join("notes.txt"), "x").unwrap();

    let conditions: Vec<_> = state::survey(dir.path())
        .unwrap()
        .into_iter()
        .map(|found| (found.step, found.condition))
        .collect();
    assert!(conditions.contains(&(7, Condition::Unfinished)) && conditions.contains(&(300, Condition::Complete)));
    let removed = keep::clean(dir.path()).unwrap();
    assert_eq!(removed, [7, 8, 9].map(|step| prefix(dir.path(), step)));
    let left = names(dir.path());
    assert!(
        left.iter()
            .all(|name| !["-7", "-8", "-9"].iter().any(|step| name.contains(step))),
        "{left:?}"
    );
    for name in [
        "best.data-00000-of-00001",
        "notes.txt",
        "model.ckpt-300.index",
        "model.ckpt-5.coati.json",
    ] {
        assert!(left.iter().any(|there| there == name), "{name} of {left:?}");
    }
}

/// `/dev/full` takes a file's place: every write to it fails as on a full disk.
#[test]
fn a_full_disk_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let target = save(dir.path(), 5);
    let before = names(dir.path());
    let values = counting(1_000_000);
    let tensors = [("a", [1_000_000i64].as_slice(), values.as_slice())];
    for (step, ending) in [
        (5, "data-00000-of-00001"),
        (6, "data-00000-of-00001"),
        (6, "index"),
        (6, "coati.json"),
    ] {
        let temporary = dir.path().join(format!("model.ckpt-{step}.{ending}.tmp"));
        symlink("/dev/full", &temporary).unwrap();
        let result = saver::save(&prefix(dir.path(), step), &tensors, &[], Some(make_manifest(step)));
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains(ending) && error.contains("os error 28") && error.contains("hint: free"),
            "{error}"
        );
        assert!(error.contains("cannot write ") && error.contains(" bytes"), "{error}");
        assert_eq!(names(dir.path()), before);
    }
    assert_eq!(Reader::open(&target).unwrap().read_f32("b").unwrap(), counting(6));
    assert_eq!(latest_step(dir.path()), Some(5));
}

#[test]
fn a_full_disk_ends_a_server_s_file_and_a_job_s_index() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = prefix(dir.path(), 6);
    let data = dir.path().join("model.ckpt-6.data-00000-of-00001");
    symlink("/dev/full", &data).unwrap();
    let mut writer = DataFileWriter::create(&prefix, 0, 1).unwrap();
    let values = counting(1_000_000);
    let error = writer
        .append_f32("a", &[1_000_000], None, [values.as_slice()])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot write 4000000 bytes") && error.contains("os error 28"),
        "{error}"
    );
    drop(writer);
    assert_eq!(names(dir.path()), [] as [String; 0]);

    let mut writer = DataFileWriter::create(&prefix, 0, 1).unwrap();
    writer.append_f32("a", &[1_000_000], None, [values.as_slice()]).unwrap();
    let saved = writer.finish().unwrap();
    symlink("/dev/full", dir.path().join("model.ckpt-6.coati.json.tmp")).unwrap();
    assert!(saver::publish(&prefix, 1, &saved, make_manifest(6)).is_err());
    assert_eq!(names(dir.path()), [] as [String; 0]);
}

#[test]
fn publishing_completes_what_servers_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = prefix(dir.path(), 6);
    let saved = crate::support::write_pieces(&prefix, "a", &[5, 5], &[7, 13]);
    assert_eq!(state::latest(dir.path()).unwrap(), None);
    let manifest = saver::publish(&prefix, 3, &saved, make_manifest(6)).unwrap();
    assert_eq!(manifest.files.len(), 4);
    assert_eq!(latest_step(dir.path()), Some(6));
    let report = show::report(dir.path()).unwrap();
    assert_eq!(report.checkpoints[0].records_seen, Some(48_008));
    assert_eq!(
        (report.checkpoints[0].epoch, report.checkpoints[0].writer),
        (Some(164), "coati")
    );
    assert_eq!((report.elements, report.variables[0].dtype), (25, "float32"));
    assert_eq!(show::report(&prefix).unwrap().variables, report.variables);
}

#[test]
fn saving_the_same_step_again_replaces_it() {
    let dir = tempfile::tempdir().unwrap();
    let saved = crate::support::write_pieces(&prefix(dir.path(), 5), "a", &[5, 5], &[7]);
    saver::publish(&prefix(dir.path(), 5), 2, &saved, make_manifest(5)).unwrap();
    let again = save(dir.path(), 5);
    let reader = Reader::open(&again).unwrap();
    assert_eq!(reader.read_f32("b").unwrap(), counting(6));
    assert!(
        !names(dir.path()).iter().any(|name| name.ends_with("of-00002")),
        "data files of the one before"
    );
}

#[test]
fn a_checkpoint_of_a_newer_coati_is_not_gone_back_behind() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 5);
    let newest = save(dir.path(), 10);
    let path = manifest::path(&newest);
    let old = fs::read_to_string(&path).unwrap();
    fs::write(&path, r#"{"version": 2, "software_version": "9.1", "journal": []}"#).unwrap();
    let error = state::latest(dir.path()).unwrap_err().to_string();
    for word in [
        "model.ckpt-10.coati.json: manifest of version 2, this Coati reads up to 1",
        "hint: use the Coati that wrote it (9.1); or move ",
        "model.ckpt-10.* away",
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert_eq!(
        keep::clean(dir.path()).unwrap(),
        [] as [PathBuf; 0],
        "it is not ours to judge"
    );
    let shown = show::report(dir.path()).unwrap();
    assert_eq!((shown.checkpoints[1].condition, shown.latest), ("newer", None));
    // Whoever chose the older one by hand knows.
    fs::write(&path, old).unwrap();
    let older = save(dir.path(), 7);
    fs::write(manifest::path(&older), r#"{"version": 2}"#).unwrap();
    fs::write(
        dir.path().join("checkpoint"),
        "model_checkpoint_path: \"model.ckpt-10\"\n",
    )
    .unwrap();
    assert_eq!(latest_step(dir.path()), Some(10), "an older one does not matter");
}

#[test]
fn an_older_checkpoint_that_is_whole_is_offered() {
    let dir = tempfile::tempdir().unwrap();
    let prefixes = [5, 10, 15].map(|step| save_unlisted(dir.path(), step));
    let flip = |prefix: &Path| {
        let data = coati_checkpoint::bundle::data_path(prefix, 0, 1);
        let mut bytes = fs::read(&data).unwrap();
        bytes[7] ^= 4;
        fs::write(&data, bytes).unwrap();
    };
    flip(&prefixes[2]);
    assert_eq!(rescue::newest_whole_before(&prefixes[2]), Some(prefixes[1].clone()));
    // One that is complete by names and sizes, and is not whole.
    flip(&prefixes[1]);
    assert_eq!(rescue::newest_whole_before(&prefixes[2]), Some(prefixes[0].clone()));
    let error = Reader::open(&prefixes[2]).unwrap().read_f32("b").unwrap_err();
    let (message, hint) = rescue::explain(&prefixes[2], &error);
    assert!(
        message.contains("tensor \"b\"") && message.contains("model.ckpt-15.data-00000-of-00001"),
        "{message}"
    );
    let hint = hint.unwrap();
    assert!(
        hint.contains("model.ckpt-5 is whole") && hint.contains("model.ckpt-15.* away"),
        "{hint}"
    );
    flip(&prefixes[0]);
    let hint = rescue::explain(&prefixes[2], &error).1.unwrap();
    assert!(hint.contains("holds no older checkpoint that is whole"), "{hint}");
    // Nothing is wrong with the files when a name is.
    let error = Reader::open(&prefixes[2]).unwrap().read_f32("c").unwrap_err();
    assert!(
        !rescue::explain(&prefixes[2], &error)
            .1
            .unwrap_or_default()
            .contains("whole")
    );
}

#[test]
fn outstanding_leases_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 5);
    let report = show::report(dir.path()).unwrap();
    let json = serde_json::to_value(&report.checkpoints[0]).unwrap();
    assert_eq!(
        json["outstanding_leases"],
        serde_json::json!([{"start": 47_992, "count": 8}])
    );
    assert_eq!(
        (&json["records_seen"], &json["epoch"], &json["record_count"]),
        (&48_008.into(), &164.into(), &292.into())
    );
}
