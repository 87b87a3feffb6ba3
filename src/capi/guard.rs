//! The one way into a handle: one call at a time, panics caught, the error text kept.

use super::status::*;
use crate::error::{Error, ErrorKind, Result};
use std::any::Any;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, TryLockError};

/// What a handle guards, with the text of the last call on it that failed.
///
/// The lock is only ever tried: a call that finds it taken is refused. A panic inside poisons it,
/// and so the handle.
pub(super) struct Guarded<T> {
    state: Mutex<T>,
    error: Mutex<CString>,
}

impl<T> Guarded<T> {
    pub fn new(state: T) -> Self {
        Self {
            state: Mutex::new(state),
            error: Mutex::new(CString::default()),
        }
    }

    /// Whether a panic has left the state unusable.
    pub fn is_poisoned(&self) -> bool {
        self.state.is_poisoned()
    }

    /// The error text; borrowed until the next call that fails.
    pub fn last_error(&self) -> *const c_char {
        self.error
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .as_ptr()
    }

    /// The error text, safe to ask for while other threads fail.
    pub fn copy_last_error(&self) -> CString {
        self.error.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn set_error(&self, text: &str) {
        *self.error.lock().unwrap_or_else(|e| e.into_inner()) = c_text(text);
    }

    fn enter(&self, body: impl FnOnce(&mut T) -> Result<sft_status>) -> sft_status {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::WouldBlock) => return SFT_ERR_BUSY,
            Err(TryLockError::Poisoned(_)) => return SFT_ERR_POISONED,
        };
        // The lock moves inside, so that a panic passes it on its way out and poisons it.
        let outcome = catch_unwind(AssertUnwindSafe(move || {
            let status = body(&mut state);
            // Set while the lock is held: whoever enters next finds it in place.
            if let Err(error) = &status {
                self.set_error(&error.to_string());
            }
            status
        }));
        match outcome {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => error.kind().code(),
            Err(panic) => {
                self.set_error(&format!(
                    "a defect of the library (panic): {}; this handle can only be freed",
                    panic_text(panic.as_ref())
                ));
                SFT_ERR_PANIC
            }
        }
    }
}

/// Runs `body` inside the guard of a live handle.
pub(super) fn enter<H, T>(
    handle: Option<Arc<H>>,
    guarded: impl FnOnce(&H) -> &Guarded<T>,
    body: impl FnOnce(&mut T) -> Result<sft_status>,
) -> sft_status {
    let Some(handle) = handle else {
        return SFT_ERR_INVALID_ARGUMENT;
    };
    // The handle may have been freed meanwhile: then the last of it goes here, under the catch.
    catch(SFT_ERR_PANIC, move || guarded(&handle).enter(body))
}

/// Runs `body`; a panic becomes `fallback`.
pub(super) fn catch<R>(fallback: R, body: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

/// What stands for the error text of a handle that is none.
pub(super) const NOT_A_HANDLE: &CStr =
    c"the handle is NULL, freed, or of another type; it has no error text";

/// An error about an argument.
pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

/// `text` as C wants it; a NUL inside becomes `\0` spelled out.
pub(super) fn c_text(text: &str) -> CString {
    CString::new(text).unwrap_or_else(|_| {
        CString::new(text.replace('\0', "\\0")).expect("every NUL was replaced")
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(guarded: &Guarded<u32>) -> String {
        // SAFETY: the text is NUL-terminated and no other call is made meanwhile.
        let text = unsafe { CStr::from_ptr(guarded.last_error()) };
        text.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_call_from_inside_is_refused_and_leaves_the_error_text() {
        let handle = Arc::new(Guarded::new(0u32));
        let enter = |body: &mut dyn FnMut(&mut u32) -> Result<sft_status>| {
            super::enter(Some(handle.clone()), |h| h, |state| body(state))
        };
        let failed = enter(&mut |_| Err(invalid("first")));
        assert_eq!(failed, SFT_ERR_INVALID_ARGUMENT);
        let outer = enter(&mut |_| {
            assert_eq!(enter(&mut |_| Ok(SFT_OK)), SFT_ERR_BUSY);
            Ok(SFT_OK)
        });
        assert_eq!(outer, SFT_OK);
        assert_eq!(text(&handle), "first");
    }

    #[test]
    fn a_panic_is_caught_told_and_poisons_the_handle() {
        let handle = Arc::new(Guarded::new(0u32));
        let go = |panics: bool| {
            super::enter(
                Some(handle.clone()),
                |h| h,
                |_| {
                    assert!(!panics, "injected\0here");
                    Ok(SFT_OK)
                },
            )
        };
        assert_eq!(go(false), SFT_OK);
        assert_eq!(go(true), SFT_ERR_PANIC);
        assert!(text(&handle).contains("injected\\0here"));
        assert_eq!(go(false), SFT_ERR_POISONED);
        assert!(handle.is_poisoned());
    }
}
