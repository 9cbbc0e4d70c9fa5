//! What all importers share: items become records on all cores, in an order that depends on the seed alone.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use coati_common::hex;
use coati_common::label_map::LabelMap;
use rand::SeedableRng;
use rand::seq::SliceRandom as _;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::feature::Record;
use super::objects::usable;
use super::picture::{Images, Picture};
use super::sharded::{Shards, names};
use super::{Error, Report};

/// Where records go and how images get into them.
#[derive(Clone, Debug)]
pub struct Output {
    /// File to write, or the start of the shards' names.
    pub path: PathBuf,
    /// Number of shards, named `path-00000-of-00010`; a single file `path` without it.
    pub num_shards: Option<u32>,
    /// Behind the number of a shard.
    pub ending: &'static str,
    /// Records are shuffled with this seed.
    pub seed: u64,
    /// What becomes of the images.
    pub images: Images,
    /// Unusable images (missing, cut off, of another format) beyond this are an error.
    pub max_skipped: usize,
}

impl Output {
    /// To `path`, with everything else as the commands have it by default.
    pub fn to(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            num_shards: None,
            ending: "",
            seed: 0,
            images: Images::default(),
            max_skipped: 20,
        }
    }
}

/// Hears of done and of all images.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A label map, by name.
#[derive(Debug)]
pub(super) struct Labels<'a> {
    map: &'a LabelMap,
    by_name: HashMap<&'a str, u32>,
}

impl<'a> Labels<'a> {
    pub(super) fn new(map: &'a LabelMap) -> Self {
        let by_name = map.items.iter().map(|item| (item.name.as_str(), item.id)).collect();
        Self { map, by_name }
    }

    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The id, or an error at this place.
    pub(super) fn need(&self, name: &str, path: &Path, line: u32) -> Result<u32, Error> {
        self.id(name).ok_or_else(|| {
            let names: Vec<&str> = self.map.items.iter().map(|item| item.name.as_str()).take(20).collect();
            let more = if self.map.items.len() > names.len() {
                ", …"
            } else {
                ""
            };
            Error::Annotation {
                path: path.to_owned(),
                line,
                what: format!("class `{name}` is not in the label map"),
                hint: format!(
                    "the label map has {}{more}; `coati data label-map` makes one of the data",
                    names.join(", ")
                ),
            }
        })
    }
}

/// What an item came to.
pub(super) enum Outcome {
    /// A record.
    Ready(Ready),
    /// The image cannot be used: file and reason.
    Skipped(String),
}

/// A record and what the report says of it.
#[derive(Default)]
pub(super) struct Ready {
    pub(super) record: Vec<u8>,
    /// Ids of the record's boxes.
    pub(super) classes: Vec<u32>,
    /// Columns and rows.
    pub(super) size: (u32, u32),
    pub(super) notes: Notes,
}

/// What of an image's annotation was left out or changed.
#[derive(Default)]
pub(super) struct Notes {
    /// File, object and reason, for people.
    pub(super) warnings: Vec<String>,
    /// Kinds of reasons for which boxes were left out, one for each box.
    pub(super) left_out: Vec<&'static str>,
}

impl Notes {
    pub(super) fn leave_out(&mut self, kind: &'static str, warning: String) {
        self.left_out.push(kind);
        self.warnings.push(warning);
    }

    /// The box cut to the image of this size (columns, rows), or nothing where it is left out; says so of both. `bounds` are
    /// `[ymin, xmin, ymax, xmax]` in pixels, `at` names the object.
    pub(super) fn usable(
        &mut self,
        bounds: [f64; 4],
        (width, height): (u32, u32),
        at: impl FnOnce() -> String,
    ) -> Option<[f64; 4]> {
        match usable(bounds, width, height) {
            Ok((bounds, note)) => {
                self.warnings.extend(note.map(|note| format!("{} {note}", at())));
                Some(bounds)
            }
            Err((kind, reason)) => {
                self.leave_out(kind, format!("{} left out: {reason}", at()));
                None
            }
        }
    }
}

/// Images are made into records in groups of this many, so that memory stays small.
const GROUP: usize = 128;

/// Files that are read at a time from a bucket, where reading is waiting; the bucket's own limit holds besides.
const FROM_A_BUCKET: usize = 32;

/// Does work whose parallel parts read files below `place`: on a thread a core, or as many as suit a bucket.
pub(super) fn beside<T: Send>(place: &Path, work: impl FnOnce() -> T + Send) -> T {
    let pool = coati_storage::is_remote(place).then(|| ThreadPoolBuilder::new().num_threads(FROM_A_BUCKET).build());
    match pool {
        Some(Ok(pool)) => pool.install(work),
        // Without those threads it takes longer, and that is all.
        _ => work(),
    }
}

