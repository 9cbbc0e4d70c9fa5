//! Where the binary is.

use std::env;
use std::path::PathBuf;

/// The binary under test: `COATI_TEST_BINARY`, or `coati` where cargo puts it beside this test.
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
    // This test is target/<profile>/deps/<name>.
    let own = crate::or_panic(env::current_exe(), "cannot find this test's own file");
    let path = own.ancestors().nth(2).map(|folder| folder.join("coati"));
    match path {
        Some(path) if path.is_file() => path,
        _ => panic!(
            "no binary `coati` two folders above {}\nhint: build it with `cargo build --release --locked --workspace --bins`, run `scripts/test`, or set COATI_TEST_BINARY",
            own.display()
        ),
    }
}
