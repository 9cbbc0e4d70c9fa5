//! Distributions, in the buckets that TensorBoard expects.

use coati_proto::tensorflow::HistogramProto;

/// Growth of the buckets, smallest and largest finite limit: as TensorFlow's `histogram::Histogram`.
const GROWTH: f64 = 1.1;
const SMALLEST: f64 = 1e-12;
const LARGEST: f64 = 1e20;

/// Counts of values in buckets.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Smallest and largest value.
    pub range: (f64, f64),
    /// Number of values.
    pub count: u64,
    /// Sum of the values.
    pub sum: f64,
    /// Sum of their squares.
    pub sum_squares: f64,
    /// Upper limit (exclusive) and number of values of each bucket, in ascending order.
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// Counts values in TensorFlow's default buckets. Values that are not finite are left out.
    pub fn of(values: &[f64]) -> Self {
        let limits = limits();
        let mut counts = vec![0; limits.len()];
        let mut histogram = Self {
            range: (f64::MAX, -f64::MAX),
            count: 0,
            sum: 0.0,
            sum_squares: 0.0,
            buckets: Vec::new(),
        };
        for &value in values.iter().filter(|value| value.is_finite()) {
            let bucket = limits.partition_point(|&limit| limit <= value).min(limits.len() - 1);
            counts[bucket] += 1;
            histogram.range = (histogram.range.0.min(value), histogram.range.1.max(value));
            histogram.count += 1;
            histogram.sum += value;
            histogram.sum_squares += value * value;
        }
        if histogram.count == 0 {
            histogram.range = (0.0, 0.0);
        }
        // Only from the first to the last bucket that holds anything, with the one before as the lower limit.
        let first = counts
            .iter()
            .position(|&count| count > 0)
            .unwrap_or(0)
            .saturating_sub(1);
        let last = counts.iter().rposition(|&count| count > 0).unwrap_or(0);
        histogram.buckets = limits.into_iter().zip(counts).take(last + 1).skip(first).collect();
        histogram
    }

    pub(super) fn to_proto(&self) -> HistogramProto {
        HistogramProto {
            min: self.range.0,
            max: self.range.1,
            num: self.count as f64,
            sum: self.sum,
            sum_squares: self.sum_squares,
            bucket_limit: self.buckets.iter().map(|&(limit, _)| limit).collect(),
            bucket: self.buckets.iter().map(|&(_, count)| count as f64).collect(),
        }
    }
}

/// Upper limits of the default buckets: powers of 1.1 on both sides of zero.
fn limits() -> Vec<f64> {
    let positive: Vec<f64> = std::iter::successors(Some(SMALLEST), |limit| Some(limit * GROWTH))
        .take_while(|&limit| limit < LARGEST)
        .collect();
    let negative = positive.iter().rev().map(|limit| -limit);
    std::iter::once(-f64::MAX)
        .chain(negative)
        .chain([0.0])
        .chain(positive.iter().copied())
        .chain([f64::MAX])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_that_spans_it() {
        let values = [-3.0, 0.0, 1e-15, 0.5, 0.5, 7e30, f64::NAN, f64::INFINITY];
        let histogram = Histogram::of(&values);
        assert_eq!(histogram.count, 6);
        assert_eq!(histogram.range, (-3.0, 7e30));
        assert_eq!(histogram.buckets.iter().map(|&(_, count)| count).sum::<u64>(), 6);
        for value in [-3.0, 0.5, 7e30] {
            let bucket = histogram.buckets.iter().position(|&(limit, _)| value < limit).unwrap();
            assert!(histogram.buckets[bucket].1 > 0, "{value}");
        }
        assert!(histogram.buckets.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let half = histogram.buckets.iter().find(|&&(limit, _)| limit > 0.5).unwrap();
        assert_eq!(half.1, 2);
    }

    #[test]
    fn nothing_is_fine_too() {
        let histogram = Histogram::of(&[]);
        assert_eq!((histogram.count, histogram.range), (0, (0.0, 0.0)));
        assert_eq!(
            histogram.to_proto().bucket.len(),
            histogram.to_proto().bucket_limit.len()
        );
    }
}
