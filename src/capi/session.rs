//! A run.

use super::arguments::{Out, OutStruct, batches, text};
use super::config::{ConfigState, sft_config, with_config};
use super::guard::{Guarded, NOT_A_HANDLE, catch, enter, invalid};
use super::handle::Registry;
use super::report::{sft_batch, sft_eval_report, sft_snapshot, sft_step_report};
use super::status::*;
use super::string::give_error;
use crate::config::Config;
use crate::engine::{Canceller, Export, Hooks, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::report::{EvalReport, StepReport};
use std::ffi::c_char;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// A run: the model, the data, the optimizer and the stop rules.
pub struct sft_session {
    _opaque: [u8; 0],
}

/// What a session handle holds.
struct SessionHandle {
    session: Guarded<Session>,
    /// What can be read while a call is inside.
    stop_reason: Arc<AtomicI32>,
    /// The device has failed, so that the run cannot go on.
    failed: Arc<AtomicBool>,
    canceller: Canceller,
}

static SESSIONS: Registry<SessionHandle> = Registry::new();

/// The whole model as a Hugging Face folder.
pub const SFT_EXPORT_FULL: i32 = 1;
/// The adapter alone. Not supported in this version.
pub const SFT_EXPORT_ADAPTER: i32 = 2;
/// The model with the adapter merged in. Not supported in this version.
pub const SFT_EXPORT_MERGED: i32 = 3;

/// Runs `body` inside a session handle, then notes the verdict for those that only look.
pub(super) fn with_session(
    session: *const sft_session,
    body: impl FnOnce(&mut Session) -> Result<sft_status>,
) -> sft_status {
    let handle = SESSIONS.get(session);
    let seen = handle
        .as_ref()
        .map(|handle| (handle.stop_reason.clone(), handle.failed.clone()));
    enter(
        handle,
        |handle| &handle.session,
        |session| {
            let status = body(session);
            if let Some((stop_reason, failed)) = seen {
                stop_reason.store(stop_code(session.stop_reason()), Ordering::Release);
                failed.store(session.has_failed(), Ordering::Release);
            }
            status
        },
    )
}

/// Starts a run: loads the model and the data that the configuration names, allocates all memory,
/// and opens the log in output_dir; or goes on from a checkpoint where resume_from_checkpoint says so. Writes the session to *out; free it by sft_session_free. The
/// configuration is copied and can be changed, used again or freed. Without dataset_name the host
/// feeds its own batches by sft_step_batch.
///
/// Errors: any, each naming what is wrong and where; the text is on the configuration.
/// SFT_ERR_CANCELLED if the canceller was triggered. A failed start leaves output_dir as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_start(
    config: *mut sft_config,
    out: *mut *mut sft_session,
) -> sft_status {
    with_config(config, |state| {
        // SAFETY: the header asks for a place that can be written to.
        unsafe { begin(state, out, Session::start) }
    })
}

/// As sft_start, going on from the checkpoint in the folder dir whatever resume_from_checkpoint says.
/// With the same configuration and rows the run gives the numbers that it would have given without the
/// interruption, bit for bit. A host that feeds its own batches goes on with those after the snapshot's
/// step. The log in output_dir is cut to where the checkpoint was made, and goes on there.
///
/// Errors: as sft_start. SFT_ERR_CHECKPOINT if dir holds no whole checkpoint. SFT_ERR_CONFIG if the
/// configuration or the rows have changed in what changes the numbers; the text lists every key, and
/// resume_allow_changes allows them. SFT_ERR_EXISTS if output_dir has newer checkpoints of the run:
/// overwrite_output_dir removes them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_resume(
    config: *mut sft_config,
    dir: *const c_char,
    out: *mut *mut sft_session,
) -> sft_status {
    with_config(config, |state| {
        // SAFETY: the header asks for a NUL-terminated string.
        let dir = unsafe { folder(dir) }?;
        // SAFETY: the header asks for a place that can be written to.
        unsafe {
            begin(state, out, |config, hooks| {
                Session::resume(config, dir, hooks)
            })
        }
    })
}

/// A session by `start`, written to `out`.
///
/// # Safety
/// `out` is NULL or can be written to.
unsafe fn begin(
    state: &ConfigState,
    out: *mut *mut sft_session,
    start: impl FnOnce(Config, Hooks) -> Result<Session>,
) -> Result<sft_status> {
    let out = Out::new(out, "out")?;
    let stop_reason = Arc::new(AtomicI32::new(SFT_STOP_NONE));
    let hooks = state.hooks(stop_reason.clone());
    let canceller = hooks.canceller.clone();
    let session = start(state.config.clone(), hooks)?;
    stop_reason.store(stop_code(session.stop_reason()), Ordering::Release);
    let handle = SessionHandle {
        session: Guarded::new(session),
        stop_reason,
        failed: Arc::default(),
        canceller,
    };
    // SAFETY: as the caller's.
    unsafe { out.write(SESSIONS.insert(handle)) }
    Ok(SFT_OK)
}

