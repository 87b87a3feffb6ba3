//! From rows to batches: sources, chat templates, tokens and masks, packing, loading.
//!
//! ```text
//! files ─ source ─▶ Row ─ template, generation ─▶ text, spans ─ tokenizer, mask ─▶ ids, labels
//!   ids, labels ─ cache (mapped) ─▶ Dataset ─ pack ─▶ rows ─ order, loader ─▶ Batch
//! ```

mod batch;
mod cache;
mod data_report;
mod dataset;
mod generation;
mod jinja;
mod loader;
mod mask;
mod order;
pub mod pack;
mod prepare;
mod python;
mod source;
mod template;
mod tokenizer;

pub use batch::{Batch, IGNORE};
pub use data_report::{Count, DataReport};
pub use dataset::{Dataset, PreviewToken, ValidationSize};
pub use loader::{Loader, LoaderOptions, Position, Update};
pub use order::{Order, randperm};
pub use pack::{Packing, RowOptions};
pub use prepare::{DataOptions, Progress};
pub use source::{Format, Split};
pub use template::{ChatTemplate, Conversation};
pub use tokenizer::{Encoding, TextStream, Tokenizer};
