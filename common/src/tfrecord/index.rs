//! Random access: where each record of a file lies.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use coati_storage::{File, is_remote};

use super::compressed::{self, spread};
use super::kept::{self, Stamp};
use super::{Error, FOOTER_BYTES, HEADER_BYTES, Location, decode_header, masked_crc32c};

/// Where a record lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordSpan {
    /// Byte offset of the record's header.
    pub offset: u64,
    /// Bytes of data, without header and CRC.
    pub length: u64,
}

/// Finds all records of a plain file by walking their headers. Length CRCs are checked; data are not read.
pub fn index_file(path: &Path) -> Result<Vec<RecordSpan>, Error> {
    walk(&open(path)?, path)
}

/// Reads one record's data and checks its CRC. Any number of threads may share `file`; `path` and the record's index
/// `number` are for errors.
pub fn read_at(file: &File, path: &Path, number: u64, span: RecordSpan) -> Result<Vec<u8>, Error> {
    let location = || Location {
        file: path.display().to_string(),
        record: number,
        offset: span.offset,
    };
    let io_error = |source| Error::Io {
        location: location(),
        action: "read",
        source,
    };
    // The file may have become shorter since it was indexed; do not reserve memory for what is gone.
    let size = file.len().map_err(io_error)?;
    let wanted = span.length.saturating_add(FOOTER_BYTES);
    let start = span.offset.saturating_add(HEADER_BYTES);
    if start.saturating_add(wanted) > size {
        return Err(Error::Truncated {
            location: location(),
            part: "data",
            wanted,
            found: size.saturating_sub(start),
        });
    }
    let mut data = vec![0; wanted as usize];
    file.read_exact_at(&mut data, start).map_err(io_error)?;
    let footer = data.split_off(span.length as usize);
    let stored = u32::from_le_bytes(footer.try_into().unwrap_or_default());
    let computed = masked_crc32c(&data);
    if stored != computed {
        return Err(Error::DataCrc {
            location: location(),
            length: span.length,
            stored,
            computed,
        });
    }
    Ok(data)
}

/// A file of records that can be read in any order, from any number of threads.
///
/// A packed file is unpacked once, to a file without a name that lives as long as this; its spans are those of that file.
#[derive(Debug)]
pub struct IndexedFile {
    path: PathBuf,
    file: File,
    spans: Vec<RecordSpan>,
    /// When the file's headers were walked: what they are the headers of.
    walked: Option<Stamp>,
}

