//! Mistakes and the exact words about them.

use super::super::tests::GOLDEN;
use crate::config::PipelineConfig;

fn complaint(source: &str) -> String {
    PipelineConfig::parse(source, "pipeline.config")
        .unwrap_err()
        .to_string()
}

/// The golden configuration with one text replaced.
fn spoiled(from: &str, to: &str) -> String {
    assert!(GOLDEN.contains(from));
    complaint(&GOLDEN.replacen(from, to, 1))
}

#[test]
fn unknown_field() {
    assert_eq!(
        spoiled("num_classes", "num_clases"),
        "\
pipeline.config:5:5: unknown field `num_clases` in `Ssd`
  5 |     num_clases: 3
    |     ^^^^^^^^^^
hint: did you mean `num_classes`?"
    );
    assert_eq!(
        complaint("modle { }"),
        "\
pipeline.config:1:1: unknown field `modle` at the top level
  1 | modle { }
    | ^^^^^
hint: did you mean `model`?"
    );
}

#[test]
fn field_of_another_message() {
    assert_eq!(
        complaint("train_config {\n\tnum_epochs: 3\n}\n"),
        "\
pipeline.config:2:2: unknown field `num_epochs` in `TrainConfig`
  2 | \tnum_epochs: 3
    | \t^^^^^^^^^^
hint: `num_epochs` belongs in `InputReader`"
    );
}

#[test]
fn field_that_no_longer_exists() {
    let text = complaint("model { ssd { feature_extractor { batch_norm_trainable: true } } }");
    assert!(
        text.ends_with("hint: it was replaced by `conv_hyperparams { batch_norm { train: … } }`"),
        "{text}"
    );
}

#[test]
fn unknown_enum_value() {
    assert_eq!(
        spoiled("RELU_6", "RELU6"),
        "\
pipeline.config:41:21: `RELU6` is not a value of `activation`
  41 |         activation: RELU6
     |                     ^^^^^
hint: did you mean `RELU_6`? (one of NONE, RELU, RELU_6, SWISH)"
    );
    assert!(spoiled("RELU_6", "\"RELU_6\"").ends_with("hint: write RELU_6 without quotes"));
}

#[test]
fn wrong_types() {
    assert_eq!(
        complaint("model { ssd { num_classes: \"3\" } }"),
        "\
pipeline.config:1:28: `num_classes` is a whole number, not \"3\"
  1 | model { ssd { num_classes: \"3\" } }
    |                            ^^^
hint: write 3 without quotes"
    );
    assert_eq!(
        complaint("train_config { batch_size: -1 }"),
        "\
pipeline.config:1:28: `batch_size` is a whole number from 0, and -1 is out of its range
  1 | train_config { batch_size: -1 }
    |                            ^^
hint: it runs from 0 to 4294967295"
    );
    let text = complaint("train_config { batch_size: 1e3 sync_replicas: ture fine_tune_checkpoint: a }");
    assert!(
        text.contains("`batch_size` is a whole number from 0, not 1e3\n"),
        "{text}"
    );
    assert!(text.contains("`sync_replicas` is a boolean, not ture\n"), "{text}");
    assert!(text.contains("hint: write true\n"), "{text}");
    assert!(
        text.contains("hint: put it in quotes: `fine_tune_checkpoint: \"a\"`"),
        "{text}"
    );
    let text = complaint("model: 3 train_config { batch_size { } num_steps: [1, 2] }");
    assert!(
        text.contains("`model` is a message (`DetectionModel`), not a value\n"),
        "{text}"
    );
    assert!(
        text.contains("`batch_size` is a whole number from 0, not a message\n"),
        "{text}"
    );
    assert!(text.contains("`num_steps` takes one value, not a list\n"), "{text}");
}

#[test]
fn missing_brace() {
    let source = "model {\n  ssd {\n    num_classes: 3\n}\ntrain_config {\n}\n";
    assert_eq!(
        complaint(source),
        "\
pipeline.config:2:3: a `}` is missing; going by the indentation, `ssd` is not closed
  2 |   ssd {
    |   ^^^
hint: add the missing `}`"
    );
    assert_eq!(
        complaint("model {\n"),
        "\
pipeline.config:1:7: this `{` is never closed
  1 | model {
    |       ^
hint: add the missing `}`"
    );
    assert_eq!(
        complaint("model { } }"),
        "\
pipeline.config:1:11: `}` closes nothing
  1 | model { } }
    |           ^
hint: remove it, or open the message that it was to close"
    );
}

#[test]
fn other_mistakes_of_form() {
    let first = |source: &str| complaint(source).lines().next().unwrap_or_default().to_owned();
    assert_eq!(first("model = 3"), "pipeline.config:1:7: unexpected character '='");
    assert_eq!(
        first("train_config { num_steps 3 }"),
        "pipeline.config:1:16: `num_steps` has no value"
    );
    assert_eq!(
        first("train_config { num_steps: }"),
        "pipeline.config:1:16: `num_steps` has no value"
    );
    assert_eq!(
        first("train_config { fine_tune_checkpoint: \"a\n}"),
        "pipeline.config:1:38: this text has no closing quote on its line"
    );
    assert_eq!(
        first("[a.b] { }"),
        "pipeline.config:1:1: unknown extension `[a.b]` of `TrainEvalPipelineConfig`"
    );
    // What only the second pass notices is told as well.
    assert_eq!(
        first("train_config { fine_tune_checkpoint: \"\\q\" }"),
        "pipeline.config:1:39: invalid string escape"
    );
}

#[test]
fn all_mistakes_are_told() {
    let text = complaint(
        &GOLDEN
            .replace("weight:", "wieght:")
            .replace("shuffle: false", "shuffle: no"),
    );
    assert_eq!(text.matches("hint: did you mean `weight`?").count(), 2, "{text}");
    assert!(text.contains("`shuffle` is a boolean, not no"), "{text}");
    let many = "a: 1\n".repeat(25);
    assert!(complaint(&many).ends_with("\n\n… and 5 more mistakes in pipeline.config"));
}

#[test]
fn set_twice() {
    assert_eq!(
        complaint("model {\n  ssd { }\n  faster_rcnn { }\n}\ntrain_config { }\ntrain_config { }"),
        "\
pipeline.config:3:3: `faster_rcnn` and `ssd` (line 2) exclude each other in `DetectionModel`
  3 |   faster_rcnn { }
    |   ^^^^^^^^^^^
hint: keep one of them

pipeline.config:6:1: `train_config` is set twice, first on line 5
  6 | train_config { }
    | ^^^^^^^^^^^^
hint: keep one of them"
    );
}
