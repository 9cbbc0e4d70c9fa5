//! Sums over ranks: the processes of a job that all hold the same gradients' shapes.
//!
//! [`Communicator`] is what training sees. Behind it are shared memory ([`shm`]) for ranks of one host, TCP ([`tcp`]) between hosts,
//! and NCCL ([`nccl`]) between GPUs, which works beside what they compute in a stream of its own ([`cuda`]). [`buckets`] reduces in the background while the caller goes on.

pub mod buckets;
mod communicator;
pub mod cuda;
mod dynamic;
mod error;
mod identity;
mod memory;
pub mod nccl;
mod operation;
pub mod shm;
mod slices;
pub mod sums;
pub mod tcp;

pub use communicator::{Aborter, Communicator};
pub use error::Error;
pub use identity::{Identity, Member, Options, Watch};
pub use memory::Part;
pub use operation::{Kind, Operation, Standing, Wire};

#[cfg(target_endian = "big")]
compile_error!("floats travel as they lie in memory, little end first");
