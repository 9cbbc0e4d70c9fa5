//! A forward pass in training or inference mode, and its backward pass, segment by segment.

use coati_detection::network::plan::{Affine, Norm, Operation, Part, Plan, Source};
use tch::{Kind, Tensor};

use crate::error::Error;
use crate::layers::{activated, convolution, junction, normalised};
use crate::mask;
use crate::segments::Segments;

/// What a pass is made of.
pub(crate) struct Frame<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) segments: &'a Segments,
    /// Offsets of the variables.
    pub(crate) starts: &'a [usize],
    /// Of the variables: which have gradients.
    pub(crate) trainable: &'a [bool],
    /// Class columns.
    pub(crate) columns: i64,
    /// What is dropped depends on it.
    pub(crate) key: u64,
    pub(crate) training: bool,
    /// What convolutions compute with.
    pub(crate) kind: Kind,
}

/// A layer's batch mean and unbiased variance.
#[derive(Debug)]
pub(crate) struct Statistics {
    pub(crate) norm: Norm,
    pub(crate) mean: Tensor,
    pub(crate) variance: Tensor,
}

/// The variables of a pass, each in its shape.
pub(crate) struct Variables<'a> {
    starts: &'a [usize],
    values: Vec<Tensor>,
    pub(crate) kind: Kind,
}

impl Variables<'_> {
    pub(crate) fn at(&self, offset: usize) -> Result<&Tensor, Error> {
        let index = self.starts.binary_search(&offset);
        let index = index.map_err(|_| Error::NoVariable(offset))?;
        self.values.get(index).ok_or(Error::NoVariable(offset))
    }

    pub(crate) fn optional(&self, offset: Option<usize>) -> Result<Option<&Tensor>, Error> {
        offset.map(|offset| self.at(offset)).transpose()
    }
}

/// A predictor's part of the predictions.
#[derive(Debug)]
struct Piece {
    segment: usize,
    part: Part,
    /// `[batch, anchors of one map, 4 or columns]`
    values: Tensor,
    /// Its first anchor.
    first: i64,
}

/// What one segment reads of an earlier one: there the graph is cut.
#[derive(Debug)]
struct Crossing {
    layer: usize,
    from: usize,
    to: usize,
    /// In the graph of the earlier segment.
    output: Tensor,
    /// In that of the later one.
    input: Tensor,
    shared: Option<Shared>,
}

/// Batch norm's statistics over all replicas, between a layer's convolution and its normalisation.
#[derive(Debug)]
struct Shared {
    /// `[channels]`, leaves of the later segment's graph.
    mean: Tensor,
    variance: Tensor,
    /// Of values behind each.
    count: f64,
}

/// Replaces values by their sums over all replicas; false when that failed.
pub(crate) type Sum<'a> = &'a mut dyn FnMut(&mut [f64]) -> bool;

/// A forward pass and what its backward pass needs.
#[derive(Debug)]
pub(crate) struct Pass {
    /// `[batch, anchors, 4]`
    pub(crate) boxes: Tensor,
    /// `[batch, anchors, columns]`
    pub(crate) classes: Tensor,
    pub(crate) statistics: Vec<Statistics>,
    leaves: Vec<Tensor>,
    pieces: Vec<Piece>,
    crossings: Vec<Crossing>,
}

/// The features of a pass, as each segment may use them.
#[derive(Default)]
struct Features {
    values: Vec<Option<Tensor>>,
    segments: Vec<usize>,
    crossings: Vec<Crossing>,
}

impl Features {
    /// What a layer of `segment` reads of `layer`.
    fn read(&mut self, layer: usize, segment: usize) -> Result<Tensor, Error> {
        let values = self.values.get(layer).and_then(Option::as_ref);
        let output = values.ok_or(Error::NoVariable(layer))?;
        let from = self.segments[layer];
        if from == segment || !output.requires_grad() {
            return Ok(output.shallow_clone());
        }
        let known = self.crossings.iter();
        let mut known =
            known.filter(|crossing| (crossing.layer, crossing.to) == (layer, segment) && crossing.shared.is_none());
        if let Some(crossing) = known.next() {
            return Ok(crossing.input.shallow_clone());
        }
        let input = output.f_detach()?.set_requires_grad(true);
        self.crossings.push(Crossing {
            layer,
            from,
            to: segment,
            output: output.shallow_clone(),
            input: input.shallow_clone(),
            shared: None,
        });
        Ok(input)
    }
}

