//! The forward pass, layer by layer.

use super::blocks::{RowBlocks, leading};
use super::buffers::{Buffers, grow};
use super::error::Error;
use super::norm;
use super::plan::{Head, Layer, Operation, Part, Plan, Source, Weights};
use super::sliced;
use super::together::Hook;
use crate::kernels::gemm::{self, Depth};
use crate::kernels::parallel::{Pool, Shared, line, scratch};
use crate::kernels::patches::{from_features, from_images};
use crate::kernels::rows::{Activation, statistics};
use crate::kernels::{CHANNEL_BLOCK, Isa};

/// What every layer needs.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) pool: &'a Pool,
    pub(crate) isa: Isa,
    pub(crate) params: &'a [f32],
    pub(crate) images: &'a [f32],
    /// `multiplier * x + offset` on the way in.
    pub(crate) input: (f32, &'a [f32]),
    pub(crate) batch: usize,
    /// Whether batch norm uses the batch's statistics, and values are dropped.
    pub(crate) training: bool,
    /// What is dropped depends on it.
    pub(crate) key: u64,
}

/// Boxes and classes as the predictors write them.
#[derive(Clone, Copy)]
pub(crate) struct Outputs {
    pub(crate) boxes: Shared,
    pub(crate) classes: Shared,
    /// Columns of a class prediction: classes and background.
    pub(crate) columns: usize,
}

