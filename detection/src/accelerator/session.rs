//! A session of the library: one call at a time, whoever makes it.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use super::abi::{About, Api, Message};
use super::memory::{Shortage, amount_of};
use super::{Device, Error};
use crate::network;

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    api: &'static Api,
    pointer: Mutex<*mut c_void>,
    pub(super) device: Device,
}

// SAFETY: a session has no ties to a thread, and the lock lets one use it at a time.
unsafe impl Send for Session {}
// SAFETY: as above.
unsafe impl Sync for Session {}

impl Session {
    /// Takes over what the library's `open` returned, and closes it in the end.
    pub(super) fn new(api: &'static Api, pointer: *mut c_void, device: Device) -> Self {
        Self {
            api,
            pointer: Mutex::new(pointer),
            device,
        }
    }

    /// Calls the library; not from within a call.
    pub(super) fn with<T>(&self, call: impl FnOnce(&Api, *mut c_void) -> T) -> T {
        // Panics of a caller leave the session as it is.
        let pointer = self.pointer.lock().unwrap_or_else(PoisonError::into_inner);
        call(self.api, *pointer)
    }

    /// The same for a function that may fail, of which no batch is to blame.
    pub(super) fn call(
        &self,
        call: impl FnOnce(&Api, *mut c_void, *mut Message) -> bool,
    ) -> Result<(), network::Error> {
        let mut message = Message::default();
        if self.with(|api, session| call(api, session, &raw mut message)) {
            return Ok(());
        }
        let (device, text) = (self.device, message.text());
        let why = match message.about {
            About::Memory => no_room(&serde_json::from_str(&text).unwrap_or_default()),
            About::Refusal => return Err(network::Error::Accelerator(Error::Refused { device, why: text })),
            About::Other => text,
        };
        Err(network::Error::Accelerator(Error::Torch { device, why }))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: nobody uses the session after this.
        self.with(|api, session| unsafe { (api.close)(session) });
    }
}

/// For variables and their slots, which no smaller batch makes smaller.
fn no_room(shortage: &Shortage) -> String {
    let amount = |bytes: Option<u64>| bytes.map_or_else(|| "an unknown amount".to_owned(), amount_of);
    format!(
        "no memory for the model's variables and their slots: {} asked for, {} free, {} in all",
        amount(shortage.asked),
        amount(shortage.free),
        amount(shortage.total)
    )
}
