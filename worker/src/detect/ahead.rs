//! Images are read, decoded and resized on all cores while the network is busy.

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::thread;

use coati_dataset::decode::{self, Image};
use coati_dataset::fit::{self, Fitted, Fitter};

/// Batches that wait for the network.
const WAITING: usize = 2;

/// The files of an image: its own, and those of `num_additional_channels`.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// JPEG or PNG.
    pub image: Vec<u8>,
    /// A file a channel.
    pub channels: Vec<Vec<u8>>,
}

impl From<Vec<u8>> for Files {
    fn from(image: Vec<u8>) -> Self {
        Self {
            image,
            channels: Vec::new(),
        }
    }
}

/// An image and what the network is given of it.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// As stored.
    pub image: Image,
    /// For the network.
    pub input: Fitted,
}

/// Decodes and resizes images one after the other. One a thread.
#[derive(Debug)]
pub struct Preparer {
    fitter: Fitter,
}

impl Preparer {
    /// For a network.
    pub fn new(fit: fit::Options) -> Self {
        Self {
            fitter: Fitter::new(fit, decode::Options::default()),
        }
    }

    /// From the bytes of JPEG or PNG files.
    pub fn prepare(&mut self, files: &Files) -> Result<Prepared, String> {
        let channels: Vec<&[u8]> = files.channels.iter().map(Vec::as_slice).collect();
        let (image, input) = self
            .fitter
            .decode(&files.image, &channels)
            .map_err(|error| error.to_string())?;
        Ok(Prepared { image, input })
    }
}

/// How [`ahead`] goes about it.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    /// Items that are handed out together.
    pub batch: usize,
    /// What the network wants.
    pub fit: fit::Options,
}

/// Does `work` for each item on threads, a preparer each, and hands the results to `consume` in this thread, in order, `batch` at a time. An error of
/// `consume` ends it.
pub(crate) fn ahead<T: Send, R: Send, E>(
    mut items: impl Iterator<Item = T> + Send,
    options: Ahead,
    work: impl Fn(T, &mut Preparer) -> R + Sync,
    consume: &mut dyn FnMut(Vec<R>) -> Result<(), E>,
) -> Result<(), E> {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        let (send, results) = mpsc::sync_channel(WAITING);
        let work = &work;
        scope.spawn(move || {
            let mut preparers: Vec<_> = (0..cores.min(options.batch))
                .map(|_| Preparer::new(options.fit.clone()))
                .collect();
            loop {
                let batch: Vec<T> = items.by_ref().take(options.batch).collect();
                if batch.is_empty() || send.send(spread(batch, &mut preparers, work)).is_err() {
                    break;
                }
            }
        });
        for batch in results {
            consume(batch)?;
        }
        Ok(())
    })
}

/// Divides a batch among the preparers; the results stay in order.
fn spread<T: Send, R: Send>(
    mut batch: Vec<T>,
    preparers: &mut [Preparer],
    work: &(impl Fn(T, &mut Preparer) -> R + Sync),
) -> Vec<R> {
    let share = batch.len().div_ceil(preparers.len().max(1));
    thread::scope(|scope| {
        let mut running = Vec::new();
        for preparer in preparers {
            let rest = batch.split_off(share.min(batch.len()));
            let part = std::mem::replace(&mut batch, rest);
            running.push(scope.spawn(move || part.into_iter().map(|item| work(item, preparer)).collect::<Vec<R>>()));
        }
        let joined = running.into_iter().map(thread::ScopedJoinHandle::join);
        joined
            .flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Ahead {
        Ahead {
            batch: 8,
            fit: fit::Options::new(4, 4),
        }
    }

    #[test]
    fn results_come_in_order_and_in_batches() {
        let mut found = Vec::new();
        let mut sizes = Vec::new();
        let done: Result<(), ()> = ahead(0..21, options(), |item, _| item * 2, &mut |batch| {
            sizes.push(batch.len());
            found.extend(batch);
            Ok(())
        });
        assert_eq!(done, Ok(()));
        assert_eq!(found, (0..21).map(|item| item * 2).collect::<Vec<_>>());
        assert_eq!(sizes, [8, 8, 5]);
    }

    #[test]
    fn an_error_ends_it_though_the_items_never_do() {
        let mut batches = 0;
        let done = ahead(0_u64.., options(), |item, _| item, &mut |_| {
            batches += 1;
            if batches < 3 { Ok(()) } else { Err("full") }
        });
        assert_eq!((done, batches), (Err("full"), 3));
    }

    #[test]
    fn what_is_no_image_is_said() {
        let error = Preparer::new(fit::Options::new(4, 4))
            .prepare(&b"GIF89a".to_vec().into())
            .unwrap_err();
        assert!(error.contains("GIF") && error.contains("hint"), "{error}");
    }
}
