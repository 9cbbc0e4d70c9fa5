use std::fs;

use super::*;
use crate::shards;

fn labels() -> LabelMap {
    LabelMap::parse("item { id: 1 name: 'cat' } item { id: 2 name: 'big dog' }", "map").unwrap()
}

/// Images of 34 x 21 pixels beside a table.
fn options(folder: &Path, table: &[u8]) -> Options {
    for name in ["a.png", "b.png"] {
        fs::write(folder.join(name), crate::testing::image("rgb.png")).unwrap();
    }
    fs::write(folder.join("t.csv"), table).unwrap();
    Options {
        csv_input: folder.join("t.csv"),
        image_dir: folder.to_owned(),
        output: Output::to(folder.join("out.record")),
    }
}

const TABLE: &str = "filename,width,height,class,xmin,ymin,xmax,ymax\n\
    a.png,34,21,cat,1,2,30,20\nb.png,34,21,,,,,\na.png,34,21,\"big dog\",5,6,40,10\na.png,34,21,cat,9,9,9,12\n";

#[test]
fn tables_of_any_dialect_give_the_same_records() {
    let wide: Vec<u8> = TABLE.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut seen = Vec::new();
    for table in [
        TABLE.as_bytes().to_vec(),
        [b"\xef\xbb\xbf", TABLE.as_bytes()].concat(),
        [b"\xff\xfe", wide.as_slice()].concat(),
        TABLE.replace(',', ";").replace('\n', "\r\n").into_bytes(),
        TABLE.replace(',', "\t").into_bytes(),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path(), &table);
        let report = import(&options, &labels(), &|_, _| {}).unwrap();
        assert_eq!((report.images, report.images_without_boxes), (2, 1));
        assert_eq!(report.boxes, [("cat".to_owned(), 1), ("big dog".to_owned(), 1)]);
        assert_eq!(report.boxes_left_out.values().sum::<usize>(), 1);
        seen.push(fs::read(&options.output.path).unwrap());
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_table_of_records_makes_the_same_records() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), TABLE.as_bytes());
    import(&options, &labels(), &|_, _| {}).unwrap();
    let records = shards::Source::open_files(std::slice::from_ref(&options.output.path)).unwrap();
    let again = folder.path().join("again");
    let written = write(&Source::Records(&records), &again.join("t.csv"), Some(&again)).unwrap();
    assert_eq!((written.images, written.boxes), (2, 2));
    let text = fs::read_to_string(again.join("t.csv")).unwrap();
    assert!(
        text.starts_with("filename,width,height,class,xmin,ymin,xmax,ymax\n"),
        "{text}"
    );
    assert!(
        text.contains("\na.png,34,21,cat,1,2,30,20\n") && text.contains("\nb.png,34,21,,,,,\n"),
        "{text}"
    );
    assert!(text.contains("\na.png,34,21,big dog,5,6,34,10\n"), "{text}");
    let options = Options {
        csv_input: again.join("t.csv"),
        image_dir: again.clone(),
        output: Output::to(again.join("out.record")),
    };
    import(&options, &labels(), &|_, _| {}).unwrap();
    let sorted = |path: &Path| {
        let reader = coati_common::tfrecord::Reader::open(path).unwrap();
        let mut all: Vec<Vec<u8>> = reader.map(Result::unwrap).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&options.output.path), sorted(&folder.path().join("out.record")));
}

#[test]
fn errors_name_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let error = |table: String| {
        let options = options(folder.path(), table.as_bytes());
        import(&options, &labels(), &|_, _| {}).unwrap_err().to_string()
    };
    let lacking = error(TABLE.replace("class", "kind"));
    assert!(
        lacking.contains("t.csv:1: there is no column `class`") && lacking.contains("kind"),
        "{lacking}"
    );
    let word = error(TABLE.replace("1,2,30,20", "1,two,30,20"));
    assert!(word.contains("t.csv:2: column `ymin` is `two`"), "{word}");
    let class = error(TABLE.replace("big dog", "wolf"));
    assert!(
        class.contains("t.csv:4: class `wolf` is not in the label map"),
        "{class}"
    );
    let cut = error(format!("{}\nb.jpg,34", TABLE.trim_end()));
    assert!(cut.contains("the line ends before its class and box"), "{cut}");
    assert!(error(String::new()).contains("no columns"));
    assert!(!folder.path().join("out.record").exists());
}

#[test]
fn an_empty_image_file_is_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), TABLE.as_bytes());
    fs::write(folder.path().join("b.png"), b"").unwrap();
    let report = import(&options, &labels(), &|_, _| {}).unwrap();
    assert_eq!(report.images, 1);
    assert!(
        report.skipped_images[0].contains("b.png: the file is empty (0 bytes)"),
        "{:?}",
        report.skipped_images
    );
}
