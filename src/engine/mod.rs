//! The life of a run. [`Session::step`] is the one path that advances a run: the command line, the C
//! ABI, every binding and every test go through it.

mod any_network;
mod checkpoint;
mod device;
mod evaluate;
mod gemm;
mod generate;
mod hooks;
mod journal;
mod prepare;
mod run_files;
mod run_record;
mod session;
mod tensorboard;

pub use evaluate::evaluate_model;
pub use gemm::GemmChoice;
pub use generate::{Generator, SamplingOptions};
pub use hooks::{Canceller, CheckpointReport, Hooks, LogLevel};
pub use journal::log_row;
pub use prepare::{RunPlan, open_tokenizer, plan, plan_run, plan_with, training_rows};
pub use run_record::{MemoryRecord, ModelRecord, Resumption, RunRecord};
pub use session::{Export, Session};
