//! What can be seen of NCCL without a GPU.

use coati_collective::nccl::Libraries;

#[test]
fn a_library_that_is_missing_names_what_to_install() {
    // COATI_NCCL_FOLDERS: where to look besides, separated by colons.
    let folders = std::env::var("COATI_NCCL_FOLDERS").unwrap_or_default();
    let folders: Vec<&std::path::Path> = folders
        .split(':')
        .filter(|place| !place.is_empty())
        .map(std::path::Path::new)
        .collect();
    let libraries = match Libraries::open(&folders) {
        Ok(libraries) => libraries,
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("cannot be opened: lib") && text.contains("\nhint: install "),
                "{text}"
            );
            assert!(
                text.contains("libnccl2") || text.contains("nvidia-cuda-runtime"),
                "{text}"
            );
            return;
        }
    };
    println!("NCCL {}", libraries.version());
    // No machine has so many.
    let text = libraries.check_device(1000).unwrap_err().to_string();
    assert!(text.contains("\nhint: "), "{text}");
    println!("{text}");
}
