//! Finds the annotations of a Pascal VOC folder, whichever tool laid it out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::Error;
use super::super::files::{ends_in, entries, entries_if_any};

/// Names of annotation folders in use, first match wins.
const ANNOTATIONS: [&str; 3] = ["Annotations", "annotations", "xml"];
/// Names of image folders in use.
const IMAGES: [&str; 3] = ["JPEGImages", "images", "Images"];

/// Endings of image files, in lower case.
const IMAGE_ENDINGS: [&str; 3] = [".jpg", ".jpeg", ".png"];

/// The annotation files to import, sorted, and where images may lie.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub annotations: Vec<PathBuf>,
    pub image_folders: Vec<PathBuf>,
}

/// Looks at `data_dir` (or `data_dir/VOC<year>`): `Annotations` + `JPEGImages` (+ `ImageSets/Main/<set>.txt`), or XML files lying beside
/// their images as `LabelImg` leaves them.
pub(super) fn find(
    data_dir: &Path,
    year: Option<&str>,
    set: Option<&str>,
    annotations_dir: Option<&str>,
) -> Result<Layout, Error> {
    let root = match year {
        Some(year) => data_dir.join(year),
        None => data_dir.to_owned(),
    };
    if !coati_storage::is_dir(&root) {
        return Err(Error::Layout {
            folder: root,
            what: "no such folder".to_owned(),
            hint: "--data_dir names the folder that holds Annotations and JPEGImages (or, with --year VOC2012, the folder above)".to_owned(),
        });
    }
    let annotations_folder = match annotations_dir {
        Some(name) => root.join(name),
        None => ANNOTATIONS
            .iter()
            .map(|name| root.join(name))
            .find(|folder| coati_storage::is_dir(folder))
            .unwrap_or_else(|| root.clone()),
    };
    let mut image_folders: Vec<PathBuf> = IMAGES
        .iter()
        .map(|name| root.join(name))
        .filter(|folder| coati_storage::is_dir(folder))
        .collect();
    for folder in [&annotations_folder, &root] {
        if !image_folders.contains(folder) {
            image_folders.push(folder.clone());
        }
    }
    let annotations = match set {
        Some(set) => listed(&root, set, &annotations_folder)?,
        None => all(&annotations_folder)?,
    };
    if annotations.is_empty() {
        return Err(Error::Empty {
            folder: annotations_folder,
            hint: "one .xml file an image is expected, as LabelImg, VoTT or the Pascal VOC sets have them".to_owned(),
        });
    }
    Ok(Layout {
        annotations,
        image_folders,
    })
}

fn all(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = entries(folder)?;
    files.retain(|path| ends_in(path, "xml"));
    Ok(files)
}

/// A name a line, perhaps followed by -1, 0 or 1 (the per-class lists of VOC).
fn listed(root: &Path, set: &str, annotations: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut names = BTreeSet::new();
    for path in lists(root, set) {
        let text = coati_storage::read_to_string(&path).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
        names.extend(text.lines().filter_map(|line| {
            let name = line.split_whitespace().next()?;
            let lower = name.to_ascii_lowercase();
            // VoTT lists names of image files.
            let ending = IMAGE_ENDINGS.into_iter().find(|ending| lower.ends_with(ending));
            Some(name[..name.len() - ending.map_or(0, str::len)].to_owned())
        }));
    }
    if names.is_empty() {
        let path = root.join("ImageSets/Main").join(format!("{set}.txt"));
        return Err(Error::Layout {
            folder: root.to_owned(),
            what: format!("no image set `{set}`: {} does not exist", path.display()),
            hint: format!(
                "sets here: {}; leave --set out to take every annotation",
                sets(root).join(", ")
            ),
        });
    }
    Ok(names
        .into_iter()
        .map(|name| annotations.join(format!("{name}.xml")))
        .collect())
}

/// `<set>.txt`, else the lists of single classes (`aeroplane_<set>.txt`): `VoTT` writes only those, and the reference reads one.
fn lists(root: &Path, set: &str) -> Vec<PathBuf> {
    let folder = root.join("ImageSets/Main");
    let whole = folder.join(format!("{set}.txt"));
    if coati_storage::is_file(&whole) {
        return vec![whole];
    }
    let ending = format!("_{set}.txt");
    let mut lists = entries_if_any(&folder);
    lists.retain(|path| path.to_string_lossy().ends_with(&ending));
    lists
}

fn sets(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = entries_if_any(&root.join("ImageSets/Main"))
        .iter()
        .filter_map(|path| path.file_stem()?.to_str().map(str::to_owned))
        .collect();
    if names.is_empty() {
        names.push("none".to_owned());
    }
    names
}
