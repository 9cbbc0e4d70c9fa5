//! `libcoati_torch.so`: networks on libtorch, for `coati_detection::accelerator`. Nothing but the interface there is public.

mod ahead;
mod context;
mod cuda;
mod error;
mod gradient;
mod layers;
mod loss;
mod mask;
mod pass;
mod resident;
mod scaling;
mod segments;
mod session;
mod transfer;

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use coati_detection::accelerator::abi::{
    Api, Calls, Floats, FloatsMut, Message, Scaling, Targets, Text, Update, VERSION,
};

use crate::error::Error;
use crate::pass::Sum;
use crate::resident::{Brought, read};
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
    reside,
    sums,
    stage,
    fill,
    finite,
    apply,
    read: read_all,
    gradient,
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

unsafe extern "C" fn start(
    session: *mut c_void,
    params: Floats,
    images: Floats,
    calls: Calls,
    message: *mut Message,
) -> bool {
    let (params, images) = unsafe { (floats(params), floats(images)) };
    let work = |session: &mut Session| {
        let mut sum = unsafe { sum(calls) };
        session.start(params, images, sum.as_mut().map(|sum| sum as Sum<'_>))
    };
    unsafe { on_session(session, message, work) }.is_some()
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

/// Tells the caller of elements that are ready.
///
/// # Safety
/// Functions may be called with their context until the call returns.
unsafe fn tell(calls: Calls) -> impl FnMut(std::ops::Range<usize>) {
    move |elements| {
        if let Some(call) = calls.ready {
            unsafe { call(calls.context, elements.start, elements.len()) }
        }
    }
}

/// Has the caller sum values over all replicas; `None` where there are no others.
///
/// # Safety
/// As [`tell`].
unsafe fn sum(calls: Calls) -> Option<impl FnMut(&mut [f64]) -> bool> {
    let call = calls.sum?;
    Some(move |values: &mut [f64]| unsafe { call(calls.context, values.as_mut_ptr(), values.len()) })
}

unsafe extern "C" fn train(session: *mut c_void, targets: *const Targets, calls: Calls, message: *mut Message) -> bool {
    let work = |session: &mut Session| {
        let targets = unsafe { targets.as_ref() }.ok_or(Error::NoLoss)?;
        let slices = [
            targets.columns,
            targets.class_weights,
            targets.codes,
            targets.box_weights,
        ];
        let slices = slices.map(|slice| unsafe { floats(slice) });
        let (mut ready, mut sum) = unsafe { (tell(calls), sum(calls)) };
        let sum = sum.as_mut().map(|sum| sum as Sum<'_>);
        session.train(slices, (targets.class_factor, targets.box_factor), &mut ready, sum)
    };
    unsafe { on_session(session, message, work) }.is_some()
}

unsafe extern "C" fn backward(
    session: *mut c_void,
    d_box: Floats,
    d_class: Floats,
    calls: Calls,
    message: *mut Message,
) -> bool {
    let (d_box, d_class) = unsafe { (floats(d_box), floats(d_class)) };
    let work = |session: &mut Session| {
        let (mut ready, mut sum) = unsafe { (tell(calls), sum(calls)) };
        session.backward(d_box, d_class, &mut ready, sum.as_mut().map(|sum| sum as Sum<'_>))
    };
    unsafe { on_session(session, message, work) }.is_some()
}

unsafe extern "C" fn collect(
    session: *mut c_void,
    grads: FloatsMut,
    sums: FloatsMut,
    penalty: *mut f32,
    scaling: *mut Scaling,
    message: *mut Message,
) -> bool {
    let (grads, sums) = unsafe { (floats_mut(grads), floats_mut(sums)) };
    let penalty = unsafe { penalty.as_mut() };
    let found = unsafe { on_session(session, message, |session| session.collect(grads, sums, penalty)) };
    match (found, unsafe { scaling.as_mut() }) {
        (Some(found), Some(to)) => {
            *to = found;
            true
        }
        (found, _) => found.is_some(),
    }
}

unsafe extern "C" fn reside(
    session: *mut c_void,
    residence: Text,
    params: Floats,
    slots: Floats,
    averages: Floats,
    message: *mut Message,
) -> bool {
    let residence = unsafe { text(residence) };
    let brought = Brought {
        params: unsafe { floats(params) },
        slots: unsafe { floats(slots) },
        averages: unsafe { floats(averages) },
    };
    unsafe { on_session(session, message, |session| session.reside(&residence, &brought)) }.is_some()
}

unsafe extern "C" fn sums(session: *mut c_void) -> usize {
    // SAFETY: `open` made it, and nobody else uses it meanwhile.
    unsafe { session.cast::<Session>().as_ref() }.map_or(0, Session::sums_address)
}

unsafe extern "C" fn stage(session: *mut c_void, images: Floats, message: *mut Message) -> bool {
    let images = unsafe { floats(images) };
    unsafe { on_session(session, message, |session| session.stage(images)) }.is_some()
}

unsafe extern "C" fn fill(session: *mut c_void, weight: f32, message: *mut Message) -> bool {
    let work = |session: &mut Session| {
        let (resident, gradient) = session.resident()?;
        resident.fill(gradient, weight)
    };
    unsafe { on_session(session, message, work) }.is_some()
}

unsafe extern "C" fn finite(session: *mut c_void, to: *mut bool, message: *mut Message) -> bool {
    let work = |session: &mut Session| {
        let (resident, gradient) = session.resident()?;
        resident.finite(gradient)
    };
    match (unsafe { on_session(session, message, work) }, unsafe { to.as_mut() }) {
        (Some(found), Some(to)) => {
            *to = found;
            true
        }
        (found, _) => found.is_some(),
    }
}

unsafe extern "C" fn apply(session: *mut c_void, update: *const Update, message: *mut Message) -> bool {
    let work = |session: &mut Session| {
        let update = unsafe { update.as_ref() }.ok_or(Error::NotResident)?;
        let (resident, gradient) = session.resident()?;
        resident.apply(gradient, update)
    };
    unsafe { on_session(session, message, work) }.is_some()
}

unsafe extern "C" fn read_all(
    session: *mut c_void,
    params: FloatsMut,
    slots: FloatsMut,
    averages: FloatsMut,
    message: *mut Message,
) -> bool {
    let (params, slots, averages) = unsafe { (floats_mut(params), floats_mut(slots), floats_mut(averages)) };
    let work = |session: &mut Session| session.resident()?.0.read(params, slots, averages);
    unsafe { on_session(session, message, work) }.is_some()
}

unsafe extern "C" fn gradient(session: *mut c_void, to: FloatsMut, message: *mut Message) -> bool {
    let to = unsafe { floats_mut(to) };
    let work = |session: &mut Session| read("gradient", session.resident()?.1, to);
    unsafe { on_session(session, message, work) }.is_some()
}

unsafe extern "C" fn close(session: *mut c_void) {
    if session.is_null() {
        return;
    }
    // SAFETY: `open` made it, and the caller gives it up.
    let session = unsafe { Box::from_raw(session.cast::<Session>()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(session)));
}
