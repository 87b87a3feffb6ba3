//! The one error of the library: a kind that hosts can match on, a message that names the thing,
//! and a chain of places it passed through on its way up.

use std::error::Error as StdError;
use std::fmt;

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a stable number for hosts (see [`ErrorKind::code`]).
///
/// Codes are grouped by hundreds and never renumbered: 100s the caller's arguments, 200s the
/// configuration, 300s the model folder, 400s the data, 500s the file system, 600s the device and
/// the run, 900s the library itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum ErrorKind {
    /// An argument of a call is NULL, out of range or not UTF-8.
    InvalidArgument = 100,
    /// Another call is inside the same handle right now.
    Busy = 101,
    /// An earlier failure left the session unusable; only freeing it is legal.
    Poisoned = 102,
    /// A configuration value is wrong or contradicts another.
    Config = 200,
    /// A configuration key is not known.
    UnknownKey = 201,
    /// A key that the peer has and this library does not support.
    Unsupported = 202,
    /// `config.json` or the folder's layout is wrong.
    Model = 300,
    /// The architecture or one of its options is not supported.
    UnsupportedModel = 301,
    /// A tensor is missing, has another shape or dtype, or holds NaN.
    Tensor = 302,
    /// The tokenizer cannot be read or lacks what the data needs.
    Tokenizer = 303,
    /// The chat template does not compile, or raised while rendering.
    Template = 304,
    /// A data row or file is wrong.
    Data = 400,
    /// A batch that the host fed is malformed.
    Batch = 401,
    /// Reading or writing a file failed.
    Io = 500,
    /// A folder that must not be overwritten already exists.
    Exists = 501,
    /// A checkpoint is damaged, incomplete or of a format that is not known.
    Checkpoint = 502,
    /// The device cannot be used.
    Device = 600,
    /// The memory plan does not fit.
    OutOfMemory = 601,
    /// The host cancelled the call.
    Cancelled = 602,
    /// A panic was caught at the door: a defect of the library.
    Panic = 900,
    /// An invariant of the library was broken: a defect of the library.
    Internal = 901,
}

impl ErrorKind {
    /// The stable number of this kind, as `sft_status` carries it.
    pub fn code(self) -> i32 {
        self as i32
    }
}

/// An error with its kind, message, the places it passed and the cause below.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    /// Innermost first.
    context: Vec<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` with a message that names the thing and the way out.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// An input or output failure of the file or folder at `path`.
    pub fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, path.as_ref().display().to_string()).with_source(source)
    }

    /// Attaches the cause from a lower library.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds the place that the error passed through, such as a file or a step.
    pub fn context(mut self, place: impl Into<String>) -> Self {
        self.0.context.push(place.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    /// `outermost place: … : message: cause`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in self.0.context.iter().rev() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| s.as_ref() as _)
    }
}

/// Adds a place to the error of a `Result`.
pub trait ResultExt<T> {
    /// Adds `place()` when this is an error.
    fn context(self, place: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, place: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.context(place()))
    }
}
