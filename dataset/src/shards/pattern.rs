//! From the paths in `input_path` to the files that they mean.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Component, Path, PathBuf};

use coati_storage::{is_dir, is_file, is_remote};

/// Why paths could not be turned into files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was given.
    #[error("no input path is given\nhint: set `tf_record_input_reader {{ input_path: \"…\" }}`")]
    NoPaths,
    /// A plain path does not exist.
    #[error("{path}: no such file{similar}")]
    Missing {
        /// As written.
        path: String,
        /// A hint with what lies there, or empty.
        similar: String,
    },
    /// A pattern matches nothing.
    #[error(
        "{pattern}: no file matches this pattern\nhint: `?` stands for one character, `*` for any number; the folder is {folder}"
    )]
    NoMatch {
        /// As written.
        pattern: String,
        /// Where files were looked for.
        folder: PathBuf,
    },
    /// Some files of a sharded set are absent.
    #[error(
        "{missing}: this shard is missing; {present} of the {total} shards of {set} are there\nhint: copy the missing file, or name the files that you want one by one"
    )]
    IncompleteSet {
        /// The first file that is absent.
        missing: PathBuf,
        /// How many of the set are there.
        present: usize,
        /// How many there should be.
        total: usize,
        /// Path without the shard's suffix.
        set: String,
    },
    /// A shard number that makes no sense.
    #[error("{path}: {reason}")]
    BadShardSpec {
        /// As written.
        path: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A scheme that is not read here.
    #[error(
        "{path}: records are read from local files, gs:// and s3://\nhint: copy the data set to one of these and give that path"
    )]
    Remote {
        /// As written.
        path: String,
    },
    /// A folder could not be listed.
    #[error("{folder}: the folder cannot be listed: {source}")]
    List {
        /// Which.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// More shards than this in one set are taken for a typing error.
const MAX_SHARDS: usize = 100_000;

/// The files that `paths` mean, in order, each once.
///
/// Understood are plain paths, patterns with `?`, `*` and `[…]`, and `name@3` for
/// `name-00000-of-00003` … `name-00002-of-00003`; an element may list several, separated by commas.
/// A set named by a pattern or by `@` must be complete; files named one by one need not be.
pub fn expand<S: AsRef<str>>(paths: &[S]) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for path in paths.iter().flat_map(|path| split_list(path.as_ref())) {
        for file in expand_one(path)? {
            // A record counts once an epoch even where patterns overlap.
            if seen.insert(file.clone()) {
                files.push(file);
            }
        }
    }
    if files.is_empty() {
        Err(Error::NoPaths)
    } else {
        Ok(files)
    }
}

