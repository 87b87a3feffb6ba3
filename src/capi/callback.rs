//! Functions of the host that the library calls.

use super::guard::c_text;
use super::report::{sft_checkpoint_report, sft_step_report};
use crate::engine::{CheckpointReport, LogLevel};
use crate::report::StepReport;
use std::ffi::{c_char, c_void};

/// Called after each update, on the thread that called sft_step or sft_step_batch, with a report
/// that is valid during the call. A return value other than 0 asks the run to stop.
pub type sft_progress_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, report: *const sft_step_report) -> i32>;

/// Called once a checkpoint that was due is whole on the disk, with a report that is valid during the
/// call. Checkpoints are written in the background: it is called on the thread that calls into the
/// session, during a later call than the sft_step whose update the checkpoint is of, or at the end of
/// the run.
pub type sft_checkpoint_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, report: *const sft_checkpoint_report)>;

/// Receives what the library has to say, on the thread that called into it: level is one of the
/// SFT_LOG_ numbers, message is one line without a newline, valid during the call.
pub type sft_log_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: i32, message: *const c_char)>;

/// Frees a callback's user_data; may be NULL. Called once, when the last configuration or session
/// that holds the callback lets go of it, on the thread whose call does so.
pub type sft_drop_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

/// What a user should act on.
pub const SFT_LOG_WARNING: i32 = 1;
/// What a user may want to know.
pub const SFT_LOG_INFO: i32 = 2;

/// A function of the host with the data that it wants back.
pub(super) struct Callback<F> {
    function: F,
    user_data: *mut c_void,
    drop: sft_drop_fn,
}

// SAFETY: the header asks the host for callbacks and data that may be used from whichever thread
// calls into the library.
unsafe impl<F: Send> Send for Callback<F> {}
// SAFETY: as above; sessions that share a callback may call it at the same time, which the header says.
unsafe impl<F: Sync> Sync for Callback<F> {}

impl<F> Callback<F> {
    pub fn new(function: F, user_data: *mut c_void, drop: sft_drop_fn) -> Self {
        Self {
            function,
            user_data,
            drop,
        }
    }
}

impl<F> Drop for Callback<F> {
    fn drop(&mut self) {
        if let Some(drop) = self.drop {
            // SAFETY: the host gave this function for this data, and it is called once.
            unsafe { drop(self.user_data) }
        }
    }
}

impl Callback<sft_progress_fn> {
    /// Whether the host asks to stop.
    pub fn progress(&self, report: &StepReport) -> bool {
        let report = sft_step_report::from(report);
        self.function.is_some_and(|function| {
            // SAFETY: the host gave this function for this data; the report outlives the call.
            unsafe { function(self.user_data, &report) != 0 }
        })
    }
}

impl Callback<sft_checkpoint_fn> {
    pub fn checkpoint(&self, report: &CheckpointReport) {
        let folder = c_text(&report.folder.to_string_lossy());
        let report = sft_checkpoint_report::new(report.step, &folder);
        if let Some(function) = self.function {
            // SAFETY: the host gave this function for this data; the report and its text outlive the
            // call.
            unsafe { function(self.user_data, &report) }
        }
    }
}

impl Callback<sft_log_fn> {
    pub fn log(&self, level: LogLevel, message: &str) {
        let message = c_text(message);
        if let Some(function) = self.function {
            // SAFETY: the host gave this function for this data; the message outlives the call.
            unsafe { function(self.user_data, level as i32, message.as_ptr()) }
        }
    }
}