/// One optimizer update on the next rows, with the evaluation, checkpoint and stop decision that are
/// due after it. Writes the report to *out; out may be NULL. SFT_STOPPED once the run has ended.
///
/// Errors: SFT_ERR_INVALID_ARGUMENT, also for a run without dataset_name. SFT_ERR_IO if the log
/// cannot be written or an earlier checkpoint could not: the update has taken effect all the same, the
/// run can go on, and sft_last_report has the report. SFT_ERR_CANCELLED if the canceller interrupted an
/// evaluation before the first update. SFT_ERR_DEVICE if the device failed: every later call that needs
/// it fails alike, and the session can only be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_step(
    session: *mut sft_session,
    out: *mut sft_step_report,
) -> sft_status {
    with_session(session, |session| {
        // SAFETY: the header asks for NULL or a struct of the size that it says.
        let out = unsafe { OutStruct::optional(out) }?;
        let report = session.step()?;
        // SAFETY: as above.
        Ok(unsafe { write_step(out, report) })
    })
}

/// One optimizer update on the host's own tokens. The n micro-batches at micro are one update
/// together: the loss is the mean over the supervised positions of all of them. Everything is
/// borrowed for the call. Writes the report to *out; out may be NULL. SFT_STOPPED once the run has
/// ended. Where no position of them is supervised the update counts and changes nothing, its loss is 0
/// with 0 supervised_tokens, and no stop rule sees it.
///
/// Errors: SFT_ERR_BATCH or SFT_ERR_INVALID_ARGUMENT for a malformed micro-batch: nothing was done.
/// SFT_ERR_IO as sft_step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_step_batch(
    session: *mut sft_session,
    micro: *const sft_batch,
    n: usize,
    out: *mut sft_step_report,
) -> sft_status {
    with_session(session, |session| {
        // SAFETY: the header asks for NULL or a struct of the size that it says.
        let out = unsafe { OutStruct::optional(out) }?;
        // SAFETY: the header asks for n batches with as many values as they say.
        let micro = unsafe { batches(micro, n) }?;
        let report = session.step_batch(&micro)?;
        // SAFETY: as above.
        Ok(unsafe { write_step(out, report) })
    })
}

/// Writes the report of the last update since sft_start or sft_resume to *out, as its call would have
/// written it: for an update whose call returned an error although it took effect, or was given no
/// report to write.
///
/// Errors: SFT_ERR_INVALID_ARGUMENT for out, or if there has been no update.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_last_report(
    session: *mut sft_session,
    out: *mut sft_step_report,
) -> sft_status {
    with_session(session, |session| {
        // SAFETY: the header asks for a struct of the size that it says.
        let out = unsafe { OutStruct::new(out) }?;
        let Some(report) = session.last_report() else {
            return Err(invalid("there has been no update yet"));
        };
        // SAFETY: as above.
        unsafe { out.write(report.into()) }
        Ok(SFT_OK)
    })
}

/// # Safety
/// As [`OutStruct::write`].
unsafe fn write_step(
    out: Option<OutStruct<sft_step_report>>,
    report: Option<StepReport>,
) -> sft_status {
    let Some(report) = report else {
        return SFT_STOPPED;
    };
    if let Some(out) = out {
        // SAFETY: as the caller's.
        unsafe { out.write((&report).into()) }
    }
    SFT_OK
}

/// Evaluates on the evaluation rows now. The result is logged and seen by the stop rules. Writes the
/// report to *out; out may be NULL. Also after the run has ended.
///
/// Errors: SFT_ERR_DATA if there are no evaluation rows; SFT_ERR_CANCELLED; SFT_ERR_IO if the log
/// cannot be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_evaluate(
    session: *mut sft_session,
    out: *mut sft_eval_report,
) -> sft_status {
    with_session(session, |session| {
        // SAFETY: the header asks for NULL or a struct of the size that it says.
        let out = unsafe { OutStruct::optional(out) }?;
        let report = session.evaluate()?;
        // SAFETY: as above.
        unsafe { write_eval(out, session, &report) }
        Ok(SFT_OK)
    })
}

