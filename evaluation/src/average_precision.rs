//! Precision, recall and the area under their curve (the reference's `utils/metrics.py`).

/// Positions of `scores` from the highest to the lowest; of equal scores the later one first, as the reference's reversed sort has it.
pub(crate) fn descending(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(b.cmp(&a)));
    order
}

/// Precision and recall after each detection, from the highest score down (`compute_precision_recall`).
///
/// `labels` are weights of true positives, 0 for false ones; `groundtruth` is the number of objects, or the sum of their weights, above 0.
pub fn precision_recall(scores: &[f64], labels: &[f64], groundtruth: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut right, mut wrong) = (0.0, 0.0);
    descending(scores)
        .into_iter()
        .map(|index| {
            let label = labels.get(index).copied().unwrap_or(0.0);
            right += label;
            if label <= 0.0 {
                wrong += 1.0;
            }
            (right / (right + wrong), right / groundtruth)
        })
        .unzip()
}

/// Area under the precision's monotone envelope at all points (`compute_average_precision`, VOC 2010 and later); 0 without a detection.
pub fn average_precision(precision: &[f64], recall: &[f64]) -> f64 {
    let (mut area, mut envelope) = (0.0, 0.0_f64);
    // From the right: the envelope is the best precision at this recall or a higher one.
    for index in (0..precision.len().min(recall.len())).rev() {
        envelope = envelope.max(precision[index]);
        let before = if index == 0 { 0.0 } else { recall[index - 1] };
        area += (recall[index] - before) * envelope;
    }
    area
}

/// Share of the objects that are among the first `k` detections of their image (`compute_recall_at_k`). `labels` holds one list an
/// image, from the highest score down. NaN without groundtruth.
pub fn recall_at_k(labels: &[Vec<bool>], groundtruth: usize, k: usize) -> f64 {
    let found = labels
        .iter()
        .map(|image| image.iter().take(k).filter(|&&found| found).count())
        .sum::<usize>();
    found as f64 / groundtruth as f64
}

/// Mean of what is a number; NaN where nothing is (numpy's `nanmean`).
pub(crate) fn nan_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values.filter(|value| !value.is_nan()) {
        sum += value;
        count += 1.0;
    }
    sum / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn area_under_all_points() {
        // The reference's own example (metrics_test.py): labels of sorted scores, 10 objects.
        let scores = [0.4, 0.3, 0.6, 0.2, 0.7, 0.1];
        let labels = [0.0, 1.0, 1.0, 0.0, 0.0, 1.0];
        let (precision, recall) = precision_recall(&scores, &labels, 10.0);
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(&precision, &[0.0, 0.5, 1.0 / 3.0, 0.5, 0.4, 0.5]), "{precision:?}");
        assert!(near(&recall, &[0.0, 0.1, 0.1, 0.2, 0.2, 0.3]), "{recall:?}");
        let precision = [0.8, 0.76, 0.9, 0.65, 0.7, 0.5, 0.55, 0.0];
        let recall = [0.3, 0.3, 0.4, 0.4, 0.45, 0.45, 0.5, 0.5];
        // The envelope is .9 up to .4, .7 up to .45, .55 up to .5.
        assert!((average_precision(&precision, &recall) - (0.4 * 0.9 + 0.05 * 0.7 + 0.05 * 0.55)).abs() < 1e-12);
        assert_eq!(average_precision(&[], &[]), 0.0);
    }

    #[test]
    fn recall_among_the_first() {
        let labels = vec![vec![true, false, true], vec![false, true]];
        assert_eq!(recall_at_k(&labels, 4, 1), 0.25);
        assert_eq!(recall_at_k(&labels, 4, 2), 0.5);
        assert_eq!(recall_at_k(&labels, 4, 50), 0.75);
        assert!(recall_at_k(&[], 0, 50).is_nan());
        assert!(nan_mean([f64::NAN].into_iter()).is_nan());
        assert_eq!(nan_mean([f64::NAN, 1.0, 2.0].into_iter()), 1.5);
    }
}
