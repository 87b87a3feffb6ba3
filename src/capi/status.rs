//! Status codes and stop reasons as numbers.

use super::guard::catch;
use crate::report::StopReason;
use std::ffi::{CStr, c_char};

/// What a call says about how it went: one of the SFT_OK, SFT_STOPPED and SFT_ERR_ numbers. From 1
/// to 99 it is an outcome that is no error, from 100 an error. Numbers are never reused; a newer
/// library may return ones that this header does not know.
pub type sft_status = i32;

/// Done.
pub const SFT_OK: i32 = 0;
/// The run has ended: nothing was done. No error.
pub const SFT_STOPPED: i32 = 1;
/// An argument is NULL, out of range or not UTF-8, or the handle is NULL, freed or of another type.
pub const SFT_ERR_INVALID_ARGUMENT: i32 = 100;
/// Another call is inside the same handle right now. Nothing was done, the error text is untouched.
pub const SFT_ERR_BUSY: i32 = 101;
/// An earlier SFT_ERR_PANIC left the handle unusable: it can only be freed.
pub const SFT_ERR_POISONED: i32 = 102;
/// A configuration value is wrong or contradicts another.
pub const SFT_ERR_CONFIG: i32 = 200;
/// A configuration key is not known; the error text names the nearest one.
pub const SFT_ERR_UNKNOWN_KEY: i32 = 201;
/// What was asked for is known and not supported.
pub const SFT_ERR_UNSUPPORTED: i32 = 202;
/// The model folder or its config.json is wrong.
pub const SFT_ERR_MODEL: i32 = 300;
/// The model's architecture, or one of its options, is not supported.
pub const SFT_ERR_UNSUPPORTED_MODEL: i32 = 301;
/// A tensor is missing, has another shape or type, or holds NaN.
pub const SFT_ERR_TENSOR: i32 = 302;
/// The tokenizer cannot be read or lacks what the data needs.
pub const SFT_ERR_TOKENIZER: i32 = 303;
/// The chat template does not compile, or raised an error.
pub const SFT_ERR_TEMPLATE: i32 = 304;
/// A data file or a row of it is wrong, or there are no rows.
pub const SFT_ERR_DATA: i32 = 400;
/// A batch of the host is malformed. Nothing was done.
pub const SFT_ERR_BATCH: i32 = 401;
/// Reading or writing a file failed.
pub const SFT_ERR_IO: i32 = 500;
/// A folder that must not be overwritten already exists.
pub const SFT_ERR_EXISTS: i32 = 501;
/// A checkpoint is damaged, incomplete or of a format that is not known.
pub const SFT_ERR_CHECKPOINT: i32 = 502;
/// The device cannot be used.
pub const SFT_ERR_DEVICE: i32 = 600;
/// The run does not fit into memory.
pub const SFT_ERR_OUT_OF_MEMORY: i32 = 601;
/// The canceller was triggered while the call was loading or evaluating.
pub const SFT_ERR_CANCELLED: i32 = 602;
/// A defect of the library was caught. The handle is poisoned.
pub const SFT_ERR_PANIC: i32 = 900;
/// A defect of the library was found by itself.
pub const SFT_ERR_INTERNAL: i32 = 901;

/// The run goes on.
pub const SFT_STOP_NONE: i32 = 0;
/// The metric reached the target and held it.
pub const SFT_STOP_TARGET_REACHED: i32 = 1;
/// No improvement for the patience of a plateau rule.
pub const SFT_STOP_PLATEAU: i32 = 2;
/// Loss or gradient norm was NaN or infinite.
pub const SFT_STOP_NON_FINITE: i32 = 3;
/// The metric grew to a multiple of its best.
pub const SFT_STOP_DIVERGED: i32 = 4;
/// Evaluation loss rose while training loss fell.
pub const SFT_STOP_OVERFIT: i32 = 5;
/// The budget of optimizer updates is used up.
pub const SFT_STOP_MAX_STEPS: i32 = 6;
/// The budget of epochs is used up.
pub const SFT_STOP_MAX_EPOCHS: i32 = 7;
/// The budget of training tokens is used up.
pub const SFT_STOP_MAX_TOKENS: i32 = 8;
/// The budget of seconds is used up.
pub const SFT_STOP_MAX_TIME: i32 = 9;
/// The canceller was triggered.
pub const SFT_STOP_CANCELLED: i32 = 10;
/// The progress callback asked to stop.
pub const SFT_STOP_CALLBACK: i32 = 11;

/// The number of a stop reason, SFT_STOP_NONE while there is none.
pub(super) fn stop_code(reason: Option<StopReason>) -> i32 {
    reason.map_or(SFT_STOP_NONE, |reason| reason as i32)
}

/// The name of a status, such as "SFT_ERR_CONFIG"; "unknown" for a number that is none. The text
/// lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn sft_status_name(status: i32) -> *const c_char {
    catch(c"unknown", || status_name(status).unwrap_or(c"unknown")).as_ptr()
}

/// The name of a stop reason as logs print it, such as "target_reached"; "none" for SFT_STOP_NONE,
/// "unknown" for a number that is none. The text lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn sft_stop_reason_name(stop_reason: i32) -> *const c_char {
    catch(c"unknown", || {
        stop_reason_name(stop_reason).unwrap_or(c"unknown")
    })
    .as_ptr()
}

