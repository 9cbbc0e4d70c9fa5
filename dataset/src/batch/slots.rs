//! One buffer that several threads fill at once, each its own part.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};

/// A buffer of equally long slots; each slot is given out once.
pub(super) struct Slots {
    data: UnsafeCell<Vec<f32>>,
    start: *mut f32,
    slot_len: usize,
    taken: Vec<AtomicBool>,
}

// SAFETY: the data are reached only through `take`, which gives each slot to one caller, and through `into_vec`,
// which needs the value itself, so that no borrowed slot is left.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// `count` slots of `slot_len` floats; `data` is used for them if it has the right length.
    pub(super) fn new(count: usize, slot_len: usize, data: Option<Vec<f32>>) -> Self {
        let wanted = count * slot_len;
        let mut data = data
            .filter(|data| data.len() == wanted)
            .unwrap_or_else(|| vec![0.0; wanted]);
        let start = data.as_mut_ptr();
        let taken = (0..count).map(|_| AtomicBool::new(false)).collect();
        Self {
            data: UnsafeCell::new(data),
            start,
            slot_len,
            taken,
        }
    }

    /// Slot `index`, to the first who asks.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn take(&self, index: usize) -> Option<&mut [f32]> {
        if self.taken.get(index)?.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: index < count, so the range lies in the vector, which does not move or grow while `self` lives;
        // the flag gives this range to this caller alone.
        Some(unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.slot_len), self.slot_len) })
    }

    /// The whole buffer.
    pub(super) fn into_vec(self) -> Vec<f32> {
        self.data.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_disjoint_and_given_once() {
        let slots = Slots::new(4, 3, None);
        std::thread::scope(|scope| {
            for index in 0..4 {
                let slots = &slots;
                scope.spawn(move || slots.take(index).unwrap().fill(index as f32));
            }
        });
        assert!(slots.take(2).is_none() && slots.take(4).is_none());
        assert_eq!(slots.into_vec(), [0., 0., 0., 1., 1., 1., 2., 2., 2., 3., 3., 3.]);
    }

    #[test]
    fn a_buffer_of_the_right_size_is_used_again() {
        let old = vec![7.0; 6];
        let address = old.as_ptr();
        let again = Slots::new(2, 3, Some(old)).into_vec();
        assert_eq!(again.as_ptr(), address);
        assert_eq!(Slots::new(1, 2, Some(vec![7.0; 3])).into_vec(), [0.0; 2]);
    }
}
