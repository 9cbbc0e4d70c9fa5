//! Buckets, through `object_store`.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectMeta, ObjectStore, PutMode, PutOptions};

use crate::connect::{self, Bucket};
use crate::error::{Error, explain};
use crate::location::Location;
use crate::runtime::block;
use crate::settings::{PART_BYTES, SETTINGS};
use crate::store::{Entry, Stat, Store, Writer};
use crate::upload::Upload;

/// Small objects that are read at a time; the bucket's own limit holds besides.
const AT_ONCE: usize = 32;

/// All buckets.
#[derive(Debug)]
pub(crate) struct Buckets;

/// An object and the way to it.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub location: Location,
    pub key: Key,
    pub bucket: Bucket,
}

impl Object {
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let location = Location::parse(path)?;
        let key = Key::parse(&location.key).map_err(|error| {
            let text = format!("{location}: no key of an object: {error}");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        Ok(Self {
            bucket: connect::bucket(&location)?,
            location,
            key,
        })
    }

    pub(crate) fn error(&self, action: &'static str) -> impl Fn(object_store::Error) -> io::Error + '_ {
        move |error| explain(action, &self.location, &self.bucket.credentials, &error).into()
    }

    pub(crate) fn store(&self) -> &dyn ObjectStore {
        &*self.bucket.store
    }

    pub(crate) async fn stat(&self) -> io::Result<Stat> {
        let found = self.store().head(&self.key).await.map_err(self.error("find"))?;
        Ok(stat(&found))
    }

    /// One request. Of the object as it was when `tag` was its tag, if that is given.
    pub(crate) async fn get(&self, range: Range<u64>, tag: Option<String>) -> io::Result<Bytes> {
        let wanted = range.end - range.start;
        let options = GetOptions {
            range: Some(range.into()),
            if_match: tag,
            ..GetOptions::default()
        };
        let found = self.store().get_opts(&self.key, options).await;
        let bytes = match found {
            Ok(found) => found.bytes().await.map_err(self.error("read"))?,
            Err(error) => return Err(self.error("read")(error)),
        };
        if bytes.len() as u64 == wanted {
            return Ok(bytes);
        }
        let error = Error {
            action: "read",
            location: self.location.clone(),
            status: None,
            what: format!("{} bytes came where {wanted} were asked for", bytes.len()),
            hint: "the object was replaced by a shorter one while it was read".to_owned(),
            kind: io::ErrorKind::UnexpectedEof,
        };
        Err(error.into())
    }

    /// As [`Object::get`], large ranges in parts side by side.
    pub(crate) async fn get_large(&self, range: Range<u64>, tag: Option<String>) -> io::Result<Vec<Bytes>> {
        let parts = parts(range).into_iter().map(|part| self.get(part, tag.clone()));
        try_join_all(parts).await
    }

    async fn put(&self, bytes: Bytes, mode: PutMode) -> object_store::Result<()> {
        let options = PutOptions {
            mode,
            ..PutOptions::default()
        };
        self.store().put_opts(&self.key, bytes.into(), options).await.map(drop)
    }

    async fn read(&self) -> io::Result<Bytes> {
        let found = self.store().get(&self.key).await.map_err(self.error("read"))?;
        found.bytes().await.map_err(self.error("read"))
    }

    /// See [`Store::put_new`].
    async fn put_new(&self, bytes: Bytes) -> io::Result<bool> {
        if !SETTINGS.conditional_put {
            return match self.stat().await {
                Ok(_) => Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let put = self.put(bytes, PutMode::Overwrite).await;
                    put.map(|()| true).map_err(self.error("write"))
                }
                Err(error) => Err(error),
            };
        }
        match self.put(bytes.clone(), PutMode::Create).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                // The attempt before this one may have succeeded and its answer been lost: contents are told apart by their writers.
                match self.read().await {
                    Ok(found) => Ok(found == bytes),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(self.error("write")(error)),
        }
    }
}

pub(crate) fn stat(found: &ObjectMeta) -> Stat {
    Stat {
        bytes: found.size,
        modified_ns: found.last_modified.timestamp_nanos_opt().unwrap_or(0),
        tag: found.e_tag.clone(),
        is_dir: false,
    }
}

/// A range in pieces of one request.
fn parts(range: Range<u64>) -> Vec<Range<u64>> {
    let size = PART_BYTES as u64;
    let starts = (range.start..range.end).step_by(PART_BYTES);
    starts.map(|start| start..(start + size).min(range.end)).collect()
}

impl Store for Buckets {
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let object = Object::at(path)?;
        if object.location.key.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{}: a bucket, not an object", path.display()),
            ));
        }
        block(async move { object.stat().await })?
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let object = Object::at(path)?;
        block(async move { object.read().await })?.map(Vec::from)
    }

    fn read_range(&self, path: &Path, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let object = Object::at(path)?;
        let range = offset..offset + buffer.len() as u64;
        copy(&block(async move { object.get_large(range, None).await })??, buffer);
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        let object = Object::at(folder)?;
        let listed = block(async move {
            let prefix = (!object.location.key.is_empty()).then_some(&object.key);
            object
                .store()
                .list_with_delimiter(prefix)
                .await
                .map_err(object.error("list"))
        })??;
        let name = |key: &Key| key.filename().unwrap_or_default().to_owned();
        let folders = listed.common_prefixes.iter().map(|key| Entry {
            name: name(key),
            is_file: false,
            bytes: 0,
        });
        let files = listed.objects.iter().map(|object| Entry {
            name: name(&object.location),
            is_file: true,
            bytes: object.size,
        });
        let mut entries: Vec<Entry> = files.chain(folders).collect();
        entries.sort();
        Ok(entries)
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.list(path).is_ok_and(|entries| !entries.is_empty())
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > 4 * PART_BYTES {
            let mut writer = self.create(path)?;
            writer.write_all(bytes)?;
            return writer.finish();
        }
        let object = Object::at(path)?;
        let bytes = Bytes::copy_from_slice(bytes);
        block(async move {
            object
                .put(bytes, PutMode::Overwrite)
                .await
                .map_err(object.error("write"))
        })?
    }

    fn put_new(&self, path: &Path, bytes: &[u8]) -> io::Result<bool> {
        let object = Object::at(path)?;
        let bytes = Bytes::copy_from_slice(bytes);
        block(async move { object.put_new(bytes).await })?
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Writer>> {
        Ok(Box::new(Upload::new(Object::at(path)?)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let object = Object::at(path)?;
        block(async move {
            match object.store().delete(&object.key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(object.error("remove")(error)),
            }
        })?
    }

    fn read_many(&self, paths: &[PathBuf]) -> io::Result<Vec<Vec<u8>>> {
        let objects = paths
            .iter()
            .map(|path| Object::at(path))
            .collect::<io::Result<Vec<_>>>()?;
        block(async move {
            let reading = objects
                .into_iter()
                .map(|object| async move { object.read().await.map(Vec::from) });
            futures::stream::iter(reading).buffered(AT_ONCE).try_collect().await
        })?
    }

    fn remove_many(&self, paths: &[PathBuf]) -> io::Result<()> {
        let objects = paths
            .iter()
            .map(|path| Object::at(path))
            .collect::<io::Result<Vec<_>>>()?;
        let Some(first) = objects.first().cloned() else {
            return Ok(());
        };
        block(async move {
            let keys: Vec<_> = objects.into_iter().map(|object| Ok(object.key)).collect();
            let mut removing = first.store().delete_stream(futures::stream::iter(keys).boxed());
            while let Some(removed) = removing.next().await {
                match removed {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(first.error("remove")(error)),
                }
            }
            drop(removing);
            Ok(())
        })?
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        Location::parse(path).map(drop)
    }
}

/// Parts into one buffer of their whole size.
pub(crate) fn copy(parts: &[Bytes], buffer: &mut [u8]) {
    let mut at = 0;
    for part in parts {
        buffer[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_range_without_gaps() {
        let size = PART_BYTES as u64;
        assert_eq!(parts(5..7), [5..7]);
        assert_eq!(
            parts(1..2 * size + 3),
            [1..1 + size, 1 + size..1 + 2 * size, 1 + 2 * size..2 * size + 3]
        );
        assert!(parts(4..4).is_empty());
    }
}
