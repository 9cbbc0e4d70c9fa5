//! Label maps: names and numbers of classes (`StringIntLabelMap` as protobuf text).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use coati_proto::object_detection::protos::StringIntLabelMap;

use crate::config::{schema, text};

/// Why a label map cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the label map {}: {source}{}", path.display(), coati_storage::hint_or(source, "\nhint: label_map_path names a .pbtxt of `item { id: 1 name: \"…\" }`; a relative path is looked for in the current folder, then beside the pipeline.config"))]
    Read {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not text.
    #[error("{0}")]
    Encoding(String),
    /// The text does not fit the schema, or an item is not valid.
    #[error(transparent)]
    Text(#[from] text::Problems),
    /// A flaw of this program: its own schema does not hold together.
    #[error(transparent)]
    Schema(#[from] crate::config::Error),
}

/// One class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// From 1.
    pub id: u32,
    /// As in the records (`image/object/class/text`).
    pub name: String,
    /// To show; the name if the file gives none.
    pub display_name: String,
}

/// The classes of a data set, in the file's order; names and ids are unique, ids start at 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelMap {
    /// At least one.
    pub items: Vec<Item>,
}

impl LabelMap {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bytes = coati_storage::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let name = path.display().to_string();
        Self::parse(&text::decode(bytes, &name).map_err(Error::Encoding)?, &name)
    }

    /// Reads protobuf text; `name` stands for the file in errors.
    pub fn parse(source: &str, name: &str) -> Result<Self, Error> {
        let parsed = text::parse(source, name, &schema::message("StringIntLabelMap")?)?;
        let map: StringIntLabelMap = schema::generated(&parsed.message)?;
        let mut checked = Checked {
            source,
            lines: &parsed.lines,
            problems: Vec::new(),
        };
        let items = checked.items(&map);
        if checked.problems.is_empty() {
            return Ok(Self { items });
        }
        checked.problems.sort_by_key(|problem| problem.line);
        Err(text::Problems {
            name: name.to_owned(),
            problems: checked.problems,
        }
        .into())
    }

    /// The id of a class name.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.items.iter().find(|item| item.name == name).map(|item| item.id)
    }

    /// The class name of an id.
    pub fn name_of(&self, id: u32) -> Option<&str> {
        self.items
            .iter()
            .find(|item| item.id == id)
            .map(|item| item.name.as_str())
    }

    /// The largest id: what `num_classes` has to be at least.
    pub fn max_id(&self) -> u32 {
        self.items.iter().map(|item| item.id).max().unwrap_or(0)
    }

    /// The map as protobuf text, one item a block.
    pub fn to_pbtxt(&self) -> String {
        let mut out = String::new();
        for item in &self.items {
            let _ = write!(
                out,
                "item {{\n  id: {}\n  name: {}\n",
                item.id,
                text::quoted(&item.name)
            );
            if item.display_name != item.name {
                let _ = writeln!(out, "  display_name: {}", text::quoted(&item.display_name));
            }
            out.push_str("}\n");
        }
        out
    }
}

struct Checked<'a> {
    source: &'a str,
    lines: &'a HashMap<String, usize>,
    problems: Vec<text::Problem>,
}

