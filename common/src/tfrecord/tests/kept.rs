//! Kept indexes: right or not used.

use std::fs::File;
use std::time::{Duration, SystemTime};

use super::*;
use crate::tfrecord::IndexedFile;

/// A file of 200 records of different lengths, with its index kept in `FOLDER/index`.
fn indexed() -> (tempfile::TempDir, PathBuf, PathBuf) {
    // More than the digest reads at either end.
    let data: Vec<Vec<u8>> = (0..200usize).map(|n| vec![n as u8; n * 7 % 50 * 100]).collect();
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let (dir, path) = file(&records(&data));
    let folder = dir.path().join("index");
    let walked = IndexedFile::open_kept(&path, &folder).unwrap();
    assert!(!folder.exists(), "opening makes nothing");
    walked.keep(&folder);
    (dir, path, folder)
}

/// Whether the index is used: then a damaged header in the middle goes unnoticed.
fn is_used(path: &Path, folder: &Path) -> bool {
    let good = fs::read(path).unwrap();
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let span = index_file(path).unwrap()[101];
    let mut bytes = good.clone();
    bytes[span.offset as usize] ^= 1;
    let put = |bytes: &[u8]| {
        fs::write(path, bytes).unwrap();
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    };
    put(&bytes);
    let opened = IndexedFile::open_kept(path, folder);
    put(&good);
    opened.is_ok()
}

fn set_modified(path: &Path, time: SystemTime) {
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

#[test]
fn a_kept_index_saves_the_walk_and_says_the_same() {
    let (_dir, path, folder) = indexed();
    assert!(is_used(&path, &folder));
    let (kept, walked) = (
        IndexedFile::open_kept(&path, &folder).unwrap(),
        IndexedFile::open(&path).unwrap(),
    );
    assert_eq!(kept.spans(), walked.spans());
    assert_eq!(kept.len(), 200);
    for index in 0..200 {
        assert_eq!(kept.read(index).unwrap().unwrap(), walked.read(index).unwrap().unwrap());
    }
}

#[test]
fn a_changed_file_is_indexed_again() {
    let (_dir, path, folder) = indexed();
    // A record more: another size.
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend(records(&[b"one more"]));
    fs::write(&path, &bytes).unwrap();
    let opened = IndexedFile::open_kept(&path, &folder).unwrap();
    assert_eq!(opened.len(), 201);
    opened.keep(&folder);
    assert!(is_used(&path, &folder));

    // The same size, another time.
    let later = SystemTime::now() + Duration::from_secs(5);
    set_modified(&path, later);
    assert!(!is_used(&path, &folder));

    // The same size and time, other records.
    IndexedFile::open_kept(&path, &folder).unwrap().keep(&folder);
    assert!(is_used(&path, &folder));
    let (first, second) = (vec![1u8; 20], vec![2u8; bytes.len() - 2 * 16 - 20]);
    fs::write(&path, records(&[&first, &second])).unwrap();
    set_modified(&path, later);
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64);
    assert_eq!(IndexedFile::open_kept(&path, &folder).unwrap().len(), 2);
}

#[test]
fn a_damaged_index_is_noticed_and_made_anew() {
    let (_dir, path, folder) = indexed();
    let index = index_path(&folder, &path);
    let good = fs::read(&index).unwrap();
    let spans = index_file(&path).unwrap();
    for at in (0..good.len()).step_by(7).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&index, &bad).unwrap();
        assert!(!is_used(&path, &folder), "byte {at}");
        let opened = IndexedFile::open_kept(&path, &folder).unwrap();
        assert_eq!(opened.spans(), spans);
        opened.keep(&folder);
        assert_eq!(fs::read(&index).unwrap(), good, "byte {at}");
    }
    for cut in [0, 1, good.len() / 2, good.len() - 1] {
        fs::write(&index, &good[..cut]).unwrap();
        assert!(!is_used(&path, &folder), "cut to {cut}");
    }
}

#[test]
fn many_may_read_and_write_at_once() {
    let (_dir, path, folder) = indexed();
    let spans = index_file(&path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let opened = IndexedFile::open_kept(&path, &folder).unwrap();
                    assert_eq!(opened.spans(), spans);
                    IndexedFile::open(&path).unwrap().keep(&folder);
                }
            });
        }
    });
    let left: Vec<_> = fs::read_dir(&folder).unwrap().flatten().map(|e| e.path()).collect();
    assert_eq!(left, [index_path(&folder, &path)]);
    assert!(is_used(&path, &folder));
}

#[test]
fn what_dead_writers_left_goes_when_it_is_old() {
    let (_dir, path, folder) = indexed();
    let (old, new) = (folder.join("a.index.h-1-0.tmp"), folder.join("a.index.h-2-0.tmp"));
    for left in [&old, &new] {
        fs::write(left, "half").unwrap();
    }
    set_modified(&old, SystemTime::now() - Duration::from_secs(2 * 3600));
    IndexedFile::open(&path).unwrap().keep(&folder);
    assert!(!old.exists() && new.exists());
}

#[test]
fn a_folder_that_cannot_be_made_costs_nothing() {
    let (dir, path) = file(&records(&[b"a"]));
    let taken = dir.path().join("index");
    fs::write(&taken, "a file").unwrap();
    let opened = IndexedFile::open_kept(&path, &taken).unwrap();
    opened.keep(&taken);
    assert_eq!(opened.len(), 1);
}

#[test]
fn files_of_one_name_have_indexes_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| {
        fs::create_dir(dir.path().join(name)).unwrap();
        let path = dir.path().join(name).join("train.record");
        fs::write(&path, records(&[name.as_bytes()])).unwrap();
        path
    });
    let folder = dir.path().join("index");
    let [a, b] = paths.map(|path| index_path(&folder, &path));
    assert_ne!(a, b);
    assert!(a.file_name().unwrap().to_str().unwrap().starts_with("train.record-"));
}
