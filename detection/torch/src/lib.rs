//! `libcoati_torch.so`: networks on libtorch, for `coati_detection::accelerator`. Nothing but the interface there is public.

mod cuda;
mod error;
mod mask;
mod session;

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use coati_detection::accelerator::abi::{Api, Floats, FloatsMut, Message, Text, VERSION};

use crate::error::Error;
use crate::session::Session;

static API: Api = Api {
    version: VERSION,
    open,
    forward,
    set_key,
    backward,
    close,
};

/// The interface's functions.
#[unsafe(no_mangle)]
pub extern "C" fn coati_torch_api() -> *const Api {
    &raw const API
}

/// # Safety
/// The caller's slice lives until the call returns.
unsafe fn floats<'a>(floats: Floats) -> &'a [f32] {
    if floats.len == 0 {
        return &[];
    }
    unsafe { std::slice::from_raw_parts(floats.start, floats.len) }
}

/// # Safety
/// As [`floats`], and nobody else uses the slice.
unsafe fn floats_mut<'a>(floats: FloatsMut) -> &'a mut [f32] {
    if floats.len == 0 {
        return &mut [];
    }
    unsafe { std::slice::from_raw_parts_mut(floats.start, floats.len) }
}

/// # Safety
/// As [`floats`].
unsafe fn text<'a>(text: Text) -> std::borrow::Cow<'a, str> {
    if text.len == 0 {
        return "".into();
    }
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(text.start, text.len) })
}

/// Runs `work`; an error, or a panic below it, becomes `message`.
///
/// # Safety
/// `message` is null or points to a message that nobody else uses.
unsafe fn guarded<T>(message: *mut Message, work: impl FnOnce() -> Result<T, Error>) -> Option<T> {
    let why = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(found)) => return Some(found),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a panic in libcoati_torch.so".to_owned(),
    };
    if let Some(message) = unsafe { message.as_mut() } {
        message.set(&why);
    }
    None
}

unsafe extern "C" fn open(config: Text, device: Text, threads: usize, message: *mut Message) -> *mut c_void {
    let (config, device) = unsafe { (text(config), text(device)) };
    let session = unsafe { guarded(message, || Session::open(&config, &device, threads)) };
    session.map_or(std::ptr::null_mut(), |session| Box::into_raw(Box::new(session)).cast())
}

unsafe extern "C" fn forward(
    session: *mut c_void,
    params: Floats,
    images: Floats,
    training: bool,
    boxes: FloatsMut,
    classes: FloatsMut,
    message: *mut Message,
) -> bool {
    let work = || unsafe {
        let session = &mut *session.cast::<Session>();
        session.forward(
            floats(params),
            floats(images),
            training,
            floats_mut(boxes),
            floats_mut(classes),
        )
    };
    unsafe { guarded(message, work) }.is_some()
}

unsafe extern "C" fn set_key(session: *mut c_void, key: u64) {
    // SAFETY: `open` made it, and nobody else uses it meanwhile.
    if let Some(session) = unsafe { session.cast::<Session>().as_mut() } {
        session.set_key(key);
    }
}

unsafe extern "C" fn backward(
    session: *mut c_void,
    d_box: Floats,
    d_class: Floats,
    grads: FloatsMut,
    message: *mut Message,
) -> bool {
    let work = || unsafe {
        let session = &mut *session.cast::<Session>();
        session.backward(floats(d_box), floats(d_class), floats_mut(grads))
    };
    unsafe { guarded(message, work) }.is_some()
}

unsafe extern "C" fn close(session: *mut c_void) {
    if session.is_null() {
        return;
    }
    // SAFETY: `open` made it, and the caller gives it up.
    let session = unsafe { Box::from_raw(session.cast::<Session>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(session)));
}
