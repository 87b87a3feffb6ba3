//! The configuration of a run, and the host's callbacks.

use super::arguments::{Out, text, values};
use super::callback::{Callback, sft_checkpoint_fn, sft_drop_fn, sft_log_fn, sft_progress_fn};
use super::canceller::sft_canceller;
use super::guard::{Guarded, NOT_A_HANDLE, catch, enter, invalid};
use super::handle::{Registry, Slot};
use super::status::*;
use super::string::{give_error, give_string};
use crate::config::{Config, Setting};
use crate::engine::{Canceller, Hooks};
use crate::error::Result;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// The configuration of a run: keys with values, callbacks and a canceller.
pub struct sft_config {
    _opaque: [u8; 0],
}

/// What a configuration handle holds.
#[derive(Default)]
pub(super) struct ConfigState {
    pub config: Config,
    canceller: Option<Canceller>,
    progress: Option<Arc<Callback<sft_progress_fn>>>,
    checkpoint: Option<Arc<Callback<sft_checkpoint_fn>>>,
    log: Option<Arc<Callback<sft_log_fn>>>,
}

static CONFIGS: Registry<Guarded<ConfigState>> = Registry::new();

impl ConfigState {
    /// The host's side of a run. `stop_reason` follows what the reports say, so that it is right
    /// inside the callback too.
    pub fn hooks(&self, stop_reason: Arc<AtomicI32>) -> Hooks {
        let mut hooks = Hooks {
            canceller: self.canceller.clone().unwrap_or_default(),
            ..Hooks::default()
        };
        if let Some(callback) = self.progress.clone() {
            hooks.progress = Some(Box::new(move |report| {
                stop_reason.store(stop_code(report.stop_reason), Ordering::Release);
                callback.progress(report)
            }));
        }
        if let Some(callback) = self.checkpoint.clone() {
            hooks.checkpoint = Some(Box::new(move |report| callback.checkpoint(report)));
        }
        if let Some(callback) = self.log.clone() {
            hooks.log = Some(Box::new(move |level, message| callback.log(level, message)));
        }
        hooks
    }
}

/// Runs `body` inside a configuration handle.
pub(super) fn with_config(
    config: *const sft_config,
    body: impl FnOnce(&mut ConfigState) -> Result<sft_status>,
) -> sft_status {
    enter(CONFIGS.get(config), |guarded| guarded, body)
}

/// Makes a configuration with every key at its default. Never NULL, unless there is no memory. Free
/// it by sft_config_free.
#[unsafe(no_mangle)]
pub extern "C" fn sft_config_new() -> *mut sft_config {
    catch(std::ptr::null_mut(), || {
        CONFIGS.insert(Guarded::new(ConfigState::default()))
    })
}

/// Frees a configuration. Sessions that were started from it go on. NULL or a freed configuration
/// does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn sft_config_free(config: *mut sft_config) {
    catch((), || drop(CONFIGS.remove(config)));
}

/// The text of the last call on this configuration that failed, sft_start included; empty if none
/// has. Never NULL. Borrowed until the next call on this configuration fails or it is freed.
#[unsafe(no_mangle)]
pub extern "C" fn sft_config_last_error(config: *const sft_config) -> *const c_char {
    catch(NOT_A_HANDLE.as_ptr(), || match CONFIGS.get(config) {
        Some(guarded) => guarded.last_error(),
        None => NOT_A_HANDLE.as_ptr(),
    })
}

/// A copy of what sft_config_last_error gives, which may be asked for while other threads call on this
/// configuration. Never NULL, unless there is no memory. Free it by sft_string_free.
#[unsafe(no_mangle)]
pub extern "C" fn sft_config_last_error_copy(config: *const sft_config) -> *mut c_char {
    give_error(|| CONFIGS.get(config).map(|guarded| guarded.copy_last_error()))
}

/// Sets the keys of a JSON object, which is len bytes of UTF-8 and needs no NUL at its end: all of
/// them or, on an error, none.
///
/// Errors: SFT_ERR_CONFIG for malformed JSON or a value of the wrong type, SFT_ERR_UNKNOWN_KEY,
/// SFT_ERR_UNSUPPORTED, SFT_ERR_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_config_merge_json(
    config: *mut sft_config,
    json: *const c_char,
    len: usize,
) -> sft_status {
    with_config(config, |state| {
        if json.is_null() {
            return Err(invalid("json is NULL"));
        }
        // SAFETY: the header asks for len bytes at json.
        let bytes = unsafe { values(json.cast::<u8>(), len, "json") }?;
        let json =
            std::str::from_utf8(bytes).map_err(|e| invalid("json is not UTF-8").with_source(e))?;
        state.config.merge_json(json)?;
        Ok(SFT_OK)
    })
}

/// Sets the keys of the YAML or JSON file at path: all of them or, on an error, none. The text of an
/// error names the file and, where it is about a key or the syntax, the line.
///
/// Errors: SFT_ERR_IO if the file cannot be read, else as sft_config_merge_json.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_config_merge_file(
    config: *mut sft_config,
    path: *const c_char,
) -> sft_status {
    with_config(config, |state| {
        // SAFETY: the header asks for a NUL-terminated string.
        let path = unsafe { text(path, "path") }?;
        state.config.merge_file(path)?;
        Ok(SFT_OK)
    })
}

