//! libtorch's CUDA half, which nothing links: one build serves machines with and without a GPU.

mod driver;

use std::error::Error as _;
use std::path::{Path, PathBuf};

use coati_detection::accelerator::driver::{VISIBLE, absent, check, missing};
use coati_detection::accelerator::numerics::Gpu;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Cuda, Device};

use crate::error::Error;
use driver::Driver;

const FILE: &str = "libtorch_cuda.so";

/// In the folder that `scripts/setup-libtorch` leaves on a machine with a GPU, beside libtorch's CPU half, or where the loader looks.
fn places() -> Vec<PathBuf> {
    let lib = Path::new(env!("COATI_LIBTORCH_LIB"));
    let mut places = vec![PathBuf::from(FILE)];
    if let Some(home) = lib.parent() {
        places.insert(0, lib.join(FILE));
        places.insert(0, home.join("wheels/torch/lib").join(FILE));
    }
    places
}

/// Opens a library for good; otherwise the loader's complaint.
fn open(path: &Path) -> Result<(), String> {
    // SAFETY: libtorch's own library; its initialisers register CUDA with the half that is loaded already.
    match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            // It cannot be unloaded.
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(format!("{}: {}", path.display(), cause(&error))),
    }
}

/// The loader's own words are one level down.
fn cause(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// GPU `index` of those that this process sees. The driver is looked at first: what is wrong with it shows in libtorch as something else.
pub(crate) fn device(index: usize) -> Result<(Device, Gpu), Error> {
    let driver = Driver::open().map_err(|why| Error::Refused(missing(&why)))?;
    if let Some(needed) = driver::runtime_version() {
        check(driver.version(), needed).map_err(Error::Refused)?;
    }
    let mut why = Vec::new();
    let opened = places().into_iter().any(|path| match open(&path) {
        Ok(()) => true,
        Err(error) => {
            why.push(error);
            false
        }
    });
    if !opened {
        return Err(Error::CudaLibrary(why.join("; ")));
    }
    let visible = driver.gpus();
    let found = usize::try_from(Cuda::device_count()).unwrap_or(0);
    let Some(gpu) = visible.get(index).filter(|_| index < found) else {
        let list = std::env::var(VISIBLE).ok();
        let known = &visible[..visible.len().min(found)];
        return Err(Error::Refused(absent(
            index,
            known,
            driver::on_machine(),
            list.as_deref(),
        )));
    };
    // Timing algorithms against each other would choose others from run to run, and with them other roundings.
    Cuda::cudnn_set_benchmark(false);
    Ok((Device::Cuda(index), gpu.clone()))
}
