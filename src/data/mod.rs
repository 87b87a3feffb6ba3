//! From rows to batches: sources, chat templates, tokens and masks, packing, loading.

mod batch;
mod cache;
mod dataset;
mod loader;
mod order;
pub mod pack;
mod python;
mod template;
mod tokenizer;

pub use batch::{Batch, IGNORE};
pub use dataset::{Count, DataReport, Dataset, RowOptions, ValidationSize};
pub use loader::{Loader, LoaderOptions, Position, Update};
pub use order::{Order, randperm};
pub use pack::Packing;
pub use template::{ChatTemplate, Conversation};
pub use tokenizer::{Encoding, TextStream, Tokenizer};
