//! The C ABI: what `include/sft.h` declares. Each function checks its arguments, enters one guard,
//! calls the engine and translates what comes back; nothing else happens here.
//!
//! The header is generated from these files, so the doc comments here are written for C.
//!
//! - `handle`: handles are checked names, never dereferenced, so that a freed or foreign one is an
//!   error and not a crash.
//! - `guard`: one call at a time in a handle, panics caught, the error text kept.
//! - `arguments`: strings, out-structs and batches across the border.
//! - `status`, `version`, `string`, `canceller`, `config`, `plan`, `report`, `session`, `evaluation`: the functions
//!   and structs by subject, in the order of the header.

// The names are C's; the contract of every function stands in its doc comment, for C callers.
#![allow(non_camel_case_types, clippy::missing_safety_doc)]

mod arguments;
mod callback;
mod canceller;
mod config;
mod evaluation;
mod guard;
mod handle;
mod plan;
mod report;
mod session;
mod status;
mod string;
mod version;

pub use callback::*;
pub use canceller::*;
pub use config::*;
pub use evaluation::*;
pub use plan::*;
pub use report::*;
pub use session::*;
pub use status::*;
pub use string::*;
pub use version::*;