fn status_name(status: i32) -> Option<&'static CStr> {
    Some(match status {
        SFT_OK => c"SFT_OK",
        SFT_STOPPED => c"SFT_STOPPED",
        SFT_ERR_INVALID_ARGUMENT => c"SFT_ERR_INVALID_ARGUMENT",
        SFT_ERR_BUSY => c"SFT_ERR_BUSY",
        SFT_ERR_POISONED => c"SFT_ERR_POISONED",
        SFT_ERR_CONFIG => c"SFT_ERR_CONFIG",
        SFT_ERR_UNKNOWN_KEY => c"SFT_ERR_UNKNOWN_KEY",
        SFT_ERR_UNSUPPORTED => c"SFT_ERR_UNSUPPORTED",
        SFT_ERR_MODEL => c"SFT_ERR_MODEL",
        SFT_ERR_UNSUPPORTED_MODEL => c"SFT_ERR_UNSUPPORTED_MODEL",
        SFT_ERR_TENSOR => c"SFT_ERR_TENSOR",
        SFT_ERR_TOKENIZER => c"SFT_ERR_TOKENIZER",
        SFT_ERR_TEMPLATE => c"SFT_ERR_TEMPLATE",
        SFT_ERR_DATA => c"SFT_ERR_DATA",
        SFT_ERR_BATCH => c"SFT_ERR_BATCH",
        SFT_ERR_IO => c"SFT_ERR_IO",
        SFT_ERR_EXISTS => c"SFT_ERR_EXISTS",
        SFT_ERR_CHECKPOINT => c"SFT_ERR_CHECKPOINT",
        SFT_ERR_DEVICE => c"SFT_ERR_DEVICE",
        SFT_ERR_OUT_OF_MEMORY => c"SFT_ERR_OUT_OF_MEMORY",
        SFT_ERR_CANCELLED => c"SFT_ERR_CANCELLED",
        SFT_ERR_PANIC => c"SFT_ERR_PANIC",
        SFT_ERR_INTERNAL => c"SFT_ERR_INTERNAL",
        _ => return None,
    })
}

fn stop_reason_name(stop_reason: i32) -> Option<&'static CStr> {
    Some(match stop_reason {
        SFT_STOP_NONE => c"none",
        SFT_STOP_TARGET_REACHED => c"target_reached",
        SFT_STOP_PLATEAU => c"plateau",
        SFT_STOP_NON_FINITE => c"non_finite",
        SFT_STOP_DIVERGED => c"diverged",
        SFT_STOP_OVERFIT => c"overfit",
        SFT_STOP_MAX_STEPS => c"max_steps",
        SFT_STOP_MAX_EPOCHS => c"max_epochs",
        SFT_STOP_MAX_TOKENS => c"max_tokens",
        SFT_STOP_MAX_TIME => c"max_time",
        SFT_STOP_CANCELLED => c"cancelled",
        SFT_STOP_CALLBACK => c"callback",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// The header's number of a kind. No wildcard: a new kind must be given one.
    fn number(kind: ErrorKind) -> i32 {
        match kind {
            ErrorKind::InvalidArgument => SFT_ERR_INVALID_ARGUMENT,
            ErrorKind::Busy => SFT_ERR_BUSY,
            ErrorKind::Poisoned => SFT_ERR_POISONED,
            ErrorKind::Config => SFT_ERR_CONFIG,
            ErrorKind::UnknownKey => SFT_ERR_UNKNOWN_KEY,
            ErrorKind::Unsupported => SFT_ERR_UNSUPPORTED,
            ErrorKind::Model => SFT_ERR_MODEL,
            ErrorKind::UnsupportedModel => SFT_ERR_UNSUPPORTED_MODEL,
            ErrorKind::Tensor => SFT_ERR_TENSOR,
            ErrorKind::Tokenizer => SFT_ERR_TOKENIZER,
            ErrorKind::Template => SFT_ERR_TEMPLATE,
            ErrorKind::Data => SFT_ERR_DATA,
            ErrorKind::Batch => SFT_ERR_BATCH,
            ErrorKind::Io => SFT_ERR_IO,
            ErrorKind::Exists => SFT_ERR_EXISTS,
            ErrorKind::Checkpoint => SFT_ERR_CHECKPOINT,
            ErrorKind::Device => SFT_ERR_DEVICE,
            ErrorKind::OutOfMemory => SFT_ERR_OUT_OF_MEMORY,
            ErrorKind::Cancelled => SFT_ERR_CANCELLED,
            ErrorKind::Panic => SFT_ERR_PANIC,
            ErrorKind::Internal => SFT_ERR_INTERNAL,
        }
    }

    #[test]
    fn the_header_numbers_every_error_kind_as_the_library_does() {
        use ErrorKind::*;
        for kind in [
            InvalidArgument,
            Busy,
            Poisoned,
            Config,
            UnknownKey,
            Unsupported,
            Model,
            UnsupportedModel,
            Tensor,
            Tokenizer,
            Template,
            Data,
            Batch,
            Io,
            Exists,
            Checkpoint,
            Device,
            OutOfMemory,
            Cancelled,
            Panic,
            Internal,
        ] {
            assert_eq!(number(kind), kind.code(), "{kind:?}");
            assert!(status_name(kind.code()).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn the_header_names_every_stop_reason_as_logs_do() {
        use StopReason::*;
        for reason in [
            TargetReached,
            Plateau,
            NonFinite,
            Diverged,
            Overfit,
            MaxSteps,
            MaxEpochs,
            MaxTokens,
            MaxTime,
            Cancelled,
            Callback,
        ] {
            let name = stop_reason_name(stop_code(Some(reason))).unwrap();
            assert_eq!(name.to_str().unwrap(), reason.code());
        }
        assert_eq!(stop_reason_name(stop_code(None)), Some(c"none"));
        assert_eq!(stop_reason_name(12), None);
    }
}
