//! To the device and back. On a GPU nothing here waits but [`wait`]: copies start from and end in page-locked memory, which the device
//! reads and writes by itself, in the order in which it computes. On the CPU there is nothing to wait for.

use tch::{Device, Kind, Tensor};

use crate::error::Error;

/// A place from which values leave for the device, kept from step to step: page-locked memory is slow to get.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    locked: Option<Tensor>,
}

impl Upload {
    /// Sends `values` to the device. The place must not be used again before the device has read it: a step ends with a wait for
    /// the device.
    pub(crate) fn send(&mut self, values: &[f32], device: Device) -> Result<Tensor, Error> {
        if device == Device::Cpu {
            return Ok(Tensor::f_from_slice(values)?);
        }
        let size = [values.len() as i64];
        // SAFETY: the view is read within this call, and `values` outlives it.
        let view = unsafe { Tensor::f_from_blob(values.as_ptr().cast::<u8>(), &size, &[], Kind::Float, Device::Cpu) }?;
        let mut locked = match self.locked.take() {
            Some(locked) if locked.numel() == values.len() => locked,
            _ => page_locked(&size, device)?,
        };
        locked.f_copy_(&view)?;
        let sent = locked.f_to_device_(device, Kind::Float, true, true)?;
        self.locked = Some(locked);
        Ok(sent)
    }
}

/// What leaves a GPU without anybody waiting for it, libtorch puts into page-locked memory; so that is a way to get some.
pub(crate) fn page_locked(size: &[i64], device: Device) -> Result<Tensor, Error> {
    let there = Tensor::f_empty(size, (Kind::Float, device))?;
    let locked = there.f_to_device_(Device::Cpu, Kind::Float, true, true)?;
    wait(device)?;
    Ok(locked)
}

/// Starts copying a tensor to the host; [`wait`] before it is read.
pub(crate) fn fetch(from: &Tensor) -> Result<Tensor, Error> {
    let from = from.f_detach()?.f_contiguous()?;
    Ok(from.f_to_device_(Device::Cpu, Kind::Float, true, false)?)
}

/// Waits for all that was given to libtorch's stream of the device. What is under way in other streams is not waited for: sums over ranks
/// are, and of a rank that is gone only their watchdog knows.
pub(crate) fn wait(device: Device) -> Result<(), Error> {
    if device != Device::Cpu {
        // A copy to memory that is not page-locked comes back when the stream is empty.
        let _ = Tensor::f_zeros([1], (Kind::Float, device))?.f_to_device(Device::Cpu)?;
    }
    Ok(())
}

/// Copies what [`fetch`] brought to `to`.
pub(crate) fn read(what: &'static str, from: &Tensor, to: &mut [f32]) -> Result<(), Error> {
    length(what, to.len(), from.numel())?;
    if to.is_empty() {
        return Ok(());
    }
    // SAFETY: the view is written within this call, and nobody else has `to`. libtorch copies with all of its threads.
    let mut view = unsafe {
        Tensor::f_from_blob(
            to.as_mut_ptr().cast::<u8>(),
            &from.size(),
            &[],
            Kind::Float,
            Device::Cpu,
        )
    }?;
    Ok(view.f_copy_(from)?)
}

pub(crate) fn length(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Length { what, found, expected })
}
