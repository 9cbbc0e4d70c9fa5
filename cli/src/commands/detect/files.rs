//! Which files are meant, and what the pictures made of them are called.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use coati_dataset::shards::pattern;

use crate::failure::Failure;

/// Endings of the files that are taken from a folder.
const ENDINGS: [&str; 3] = ["jpg", "jpeg", "png"];

/// The files that these words mean, each once: a file whatever its ending, of a folder its JPEG and PNG files, of a pattern what matches.
pub(super) fn pictures(words: &[String]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for word in words {
        for file in expand(word)? {
            if seen.insert(file.clone()) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

fn expand(word: &str) -> anyhow::Result<Vec<PathBuf>> {
    let path = Path::new(word);
    if coati_storage::is_file(path) {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = if coati_storage::is_dir(path) {
        let entries = coati_storage::list(path).with_context(|| format!("cannot list {word}"))?;
        let files = entries.into_iter().filter(|entry| entry.is_file);
        files
            .map(|entry| path.join(entry.name))
            .filter(|file| is_picture(file))
            .collect()
    } else if word.contains(['*', '?', '[']) {
        pattern::glob(word)?
    } else {
        return Err(Failure::user(format!(
            "--image {word}: no such file or folder\nhint: a picture, a folder of pictures, or a pattern such as 'frames/*.jpg'"
        ))
        .into());
    };
    if found.is_empty() {
        return Err(Failure::user(format!(
            "--image {word}: no picture is there\nhint: of a folder the files are taken that end in .jpg, .jpeg or .png; of a pattern those that match"
        ))
        .into());
    }
    found.sort_by(|a, b| in_order(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(found)
}

fn is_picture(path: &Path) -> bool {
    path.extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| ENDINGS.iter().any(|known| known.eq_ignore_ascii_case(ending)))
}

/// Frames in the order of their numbers: `frame9` comes before `frame10`.
fn in_order(mut a: &str, mut b: &str) -> Ordering {
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    loop {
        let (m, n) = (digits(a), digits(b));
        if m > 0 && n > 0 {
            let value = |text: &str| text.trim_start_matches('0').to_owned();
            let (x, y) = (value(&a[..m]), value(&b[..n]));
            let order = x.len().cmp(&y.len()).then_with(|| x.cmp(&y)).then_with(|| n.cmp(&m));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (&a[m..], &b[n..]);
            continue;
        }
        let (mut x, mut y) = (a.chars(), b.chars());
        match (x.next(), y.next()) {
            (Some(left), Some(right)) if left == right => (a, b) = (x.as_str(), y.as_str()),
            (left, right) => return left.cmp(&right),
        }
    }
}

/// The name of the picture made of `path`, told apart from those of files of the same name in other folders. JPEG stays JPEG, all else becomes PNG.
pub(super) fn free_name(names: &mut HashSet<String>, path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let ending = match ending.as_deref() {
        Some("jpg" | "jpeg") => "jpg",
        _ => "png",
    };
    let mut name = format!("{stem}.{ending}");
    let mut number = 2;
    while !names.insert(name.clone()) {
        name = format!("{stem}_{number}.{ending}");
        number += 1;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_the_order_of_their_numbers() {
        let mut names = [
            "f/10.jpg",
            "f/9.jpg",
            "f/a2b10.png",
            "f/a2b9.png",
            "f/09.jpg",
            "e/11.jpg",
            "f/9",
        ];
        names.sort_by(|a, b| in_order(a, b));
        assert_eq!(
            names,
            [
                "e/11.jpg",
                "f/09.jpg",
                "f/9",
                "f/9.jpg",
                "f/10.jpg",
                "f/a2b9.png",
                "f/a2b10.png"
            ]
        );
    }

    #[test]
    fn pictures_of_one_name_do_not_meet() {
        let mut names = HashSet::new();
        let made: Vec<_> = ["a/x.jpg", "b/x.JPEG", "x.png", "y", "c/x.jpg"]
            .iter()
            .map(|path| free_name(&mut names, Path::new(path)))
            .collect();
        assert_eq!(made, ["x.jpg", "x_2.jpg", "x.png", "y.png", "x_3.jpg"]);
    }

    #[test]
    fn folders_give_their_pictures_and_nothing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["2.jpg", "10.PNG", "notes.txt", "1.jpeg"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let word = |name: &str| folder.path().join(name).display().to_string();
        let names = |words: &[String]| -> Vec<String> {
            let files = pictures(words).unwrap().into_iter();
            files
                .map(|file| file.file_name().unwrap().to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(names(&[word("")]), ["1.jpeg", "2.jpg", "10.PNG"]);
        assert_eq!(
            names(&[word("*.jp*g"), word("2.jpg"), word("notes.txt")]),
            ["1.jpeg", "2.jpg", "notes.txt"]
        );
        let error = |name: &str| pictures(&[word(name)]).unwrap_err().to_string();
        assert!(error("none.jpg").contains("no such file or folder\nhint:"));
        assert!(error("*.gif").contains("no picture is there"));
    }
}
