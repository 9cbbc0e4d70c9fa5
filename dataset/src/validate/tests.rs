use std::fs;

use coati_common::label_map::LabelMap;

use super::*;
use crate::example::{self, wire::Features};
use crate::import::feature::Record;
use crate::testing::{file, good, image, record};

fn classes() -> Classes {
    let map = "item { id: 1 name: 'cat' } item { id: 2 name: 'dog' }";
    Classes::from(&LabelMap::parse(map, "map").unwrap())
}

/// 34 x 21 pixels, one object.
fn one(bounds: [f32; 4], text: &str, label: i64) -> Vec<u8> {
    let mut record = Record::default();
    record.bytes("image/encoded", vec![image("rgb.png")]);
    record.text("image/format", "png");
    record.ints("image/width", vec![34]);
    record.ints("image/height", vec![21]);
    for (name, value) in ["ymin", "xmin", "ymax", "xmax"].into_iter().zip(bounds) {
        record.floats(&format!("image/object/bbox/{name}"), vec![value]);
    }
    record.text("image/object/class/text", text);
    record.ints("image/object/class/label", vec![label]);
    record.ints("image/object/difficult", vec![0]);
    record.serialise()
}

const BOX: [f32; 4] = [0.1, 0.2, 0.6, 0.7];

fn flaws(record: &[u8]) -> Vec<(Flaw, Option<Repair>)> {
    let checked = check(record, Some(&classes()));
    let found: Vec<_> = checked
        .findings
        .iter()
        .map(|found| (found.flaw, found.repair))
        .collect();
    // What is repaired is good, and stays so.
    if let Some(repaired) = &checked.repaired {
        let again = check(repaired, Some(&classes()));
        assert!(again.repaired.is_none(), "{:?} after {found:?}", again.findings);
        assert!(again.findings.iter().all(|found| found.repair.is_none()));
    }
    found
}

fn repaired(record: &[u8]) -> Vec<u8> {
    check(record, Some(&classes())).repaired.unwrap()
}

fn bounds(record: &[u8]) -> Vec<Vec<f32>> {
    let features = Features::parse(record).unwrap();
    let side = |name| features.floats(&format!("image/object/bbox/{name}")).unwrap();
    ["ymin", "xmin", "ymax", "xmax"].map(side).to_vec()
}

#[test]
fn a_good_record_has_no_finding() {
    assert_eq!(flaws(&one(BOX, "cat", 1)), []);
    // A box that touches the border, or is beyond it by rounding.
    assert_eq!(flaws(&one([0.0, 0.0, 1.0, 1.0005], "dog", 2)), []);
}

#[test]
fn boxes_are_cut_turned_scaled_or_left_out() {
    assert_eq!(
        flaws(&one([0.1, -0.5, 0.6, 1.5], "cat", 1)),
        [(Flaw::OutsideImage, Some(Repair::Correct))]
    );
    assert_eq!(
        bounds(&repaired(&one([0.1, -0.5, 0.6, 1.5], "cat", 1))),
        [[0.1], [0.0], [0.6], [1.0]]
    );
    assert_eq!(
        flaws(&one([0.6, 0.2, 0.1, 0.7], "cat", 1)),
        [(Flaw::Inverted, Some(Repair::Correct))]
    );
    assert_eq!(
        bounds(&repaired(&one([0.6, 0.2, 0.1, 0.7], "cat", 1))),
        [[0.1], [0.2], [0.6], [0.7]]
    );
    let pixels = one([2.1, 3.4, 10.5, 17.0], "cat", 1);
    assert_eq!(flaws(&pixels), [(Flaw::Pixels, Some(Repair::Correct))]);
    assert_eq!(bounds(&repaired(&pixels)), [[2.1 / 21.0], [3.4 / 34.0], [0.5], [0.5]]);
    for (bad, flaw) in [
        ([0.1, 0.5, 0.6, 0.5], Flaw::Empty),
        ([f32::NAN, 0.2, 0.6, 0.7], Flaw::NotANumber),
        ([1.2, 0.2, 1.6, 0.7], Flaw::OutsideImage),
    ] {
        let record = one(bad, "cat", 1);
        assert_eq!(flaws(&record), [(flaw, Some(Repair::DropObject))]);
        let left = repaired(&record);
        let features = Features::parse(&left).unwrap();
        assert_eq!(bounds(&left), vec![Vec::<f32>::new(); 4]);
        assert_eq!(features.ints("image/object/difficult").unwrap(), [0_i64; 0]);
        assert!(features.bytes("image/object/class/text").unwrap().is_empty());
    }
}

