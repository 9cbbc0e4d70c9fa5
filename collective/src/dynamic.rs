//! Libraries that are opened when they are needed: nothing links them, so one program serves machines with and without GPUs.

use std::error::Error as _;
use std::ffi::{CStr, c_char};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::Error;

macro_rules! functions {
    ($(#[$about:meta])* $name:ident { $($field:ident: $symbol:literal ($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$about])*
        pub(crate) struct $name {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $name {
            /// All of them, or the first that is missing.
            ///
            /// # Safety
            /// The library must declare them with these types.
            pub(crate) unsafe fn find(library: &libloading::os::unix::Library) -> Result<Self, String> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the caller opened the library that declares it with this type.
                        let found = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> $result>($symbol.as_bytes()) };
                        *found.map_err(|_| format!("it has no {}", $symbol))?
                    },)*
                })
            }
        }
    };
}

pub(crate) use functions;

/// A text of a library's.
pub(crate) fn words(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: a text of the library's, which ends in zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Opens one of `names`, from `folders` first and then from where the loader looks.
pub(crate) fn open(folders: &[&std::path::Path], names: &[&str], hint: &str) -> Result<Library, Error> {
    let places = folders
        .iter()
        .flat_map(|folder| names.iter().map(|name| folder.join(name)));
    let mut why = Vec::new();
    for place in places.chain(names.iter().map(Into::into)) {
        // SAFETY: NVIDIA's libraries; their initialisers need nothing of ours.
        match unsafe { Library::open(Some(&place), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return Ok(library),
            // The loader's own words are one level down.
            Err(error) => why.push(error.source().map_or_else(|| error.to_string(), ToString::to_string)),
        }
    }
    Err(Error::Gpu(format!(
        "{} cannot be opened: {}\nhint: {hint}",
        names[0],
        why.join("; ")
    )))
}
