//! Which variables of a model start from another checkpoint: the reference's `restore_map` and
//! `variables_helper.get_variables_available_in_checkpoint`.
//!
//! A pure decision: the model's variables and the checkpoint's entries go in, a row for each variable comes out.

use std::collections::{BTreeMap, BTreeSet};

use coati_common::variables::VariableSpec;
use serde::Serialize;

use crate::bundle::{DataType, Entry, dtype_name};

/// The scope of a model's feature extractor (`SSDMetaArch._extract_features_scope`).
pub const FEATURE_EXTRACTOR: &str = "FeatureExtractor";

/// Endings of variables that optimisers and averages add to a checkpoint; no model has them.
const SLOTS: [&str; 6] = [
    "/ExponentialMovingAverage",
    "/Momentum",
    "/RMSProp",
    "/RMSProp_1",
    "/Adam",
    "/Adam_1",
];

/// `train_config.fine_tune_checkpoint_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A classifier's checkpoint: the feature extractor's variables, without the scope `FeatureExtractor/` in their names.
    Classification,
    /// A detector's checkpoint: the feature extractor's variables under their own names.
    Detection,
    /// A detector's checkpoint: all variables, those of the box predictors too (`load_all_detection_checkpoint_vars`).
    Full,
}

impl Kind {
    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Detection => "detection",
            Self::Full => "full",
        }
    }

    /// The name that `variable` has in the checkpoint; `None`: it is not asked for.
    pub fn key(self, variable: &str) -> Option<String> {
        match self {
            Self::Full => Some(variable.to_owned()),
            // The reference looks at the beginning of the name, not at the scope.
            Self::Detection => variable.starts_with(FEATURE_EXTRACTOR).then(|| variable.to_owned()),
            Self::Classification => {
                let scope = format!("{FEATURE_EXTRACTOR}/");
                // All occurrences go, as with the reference's `str.replace`.
                variable.starts_with(&scope).then(|| variable.replace(&scope, ""))
            }
        }
    }
}

/// What becomes of a variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Verdict {
    /// Read from the checkpoint.
    Restored,
    /// This kind of restoring leaves it alone.
    NotAsked,
    /// The checkpoint has no such variable.
    Missing,
    /// The checkpoint's has another shape.
    Shape {
        /// In the checkpoint.
        found: Vec<i64>,
    },
    /// The checkpoint's is not float32.
    Type {
        /// In the checkpoint.
        found: &'static str,
    },
}

/// A variable of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// In the model.
    pub variable: String,
    /// Of the model's.
    pub shape: Vec<i64>,
    /// In the checkpoint, where it is asked for.
    pub key: Option<String>,
    /// What becomes of it.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Row {
    /// The verdict in words.
    pub fn reason(&self) -> String {
        match &self.verdict {
            Verdict::Restored => "restored".to_owned(),
            Verdict::NotAsked => "not asked for".to_owned(),
            Verdict::Missing => "not in the checkpoint".to_owned(),
            Verdict::Shape { found } => format!("shape {found:?} in the checkpoint, {:?} in the model", self.shape),
            Verdict::Type { found } => format!("{found} in the checkpoint, float32 in the model"),
        }
    }

    fn restored(&self) -> bool {
        self.verdict == Verdict::Restored
    }
}

/// What becomes of each variable of a model, in the model's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// How it was asked.
    pub kind: Kind,
    /// One a variable.
    pub rows: Vec<Row>,
    /// Variables of the checkpoint that nothing takes, without slots, averages and `global_step`.
    pub unused: Vec<String>,
}

/// Decides which of the model's `variables` are read from the checkpoint that has these `entries`.
pub fn plan<'a>(variables: &[VariableSpec], entries: impl Iterator<Item = &'a Entry>, kind: Kind) -> Plan {
    let entries: BTreeMap<&str, &Entry> = entries.map(|entry| (entry.name.as_str(), entry)).collect();
    let judge = |key: &str, shape: &[i64]| match entries.get(key) {
        // `global_step` is the job's own, whatever the checkpoint counts (`include_global_step=False`).
        _ if key == "global_step" => Verdict::NotAsked,
        None => Verdict::Missing,
        Some(entry) if entry.shape != shape => Verdict::Shape {
            found: entry.shape.clone(),
        },
        Some(entry) if entry.dtype != DataType::DtFloat => Verdict::Type {
            found: dtype_name(entry.dtype),
        },
        Some(_) => Verdict::Restored,
    };
    let rows: Vec<Row> = variables
        .iter()
        .map(|spec| {
            let key = kind.key(&spec.name);
            Row {
                verdict: key.as_deref().map_or(Verdict::NotAsked, |key| judge(key, &spec.shape)),
                variable: spec.name.clone(),
                shape: spec.shape.clone(),
                key,
            }
        })
        .collect();
    let taken: BTreeSet<&str> = rows.iter().filter_map(|row| row.key.as_deref()).collect();
    let own =
        |name: &&str| !taken.contains(name) && *name != "global_step" && !SLOTS.iter().any(|slot| name.ends_with(slot));
    let unused = entries.keys().copied().filter(own).map(str::to_owned).collect();
    Plan { kind, rows, unused }
}