/// Sums two vectors of each channel over all replicas; `count` comes last.
fn summed(first: &Tensor, second: &Tensor, count: f64, sum: Sum<'_>) -> Result<Vec<f64>, Error> {
    let both = Tensor::f_cat(&[first, second], 0)?.f_to_kind(Kind::Double)?;
    let mut values = Vec::<f64>::try_from(&both.f_to_device(tch::Device::Cpu)?)?;
    values.push(count);
    if sum(&mut values) {
        Ok(values)
    } else {
        Err(Error::Together)
    }
}

/// Of each channel, to lie beside `[batch, channels, height, width]`.
fn beside(values: &[f64], like: &Tensor) -> Result<Tensor, Error> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    Ok(Tensor::f_from_slice(&values)?.f_to_device(like.device())?)
}

const CHANNELS: [i64; 4] = [1, -1, 1, 1];

/// Batch norm with the statistics of all replicas' batches. `y` is what the layer's convolution computed, in segment `from`.
fn together(
    (index, norm): (usize, Norm),
    (from, to): (usize, usize),
    y: &Tensor,
    variables: &Variables<'_>,
    sum: Sum<'_>,
    crossings: &mut Vec<Crossing>,
) -> Result<(Tensor, Statistics), Error> {
    let output = y.f_detach()?;
    let whole = output.f_to_kind(Kind::Float)?;
    // Of each image in float32, since a sum in float64 would make a copy of everything in float64 first.
    let over = |values: &Tensor| -> Result<Tensor, Error> {
        let each = values.f_sum_dim_intlist(&[2_i64, 3][..], false, Kind::Float)?;
        Ok(each.f_sum_dim_intlist(0_i64, false, Kind::Double)?)
    };
    let channels = whole.size()[1] as usize;
    let own = (whole.numel() / channels.max(1)) as f64;
    let all = summed(&over(&whole)?, &over(&whole.f_square()?)?, own, sum)?;
    let count = all[2 * channels];
    let mean: Vec<f64> = all[..channels].iter().map(|sum| sum / count).collect();
    let squares = all[channels..2 * channels].iter().zip(&mean);
    let variance: Vec<f64> = squares
        .map(|(squares, mean)| (squares / count - mean * mean).max(0.0))
        .collect();
    // The moving average gets the unbiased variance; a single sample counts as the reference counts it.
    let unbiased: Vec<f64> = variance
        .iter()
        .map(|variance| variance * count / (count - 1.0).max(1.0))
        .collect();
    let (mean, variance) = (beside(&mean, y)?, beside(&variance, y)?);
    let statistics = Statistics {
        norm,
        mean: mean.shallow_clone(),
        variance: beside(&unbiased, y)?,
    };
    let (mut input, mut mean, mut variance) = (output, mean, variance);
    if y.requires_grad() {
        input = input.set_requires_grad(true);
        (mean, variance) = (
            mean.f_detach()?.set_requires_grad(true),
            variance.set_requires_grad(true),
        );
        crossings.push(Crossing {
            layer: index,
            from,
            to,
            output: y.shallow_clone(),
            input: input.shallow_clone(),
            shared: Some(Shared {
                mean: mean.shallow_clone(),
                variance: variance.shallow_clone(),
                count,
            }),
        });
    }
    let inverse = variance.f_add_scalar(f64::from(norm.epsilon))?.f_rsqrt()?;
    let mut z = input.f_to_kind(Kind::Float)?.f_sub(&mean.f_view(CHANNELS)?)?;
    z = z.f_mul(&inverse.f_view(CHANNELS)?)?;
    if let Some(gamma) = variables.optional(norm.gamma)? {
        z = z.f_mul(&gamma.f_view(CHANNELS)?)?;
    }
    if let Some(beta) = variables.optional(norm.beta)? {
        z = z.f_add(&beta.f_view(CHANNELS)?)?;
    }
    Ok((z.f_to_kind(y.kind())?, statistics))
}

