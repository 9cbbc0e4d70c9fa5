//! What a network keeps from step to step, so that a step allocates nothing large.

use super::error::Error;
use super::memory;
use super::plan::{Layer, Plan};
use crate::kernels::rows::{Activation, NormGradient};

/// Normalisation of one layer, per stored channel; channels added as padding are zero throughout.
#[derive(Debug, Default)]
pub(crate) struct NormState {
    /// `scale`, `shift`, `mean`, `inverse standard deviation`, `batch mean`, `unbiased batch variance`, `k1`, `k2`, `k3`.
    parts: [Vec<f32>; 9],
}

macro_rules! parts {
    ($($name:ident $mutable:ident = $index:literal),*) => {
        $(
            pub(crate) fn $name(&self) -> &[f32] {
                &self.parts[$index]
            }
            pub(crate) fn $mutable(&mut self) -> &mut [f32] {
                &mut self.parts[$index]
            }
        )*
    };
}

impl NormState {
    fn new(channels: usize) -> Self {
        Self {
            parts: std::array::from_fn(|_| vec![0.0; channels]),
        }
    }

    parts!(
        scale scale_mut = 0,
        shift shift_mut = 1,
        mean mean_mut = 2,
        inverse inverse_mut = 3,
        batch_mean batch_mean_mut = 4,
        batch_variance batch_variance_mut = 5,
        k1 k1_mut = 6,
        k2 k2_mut = 7,
        k3 k3_mut = 8
    );

    pub(crate) fn activation(&self, activation: super::config::Activation) -> Activation {
        Activation {
            scale: self.scale().as_ptr(),
            shift: self.shift().as_ptr(),
            function: activation.into(),
        }
    }

    pub(crate) fn gradient(&self) -> NormGradient {
        NormGradient {
            k1: self.k1().as_ptr(),
            k2: self.k2().as_ptr(),
            k3: self.k3().as_ptr(),
            mean: self.mean().as_ptr(),
        }
    }
}

/// All buffers. Their sizes only grow.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    pub(crate) norms: Vec<NormState>,
    /// Raw outputs of the layers, one after the other; predictors have none.
    pub(crate) y: Vec<f32>,
    /// Where each layer's begins.
    pub(crate) y_at: Vec<usize>,
    /// Gradients of layers after normalisation; while several readers contribute, the sum so far of those before the activation.
    pub(crate) dz: Vec<Vec<f32>>,
    /// Which of them each layer's is: never one that is still needed.
    pub(crate) dz_of: Vec<usize>,
    /// What a layer without weights notes for its way back: of each value of a maximum, which pixel of the window it was; of group norm, each
    /// group's inverse standard deviation.
    pub(crate) notes: Vec<Vec<f32>>,
    /// Per-block sums of a layer: of its statistics on the way forward, of its gradient on the way back.
    pub(crate) sums: Vec<Vec<f32>>,
    /// How many blocks wrote them.
    pub(crate) blocks: Vec<usize>,
    /// A layer's weights with padded channels.
    pub(crate) dense: Vec<f32>,
    pub(crate) packed: Vec<f32>,
    /// Parts of a layer's weight gradient, and gradients of its patches.
    pub(crate) partials: Vec<f32>,
    pub(crate) patches: Vec<f32>,
}

/// Makes a buffer at least so long.
pub(crate) fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        // Nothing of the old contents is needed: a fresh zeroed block costs no copy.
        *buffer = Vec::new();
        *buffer = vec![0.0; len];
    }
}

fn elements(layer: &Layer, batch: usize) -> Option<usize> {
    batch
        .checked_mul(layer.window.outputs())?
        .checked_mul(layer.padded_outputs())
}

impl Buffers {
    pub(crate) fn new(plan: &Plan) -> Self {
        let count = plan.layers.len();
        Self {
            norms: plan
                .layers
                .iter()
                .map(|layer| NormState::new(layer.padded_outputs()))
                .collect(),
            notes: vec![Vec::new(); count],
            dz_of: places(plan),
            sums: vec![Vec::new(); count],
            blocks: vec![0; count],
            ..Self::default()
        }
    }