impl Checked<'_> {
    fn items(&mut self, map: &StringIntLabelMap) -> Vec<Item> {
        let mut items = Vec::new();
        let mut ids: HashMap<u32, usize> = HashMap::new();
        let mut names: HashMap<&str, usize> = HashMap::new();
        if map.item.is_empty() {
            self.bad(
                "",
                "the label map has no classes".to_owned(),
                "write `item { id: 1 name: \"…\" }` for each class",
            );
        }
        for (index, item) in map.item.iter().enumerate() {
            let path = |field: &str| format!("item[{index}]{field}");
            let title = item.name.as_deref().unwrap_or_default();
            // Some maps spell out what id 0 means anyway, which the reference allows.
            if item.id == Some(0) && [title, item.display_name()].contains(&"background") {
                continue;
            }
            let shown = if title.is_empty() {
                format!("item {}", index + 1)
            } else {
                format!("{title:?}")
            };
            if title.is_empty() {
                self.bad(
                    &path(""),
                    format!("{shown} has no name"),
                    "each item has `name: \"…\"`, as in the records",
                );
            } else if let Some(first) = names.insert(title, index) {
                let text = format!("the name {title:?} is taken by item {}", first + 1);
                self.bad(&path(".name"), text, "each class has its own name");
            }
            let id = match (item.id, u32::try_from(item.id.unwrap_or(0))) {
                (None, _) => {
                    self.bad(
                        &path(""),
                        format!("{shown} has no id"),
                        "each item has `id: N`, counted from 1",
                    );
                    continue;
                }
                (Some(_), Ok(id)) if id > 0 => id,
                (Some(0), _) => {
                    self.bad(
                        &path(".id"),
                        format!("{shown} has id 0, which is the background's"),
                        "count ids from 1",
                    );
                    continue;
                }
                (Some(id), _) => {
                    self.bad(&path(".id"), format!("{shown} has id {id}"), "count ids from 1");
                    continue;
                }
            };
            if let Some(first) = ids.insert(id, index) {
                let text = format!("the id {id} of {shown} is taken by item {}", first + 1);
                self.bad(&path(".id"), text, "each class has its own id");
            }
            let display_name = item
                .display_name
                .clone()
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| title.to_owned());
            items.push(Item {
                id,
                name: title.to_owned(),
                display_name,
            });
        }
        items
    }

    fn bad(&mut self, path: &str, message: String, hint: &str) {
        let line = self.lines.get(path).copied().unwrap_or(1);
        self.problems.push(text::Problem::at_line(
            self.source,
            line,
            message,
            Some(hint.to_owned()),
        ));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BCCD: &str = "item { id: 1 name: 'RBC' }\nitem {\n  name: \"WBC\"\n  id: 2\n  display_name: \"white\"\n}\nitem { id: 4 name: 'Platelets' }\n";

    fn complaint(source: &str) -> String {
        LabelMap::parse(source, "map.pbtxt").unwrap_err().to_string()
    }

    #[test]
    fn reads_and_writes() {
        let map = LabelMap::parse(BCCD, "map.pbtxt").unwrap();
        assert_eq!(map.id_of("WBC"), Some(2));
        assert_eq!(map.id_of("white"), None);
        assert_eq!(map.name_of(4), Some("Platelets"));
        assert_eq!(map.name_of(3), None);
        assert_eq!(map.max_id(), 4);
        assert_eq!(map.items[0].display_name, "RBC");
        assert_eq!(map.items[1].display_name, "white");
        assert_eq!(LabelMap::parse(&map.to_pbtxt(), "again").unwrap(), map);
    }

    #[test]
    fn refuses_the_background() {
        assert_eq!(
            complaint("item {\n  id: 0\n  name: 'dog'\n}"),
            "\
map.pbtxt:2:3: \"dog\" has id 0, which is the background's
  2 |   id: 0
    |   ^^^^^
hint: count ids from 1"
        );
        assert!(complaint("item { id: -3 name: 'dog' }").contains("\"dog\" has id -3"));
    }

    #[test]
    fn refuses_duplicates_and_gaps_in_items() {
        let text = complaint(
            "item { id: 1 name: 'a' }\nitem { id: 1 name: 'b' }\nitem { id: 2 name: 'a' }\nitem { id: 5 }\nitem { name: 'c' }",
        );
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("map.pbtxt")).collect();
        assert_eq!(
            lines,
            [
                "map.pbtxt:2:1: the id 1 of \"b\" is taken by item 1",
                "map.pbtxt:3:1: the name \"a\" is taken by item 1",
                "map.pbtxt:4:1: item 4 has no name",
                "map.pbtxt:5:1: \"c\" has no id",
            ]
        );
        assert!(complaint("").contains("the label map has no classes"));
    }

    #[test]
    fn a_typo_is_shown() {
        assert!(complaint("item { id: 1 nmae: 'a' }").ends_with("hint: did you mean `name`?"));
    }

    proptest! {
        #[test]
        fn any_names_survive(names in prop::collection::hash_set("\\PC{1,8}", 1..6)) {
            let items = names.into_iter().zip(1..).map(|(name, id)| Item { id, display_name: name.clone(), name }).collect();
            let map = LabelMap { items };
            prop_assert_eq!(LabelMap::parse(&map.to_pbtxt(), "x").unwrap(), map);
        }
    }
}
