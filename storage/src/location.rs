//! `gs://BUCKET/KEY` and `s3://BUCKET/KEY`.

use std::fmt;
use std::io;
use std::path::Path;

/// Whose protocol a bucket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Google Cloud Storage.
    Gs,
    /// Amazon S3 and what speaks as it does.
    S3,
}

impl Scheme {
    /// As in a URL, without `://`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gs => "gs",
            Self::S3 => "s3",
        }
    }
}

/// An object, or a folder of objects, in a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// Which protocol.
    pub scheme: Scheme,
    /// Never empty.
    pub bucket: String,
    /// Without a slash at either end; empty for the bucket itself.
    pub key: String,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme.name(), self.bucket, self.key)
    }
}

/// Whether a path is the URL of something in a bucket.
pub fn is_remote(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.starts_with(b"gs://") || bytes.starts_with(b"s3://")
}

impl Location {
    /// Takes a URL apart.
    pub fn parse(path: &Path) -> io::Result<Self> {
        let refuse = |what: &str| {
            let text = format!(
                "{}: {what}\nhint: write gs://BUCKET/KEY or s3://BUCKET/KEY",
                path.display()
            );
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        };
        let Some(text) = path.to_str() else {
            return refuse("not UTF-8");
        };
        let (scheme, rest) = match text.split_once("://") {
            Some(("gs", rest)) => (Scheme::Gs, rest),
            Some(("s3", rest)) => (Scheme::S3, rest),
            _ => return refuse("no URL of a bucket"),
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return refuse("no bucket is named");
        }
        // `join` of `.` and doubled slashes mean nothing to people, and other objects to a bucket.
        let segments: Vec<&str> = key.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if segments.contains(&"..") {
            return refuse("`..` has no meaning in a bucket");
        }
        Ok(Self {
            scheme,
            bucket: bucket.to_owned(),
            key: segments.join("/"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_survive_what_paths_do_to_them() {
        let folder = Path::new("s3://pictures/sets/train");
        let file = folder.join("a.record").with_extension("index");
        let found = Location::parse(&file).unwrap();
        assert_eq!(
            (found.scheme, found.bucket.as_str(), found.key.as_str()),
            (Scheme::S3, "pictures", "sets/train/a.index")
        );
        assert_eq!(found.to_string(), "s3://pictures/sets/train/a.index");
        assert_eq!(Location::parse(folder.parent().unwrap()).unwrap().key, "sets");
        assert_eq!(Location::parse(Path::new("gs://b")).unwrap().key, "");
        assert_eq!(Location::parse(Path::new("gs://b//x/./y/")).unwrap().key, "x/y");
    }

    #[test]
    fn what_is_no_bucket_is_refused_with_what_would_be_right() {
        for text in ["s3://", "gs:///key", "s3://b/../x", "https://b/k", "b/k"] {
            let error = Location::parse(Path::new(text)).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("hint: write gs://"), "{error}");
        }
        assert!(!is_remote(Path::new("/data/s3://x")) && !is_remote(Path::new("file:///x")));
    }
}