#[test]
fn labels_follow_from_texts_and_nothing_is_guessed() {
    let label = |record: &[u8]| {
        Features::parse(record)
            .unwrap()
            .ints("image/object/class/label")
            .unwrap()
    };
    let zero = one(BOX, "dog", 0);
    assert_eq!(flaws(&zero), [(Flaw::LabelNotPositive, Some(Repair::Correct))]);
    assert_eq!(label(&repaired(&zero)), [2]);
    let unknown = one(BOX, "dog", 9);
    assert_eq!(flaws(&unknown), [(Flaw::UnknownLabel, Some(Repair::Correct))]);
    assert_eq!(label(&repaired(&unknown)), [2]);
    assert_eq!(flaws(&one(BOX, "", 0)), [(Flaw::LabelNotPositive, None)]);
    assert_eq!(flaws(&one(BOX, "cat", 2)), [(Flaw::LabelAndText, None)]);
    assert_eq!(flaws(&one(BOX, "wolf", 2)), [(Flaw::UnknownText, None)]);
    let without_map = check(&one(BOX, "wolf", 0), None);
    assert_eq!(without_map.findings[0].flaw, Flaw::LabelNotPositive);
}

#[test]
fn sizes_and_formats_are_the_images() {
    let mut wrong = Record::default();
    wrong.bytes("image/encoded", vec![image("rgb.png")]);
    wrong.text("image/format", "jpeg");
    wrong.ints("image/width", vec![21]);
    wrong.floats("image/height", vec![34.0]);
    let bytes = wrong.serialise();
    let found: Vec<Flaw> = flaws(&bytes).into_iter().map(|(flaw, _)| flaw).collect();
    assert_eq!(found, [Flaw::WrongKind, Flaw::WrongSize, Flaw::WrongFormat]);
    let fixed = repaired(&bytes);
    let annotated = example::decode(&fixed, &example::Options::default()).unwrap();
    assert_eq!(
        (annotated.width, annotated.height, annotated.format.as_str()),
        (34, 21, "png")
    );
}

#[test]
fn records_that_nobody_can_use_are_told_apart() {
    let mut cut = record(1, image("rgb420.jpg"), &[]);
    assert_eq!(flaws(&cut), []);
    cut = record(1, image("rgb420.jpg")[..300].to_vec(), &[]);
    assert_eq!(flaws(&cut), [(Flaw::BadImage, Some(Repair::DropRecord))]);
    assert_eq!(
        flaws(&record(1, Vec::new(), &[])),
        [(Flaw::NoImage, Some(Repair::DropRecord))]
    );
    assert_eq!(flaws(b"\xff\xff\xff"), [(Flaw::NoExample, Some(Repair::DropRecord))]);
    let mut unequal = Record::default();
    unequal.bytes("image/encoded", vec![image("rgb.png")]);
    unequal.floats("image/object/bbox/ymin", vec![0.1]);
    assert_eq!(flaws(&unequal.serialise()), [(Flaw::UnequalLengths, None)]);
    // Training refuses a record for any of an object's lists.
    let mut flags = Record::default();
    flags.bytes("image/encoded", vec![image("rgb.png")]);
    flags.ints("image/object/difficult", vec![0, 1]);
    assert_eq!(flaws(&flags.serialise()), [(Flaw::UnequalLengths, None)]);
    let mut kind = Record::default();
    kind.bytes("image/encoded", vec![image("rgb.png")]);
    kind.ints("image/object/area", vec![7]);
    assert_eq!(flaws(&kind.serialise()), [(Flaw::WrongKind, None)]);
}

