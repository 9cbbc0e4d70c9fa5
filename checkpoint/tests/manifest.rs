//! The manifest's format.

use std::fs;

use coati_checkpoint::manifest::{Manifest, SavedFile, path};

use crate::support::{fixture, manifest};

fn golden() -> Manifest {
    let mut manifest = manifest(2000);
    manifest.files = vec![
        SavedFile {
            name: "model.ckpt-2000.index".to_owned(),
            bytes: 14_133,
        },
        SavedFile {
            name: "model.ckpt-2000.data-00000-of-00002".to_owned(),
            bytes: 9_068_544,
        },
        SavedFile {
            name: "model.ckpt-2000.data-00001-of-00002".to_owned(),
            bytes: 9_068_548,
        },
    ];
    manifest
}

/// A change of the written bytes needs a thought about those who read them: a new version, or a field with a default.
#[test]
fn version_1_is_pinned() {
    let prefix = fixture("checkpoint/model.ckpt-2000");
    let dir = tempfile::tempdir().unwrap();
    let written = dir.path().join("model.ckpt-2000");
    golden().write(&written).unwrap();
    let text = fs::read_to_string(path(&written)).unwrap();
    assert_eq!(text, fs::read_to_string(path(&prefix)).unwrap());
    assert_eq!(Manifest::read(&prefix).unwrap(), Some(golden()));
}

#[test]
fn counts_of_records() {
    let manifest = golden();
    assert_eq!(manifest.records_seen(), 48_008);
    assert_eq!(manifest.epoch(), 164);
    assert_eq!(
        Manifest {
            record_count: 0,
            ..manifest
        }
        .epoch(),
        0
    );
}

#[test]
fn versions_and_nonsense_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("model.ckpt-1");
    assert_eq!(Manifest::read(&prefix).unwrap(), None);
    let read = |text: &str| {
        fs::write(path(&prefix), text).unwrap();
        Manifest::read(&prefix).unwrap_err().to_string()
    };
    let newer = read(r#"{"version": 2, "software_version": "9.1", "steps": []}"#);
    assert!(
        newer.contains("version 2") && newer.contains("9.1") && newer.contains("hint:"),
        "{newer}"
    );
    let broken = read("{\"version\": 1,\n\"job_id\": 7}");
    assert!(broken.contains("line 2"), "{broken}");
    assert!(read("").contains("model.ckpt-1.coati.json"));
}