impl IndexedFile {
    /// Opens and indexes a file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::walked(open(path)?, path, None)
    }

    /// As [`IndexedFile::open`], but takes the index from `folder` if it has one of this file as it is now.
    pub fn open_kept(path: &Path, folder: &Path) -> Result<Self, Error> {
        let file = open(path)?;
        let index = kept::index_path(folder, path);
        let found = Stamp::of(&file).map_err(|error| error.to_string());
        match found.and_then(|stamp| kept::load(&index, &file, stamp)) {
            Ok(spans) => Ok(Self {
                path: path.to_owned(),
                file,
                spans,
                walked: None,
            }),
            Err(why) => {
                if coati_storage::exists(&index) {
                    tracing::info!(index = %index.display(), why, "indexing records again");
                }
                Self::walked(file, path, Some(folder))
            }
        }
    }

    fn walked(file: File, path: &Path, folder: Option<&Path>) -> Result<Self, Error> {
        let packed = compressed::compression(&file).map_err(|source| Error::Io {
            location: Location {
                file: path.display().to_string(),
                record: 0,
                offset: 0,
            },
            action: "read",
            source,
        })?;
        if packed.is_some() {
            // A folder in a bucket takes no temporary files.
            let unpacked = spread(&file, path, folder.filter(|folder| !is_remote(folder)))?;
            let file = File::of_local(path, unpacked);
            return Ok(Self {
                path: path.to_owned(),
                spans: walk(&file, path)?,
                file,
                // An index is of the file under that name, which cannot be read at random.
                walked: None,
            });
        }
        // From before the walk: if the file changes meanwhile, the index is not kept.
        let stamp = Stamp::of(&file).ok();
        let spans = walk(&file, path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            spans,
            walked: stamp,
        })
    }

    /// Keeps the index in `folder`, unless it came from there. A folder that cannot be written costs the next one a walk.
    pub fn keep(&self, folder: &Path) {
        let Some(stamp) = self.walked else { return };
        let index = kept::index_path(folder, &self.path);
        if let Err(error) = kept::store(&index, &self.file, stamp, &self.spans) {
            tracing::info!(index = %index.display(), %error, "the index of the records is not kept");
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// True when the file holds no record.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Where the records lie, in the order of the file.
    pub fn spans(&self) -> &[RecordSpan] {
        &self.spans
    }

    /// Reads record `index`; `None` when the file has no such record.
    pub fn read(&self, index: usize) -> Option<Result<Vec<u8>, Error>> {
        let span = *self.spans.get(index)?;
        Some(read_at(&self.file, &self.path, index as u64, span))
    }

    /// Says that record `index` will be read soon: in a bucket it is on its way then.
    pub fn prefetch(&self, index: usize) {
        if let Some(span) = self.spans.get(index) {
            self.file.prefetch(
                span.offset.saturating_add(HEADER_BYTES),
                span.length.saturating_add(FOOTER_BYTES),
            );
        }
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let location = || Location {
        file: path.display().to_string(),
        record: 0,
        offset: 0,
    };
    File::open(path).map_err(|source| Error::Io {
        location: location(),
        action: "open",
        source,
    })
}

fn walk(file: &File, path: &Path) -> Result<Vec<RecordSpan>, Error> {
    let mut spans: Vec<RecordSpan> = Vec::new();
    let mut offset = 0;
    let at = |record: usize, offset| Location {
        file: path.display().to_string(),
        record: record as u64,
        offset,
    };
    let io_error = |location| {
        move |source: io::Error| Error::Io {
            location,
            action: "read",
            source,
        }
    };
    let size = file.len().map_err(io_error(at(0, 0)))?;
    // A bucket answers in milliseconds, whatever is asked: all bytes, many at a time, come sooner than the headers one by one.
    let mut stream = if file.is_remote() {
        Some(file.sequential().map_err(io_error(at(0, 0)))?)
    } else {
        None
    };
    while offset < size {
        let record = spans.len();
        let left = size - offset;
        if left < HEADER_BYTES {
            let location = at(record, offset);
            return Err(Error::Truncated {
                location,
                part: "header",
                wanted: HEADER_BYTES,
                found: left,
            });
        }
        let mut header = [0; HEADER_BYTES as usize];
        match &mut stream {
            Some(stream) => stream.read_exact(&mut header),
            None => file.read_exact_at(&mut header, offset),
        }
        .map_err(io_error(at(record, offset)))?;
        let length = decode_header(header, || at(record, offset))?;
        let room = (left - HEADER_BYTES).saturating_sub(FOOTER_BYTES);
        if length > room {
            return Err(Error::TooLong {
                location: at(record, offset),
                length,
                left: room,
            });
        }
        if left - HEADER_BYTES - length < FOOTER_BYTES {
            let location = at(record, offset);
            let wanted = length + FOOTER_BYTES;
            return Err(Error::Truncated {
                location,
                part: "data",
                wanted,
                found: left - HEADER_BYTES,
            });
        }
        if let Some(stream) = &mut stream {
            let left_out = stream.skip(length + FOOTER_BYTES);
            left_out.map_err(io_error(at(record, offset)))?;
        }
        spans.push(RecordSpan { offset, length });
        offset += HEADER_BYTES + length + FOOTER_BYTES;
    }
    Ok(spans)
}
