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

    /// An empty buffer with room for one arena.
    pub(crate) fn take(self: &Arc<Self>) -> Buffer {
        let data = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer {
            data: data.unwrap_or_else(|| Vec::with_capacity(self.capacity)),
            pool: Arc::clone(self),
        }
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
        let mut data = std::mem::take(&mut self.data);
        data.clear();
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
