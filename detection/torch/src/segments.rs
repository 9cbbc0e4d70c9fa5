//! Where a network's backward pass is cut, so that some gradients are complete, and may be summed over ranks, while others are still to come.
//!
//! A segment is a run of layers. Its backward pass is one call of libtorch, from the slopes of what later segments read of it; after that call
//! the gradients of its variables are final, but for those that an earlier segment uses as well.

use coati_detection::network::plan::{Layer, Plan};

use crate::error::Error;

/// A network's layers and variables by segments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segments {
    /// Of each layer, ascending: where it reads.
    pub(crate) of_layer: Vec<usize>,
    /// Where its output is: one further where its batch norm waits for other replicas.
    pub(crate) of_output: Vec<usize>,
    /// Of each variable the one after whose backward pass its gradient is complete; none where no layer uses it.
    pub(crate) of_variable: Vec<Option<usize>>,
    /// The variables that each segment's layers use, ascending.
    pub(crate) uses: Vec<Vec<usize>>,
}

/// Where the backward pass is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cuts {
    /// Where the variables behind the last cut come to so many bytes, beginning at the network's end.
    pub(crate) bytes: Option<usize>,
    /// Before each batch norm with everybody's statistics.
    pub(crate) together: bool,
}

/// Whether a layer's statistics are everybody's, where there are others.
pub(crate) fn is_shared(layer: &Layer) -> bool {
    layer.norm.is_some_and(|norm| norm.sync && norm.train)
}

impl Segments {
    /// Cuts a network, whose variables begin at `starts`.
    pub(crate) fn cut(plan: &Plan, starts: &[usize], cuts: Cuts) -> Result<Self, Error> {
        let used = plan.layers.iter().map(|layer| Used::of(layer, starts));
        let used: Vec<Used> = used.collect::<Result<_, _>>()?;
        // Backwards, a variable is complete with the first layer that uses it.
        let mut first: Vec<Option<usize>> = vec![None; starts.len()];
        for (index, used) in used.iter().enumerate() {
            for &variable in used.before.iter().chain(&used.after) {
                first[variable].get_or_insert(index);
            }
        }
        let mut from_end = Vec::with_capacity(plan.layers.len());
        let (mut segment, mut held) = (0, 0);
        for (index, (layer, used)) in plan.layers.iter().zip(&used).enumerate().rev() {
            if cuts.bytes.is_some_and(|bytes| held >= bytes.max(1)) {
                (segment, held) = (segment + 1, 0);
            }
            let output = segment;
            if cuts.together && is_shared(layer) {
                (segment, held) = (segment + 1, 0);
            }
            from_end.push((segment, output));
            let variables = used.before.iter().chain(&used.after);
            let complete = variables.filter(|&&variable| first[variable] == Some(index));
            held += complete
                .map(|&variable| plan.variables[variable].elements() * size_of::<f32>())
                .sum::<usize>();
        }
        from_end.reverse();
        let forward = |from_end: usize| segment - from_end;
        let of_layer: Vec<usize> = from_end.iter().map(|&(layer, _)| forward(layer)).collect();
        let of_output: Vec<usize> = from_end.iter().map(|&(_, output)| forward(output)).collect();
        let mut uses = vec![Vec::new(); segment + 1];
        for (index, used) in used.iter().enumerate() {
            uses[of_layer[index]].extend_from_slice(&used.before);
            uses[of_output[index]].extend_from_slice(&used.after);
        }
        let mut of_variable = vec![None; starts.len()];
        for (segment, used) in uses.iter_mut().enumerate() {
            used.sort_unstable();
            used.dedup();
            for &variable in used.iter() {
                of_variable[variable].get_or_insert(segment);
            }
        }
        Ok(Self {
            of_layer,
            of_output,
            of_variable,
            uses,
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.uses.len()
    }

    /// Runs of neighbours among the variables that `wanted` says yes to and that a segment's backward pass completes.
    pub(crate) fn runs(&self, segment: usize, wanted: impl Fn(usize) -> bool) -> Vec<std::ops::Range<usize>> {
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for (variable, of) in self.of_variable.iter().enumerate() {
            if *of != Some(segment) || !wanted(variable) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == variable => run.end += 1,
                _ => runs.push(variable..variable + 1),
            }
        }
        runs
    }
}

/// The variables of a layer.
struct Used {
    before: Vec<usize>,
    /// Those of its normalisation, moving statistics among them.
    after: Vec<usize>,
}

impl Used {
    fn of(layer: &Layer, starts: &[usize]) -> Result<Self, Error> {
        let weights = layer
            .weights
            .iter()
            .flat_map(|weights| [Some(weights.offset), weights.bias]);
        let norm = layer.norm.iter();
        let norm = norm.flat_map(|norm| [norm.gamma, norm.beta, Some(norm.mean), Some(norm.variance)]);
        let affine = layer.affine.iter();
        let affine = affine.flat_map(|affine| [Some(affine.gamma), Some(affine.beta)]);
        let found = |offset: usize| starts.binary_search(&offset).map_err(|_| Error::NoVariable(offset));
        Ok(Self {
            before: weights.flatten().map(found).collect::<Result<_, _>>()?,
            after: norm.chain(affine).flatten().map(found).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use coati_detection::network::NetworkConfig;
    use coati_detection::network::plan::plan;

    use super::*;

    #[test]
    fn segments_cover_all_and_complete_each_variable_once() {
        let config = NetworkConfig::ssd_mobilenet_v1(3);
        let plan = plan(&config).unwrap();
        let mut starts = Vec::new();
        let mut start = 0;
        for spec in &plan.variables {
            starts.push(start);
            start += spec.elements();
        }
        let whole = Segments::cut(&plan, &starts, Cuts::default()).unwrap();
        assert_eq!(whole.count(), 1);
        assert_eq!(whole.runs(0, |_| true), vec![0..starts.len()]);
        let bytes = Cuts {
            bytes: Some(1 << 20),
            together: false,
        };
        let cut = Segments::cut(&plan, &starts, bytes).unwrap();
        assert!(cut.count() > 4, "{}", cut.count());
        assert!(cut.of_layer.is_sorted() && cut.of_layer[0] == 0);
        let mut elements = 0;
        for segment in 0..cut.count() {
            for run in cut.runs(segment, |_| true) {
                elements += run.map(|variable| plan.variables[variable].elements()).sum::<usize>();
            }
        }
        assert_eq!(elements, plan.elements);
        for (variable, of) in cut.of_variable.iter().enumerate() {
            let earliest = (0..cut.count()).find(|&segment| cut.uses[segment].contains(&variable));
            assert_eq!(*of, earliest);
        }
    }
}
