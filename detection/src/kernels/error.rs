/// What can go wrong before the kernels run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused the threads.
    #[error("cannot start {threads} compute threads: {source}\nhint: set COATI_THREADS to a smaller number")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// Why not.
        source: rayon::ThreadPoolBuildError,
    },
}
