//! The `checkpoint` file: `tensorflow.CheckpointState` as protobuf text.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use coati_proto::tensorflow::CheckpointState;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use super::Error;
use crate::files;

/// Made once: it takes longer than reading the file.
static DESCRIPTOR: LazyLock<Option<MessageDescriptor>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(coati_proto::FILE_DESCRIPTOR_SET).ok()?;
    pool.get_message_by_name("tensorflow.CheckpointState")
});

/// What the `checkpoint` file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The checkpoint that counts; relative to the folder, or absolute when TensorFlow wrote it so.
    pub latest: String,
    /// Those that are kept, oldest first.
    pub all: Vec<Listed>,
    /// The time from which `keep_checkpoint_every_n_hours` counts, in seconds since 1970.
    pub last_preserved: Option<f64>,
}

/// A checkpoint that the state lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// As [`State::latest`].
    pub path: String,
    /// When it was saved, in seconds since 1970, if the file says.
    pub time: Option<f64>,
}

/// `MODEL_DIR/checkpoint`
pub fn state_path(model_dir: &Path) -> PathBuf {
    model_dir.join("checkpoint")
}

/// The prefix that a path of the state means. An absolute one whose index is gone is looked for in the folder itself: the
/// folder was moved.
pub fn resolve(model_dir: &Path, path: &str) -> PathBuf {
    let path = Path::new(path);
    let is_whole = path.is_absolute() || coati_storage::is_remote(path);
    match path.file_name() {
        _ if !is_whole => model_dir.join(path),
        Some(name) if !coati_storage::exists(&crate::bundle::index_path(path)) => model_dir.join(name),
        _ => path.to_owned(),
    }
}

impl State {
    /// Reads the state of a folder; `None` when it has none.
    pub fn read(model_dir: &Path) -> Result<Option<Self>, Error> {
        let path = state_path(model_dir);
        let text = match coati_storage::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(files::error(&path, "read"))?,
        };
        Self::parse(&String::from_utf8_lossy(&text))
            .map(Some)
            .map_err(|what| Error::State { path, what })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let descriptor = DESCRIPTOR.as_ref().ok_or("no descriptor")?;
        let message = DynamicMessage::parse_text_format(descriptor.clone(), text).map_err(|error| error.to_string())?;
        let state: CheckpointState = message.transcode_to().map_err(|error| error.to_string())?;
        if state.model_checkpoint_path.is_empty() {
            return Err("it names no checkpoint".to_owned());
        }
        let mut times = state.all_model_checkpoint_timestamps.into_iter();
        let all = state.all_model_checkpoint_paths.into_iter();
        let last_preserved = Some(state.last_preserved_timestamp).filter(|&time| time != 0.0);
        Ok(Self {
            latest: state.model_checkpoint_path,
            all: all
                .map(|path| Listed {
                    path,
                    time: times.next(),
                })
                .collect(),
            last_preserved,
        })
    }

    /// Replaces the folder's state at once.
    pub fn write(&self, model_dir: &Path) -> Result<(), Error> {
        Ok(files::write_atomic(&state_path(model_dir), self.text().as_bytes())?)
    }

    fn text(&self) -> String {
        let mut text = format!("model_checkpoint_path: {}\n", quote(&self.latest));
        for listed in &self.all {
            let _ = writeln!(text, "all_model_checkpoint_paths: {}", quote(&listed.path));
        }
        // Times are parallel to the paths, so all of them or none.
        let times: Option<Vec<f64>> = self.all.iter().map(|listed| listed.time).collect();
        for time in times.unwrap_or_default() {
            let _ = writeln!(text, "all_model_checkpoint_timestamps: {time:?}");
        }
        if let Some(time) = self.last_preserved {
            let _ = writeln!(text, "last_preserved_timestamp: {time:?}");
        }
        text
    }
}

/// A protobuf text string; bytes outside of ASCII in octal, as protobuf's own printer writes them.
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
            0x20..=0x7e => quoted.push(char::from(byte)),
            _ => {
                let _ = write!(quoted, "\\{byte:03o}");
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_tensorflow_writes() {
        let listed = |path: &str, time| Listed {
            path: path.to_owned(),
            time,
        };
        let mut state = State {
            latest: "model.ckpt-3".to_owned(),
            all: vec![listed("model.ckpt-2", None), listed("model.ckpt-3", None)],
            last_preserved: None,
        };
        assert_eq!(
            state.text(),
            "model_checkpoint_path: \"model.ckpt-3\"\nall_model_checkpoint_paths: \"model.ckpt-2\"\nall_model_checkpoint_paths: \"model.ckpt-3\"\n"
        );
        state.all[0].time = Some(1_700_000_000.25);
        state.all[1].time = Some(1.8e9);
        state.last_preserved = Some(5.0);
        assert_eq!(State::parse(&state.text()).unwrap(), state);
    }

    #[test]
    fn odd_names_survive() {
        let latest = "a \"quoted\" \\ ü\n/model.ckpt-1".to_owned();
        let state = State {
            latest,
            ..State::default()
        };
        assert_eq!(State::parse(&state.text()).unwrap(), state);
        assert!(state.text().contains(r#"\"quoted\" \\ \303\274\012"#));
    }

    #[test]
    fn nonsense_says_where() {
        assert!(State::parse("").unwrap_err().contains("names no checkpoint"));
        assert!(
            State::parse("model_checkpoint: \"x\"")
                .unwrap_err()
                .contains("model_checkpoint")
        );
    }
}
