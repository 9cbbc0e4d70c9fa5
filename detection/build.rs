//! Lets the tests and examples that link libtorch find it at run time without `LD_LIBRARY_PATH`.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // `.cargo/config.toml` sets LIBTORCH to a link in the checkout; what it points at outlives the checkout.
    let Ok(home) = env::var("LIBTORCH") else { return };
    let Ok(lib) = Path::new(&home).join("lib").canonicalize() else {
        return;
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
