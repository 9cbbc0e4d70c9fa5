use std::fs;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;

const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/images");

fn file(name: &str) -> Vec<u8> {
    fs::read(format!("{IMAGES}/{name}")).unwrap()
}

fn decode(bytes: &[u8]) -> Result<Image, Error> {
    Decoder::new(Options::default()).decode(bytes)
}

#[test]
fn every_kind_of_image_equals_tensorflows() {
    let mut archive = npyz::npz::NpzArchive::open(format!("{IMAGES}/expected.npz")).unwrap();
    let names: Vec<String> = archive.array_names().map(str::to_owned).collect();
    assert!(names.len() >= 17);
    let mut decoder = Decoder::new(Options::default());
    let mut image = Image::default();
    for name in names {
        let expected = archive.by_name(&name).unwrap().unwrap();
        let shape = expected.shape().to_vec();
        let expected: Vec<u8> = expected.into_vec().unwrap();
        // One decoder for all, so that nothing is left over from the image before.
        decoder
            .decode_into(&file(&name), &mut image)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!([image.height as u64, image.width as u64, 3], shape[..], "{name}");
        assert_eq!(
            decoder.size(&file(&name)).unwrap(),
            (image.height, image.width),
            "{name}"
        );
        let differences = image.pixels.iter().zip(&expected).filter(|(a, b)| a != b).count();
        let worst = image.pixels.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert_eq!(differences, 0, "{name}: worst {worst:?}");
    }
}

/// The quantisation and Huffman tables of a JPEG, without its image.
fn tables_alone(jpeg: &[u8]) -> Vec<u8> {
    let mut tables = vec![0xFF, 0xD8];
    let mut at = 2;
    while jpeg[at + 1] != 0xDA {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        if matches!(jpeg[at + 1], 0xDB | 0xC4) {
            tables.extend_from_slice(&jpeg[at..end]);
        }
        at = end;
    }
    tables.extend([0xFF, 0xD9]);
    tables
}

#[test]
fn a_bad_image_spoils_none_after_it() {
    let mut decoder = Decoder::new(Options::default());
    let good = file("rgb420.jpg");
    let expected = decoder.decode(&good).unwrap();
    let cut = &good[..good.len() - 20];
    for bad in [
        b"\xff\xd8\xff not a picture".as_slice(),
        &good[..30],
        b"\xff\xd8\xff\xd9",
        &tables_alone(&good),
    ] {
        assert!(decoder.size(bad).is_err());
        assert!(decoder.decode(bad).is_err());
        assert_eq!(decoder.decode(&good).unwrap(), expected);
    }
    // Its header is whole.
    assert_eq!(decoder.size(cut).unwrap(), (expected.height, expected.width));
    assert!(decoder.decode(cut).is_err());
    assert_eq!(decoder.decode(&good).unwrap(), expected);
}

#[test]
fn a_photograph_equals_tensorflows_bit_for_bit() {
    let bytes = fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/golden/ssd_bccd/raw4_0.jpg"
    ))
    .unwrap();
    let image = decode(&bytes).unwrap();
    let digest: String = Sha256::digest(&image.pixels)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(
        digest,
        "6764fb14f9c35c2ebd3a07d3e369919ce068716541193e277a7876ad1e5ecb36"
    );
    let exact = Decoder::new(Options {
        fast_dct: false,
        ..Options::default()
    })
    .decode(&bytes)
    .unwrap();
    assert_ne!(exact.pixels, image.pixels, "the exact DCT is another");
}

#[test]
fn truncated_files_are_refused_as_by_tensorflow() {
    for name in ["rgb420.jpg", "progressive.jpg", "cmyk_adobe.jpg", "stray_bytes.jpg"] {
        let bytes = file(name);
        for length in [bytes.len() - 2, bytes.len() - 10, bytes.len() / 2, 3] {
            assert!(decode(&bytes[..length]).is_err(), "{name} cut to {length} bytes");
        }
    }
    assert_eq!(decode(&file("rgb420.jpg")[..800]), Err(Error::Truncated));
    let png = file("rgb.png");
    assert!(matches!(
        decode(&png[..png.len() / 2]),
        Err(Error::Damaged { format: "PNG", .. })
    ));
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    let mut jpeg = file("rgb420.jpg");
    let at = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap() + 5;
    jpeg[at..at + 4].copy_from_slice(&[0xFD, 0xE8, 0xFD, 0xE8]);
    let expected = Error::TooLarge {
        height: 65000,
        width: 65000,
        max_pixels: 1 << 26,
    };
    assert_eq!(decode(&jpeg), Err(expected.clone()));
    assert_eq!(Decoder::new(Options::default()).size(&jpeg), Err(expected));
    let mut png = file("rgb.png");
    png[16..24].copy_from_slice(&[0, 0, 0xFD, 0xE8, 0, 0, 0xFD, 0xE8]);
    assert!(decode(&png).is_err());
    let small = Options {
        max_pixels: 100,
        ..Options::default()
    };
    assert!(matches!(
        Decoder::new(small).decode(&file("rgb.png")),
        Err(Error::TooLarge {
            height: 21,
            width: 34,
            ..
        })
    ));
}

