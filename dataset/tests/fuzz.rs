//! Records of any bytes: an error or a record, no panic, and no more memory than the file justifies.

use std::fs;

use coati_common::tfrecord::{IndexedFile, Reader, Writer, index_path};
use coati_dataset::example::{self, Classes, wire::Features};
use coati_proto::tensorflow::{self as tf, feature::Kind};
use proptest::prelude::*;
use prost::Message as _;

fn framed(records: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for record in records {
        writer.write(record).unwrap();
    }
    writer.into_inner()
}

/// Reads a file in both ways, which agree on what is good.
fn read_file(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.record");
    fs::write(&path, bytes).unwrap();
    let sequential: Vec<_> = Reader::open(&path).unwrap().collect();
    let indexed = IndexedFile::open(&path);
    if let Ok(file) = &indexed {
        assert_eq!(sequential.len(), file.len());
        for (index, found) in sequential.iter().enumerate() {
            let at_random = file.read(index).unwrap();
            assert_eq!(found.as_ref().ok(), at_random.as_ref().ok(), "record {index}");
        }
    } else {
        let last = sequential.last().map(Result::is_err);
        assert_eq!(last, Some(true), "{indexed:?}");
    }
}

fn decode(record: &[u8]) {
    for strict in [false, true] {
        let options = example::Options {
            classes: Classes::new([(1, "cat", ""), (2, "dog", "hound")]),
            strict,
        };
        let _ = example::decode(record, &options);
    }
    if let Ok(features) = Features::parse(record) {
        let names: Vec<&str> = features.names().collect();
        for name in names {
            let _ = (
                features.bytes(name),
                features.text(name),
                features.floats(name),
                features.ints(name),
            );
        }
    }
}

const NAMES: [&str; 8] = [
    "image/encoded",
    "image/height",
    "image/object/bbox/ymin",
    "image/object/bbox/xmax",
    "image/object/class/label",
    "image/object/class/text",
    "image/object/is_crowd",
    "image/source_id",
];

fn kind() -> impl Strategy<Value = Option<Kind>> {
    let bytes = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..4);
    prop_oneof![
        Just(None),
        bytes.prop_map(|value| Some(Kind::BytesList(tf::BytesList { value }))),
        prop::collection::vec(any::<f32>(), 0..4).prop_map(|value| Some(Kind::FloatList(tf::FloatList { value }))),
        prop::collection::vec(any::<i64>(), 0..4).prop_map(|value| Some(Kind::Int64List(tf::Int64List { value }))),
    ]
}

fn an_example() -> impl Strategy<Value = Vec<u8>> {
    let features = prop::collection::hash_map(prop::sample::select(&NAMES[..]), kind(), 0..8);
    features.prop_map(|features| {
        let feature = features
            .into_iter()
            .map(|(name, kind)| (name.to_owned(), tf::Feature { kind }));
        tf::Example {
            features: Some(tf::Features {
                feature: feature.collect(),
            }),
        }
        .encode_to_vec()
    })
}

type Changes = Vec<(prop::sample::Index, u8)>;

fn changes() -> impl Strategy<Value = Changes> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)
}

fn change(bytes: &mut [u8], changes: Changes) {
    if !bytes.is_empty() {
        for (at, byte) in changes {
            bytes[at.index(bytes.len())] = byte;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn files_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_file(&bytes);
    }

    #[test]
    fn files_with_changed_bytes(
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5),
        changes in changes(),
        cut in 0usize..20,
    ) {
        let mut bytes = framed(&records);
        change(&mut bytes, changes);
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        read_file(&bytes);
    }

    /// A kept index of any content beside a good file: the records are the file's.
    #[test]
    fn kept_indexes_of_any_content(
        index in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..100),
            prop::collection::vec(any::<u8>(), 0..100).prop_map(|bytes| framed(&[bytes])),
        ],
        changes in changes(),
        mine: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.record");
        let records: Vec<Vec<u8>> = (0u8..9).map(|n| vec![n; usize::from(n) * 3]).collect();
        fs::write(&path, framed(&records)).unwrap();
        let kept = index_path(folder.path(), &path);
        if mine {
            IndexedFile::open(&path).unwrap().keep(folder.path());
            let mut bytes = fs::read(&kept).unwrap();
            change(&mut bytes, changes);
            fs::write(&kept, bytes).unwrap();
        } else {
            fs::write(&kept, index).unwrap();
        }
        let file = IndexedFile::open_kept(&path, folder.path()).unwrap();
        prop_assert_eq!(file.len(), records.len());
        for (index, record) in records.iter().enumerate() {
            prop_assert_eq!(&file.read(index).unwrap().unwrap(), record);
        }
    }

    #[test]
    fn examples_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode(&bytes);
    }

    #[test]
    fn examples_of_any_features(record in an_example(), changes in changes()) {
        let mut record = record;
        decode(&record);
        change(&mut record, changes);
        decode(&record);
    }
}