    /// As [`Buffers::new`], with the memory that is there already.
    pub(crate) fn lay_out(&mut self, plan: &Plan) {
        let Self {
            y,
            dz,
            mut notes,
            mut sums,
            dense,
            packed,
            partials,
            patches,
            ..
        } = std::mem::take(self);
        notes.resize(plan.layers.len(), Vec::new());
        sums.resize(plan.layers.len(), Vec::new());
        *self = Self {
            y,
            dz,
            notes,
            sums,
            dense,
            packed,
            partials,
            patches,
            ..Self::new(plan)
        };
    }

    /// Makes room for a forward pass over `batch` images.
    pub(crate) fn for_forward(&mut self, plan: &Plan, batch: usize) -> Result<(), Error> {
        let mut total = 0_usize;
        self.y_at.clear();
        for layer in &plan.layers {
            self.y_at.push(total);
            let own = if layer.head.is_some() {
                Some(0)
            } else {
                elements(layer, batch)
            };
            let end = own.and_then(|own| total.checked_add(own.next_multiple_of(1024)));
            total = end
                .filter(|&end| end < isize::MAX as usize / 16)
                .ok_or(Error::TooLarge { batch })?;
        }
        memory::grow(&mut [(&mut self.y, total)], plan, batch)
    }

    /// Makes room for a backward pass over as many images.
    pub(crate) fn for_backward(&mut self, plan: &Plan, batch: usize) -> Result<(), Error> {
        let mut largest = vec![0; self.dz_of.iter().max().map_or(0, |last| last + 1)];
        for (i, layer) in plan.layers.iter().enumerate().filter(|(_, layer)| layer.head.is_none()) {
            let own = elements(layer, batch).ok_or(Error::TooLarge { batch })?;
            let place = self.dz_of[i];
            largest[place] = largest[place].max(own);
        }
        if self.dz.len() < largest.len() {
            self.dz.resize(largest.len(), Vec::new());
        }
        let mut wanted: Vec<_> = self.dz.iter_mut().zip(largest).collect();
        memory::grow(&mut wanted, plan, batch)
    }
}

/// Gives each layer's gradient a place from when its last reader makes it until the layer itself has used it. Of the free places the smallest
/// that is large enough, else the largest.
fn places(plan: &Plan) -> Vec<usize> {
    let size = |i: usize| plan.layers[i].window.outputs() * plan.layers[i].padded_outputs();
    let mut places = vec![usize::MAX; plan.layers.len()];
    let mut sizes: Vec<usize> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut take = |layer: usize, free: &mut Vec<usize>| {
        let wanted = size(layer);
        let fit = |&&place: &&usize| (sizes[place] < wanted, sizes[place].abs_diff(wanted), place);
        let place = free.iter().min_by_key(fit).copied().unwrap_or_else(|| {
            sizes.push(0);
            sizes.len() - 1
        });
        free.retain(|&other| other != place);
        sizes[place] = sizes[place].max(wanted);
        place
    };
    for (i, layer) in plan.layers.iter().enumerate().rev() {
        for of in std::iter::once(i)
            .filter(|_| layer.head.is_none())
            .chain(layer.sources())
        {
            if places[of] == usize::MAX {
                places[of] = take(of, &mut free);
            }
        }
        if layer.head.is_none() {
            free.push(places[i]);
        } else {
            places[i] = 0;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{NetworkConfig, plan::plan};

    #[test]
    fn no_two_gradients_in_use_share_a_place() {
        let plan = plan(&NetworkConfig::ssd_mobilenet_v1(3)).unwrap();
        let places = places(&plan);
        // From its last reader down to itself.
        let used = |i: usize| i..=plan.layers[i].readers.last().copied().unwrap_or(i);
        let layers = || (0..plan.layers.len()).filter(|&i| plan.layers[i].head.is_none());
        for i in layers() {
            for j in layers().filter(|&j| j > i && places[j] == places[i]) {
                assert!(
                    !used(i).contains(used(j).start()) && !used(j).contains(used(i).start()),
                    "{i} and {j}"
                );
            }
        }
        // A chain needs two, feature maps on the way one more each.
        assert!(places.iter().max().unwrap() < &9, "{places:?}");
    }
}