/// Splits at commas, unless a file of that very name exists.
fn split_list(path: &str) -> Vec<&str> {
    if Path::new(path).exists() {
        return vec![path];
    }
    path.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn expand_one(written: &str) -> Result<Vec<PathBuf>, Error> {
    let path = written.strip_prefix("file://").unwrap_or(written);
    if path.contains("://") && !is_remote(Path::new(path)) {
        return Err(Error::Remote {
            path: written.to_owned(),
        });
    }
    if is_plain(path) {
        return Ok(vec![PathBuf::from(path)]);
    }
    if let Some((base, count)) = path.rsplit_once('@')
        && !count.is_empty()
        && count.bytes().all(|byte| byte.is_ascii_digit())
    {
        return numbered(written, base, count);
    }
    if path.contains(['*', '?', '[']) {
        let files = glob(path)?;
        if files.is_empty() {
            let folder = Path::new(path).parent().filter(|folder| !folder.as_os_str().is_empty());
            return Err(Error::NoMatch {
                pattern: written.to_owned(),
                folder: folder.unwrap_or_else(|| Path::new(".")).to_owned(),
            });
        }
        check_complete(&files)?;
        return Ok(files);
    }
    Err(Error::Missing {
        path: written.to_owned(),
        similar: similar(Path::new(path)),
    })
}

/// `base@count`.
fn numbered(written: &str, base: &str, count: &str) -> Result<Vec<PathBuf>, Error> {
    let total = count
        .parse::<usize>()
        .ok()
        .filter(|total| (1..=MAX_SHARDS).contains(total))
        .ok_or_else(|| Error::BadShardSpec {
            path: written.to_owned(),
            reason: format!("`@{count}` must be a number of shards from 1 to {MAX_SHARDS}"),
        })?;
    let files: Vec<_> = (0..total).map(|index| shard_path(base, index, total)).collect();
    let there = present(&files);
    let present = there.iter().filter(|there| **there).count();
    match files
        .iter()
        .zip(&there)
        .find(|(_, there)| !**there)
        .map(|(file, _)| file)
    {
        Some(missing) => Err(Error::IncompleteSet {
            missing: missing.clone(),
            present,
            total,
            set: base.to_owned(),
        }),
        None => Ok(files),
    }
}

/// Whether a path is a file's as it stands. What has wildcards is not asked for in a bucket.
fn is_plain(path: &str) -> bool {
    let may_be = !(is_remote(Path::new(path)) && path.contains(['*', '?', '[', '@']));
    may_be && is_file(Path::new(path))
}

/// Which of these files, all of one folder, are there: in a bucket a list of the folder tells of all at once.
fn present(files: &[PathBuf]) -> Vec<bool> {
    let Some(folder) = files
        .first()
        .filter(|file| is_remote(file))
        .and_then(|file| file.parent())
    else {
        return files.iter().map(|file| file.is_file()).collect();
    };
    let names: HashSet<String> = coati_storage::list(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.name)
        .collect();
    let name = |file: &PathBuf| file.file_name().map(|name| name.to_string_lossy().into_owned());
    files
        .iter()
        .map(|file| name(file).is_some_and(|name| names.contains(&name)))
        .collect()
}

/// `gs://BUCKET/` of a pattern in a bucket, else nothing.
fn bucket_of(pattern: &str) -> &str {
    if !is_remote(Path::new(pattern)) {
        return "";
    }
    let scheme = "gs://".len();
    let end = pattern[scheme..].find('/').map_or(pattern.len(), |at| scheme + at + 1);
    &pattern[..end]
}

/// `base-00001-of-00003`, as TensorFlow names shards.
pub fn shard_path(base: &str, index: usize, total: usize) -> PathBuf {
    PathBuf::from(format!("{base}-{index:05}-of-{total:05}"))
}

/// Reads the end `-00001-of-00003` of a name: (base, index, total).
pub fn parse_shard(path: &str) -> Option<(&str, usize, usize)> {
    let (rest, total) = path.rsplit_once("-of-")?;
    let (base, index) = rest.rsplit_once('-')?;
    let number = |digits: &str| {
        (digits.len() >= 5 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
    };
    Some((base, number(index)?, number(total)?))
}

/// Each sharded set that a pattern found must have all of its files.
fn check_complete(files: &[PathBuf]) -> Result<(), Error> {
    let mut sets: BTreeMap<(&str, usize), HashSet<usize>> = BTreeMap::new();
    for file in files.iter().filter_map(|file| file.to_str()) {
        if let Some((base, index, total)) = parse_shard(file) {
            if index >= total || total > MAX_SHARDS {
                return Err(Error::BadShardSpec {
                    path: file.to_owned(),
                    reason: format!("shard {index} of {total} cannot be: shards count from 0"),
                });
            }
            sets.entry((base, total)).or_default().insert(index);
        }
    }
    for ((base, total), present) in sets {
        if let Some(missing) = (0..total).find(|index| !present.contains(index)) {
            return Err(Error::IncompleteSet {
                missing: shard_path(base, missing, total),
                present: present.len(),
                total,
                set: base.to_owned(),
            });
        }
    }
    Ok(())
}

/// A hint for a path that is not there: a sharded set of that name, or the folder that is absent.
fn similar(path: &Path) -> String {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    if !is_dir(folder) {
        return format!("\nhint: the folder {} does not exist", folder.display());
    }
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return String::new();
    };
    let sharded = coati_storage::list(folder).into_iter().flatten().find_map(|entry| {
        let (base, _, total) = parse_shard(&entry.name)?;
        (base == name).then_some(total)
    });
    match sharded {
        Some(total) => format!("\nhint: there are shards of it; write {}@{total}", path.display()),
        None => String::new(),
    }
}

/// The files that a pattern (`*`, `?`, `[…]`) matches, sorted; none is no error.
pub fn glob(pattern: &str) -> Result<Vec<PathBuf>, Error> {
    // What a path takes for a folder and a bucket's name is neither, and has no wildcards.
    let start = bucket_of(pattern);
    let mut found = vec![PathBuf::from(start)];
    let mut components = Path::new(&pattern[start.len()..]).components().peekable();
    while let Some(component) = components.next() {
        let Component::Normal(part) = component else {
            for path in &mut found {
                path.push(component);
            }
            continue;
        };
        let part = part.to_string_lossy();
        let is_last = components.peek().is_none();
        if !part.contains(['*', '?', '[']) {
            for path in &mut found {
                path.push(&*part);
            }
            continue;
        }
        let mut next = Vec::new();
        for folder in found {
            next.extend(matching_entries(&folder, &part, is_last)?);
        }
        found = next;
    }
    // In a bucket, what a list tells of is there; only a plain name below a pattern has to be asked for.
    let listed = pattern
        .rsplit('/')
        .next()
        .is_some_and(|name| name.contains(['*', '?', '[']));
    if start.is_empty() || !listed {
        found.retain(|path| is_file(path));
    }
    found.sort();
    Ok(found)
}

fn matching_entries(folder: &Path, pattern: &str, is_last: bool) -> Result<Vec<PathBuf>, Error> {
    let listed = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let failed = |source| Error::List {
        folder: listed.to_owned(),
        source,
    };
    if !is_remote(listed) && !listed.is_dir() {
        return Ok(Vec::new());
    }
    let pattern: Vec<char> = pattern.chars().collect();
    let mut entries = Vec::new();
    for entry in coati_storage::list(listed).map_err(failed)? {
        let name = entry.name;
        let characters: Vec<char> = name.chars().collect();
        if is_remote(listed) && entry.is_file != is_last {
            continue;
        }
        let hidden = characters.first() == Some(&'.') && pattern.first() != Some(&'.');
        if !hidden && matches(&pattern, &characters) {
            entries.push(folder.join(name));
        }
    }
    Ok(entries)
}

/// Whether a name matches a pattern of `?`, `*`, `[abc]`, `[a-z]`, `[!…]` and plain characters.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when a `*` has to take one character more.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                retry = Some((p, n));
                p += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => match_class(&pattern[p..], name[n]),
            Some(&character) if character == name[n] => Some(1),
            _ => None,
        };
        match (step, retry) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((star, taken))) => {
                retry = Some((star, taken + 1));
                p = star + 1;
                n = taken + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&character| character == '*')
}

