//! Compressed files: gzip and zlib, which TensorFlow's writer makes when it is asked to (`TFRecordOptions`).
//!
//! In order they are inflated as they are read. At random they cannot be read, so [`spread`] writes the records to a file without
//! a name, which goes when it is closed. Only whole records with good lengths are written there: a small file that inflates to
//! something endless is no TFRecord and ends at its first header.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use flate2::read::{MultiGzDecoder, ZlibDecoder};

use super::{Error, HEADER_BYTES, Location, Reader, Writer, masked_crc32c};

/// Bytes asked of the file at once.
const BUFFER_BYTES: usize = 1 << 18;

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `TFRecordOptions("GZIP")`
    Gzip,
    /// `TFRecordOptions("ZLIB")`
    Zlib,
}

impl Compression {
    /// Told by a file's first bytes (12 or all that there are); `None` is a plain file.
    ///
    /// A plain file begins with a length, which may have any bytes: when the CRC beside it agrees it is one.
    pub fn of(start: &[u8]) -> Option<Self> {
        if let Some((length, crc)) = start.split_at_checked(8)
            && let Some(crc) = crc.first_chunk::<4>()
            && u32::from_le_bytes(*crc) == masked_crc32c(length)
        {
            return None;
        }
        match *start {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // RFC 1950: method 8, a window of at most 32 KiB, and a check that makes the two bytes divisible by 31.
            [method, flags, ..]
                if method & 0x0f == 8
                    && method >> 4 <= 7
                    && u16::from_be_bytes([method, flags]) % 31 == 0
                    && flags & 0x20 == 0 =>
            {
                Some(Self::Zlib)
            }
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zlib => "zlib",
        }
    }
}

/// A file's bytes, inflated where they are packed.
#[derive(Debug)]
pub struct Plain(Inner);

#[derive(Debug)]
enum Inner {
    Plain(BufReader<File>),
    Gzip(Box<MultiGzDecoder<BufReader<File>>>),
    Zlib(Box<ZlibDecoder<BufReader<File>>>),
}

impl Plain {
    /// Reads `file` from its start.
    pub(super) fn new(mut file: File) -> io::Result<Self> {
        let compression = compression(&mut file)?;
        let file = BufReader::with_capacity(BUFFER_BYTES, file);
        Ok(Self(match compression {
            None => Inner::Plain(file),
            Some(Compression::Gzip) => Inner::Gzip(Box::new(MultiGzDecoder::new(file))),
            Some(Compression::Zlib) => Inner::Zlib(Box::new(ZlibDecoder::new(file))),
        }))
    }

    /// How many bytes can be in a file of `bytes`: of a packed one, deflate's best is 1032 for one.
    pub(super) fn most(&self, bytes: u64) -> u64 {
        match self.0 {
            Inner::Plain(_) => bytes,
            Inner::Gzip(_) | Inner::Zlib(_) => bytes.saturating_mul(1032),
        }
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (result, compression) = match &mut self.0 {
            Inner::Plain(file) => return file.read(buffer),
            Inner::Gzip(file) => (file.read(buffer), Compression::Gzip),
            Inner::Zlib(file) => (file.read(buffer), Compression::Zlib),
        };
        result.map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return error;
            }
            let name = compression.name();
            let what = match error.kind() {
                io::ErrorKind::UnexpectedEof => format!("the {name} data end too early"),
                _ => format!("the {name} data are damaged: {error}"),
            };
            let hint = "the file was cut short or changed after writing; copy or write it again";
            io::Error::new(error.kind(), format!("{what}\nhint: {hint}"))
        })
    }
}

/// How `file` is packed; afterwards it stands at its start.
pub(super) fn compression(file: &mut File) -> io::Result<Option<Compression>> {
    let mut start = Vec::with_capacity(HEADER_BYTES as usize);
    (&mut *file).take(HEADER_BYTES).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(Compression::of(&start))
}

/// A packed file's records as a plain file without a name, in `folder` or else where temporary files lie.
///
/// Every record's CRCs are checked on the way; the first bad one is the error.
pub(super) fn spread(file: File, path: &Path, folder: Option<&Path>) -> Result<File, Error> {
    let at = |action: &'static str| {
        let location = Location {
            file: path.display().to_string(),
            record: 0,
            offset: 0,
        };
        move |source| Error::Io {
            location,
            action,
            source,
        }
    };
    let temporary = folder
        .map_or_else(tempfile::tempfile, |folder| {
            std::fs::create_dir_all(folder)?;
            tempfile::tempfile_in(folder)
        })
        .or_else(|_| tempfile::tempfile())
        .map_err(at("make a temporary file to unpack into"))?;
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, temporary));
    let bytes = file.metadata().map_err(at("stat"))?.len();
    let plain = Plain::new(file).map_err(at("read"))?;
    let most = plain.most(bytes);
    let mut reader = Reader::new(plain, path.display().to_string()).with_size(most);
    let mut data = Vec::new();
    while reader.read_into(&mut data)? {
        writer.write(&data).map_err(at("unpack"))?;
    }
    let mut buffered = writer.into_inner();
    buffered.flush().map_err(at("unpack"))?;
    buffered.into_inner().map_err(|error| at("unpack")(error.into_error()))
}
