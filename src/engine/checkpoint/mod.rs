//! Checkpoints: all that a run needs to go on as if it had never stopped, in one folder.
//!
//! ```text
//! checkpoint-20/
//!   model.safetensors, config.json, tokenizer.json, …   a model folder that transformers loads, float32
//!   optimizer.safetensors                               exp_avg.NAME and exp_avg_sq.NAME, float32
//!   best_model.safetensors                              the best weights so far, where they are others
//!   checkpoint.json                                     the manifest: the run's state, and every file above
//! ```
//!
//! A checkpoint appears whole or not at all, and says so itself: the manifest holds its own checksum and
//! those of every other file, tensor by tensor, taken of what was handed to the file system. Opening
//! one reads all of it again, so damage that came later is noticed before a run builds on it.
//!
//! Writing takes longer than an update. The [`Writer`] copies what changes with the next update and
//! writes the copy on a thread of its own.

mod manifest;
mod read;
#[cfg(test)]
mod tests;
mod write;
mod writer;

pub(in crate::engine) use manifest::RunState;
pub(in crate::engine) use read::{Checkpoint, find, newest_whole, open};
pub(in crate::engine) use write::{BestWeights, Contents, ModelFiles};
pub(in crate::engine) use writer::{Durable, Writer};

/// What the files of the weights, of the moments and of the best weights begin with.
const MODEL: &str = "model";
const OPTIMIZER: &str = "optimizer";
const BEST: &str = "best_model";

/// Name of the manifest.
const MANIFEST: &str = "checkpoint.json";

/// True for the files of tensors under the name `stem`: one file, or shards and their index.
fn is_of_stem(name: &str, stem: &str) -> bool {
    let Some(rest) = name.strip_prefix(stem) else {
        return false;
    };
    let shard = rest.starts_with('-') && rest.ends_with(".safetensors");
    shard || rest == ".safetensors" || rest == ".safetensors.index.json"
}