/// A group of variables in a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The first two parts of the names.
    pub scope: String,
    /// Variables that are restored.
    pub restored: usize,
    /// Variables that are not, for each reason.
    pub skipped: BTreeMap<&'static str, usize>,
}

impl Plan {
    /// How many variables are restored.
    pub fn restored(&self) -> usize {
        self.rows.iter().filter(|row| row.restored()).count()
    }

    /// Variables by scope, in order of their first.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for row in &self.rows {
            let scope = scope(&row.variable);
            let at = groups.iter().position(|group| group.scope == scope).unwrap_or_else(|| {
                groups.push(Group {
                    scope: scope.to_owned(),
                    ..Group::default()
                });
                groups.len() - 1
            });
            let why = match row.verdict {
                Verdict::Restored => {
                    groups[at].restored += 1;
                    continue;
                }
                Verdict::NotAsked => "not asked for",
                Verdict::Missing => "not in the checkpoint",
                Verdict::Shape { .. } => "other shape",
                Verdict::Type { .. } => "not float32",
            };
            *groups[at].skipped.entry(why).or_default() += 1;
        }
        groups
    }

    /// The table that people read: a line a scope, then each variable that was asked for and did not fit (the first `most`).
    pub fn table(&self, most: usize) -> Vec<String> {
        let groups = self.groups();
        let width = groups.iter().map(|group| group.scope.len()).max().unwrap_or(0).max(5);
        let mut lines = vec![format!("  {:width$}  restored  skipped", "scope")];
        for group in &groups {
            let skipped: usize = group.skipped.values().sum();
            let why: Vec<String> = group
                .skipped
                .iter()
                .map(|(why, count)| format!("{count} {why}"))
                .collect();
            let line = format!(
                "  {:width$}  {:8}  {skipped:7}  {}",
                group.scope,
                group.restored,
                why.join(", ")
            );
            lines.push(line.trim_end().to_owned());
        }
        let odd: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| !matches!(row.verdict, Verdict::Restored | Verdict::NotAsked))
            .collect();
        lines.extend(
            odd.iter()
                .take(most)
                .map(|row| format!("  {}: {}", row.variable, row.reason())),
        );
        if odd.len() > most {
            lines.push(format!("  and {} more", odd.len() - most));
        }
        lines
    }

    /// All rows as text with tabs: variable, shape, name in the checkpoint, what became of it.
    pub fn tsv(&self) -> String {
        let mut text = "variable\tshape\tin the checkpoint\tresult\n".to_owned();
        for row in &self.rows {
            let key = row.key.as_deref().unwrap_or("-");
            text += &format!("{}\t{:?}\t{key}\t{}\n", row.variable, row.shape, row.reason());
        }
        for name in &self.unused {
            text += &format!("-\t-\t{name}\tnot used\n");
        }
        text
    }

    /// What to try where nothing fits: a kind that would restore something.
    pub fn better_kind(variables: &[VariableSpec], entries: &[&Entry], tried: Kind) -> Option<(Kind, usize)> {
        [Kind::Detection, Kind::Classification, Kind::Full]
            .into_iter()
            .filter(|kind| *kind != tried)
            .map(|kind| (kind, plan(variables, entries.iter().copied(), kind).restored()))
            .find(|(_, restored)| *restored > 0)
    }
}

/// The first two parts of a name: `FeatureExtractor/MobilenetV1`, `BoxPredictor_0`.
fn scope(name: &str) -> &str {
    let first = name.find('/').unwrap_or(name.len());
    if !name.starts_with(FEATURE_EXTRACTOR) {
        return &name[..first];
    }
    let second = name.get(first + 1..).and_then(|rest| rest.find('/'));
    second.map_or(&name[..first], |second| &name[..first + 1 + second])
}

