//! Supervised fine-tuning of language models as a library: a Hugging Face model folder and a JSONL
//! file in, a fine-tuned model folder out, with the decision when to stop inside the engine.
//!
//! ```no_run
//! use sft::config::Config;
//! use sft::engine::{Hooks, Session};
//!
//! fn main() -> sft::Result<()> {
//!     let mut config = Config::default();
//!     config.merge_json(
//!         r#"{
//!             "model_name_or_path": "SmolLM2-135M",
//!             "dataset_name": "rows.jsonl",
//!             "val_size": 0.05,
//!             "eval_strategy": "steps",
//!             "eval_steps": 20,
//!             "stop": [{"rule": "target", "metric": "eval_loss", "at_most": 1.2}]
//!         }"#,
//!     )?;
//!     let mut session = Session::start(config, Hooks::default())?;
//!     while let Some(report) = session.step()? {
//!         println!("{} {:.4}", report.step, report.loss);
//!     }
//!     println!("{:?}", session.stop_reason());
//!     session.save("tuned")
//! }
//! ```
//!
//! A run is configured by [`config::Config`], whose keys are TRL's, and driven by
//! [`engine::Session`]. Its reports are plain data ([`report`]); its stop rules ([`stop`]) can also be
//! replayed over a log. C hosts use `include/sft.h`, which [`capi`] is the source of.
//!
//! The modules stand on floors and import only downwards:
//!
//! | floor | modules |
//! |---|---|
//! | ground | [`error`], [`dtype`], [`rng`], [`report`], [`suggest`] |
//! | pure policy | [`stop`], [`schedule`], then [`config`] |
//! | formats | [`io`], [`model`], [`data`] |
//! | arithmetic | [`ops`], `cuda`, [`memory`], [`train`] |
//! | a run | [`engine`] |
//! | doors | [`capi`], the `sft` command |

#![warn(missing_docs)]

pub mod capi;
pub mod config;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod data;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod io;
pub mod memory;
pub mod model;
mod number;
pub mod ops;
pub mod report;
pub mod rng;
pub mod schedule;
pub mod stop;
pub mod suggest;
pub mod train;

pub use error::{Error, ErrorKind, Result};
