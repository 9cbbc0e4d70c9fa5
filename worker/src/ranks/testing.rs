//! Ranks as threads of one process, for tests.

use std::time::Duration;

use coati_collective::shm::Shared;
use coati_collective::{Communicator, Identity, Options, Wire};

use super::reduce::AllReduce;
use super::sums;
use crate::book::Book;
use crate::conformance::at_once;
use crate::stop::StopFlag;

const LIMIT: Duration = Duration::from_secs(120);

/// How gradients travel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form(pub(crate) sums::Form);

impl Form {
    pub(crate) const fn f32(bucket_bytes: usize) -> Self {
        Self(sums::Form {
            bucket_bytes,
            wire: Wire::F32,
        })
    }

    pub(crate) const fn bf16(bucket_bytes: usize) -> Self {
        Self(sums::Form {
            bucket_bytes,
            wire: Wire::Bf16,
        })
    }
}

/// Communicators of so many ranks, which have met.
pub(crate) fn communicators(world: u32) -> Vec<Box<dyn Communicator>> {
    let folder = tempfile::tempdir().unwrap();
    at_once((0..world as usize).collect(), |rank| -> Box<dyn Communicator> {
        let mut options = Options::new(Identity::here(rank, world as usize, "test", [0; 32])).unwrap();
        (options.timeout, options.rendezvous_timeout) = (LIMIT, LIMIT);
        Box::new(Shared::join(&folder.path().join("ranks"), &options, 1 << 10).unwrap())
    })
}

/// Exchanges of so many ranks; `book` makes each one's.
pub(crate) fn ranks(world: u32, form: Form, book: &(dyn Fn(usize) -> Book + Sync)) -> Vec<AllReduce> {
    at_once(communicators(world), |communicator| {
        let book = book(communicator.rank());
        AllReduce::new(book, communicator, form.0, LIMIT, StopFlag::default()).unwrap()
    })
}
