//! TensorBoard event files: records of `tensorflow.Event` in TFRecord framing.
//!
//! Scalars are written as the Object Detection API's TF1 code did (`simple_value`), under the same tags.

mod histogram;
mod sink;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coati_proto::tensorflow::summary::{Image, Value, value};
use coati_proto::tensorflow::summary_metadata::PluginData;
use coati_proto::tensorflow::{DataType, Event, Summary, SummaryMetadata, TensorProto, TensorShapeProto, event};
use prost::Message as _;

pub use histogram::Histogram;
use sink::Sink;

use crate::tfrecord::Writer;

/// `DATA_CLASS_TENSOR`: how TensorBoard's text plug-in finds its data.
const DATA_CLASS_TENSOR: i32 = 2;
/// Names tried before giving up: as many files may have been started in one second.
const NAME_ATTEMPTS: u64 = 1000;

/// An event file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action} event file: {source}{}", path.display(), coati_storage::hint_or(source, hint(source)))]
pub struct Error {
    /// The file or its folder.
    pub path: PathBuf,
    /// `create` or `write`
    pub action: &'static str,
    /// Why.
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "\nhint: free some space there",
        io::ErrorKind::PermissionDenied => "\nhint: check who owns the folder",
        _ => "",
    }
}

/// Appends events to a file of its own. What was flushed survives the process; the rest is flushed when this is dropped. In a bucket
/// a file is written again as a whole: at the first flush, then every 15 s or more, and by [`EventWriter::finish`].
#[derive(Debug)]
pub struct EventWriter {
    folder: PathBuf,
    suffix: String,
    path: PathBuf,
    records: Writer<Sink>,
}

impl EventWriter {
    /// Starts `DIR/events.out.tfevents.SECONDS.HOST[SUFFIX]` (the folder is made if need be). The suffix tells files of
    /// one host apart, `.eval` for example.
    pub fn create(dir: &Path, suffix: &str) -> Result<Self, Error> {
        coati_storage::create_dir_all(dir).map_err(|source| Error {
            path: dir.to_owned(),
            action: "create",
            source,
        })?;
        let (path, sink) = Self::begin(dir, suffix)?;
        Ok(Self {
            folder: dir.to_owned(),
            suffix: suffix.to_owned(),
            path,
            records: Writer::new(sink),
        })
    }

    /// Makes a file of its own that says its version.
    fn begin(dir: &Path, suffix: &str) -> Result<(PathBuf, Sink), Error> {
        let host = nix::unistd::gethostname().map(|host| host.to_string_lossy().replace('/', "_"));
        let host = host.unwrap_or_else(|_| "localhost".to_owned());
        let seconds = now().as_secs();
        let mut attempt = 0;
        loop {
            // Two files of one second get following seconds: TensorBoard reads them in the order of their names.
            let name = format!("events.out.tfevents.{:010}.{host}{suffix}", seconds + attempt);
            let path = dir.join(name);
            match version().and_then(|start| Sink::create(&path, &start)) {
                Ok(sink) => return Ok((path, sink)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < NAME_ATTEMPTS => attempt += 1,
                Err(source) => {
                    return Err(Error {
                        path,
                        action: "create",
                        source,
                    });
                }
            }
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one number.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> Result<(), Error> {
        self.scalars(step, &[(tag, value)])
    }

    /// Writes several numbers of one step as one event.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<(), Error> {
        let values = values
            .iter()
            .map(|&(tag, number)| tagged(tag, value::Value::SimpleValue(number)));
        self.summary(step, values.collect())
    }

    /// Writes the distribution of some values.
    pub fn histogram(&mut self, tag: &str, step: u64, values: &[f64]) -> Result<(), Error> {
        self.histogram_of(tag, step, &Histogram::of(values))
    }

    /// Writes a distribution that was collected elsewhere.
    pub fn histogram_of(&mut self, tag: &str, step: u64, histogram: &Histogram) -> Result<(), Error> {
        self.summary(step, vec![tagged(tag, value::Value::Histo(histogram.to_proto()))])
    }

    /// Writes an RGB picture, encoded as PNG (JPEG works too); width and height in pixels.
    pub fn image_png(&mut self, tag: &str, step: u64, width: u32, height: u32, bytes: Vec<u8>) -> Result<(), Error> {
        let image = Image {
            height: height as i32,
            width: width as i32,
            colorspace: 3,
            encoded_image_string: bytes,
        };
        self.summary(step, vec![tagged(tag, value::Value::Image(image))])
    }

    /// Writes text, which TensorBoard shows as markdown.
    pub fn text(&mut self, tag: &str, step: u64, text: &str) -> Result<(), Error> {
        let tensor = TensorProto {
            dtype: DataType::DtString.into(),
            tensor_shape: Some(TensorShapeProto::default()),
            string_val: vec![text.as_bytes().to_vec()],
            ..TensorProto::default()
        };
        let plugin = PluginData {
            plugin_name: "text".to_owned(),
            content: Vec::new(),
        };
        let metadata = SummaryMetadata {
            plugin_data: Some(plugin),
            data_class: DATA_CLASS_TENSOR,
            ..SummaryMetadata::default()
        };
        let value = Value {
            metadata: Some(metadata),
            ..tagged(tag, value::Value::Tensor(tensor))
        };
        self.summary(step, vec![value])
    }

    /// Hands everything to the operating system, so that TensorBoard sees it; to a bucket, when it is time.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.records.get_ref().is_full() {
            let (path, sink) = Self::begin(&self.folder, &self.suffix)?;
            // The file before is sent when it is dropped here.
            self.records = Writer::new(sink);
            self.path = path;
        }
        self.records.flush().map_err(|source| self.error(source))
    }

