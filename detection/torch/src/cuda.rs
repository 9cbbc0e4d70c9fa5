//! libtorch's CUDA half, which nothing links: one build serves machines with and without a GPU.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Cuda, Device};

use crate::error::Error;

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

/// Opens the library and checks that GPU `index` is there.
pub(crate) fn device(index: usize) -> Result<Device, Error> {
    let mut why = Vec::new();
    let opened = places().into_iter().any(|path| {
        // SAFETY: libtorch's own library; its initialisers register CUDA with the half that is loaded already.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                // It cannot be unloaded.
                std::mem::forget(library);
                true
            }
            Err(error) => {
                // The loader's own words are one level down.
                let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                why.push(format!("{}: {cause}", path.display()));
                false
            }
        }
    });
    if !opened {
        return Err(Error::CudaLibrary(why.join("; ")));
    }
    let found = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if index >= found {
        return Err(Error::NoGpu {
            found,
            index,
            visible: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        });
    }
    // Timing algorithms against each other would choose others from run to run, and with them other roundings.
    Cuda::cudnn_set_benchmark(false);
    Ok(Device::Cuda(index))
}
