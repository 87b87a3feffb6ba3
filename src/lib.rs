//! Supervised fine-tuning of language models as a library.

pub mod capi;
pub mod config;
pub mod data;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod io;
pub mod memory;
pub mod model;
pub mod ops;
pub mod report;
pub mod rng;
pub mod schedule;
pub mod stop;
pub mod suggest;
pub mod train;

pub use error::{Error, ErrorKind, Result};