#[test]
fn files_are_mended_and_sets_compared() {
    let records = [
        good(0),
        one([0.6, 0.2, 0.1, 0.7], "cat", 1),
        b"no example".to_vec(),
        good(1),
    ];
    let (folder, path) = file(&records);
    let (_eval, eval) = file(&[good(3), good(0)]);
    // A bit flipped in the last record: its CRC is wrong.
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let sets = [
        ("train".to_owned(), vec![path.clone()]),
        ("eval".to_owned(), vec![eval.clone()]),
    ];
    let options = Options {
        classes: Some(classes()),
        fix: false,
        output_dir: None,
    };
    let report = run(&sets, &options, &|_| {}).unwrap();
    let found: Vec<_> = report.findings.iter().map(|found| (found.record, found.flaw)).collect();
    assert_eq!(
        found,
        [
            (Some(1), Flaw::Inverted),
            (Some(2), Flaw::NoExample),
            (Some(3), Flaw::Unreadable),
            (Some(1), Flaw::ImageInTwoSets),
        ]
    );
    assert_eq!(report.findings[3].file, eval);
    assert_eq!((report.records, report.repairable, report.remaining(false)), (6, 3, 4));
    assert_eq!(
        fs::read(&path).unwrap(),
        bytes,
        "nothing changes unless it is asked for"
    );

    let beside = Options {
        fix: true,
        output_dir: Some(folder.path().join("mended")),
        ..options.clone()
    };
    let sets_of_one = [sets[0].clone()];
    run(&sets_of_one, &beside, &|_| {}).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let in_place = Options { fix: true, ..options };
    let mended = run(&sets_of_one, &in_place, &|_| {}).unwrap();
    assert_eq!(mended.files, std::slice::from_ref(&path));
    assert_eq!(
        fs::read(&path).unwrap(),
        fs::read(folder.path().join("mended/test.record")).unwrap()
    );
    let again = run(&sets_of_one, &in_place, &|_| {}).unwrap();
    assert_eq!((again.records, again.findings.len(), again.files.len()), (2, 0, 0));
}

#[test]
fn a_file_that_was_cut_off_keeps_its_whole_records() {
    let (_folder, path) = file(&[good(0), good(1)]);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let options = Options {
        classes: None,
        fix: true,
        output_dir: None,
    };
    let sets = [("train".to_owned(), vec![path.clone()])];
    let report = run(&sets, &options, &|_| {}).unwrap();
    assert_eq!(report.counts["unreadable_record"], 1);
    assert_eq!(run(&sets, &options, &|_| {}).unwrap().records, 1);
}

#[test]
fn a_file_of_something_else_is_left_alone_and_a_lost_place_ends_the_repair() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.record");
    let options = Options {
        classes: None,
        fix: true,
        output_dir: None,
    };
    let fix = || run(&[("train".to_owned(), vec![path.clone()])], &options, &|_| {}).unwrap();
    let notes = b"precious notes, and surely no records at all";
    fs::write(&path, notes).unwrap();
    let report = fix();
    assert_eq!((report.counts["no_records"], report.repairable), (1, 0));
    assert!(report.files.is_empty() && fs::read(&path).unwrap() == notes);
    let said = report.findings[0].to_string();
    let place = format!("{}: record 0: at byte 0: length CRC is ", path.display());
    assert!(said.starts_with(&place) && said.ends_with("[no_records]"), "{said}");

    // The second length of three is wrong.
    let bytes = |records: &[Vec<u8>]| fs::read(&file(records).1).unwrap();
    let second = bytes(&[one(BOX, "cat", 1)]).len();
    let mut bytes = bytes(&[one(BOX, "cat", 1), one(BOX, "dog", 2), one(BOX, "cat", 1)]);
    bytes[second + 2] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let report = fix();
    let finding = &report.findings[0];
    assert_eq!((finding.record, finding.repair), (Some(1), Some(Repair::DropRest)));
    assert_eq!(fs::read(&path).unwrap(), &bytes[..second]);

    fs::write(&path, b"").unwrap();
    let report = fix();
    assert_eq!((report.counts["empty_set"], report.remaining(true)), (1, 1));
    assert!(
        report.findings[0]
            .to_string()
            .contains("no record in 1 file(s) of the set train [empty_set]")
    );
}

#[test]
fn a_feature_is_named_once() {
    let mut wrong = Record::default();
    wrong.bytes("image/encoded", vec![image("rgb.png")]);
    wrong.ints("image/object/bbox/xmin", vec![1]);
    let checked = check(&wrong.serialise(), None);
    let said: Vec<String> = checked.findings.iter().map(ToString::to_string).collect();
    let expected = ": feature image/object/bbox/xmin: holds an int64_list, must hold a float_list [wrong_kind]";
    assert!(said.iter().any(|said| said == expected), "{said:?}");
}