impl Context<'_> {
    /// Whether a layer normalises with the batch's own statistics.
    pub(crate) fn takes_statistics(&self, layer: &Layer) -> bool {
        self.training && layer.norm.is_some_and(|norm| norm.train)
    }

    pub(crate) fn layer(
        &self,
        i: usize,
        buffers: &mut Buffers,
        outputs: Outputs,
        hook: &mut Hook,
    ) -> Result<(), Error> {
        let layer = &self.plan.layers[i];
        if let Some(source) = sliced::source(layer) {
            self.sliced((i, source), layer, buffers, outputs);
        } else if layer.dense() {
            self.convolution(i, layer, buffers, outputs);
        } else if layer.weights.is_empty() {
            self.junction(i, layer, buffers);
        } else {
            self.depthwise(i, layer, buffers);
        }
        if layer.head.is_some() {
            return Ok(());
        }
        let count = self.batch * layer.window.outputs();
        if self.takes_statistics(layer) {
            let (sums, blocks) = (&buffers.sums[i], buffers.blocks[i]);
            norm::from_batch(layer, self.params, sums, blocks, count, &mut buffers.norms[i], hook)
                .map_err(Error::Together)
        } else {
            norm::from_moving(layer, self.params, &mut buffers.norms[i]);
            Ok(())
        }
    }

    fn convolution(&self, i: usize, layer: &Layer, buffers: &mut Buffers, outputs: Outputs) {
        let (patch, columns) = (layer.patch(), layer.padded_outputs());
        self.pack(layer, buffers, false);
        let rows = self.batch * layer.window.outputs();
        let blocks = RowBlocks::forward(rows, patch + columns);
        buffers.blocks[i] = blocks.blocks();
        grow(&mut buffers.sums[i], blocks.blocks() * 2 * columns);
        let statistics_wanted = self.takes_statistics(layer);
        let sums = Shared::new(&mut buffers.sums[i]);
        let (y, y_at) = (Shared::new(&mut buffers.y), buffers.y_at[i]);
        let reader = self.reader(layer, buffers);
        let packed = Shared::of(&buffers.packed);
        let lda = leading(patch);
        self.pool.each(blocks.groups, |group| {
            scratch(line(blocks.block * lda) + blocks.block * columns, |memory| {
                for block in 0..blocks.blocks_per_group {
                    let range = blocks.at(group, block);
                    let (first, count) = (range.start, range.len());
                    let (a, rest) = memory.split_at_mut(line(blocks.block * lda));
                    // SAFETY: blocks are disjoint ranges of rows of `y` and slots of `sums`; the input was written by earlier layers.
                    unsafe {
                        let slot = sums.at((group * blocks.blocks_per_group + block) * 2 * columns, 2 * columns);
                        slot.write_bytes(0, 2 * columns);
                        if count == 0 {
                            continue;
                        }
                        reader.read(self, (first, count), a.as_mut_ptr(), lda);
                        let b = packed.at(0, patch * columns);
                        let a = a.as_ptr();
                        if let Some(head) = layer.head {
                            let out = rest.as_mut_ptr();
                            gemm::nn(
                                self.isa,
                                count,
                                Depth::whole(patch),
                                columns,
                                a,
                                lda,
                                b,
                                out,
                                columns,
                                false,
                            );
                            self.place(layer, head, (first, count), rest, outputs);
                        } else {
                            let out = y.at(y_at + first * columns, count * columns);
                            gemm::nn(
                                self.isa,
                                count,
                                Depth::whole(patch),
                                columns,
                                a,
                                lda,
                                b,
                                out,
                                columns,
                                false,
                            );
                            if statistics_wanted {
                                statistics(self.isa, count, columns, out, columns, slot);
                            }
                        }
                    }
                }
            });
        });
    }

    /// Adds biases and puts a block of a predictor's rows where they belong.
    ///
    /// # Safety
    /// No other task writes these rows.
    pub(crate) unsafe fn place(
        &self,
        layer: &Layer,
        head: Head,
        (first, count): (usize, usize),
        rows: &[f32],
        outputs: Outputs,
    ) {
        let pixels = layer.window.outputs();
        let columns = layer.padded_outputs();
        for (i, row) in rows.chunks_exact(columns).take(count).enumerate() {
            let anchor = self.anchor(head, first + i, pixels);
            for (weights, part) in layer.weights.iter().zip(head.parts) {
                let (to, width) = match part {
                    Part::Boxes => (outputs.boxes, 4),
                    Part::Classes => (outputs.classes, outputs.columns),
                };
                let from = &row[weights.first..weights.first + weights.columns];
                // SAFETY: each pixel has its own anchors.
                let out =
                    unsafe { std::slice::from_raw_parts_mut(to.at(anchor * width, weights.columns), weights.columns) };
                match weights.bias {
                    Some(bias) => {
                        let bias = &self.params[bias..bias + weights.columns];
                        out.iter_mut()
                            .zip(from)
                            .zip(bias)
                            .for_each(|((out, x), b)| *out = x + b);
                    }
                    None => out.copy_from_slice(from),
                }
            }
        }
    }

    /// Index of a pixel's first anchor in the outputs.
    pub(crate) fn anchor(&self, head: Head, pixel: usize, pixels: usize) -> usize {
        pixel / pixels * self.plan.anchors + head.first + pixel % pixels * head.anchors
    }

    /// A layer's weights as a matrix `[patch, columns]`, the channels that only fill up 0.
    fn weights(&self, layer: &Layer, buffers: &mut Buffers) -> Shared {
        let (patch, columns) = (layer.patch(), layer.padded_outputs());
        let exact = layer.weights.len() == 1
            && layer.operation == Operation::Convolution
            && layer.window.area() * layer.inputs == patch
            && layer.outputs == columns;
        if exact {
            let at = layer.weights[0].offset;
            return Shared::of(&self.params[at..at + patch * columns]);
        }
        grow(&mut buffers.dense, patch * columns);
        let dense = &mut buffers.dense[..patch * columns];
        dense.fill(0.0);
        for weights in &layer.weights {
            let (len, rows) = weight_rows(layer, weights);
            for (k, to, column) in rows {
                let from = weights.offset + k * len;
                let at = to * columns + column;
                dense[at..at + len].copy_from_slice(&self.params[from..from + len]);
            }
        }
        Shared::of(dense)
    }

    /// Packs a layer's weights as the right operand of a product: `[patch, columns]`, or its transpose.
    pub(crate) fn pack(&self, layer: &Layer, buffers: &mut Buffers, transposed: bool) {
        let (patch, columns) = (layer.patch(), layer.padded_outputs());
        grow(&mut buffers.packed, patch * columns);
        let source = self.weights(layer, buffers);
        let packed = Shared::new(&mut buffers.packed);
        let (k, n) = if transposed { (columns, patch) } else { (patch, columns) };
        let strides = if transposed { (1, columns) } else { (columns, 1) };
        self.pool.each(n.div_ceil(gemm::panel_width(self.isa)), |panel| {
            // SAFETY: panels are disjoint.
            unsafe {
                let (source, packed) = (source.at(0, k * n), packed.at(0, k * n));
                gemm::pack_panel(self.isa, panel, (Depth::whole(k), n), source, strides, packed);
            }
        });
    }

    /// Packs the weights with inputs and outputs exchanged at each place of the window: `[places * columns, channels]`.
    pub(crate) fn pack_turned(&self, layer: &Layer, buffers: &mut Buffers) {
        let (columns, channels) = (layer.padded_outputs(), layer.padded_inputs());
        let area = layer.window.area();
        let all = area * columns;
        grow(&mut buffers.packed, all * channels);
        let source = self.weights(layer, buffers);
        let packed = Shared::new(&mut buffers.packed);
        self.pool.each(channels.div_ceil(gemm::panel_width(self.isa)), |panel| {
            for place in 0..area {
                let depth = Depth {
                    first: place * columns,
                    len: columns,
                    all,
                };
                // SAFETY: panels are disjoint.
                unsafe {
                    let source = source.at(place * channels * columns, channels * columns);
                    let packed = packed.at(0, all * channels);
                    gemm::pack_panel(self.isa, panel, (depth, channels), source, (1, columns), packed);
                }
            }
        });
    }

    /// Where the feature map begins that a layer reads, and what its values go through on the way.
    pub(crate) fn features(&self, source: usize, buffers: &Buffers) -> (usize, Activation) {
        let from = &self.plan.layers[source];
        (buffers.y_at[source], buffers.norms[source].activation(from.activation))
    }

    /// How a layer's input is read.
    pub(crate) fn reader<'b>(&self, layer: &'b Layer, buffers: &Buffers) -> Reader<'b> {
        let features = match layer.source {
            Source::Image => None,
            Source::Layer(source) => Some(self.features(source, buffers)),
        };
        Reader {
            layer,
            features,
            y: Shared::of(&buffers.y),
        }
    }
}

