use coati_detection::accelerator::abi::About;
use coati_detection::accelerator::memory::{self, Shortage};

/// Why libtorch did not compute.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration that crossed the border.
    #[error("the network's configuration cannot be read: {0}")]
    Config(#[from] serde_json::Error),
    /// The network.
    #[error(transparent)]
    Network(#[from] coati_detection::network::Error),
    /// libtorch.
    #[error("{}", plain(.0))]
    Torch(#[from] tch::TchError),
    /// libtorch, by way of a panic in its bindings.
    #[error("{}", without_frames(.0))]
    Panic(String),
    /// The device's name.
    #[error("{0:?} is no device: cuda:N or torch-cpu")]
    Device(String),
    /// libtorch's CUDA half.
    #[error("libtorch_cuda.so cannot be opened: {0}")]
    CudaLibrary(String),
    /// What the device does not do, or why there is none: with a hint.
    #[error("{0}")]
    Refused(String),
    /// `backward` before `forward`.
    #[error("a backward pass needs the forward pass in training mode just before it")]
    NoForward,
    /// Losses of a session that was opened without them.
    #[error("this session was opened without losses")]
    NoLoss,
    /// A step of variables that were not brought to the device.
    #[error("the variables are not on the device")]
    NotResident,
    /// CUDA, by way of its runtime: with a hint.
    #[error(transparent)]
    Cuda(#[from] coati_collective::Error),
    /// The caller knows more.
    #[error("the replicas' statistics could not be summed")]
    Together,
    /// The plan names a variable that begins elsewhere.
    #[error("no variable begins at element {0}")]
    NoVariable(usize),
    /// Lengths of slices that crossed the border.
    #[error("{what} has {found} elements, {expected} are needed")]
    Length {
        /// Which.
        what: &'static str,
        /// Its length.
        found: usize,
        /// What it should be.
        expected: usize,
    },
}

impl Error {
    /// As it crosses the border.
    pub(crate) fn message(&self, on_host: bool) -> (About, String) {
        let words = self.to_string();
        match self {
            Self::Refused(_) => (About::Refusal, words),
            Self::Torch(_) | Self::Panic(_) => match Shortage::read(&words) {
                Some(mut shortage) => {
                    if on_host {
                        shortage.free = shortage.free.or_else(memory::available_on_host);
                    }
                    match serde_json::to_string(&shortage) {
                        Ok(json) => (About::Memory, json),
                        Err(_) => (About::Other, words),
                    }
                }
                None => (About::Other, words),
            },
            _ => (About::Other, words),
        }
    }
}

fn plain(error: &tch::TchError) -> String {
    without_frames(&error.to_string()).to_owned()
}

/// libtorch adds its call stack, which says nothing to a user.
fn without_frames(words: &str) -> &str {
    let end = ["\nException raised from", "\nframe #"]
        .into_iter()
        .filter_map(|sign| words.find(sign))
        .min();
    let words = &words[..end.unwrap_or(words.len())];
    words.strip_prefix("Internal torch error: ").unwrap_or(words).trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_stacks_stay_here() {
        let words = "Internal torch error: Expected 3 channels\nException raised from check at a.cpp:1 (most recent call first):\nframe #0: c10::Error";
        assert_eq!(without_frames(words), "Expected 3 channels");
        assert_eq!(without_frames("plain"), "plain");
    }

    #[test]
    fn what_an_error_is_about_crosses_the_border() {
        let memory = Error::Panic("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has".to_owned());
        let (about, json) = memory.message(false);
        let shortage: Shortage = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (about, shortage.asked, shortage.free),
            (About::Memory, Some(20 << 20), None)
        );
        let (_, json) = memory.message(true);
        let shortage: Shortage = serde_json::from_str(&json).unwrap();
        assert!(shortage.free.is_some_and(|free| free > 0), "this machine has memory");
        assert_eq!(
            Error::Refused("no\nhint: yes".to_owned()).message(false).0,
            About::Refusal
        );
        assert_eq!(Error::NoForward.message(false).0, About::Other);
    }
}
