//! Which library this is.

use super::guard::{c_text, catch};
use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

/// The number of the binary interface that this header describes. It grows only when a host must be
/// changed; new functions and new fields at the end of structs leave it as it is.
pub const SFT_ABI_VERSION: u32 = 1;

/// The SFT_ABI_VERSION of the library that is running. A host that finds another number than its
/// header's should not go on.
#[unsafe(no_mangle)]
pub extern "C" fn sft_abi_version() -> u32 {
    SFT_ABI_VERSION
}

/// The version of the library that is running, such as "0.1.0". The text lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn sft_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(text) => text,
            Err(_) => panic!("a version holds no NUL"),
        };
    VERSION.as_ptr()
}

/// How the library was built, as a JSON object: "version", "abi_version", "arch", "os", "debug"
/// (whether it was built without optimisation) and "devices", the kinds that this build can use.
/// Later versions may add keys. The text lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn sft_build_info() -> *const c_char {
    static INFO: OnceLock<CString> = OnceLock::new();
    catch(c"{}", || {
        let info = INFO.get_or_init(|| {
            let info = serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "abi_version": SFT_ABI_VERSION,
                "arch": std::env::consts::ARCH,
                "os": std::env::consts::OS,
                "debug": cfg!(debug_assertions),
                "devices": ["cpu"],
            });
            c_text(&info.to_string())
        });
        info.as_c_str()
    })
    .as_ptr()
}
