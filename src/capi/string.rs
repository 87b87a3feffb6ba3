//! Strings that the host owns.

use super::guard::{NOT_A_HANDLE, c_text, catch};
use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::sync::Mutex;

/// The strings that hosts hold, so that freeing anything else is found out.
static OWNED: Mutex<BTreeMap<usize, CString>> = Mutex::new(BTreeMap::new());

/// Hands `text` to the host, who frees it by `sft_string_free`.
pub(super) fn give_string(text: &str) -> *mut c_char {
    give(c_text(text))
}

/// Hands the host the error text of a handle, or what stands for it where the handle is none.
pub(super) fn give_error(text: impl FnOnce() -> Option<CString>) -> *mut c_char {
    catch(std::ptr::null_mut(), || {
        give(text().unwrap_or_else(|| NOT_A_HANDLE.to_owned()))
    })
}

fn give(text: CString) -> *mut c_char {
    let pointer = text.as_ptr();
    let mut owned = OWNED.lock().unwrap_or_else(|e| e.into_inner());
    owned.insert(pointer.addr(), text);
    pointer.cast_mut()
}

/// Frees a string that a call of this library gave away. NULL, a string freed before or any other
/// pointer does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn sft_string_free(string: *mut c_char) {
    catch((), || {
        let mut owned = OWNED.lock().unwrap_or_else(|e| e.into_inner());
        owned.remove(&string.addr());
    });
}
