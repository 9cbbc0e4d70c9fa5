//! `libcoati_torch.so`: networks on libtorch, for `coati_detection::accelerator`. Nothing but the interface there is public.

mod context;
mod cuda;
mod error;
mod loss;
mod mask;
mod scaling;
mod session;
mod transfer;

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use coati_detection::accelerator::abi::{Api, Floats, FloatsMut, Message, Scaling, Targets, Text, VERSION};

use crate::error::Error;
use crate::session::Session;

static API: Api = Api {
    version: VERSION,
    open,
    lay_out,
    set_key,
    start,
    predictions,
    infer,
    train,
    backward,
    collect,
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
unsafe fn guarded<T>(message: *mut Message, on_host: bool, work: impl FnOnce() -> Result<T, Error>) -> Option<T> {
    let error = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(found)) => return Some(found),
        Ok(Err(error)) => error,
        Err(cause) => Error::Panic(words(cause.as_ref())),
    };
    if let Some(message) = unsafe { message.as_mut() } {
        let (about, words) = error.message(on_host);
        message.set(about, &words);
    }
    None
}

/// What a panic says.
fn words(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic in libcoati_torch.so").to_owned()
}

/// Runs `work` on a session.
///
/// # Safety
/// `session` comes from [`open`], and nobody else uses it; `message` as for [`guarded`].
unsafe fn on_session<T>(
    session: *mut c_void,
    message: *mut Message,
    work: impl FnOnce(&mut Session) -> Result<T, Error>,
) -> Option<T> {
    let session = unsafe { &mut *session.cast::<Session>() };
    let on_host = session.on_host();
    unsafe { guarded(message, on_host, || work(session)) }
}

unsafe extern "C" fn open(opening: Text, arithmetic: *mut u32, message: *mut Message) -> *mut c_void {
    let opening = unsafe { text(opening) };
    let Some(session) = (unsafe { guarded(message, false, || Session::open(&opening)) }) else {
        return std::ptr::null_mut();
    };
    if let Some(arithmetic) = unsafe { arithmetic.as_mut() } {
        *arithmetic = session.arithmetic().code();
    }
    Box::into_raw(Box::new(session)).cast()
}

unsafe extern "C" fn lay_out(session: *mut c_void, height: usize, width: usize, message: *mut Message) -> bool {
    unsafe { on_session(session, message, |session| session.lay_out((height, width))) }.is_some()
}

unsafe extern "C" fn start(session: *mut c_void, params: Floats, images: Floats, message: *mut Message) -> bool {
    let (params, images) = unsafe { (floats(params), floats(images)) };
    unsafe { on_session(session, message, |session| session.start(params, images)) }.is_some()
}

unsafe extern "C" fn predictions(
    session: *mut c_void,
    boxes: FloatsMut,
    classes: FloatsMut,
    message: *mut Message,
) -> bool {
    let (boxes, classes) = unsafe { (floats_mut(boxes), floats_mut(classes)) };
    unsafe { on_session(session, message, |session| session.predictions(boxes, classes)) }.is_some()
}

unsafe extern "C" fn set_key(session: *mut c_void, key: u64) {
    // SAFETY: `open` made it, and nobody else uses it meanwhile.
    if let Some(session) = unsafe { session.cast::<Session>().as_mut() } {
        session.set_key(key);
    }
}

unsafe extern "C" fn infer(
    session: *mut c_void,
    params: Floats,
    images: Floats,
    boxes: FloatsMut,
    classes: FloatsMut,
    message: *mut Message,
) -> bool {
    let (params, images) = unsafe { (floats(params), floats(images)) };
    let (boxes, classes) = unsafe { (floats_mut(boxes), floats_mut(classes)) };
    let work = |session: &mut Session| session.infer(params, images, boxes, classes);
    unsafe { on_session(session, message, work) }.is_some()
}

unsafe extern "C" fn train(session: *mut c_void, targets: *const Targets, message: *mut Message) -> bool {
    let work = |session: &mut Session| {
        let targets = unsafe { targets.as_ref() }.ok_or(Error::NoLoss)?;
        let slices = [
            targets.columns,
            targets.class_weights,
            targets.codes,
            targets.box_weights,
        ];
        let slices = slices.map(|slice| unsafe { floats(slice) });
        session.train(slices, (targets.class_factor, targets.box_factor))
    };
    unsafe { on_session(session, message, work) }.is_some()
}

unsafe extern "C" fn backward(session: *mut c_void, d_box: Floats, d_class: Floats, message: *mut Message) -> bool {
    let (d_box, d_class) = unsafe { (floats(d_box), floats(d_class)) };
    unsafe { on_session(session, message, |session| session.backward(d_box, d_class)) }.is_some()
}

unsafe extern "C" fn collect(
    session: *mut c_void,
    grads: FloatsMut,
    sums: FloatsMut,
    scaling: *mut Scaling,
    message: *mut Message,
) -> bool {
    let (grads, sums) = unsafe { (floats_mut(grads), floats_mut(sums)) };
    let found = unsafe { on_session(session, message, |session| session.collect(grads, sums)) };
    match (found, unsafe { scaling.as_mut() }) {
        (Some(found), Some(to)) => {
            *to = found;
            true
        }
        (found, _) => found.is_some(),
    }
}

unsafe extern "C" fn close(session: *mut c_void) {
    if session.is_null() {
        return;
    }
    // SAFETY: `open` made it, and the caller gives it up.
    let session = unsafe { Box::from_raw(session.cast::<Session>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(session)));
}