/// As sft_evaluate, on the host's n batches, which are borrowed for the call.
///
/// Errors: SFT_ERR_BATCH or SFT_ERR_INVALID_ARGUMENT for a malformed batch, SFT_ERR_DATA if nothing
/// in them is supervised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_evaluate_batch(
    session: *mut sft_session,
    batch: *const sft_batch,
    n: usize,
    out: *mut sft_eval_report,
) -> sft_status {
    with_session(session, |session| {
        // SAFETY: the header asks for NULL or a struct of the size that it says.
        let out = unsafe { OutStruct::optional(out) }?;
        // SAFETY: the header asks for n batches with as many values as they say.
        let batch = unsafe { batches(batch, n) }?;
        let report = session.evaluate_batch(&batch)?;
        // SAFETY: as above.
        unsafe { write_eval(out, session, &report) }
        Ok(SFT_OK)
    })
}

/// # Safety
/// As [`OutStruct::write`].
unsafe fn write_eval(
    out: Option<OutStruct<sft_eval_report>>,
    session: &Session,
    report: &EvalReport,
) {
    if let Some(out) = out {
        let report = sft_eval_report::new(report, stop_code(session.stop_reason()));
        // SAFETY: as the caller's.
        unsafe { out.write(report) }
    }
}

/// Feeds a number of the host's own to the stop rules, as known after the last update. A rule names
/// it by its metric; a built-in name such as "eval_loss" stands for that metric, so a host may
/// evaluate by itself. NaN is allowed and never counts as progress.
///
/// Errors: SFT_ERR_INVALID_ARGUMENT if metric is NULL, empty or not UTF-8; SFT_ERR_IO if what is due
/// at the end of the run cannot be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_observe(
    session: *mut sft_session,
    metric: *const c_char,
    value: f64,
) -> sft_status {
    with_session(session, |session| {
        // SAFETY: the header asks for a NUL-terminated string.
        let metric = unsafe { text(metric, "metric") }?;
        session.observe(metric, value)?;
        Ok(SFT_OK)
    })
}

/// Whether the run has ended; stays true once it has. Also true where there is nothing to step: for
/// NULL, a freed or a poisoned session, and after the device failed. May be called while another call is inside the session.
#[unsafe(no_mangle)]
pub extern "C" fn sft_should_stop(session: *const sft_session) -> bool {
    catch(true, || match SESSIONS.get(session) {
        Some(handle) => {
            handle.session.is_poisoned()
                || handle.failed.load(Ordering::Acquire)
                || handle.stop_reason() != SFT_STOP_NONE
        }
        None => true,
    })
}

/// Why the run ended: one of the SFT_STOP_ numbers, SFT_STOP_NONE while it goes on and for a handle
/// that is none. May be called while another call is inside the session.
#[unsafe(no_mangle)]
pub extern "C" fn sft_stop_reason(session: *const sft_session) -> i32 {
    catch(SFT_STOP_NONE, || match SESSIONS.get(session) {
        Some(handle) => handle.stop_reason(),
        None => SFT_STOP_NONE,
    })
}

impl SessionHandle {
    fn stop_reason(&self) -> i32 {
        match self.stop_reason.load(Ordering::Acquire) {
            SFT_STOP_NONE if self.canceller.is_cancelled() => SFT_STOP_CANCELLED,
            verdict => verdict,
        }
    }
}

/// Writes where the run stands to *out.
///
/// Errors: SFT_ERR_INVALID_ARGUMENT for out.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_snapshot_get(
    session: *mut sft_session,
    out: *mut sft_snapshot,
) -> sft_status {
    with_session(session, |session| {
        // SAFETY: the header asks for a struct of the size that it says.
        let out = unsafe { OutStruct::new(out) }?;
        let snapshot = sft_snapshot::new(&session.snapshot(), session.restored_best());
        // SAFETY: as above.
        unsafe { out.write(snapshot) }
        Ok(SFT_OK)
    })
}

/// Writes a checkpoint to the folder dir, whole or not at all, durable on return: all that a run needs
/// to go on by sft_resume. It is a Hugging Face model folder too, with the weights of the last update.
/// Once the run has ended and the best weights are back (restored_best of sft_snapshot), those are in
/// the checkpoint beside the last ones, and sft_export is what writes them as a model.
///
/// Errors: SFT_ERR_IO naming the file; what stood in dir stays as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_save(session: *mut sft_session, dir: *const c_char) -> sft_status {
    with_session(session, |session| {
        // SAFETY: the header asks for a NUL-terminated string.
        session.save(unsafe { folder(dir) }?)?;
        Ok(SFT_OK)
    })
}