impl Shared {
    /// The whole slope by what the convolution computed: `direct`, and by way of everybody's statistics.
    fn slope(
        &self,
        output: &Tensor,
        direct: Option<Tensor>,
        by_statistics: [Option<Tensor>; 2],
        sum: Sum<'_>,
    ) -> Result<Tensor, Error> {
        let [by_mean, by_variance] = by_statistics.map(|slope| slope.map_or_else(|| self.mean.f_zeros_like(), Ok));
        let (by_mean, by_variance) = (by_mean?, by_variance?);
        let all = summed(&by_mean, &by_variance, 0.0, sum)?;
        let channels = self.mean.numel();
        let each = |values: &[f64], factor: f64| -> Result<Tensor, Error> {
            let values: Vec<f64> = values.iter().map(|value| value * factor / self.count).collect();
            Ok(beside(&values, output)?.f_view(CHANNELS)?)
        };
        let centred = output
            .f_detach()?
            .f_to_kind(Kind::Float)?
            .f_sub(&self.mean.f_detach()?.f_view(CHANNELS)?)?;
        let mut slope = centred
            .f_mul(&each(&all[channels..2 * channels], 2.0)?)?
            .f_add(&each(&all[..channels], 1.0)?)?;
        if let Some(direct) = direct {
            slope = slope.f_add(&direct.f_to_kind(Kind::Float)?)?;
        }
        Ok(slope.f_to_kind(output.kind())?)
    }
}

impl Pass {
    /// Computes the network's predictions of `images` (`[batch, channels, height, width]`) from `params` (flat). `sum` is for batch norm with
    /// everybody's statistics, at which the segments are cut then.
    pub(crate) fn forward(
        frame: &Frame<'_>,
        params: &Tensor,
        images: &Tensor,
        mut sum: Option<Sum<'_>>,
    ) -> Result<Self, Error> {
        let plan = frame.plan;
        let mut leaves = Vec::with_capacity(plan.variables.len());
        for ((spec, &start), &trainable) in plan.variables.iter().zip(frame.starts).zip(frame.trainable) {
            let values = params.f_narrow(0, start as i64, spec.elements() as i64)?;
            let leaf = values.f_view(&spec.shape[..])?.f_detach()?;
            leaves.push(leaf.set_requires_grad(frame.training && trainable));
        }
        let variables = Variables {
            starts: frame.starts,
            values: leaves,
            kind: frame.kind,
        };
        let batch = images.size()[0];
        let (mut pieces, mut statistics, mut first) = (Vec::new(), Vec::new(), [0, 0]);
        let mut features = Features::default();
        for (index, (layer, &segment)) in plan.layers.iter().zip(&frame.segments.of_layer).enumerate() {
            let x = match layer.source {
                Source::Image => images.shallow_clone(),
                Source::Layer(source) => features.read(source, segment)?,
            };
            let output = frame.segments.of_output[index];
            features.segments.push(output);
            if let Some(head) = layer.head {
                for (weights, &part) in layer.weights.iter().zip(head.parts) {
                    let (at, width) = match part {
                        Part::Boxes => (0, 4),
                        Part::Classes => (1, frame.columns),
                    };
                    let y = convolution(layer, weights, &variables, &x)?;
                    let y = y.f_permute([0, 2, 3, 1])?.f_reshape([batch, -1, width])?;
                    let mut values = y.f_to_kind(Kind::Float)?;
                    if let (Part::Boxes, Some((low, high))) = (part, plan.clip) {
                        values = values.f_clamp(f64::from(low), f64::from(high))?;
                    }
                    let anchors = values.size()[1];
                    pieces.push(Piece {
                        segment,
                        part,
                        values,
                        first: first[at],
                    });
                    first[at] += anchors;
                }
                features.values.push(None);
                continue;
            }
            let Some(weights) = layer.weights.first() else {
                let mut others = Vec::with_capacity(layer.others.len());
                for &other in &layer.others {
                    others.push(features.read(other, segment)?);
                }
                let others: Vec<&Tensor> = others.iter().collect();
                let mut y = match layer.operation {
                    Operation::Dropout { keep } if frame.training => x.f_mul(&mask::of(frame.key, index, keep, &x)?)?,
                    _ => junction(layer, &x, &others)?,
                };
                if let Some(Affine { gamma, beta }) = layer.affine {
                    let (gamma, beta) = (variables.at(gamma)?, variables.at(beta)?);
                    let channels = [1, -1, 1, 1];
                    y = y.f_mul(&gamma.f_view(channels)?)?.f_add(&beta.f_view(channels)?)?;
                }
                features.values.push(Some(activated(layer.activation, y)?));
                continue;
            };
            let mut y = convolution(layer, weights, &variables, &x)?;
            if let (Some(norm), Some(sum), true) = (layer.norm, &mut sum, output > segment) {
                let (z, own) = together(
                    (index, norm),
                    (segment, output),
                    &y,
                    &variables,
                    *sum,
                    &mut features.crossings,
                )?;
                y = z;
                statistics.push(own);
            } else if let Some(norm) = layer.norm {
                y = normalised(layer, norm, &variables, &y, frame.training, &mut statistics)?;
            }
            features.values.push(Some(activated(layer.activation, y)?));
        }
        let of = |part: Part| -> Result<Tensor, Error> {
            let pieces = pieces.iter().filter(|piece: &&Piece| piece.part == part);
            let pieces: Vec<Tensor> = pieces.map(|piece| piece.values.detach()).collect();
            Ok(Tensor::f_cat(&pieces, 1)?)
        };
        Ok(Self {
            boxes: of(Part::Boxes)?,
            classes: of(Part::Classes)?,
            statistics,
            leaves: variables.values,
            pieces,
            crossings: features.crossings,
        })
    }

