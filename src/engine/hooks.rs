//! What a host hands to a run: a canceller, a progress callback, a log sink.

use crate::error::{Error, ErrorKind, Result};
use crate::report::StepReport;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks a run to stop, from any thread or signal handler. Clones are the same canceller.
///
/// A running update is finished first; loading a model and preparing data end with an error of kind
/// [`ErrorKind::Cancelled`].
#[derive(Clone, Debug, Default)]
pub struct Canceller(Flag);

#[derive(Clone, Debug)]
enum Flag {
    Shared(Arc<AtomicBool>),
    Static(&'static AtomicBool),
}

impl Default for Flag {
    fn default() -> Self {
        Flag::Shared(Arc::default())
    }
}

impl std::ops::Deref for Flag {
    type Target = AtomicBool;

    fn deref(&self) -> &AtomicBool {
        match self {
            Flag::Shared(flag) => flag,
            Flag::Static(flag) => flag,
        }
    }
}

impl Canceller {
    /// A canceller that has not been triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// A canceller whose flag the host keeps, where a signal handler can set it.
    pub fn of_static(flag: &'static AtomicBool) -> Self {
        Self(Flag::Static(flag))
    }

    /// Asks to stop. Only stores a flag: async-signal-safe.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Canceller::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error of kind [`ErrorKind::Cancelled`] once cancelled, naming what was going on.
    pub(crate) fn check(&self, doing: &str) -> Result<()> {
        match self.is_cancelled() {
            true => Err(Error::new(
                ErrorKind::Cancelled,
                format!("cancelled while {doing}"),
            )),
            false => Ok(()),
        }
    }
}

/// How important a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum LogLevel {
    /// What a user should act on.
    Warning = 1,
    /// What a user may want to know.
    Info = 2,
}

/// Called after each update; returning true asks to stop.
pub type ProgressFn = Box<dyn FnMut(&StepReport) -> bool + Send>;
/// A checkpoint that is whole on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointReport {
    /// The update that it is of.
    pub step: u64,
    /// Where it stands.
    pub folder: PathBuf,
}

/// Called once a checkpoint is durable.
pub type CheckpointFn = Box<dyn FnMut(&CheckpointReport) + Send>;
/// Receives log lines.
pub type LogFn = Box<dyn FnMut(LogLevel, &str) + Send>;

/// A host's side of a run. The default hears nothing and never stops.
#[derive(Default)]
pub struct Hooks {
    /// Checked while loading and before each update.
    pub canceller: Canceller,
    /// Called on the thread that called [`Session::step`](super::Session::step).
    pub progress: Option<ProgressFn>,
    /// Called once a checkpoint that was due is whole on the disk, on the thread that called into the
    /// engine: checkpoints are written in the background, so that is during a later call than the one
    /// whose update it is of.
    pub checkpoint: Option<CheckpointFn>,
    /// Called on the thread that called into the engine. The library never prints.
    pub log: Option<LogFn>,
}

impl Hooks {
    pub(super) fn info(&mut self, message: impl AsRef<str>) {
        self.log(LogLevel::Info, message.as_ref());
    }

    pub(super) fn warning(&mut self, message: impl AsRef<str>) {
        self.log(LogLevel::Warning, message.as_ref());
    }

    fn log(&mut self, level: LogLevel, message: &str) {
        if let Some(log) = &mut self.log {
            log(level, message);
        }
    }
}