    /// Makes everything visible, to those who look into a bucket too.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.records.get_mut().finish().map_err(|source| self.error(source))
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<(), Error> {
        self.event(step, event::What::Summary(Summary { value }))
    }

    fn event(&mut self, step: u64, what: event::What) -> Result<(), Error> {
        self.records
            .write(&encode(step, what))
            .map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> Error {
        Error {
            path: self.path.clone(),
            action: "write",
            source,
        }
    }
}

fn encode(step: u64, what: event::What) -> Vec<u8> {
    let event = Event {
        wall_time: now().as_secs_f64(),
        step: step as i64,
        what: Some(what),
    };
    event.encode_to_vec()
}

/// What a file starts with, framed.
fn version() -> io::Result<Vec<u8>> {
    let mut start = Writer::new(Vec::new());
    start.write(&encode(0, event::What::FileVersion("brain.Event:2".to_owned())))?;
    Ok(start.into_inner())
}

fn tagged(tag: &str, value: value::Value) -> Value {
    Value {
        tag: tag.to_owned(),
        value: Some(value),
        ..Value::default()
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tfrecord::Reader;

    fn events(path: &Path) -> Vec<Event> {
        Reader::open(path)
            .unwrap()
            .map(|record| Event::decode(record.unwrap().as_slice()).unwrap())
            .collect()
    }

    #[test]
    fn a_file_starts_with_its_version_and_holds_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(&dir.path().join("eval_0"), ".eval").unwrap();
        writer
            .scalars(7, &[("Loss/total", 1.5), ("learning_rate", 0.1)])
            .unwrap();
        writer.text("config", 0, "**hi**").unwrap();
        let path = writer.path().to_owned();
        assert_eq!(events(&path).len(), 1, "nothing but the version before a flush");
        writer.flush().unwrap();

        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            name.starts_with("events.out.tfevents.") && path.extension().is_some_and(|end| end == "eval"),
            "{name}"
        );
        let events = events(&path);
        assert_eq!(
            events[0].what,
            Some(event::What::FileVersion("brain.Event:2".to_owned()))
        );
        assert!(events.iter().all(|event| event.wall_time > 1.6e9));
        assert_eq!(events[1].step, 7);
        let Some(event::What::Summary(summary)) = &events[1].what else {
            panic!("{:?}", events[1])
        };
        assert_eq!(summary.value[0], tagged("Loss/total", value::Value::SimpleValue(1.5)));
        assert_eq!(summary.value[1].tag, "learning_rate");
    }

    #[test]
    fn files_of_the_same_second_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let paths: std::collections::BTreeSet<_> = (0..5)
            .map(|_| EventWriter::create(dir.path(), "").unwrap().path().to_owned())
            .collect();
        assert_eq!(paths.len(), 5);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = EventWriter::create(&file.join("inside"), "").unwrap_err().to_string();
        assert!(error.starts_with(&file.join("inside").display().to_string()), "{error}");
    }
}