/// The length of a weight variable's rows, and of each row its index and the row and column of the layer's matrix where it goes.
pub(crate) fn weight_rows(
    layer: &Layer,
    weights: &Weights,
) -> (usize, impl Iterator<Item = (usize, usize, usize)> + use<>) {
    let (inputs, stored, first) = (layer.inputs, layer.padded_inputs(), weights.first);
    let depthwise = layer.operation == Operation::Depthwise;
    let len = if depthwise { layer.multiplier() } else { weights.columns };
    let rows = if len == 0 { 0 } else { layer.window.area() * inputs };
    let places = (0..rows).map(move |row| {
        let channel = row % inputs;
        let column = if depthwise { first + channel * len } else { first };
        (row, row / inputs * stored + channel, column)
    });
    (len, places)
}

/// Reads blocks of a layer's input as rows of patches.
pub(crate) struct Reader<'a> {
    layer: &'a Layer,
    features: Option<(usize, Activation)>,
    y: Shared,
}

impl Reader<'_> {
    /// Writes the patches of output pixels `first..first + count` to rows of `lda`.
    ///
    /// # Safety
    /// `out` holds `count` rows; nobody writes the input meanwhile.
    pub(crate) unsafe fn read(&self, context: &Context, (first, count): (usize, usize), out: *mut f32, lda: usize) {
        let window = &self.layer.window;
        unsafe {
            match self.features {
                None => {
                    let images = context.images.as_ptr();
                    from_images(
                        window,
                        (first, count),
                        images,
                        context.input,
                        out,
                        (self.layer.patch(), lda),
                    );
                }
                Some((at, act)) => {
                    let channels = self.layer.padded_inputs();
                    debug_assert!(channels.is_multiple_of(CHANNEL_BLOCK));
                    let y = self.y.at(at, context.batch * window.inputs() * channels);
                    from_features(context.isa, window, (first, count), channels, y, act, out, lda);
                }
            }
        }
    }
}
