//! Sums over ranks as a training loop wants them: the gradient of a step in buckets, and words behind them.

use std::ops::Range;
use std::time::Duration;

use coati_collective::buckets::Reducer;
use coati_collective::nccl::Gpus;
use coati_collective::{Aborter, Communicator, Error as Trouble, Member, Part, Wire};
use coati_common::variables::VariableSpec;
use coati_detection::accelerator::resident::Resident;

use super::buckets::{Buckets, Weight};
use super::device::OnDevice;
use crate::exchange::Error;

/// How gradients travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// Bytes of float32 that are summed at a time.
    pub bucket_bytes: usize,
    /// In which form.
    pub wire: Wire,
}

/// What each rank's gradient counts for in a sum: its samples, or nothing.
pub(super) type Counts = Vec<Option<u32>>;

/// How the gradient of `rank` goes into the sum. Parameter servers do the same: nothing is multiplied where all have as many samples.
pub(super) fn weight(counts: &[Option<u32>], rank: usize) -> Weight {
    let Some(own) = counts.get(rank).copied().flatten() else {
        return Weight::Nothing;
    };
    if counts.iter().flatten().all(|&count| count == own) {
        Weight::One
    } else {
        Weight::Samples(own as f32)
    }
}

/// What the sum is divided by to be the mean over samples.
pub(super) fn divisor(counts: &[Option<u32>]) -> f32 {
    let counted: Vec<u32> = counts.iter().flatten().copied().collect();
    if counted.windows(2).all(|pair| pair[0] == pair[1]) {
        counted.len() as f32
    } else {
        counted.iter().map(|&count| u64::from(count)).sum::<u64>() as f32
    }
}

/// See the module.
pub(super) struct Sums {
    pub(super) rank: usize,
    pub(super) members: Vec<Member>,
    aborter: Aborter,
    way: Way,
    /// Who was waited for in vain although its process is there.
    pub(super) hanging: Vec<Member>,
}

/// Where the gradients are.
enum Way {
    Host(OnHost),
    Device(Box<OnDevice>),
}

struct OnHost {
    /// None once it is closed.
    reducer: Option<Reducer>,
    buckets: Buckets,
    /// Whether a part of this step's gradient has been taken.
    begun: bool,
    /// Next number of the reducer.
    next: u64,
}

impl Sums {
    /// `timeout` bounds each wait for a sum: longer than the communicator's own.
    pub(super) fn new(
        mut communicator: Box<dyn Communicator>,
        variables: &[VariableSpec],
        form: Form,
        timeout: Duration,
    ) -> Result<Self, Trouble> {
        let buckets = Buckets::new(communicator.as_mut(), variables, form.bucket_bytes, form.wire)?;
        Ok(Self {
            rank: communicator.rank(),
            members: communicator.members().to_vec(),
            aborter: communicator.aborter(),
            way: Way::Host(OnHost {
                reducer: Some(Reducer::start(communicator, timeout)?),
                buckets,
                begun: false,
                next: 0,
            }),
            hanging: Vec::new(),
        })
    }

    /// Of gradients that lie on the ranks' GPUs.
    pub(super) fn on_device(gpus: Gpus, resident: Resident) -> Result<Self, Trouble> {
        Ok(Self {
            rank: gpus.rank(),
            members: gpus.members().to_vec(),
            aborter: gpus.aborter(),
            way: Way::Device(Box::new(OnDevice::new(gpus, resident)?)),
            hanging: Vec::new(),
        })
    }

    /// Ranks.
    pub(super) fn world(&self) -> usize {
        self.members.len()
    }

    /// Tells all ranks that it is over.
    pub(super) fn abort(&self, reason: &str) {
        self.aborter.abort(reason);
    }

    /// What went wrong between ranks, as an exchange says it.
    pub(super) fn trouble(&mut self, error: &Trouble) -> Error {
        self.hanging = error.hanging();
        if error.is_final() {
            Error::Failed(error.for_people())
        } else {
            Error::CutOff(error.to_string())
        }
    }

    /// Takes elements of the own gradient; no values where they lie on the GPU.
    pub(super) fn put(&mut self, elements: &Range<usize>, values: &[f32], weight: Weight) {
        match &mut self.way {
            Way::Host(host) => host.put(elements, values, weight),
            Way::Device(device) => device.put(elements, weight),
        }
    }

