//! Tells the library where libtorch lies, at link time and at run time.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    // `.cargo/config.toml` sets LIBTORCH to a link in the checkout; what it points at outlives the checkout.
    let home = env::var("LIBTORCH").unwrap_or_default();
    let Ok(lib) = Path::new(&home).join("lib").canonicalize() else {
        println!("cargo:rustc-env=COATI_LIBTORCH_LIB=");
        return;
    };
    println!("cargo:rustc-env=COATI_LIBTORCH_LIB={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
