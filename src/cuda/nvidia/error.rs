//! What CUDA's result codes mean to the library's users.

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUresult};

use crate::error::{Error, ErrorKind, Result};

/// `Ok`, or an error that says what was being done and what CUDA calls the failure.
pub(super) fn check(code: CUresult, doing: impl FnOnce() -> String) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(Error::new(
            kind(code),
            format!("{}: {}", doing(), describe(code)),
        )),
    }
}

fn kind(code: CUresult) -> ErrorKind {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        _ => ErrorKind::Device,
    }
}

/// CUDA's name and sentence for a code, and the way out where there is one.
pub(super) fn describe(code: CUresult) -> String {
    let mut text = format!("{code:?}");
    let mut sentence = std::ptr::null();
    // SAFETY: the library is loaded, for it returned the code; the sentence is NULL or a string of
    // the driver's that is never freed.
    let known = unsafe { sys::cuGetErrorString(code, &mut sentence) };
    if known == CUresult::CUDA_SUCCESS && !sentence.is_null() {
        // SAFETY: as above.
        let sentence = unsafe { CStr::from_ptr(sentence) };
        text.push_str(&format!(" ({})", sentence.to_string_lossy()));
    }
    if let Some(advice) = advice(code) {
        text.push_str("; ");
        text.push_str(advice);
    }
    text
}

/// The way out of a failure.
fn advice(code: CUresult) -> Option<&'static str> {
    use CUresult::*;
    Some(match code {
        CUDA_ERROR_NO_DEVICE => {
            "no NVIDIA GPU is visible to this process: see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        }
        CUDA_ERROR_STUB_LIBRARY => {
            "the libcuda that was loaded is the toolkit's stub: the driver's own must come first in \
             the library path"
        }
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "libcuda and the kernel module are of different versions: restart after a driver \
             update, or take the compatibility libraries out of LD_LIBRARY_PATH"
        }
        CUDA_ERROR_SYSTEM_NOT_READY => {
            "the system is not ready: on machines with NVSwitch the fabric manager must run"
        }
        CUDA_ERROR_UNKNOWN => {
            "the kernel module may not be loaded, or a container lacks the device: see `nvidia-smi`"
        }
        CUDA_ERROR_DEVICE_UNAVAILABLE | CUDA_ERROR_CONTEXT_ALREADY_IN_USE => {
            "another process holds the GPU, or it is closed to computing: see the processes and the \
             compute mode in `nvidia-smi -q`"
        }
        CUDA_ERROR_MPS_CONNECTION_FAILED
        | CUDA_ERROR_MPS_RPC_FAILURE
        | CUDA_ERROR_MPS_SERVER_NOT_READY
        | CUDA_ERROR_MPS_MAX_CLIENTS_REACHED
        | CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED
        | CUDA_ERROR_MPS_CLIENT_TERMINATED => {
            "the GPU is shared through MPS, whose server refused or lost this process"
        }
        CUDA_ERROR_ECC_UNCORRECTABLE | CUDA_ERROR_NVLINK_UNCORRECTABLE => {
            "the GPU's hardware reported an error: reset or replace it"
        }
        CUDA_ERROR_LAUNCH_TIMEOUT => {
            "the GPU also drives a display, whose watchdog stops long kernels"
        }
        _ => return None,
    })
}

/// Whether a code says that there can be no graph, which leaves everything else as it was.
pub(super) fn is_of_a_capture(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_NOT_SUPPORTED
            | CUDA_ERROR_OUT_OF_MEMORY
            | CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            | CUDA_ERROR_STREAM_CAPTURE_MERGE
            | CUDA_ERROR_STREAM_CAPTURE_UNMATCHED
            | CUDA_ERROR_STREAM_CAPTURE_UNJOINED
            | CUDA_ERROR_STREAM_CAPTURE_ISOLATION
            | CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
            | CUDA_ERROR_CAPTURED_EVENT
            | CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD
    )
}

/// Whether a kernel that ran earlier may have caused what a call reports.
pub(super) fn is_of_a_kernel(code: CUresult) -> bool {
    use CUresult::*;
    matches!(
        code,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_UNKNOWN
    )
}

/// What a failed opening of a device means, by its compute mode (`CU_DEVICE_ATTRIBUTE_COMPUTE_MODE`).
pub(super) fn compute_mode_advice(mode: i32) -> &'static str {
    match mode {
        2 => "; its compute mode is `prohibited`: `nvidia-smi -c DEFAULT` opens it",
        3 => {
            "; its compute mode is `exclusive process`: it serves one process at a time, and another \
             one may hold it"
        }
        _ => "",
    }
}

/// A CUDA version number, such as 13020, as people write it.
pub(super) fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// A number of bytes, to compare with another.
pub(super) fn gib(bytes: usize) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_numbers_read_as_people_write_them() {
        assert_eq!(version(13000), "13.0");
        assert_eq!(version(12080), "12.8");
        assert_eq!(version(13020), "13.2");
    }

    #[test]
    fn only_exhausted_memory_is_out_of_memory() {
        assert_eq!(
            kind(CUresult::CUDA_ERROR_OUT_OF_MEMORY),
            ErrorKind::OutOfMemory
        );
        assert_eq!(
            kind(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
            ErrorKind::Device
        );
    }

    #[test]
    fn a_process_that_holds_the_gpu_is_named_as_the_reason() {
        let advice = advice(CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE).unwrap();
        assert!(advice.contains("another process"), "{advice}");
        assert!(compute_mode_advice(3).contains("one process"));
        assert_eq!(compute_mode_advice(0), "");
    }
}
