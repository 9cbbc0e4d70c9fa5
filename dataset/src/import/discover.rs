//! Label maps from data: which classes are there, whoever wrote them down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coati_common::label_map::{Item, LabelMap};
use rayon::prelude::*;

use super::files::{ends_in, entries, entries_if_any};
use super::{Error, coco, csv, engine, folder, kitti, text, voc};
use crate::example::wire::Features;
use crate::shards;

/// How annotations are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder of Pascal VOC XML files.
    Voc,
    /// A COCO JSON file; ids are the file's.
    Coco,
    /// The tutorials' table.
    Csv,
    /// Open Images' table: `LabelName`.
    Oid,
    /// The tree of `OIDv4_ToolKit`.
    Folder,
    /// A folder of KITTI's label files.
    Kitti,
    /// TFRecords; ids are the records'.
    Records,
}

/// Order of the classes that have no ids of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By name.
    #[default]
    Name,
    /// Those with most boxes first.
    Boxes,
}

/// A label map, and the boxes of each of its classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What was looked at.
    pub kind: Kind,
    /// The classes.
    pub labels: LabelMap,
    /// Boxes, in the map's order.
    pub boxes: Vec<usize>,
}

/// What `path` is, by its looks.
pub fn kind_of(path: &Path) -> Result<Kind, Error> {
    let unclear = |what: &str| {
        Error::Layout {
        folder: path.to_owned(),
        what: what.to_owned(),
        hint: "give a folder of XML files, of KITTI labels or of OIDv4_ToolKit's classes, a COCO .json, a .csv, or TFRecords".to_owned(),
    }
    };
    if !coati_storage::is_dir(path) {
        return Ok(match path.extension().and_then(|ending| ending.to_str()) {
            Some("json") => Kind::Coco,
            Some("csv" | "tsv" | "txt") => {
                let start = text::read(path, u64::MAX - 1)?;
                let heading = start.lines().next().unwrap_or_default().to_ascii_lowercase();
                if heading.contains("labelname") {
                    Kind::Oid
                } else {
                    Kind::Csv
                }
            }
            _ => Kind::Records,
        });
    }
    let has = |folder: &Path, ending: &str| entries_if_any(folder).iter().any(|path| ends_in(path, ending));
    let below = |name: &str| path.join(name);
    if ["Annotations", "annotations", "xml"]
        .iter()
        .any(|name| has(&below(name), "xml"))
        || has(path, "xml")
    {
        return Ok(Kind::Voc);
    }
    if coati_storage::is_dir(&below("training/label_2")) {
        return Ok(Kind::Kitti);
    }
    let labels = |folder: PathBuf| coati_storage::is_dir(&folder.join("Label"));
    if entries_if_any(path).into_iter().any(labels) {
        return Ok(Kind::Folder);
    }
    if has(path, "txt") {
        return Ok(Kind::Kitti);
    }
    Err(unclear("no annotations of a known kind"))
}