    /// Computes gradients from the slopes of boxes and classes, the last segment first. `complete` is given each segment's number and
    /// the variables' gradients so far, of which those that the segment completes are final; none where nothing leads from a variable to the
    /// predictions. With `keep` it can be done again.
    pub(crate) fn backward(
        &self,
        segments: &Segments,
        slopes: &[Tensor; 2],
        keep: bool,
        mut sum: Option<Sum<'_>>,
        complete: &mut dyn FnMut(usize, &mut [Option<Tensor>]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut gradients: Vec<Option<Tensor>> = self.leaves.iter().map(|_| None).collect();
        let mut crossing: Vec<Option<Tensor>> = self.crossings.iter().map(|_| None).collect();
        for segment in (0..segments.count()).rev() {
            // The gradient of `output * slope` by the output is the slope.
            let mut roots = Vec::new();
            for piece in self.pieces.iter().filter(|piece| piece.segment == segment) {
                let slopes = match piece.part {
                    Part::Boxes => &slopes[0],
                    Part::Classes => &slopes[1],
                };
                let own = slopes.f_narrow(1, piece.first, piece.values.size()[1])?;
                roots.push(piece.values.f_mul(&own)?);
            }
            for (known, slope) in self.crossings.iter().zip(&crossing) {
                if let (true, Some(slope)) = (known.from == segment, slope) {
                    roots.push(known.output.f_mul(slope)?);
                }
            }
            roots.retain(Tensor::requires_grad);
            let used = segments.uses[segment].iter().copied();
            let variables: Vec<usize> = used.filter(|&variable| self.leaves[variable].requires_grad()).collect();
            let entering: Vec<usize> = (0..crossing.len())
                .filter(|&index| self.crossings[index].to == segment)
                .collect();
            let inputs = variables.iter().map(|&variable| &self.leaves[variable]);
            let shared = entering
                .iter()
                .filter_map(|&index| self.crossings[index].shared.as_ref());
            let inputs: Vec<&Tensor> = inputs
                .chain(entering.iter().map(|&index| &self.crossings[index].input))
                .chain(shared.flat_map(|shared| [&shared.mean, &shared.variance]))
                .collect();
            let mut by_statistics = Vec::new();
            if !roots.is_empty() && !inputs.is_empty() {
                let found = Tensor::f_run_backward(&roots, &inputs, keep, false)?;
                let mut found = found.into_iter();
                for (&variable, slope) in variables.iter().zip(found.by_ref()) {
                    add(&mut gradients[variable], slope)?;
                }
                for (&index, slope) in entering.iter().zip(found.by_ref()) {
                    add(&mut crossing[index], slope)?;
                }
                by_statistics.extend(found.map(|slope| slope.defined().then_some(slope)));
            }
            let mut by_statistics = by_statistics.into_iter();
            for &index in &entering {
                let own = &self.crossings[index];
                if let (Some(shared), Some(sum)) = (&own.shared, &mut sum) {
                    let by_statistics = [by_statistics.next().flatten(), by_statistics.next().flatten()];
                    let slope = shared.slope(&own.output, crossing[index].take(), by_statistics, *sum)?;
                    crossing[index] = Some(slope);
                }
            }
            complete(segment, &mut gradients)?;
        }
        Ok(())
    }
}

/// Nothing is added where nothing led to the loss.
fn add(to: &mut Option<Tensor>, slope: Tensor) -> Result<(), Error> {
    if !slope.defined() {
        return Ok(());
    }
    *to = Some(match to.take() {
        Some(sum) => sum.f_add(&slope)?,
        None => slope,
    });
    Ok(())
}
