//! The next step's images, copied while the device computes.
//!
//! libtorch computes in the null stream, where a copy waits for the step that was given before it; so these have a [`Lane`] of their own. It
//! fills two places in turns. A step reads one in the null stream, behind the copy to it; and what is copied later comes behind that reading,
//! so that no place is written which a step still reads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coati_collective::cuda::{Lane, Runtime};
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::transfer::page_locked;

/// Makes the CPU a GPU whose CUDA is the library of this folder: how tests see all but NVIDIA's own.
const STAND_IN: &str = "COATI_TEST_GPU_LIBRARIES";

/// See the module.
#[derive(Debug)]
pub(crate) struct Ahead {
    lane: Lane,
    device: Device,
    places: [Option<Place>; 2],
    turn: usize,
}

#[derive(Debug)]
struct Place {
    /// On the host, page-locked: from other memory a copy waits.
    locked: Tensor,
    there: Tensor,
}

impl Ahead {
    /// None on a CPU, and where CUDA's runtime will not do this: copies then go through libtorch's stream.
    pub(crate) fn open(device: Device) -> Option<Self> {
        let (folder, index) = match device {
            Device::Cuda(index) => (None, index),
            _ => (Some(PathBuf::from(std::env::var_os(STAND_IN)?)), 0),
        };
        let folders: Vec<&Path> = folder.iter().map(PathBuf::as_path).collect();
        let runtime = Arc::new(Runtime::open(&folders).ok()?);
        Some(Self {
            lane: Lane::new(runtime, i32::try_from(index).ok()?).ok()?,
            device,
            places: [None, None],
            turn: 0,
        })
    }

    /// Starts to copy `values` to the device. Nobody may read what is returned before [`Self::arrive`].
    pub(crate) fn send(&mut self, values: &[f32]) -> Result<Tensor, Error> {
        self.turn = 1 - self.turn;
        let size = [values.len() as i64];
        let place = match self.places[self.turn].take() {
            Some(place) if place.there.numel() == values.len() => place,
            old => {
                // What libtorch gets back it gives to others, who do not know the lane; and what it gives us others may still use in its stream.
                self.lane.drain();
                drop(old);
                let place = Place {
                    locked: page_locked(&size, self.device)?,
                    there: Tensor::f_empty(size, (Kind::Float, self.device))?,
                };
                self.leave()?;
                place
            }
        };
        // SAFETY: the view is read within this call, and `values` outlives it.
        let view = unsafe { Tensor::f_from_blob(values.as_ptr().cast::<u8>(), &size, &[], Kind::Float, Device::Cpu) }?;
        place.locked.shallow_clone().f_copy_(&view)?;
        // SAFETY: both hold so many float32, and are given up only when the lane is drained.
        unsafe {
            self.lane
                .copy(place.there.data_ptr(), place.locked.data_ptr(), size_of_val(values))?;
        }
        let there = place.there.shallow_clone();
        self.places[self.turn] = Some(place);
        Ok(there)
    }

    /// What libtorch is given from now on finds all that was sent.
    pub(crate) fn arrive(&self) -> Result<(), Error> {
        // SAFETY: the null stream is every device's.
        Ok(unsafe { self.lane.precede(std::ptr::null_mut()) }?)
    }

    /// What is sent from now on comes behind all that libtorch was given, which may read what came before.
    pub(crate) fn leave(&self) -> Result<(), Error> {
        // SAFETY: as above.
        Ok(unsafe { self.lane.follow(std::ptr::null_mut()) }?)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.lane.drain();
    }
}
