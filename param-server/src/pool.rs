use std::sync::{Arc, Mutex, PoisonError};

/// Buffers of one size that are used again from step to step, so that memory does not grow.
#[derive(Debug)]
pub(crate) struct Pool {
    free: Mutex<Vec<Vec<f32>>>,
    capacity: usize,
}

impl Pool {
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(Vec::new()),
            capacity,
        })
    }

    fn any(self: &Arc<Self>) -> Buffer {
        let data = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer {
            data: data.unwrap_or_else(|| Vec::with_capacity(self.capacity)),
            pool: Arc::clone(self),
        }
    }

    /// An empty buffer with room for one arena.
    pub(crate) fn take(self: &Arc<Self>) -> Buffer {
        let mut buffer = self.any();
        buffer.data.clear();
        buffer
    }

    /// A buffer as long as its room, which holds whatever was in it last.
    pub(crate) fn take_whole(self: &Arc<Self>) -> Buffer {
        let mut buffer = self.any();
        buffer.data.resize(self.capacity, 0.0);
        buffer
    }
}

impl Pool {
    /// A buffer of this data, for the pool afterwards.
    pub(crate) fn adopt(self: &Arc<Self>, data: Vec<f32>) -> Buffer {
        Buffer {
            data,
            pool: Arc::clone(self),
        }
    }

    /// A buffer with the same data.
    pub(crate) fn copy(self: &Arc<Self>, from: &Buffer) -> Buffer {
        let mut copy = self.take();
        copy.data.extend_from_slice(&from.data);
        copy
    }
}

/// Returns to its pool when dropped, wherever that happens.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) data: Vec<f32>,
    pool: Arc<Pool>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(data);
    }
}

/// So that a buffer can be sent as `bytes::Bytes` without being copied, and come back.
impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.data)
    }
}

pub(crate) const CHUNK: usize = 256 << 10;

const _: () = assert!(CHUNK * 4 <= coati_common::rpc::CHUNK_BYTES, "the wire's limit");

/// Vectors that readers still hold, kept to be written to again when they are done.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    retired: Vec<Arc<Vec<f32>>>,
}

/// A reader that lags behind keeps its vector alive anyway; more are not worth keeping for use.
const SHELVED: usize = 2;

impl Shelf {
    /// Makes the vector one to be written to. When readers hold it, another of the same length, whose elements mean nothing
    /// yet, takes its place, and the one that they hold is returned.
    pub(crate) fn writable(&mut self, vector: &mut Arc<Vec<f32>>) -> Option<Arc<Vec<f32>>> {
        let read = replaced(vector, || self.take())?;
        if self.retired.len() < SHELVED {
            self.retired.push(Arc::clone(&read));
        }
        Some(read)
    }

    fn take(&mut self) -> Option<Vec<f32>> {
        let free = self
            .retired
            .iter_mut()
            .position(|vector| Arc::get_mut(vector).is_some())?;
        Arc::into_inner(self.retired.swap_remove(free))
    }
}

/// As [`Shelf::writable`], without keeping anything for later use.
pub(crate) fn replaced(vector: &mut Arc<Vec<f32>>, spare: impl FnOnce() -> Option<Vec<f32>>) -> Option<Arc<Vec<f32>>> {
    if Arc::get_mut(vector).is_some() {
        return None;
    }
    let length = vector.len();
    // Fresh zeros cost nothing until they are written over.
    let mut next = spare().unwrap_or_else(|| vec![0.0; length]);
    next.resize(length, 0.0);
    Some(std::mem::replace(vector, Arc::new(next)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_keeps_its_values_and_its_vector_comes_back_into_use() {
        let mut shelf = Shelf::default();
        let mut vector = Arc::new(vec![1.0, 2.0]);
        let first = vector.as_ptr();
        assert_eq!(shelf.writable(&mut vector), None, "in place when nobody reads");
        let reader = Arc::clone(&vector);
        let read = shelf.writable(&mut vector);
        assert_eq!(read.as_ref(), Some(&reader));
        assert_eq!((reader[0], reader[1], vector.len()), (1.0, 2.0, 2));
        drop((reader, read));
        let reader = Arc::clone(&vector);
        assert!(shelf.writable(&mut vector).is_some());
        assert_eq!(vector.as_ptr(), first);
        let second = vector.as_ptr();
        drop(reader);
        assert_eq!(shelf.writable(&mut vector), None);
        assert_eq!(vector.as_ptr(), second);
    }
}