/// Sets one key to a text, which is read as the key needs it: "5" sets a number, "null" clears an
/// optional key, JSON sets a nested one such as "stop". A key with dots reaches inside a nested one:
/// "lr_scheduler_kwargs.num_cycles". Both strings are copied.
///
/// Errors: SFT_ERR_CONFIG for a value of the wrong type, SFT_ERR_UNKNOWN_KEY, SFT_ERR_UNSUPPORTED,
/// SFT_ERR_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_config_set_str(
    config: *mut sft_config,
    key: *const c_char,
    value: *const c_char,
) -> sft_status {
    with_config(config, |state| {
        // SAFETY: the header asks for NUL-terminated strings.
        let (key, value) = unsafe { (text(key, "key")?, text(value, "value")?) };
        state.config.set(key, value)?;
        Ok(SFT_OK)
    })
}

/// Sets one key to a whole number. Errors: as sft_config_set_str.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_config_set_i64(
    config: *mut sft_config,
    key: *const c_char,
    value: i64,
) -> sft_status {
    // SAFETY: the header asks for a NUL-terminated string.
    unsafe { set(config, key, Setting::Int(value)) }
}

/// Sets one key to a number, which must be finite. Errors: as sft_config_set_str.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_config_set_f64(
    config: *mut sft_config,
    key: *const c_char,
    value: f64,
) -> sft_status {
    // SAFETY: the header asks for a NUL-terminated string.
    unsafe { set(config, key, Setting::Float(value)) }
}

/// Sets one key to false (0) or true (any other value). Errors: as sft_config_set_str.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_config_set_bool(
    config: *mut sft_config,
    key: *const c_char,
    value: i32,
) -> sft_status {
    // SAFETY: the header asks for a NUL-terminated string.
    unsafe { set(config, key, Setting::Bool(value != 0)) }
}

/// # Safety
/// `key` is NULL or a NUL-terminated string.
unsafe fn set(config: *mut sft_config, key: *const c_char, value: Setting) -> sft_status {
    with_config(config, |state| {
        // SAFETY: as the caller's.
        let key = unsafe { text(key, "key") }?;
        state.config.set(key, value)?;
        Ok(SFT_OK)
    })
}

/// Writes all keys with their values, defaults included, to *out as a JSON object that
/// sft_config_merge_json takes. Free it by sft_string_free.
///
/// Errors: SFT_ERR_INVALID_ARGUMENT if out is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_config_to_json(
    config: *mut sft_config,
    out: *mut *mut c_char,
) -> sft_status {
    with_config(config, |state| {
        let out = Out::new(out, "out")?;
        // SAFETY: the header asks for a place that can be written to.
        unsafe { out.write(give_string(&state.config.to_json())) }
        Ok(SFT_OK)
    })
}

/// Sets the function that is called after each update of the sessions that are started from now on;
/// NULL for none. On SFT_OK the library owns user_data and calls drop for it once, as sft_drop_fn
/// says; on an error it stays the caller's. Sessions on several threads that share a callback may
/// call it at the same time.
///
/// Errors: SFT_ERR_INVALID_ARGUMENT for the handle.
#[unsafe(no_mangle)]
pub extern "C" fn sft_config_set_progress(
    config: *mut sft_config,
    progress: sft_progress_fn,
    user_data: *mut c_void,
    drop: sft_drop_fn,
) -> sft_status {
    with_config(config, |state| {
        let callback = Callback::new(progress, user_data, drop);
        state.progress = progress.is_some().then(|| Arc::new(callback));
        Ok(SFT_OK)
    })
}

/// Sets the function that is called once a checkpoint of the sessions that are started from now on is
/// whole on the disk; NULL for none. Ownership and errors: as sft_config_set_progress.
#[unsafe(no_mangle)]
pub extern "C" fn sft_config_set_checkpoint(
    config: *mut sft_config,
    checkpoint: sft_checkpoint_fn,
    user_data: *mut c_void,
    drop: sft_drop_fn,
) -> sft_status {
    with_config(config, |state| {
        let callback = Callback::new(checkpoint, user_data, drop);
        state.checkpoint = checkpoint.is_some().then(|| Arc::new(callback));
        Ok(SFT_OK)
    })
}

/// Sets the function that receives the log of sft_start and sft_plan on this configuration and of the
/// sessions that are started from now on; NULL for none. Ownership and errors: as
/// sft_config_set_progress.
#[unsafe(no_mangle)]
pub extern "C" fn sft_config_set_log(
    config: *mut sft_config,
    log: sft_log_fn,
    user_data: *mut c_void,
    drop: sft_drop_fn,
) -> sft_status {
    with_config(config, |state| {
        let callback = Callback::new(log, user_data, drop);
        state.log = log.is_some().then(|| Arc::new(callback));
        Ok(SFT_OK)
    })
}

/// Lets canceller stop the sessions that are started from now on, and sft_start and sft_plan
/// themselves; NULL for none. The canceller is shared: it may be freed at any time, and may serve several
/// configurations.
///
/// Errors: SFT_ERR_INVALID_ARGUMENT if canceller is freed or of another type.
#[unsafe(no_mangle)]
pub extern "C" fn sft_config_set_canceller(
    config: *mut sft_config,
    canceller: *const sft_canceller,
) -> sft_status {
    with_config(config, |state| {
        state.canceller = match Slot::canceller(canceller) {
            Some(slot) => Some(slot.flag()),
            None if canceller.is_null() => None,
            None => return Err(invalid("canceller is freed or of another type")),
        };
        Ok(SFT_OK)
    })
}
