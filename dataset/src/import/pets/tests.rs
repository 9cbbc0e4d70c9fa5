use std::collections::HashSet;
use std::fs;

use coati_common::tfrecord::Reader;

use super::*;
use crate::example::wire::Features;

const SIZE: (u32, u32) = (34, 21);

/// Ten pets of two breeds; the body is columns 4 to 20 of rows 3 to 15.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["images", "annotations/xmls", "annotations/trimaps"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    let mut trimap = image::GrayImage::from_pixel(SIZE.0, SIZE.1, image::Luma([BACKGROUND]));
    for (x, y) in (4..=20).flat_map(|x| (3..=15).map(move |y| (x, y))) {
        let border = x == 4 || x == 20;
        trimap.put_pixel(x, y, image::Luma([if border { 3 } else { 1 }]));
    }
    let mut list = "#Image CLASS-ID SPECIES BREED ID\n".to_owned();
    for number in 0..10 {
        let name = format!(
            "{}_{number}",
            if number % 2 == 0 {
                "Abyssinian"
            } else {
                "american_pit_bull_terrier"
            }
        );
        list += &format!("{name} 1 1 1\n");
        fs::write(at(&format!("images/{name}.jpg")), crate::testing::image("rgb420.jpg")).unwrap();
        trimap.save(at(&format!("annotations/trimaps/{name}.png"))).unwrap();
        let xml = format!(
            "<annotation><filename>{name}.jpg</filename><size><width>34</width><height>21</height></size><object><name>cat</name>\
             <pose>Frontal</pose><truncated>0</truncated><difficult>1</difficult>\
             <bndbox><xmin>5</xmin><ymin>4</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"
        );
        fs::write(at(&format!("annotations/xmls/{name}.xml")), xml).unwrap();
    }
    fs::write(at("annotations/trainval.txt"), list).unwrap();
    folder
}

fn labels() -> LabelMap {
    LabelMap::parse(
        "item { id: 1 name: 'Abyssinian' } item { id: 4 name: 'american_pit_bull_terrier' }",
        "map",
    )
    .unwrap()
}

fn options(folder: &Path, faces_only: bool, mask_type: MaskType) -> Options {
    Options {
        data_dir: folder.to_owned(),
        faces_only,
        mask_type,
        train_share: 0.7,
        output: Output::to(folder.join("out")),
    }
}

fn records(path: &Path) -> Vec<Vec<u8>> {
    Reader::open(path).unwrap().map(Result::unwrap).collect()
}

#[test]
fn faces_are_split_and_named_by_their_files() {
    let folder = folder();
    let reports = import(&options(folder.path(), true, MaskType::Png), &labels(), &|_, _| {}).unwrap();
    let counts: Vec<_> = reports
        .iter()
        .map(|(set, report)| (set.as_str(), report.images))
        .collect();
    assert_eq!(counts, [("train", 7), ("val", 3)]);
    let mut names = HashSet::new();
    for set in ["train", "val"] {
        for record in records(&folder.path().join(format!("out/pet_faces_{set}.record"))) {
            let features = Features::parse(&record).unwrap();
            let name = features.text("image/filename").unwrap().unwrap().into_owned();
            let class = features.bytes("image/object/class/text").unwrap()[0].to_vec();
            assert!(name.as_bytes().starts_with(&class), "{name}");
            let id = if class == b"Abyssinian" { 1 } else { 4 };
            assert_eq!(features.ints("image/object/class/label").unwrap(), [id]);
            assert_eq!(features.floats("image/object/bbox/xmax").unwrap(), [9.0 / 34.0]);
            assert_eq!(features.ints("image/object/difficult").unwrap(), [1]);
            assert!(!features.names().any(|name| name == "image/object/mask"));
            names.insert(name);
        }
    }
    assert_eq!(names.len(), 10);
}

#[test]
fn bodies_have_boxes_and_masks_of_the_trimap() {
    let folder = folder();
    let body = 17 * 13;
    for mask_type in [MaskType::Png, MaskType::Numerical] {
        let reports = import(&options(folder.path(), false, mask_type), &labels(), &|_, _| {}).unwrap();
        assert_eq!(reports[0].1.images, 7);
        let path = folder.path().join("out/pets_fullbody_with_masks_train.record");
        for record in records(&path) {
            let features = Features::parse(&record).unwrap();
            let side = |name: &str| features.floats(&format!("image/object/bbox/{name}")).unwrap()[0];
            let sides = [side("ymin"), side("xmin"), side("ymax"), side("xmax")];
            assert_eq!(sides, [3.0 / 21.0, 4.0 / 34.0, 15.0 / 21.0, 20.0 / 34.0]);
            if mask_type == MaskType::Png {
                let png = features.bytes("image/object/mask").unwrap()[0];
                let mask = image::load_from_memory(png).unwrap().into_luma8();
                assert_eq!(mask.dimensions(), SIZE);
                assert_eq!(mask.pixels().filter(|pixel| pixel.0[0] == 1).count(), body);
            } else {
                let mask = features.floats("image/object/mask").unwrap();
                assert_eq!(mask.len(), 34 * 21);
                assert_eq!(mask.iter().sum::<f32>(), body as f32);
            }
        }
    }
}

#[test]
fn a_trimap_of_another_size_is_left_out() {
    let folder = folder();
    let path = folder.path().join("annotations/trimaps/Abyssinian_0.png");
    image::GrayImage::new(3, 3).save(&path).unwrap();
    let reports = import(&options(folder.path(), false, MaskType::Png), &labels(), &|_, _| {}).unwrap();
    let skipped: Vec<&String> = reports.iter().flat_map(|(_, report)| &report.skipped_images).collect();
    assert!(
        skipped.len() == 1 && skipped[0].contains("has 3x3 pixels, its image 34x21"),
        "{skipped:?}"
    );
    assert_eq!(class_of("american_pit_bull_terrier_105"), "american_pit_bull_terrier");
}