/// The classes of annotations. `records` are patterns, read when the kind is [`Kind::Records`].
pub fn classes(path: &Path, kind: Kind, order: Order) -> Result<Found, Error> {
    let counts = match kind {
        Kind::Coco => return of_coco(path),
        Kind::Records => return of_records(path),
        Kind::Voc => {
            let items = voc::items(path, None, None, None)?;
            let names = items.par_iter().map(|item| {
                let annotation = voc::xml::read(&item.file)?;
                Ok(annotation.objects.into_iter().map(|object| object.name).collect())
            });
            count(engine::beside(path, || {
                names.collect::<Result<Vec<Vec<String>>, Error>>()
            })?)
        }
        Kind::Csv => {
            let items = csv::read(path)?;
            count(
                items
                    .into_iter()
                    .map(|item| item.rows.into_iter().map(|row| row.class).collect()),
            )
        }
        Kind::Oid => {
            let mut table = super::table::Table::open(path)?;
            let label = table.need(&["LabelName"], "Open Images' tables have a column LabelName")?;
            let mut counts = BTreeMap::new();
            while let Some(row) = table.next()? {
                *counts.entry(row.text(label).to_owned()).or_default() += 1;
            }
            counts
        }
        Kind::Folder => {
            let files: Vec<PathBuf> = folder::items(path)?.into_iter().flat_map(|item| item.labels).collect();
            let names = files
                .par_iter()
                .filter(|file| coati_storage::is_file(file))
                .map(|file| {
                    let objects = folder::parse(file, &text::read(file, text::MOST_OF_ONE_IMAGE)?)?;
                    Ok(objects.into_iter().map(|object| object.class).collect())
                });
            count(engine::beside(path, || {
                names.collect::<Result<Vec<Vec<String>>, Error>>()
            })?)
        }
        Kind::Kitti => {
            let labels = path.join("training/label_2");
            let labels = if coati_storage::is_dir(&labels) {
                labels
            } else {
                path.to_owned()
            };
            let mut files = entries(&labels)?;
            files.retain(|file| file.extension().is_some_and(|ending| ending == "txt"));
            let kinds = files.par_iter().map(|file| {
                let objects = kitti::parse(file, &text::read(file, text::MOST_OF_ONE_IMAGE)?)?;
                Ok(objects.into_iter().map(|object| object.kind).collect())
            });
            let mut counts = count(engine::beside(path, || {
                kinds.collect::<Result<Vec<Vec<String>>, Error>>()
            })?);
            // A region without labels is no class.
            counts.remove("dontcare");
            counts
        }
    };
    let mut named: Vec<(String, usize)> = counts.into_iter().filter(|(name, _)| !name.is_empty()).collect();
    if order == Order::Boxes {
        named.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    }
    let (items, boxes) = (1..)
        .zip(named)
        .map(|(id, (name, boxes))| (item(id, name), boxes))
        .unzip();
    checked(path, kind, LabelMap { items }, boxes)
}

fn item(id: u32, name: String) -> Item {
    Item {
        id,
        display_name: name.clone(),
        name,
    }
}

