//! The manifest's format.

use std::fs;

use coati_checkpoint::manifest::{DataPosition, Manifest, OpenRange, SavedFile, path};

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

#[test]
fn a_data_position_that_contradicts_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("model.ckpt-1");
    let read = |position: u64, open: &[(u64, u64)]| {
        let mut manifest = golden();
        manifest.data = DataPosition {
            position,
            open: open.iter().map(|&(start, count)| OpenRange { start, count }).collect(),
        };
        manifest.write(&prefix).unwrap();
        Manifest::read(&prefix).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(read(100, &[]), Ok(()));
    assert_eq!(read(100, &[(0, 8), (8, 8), (92, 8)]), Ok(()));
    for (open, what) in [
        (&[(90, 11)][..], "open records 90+11 reach beyond the position, 100"),
        (&[(10, 0)], "open records 10+0 are none"),
        (
            &[(10, 8), (17, 2)],
            "open records 17+2 begin before the end of the range before them, 18",
        ),
        (&[(u64::MAX, 2)], "end beyond any position"),
    ] {
        let error = read(100, open).unwrap_err();
        assert!(
            error.contains("model.ckpt-1.coati.json") && error.contains(what) && error.contains("hint: "),
            "{error}"
        );
    }
}
