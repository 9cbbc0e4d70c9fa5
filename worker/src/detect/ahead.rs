//! Images are read, decoded and resized on all cores while the network is busy.

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::thread;

use coati_dataset::decode::{self, Decoder, Image};
use coati_dataset::resize::{Resizer, View};

/// Batches that wait for the network.
const WAITING: usize = 2;

/// An image and what the network is given of it.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// As stored.
    pub image: Image,
    /// `[height, width, 3]`, values from 0 to 255.
    pub input: Vec<f32>,
}

/// Decodes and resizes images one after the other. One a thread.
#[derive(Debug)]
pub struct Preparer {
    decoder: Decoder,
    resizer: Resizer,
}

impl Preparer {
    /// For a network whose input is so high and wide.
    pub fn new((height, width): (usize, usize)) -> Self {
        Self {
            decoder: Decoder::new(decode::Options::default()),
            resizer: Resizer::new(height, width),
        }
    }

    /// From the bytes of a JPEG or PNG file.
    pub fn prepare(&mut self, bytes: &[u8]) -> Result<Prepared, String> {
        let image = self.decoder.decode(bytes).map_err(|error| error.to_string())?;
        let mut input = vec![0.0; self.resizer.output_len()];
        let whole = View::whole(image.height, image.width);
        self.resizer
            .resize_into(&image, whole, &mut input)
            .map_err(|error| error.to_string())?;
        Ok(Prepared { image, input })
    }
}

/// How [`ahead`] goes about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    /// Items that are handed out together.
    pub batch: usize,
    /// Height and width of the network's input.
    pub size: (usize, usize),
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
                .map(|_| Preparer::new(options.size))
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

    const OPTIONS: Ahead = Ahead { batch: 8, size: (4, 4) };

    #[test]
    fn results_come_in_order_and_in_batches() {
        let mut found = Vec::new();
        let mut sizes = Vec::new();
        let done: Result<(), ()> = ahead(0..21, OPTIONS, |item, _| item * 2, &mut |batch| {
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
        let done = ahead(0_u64.., OPTIONS, |item, _| item, &mut |_| {
            batches += 1;
            if batches < 3 { Ok(()) } else { Err("full") }
        });
        assert_eq!((done, batches), (Err("full"), 3));
    }

    #[test]
    fn what_is_no_image_is_said() {
        let error = Preparer::new((4, 4)).prepare(b"GIF89a").unwrap_err();
        assert!(error.contains("GIF") && error.contains("hint"), "{error}");
    }
}
