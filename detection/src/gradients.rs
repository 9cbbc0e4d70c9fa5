//! What happens to gradients between the backward pass and the optimiser, and which variables have any.
//!
//! Order, as in the reference: [`multiply_biases`], then [`clip_by_global_norm`]. Frozen variables take part in neither: their gradients
//! are 0.

use coati_common::variables::{VariableKind, VariableSpec};
use fancy_regex::Regex;

/// Why variables cannot be frozen as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a regular expression.
    #[error("train_config.{setting}: {pattern:?} is not a regular expression: {reason}")]
    Pattern {
        /// The setting.
        setting: &'static str,
        /// Its value.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing would be trained.
    #[error(
        "no variable is left to train: of {variables}, update_trainable_variables {update:?} without freeze_variables {freeze:?} leaves none\nhint: patterns are searched for anywhere in names such as {example:?}"
    )]
    NothingToTrain {
        /// Trainable variables.
        variables: usize,
        /// `update_trainable_variables`
        update: Vec<String>,
        /// `freeze_variables`
        freeze: Vec<String>,
        /// Name of one.
        example: String,
    },
}

/// Makes trainable variables constant: those in whose names any of `freeze` is found, and if `update` is not empty, those in whose names none
/// of `update` is found (slim's `filter_variables`). Returns how many. Moving statistics go on being updated, and regularisation
/// counts frozen weights, as in the reference.
pub fn freeze(variables: &mut [VariableSpec], freeze: &[String], update: &[String]) -> Result<usize, Error> {
    let frozen = compile("freeze_variables", freeze)?;
    let updated = compile("update_trainable_variables", update)?;
    let trainable = |spec: &VariableSpec| spec.kind == VariableKind::Trainable;
    let before = variables.iter().filter(|spec| trainable(spec)).count();
    for spec in variables.iter_mut().filter(|spec| trainable(spec)) {
        if found("freeze_variables", &frozen, &spec.name)?
            || !updated.is_empty() && !found("update_trainable_variables", &updated, &spec.name)?
        {
            spec.kind = VariableKind::Constant;
        }
    }
    let after = variables.iter().filter(|spec| trainable(spec)).count();
    if after == 0 && before > 0 {
        return Err(Error::NothingToTrain {
            variables: before,
            update: update.to_vec(),
            freeze: freeze.to_vec(),
            example: variables.first().map(|spec| spec.name.clone()).unwrap_or_default(),
        });
    }
    Ok(before - after)
}

/// Empty patterns are left out: they would be found everywhere.
fn compile(setting: &'static str, patterns: &[String]) -> Result<Vec<Regex>, Error> {
    let written = patterns.iter().filter(|pattern| !pattern.is_empty());
    written
        .map(|pattern| Regex::new(pattern).map_err(|error| refused(setting, pattern, &error)))
        .collect()
}

fn found(setting: &'static str, patterns: &[Regex], name: &str) -> Result<bool, Error> {
    for pattern in patterns {
        if pattern
            .is_match(name)
            .map_err(|error| refused(setting, pattern.as_str(), &error))?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn refused(setting: &'static str, pattern: &str, error: &fancy_regex::Error) -> Error {
    Error::Pattern {
        setting,
        pattern: pattern.to_owned(),
        reason: error.to_string(),
    }
}

/// Multiplies the gradients of biases: `bias_grad_multiplier`, which applies to names that hold `/biases`; the reference does nothing if
/// it is 0.
pub fn multiply_biases(gradients: &mut [f32], variables: &[VariableSpec], multiplier: f32) {
    multiply_biases_within(gradients, 0, variables, multiplier);
}

/// As [`multiply_biases`], of a part of the flat vector that begins at element `first`.
pub fn multiply_biases_within(part: &mut [f32], first: usize, variables: &[VariableSpec], multiplier: f32) {
    if multiplier == 0.0 {
        return;
    }
    let (mut start, last) = (0, first + part.len());
    for spec in variables {
        let range = start..start + spec.elements();
        start = range.end;
        if spec.kind == VariableKind::Trainable && is_bias(&spec.name) {
            let within = range.start.clamp(first, last) - first..range.end.clamp(first, last) - first;
            for value in &mut part[within] {
                *value *= multiplier;
            }
        }
    }
}

/// Whether `bias_grad_multiplier` is for a variable of this name.
pub fn is_bias(name: &str) -> bool {
    name.contains("/biases")
}

/// Scales the gradients of all trainable variables so that their common norm is at most `max_norm` (`gradient_clipping_by_norm`;
/// TensorFlow's `clip_by_global_norm`). Returns the norm before; if it is not finite, nothing is changed. At most 0 does not clip.
pub fn clip_by_global_norm(gradients: &mut [f32], variables: &[VariableSpec], max_norm: f32) -> f32 {
    let norm = global_norm(gradients, variables);
    if max_norm > 0.0 && norm.is_finite() && norm > max_norm {
        let scale = max_norm / norm;
        for (_, slice) in trainable(gradients, variables) {
            for value in slice.iter_mut() {
                *value *= scale;
            }
        }
    }
    norm
}

/// The norm of the gradients of all trainable variables together.
pub fn global_norm(gradients: &[f32], variables: &[VariableSpec]) -> f32 {
    let mut rest = gradients;
    let mut sum = 0.0;
    for spec in variables {
        let (slice, after) = rest.split_at(spec.elements().min(rest.len()));
        rest = after;
        if spec.kind == VariableKind::Trainable {
            sum += sum_of_squares(slice);
        }
    }
    sum.sqrt() as f32
}

/// In eight sums, which the compiler computes side by side.
fn sum_of_squares(values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0_f64; 8];
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    sums.iter().sum::<f64>()
        + rest
            .iter()
            .map(|&value| f64::from(value) * f64::from(value))
            .sum::<f64>()
}

/// Sets the gradients of constant variables to 0.
pub fn clear_constants(gradients: &mut [f32], variables: &[VariableSpec]) {
    for (_, slice) in slices(gradients, variables).filter(|(spec, _)| spec.kind == VariableKind::Constant) {
        slice.fill(0.0);
    }
}

fn trainable<'a>(
    gradients: &'a mut [f32],
    variables: &'a [VariableSpec],
) -> impl Iterator<Item = (&'a VariableSpec, &'a mut [f32])> {
    slices(gradients, variables).filter(|(spec, _)| spec.kind == VariableKind::Trainable)
}