/// Makes a record of each item, shuffled. Files that items are made of lie below `from`. On an error nothing is left under the output's
/// names.
pub(super) fn run<T: Send + Sync>(
    mut items: Vec<T>,
    from: &Path,
    output: &Output,
    labels: &Labels,
    progress: Progress,
    convert: impl Fn(&T) -> Result<Outcome, Error> + Sync,
) -> Result<Report, Error> {
    items.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(output.seed));
    let all = items.len();
    let mut shards = Shards::create(names(&output.path, output.num_shards, output.ending))?;
    let mut tally = Tally::default();
    let mut write = |group: Vec<Result<Outcome, Error>>| -> Result<(), Error> {
        for outcome in group {
            match outcome? {
                Outcome::Ready(ready) => {
                    shards.write(&ready.record)?;
                    tally.add(ready);
                }
                Outcome::Skipped(reason) => tally.report.skipped_images.push(reason),
            }
            if tally.report.skipped_images.len() > output.max_skipped {
                return Err(Error::TooManySkipped {
                    skipped: tally.report.skipped_images.len(),
                    images: all,
                    first: tally.report.skipped_images.swap_remove(0),
                });
            }
        }
        progress(tally.report.images + tally.report.skipped_images.len(), all);
        Ok(())
    };
    beside(from, || {
        // One group is written while the next one is made.
        let mut made = Vec::new();
        for group in items.chunks(GROUP) {
            let (written, next) = rayon::join(
                || write(std::mem::take(&mut made)),
                || group.par_iter().map(&convert).collect::<Vec<_>>(),
            );
            written?;
            made = next;
        }
        write(made)
    })?;
    if tally.report.images == 0 {
        return Err(match tally.report.skipped_images.first() {
            // The reason's own hint would be one of two.
            Some(reason) => Error::NoneUsable {
                images: all,
                first: reason.split("\nhint: ").next().unwrap_or_default().to_owned(),
            },
            None => Error::Empty {
                folder: from.to_owned(),
                hint: "the annotations list no image".to_owned(),
            },
        });
    }
    let files = shards.finish()?;
    Ok(tally.finish(labels.map, files))
}

#[derive(Default)]
struct Tally {
    report: Report,
    boxes: BTreeMap<u32, usize>,
    sizes: BTreeMap<(u32, u32), usize>,
    left_out: BTreeMap<&'static str, usize>,
}

impl Tally {
    fn add(&mut self, ready: Ready) {
        self.report.images += 1;
        self.report.images_without_boxes += usize::from(ready.classes.is_empty());
        self.report.warnings.extend(ready.notes.warnings);
        *self.sizes.entry(ready.size).or_default() += 1;
        for class in ready.classes {
            *self.boxes.entry(class).or_default() += 1;
        }
        for kind in ready.notes.left_out {
            *self.left_out.entry(kind).or_default() += 1;
        }
    }

    fn finish(self, labels: &LabelMap, files: Vec<PathBuf>) -> Report {
        let count = |id| self.boxes.get(&id).copied().unwrap_or(0);
        let mut sizes: Vec<_> = self.sizes.into_iter().collect();
        sizes.sort_by_key(|&(size, images)| (std::cmp::Reverse(images), size));
        Report {
            boxes: labels
                .items
                .iter()
                .map(|item| (item.name.clone(), count(item.id)))
                .collect(),
            image_sizes: sizes
                .into_iter()
                .map(|((width, height), images)| super::Size { width, height, images })
                .collect(),
            boxes_left_out: self
                .left_out
                .into_iter()
                .map(|(kind, count)| (kind.to_owned(), count))
                .collect(),
            files,
            ..self.report
        }
    }
}

/// The fields that every record of the reference's scripts has; the image moves into the record.
pub(super) fn head(picture: Picture, filename: &str, source_id: &str) -> Record {
    let mut record = Record::default();
    record.ints("image/height", vec![i64::from(picture.height)]);
    record.ints("image/width", vec![i64::from(picture.width)]);
    record.text("image/filename", filename);
    record.text("image/source_id", source_id);
    record.text("image/key/sha256", &hex(&Sha256::digest(&picture.encoded)));
    record.text("image/format", picture.format);
    record.bytes("image/encoded", vec![picture.encoded]);
    record
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// Makes records that take a while of waiting; the most that were under way at a time.
    fn most_at_a_time(from: &str) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let map = LabelMap::default();
        let output = Output::to(folder.path().join("out.record"));
        let items: Vec<usize> = (0..200).collect();
        let report = run(
            items,
            Path::new(from),
            &output,
            &Labels::new(&map),
            &|_, _| {},
            |item| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(2));
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(Outcome::Ready(Ready {
                    record: item.to_le_bytes().to_vec(),
                    ..Ready::default()
                }))
            },
        );
        assert_eq!(report.unwrap().images, 200);
        most.into_inner()
    }

    #[test]
    fn images_in_a_bucket_are_read_many_at_a_time() {
        let many = most_at_a_time("s3://bucket/images");
        assert!((FROM_A_BUCKET / 2..=FROM_A_BUCKET).contains(&many), "{many}");
        let few = most_at_a_time("images");
        assert!(few <= rayon::current_num_threads(), "{few}");
    }
}
