//! Open Images' class hierarchy: a box of a cat is also one of a mammal and of an animal, as the reference's
//! `oid_hierarchical_labels_expansion` has it.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::table::Table;
use super::{Error, sharded, text};

/// A class and those below it (`bbox_labels_600_hierarchy.json`).
#[derive(Debug, Deserialize)]
struct Node {
    #[serde(rename = "LabelName")]
    label: String,
    #[serde(default, rename = "Subcategory")]
    below: Vec<Node>,
}

/// Which classes lie above and below each; the root, which gathers everything, is none of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hierarchy {
    above: HashMap<String, Vec<String>>,
    below: HashMap<String, Vec<String>>,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Expanded {
    /// Rows read.
    pub rows: usize,
    /// Rows added.
    pub added: usize,
    /// Rows whose label the hierarchy does not have: written as they are.
    pub unknown: usize,
}

impl Hierarchy {
    /// Reads the JSON file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::parse(path, &text::read(path, text::MOST_OF_ONE_IMAGE)?)
    }

    fn parse(path: &Path, json: &str) -> Result<Self, Error> {
        // serde_json refuses what is nested more than 128 deep.
        let root: Node = serde_json::from_str(json).map_err(|error| Error::Annotation {
            path: path.to_owned(),
            line: error.line() as u32,
            what: format!("column {}: {error}", error.column()),
            hint: "a hierarchy is a tree of {\"LabelName\": …, \"Subcategory\": […]}, as Open Images publishes it"
                .to_owned(),
        })?;
        let mut hierarchy = Self::default();
        let mut path = Vec::new();
        for node in &root.below {
            hierarchy.enter(node, &mut path);
        }
        Ok(hierarchy)
    }

    fn enter<'a>(&mut self, node: &'a Node, path: &mut Vec<&'a str>) {
        add(&mut self.above, &node.label, path.iter().rev().copied());
        for upper in path.iter() {
            add(&mut self.below, upper, std::iter::once(node.label.as_str()));
        }
        add(&mut self.below, &node.label, std::iter::empty());
        path.push(&node.label);
        for lower in &node.below {
            self.enter(lower, path);
        }
        path.pop();
    }

    /// The classes that a row's label means beside itself: those above what is there, those below what is not.
    /// `None` for a label that the hierarchy does not have.
    pub fn implied(&self, label: &str, there: bool) -> Option<&[String]> {
        let of = if there { &self.above } else { &self.below };
        of.get(label).map(Vec::as_slice)
    }

    /// Writes the table `input` with a row for each class that a row implies after that row. Rows of boxes are there; rows of
    /// image-level labels (`image_labels`) are when their `Confidence` is 1.
    pub fn expand(&self, input: &Path, output: &Path, image_labels: bool) -> Result<Expanded, Error> {
        const HINT: &str = "the table must be one of Open Images': ImageID,Source,LabelName,Confidence,…";
        let mut table = Table::open(input)?;
        let label = table.need(&["LabelName"], HINT)?;
        let confidence = if image_labels {
            Some(table.need(&["Confidence"], HINT)?)
        } else {
            None
        };
        let failed = |error: csv::Error| Error::Write {
            path: output.to_owned(),
            source: error.into(),
        };
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(table.heading()).map_err(failed)?;
        let mut done = Expanded::default();
        while let Some(row) = table.next()? {
            done.rows += 1;
            writer.write_record(row.fields()).map_err(failed)?;
            let there = match confidence {
                Some(column) => row.number(column)? >= 1.0,
                None => true,
            };
            let Some(implied) = self.implied(row.text(label), there) else {
                done.unknown += 1;
                continue;
            };
            for class in implied {
                done.added += 1;
                writer.write_record(row.fields_with(label, class)).map_err(failed)?;
            }
        }
        let bytes = writer.into_inner().map_err(|error| Error::Write {
            path: output.to_owned(),
            source: error.into_error(),
        })?;
        sharded::replace(output, &bytes)?;
        Ok(done)
    }
}

/// Adds classes to a class's list, each once: some classes have two parents.
fn add<'a>(to: &mut HashMap<String, Vec<String>>, label: &str, classes: impl Iterator<Item = &'a str>) {
    let list = to.entry(label.to_owned()).or_default();
    for class in classes {
        if !list.iter().any(|known| known == class) {
            list.push(class.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = r#"{"LabelName": "root", "Subcategory": [
        {"LabelName": "animal", "Subcategory": [{"LabelName": "mammal", "Subcategory": [{"LabelName": "cat"}]}]},
        {"LabelName": "pet", "Subcategory": [{"LabelName": "cat"}]}]}"#;

    #[test]
    fn what_is_there_goes_up_and_what_is_not_goes_down() {
        let tree = Hierarchy::parse(Path::new("h.json"), TREE).unwrap();
        assert_eq!(tree.implied("cat", true).unwrap(), ["mammal", "animal", "pet"]);
        assert_eq!(tree.implied("animal", true).unwrap(), [""; 0]);
        assert_eq!(tree.implied("animal", false).unwrap(), ["mammal", "cat"]);
        assert_eq!(tree.implied("root", true), None);
    }

    #[test]
    fn tables_grow_by_what_their_rows_imply() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Hierarchy::parse(Path::new("h.json"), TREE).unwrap();
        let (input, output) = (folder.path().join("a.csv"), folder.path().join("out/b.csv"));
        std::fs::write(
            &input,
            "ImageID,Source,LabelName,Confidence\n1,v,cat,1\n1,v,mammal,0\n2,v,ufo,1\n",
        )
        .unwrap();
        let labels = tree.expand(&input, &output, true).unwrap();
        assert_eq!((labels.rows, labels.added, labels.unknown), (3, 4, 1));
        let written = std::fs::read_to_string(&output).unwrap();
        let rows: Vec<&str> = written.lines().collect();
        assert_eq!(rows[0], "ImageID,Source,LabelName,Confidence");
        assert_eq!(rows[1..5], ["1,v,cat,1", "1,v,mammal,1", "1,v,animal,1", "1,v,pet,1"]);
        assert_eq!(rows[5..], ["1,v,mammal,0", "1,v,cat,0", "2,v,ufo,1"]);
        assert_eq!(tree.expand(&input, &output, false).unwrap().added, 4);
    }
}
