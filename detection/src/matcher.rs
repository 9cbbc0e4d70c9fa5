//! Which anchor is trained on which groundtruth box.

/// What an anchor is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// The groundtruth box of this row.
    Row(usize),
    /// Background.
    Unmatched,
    /// Nothing.
    Ignored,
}

impl Match {
    /// The row that is matched.
    pub fn row(self) -> Option<usize> {
        match self {
            Self::Row(row) => Some(row),
            Self::Unmatched | Self::Ignored => None,
        }
    }
}

/// The message `Matcher`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Matcher {
    /// Each anchor takes the box most similar to it, if similar enough.
    ArgMax(ArgMax),
    /// Each box takes one anchor.
    Bipartite,
}

impl From<ArgMax> for Matcher {
    fn from(matcher: ArgMax) -> Self {
        Self::ArgMax(matcher)
    }
}

impl Matcher {
    /// Matches each column of `similarity` (`[rows, columns]`, row by row) to a row. What rows that are not `valid` cannot do, see
    /// [`ArgMax::match_columns`] and [`bipartite`].
    pub fn match_columns(&self, similarity: &[f32], columns: usize, valid: impl Fn(usize) -> bool) -> Vec<Match> {
        match self {
            Self::ArgMax(matcher) => matcher.match_columns(similarity, columns, valid),
            Self::Bipartite => bipartite(similarity, columns, valid),
        }
    }
}

/// Of all pairs of a valid row and a column that are still free, the most similar one is matched, again and again, until no row or
/// no column is left: the message `BipartiteMatcher`. The lowest row, then the lowest column wins ties; NaN is never matched. All
/// other columns are unmatched, none is ignored.
pub fn bipartite(similarity: &[f32], columns: usize, valid: impl Fn(usize) -> bool) -> Vec<Match> {
    let mut matches = vec![Match::Unmatched; columns];
    if columns == 0 {
        return matches;
    }
    let best = |values: &[f32], matches: &[Match]| {
        let free = values.iter().zip(matches).enumerate();
        let free = free.filter(|(_, (value, found))| **found == Match::Unmatched && !value.is_nan());
        let most = |best: Option<(usize, f32)>, (column, (&value, _)): (usize, (&f32, &Match))| match best {
            Some((_, most)) if most >= value => best,
            _ => Some((column, value)),
        };
        free.fold(None, most)
    };
    // (row, its best free column, how similar); looked for again only where somebody else took the column.
    let mut open: Vec<(usize, usize, f32)> = similarity
        .chunks_exact(columns)
        .enumerate()
        .filter(|(row, _)| valid(*row))
        .filter_map(|(row, values)| best(values, &matches).map(|(column, value)| (row, column, value)))
        .collect();
    while !open.is_empty() {
        let at = (1..open.len()).fold(0, |at, other| if open[other].2 > open[at].2 { other } else { at });
        let (row, column, _) = open.remove(at);
        matches[column] = Match::Row(row);
        open.retain_mut(|(row, own, value)| {
            if *own == column {
                match best(&similarity[*row * columns..(*row + 1) * columns], &matches) {
                    Some(next) => (*own, *value) = next,
                    None => return false,
                }
            }
            true
        });
    }
    matches
}

/// Each anchor takes the box most similar to it, if similar enough: the message `ArgMaxMatcher`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArgMax {
    /// `None` (`ignore_thresholds`): every anchor is matched.
    pub thresholds: Option<Thresholds>,
    /// Each box gets its most similar anchor at least.
    pub force_match_for_each_row: bool,
}

/// What similarity makes a match.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Matched at or above.
    pub matched: f32,
    /// At most `matched`; the other two kinds of anchors part here.
    pub unmatched: f32,
    /// Anchors below `unmatched` are background and those between are ignored; otherwise the other way round.
    pub negatives_lower_than_unmatched: bool,
}

impl Thresholds {
    fn judge(&self, row: usize, similarity: f32) -> Match {
        let lower = similarity < self.unmatched;
        if similarity >= self.matched && !lower {
            Match::Row(row)
        } else if lower == self.negatives_lower_than_unmatched {
            Match::Unmatched
        } else {
            Match::Ignored
        }
    }
}

