//! What `coati checkpoint diff` tells: two checkpoints, tensor by tensor.

use serde::Serialize;

use crate::bundle::{self, Entry, Reader, dtype_name};
use crate::contents;

/// How two tensors of one name differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// Only the first checkpoint has it.
    OnlyInFirst,
    /// Only the second one has it.
    OnlyInSecond,
    /// Type or shape.
    Form {
        /// `float32 [3, 3, 3, 8]`
        first: String,
        /// As well.
        second: String,
    },
    /// The values.
    Values {
        /// Elements that differ.
        elements: u64,
        /// Of how many.
        of: u64,
        /// The largest distance of two elements; NaN where one is not finite.
        largest: f64,
        /// Root of the mean square of the distances, divided by that of the first tensor.
        relative: f64,
    },
}

/// A tensor that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// TensorFlow's name.
    pub name: String,
    /// How.
    #[serde(flatten)]
    pub difference: Difference,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Tensors that are equal bit for bit.
    pub equal: usize,
    /// The others, in order of their names.
    pub rows: Vec<Row>,
}

/// Compares every tensor.
///
/// # Errors
/// Damage in either checkpoint.
pub fn compare(first: &Reader, second: &Reader) -> Result<Report, bundle::Error> {
    let mut report = Report::default();
    for entry in first.entries() {
        let difference = match second.entry(&entry.name) {
            None => Some(Difference::OnlyInFirst),
            Some(other) => differ((first, entry), (second, other))?,
        };
        report.add(&entry.name, difference);
    }
    for entry in second.entries().filter(|entry| first.entry(&entry.name).is_none()) {
        report.add(&entry.name, Some(Difference::OnlyInSecond));
    }
    report.rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(report)
}

impl Report {
    fn add(&mut self, name: &str, difference: Option<Difference>) {
        match difference {
            None => self.equal += 1,
            Some(difference) => self.rows.push(Row {
                name: name.to_owned(),
                difference,
            }),
        }
    }
}

fn differ((first, a): (&Reader, &Entry), (second, b): (&Reader, &Entry)) -> Result<Option<Difference>, bundle::Error> {
    if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
        let form = |entry: &Entry| format!("{} {:?}", dtype_name(entry.dtype), entry.shape);
        return Ok(Some(Difference::Form {
            first: form(a),
            second: form(b),
        }));
    }
    if bundle::dtype_bytes(a.dtype).is_none() || first.read_raw(&a.name)? == second.read_raw(&b.name)? {
        return Ok(None);
    }
    let (Some(x), Some(y)) = (contents::values(first, a)?, contents::values(second, b)?) else {
        return Ok(Some(Difference::Values {
            elements: 0,
            of: a.elements(),
            largest: f64::NAN,
            relative: f64::NAN,
        }));
    };
    let (mut elements, mut largest, mut squares, mut own) = (0, 0.0_f64, 0.0, 0.0);
    for (x, y) in x.iter().zip(&y) {
        let distance = (x - y).abs();
        elements += u64::from(distance != 0.0);
        // Written so that NaN stays.
        if distance > largest || distance.is_nan() {
            largest = distance;
        }
        squares += distance * distance;
        own += x * x;
    }
    Ok(Some(Difference::Values {
        elements,
        of: a.elements(),
        largest,
        relative: (squares / own).sqrt(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saver;

    #[test]
    fn each_kind_of_difference() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.ckpt"), folder.path().join("b.ckpt"));
        let shape = [2];
        saver::save(
            &a,
            &[
                ("equal", &shape, &[1.0, 2.0]),
                ("form", &shape, &[0.0; 2]),
                ("gone", &[], &[1.0]),
                ("moved", &shape, &[3.0, 4.0]),
            ],
            &[("global_step", 1)],
            None,
        )
        .unwrap();
        saver::save(
            &b,
            &[
                ("equal", &shape, &[1.0, 2.0]),
                ("form", &[1, 2], &[0.0; 2]),
                ("moved", &shape, &[3.0, 4.5]),
                ("new", &[], &[1.0]),
            ],
            &[("global_step", 2)],
            None,
        )
        .unwrap();
        let (a, b) = (Reader::open(&a).unwrap(), Reader::open(&b).unwrap());
        let found = compare(&a, &b).unwrap();
        assert_eq!(found.equal, 1);
        let names: Vec<&str> = found.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["form", "global_step", "gone", "moved", "new"]);
        let form = Difference::Form {
            first: "float32 [2]".to_owned(),
            second: "float32 [1, 2]".to_owned(),
        };
        assert_eq!(found.rows[0].difference, form);
        let moved = Difference::Values {
            elements: 1,
            of: 2,
            largest: 0.5,
            relative: 0.1,
        };
        assert_eq!(found.rows[3].difference, moved);
        assert_eq!(found.rows[2].difference, Difference::OnlyInFirst);
        assert_eq!(found.rows[4].difference, Difference::OnlyInSecond);
        let same = compare(&a, &a).unwrap();
        assert_eq!((same.equal, same.rows.len()), (5, 0));
    }
}
