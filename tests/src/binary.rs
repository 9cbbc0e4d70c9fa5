//! Where the binary is.

use std::env;
use std::path::PathBuf;

/// The binary under test: `COATI_TEST_BINARY`, or `coati` where cargo puts it.
pub fn coati_binary() -> PathBuf {
    if let Some(given) = env::var_os("COATI_TEST_BINARY") {
        let path = PathBuf::from(given);
        assert!(
            path.is_file(),
            "COATI_TEST_BINARY is {}, which is no file",
            path.display()
        );
        return path;
    }
    // A test is target/<profile>/deps/<name>, a binary beside the one that is looked for.
    let own = crate::or_panic(env::current_exe(), "cannot find this program's own file");
    let mut folders = own.ancestors().skip(1).take(2).map(|folder| folder.join("coati"));
    match folders.find(|path| path.is_file()) {
        Some(path) => path,
        None => panic!(
            "no binary `coati` beside {} or one folder above\nhint: build it with `cargo build --release --locked --workspace --bins`, run `scripts/test`, or set COATI_TEST_BINARY",
            own.display()
        ),
    }
}