#[test]
fn other_formats_are_named() {
    let message = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
    assert!(message(b"GIF89a...").starts_with("the image is a GIF; JPEG and PNG are read"));
    assert!(message(b"\0\0\0\x18ftypheic....").starts_with("the image is a HEIC"));
    assert!(message(b"<!DOCTYPE html>").starts_with("the image is a web page"));
    assert!(message(b"version https://git-lfs.github.com/spec/v1\noid").contains("`git lfs pull`"));
    assert!(message(b"").contains("empty"));
    assert!(message(b"no image").contains("6e 6f 20 69 6d 61 67 65"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_images_never_panic(
        which in 0_usize..6,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let names = ["rgb420.jpg", "progressive.jpg", "cmyk_adobe.jpg", "rgb.png", "rgb16.png", "palette_transparent.png"];
        let mut bytes = file(names[which]);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let options = Options { max_pixels: 1 << 16, ..Options::default() };
        if let Ok(image) = Decoder::new(options).decode(&bytes) {
            prop_assert_eq!(image.pixels.len(), image.height * image.width * 3);
        }
    }

    #[test]
    fn garbage_never_panics(start in 0_usize..2, bytes: Vec<u8>) {
        let magic: [&[u8]; 2] = [&[0xFF, 0xD8, 0xFF], b"\x89PNG\r\n\x1a\n"];
        prop_assert!(decode(&[magic[start], &bytes].concat()).is_err());
    }
}

#[test]
fn parts_are_those_of_the_whole_image() {
    let photograph = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/golden/ssd_bccd/raw4_0.jpg"
    );
    let mut files = vec![("photograph".to_owned(), fs::read(photograph).unwrap())];
    for entry in fs::read_dir(IMAGES).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "jpg" || end == "png") {
            files.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    // Larger ones of every subsampling that our own encoder makes, and odd sizes.
    let mut random = crate::random::Stream::new(*b"parts...", 1, 0, 0);
    let grey = Options {
        grey: true,
        ..Options::default()
    };
    let [mut colours, mut one] = [Options::default(), grey].map(Decoder::new);
    let mut part = Image::default();
    for (number, (name, bytes)) in files.iter().chain(&files).enumerate() {
        let decoder = if number < files.len() { &mut colours } else { &mut one };
        let whole = decoder.decode(bytes).unwrap();
        if number >= files.len() {
            let (pixels, _) = whole.pixels.as_chunks::<3>();
            assert!(pixels.iter().all(|[r, g, b]| r == g && g == b), "{name} is grey");
        }
        for _ in 0..60 {
            let mut range = |side: usize| {
                let start = random.below(side as u64) as usize;
                start..start + 1 + random.below((side - start) as u64) as usize
            };
            let wanted = Part {
                rows: range(whole.height),
                columns: range(whole.width),
            };
            let (top, left) = decoder.decode_part(bytes, &wanted, &mut part).unwrap();
            assert!(
                top <= wanted.rows.start && top + part.height >= wanted.rows.end,
                "{name} {wanted:?}"
            );
            for row in wanted.rows.clone() {
                let stored = (row * whole.width + wanted.columns.start) * 3;
                let found = ((row - top) * part.width + wanted.columns.start - left) * 3;
                let length = wanted.columns.len() * 3;
                assert!(
                    part.pixels[found..found + length] == whole.pixels[stored..stored + length],
                    "{name}: row {row} of {wanted:?} differs"
                );
            }
        }
        // Nothing of the part is left for the next image.
        assert_eq!(decoder.decode(bytes).unwrap(), whole, "{name}");
    }
}

#[test]
fn a_part_of_a_truncated_file_is_refused_too() {
    let bytes = file("rgb420.jpg");
    let top = Part {
        rows: 0..1,
        columns: 0..1,
    };
    let mut decoder = Decoder::new(Options::default());
    let found = decoder.decode_part(&bytes[..bytes.len() - 10], &top, &mut Image::default());
    assert_eq!(found, Err(Error::Truncated));
}

#[test]
fn bombs_and_nothing_are_refused_before_memory_is_taken() {
    // A JPEG and a PNG that claim 40 000 x 40 000 pixels; each is a few hundred bytes.
    let mut jpeg = file("rgb420.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x9C, 0x40, 0x9C, 0x40]);
    let mut png = file("rgb.png");
    png[16..24].copy_from_slice(&[0, 0, 0x9C, 0x40, 0, 0, 0x9C, 0x40]);
    let check = crc32(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&check);
    for bytes in [&jpeg, &png] {
        let error = decode(bytes).unwrap_err();
        let expected = Error::TooLarge {
            height: 40_000,
            width: 40_000,
            max_pixels: 1 << 26,
        };
        assert_eq!(error, expected);
        assert!(error.to_string().contains("hint:"), "{error}");
        assert_eq!(Decoder::new(Options::default()).size(bytes), Err(expected));
    }
    // 100 megapixels are beyond the limit, which can be raised.
    let hundred = |options| {
        let mut decoder = Decoder::new(options);
        let mut png = png.clone();
        png[16..24].copy_from_slice(&[0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10]);
        let check = crc32(&png[12..29]).to_be_bytes();
        png[29..33].copy_from_slice(&check);
        decoder.size(&png)
    };
    assert!(matches!(hundred(Options::default()), Err(Error::TooLarge { .. })));
    let raised = Options {
        max_pixels: 100_000_000,
        ..Options::default()
    };
    assert_eq!(hundred(raised), Ok((10_000, 10_000)));
    assert_eq!(decode(b""), Err(Error::Empty));
}

/// CRC-32 as PNG has it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, &byte: &u8| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xEDB8_8320
            } else {
                crc >> 1
            }
        })
    };
    !bytes.iter().fold(!0, step)
}

