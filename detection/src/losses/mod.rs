//! Losses of single predictions, with their gradients.

pub mod sigmoid;
pub mod smooth_l1;