fn count(images: impl IntoIterator<Item = Vec<String>>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in images.into_iter().flatten() {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

fn checked(path: &Path, kind: Kind, labels: LabelMap, boxes: Vec<usize>) -> Result<Found, Error> {
    if labels.items.is_empty() {
        return Err(Error::Empty {
            folder: path.to_owned(),
            hint: "none of the annotations has a box with a class".to_owned(),
        });
    }
    Ok(Found { kind, labels, boxes })
}

fn of_coco(path: &Path) -> Result<Found, Error> {
    let text = coco::read(path)?;
    let content = coco::Content::parse(path, &text)?;
    let mut categories: Vec<(i64, String)> = content
        .categories
        .iter()
        .map(|category| (category.id, category.name.clone()))
        .collect();
    categories.sort();
    if let Some((id, name)) = categories.first().filter(|(id, _)| *id < 1) {
        return Err(Error::Record {
            path: path.to_owned(),
            what: format!("category {name:?} has the id {id}"),
            hint: "ids start at 1, 0 is the background: add 1 to all of them".to_owned(),
        });
    }
    let labels = coco::label_map(&categories);
    let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
    for id in content
        .annotations
        .iter()
        .filter_map(|annotation| annotation.category_id)
    {
        *counts.entry(id).or_default() += 1;
    }
    let boxes = labels
        .items
        .iter()
        .map(|item| counts.get(&i64::from(item.id)).copied().unwrap_or(0))
        .collect();
    checked(path, Kind::Coco, labels, boxes)
}

/// Names and ids that records pair; an id with two names, or a name with two ids, is an error.
fn of_records(path: &Path) -> Result<Found, Error> {
    let wrong = |what: String| Error::Record {
        path: path.to_owned(),
        what,
        hint: "`coati data validate` lists all that is wrong".to_owned(),
    };
    let source = shards::Source::open(&[path.display().to_string()]).map_err(|error| wrong(error.to_string()))?;
    let mut classes: BTreeMap<i64, (String, usize)> = BTreeMap::new();
    for number in 0..source.record_count() {
        let place = source.location(number);
        let bytes = source.read(number).map_err(|error| wrong(error.to_string()))?;
        let lists = Features::parse(&bytes).and_then(|features| {
            Ok((
                features
                    .bytes("image/object/class/text")?
                    .into_iter()
                    .map(<[u8]>::to_vec)
                    .collect::<Vec<_>>(),
                features.ints("image/object/class/label")?,
            ))
        });
        let (texts, labels) = lists.map_err(|error| wrong(format!("{place}: {error}")))?;
        for (index, &id) in labels.iter().enumerate() {
            let name = texts
                .get(index)
                .map(|text| String::from_utf8_lossy(text).into_owned())
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| id.to_string());
            if id < 1 {
                return Err(wrong(format!(
                    "{place}: object {index}: `{name}` has label {id}; labels start at 1"
                )));
            }
            let entry = classes.entry(id).or_insert_with(|| (name.clone(), 0));
            if entry.0 != name {
                let known = &entry.0;
                return Err(wrong(format!(
                    "{place}: object {index}: label {id} is `{name}` here and `{known}` elsewhere"
                )));
            }
            entry.1 += 1;
        }
    }
    let mut names: Vec<&str> = classes.values().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(wrong(format!("class `{}` has two labels", pair[0])));
    }
    let (items, boxes) = classes
        .into_iter()
        .map(|(id, (name, boxes))| (item(id as u32, name), boxes))
        .unzip();
    checked(path, Kind::Records, LabelMap { items }, boxes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(found: &Found) -> Vec<(u32, &str, usize)> {
        let items = found.labels.items.iter().zip(&found.boxes);
        items
            .map(|(item, &boxes)| (item.id, item.name.as_str(), boxes))
            .collect()
    }

    #[test]
    fn every_kind_is_told_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        };
        let object = |name: &str| {
            format!(
                "<object><name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>"
            )
        };
        write(
            "voc/a.xml",
            &format!(
                "<annotation>{}{}{}</annotation>",
                object("dog"),
                object("cat"),
                object("dog")
            ),
        );
        write("tree/Big cat/Label/a.txt", "Big cat 1 2 3 4\n");
        write("tree/Big cat/a.jpg", "");
        write(
            "kitti/training/label_2/000000.txt",
            "Car 0 0 0 1 2 3 4 1 1 1 1 1 1 1\nDontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1 -1 -1 -1\n",
        );
        write(
            "t.csv",
            "filename,class,xmin,ymin,xmax,ymax\na,x,1,1,2,2\na,b,1,1,2,2\na,x,1,1,2,2\n",
        );
        write("o.csv", "ImageID,LabelName\n1,/m/b\n1,/m/a\n");
        write(
            "c.json",
            r#"{"images": [], "annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}],
                "categories": [{"id": 7, "name": "bus"}, {"id": 2, "name": "bike"}]}"#,
        );
        let find = |name: &str, order| {
            let path = folder.path().join(name);
            classes(&path, kind_of(&path).unwrap(), order).unwrap()
        };
        assert_eq!(names(&find("voc", Order::Name)), [(1, "cat", 1), (2, "dog", 2)]);
        assert_eq!(names(&find("voc", Order::Boxes)), [(1, "dog", 2), (2, "cat", 1)]);
        assert_eq!(names(&find("tree", Order::Name)), [(1, "Big cat", 1)]);
        assert_eq!(names(&find("kitti", Order::Name)), [(1, "car", 1)]);
        assert_eq!(names(&find("t.csv", Order::Name)), [(1, "b", 1), (2, "x", 2)]);
        assert_eq!(names(&find("o.csv", Order::Name)), [(1, "/m/a", 1), (2, "/m/b", 1)]);
        assert_eq!(names(&find("c.json", Order::Name)), [(2, "bike", 0), (7, "bus", 1)]);
        let empty = folder.path().join("nothing");
        fs::create_dir(&empty).unwrap();
        assert!(kind_of(&empty).is_err());
    }
}