#[test]
fn recompression_is_what_tensorflow_makes_of_it() {
    // Digests of tf.image.adjust_jpeg_quality of TensorFlow 2.15 on this photograph.
    let bytes = fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/golden/ssd_bccd/raw4_0.jpg"
    ))
    .unwrap();
    let image = decode(&bytes).unwrap();
    for (quality, expected) in RECOMPRESSED {
        let found = recompress(&image, quality).unwrap();
        let digest: String = Sha256::digest(&found.pixels)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(digest[..16], *expected, "quality {quality}");
    }
}

const RECOMPRESSED: [(i32, &str); 6] = [
    (0, "27c91117557b0ece"),
    (5, "f61c0752700e3e77"),
    (40, "204926771ea18a5f"),
    (75, "c06880001850dfc7"),
    (95, "906dacfc164a68bc"),
    (99, "d4f82ef414e69655"),
];

/// A smooth picture of that size as a JPEG, whose colours tell where one is.
fn gradient(height: usize, width: usize) -> Vec<u8> {
    let pixel = |row: usize, column: usize| [(row * 255 / height) as u8, (column * 255 / width) as u8, 90];
    let pixels = (0..height * width)
        .flat_map(|at| pixel(at / width, at % width))
        .collect();
    let image = Image { height, width, pixels };
    jpeg::encode(&image, 95).unwrap()
}

#[test]
fn a_scaled_part_shows_what_the_part_shows() {
    let (height, width) = (203, 310);
    let bytes = gradient(height, width);
    let scaled = Options {
        scaled: true,
        ..Options::default()
    };
    let mut decoder = Decoder::new(scaled);
    let mut image = Image::default();
    let part = Part {
        rows: 70..190,
        columns: 40..300,
    };
    for (least, divisor) in [
        ((60, 60), 2),
        ((30, 60), 4),
        ((10, 20), 8),
        ((61, 60), 1),
        ((60, 131), 1),
    ] {
        let ((top, left), by) = decoder.decode_part_scaled(&bytes, &part, least, &mut image).unwrap();
        assert_eq!(by, divisor, "{least:?}");
        assert!(top * by <= part.rows.start && (top + image.height) * by >= part.rows.end);
        assert!(left * by <= part.columns.start && (left + image.width) * by >= part.columns.end);
        for (row, column) in [(80, 50), (120, 200), (188, 298)] {
            let at = ((row / by - top) * image.width + column / by - left) * 3;
            let right = [row * 255 / height, column * 255 / width, 90];
            for (found, right) in image.pixels[at..at + 3].iter().zip(right) {
                assert!(
                    usize::from(*found).abs_diff(right) <= 12,
                    "{by}: {found} for {right} at {row}, {column}"
                );
            }
        }
    }
    // Nothing of it stays in the decoder, and without the option nothing is scaled.
    assert_eq!(decoder.decode(&bytes).unwrap(), decode(&bytes).unwrap());
    let mut plain = Decoder::new(Options::default());
    assert_eq!(
        plain.decode_part_scaled(&bytes, &part, (10, 10), &mut image).unwrap().1,
        1
    );
    let inks = file("cmyk_plain.jpg");
    let whole = Part {
        rows: 0..21,
        columns: 0..34,
    };
    assert_eq!(
        decoder.decode_part_scaled(&inks, &whole, (2, 2), &mut image).unwrap(),
        ((0, 0), 1)
    );
}