/// Writes what the run has made to the folder dir, whole or not at all; what is one of the
/// SFT_EXPORT_ numbers.
///
/// Errors: SFT_ERR_IO naming the file; an earlier model in dir stays as it was. SFT_ERR_UNSUPPORTED
/// for an adapter, SFT_ERR_INVALID_ARGUMENT for a number that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sft_export(
    session: *mut sft_session,
    dir: *const c_char,
    what: i32,
) -> sft_status {
    with_session(session, |session| {
        let what = match what {
            SFT_EXPORT_FULL => Export::Full,
            SFT_EXPORT_ADAPTER | SFT_EXPORT_MERGED => {
                let message = "this run trains all weights, there is no adapter: export \
                               SFT_EXPORT_FULL";
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            _ => return Err(invalid(format!("what is {what}: no SFT_EXPORT_ number"))),
        };
        // SAFETY: the header asks for a NUL-terminated string.
        session.export(unsafe { folder(dir) }?, what)?;
        Ok(SFT_OK)
    })
}

/// # Safety
/// As [`text`].
unsafe fn folder<'a>(dir: *const c_char) -> Result<&'a str> {
    // SAFETY: as the caller's.
    match unsafe { text(dir, "dir") }? {
        "" => Err(invalid("dir is empty")),
        dir => Ok(dir),
    }
}

/// Frees a session with all its memory, once the checkpoint on the way is written. If another call is inside (one on another thread, or the
/// one whose callback calls this), that call ends as usual and the memory goes then. NULL or a freed
/// session does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn sft_session_free(session: *mut sft_session) {
    catch((), || drop(SESSIONS.remove(session)));
}

/// The text of the last call on this session that failed; empty if none has. Never NULL. Borrowed
/// until the next call on this session fails or it is freed.
#[unsafe(no_mangle)]
pub extern "C" fn sft_last_error(session: *const sft_session) -> *const c_char {
    catch(NOT_A_HANDLE.as_ptr(), || match SESSIONS.get(session) {
        Some(handle) => handle.session.last_error(),
        None => NOT_A_HANDLE.as_ptr(),
    })
}

/// A copy of what sft_last_error gives, which may be asked for while other threads call on this session.
/// Never NULL, unless there is no memory. Free it by sft_string_free.
#[unsafe(no_mangle)]
pub extern "C" fn sft_last_error_copy(session: *const sft_session) -> *mut c_char {
    give_error(|| {
        let handle = SESSIONS.get(session);
        handle.map(|handle| handle.session.copy_last_error())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capi::{sft_config_free, sft_config_new, sft_config_set_str};
    use std::ffi::{CStr, CString};

    #[test]
    fn a_panic_inside_a_session_poisons_it_and_free_stays_legal() {
        let output = tempfile::tempdir().unwrap();
        let model = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/models/llama-tiny"
        );
        let config = sft_config_new();
        for (key, value) in [
            (c"model_name_or_path", model),
            (c"output_dir", output.path().to_str().unwrap()),
            (c"max_steps", "5"),
            (c"max_length", "8"),
        ] {
            let value = CString::new(value).unwrap();
            // SAFETY: both are NUL-terminated.
            let status = unsafe { sft_config_set_str(config, key.as_ptr(), value.as_ptr()) };
            assert_eq!(status, SFT_OK);
        }
        let mut session = std::ptr::null_mut();
        // SAFETY: the place can be written to.
        assert_eq!(unsafe { sft_start(config, &mut session) }, SFT_OK);
        assert!(!sft_should_stop(session));

        let status = with_session(session, |_| panic!("injected"));
        assert_eq!(status, SFT_ERR_PANIC);
        let text = || {
            // SAFETY: the text is NUL-terminated and nothing else is called meanwhile.
            let text = unsafe { CStr::from_ptr(sft_last_error(session)) };
            text.to_str().unwrap().to_owned()
        };
        assert!(text().contains("injected"), "{}", text());
        // SAFETY: NULL is allowed for the report.
        assert_eq!(
            unsafe { sft_step(session, std::ptr::null_mut()) },
            SFT_ERR_POISONED
        );
        // SAFETY: the strings are NUL-terminated.
        unsafe {
            assert_eq!(
                sft_observe(session, c"mine".as_ptr(), 1.0),
                SFT_ERR_POISONED
            );
            assert_eq!(sft_save(session, c"x".as_ptr()), SFT_ERR_POISONED);
        }
        assert!(text().contains("injected"), "the first text stays");
        assert!(sft_should_stop(session), "nothing can be stepped");
        sft_session_free(session);
        // SAFETY: NULL is allowed for the report.
        let status = unsafe { sft_step(session, std::ptr::null_mut()) };
        assert_eq!(status, SFT_ERR_INVALID_ARGUMENT);
        sft_config_free(config);
    }
}
