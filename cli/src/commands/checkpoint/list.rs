//! `coati checkpoint list`

use anyhow::Context as _;
use coati_checkpoint::contents::{self, Statistics, Tensor};
use coati_checkpoint::locate;
use serde_json::json;

use crate::args::{CheckpointListArgs, Format};
use crate::console::report;

pub(super) fn run(args: &CheckpointListArgs) -> anyhow::Result<()> {
    let reader = locate::open(&args.prefix)?;
    let tensors = contents::list(&reader, !args.no_statistics)?;
    let elements = tensors
        .iter()
        .fold(0u64, |sum, tensor| sum.saturating_add(tensor.elements));
    if args.format == Format::Json {
        let all = json!({"prefix": args.prefix, "tensors": tensors, "elements": elements});
        report(&serde_json::to_string(&all).context("the list")?);
        return Ok(());
    }
    for line in table(&tensors) {
        report(&line);
    }
    report(&format!("{} tensors, {elements} elements", tensors.len()));
    Ok(())
}

/// Columns as wide as what stands in them.
fn table(tensors: &[Tensor]) -> Vec<String> {
    let shapes: Vec<String> = tensors.iter().map(|tensor| format!("{:?}", tensor.shape)).collect();
    let widest = |least: usize, lengths: &mut dyn Iterator<Item = usize>| lengths.fold(least, usize::max);
    let name = widest(4, &mut tensors.iter().map(|tensor| tensor.name.len()));
    let shape = widest(5, &mut shapes.iter().map(String::len));
    let figures = tensors.iter().any(|tensor| tensor.statistics.is_some());
    let mut heading = format!("{:name$}  {:9}  {:8}  {:shape$}", "name", "kind", "type", "shape");
    if figures {
        heading += &format!("  {:>10}  {:>10}  {:>10}  {:>10}", "mean", "stddev", "min", "max");
    }
    let mut lines = vec![heading.trim_end().to_owned()];
    for (tensor, shape_text) in tensors.iter().zip(&shapes) {
        let mut line = format!(
            "{:name$}  {:9}  {:8}  {shape_text:shape$}",
            tensor.name,
            tensor.kind.name(),
            tensor.dtype
        );
        if let Some(found) = &tensor.statistics {
            line += &numbers(found);
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

fn numbers(found: &Statistics) -> String {
    let mut text: String = [found.mean, found.stddev, found.min, found.max]
        .iter()
        .map(|value| format!("  {:>10}", short(*value)))
        .collect();
    if found.not_finite > 0 {
        text += &format!("  {} not finite", found.not_finite);
    }
    text
}

/// Four digits that count.
fn short(value: f64) -> String {
    let size = value.abs();
    if value == value.trunc() && size < 1e9 {
        format!("{value:.0}")
    } else if (1e-3..1e6).contains(&size) {
        let digits = (3 - size.log10().floor() as i32).clamp(0, 7) as usize;
        format!("{value:.digits$}")
    } else {
        format!("{value:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use coati_checkpoint::contents::Kind;

    use super::*;

    #[test]
    fn numbers_keep_four_digits() {
        for (value, text) in [
            (0.0, "0"),
            (2000.0, "2000"),
            (0.123_456, "0.1235"),
            (-12.345, "-12.35"),
            (1.5e-7, "1.500e-7"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn a_table_without_figures_has_no_columns_for_them() {
        let tensor = Tensor {
            name: "a/weights".to_owned(),
            kind: Kind::of("a/weights"),
            dtype: "float32",
            shape: vec![3, 4],
            elements: 12,
            slices: 1,
            statistics: None,
        };
        assert_eq!(
            table(std::slice::from_ref(&tensor)),
            [
                "name       kind       type      shape",
                "a/weights  variable   float32   [3, 4]"
            ]
        );
        let statistics = Statistics::of([1.0, f64::NAN].into_iter());
        let lines = table(&[Tensor { statistics, ..tensor }]);
        assert!(
            lines[0].ends_with("max") && lines[1].ends_with("1 not finite"),
            "{lines:?}"
        );
    }
}
