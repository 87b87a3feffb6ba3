//! From rows to batches: sources, chat templates, tokens and masks, packing, loading.

mod batch;

pub use batch::{Batch, IGNORE};