    /// Sums what is left of the gradient, gathers `said` behind it, and waits for both.
    pub(super) fn sum(&mut self, gradients: &[f32], weight: Weight, said: Vec<u8>) -> Result<Vec<Vec<u8>>, Error> {
        let summed = match &mut self.way {
            Way::Host(host) => host.sum(gradients, weight, said)?,
            Way::Device(device) => device.sum(weight, &said),
        };
        summed.map_err(|error| self.trouble(&error))
    }

    /// The sums of these elements, in pieces: where a piece begins in `elements`, and its values. None where they lie on the GPU.
    pub(super) fn sums(&self, elements: &Range<usize>) -> impl Iterator<Item = (usize, &[f32])> {
        let sums = match &self.way {
            Way::Host(host) => Some(host.buckets.sums(elements)),
            Way::Device(_) => None,
        };
        sums.into_iter().flatten()
    }

    /// Writes the mean of these elements to `values`, which are as many.
    pub(super) fn mean(&self, elements: &Range<usize>, by: f32, values: &mut [f32]) {
        for (at, sums) in self.sums(elements) {
            let to = &mut values[at..at + sums.len()];
            if by > 1.0 {
                to.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum / by);
            } else {
                to.copy_from_slice(sums);
            }
        }
    }

    /// Everybody's words, in rank order.
    pub(super) fn gather(&mut self, said: Vec<u8>) -> Result<Vec<Vec<u8>>, Error> {
        let gathered = match &mut self.way {
            Way::Host(host) => host.gather(said)?,
            Way::Device(device) => device.gather(&said),
        };
        gathered.map_err(|error| self.trouble(&error))
    }

    /// Replaces `part` by that of rank 0.
    pub(super) fn broadcast(&mut self, part: Part) -> Result<Part, Error> {
        let told = match &mut self.way {
            Way::Host(host) => host.broadcast(part)?,
            Way::Device(_) => return Err(Error::Failed("variables on GPUs are not handed on".to_owned())),
        };
        told.map_err(|error| self.trouble(&error))
    }

    /// Leaves together with all others.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        let closed = match &mut self.way {
            Way::Host(host) => match host.reducer.take().and_then(Reducer::finish) {
                Some(mut communicator) => communicator.close(),
                None => Ok(()),
            },
            Way::Device(device) => device.close(),
        };
        closed.map_err(|error| self.trouble(&error))
    }
}

impl OnHost {
    fn put(&mut self, elements: &Range<usize>, values: &[f32], weight: Weight) {
        if !self.begun {
            self.begun = true;
            self.buckets.begin(self.next);
        }
        if let Some(reducer) = &mut self.reducer {
            self.buckets.put(elements, values, weight, reducer);
        }
    }

    fn sum(
        &mut self,
        gradients: &[f32],
        weight: Weight,
        said: Vec<u8>,
    ) -> Result<Result<Vec<Vec<u8>>, Trouble>, Error> {
        self.put(&(0..gradients.len()), gradients, weight);
        let gathered = self.reducer()?.gather_next(said);
        self.next += self.buckets.count() as u64 + 1;
        self.begun = false;
        Ok(self.buckets.wait().and_then(|()| gathered.wait()))
    }

    fn gather(&mut self, said: Vec<u8>) -> Result<Result<Vec<Vec<u8>>, Trouble>, Error> {
        let gathered = self.reducer()?.gather_next(said);
        self.next += 1;
        Ok(gathered.wait())
    }

    fn broadcast(&mut self, part: Part) -> Result<Result<Part, Trouble>, Error> {
        let told = self.reducer()?.broadcast_next(0, part);
        self.next += 1;
        Ok(told.wait())
    }

    fn reducer(&mut self) -> Result<&mut Reducer, Error> {
        let closed = || Error::Failed("the communicator is closed".to_owned());
        self.reducer.as_mut().ok_or_else(closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_weigh_only_where_they_differ() {
        let equal = [Some(4), Some(4), Some(4)];
        assert_eq!((weight(&equal, 1), divisor(&equal)), (Weight::One, 3.0));
        let one = [None, Some(7)];
        assert_eq!(
            (weight(&one, 0), weight(&one, 1), divisor(&one)),
            (Weight::Nothing, Weight::One, 1.0)
        );
        let mixed = [Some(4), None, Some(3)];
        assert_eq!((weight(&mixed, 2), divisor(&mixed)), (Weight::Samples(3.0), 7.0));
        assert_eq!(divisor(&[None, None]), 0.0);
    }
}
