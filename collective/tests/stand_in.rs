//! Builds the library that stands for NCCL and CUDA; end-to-end tests include this file, too.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The folder of the stand-in, built once for all tests of this process.
pub(crate) fn libraries() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libnccl.so.2");
        let mut compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-x", "c", "-", "-o"])
            .arg(&library)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a C compiler");
        let source = include_bytes!("fixtures/gpu_stand_in.c");
        compiler.stdin.take().unwrap().write_all(source).unwrap();
        assert!(compiler.wait().unwrap().success(), "gpu_stand_in.c cannot be compiled");
        std::os::unix::fs::symlink(&library, folder.path().join("libcudart.so.13")).unwrap();
        folder
    });
    folder.path()
}
