//! Which class ids exist and what they are called.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use coati_common::label_map::LabelMap;

/// The classes of a data set: ids from 1 as in label maps, names as in records.
#[derive(Debug, Clone, Default)]
pub struct Classes {
    by_name: HashMap<String, i64>,
    names: BTreeMap<i64, String>,
    /// Without a label map every id up to this one is accepted.
    unnamed_up_to: i64,
}

/// What a class text of a record means where it is one class's name and another's display name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    /// The class of that name.
    #[default]
    Name,
    /// The class of that display name (`use_display_name`).
    DisplayName,
}

/// A label that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The id means background.
    #[error("label {0} is not allowed: ids start at 1 (0 is the background)")]
    NotPositive(i64),
    /// The id is not in the map.
    #[error("label {id} is not in the label map, which holds {known}")]
    Id {
        /// As in the record.
        id: i64,
        /// The ids that are.
        known: String,
    },
    /// The name is not in the map.
    #[error("class {name:?} is not in the label map, which holds {known}")]
    Name {
        /// As in the record.
        name: String,
        /// The names that are.
        known: String,
    },
}

impl Classes {
    /// Classes with names. `items` are (id, name, display name or empty); the first of a name counts.
    pub fn new<'a>(items: impl IntoIterator<Item = (i64, &'a str, &'a str)>) -> Self {
        Self::preferring(items, Prefer::Name)
    }

    /// Classes of a label map.
    pub fn of(map: &LabelMap, prefer: Prefer) -> Self {
        let items = map.items.iter();
        let items = items.map(|item| (i64::from(item.id), item.name.as_str(), item.display_name.as_str()));
        Self::preferring(items, prefer)
    }

    fn preferring<'a>(items: impl IntoIterator<Item = (i64, &'a str, &'a str)>, prefer: Prefer) -> Self {
        let mut classes = Self::default();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (id, name, shown) in items {
            let title = if shown.is_empty() { name } else { shown };
            classes.names.entry(id).or_insert_with(|| title.to_owned());
            let (names, shown_names) = match prefer {
                Prefer::Name => (&mut first, &mut second),
                Prefer::DisplayName => (&mut second, &mut first),
            };
            names.push((name, id));
            shown_names.push((shown, id));
        }
        // The other kind of name is good too where it is nobody's name of the first kind.
        for (name, id) in first.into_iter().chain(second) {
            if !name.is_empty() {
                classes.by_name.entry(name.to_owned()).or_insert(id);
            }
        }
        classes
    }

    /// Classes without names: ids 1 to `count`.
    pub fn numbered(count: usize) -> Self {
        Self {
            unnamed_up_to: i64::try_from(count).unwrap_or(i64::MAX),
            ..Self::default()
        }
    }

    /// Whether there are names.
    pub fn has_names(&self) -> bool {
        !self.by_name.is_empty()
    }

    /// The id of a class text.
    pub fn by_name(&self, name: &str) -> Result<i64, Unknown> {
        self.by_name.get(name).copied().ok_or_else(|| Unknown::Name {
            name: name.to_owned(),
            known: listed(self.names.values()),
        })
    }

    /// Checks an id.
    pub fn by_id(&self, id: i64) -> Result<i64, Unknown> {
        if id < 1 {
            Err(Unknown::NotPositive(id))
        } else if id <= self.unnamed_up_to || self.names.contains_key(&id) {
            Ok(id)
        } else if self.names.is_empty() {
            Err(Unknown::Id {
                id,
                known: format!("1 to {}", self.unnamed_up_to),
            })
        } else {
            Err(Unknown::Id {
                id,
                known: listed(self.names.keys()),
            })
        }
    }

    /// What to call a class in reports: its display name, else its name, else its number.
    pub fn title(&self, id: i64) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| format!("class {id}"))
    }
}

impl From<&LabelMap> for Classes {
    fn from(map: &LabelMap) -> Self {
        Self::of(map, Prefer::Name)
    }
}

fn listed<T: ToString>(items: impl ExactSizeIterator<Item = T>) -> String {
    const SHOWN: usize = 8;
    let count = items.len();
    let mut list = items
        .take(SHOWN)
        .map(|item| item.to_string())
        .collect::<Vec<_>>()
        .join(", ");
    if count > SHOWN {
        let _ = write!(list, " and {} more", count - SHOWN);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_display_names_find_their_id() {
        let classes = Classes::new([(1, "/m/01", "cat"), (5, "dog", ""), (6, "/m/02", "dog")]);
        assert_eq!(classes.by_name("/m/01"), Ok(1));
        assert_eq!(classes.by_name("cat"), Ok(1));
        assert_eq!(classes.by_name("dog"), Ok(5), "a name goes before a display name");
        assert_eq!(
            (classes.title(1), classes.title(9)),
            ("cat".to_owned(), "class 9".to_owned())
        );
        assert!(classes.has_names() && !Classes::numbered(3).has_names());
    }

    #[test]
    fn which_kind_of_name_goes_first_is_for_the_reader_to_say() {
        let crossed = "item { id: 1 name: 'a' display_name: 'b' } item { id: 2 name: 'b' display_name: 'c' }";
        let map = LabelMap::parse(crossed, "map.pbtxt").unwrap();
        let ids = |prefer| ["a", "b", "c"].map(|name| Classes::of(&map, prefer).by_name(name).unwrap());
        assert_eq!(ids(Prefer::Name), [1, 2, 2]);
        assert_eq!(ids(Prefer::DisplayName), [1, 1, 2]);
    }

    #[test]
    fn a_label_map_gives_the_classes() {
        let map = "item { id: 2 name: 'n02' display_name: 'dog' } item { id: 1 name: 'cat' }";
        let classes = Classes::from(&LabelMap::parse(map, "map.pbtxt").unwrap());
        assert_eq!(
            (classes.by_name("dog"), classes.by_name("n02"), classes.by_name("cat")),
            (Ok(2), Ok(2), Ok(1))
        );
        assert_eq!(
            (classes.title(2), classes.title(1)),
            ("dog".to_owned(), "cat".to_owned())
        );
    }

    #[test]
    fn unknown_labels_say_what_is_known() {
        let classes = Classes::new([(1, "a", ""), (3, "b", "")]);
        assert_eq!(classes.by_id(3), Ok(3));
        assert_eq!(
            classes.by_id(2).unwrap_err().to_string(),
            "label 2 is not in the label map, which holds 1, 3"
        );
        assert_eq!(
            classes.by_name("A").unwrap_err().to_string(),
            "class \"A\" is not in the label map, which holds a, b"
        );
        assert!(classes.by_id(0).unwrap_err().to_string().contains("start at 1"));
        let numbered = Classes::numbered(90);
        assert_eq!(numbered.by_id(90), Ok(90));
        assert!(numbered.by_id(91).unwrap_err().to_string().contains("1 to 90"));
        assert!(numbered.by_id(-1).is_err());
    }
}
