//! What can be wrong with a record.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// A kind of flaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flaw {
    /// A CRC is wrong, or the file ends within the record.
    Unreadable,
    /// The file starts with no record: it is none of TFRecords.
    NoRecords,
    /// The files of a set hold no record.
    EmptySet,
    /// The bytes are no `tf.Example`.
    NoExample,
    /// A feature holds a list of another kind.
    WrongKind,
    /// Lists of `image/object` differ in length.
    UnequalLengths,
    /// There is no image.
    NoImage,
    /// The image does not decode.
    BadImage,
    /// `image/width` or `image/height` is not the image's.
    WrongSize,
    /// `image/format` is not the image's.
    WrongFormat,
    /// A coordinate is NaN or infinite.
    NotANumber,
    /// All boxes are in pixels.
    Pixels,
    /// A box reaches beyond the image.
    OutsideImage,
    /// The far side of a box comes before the near one.
    Inverted,
    /// A box without area.
    Empty,
    /// A label of 0 or less: 0 is the background.
    LabelNotPositive,
    /// A label that is not in the label map.
    UnknownLabel,
    /// A class text that is not in the label map.
    UnknownText,
    /// Label and text name different classes.
    LabelAndText,
    /// An object without a class.
    NoClass,
    /// An image is in the set twice.
    DuplicateImage,
    /// An image is in two sets.
    ImageInTwoSets,
}

impl Flaw {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable_record",
            Self::NoRecords => "no_records",
            Self::EmptySet => "empty_set",
            Self::NoExample => "no_example",
            Self::WrongKind => "wrong_kind",
            Self::UnequalLengths => "unequal_lengths",
            Self::NoImage => "no_image",
            Self::BadImage => "bad_image",
            Self::WrongSize => "wrong_size",
            Self::WrongFormat => "wrong_format",
            Self::NotANumber => "not_a_number",
            Self::Pixels => "box_in_pixels",
            Self::OutsideImage => "box_outside_image",
            Self::Inverted => "box_inverted",
            Self::Empty => "box_empty",
            Self::LabelNotPositive => "label_not_positive",
            Self::UnknownLabel => "label_not_in_map",
            Self::UnknownText => "text_not_in_map",
            Self::LabelAndText => "label_and_text_differ",
            Self::NoClass => "no_class",
            Self::DuplicateImage => "duplicate_image",
            Self::ImageInTwoSets => "image_in_two_sets",
        }
    }
}

impl Serialize for Flaw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What `--fix` does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// The record is left out: nobody can use it.
    DropRecord,
    /// The rest of the file is left out: after a wrong length nobody can tell where the next record starts.
    DropRest,
    /// The object is left out: it shows nothing.
    DropObject,
    /// The value follows from others in the record.
    Correct,
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DropRecord => "leaves the record out",
            Self::DropRest => "leaves out the record and all behind it, which cannot be found",
            Self::DropObject => "leaves the object out",
            Self::Correct => "corrects it",
        })
    }
}

/// One flaw and its place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// Number of the record in the file, from 0.
    pub record: Option<u64>,
    /// The kind.
    pub flaw: Flaw,
    /// The feature.
    pub field: Option<String>,
    /// With the value and what would be right.
    pub what: String,
    /// What can be done without guessing.
    pub repair: Option<Repair>,
}

impl Finding {
    pub(super) fn new(
        file: &Path,
        record: Option<u64>,
        flaw: Flaw,
        field: Option<&str>,
        what: String,
        repair: Option<Repair>,
    ) -> Self {
        Self {
            file: file.to_owned(),
            record,
            flaw,
            field: field.map(str::to_owned),
            what,
            repair,
        }
    }

    /// One whose place is filled in later.
    pub(super) fn of(flaw: Flaw, field: &str, mut what: String, repair: Option<Repair>) -> Self {
        // Errors of readers name their feature, which a finding does already.
        if let Some(rest) = what.strip_prefix(&format!("feature {field}: ")) {
            what = rest.to_owned();
        }
        Self::new(
            Path::new(""),
            None,
            flaw,
            Some(field).filter(|field| !field.is_empty()),
            what,
            repair,
        )
    }

    pub(super) fn at(mut self, file: &Path, record: u64) -> Self {
        // The same of a file and a record's number.
        if let Some(rest) = self.what.strip_prefix(&format!("{}: record {record} ", file.display())) {
            self.what = rest.to_owned();
        }
        Self {
            file: file.to_owned(),
            record: Some(record),
            ..self
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(record) = self.record {
            write!(f, ": record {record}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": feature {field}")?;
        }
        write!(f, ": {} [{}]", self.what, self.flaw.name())
    }
}
