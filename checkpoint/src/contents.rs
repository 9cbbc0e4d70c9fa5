//! What `coati checkpoint list` tells: the tensors of one checkpoint and figures about their values.

use serde::Serialize;

use crate::bundle::{self, DataType, Entry, Reader, dtype_name};

/// What a tensor is to a training job, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A weight, bias, scale or shift.
    Variable,
    /// Batch norm's moving mean or variance.
    Statistic,
    /// An optimiser's (`Momentum`, `RMSProp`, `Adam`).
    Slot,
    /// A moving average of a variable.
    Average,
    /// `global_step`
    Step,
}

impl Kind {
    /// By TensorFlow's names.
    pub fn of(name: &str) -> Self {
        let last = name.rsplit('/').next().unwrap_or(name);
        match last {
            "global_step" => Self::Step,
            "moving_mean" | "moving_variance" => Self::Statistic,
            "ExponentialMovingAverage" => Self::Average,
            "Momentum" | "RMSProp" | "RMSProp_1" | "Adam" | "Adam_1" | "beta1_power" | "beta2_power" => Self::Slot,
            _ => Self::Variable,
        }
    }

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Variable => "variable",
            Self::Statistic => "statistic",
            Self::Slot => "slot",
            Self::Average => "average",
            Self::Step => "step",
        }
    }
}

/// Figures about the values of a tensor. Those that are not finite are counted and otherwise left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// Mean.
    pub mean: f64,
    /// Standard deviation, over all elements.
    pub stddev: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Elements that are exactly 0.
    pub zeros: u64,
    /// Elements that are NaN or infinite.
    pub not_finite: u64,
}

impl Statistics {
    /// Of these values; none of none.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut found = Self {
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            ..Self::default()
        };
        let (mut count, mut mean, mut squares) = (0u64, 0.0, 0.0);
        for value in values {
            if !value.is_finite() {
                found.not_finite += 1;
                continue;
            }
            count += 1;
            // Welford's update: no second pass, no cancellation.
            let delta = value - mean;
            mean += delta / count as f64;
            squares += delta * (value - mean);
            found.min = found.min.min(value);
            found.max = found.max.max(value);
            found.zeros += u64::from(value == 0.0);
        }
        if count == 0 {
            (found.min, found.max) = (f64::NAN, f64::NAN);
            return (found.not_finite > 0).then_some(Self {
                mean: f64::NAN,
                stddev: f64::NAN,
                ..found
            });
        }
        found.mean = mean;
        found.stddev = (squares / count as f64).sqrt();
        Some(found)
    }
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tensor {
    /// TensorFlow's name.
    pub name: String,
    /// By the name.
    pub kind: Kind,
    /// `float32`, `int64`, …
    pub dtype: &'static str,
    /// Dimensions.
    pub shape: Vec<i64>,
    /// Number of elements.
    pub elements: u64,
    /// Parts in which it is stored.
    pub slices: usize,
    /// Where its values are numbers that are read here.
    pub statistics: Option<Statistics>,
}

/// All tensors of a checkpoint, in order of their names; with `statistics`, every byte is read and its CRC checked.
///
/// # Errors
/// Damage.
pub fn list(reader: &Reader, statistics: bool) -> Result<Vec<Tensor>, bundle::Error> {
    reader
        .entries()
        .map(|entry| {
            Ok(Tensor {
                name: entry.name.clone(),
                kind: Kind::of(&entry.name),
                dtype: dtype_name(entry.dtype),
                shape: entry.shape.clone(),
                elements: entry.elements(),
                slices: entry.slices.len().max(1),
                statistics: match statistics.then(|| values(reader, entry)).transpose()?.flatten() {
                    Some(values) => Statistics::of(values.into_iter()),
                    None => None,
                },
            })
        })
        .collect()
}

/// A tensor's values as float64; none of types that are no numbers here (strings, half precision, complex).
///
/// # Errors
/// Damage.
pub fn values(reader: &Reader, entry: &Entry) -> Result<Option<Vec<f64>>, bundle::Error> {
    let name = entry.name.as_str();
    Ok(Some(match entry.dtype {
        DataType::DtFloat => reader.read_f32(name)?.into_iter().map(f64::from).collect(),
        DataType::DtInt64 | DataType::DtInt32 => reader.read_i64(name)?.into_iter().map(|value| value as f64).collect(),
        DataType::DtDouble => {
            let bytes = reader.read_raw(name)?;
            let (eights, _) = bytes.as_chunks::<8>();
            eights.iter().map(|eight| f64::from_le_bytes(*eight)).collect()
        }
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        let found = Statistics::of([1.0, 3.0, 0.0, f64::NAN, f64::INFINITY].into_iter()).unwrap();
        assert_eq!((found.min, found.max, found.zeros, found.not_finite), (0.0, 3.0, 1, 2));
        assert!((found.mean - 4.0 / 3.0).abs() < 1e-12);
        assert!((found.stddev - (14.0_f64 / 9.0).sqrt()).abs() < 1e-12);
        assert_eq!(Statistics::of(std::iter::empty()), None);
        assert!(Statistics::of([f64::NAN].into_iter()).unwrap().mean.is_nan());
    }

    #[test]
    fn kinds_by_names() {
        for (name, kind) in [
            ("a/weights", Kind::Variable),
            ("a/BatchNorm/moving_mean", Kind::Statistic),
            ("a/weights/Momentum", Kind::Slot),
            ("a/weights/RMSProp_1", Kind::Slot),
            ("a/weights/ExponentialMovingAverage", Kind::Average),
            ("global_step", Kind::Step),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }
}
