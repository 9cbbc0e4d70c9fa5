//! Sums of gradients that lie on GPUs: begun where they are while the backward pass goes on, over NCCL.

use std::ffi::c_void;
use std::ops::Range;

use coati_collective::nccl::{DeviceBucket, Gpus};
use coati_collective::{Communicator as _, Error as Trouble, Wire};
use coati_detection::accelerator::resident::Resident;

use super::buckets::Weight;

/// See the module.
pub(super) struct OnDevice {
    gpus: Gpus,
    resident: Resident,
    /// Address of the first element on this rank's GPU.
    address: usize,
    wire: Wire,
    bucket_bytes: usize,
    /// Whether parts are summed before all are there. Not in the first step after a meeting: libtorch gets memory and loads kernels then, for
    /// which CUDA may wait for all that is under way on the GPU, and nobody would look after ranks that are gone.
    early: bool,
    /// Elements that lie there and are not on their way, the last ones first.
    waiting: Vec<Range<usize>>,
    /// Whether a part of this step's gradient was put.
    begun: bool,
    /// What went wrong on the way, to be told when sums are waited for.
    failed: Option<Trouble>,
}

impl OnDevice {
    /// Of variables that were brought to the GPU to be summed there.
    pub(super) fn new(gpus: Gpus, resident: Resident) -> Result<Self, Trouble> {
        let none = || Trouble::Gpu("the variables' gradients are not to be summed on the GPU".to_owned());
        let (address, how) = resident.sums().ok_or_else(none)?;
        Ok(Self {
            gpus,
            resident,
            address,
            wire: if how.bf16 { Wire::Bf16 } else { Wire::F32 },
            bucket_bytes: how.bucket_bytes,
            early: false,
            waiting: Vec::new(),
            begun: false,
            failed: None,
        })
    }

    /// Elements of the own gradient lie where they are summed.
    pub(super) fn put(&mut self, elements: &Range<usize>, weight: Weight) {
        // Otherwise they are brought there again, all of them, as often as they count.
        if weight != Weight::One || !self.early || self.failed.is_some() {
            return;
        }
        self.begun = true;
        match self.waiting.last_mut() {
            Some(last) if last.start == elements.end => last.start = elements.start,
            Some(last) if last.end == elements.start => last.end = elements.end,
            _ => self.waiting.push(elements.clone()),
        }
        let elements: usize = self.waiting.iter().map(ExactSizeIterator::len).sum();
        if elements * size_of::<f32>() >= self.bucket_bytes {
            self.failed = self.begin().err();
        }
    }

    /// Begins to sum what is waiting.
    fn begin(&mut self) -> Result<(), Trouble> {
        let bytes = match self.wire {
            Wire::F32 => size_of::<f32>(),
            Wire::Bf16 => size_of::<u16>(),
        };
        let bucket = |elements: Range<usize>| DeviceBucket {
            address: (self.address + elements.start * bytes) as *mut c_void,
            count: elements.len(),
            wire: self.wire,
        };
        let buckets: Vec<DeviceBucket> = std::mem::take(&mut self.waiting).into_iter().map(bucket).collect();
        // libtorch computes in the default stream.
        let computing = std::ptr::null_mut();
        // SAFETY: the elements lie within what the library keeps there for as long as the variables are, and are written for the next step
        // only after this one's sums were waited for.
        unsafe { self.gpus.begin(&buckets, computing) }
    }

    /// Sums what is left of the gradient, all of it unless parts were put, and waits. `said` is gathered meanwhile.
    pub(super) fn sum(&mut self, weight: Weight, said: &[u8]) -> Result<Vec<Vec<u8>>, Trouble> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if !self.begun {
            let weight = match weight {
                Weight::One => 1.0,
                Weight::Samples(samples) => samples,
                Weight::Nothing => 0.0,
            };
            let filled = self.resident.fill(weight);
            filled.map_err(|error| Trouble::Gpu(error.to_string()))?;
            self.waiting.push(0..self.resident.elements());
        }
        if !self.waiting.is_empty() {
            self.begin()?;
        }
        (self.begun, self.early) = (false, true);
        let gathered = self.gpus.all_gather(said)?;
        self.gpus.finish()?;
        Ok(gathered)
    }

    pub(super) fn gather(&mut self, said: &[u8]) -> Result<Vec<Vec<u8>>, Trouble> {
        self.gpus.all_gather(said)
    }

    pub(super) fn close(&mut self) -> Result<(), Trouble> {
        self.gpus.close()
    }
}