/// The length of the class `[…]` at the start of `pattern` when it takes `character`; an unclosed `[` is itself.
fn match_class(pattern: &[char], character: char) -> Option<usize> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let start = if negated { 2 } else { 1 };
    let Some(length) = pattern.iter().skip(start + 1).position(|&c| c == ']') else {
        return (character == '[').then_some(1);
    };
    let end = start + 1 + length;
    let members = &pattern[start..end];
    let mut inside = false;
    let mut at = 0;
    while at < members.len() {
        if at + 2 < members.len() && members[at + 1] == '-' {
            inside |= (members[at]..=members[at + 2]).contains(&character);
            at += 3;
        } else {
            inside |= members[at] == character;
            at += 1;
        }
    }
    (inside != negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        folder
    }

    fn names(folder: &tempfile::TempDir, paths: &[&str]) -> Result<Vec<String>, String> {
        let paths: Vec<_> = paths
            .iter()
            .map(|path| format!("{}/{path}", folder.path().display()))
            .collect();
        let files = expand(&paths).map_err(|error| error.to_string())?;
        let base = folder.path();
        Ok(files
            .iter()
            .map(|file| file.strip_prefix(base).unwrap().display().to_string())
            .collect())
    }

    const THREE: [&str; 3] = [
        "a.record-00000-of-00003",
        "a.record-00001-of-00003",
        "a.record-00002-of-00003",
    ];

    #[test]
    fn all_spellings_of_a_sharded_set_agree() {
        let folder = folder(&[&THREE[..], &["b.record", "deep/c.record"]].concat());
        for path in [
            "a.record-?????-of-00003",
            "a.record@3",
            "a.record*",
            "a.record-0000[0-2]-of-*",
        ] {
            assert_eq!(names(&folder, &[path]).unwrap(), THREE, "{path}");
        }
        assert_eq!(names(&folder, &["*/c.record"]).unwrap(), ["deep/c.record"]);
        assert_eq!(
            names(&folder, &["b.record", "a.record@3"]).unwrap()[..2],
            ["b.record", THREE[0]]
        );
        assert_eq!(
            names(&folder, &["a.record@3", THREE[1]]).unwrap(),
            THREE,
            "each file once"
        );
        assert_eq!(
            names(&folder, &[THREE[1]]).unwrap(),
            [THREE[1]],
            "a shard named by itself"
        );
        let list = format!("{0}/b.record, {0}/a.record@3", folder.path().display());
        assert_eq!(expand(&[list]).unwrap().len(), 4);
    }

    #[test]
    fn an_incomplete_set_names_the_missing_file() {
        let folder = folder(&[THREE[0], THREE[2]]);
        for path in ["a.record-?????-of-00003", "a.record@3", "*"] {
            let error = names(&folder, &[path]).unwrap_err();
            assert!(
                error.contains("a.record-00001-of-00003: this shard is missing; 2 of the 3"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_not_there_is_said_with_a_hint() {
        let folder = folder(&THREE);
        let error = names(&folder, &["a.record"]).unwrap_err();
        assert!(
            error.contains("no such file") && error.contains("a.record@3"),
            "{error}"
        );
        let error = names(&folder, &["nowhere/a.record"]).unwrap_err();
        assert!(error.contains("nowhere does not exist"), "{error}");
        assert!(names(&folder, &["b*"]).unwrap_err().contains("no file matches"));
        assert!(names(&folder, &["nowhere/b*"]).unwrap_err().contains("no file matches"));
        assert!(names(&folder, &["a.record@0"]).unwrap_err().contains("from 1 to"));
        assert!(
            expand(&["hdfs://bucket/a"])
                .unwrap_err()
                .to_string()
                .contains("local files, gs:// and s3://")
        );
        assert!(matches!(expand::<&str>(&[]), Err(Error::NoPaths)));
    }

    #[test]
    fn patterns_match_whole_names() {
        let check = |pattern: &str, name: &str| {
            matches(&pattern.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>())
        };
        assert!(check("a*c?e", "abbbcde") && check("*", "") && check("[!b]*", "abc") && check("x[", "x["));
        assert!(!check("a*c", "abcd") && !check("?", "") && !check("[a-c]", "d") && !check("abc", "ab"));
    }
}
