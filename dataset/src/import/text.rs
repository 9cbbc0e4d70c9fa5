//! Annotation files as text: with or without a byte-order mark, UTF-8 or UTF-16, and never endlessly long.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::Error;

/// One image's annotation is never longer; what is was not made by a labelling tool.
pub(super) const MOST_OF_ONE_IMAGE: u64 = 16 << 20;

/// Reads a text file of at most `most` bytes. Bytes that are no text become U+FFFD.
pub(super) fn read(path: &Path, most: u64) -> Result<String, Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let size;
    if coati_storage::is_remote(path) {
        let stat = coati_storage::stat(path).map_err(failed)?;
        size = stat.bytes;
        if size <= most {
            bytes = coati_storage::read(path).map_err(failed)?;
        }
    } else {
        File::open(path)
            .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
            .map_err(failed)?;
        size = bytes.len() as u64;
    }
    if size > most {
        let why = format!("the file is larger than {} MiB, which no annotation is", most >> 20);
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, why)));
    }
    Ok(decode(bytes))
}

/// Text of bytes with or without a byte-order mark.
pub(super) fn decode(bytes: Vec<u8>) -> String {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|&pair| unit(pair)).collect();
        String::from_utf16_lossy(&units)
    };
    match bytes.as_slice() {
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        _ => String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_understood() {
        let text = "é,1\n";
        let units: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        for bytes in [
            text.as_bytes().to_vec(),
            [&[0xef, 0xbb, 0xbf], text.as_bytes()].concat(),
            [&[0xff, 0xfe], little.as_slice()].concat(),
            [&[0xfe, 0xff], big.as_slice()].concat(),
        ] {
            assert_eq!(decode(bytes), text);
        }
        assert_eq!(decode(vec![b'a', 0xff]), "a\u{fffd}");
    }

    #[test]
    fn a_file_too_long_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.xml");
        std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        let error = read(&path, 1 << 20).unwrap_err().to_string();
        assert!(
            error.contains("a.xml") && error.contains("larger than 1 MiB"),
            "{error}"
        );
    }
}
