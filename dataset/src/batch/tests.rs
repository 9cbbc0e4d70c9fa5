use std::sync::Arc;
use std::time::{Duration, Instant};

mod sizes;

use super::*;
use crate::augment::{RandomHorizontalFlip, SsdRandomCrop, ssd_operations};
use crate::example::Classes;
use crate::order::epoch_permutation;
use crate::shards::Source;
use crate::testing::{file, good, image, record};

fn options() -> Options {
    Options {
        height: 16,
        width: 20,
        augmentations: vec![
            RandomHorizontalFlip::new(0.5).into(),
            SsdRandomCrop(ssd_operations()).into(),
        ],
        example: example::Options {
            classes: Classes::numbered(3),
            strict: false,
        },
        seed: 11,
        ..Options::default()
    }
}

fn source(records: &[Vec<u8>]) -> (tempfile::TempDir, Arc<Source>) {
    let (folder, path) = file(records);
    (folder, Arc::new(Source::open_files(&[path]).unwrap()))
}

fn lease(id: u64, first_position: u64, count: usize) -> Lease {
    Lease {
        id,
        first_position,
        count,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn batches(source: &Arc<Source>, options: Options, leases: &[Lease]) -> Vec<Batch> {
    let loader = Loader::new(Arc::clone(source), options).unwrap();
    for &lease in leases {
        loader.request(lease);
    }
    let next = |&expected: &Lease| {
        let (lease, batch) = loader.next(soon()).unwrap();
        assert_eq!(lease, expected);
        batch
    };
    leases.iter().map(next).collect()
}

#[test]
fn a_batch_depends_on_seed_and_position_alone() {
    let (_folder, source) = source(&(0..10).map(good).collect::<Vec<_>>());
    let one_thread = Options {
        threads: 1,
        prefetch: 1,
        ..options()
    };
    let whole = batches(&source, one_thread, &[lease(0, 0, 24)]).remove(0);
    assert_eq!(whole.images.len(), 24 * 16 * 20 * 3);
    // Other threads, other cuts, another order of leases.
    let leases = [lease(5, 16, 8), lease(6, 0, 3), lease(9, 3, 5), lease(7, 8, 8)];
    let parts = batches(
        &source,
        Options {
            threads: 4,
            ..options()
        },
        &leases,
    );
    for (lease, part) in leases.iter().zip(&parts) {
        let first = lease.first_position as usize;
        let size = 16 * 20 * 3;
        assert_eq!(part.images, whole.images[first * size..][..lease.count * size]);
        assert_eq!(part.groundtruth, whole.groundtruth[first..][..lease.count]);
        assert_eq!(part.records, whole.records[first..][..lease.count]);
    }
    let other_seed = batches(&source, Options { seed: 12, ..options() }, &[lease(0, 0, 24)]).remove(0);
    assert_ne!(other_seed.records, whole.records);
    // The same record differs between epochs by its augmentation.
    let second_epoch = whole.records[10..20]
        .iter()
        .position(|record| *record == whole.records[0])
        .unwrap()
        + 10;
    assert_ne!(whole.images[..960], whole.images[second_epoch * 960..][..960]);
}

#[test]
fn each_epoch_holds_each_record_once_in_the_permutations_order() {
    let (_folder, source) = source(&(0..7).map(good).collect::<Vec<_>>());
    let batch = batches(&source, options(), &[lease(0, 0, 14)]).remove(0);
    let expected: Vec<_> = (0..14).map(|p| epoch_permutation(11, p / 7, 7).record(p % 7)).collect();
    assert_eq!(batch.records, expected);
    let ids: Vec<_> = expected.iter().map(ToString::to_string).collect();
    assert_eq!(batch.source_ids, ids);
    assert_eq!(batch.original_sizes, [[21, 34]; 14]);
    let in_order = batches(
        &source,
        Options {
            shuffle: false,
            ..options()
        },
        &[lease(0, 5, 4)],
    )
    .remove(0);
    assert_eq!(in_order.records, [5, 6, 0, 1]);
}

#[test]
fn a_bad_record_is_replaced_by_the_next_good_one_and_reported() {
    let mut records: Vec<_> = (0..6).map(good).collect();
    records[2] = record(2, image("rgb420.jpg")[..500].to_vec(), &[]);
    records[3] = b"not an example".to_vec();
    let (_folder, path) = file(&records);
    // A CRC error in record 5, the last one: the first follows.
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 20;
    bytes[at] ^= 0x55;
    std::fs::write(&path, bytes).unwrap();
    let source = Arc::new(Source::open_files(std::slice::from_ref(&path)).unwrap());

    let plain = Options {
        shuffle: false,
        ..options()
    };
    let loader = Loader::new(
        source,
        Options {
            max_bad_records: Some(3),
            ..plain
        },
    )
    .unwrap();
    loader.request(lease(1, 0, 6));
    let batch = loader.next(soon()).unwrap().1;
    assert_eq!(batch.records, [0, 1, 4, 4, 4, 0]);
    assert_eq!(batch.images.len(), 6 * 960);
    let reports = loader.bad_records();
    assert_eq!(reports.len(), 3);
    let file = path.display().to_string();
    assert!(
        reports[0].starts_with(&format!("{file}: record 2: image \"2.jpg\": the JPEG ends before")),
        "{reports:?}"
    );
    assert!(reports[1].contains("record 3: not a tf.Example"), "{reports:?}");
    assert!(
        reports[2].contains("record 5") && reports[2].contains("CRC"),
        "{reports:?}"
    );
    assert!(
        batch
            .bad_records
            .iter()
            .any(|report| report.contains("next good record takes its place"))
    );
    // They count once, however often they come.
    loader.request(lease(2, 6, 6));
    assert!(loader.next(soon()).is_ok());
}

#[test]
fn too_many_bad_records_end_loading_with_their_names() {
    let mut records: Vec<_> = (0..20).map(good).collect();
    for index in [3, 4, 8] {
        records[index] = record(index, b"GIF89a".to_vec(), &[]);
    }
    let (_folder, source) = source(&records);
    let loader = Loader::new(
        source,
        Options {
            max_bad_records: Some(2),
            ..options()
        },
    )
    .unwrap();
    loader.request(lease(1, 0, 20));
    let error = loader.next(soon()).unwrap_err().to_string();
    assert!(
        error.contains("3 bad records, more than the 2 allowed among 20"),
        "{error}"
    );
    assert!(
        error.contains("record 4: image \"4.jpg\": the image is a GIF"),
        "{error}"
    );
}

#[test]
fn bad_boxes_are_left_out_reported_and_counted() {
    let boxes = [[0.1, 0.1, 0.5, 0.5], [0.5, 0.1, 0.2, 0.9], [0.2, 0.2, 1.9, 0.4]];
    let mut records: Vec<_> = (0..4).map(good).collect();
    records[1] = record(1, image("rgb.png"), &boxes);
    let (_folder, source) = source(&records);
    let plain = Options {
        shuffle: false,
        augmentations: Vec::new(),
        ..options()
    };
    let batch = batches(&source, plain.clone(), &[lease(0, 0, 2)]).remove(0);
    assert_eq!(batch.groundtruth[1].boxes, boxes[..1]);
    assert_eq!(batch.bad_records.len(), 1);
    let report = &batch.bad_records[0];
    assert!(
        report.contains("record 1: left out object 1") && report.contains("object 2"),
        "{report}"
    );
    // Strict: the record is bad as a whole, and with a limit of 0 that is the end.
    let strict = example::Options {
        strict: true,
        ..plain.example.clone()
    };
    let strict = Options {
        example: strict,
        max_bad_records: Some(0),
        ..plain
    };
    let loader = Loader::new(source, strict).unwrap();
    loader.request(lease(0, 0, 2));
    assert!(
        loader
            .next(soon())
            .unwrap_err()
            .to_string()
            .contains("ymin 0.5 must be less than ymax 0.2")
    );
}

#[test]
fn a_set_without_a_good_record_is_an_error() {
    let (_folder, source) = source(&[b"x".to_vec(), b"y".to_vec()]);
    let loader = Loader::new(
        source,
        Options {
            max_bad_records: Some(9),
            ..options()
        },
    )
    .unwrap();
    loader.request(lease(0, 0, 1));
    let error = loader.next(soon()).unwrap_err().to_string();
    assert!(error.contains("none of the 2 records can be used"), "{error}");
}

#[test]
fn objects_beyond_the_maximum_are_cut_and_counted() {
    let (_folder, source) = source(&[good(0)]);
    let few = Options {
        max_number_of_boxes: 1,
        augmentations: Vec::new(),
        ..options()
    };
    let batch = batches(&source, few, &[lease(0, 0, 2)]).remove(0);
    assert_eq!(batch.groundtruth[0].boxes, [[0.1, 0.2, 0.6, 0.7]]);
    assert_eq!(batch.objects_cut, 2);
}

#[test]
fn an_image_without_objects_is_kept() {
    let (_folder, source) = source(&[record(0, image("rgb.png"), &[])]);
    let batch = batches(&source, options(), &[lease(0, 0, 1)]).remove(0);
    assert!(batch.groundtruth[0].is_empty() && batch.bad_records.is_empty());
}

#[test]
fn waiting_ends_at_the_deadline_and_without_a_request_at_once() {
    let (_folder, source) = source(&(0..4).map(good).collect::<Vec<_>>());
    let loader = Loader::new(source, options()).unwrap();
    assert!(matches!(loader.next(soon()), Err(Error::NothingRequested)));
    loader.request(lease(3, 0, 4000));
    let error = loader.next(Instant::now()).unwrap_err().to_string();
    assert!(
        error.contains("lease 3: only") && error.contains("of 4000 images"),
        "{error}"
    );
    // The batch is still in the making, and can be given up.
    assert_eq!(loader.pending(), 1);
    loader.cancel_all();
    loader.request(lease(4, 0, 2));
    assert_eq!(loader.next(soon()).unwrap().0.id, 4);
}

#[test]
fn no_more_batches_than_allowed_are_prepared_ahead() {
    let (_folder, source) = source(&(0..4).map(good).collect::<Vec<_>>());
    let loader = Loader::new(
        source,
        Options {
            prefetch: 2,
            ..options()
        },
    )
    .unwrap();
    (0..30).for_each(|id| loader.request(lease(id, id * 4, 4)));
    for id in 0..30 {
        let (lease, batch) = loader.next(soon()).unwrap();
        assert_eq!(lease.id, id);
        assert!(loader.active() <= 2);
        loader.recycle(batch.images);
    }
    assert_eq!(loader.pending(), 0);
}

#[test]
fn impossible_sizes_are_refused() {
    let (_folder, source) = source(&[good(0)]);
    let error = Loader::new(source, Options { height: 0, ..options() })
        .unwrap_err()
        .to_string();
    assert_eq!(error, "height: 0 must be from 1 to 16384 pixels");
}

/// All batches of one record, prepared with these options.
fn one(record: Vec<u8>, options: Options) -> Result<Batch, Error> {
    let (_folder, source) = source(&[record]);
    let loader = Loader::new(source, options)?;
    loader.request(lease(0, 0, 1));
    loader.next(soon()).map(|(_, batch)| batch)
}

#[test]
fn padding_is_told_from_picture() {
    // 21 x 34 pixels become 25 x 40 of 40 x 40.
    let resizer = ImageResizer::KeepAspectRatio {
        min: 30,
        max: 40,
        method: crate::resize::Method::Bilinear,
        pad: true,
        pad_value: vec![7.0, 8.0, 9.0],
        grayscale: false,
    };
    let options = Options {
        height: 40,
        width: 40,
        resizer: Some(resizer.clone()),
        augmentations: Vec::new(),
        ..options()
    };
    let batch = one(record(0, image("rgb420.jpg"), &[[0.0, 0.0, 1.0, 1.0]]), options.clone()).unwrap();
    assert_eq!(batch.true_image_shapes, [[25, 40, 3]]);
    assert_eq!(batch.images[batch.images.len() - 3..], [7.0, 8.0, 9.0]);
    // Boxes are relative to the canvas.
    assert_eq!(batch.groundtruth[0].boxes, [[0.0, 0.0, 25.0 / 40.0, 1.0]]);
    let other = Options { height: 41, ..options };
    let error = one(good(0), other).unwrap_err().to_string();
    assert_eq!(error, "image_resizer: 40 x 40 must be of the size that batches have");
}

#[test]
fn steps_that_need_pixels_give_the_batch_its_channels() {
    use coati_proto::object_detection::protos as config;
    let step = |step| config::PreprocessingStep {
        preprocessing_step: Some(step),
    };
    let grey = step(config::preprocessing_step::PreprocessingStep::RgbToGray(
        config::RgBtoGray {},
    ));
    let options = Options {
        augmentations: augment::from_config(&[grey], 3).unwrap(),
        ..options()
    };
    assert_eq!(options.channels(), 1);
    let batch = one(good(0), options.clone()).unwrap();
    assert_eq!((batch.images.len(), batch.true_image_shapes[0]), (16 * 20, [16, 20, 1]));
    let colours = one(
        good(0),
        Options {
            augmentations: Vec::new(),
            ..options
        },
    )
    .unwrap();
    let [r, g, b] = *colours.images.first_chunk::<3>().unwrap();
    assert!((batch.images[0] - (r * 0.2989 + g * 0.587 + b * 0.114)).abs() < 1e-3);
}

#[test]
fn a_step_that_changes_nothing_changes_no_pixel() {
    // The way over floats gives the same as the way that decodes a part and resizes it at once.
    use coati_proto::object_detection::protos as config;
    let nothing = config::PreprocessingStep {
        preprocessing_step: Some(config::preprocessing_step::PreprocessingStep::RandomRgbToGray(
            config::RandomRgBtoGray { probability: Some(0.0) },
        )),
    };
    let never = augment::from_config(&[nothing], 3).unwrap();
    let normalize = config::PreprocessingStep {
        preprocessing_step: Some(config::preprocessing_step::PreprocessingStep::NormalizeImage(
            config::NormalizeImage {
                original_minval: Some(0.0),
                original_maxval: Some(1.0),
                ..Default::default()
            },
        )),
    };
    let same = augment::from_config(&[normalize], 3).unwrap();
    let (_folder, source) = source(&(0..10).map(good).collect::<Vec<_>>());
    let leases = [lease(0, 0, 10)];
    let of = |more: Vec<Augmentation>| {
        let mut options = options();
        options.augmentations.extend(more);
        batches(&source, options, &leases).remove(0)
    };
    let plain = of(Vec::new());
    for other in [of(never), of(same)] {
        let worst = plain
            .images
            .iter()
            .zip(&other.images)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-4, "{worst}");
        assert_eq!(
            plain.groundtruth.iter().map(|g| &g.boxes).collect::<Vec<_>>(),
            other.groundtruth.iter().map(|g| &g.boxes).collect::<Vec<_>>()
        );
    }
}

#[test]
fn bad_pictures_are_named_and_replaced() {
    let mut bomb = image("rgb420.jpg");
    let frame = bomb.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    bomb[frame + 5..frame + 9].copy_from_slice(&[0x9C, 0x40, 0x9C, 0x40]);
    let records: Vec<_> = [vec![], bomb, b"no picture".to_vec()]
        .into_iter()
        .enumerate()
        .map(|(id, bytes)| record(id, bytes, &[]))
        .chain((3..10).map(good))
        .collect();
    let (_folder, source) = source(&records);
    let options = Options {
        shuffle: false,
        max_bad_records: Some(3),
        ..options()
    };
    let batch = batches(&source, options, &[lease(0, 0, 1)]).remove(0);
    assert_eq!(batch.records, [3]);
    let said = batch.bad_records.join("\n");
    for part in [
        "record 0: feature image/encoded: absent or empty",
        "record 1: image \"1.jpg\": the image says 40000 x 40000 pixels",
        "record 2: image \"2.jpg\": the image is of an unknown kind",
    ] {
        assert!(said.contains(part), "{said}");
    }
}