impl ArgMax {
    /// Matches each column of `similarity` (`[rows, columns]`, row by row) to a row. The lowest row and the lowest column win ties;
    /// where two rows claim a column by force, the lower row has it. Rows that are not `valid` claim nothing by force, but can still be
    /// a column's most similar row. NaN is less similar than anything.
    pub fn match_columns(&self, similarity: &[f32], columns: usize, valid: impl Fn(usize) -> bool) -> Vec<Match> {
        if columns == 0 || similarity.len() < columns {
            return vec![Match::Unmatched; columns];
        }
        let mut best = vec![(0, f32::NEG_INFINITY); columns];
        for (row, values) in similarity.chunks_exact(columns).enumerate() {
            for (best, &value) in best.iter_mut().zip(values) {
                if value > best.1 {
                    *best = (row, value);
                }
            }
        }
        let judge = |&(row, value): &(usize, f32)| match self.thresholds {
            Some(thresholds) => thresholds.judge(row, value),
            None => Match::Row(row),
        };
        let mut matches: Vec<Match> = best.iter().map(judge).collect();
        if self.force_match_for_each_row {
            for (row, values) in similarity.chunks_exact(columns).enumerate().rev() {
                if let Some(column) = arg_max(values).filter(|_| valid(row)) {
                    matches[column] = Match::Row(row);
                }
            }
        }
        matches
    }
}

/// The lowest index of the largest value; none if all are NaN.
fn arg_max(values: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (i, &value) in values.iter().enumerate() {
        if best.map_or(!value.is_nan(), |(_, most)| value > most) {
            best = Some((i, value));
        }
    }
    best.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: ArgMax = ArgMax {
        thresholds: Some(Thresholds {
            matched: 0.5,
            unmatched: 0.5,
            negatives_lower_than_unmatched: true,
        }),
        force_match_for_each_row: true,
    };

    #[test]
    fn nothing_to_match() {
        assert_eq!(STOCK.match_columns(&[], 2, |_| true), [Match::Unmatched; 2]);
        assert_eq!(STOCK.match_columns(&[], 0, |_| true), []);
    }

    #[test]
    fn each_box_takes_one_anchor() {
        let rows = |similarity: &[f32], columns, valid: &dyn Fn(usize) -> bool| -> Vec<Option<usize>> {
            bipartite(similarity, columns, valid)
                .into_iter()
                .map(Match::row)
                .collect()
        };
        // Both rows like column 1 best; the first one likes it more, the second one takes what is left.
        let similarity = [0.5, 0.9, 0.1, 0.4, 0.8, 0.3];
        assert_eq!(rows(&similarity, 3, &|_| true), [Some(1), Some(0), None]);
        assert_eq!(rows(&similarity, 3, &|row| row == 1), [None, Some(1), None]);
        // More rows than columns, ties, NaN.
        assert_eq!(rows(&[0.2, 0.2, 0.2], 1, &|_| true), [Some(0)]);
        assert_eq!(rows(&[0.2, 0.2], 2, &|_| true), [Some(0), None]);
        assert_eq!(rows(&[f32::NAN, f32::NAN], 2, &|_| true), [None, None]);
        assert_eq!(rows(&[-3.0, -1.0, -2.0, -5.0], 2, &|_| true), [Some(1), Some(0)]);
        assert_eq!(rows(&[], 2, &|_| true), [None, None]);
        assert!(rows(&[], 0, &|_| true).is_empty());
    }

    #[test]
    fn nan_is_never_similar() {
        let nan = f32::NAN;
        assert_eq!(STOCK.match_columns(&[nan, nan], 2, |_| true), [Match::Unmatched; 2]);
        assert_eq!(
            STOCK.match_columns(&[nan, 0.1, 0.7, nan], 2, |_| true),
            [Match::Row(1), Match::Row(0)]
        );
    }

    #[test]
    fn the_threshold_itself_matches() {
        let plain = ArgMax {
            force_match_for_each_row: false,
            ..STOCK
        };
        assert_eq!(
            plain.match_columns(&[0.5, 0.499_99], 2, |_| true),
            [Match::Row(0), Match::Unmatched]
        );
    }
}
