//! libtorch's switches for TF32, which its C interface lacks.

use std::ffi::c_void;

// Members of `at::Context`, in `libtorch_cpu.so` on any machine. The build fails where a release has others.
unsafe extern "C" {
    #[link_name = "_ZN2at13globalContextEv"]
    fn global_context() -> *mut c_void;
    #[link_name = "_ZN2at7Context17setAllowTF32CuDNNEb"]
    fn set_allow_tf32_cudnn(context: *mut c_void, allow: bool);
    #[link_name = "_ZN2at7Context18setAllowTF32CuBLASEb"]
    fn set_allow_tf32_cublas(context: *mut c_void, allow: bool);
}

/// Whether products of float32 may be made from TF32: of convolutions and of matrices alike. libtorch's own default allows it for
/// convolutions alone.
pub(crate) fn allow_tf32(allow: bool) {
    // SAFETY: `globalContext` returns the one context, which lives as long as the process; both members take a flag.
    unsafe {
        let context = global_context();
        set_allow_tf32_cudnn(context, allow);
        set_allow_tf32_cublas(context, allow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        #[link_name = "_ZNK2at7Context15allowTF32CuBLASEv"]
        fn allow_tf32_cublas(context: *const c_void) -> bool;
        // An empty `std::optional` of an enumeration is passed as zeros.
        #[link_name = "_ZNK2at7Context14allowTF32CuDNNESt8optionalINS_9Float32OpEE"]
        fn allow_tf32_cudnn(context: *const c_void, none: u64) -> bool;
    }

    #[test]
    fn the_switch_is_libtorch_s() {
        // libtorch has to be there before its members are called.
        let _ = tch::Tensor::from_slice(&[0.0_f32]);
        for allow in [true, false, true, false] {
            allow_tf32(allow);
            // SAFETY: as above.
            let found = unsafe {
                (
                    allow_tf32_cublas(global_context()),
                    allow_tf32_cudnn(global_context(), 0),
                )
            };
            assert_eq!(found, (allow, allow));
        }
    }
}