/// Each variable's part of a flat vector; empty where the vector is too short.
fn slices<'a>(
    mut rest: &'a mut [f32],
    variables: &'a [VariableSpec],
) -> impl Iterator<Item = (&'a VariableSpec, &'a mut [f32])> {
    variables.iter().map(move |spec| {
        let whole = std::mem::take(&mut rest);
        let (slice, after) = whole.split_at_mut(spec.elements().min(whole.len()));
        rest = after;
        (spec, slice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Vec<VariableSpec> {
        let spec = |name: &str, kind| VariableSpec {
            name: name.to_owned(),
            shape: vec![2],
            kind,
        };
        vec![
            spec("FeatureExtractor/Conv2d_0/weights", VariableKind::Trainable),
            spec(
                "FeatureExtractor/Conv2d_0/BatchNorm/moving_mean",
                VariableKind::MovingStatistic { decay: 0.9 },
            ),
            spec("BoxPredictor_0/BoxEncodingPredictor/weights", VariableKind::Trainable),
            spec("BoxPredictor_0/BoxEncodingPredictor/biases", VariableKind::Trainable),
        ]
    }

    fn patterns(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|&pattern| pattern.to_owned()).collect()
    }

    fn trained(frozen: &[&str], updated: &[&str]) -> Vec<usize> {
        let mut specs = variables();
        freeze(&mut specs, &patterns(frozen), &patterns(updated)).unwrap();
        (0..4).filter(|&i| specs[i].kind == VariableKind::Trainable).collect()
    }

    #[test]
    fn patterns_are_searched_for_anywhere() {
        assert_eq!(trained(&["Conv2d_0"], &[]), [2, 3]);
        assert_eq!(trained(&[], &["BoxPredictor"]), [2, 3]);
        assert_eq!(trained(&["biases$"], &["^BoxPredictor", ""]), [2]);
        assert_eq!(trained(&["^(?!BoxPredictor)"], &[]), [2, 3]);
    }

    #[test]
    fn moving_statistics_are_never_frozen() {
        let mut specs = variables();
        assert_eq!(freeze(&mut specs, &patterns(&["FeatureExtractor"]), &[]).unwrap(), 1);
        assert!(matches!(specs[1].kind, VariableKind::MovingStatistic { .. }));
    }

    #[test]
    fn broken_patterns_and_freezing_everything_are_refused() {
        let error = freeze(&mut variables(), &patterns(&["Conv(2d"]), &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("freeze_variables") && error.contains("Conv(2d"),
            "{error}"
        );
        assert!(matches!(
            freeze(&mut variables(), &patterns(&["."]), &[]),
            Err(Error::NothingToTrain { variables: 3, .. })
        ));
    }

    #[test]
    fn only_trainable_gradients_are_touched() {
        let mut gradients = [3.0, 0.0, 100.0, 100.0, 0.0, 0.0, 2.0, 0.0];
        multiply_biases(&mut gradients, &variables(), 2.0);
        assert_eq!(gradients, [3.0, 0.0, 100.0, 100.0, 0.0, 0.0, 4.0, 0.0]);
        assert_eq!(clip_by_global_norm(&mut gradients, &variables(), 0.5), 5.0);
        assert_eq!(gradients, [0.3, 0.0, 100.0, 100.0, 0.0, 0.0, 0.4, 0.0]);
    }

    #[test]
    fn small_and_broken_gradients_stay_as_they_are() {
        let mut gradients = [3.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0];
        assert!(clip_by_global_norm(&mut gradients, &variables(), 1.0).is_nan());
        assert_eq!(gradients[0], 3.0);
        gradients[1] = 0.0;
        assert_eq!(clip_by_global_norm(&mut gradients, &variables(), 10.0), 5.0);
        assert_eq!(clip_by_global_norm(&mut gradients, &variables(), 0.0), 5.0);
        assert_eq!(gradients[6], 4.0);
    }

    #[test]
    fn a_short_vector_does_not_panic() {
        assert_eq!(clip_by_global_norm(&mut [3.0], &variables(), 1.0), 3.0);
        clear_constants(&mut [], &variables());
    }
}
