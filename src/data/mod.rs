//! From rows to batches: sources, chat templates, tokens and masks, packing, loading.

mod batch;
mod cache;
mod dataset;
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
pub use dataset::{Count, DataReport, Dataset, PreviewToken, RowOptions, ValidationSize};
pub use loader::{Loader, LoaderOptions, Position, Update};
pub use order::{Order, randperm};
pub use pack::Packing;
pub use prepare::{DataOptions, Progress};
pub use source::{Format, Split};
pub use template::{ChatTemplate, Conversation};
pub use tokenizer::{Encoding, TextStream, Tokenizer};
