//! Whether this server and the master see the same folder: checkpoints are written by both.

use std::path::Path;

use coati_proto::coati::v1::CheckFolderRequest;

/// What server `index` finds wrong with the folder, in words for people; nothing where it is the caller's and can be written.
pub(super) fn problem(request: &CheckFolderRequest, index: u32) -> Option<String> {
    let folder = Path::new(&request.folder);
    let plain = !request.witness.is_empty() && !request.witness.contains(['/', '\0']) && request.witness != "..";
    if !plain {
        return Some(format!("`{}` is no file name", request.witness));
    }
    let shown = folder.display();
    let witness = folder.join(&request.witness);
    match coati_storage::read(&witness) {
        Ok(found) if found == request.content => {}
        Ok(_) => return Some(format!("{shown} is another folder here than on the master's host")),
        Err(error) if coati_storage::is_dir(folder) => {
            return Some(format!(
                "{shown} is another folder here than on the master's host: {} is not in it ({error})",
                request.witness
            ));
        }
        Err(error) => return Some(format!("{shown} cannot be read here: {error}")),
    }
    // Servers look at the same time, and processes of different hosts may have the same number.
    let own = folder.join(format!("{}.ps-{index}", request.witness));
    match coati_storage::create(&own).and_then(|made| made.finish().and_then(|()| coati_storage::remove(&own))) {
        Ok(()) => None,
        Err(error) => Some(format!("{shown} cannot be written here: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn another_folder_of_the_same_name_is_told_from_the_masters() {
        let folder = tempfile::tempdir().unwrap();
        let request = |folder: &Path| CheckFolderRequest {
            folder: folder.display().to_string(),
            witness: "witness".into(),
            content: b"of this job".as_slice().into(),
        };
        let words = |request: &CheckFolderRequest| problem(request, 0).unwrap();
        let here = request(folder.path());
        assert!(words(&here).contains("is another folder here than on the master's host: witness is not in it"));
        fs::write(folder.path().join("witness"), "of another").unwrap();
        assert!(words(&here).ends_with("is another folder here than on the master's host"));
        fs::write(folder.path().join("witness"), "of this job").unwrap();
        // Several at a time are in nobody's way, nor is what one that died has left.
        fs::write(folder.path().join("witness.ps-1"), "").unwrap();
        std::thread::scope(|scope| {
            for index in 0..5 {
                let here = &here;
                scope.spawn(move || (0..50).for_each(|_| assert_eq!(problem(here, index), None)));
            }
        });
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing is left behind"
        );
        let none = folder.path().join("none");
        assert!(words(&request(&none)).contains("cannot be read here: No such file"));
        for witness in ["", "..", "a/b", "/etc/passwd"] {
            let odd = CheckFolderRequest {
                witness: witness.into(),
                ..request(folder.path())
            };
            assert!(words(&odd).contains("is no file name"), "{witness}");
        }
    }
}