#[cfg(test)]
mod tests {
    use coati_common::variables::VariableKind;

    use super::*;

    fn variable(name: &str, shape: &[i64]) -> VariableSpec {
        VariableSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind: VariableKind::Trainable,
        }
    }

    fn entry(name: &str, dtype: DataType, shape: &[i64]) -> Entry {
        Entry {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            slices: Vec::new(),
        }
    }

    fn verdicts(plan: &Plan) -> Vec<Verdict> {
        plan.rows.iter().map(|row| row.verdict.clone()).collect()
    }

    #[test]
    fn each_kind_takes_what_the_reference_takes() {
        let variables = [
            variable("FeatureExtractor/MobilenetV1/Conv2d_0/weights", &[3, 3, 3, 8]),
            variable("FeatureExtractorOther/x", &[1]),
            variable("BoxPredictor_0/ClassPredictor/biases", &[12]),
        ];
        let float = DataType::DtFloat;
        let detector = [
            entry("FeatureExtractor/MobilenetV1/Conv2d_0/weights", float, &[3, 3, 3, 8]),
            entry(
                "FeatureExtractor/MobilenetV1/Conv2d_0/weights/Momentum",
                float,
                &[3, 3, 3, 8],
            ),
            entry("BoxPredictor_0/ClassPredictor/biases", float, &[21]),
            entry("Other/weights", float, &[1]),
            entry("global_step", DataType::DtInt64, &[]),
        ];
        let found = plan(&variables, detector.iter(), Kind::Detection);
        assert_eq!(
            verdicts(&found),
            [Verdict::Restored, Verdict::Missing, Verdict::NotAsked]
        );
        assert_eq!(found.unused, ["BoxPredictor_0/ClassPredictor/biases", "Other/weights"]);
        let found = plan(&variables, detector.iter(), Kind::Full);
        let shape = Verdict::Shape { found: vec![21] };
        assert_eq!(verdicts(&found), [Verdict::Restored, Verdict::Missing, shape]);
        let found = plan(&variables, detector.iter(), Kind::Classification);
        assert_eq!(found.restored(), 0);
        assert_eq!(
            Plan::better_kind(&variables, &detector.iter().collect::<Vec<_>>(), Kind::Classification),
            Some((Kind::Detection, 1))
        );

        let classifier = [
            entry("MobilenetV1/Conv2d_0/weights", DataType::DtHalf, &[3, 3, 3, 8]),
            entry("MobilenetV1/Logits/biases", float, &[1001]),
        ];
        let found = plan(&variables, classifier.iter(), Kind::Classification);
        assert_eq!(
            verdicts(&found),
            [Verdict::Type { found: "float16" }, Verdict::NotAsked, Verdict::NotAsked]
        );
        assert_eq!(found.unused, ["MobilenetV1/Logits/biases"]);
    }

    #[test]
    fn the_table_counts_by_scope_and_names_what_did_not_fit() {
        let variables = [
            variable("FeatureExtractor/MobilenetV1/a", &[1]),
            variable("FeatureExtractor/MobilenetV1/b", &[2]),
            variable("BoxPredictor_0/c", &[1]),
        ];
        let float = DataType::DtFloat;
        let entries = [
            entry("FeatureExtractor/MobilenetV1/a", float, &[1]),
            entry("FeatureExtractor/MobilenetV1/b", float, &[3]),
        ];
        let found = plan(&variables, entries.iter(), Kind::Detection);
        assert_eq!(
            found.table(5),
            [
                "  scope                         restored  skipped",
                "  FeatureExtractor/MobilenetV1         1        1  1 other shape",
                "  BoxPredictor_0                       0        1  1 not asked for",
                "  FeatureExtractor/MobilenetV1/b: shape [3] in the checkpoint, [2] in the model",
            ]
        );
        assert_eq!(found.table(0).last().unwrap(), "  and 1 more");
        assert_eq!(found.tsv().lines().count(), 4);
    }

    #[test]
    fn the_step_is_never_restored() {
        let entries = [entry("global_step", DataType::DtFloat, &[])];
        let found = plan(&[variable("global_step", &[])], entries.iter(), Kind::Full);
        assert_eq!((found.restored(), found.unused.len()), (0, 0));
    }
}
