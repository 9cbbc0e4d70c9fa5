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
    #[error("{0}")]
    Torch(#[from] tch::TchError),
    /// The device's name.
    #[error("{0:?} is no device: cuda:N or torch-cpu")]
    Device(String),
    /// libtorch's CUDA half.
    #[error("libtorch_cuda.so cannot be opened: {0}")]
    CudaLibrary(String),
    /// No such GPU.
    #[error("libtorch sees {found} GPUs, number {index} is wanted (CUDA_VISIBLE_DEVICES is {visible:?})")]
    NoGpu {
        /// Visible GPUs.
        found: usize,
        /// The one wanted, from 0.
        index: usize,
        /// What limits them.
        visible: Option<String>,
    },
    /// `backward` before `forward`.
    #[error("a backward pass needs the forward pass in training mode just before it")]
    NoForward,
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
