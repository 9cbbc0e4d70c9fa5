//! Kernels for training convolutional networks on CPUs: float32, NHWC with channels padded to a multiple of 16.
//!
//! Each kernel works on a block that fits the cache and is written once over [`simd::Simd`]; `network` cuts layers into such blocks. What is
//! fused: batch normalisation and the activation of the previous layer are applied while a block is read, statistics are taken while a block
//! is still in cache, and the backward pass of the activation and the sums of batch norm's gradient are taken where the gradient is made. Only
//! the raw outputs of convolutions are stored.

pub(crate) mod curves;
pub(crate) mod depthwise;
mod error;
pub(crate) mod gemm;
pub(crate) mod isa;
pub(crate) mod parallel;
pub(crate) mod patches;
pub(crate) mod rows;
pub(crate) mod simd;

pub use error::Error;
pub use isa::Isa;
pub use parallel::Pool;

/// Channels are stored padded to a multiple of this, a vector of the widest instruction set.
pub(crate) const CHANNEL_BLOCK: usize = 16;

/// Number of channels as stored.
pub(crate) fn padded(channels: usize) -> usize {
    channels.next_multiple_of(CHANNEL_BLOCK)
}
