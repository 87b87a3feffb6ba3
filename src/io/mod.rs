//! Files: tensors in the safetensors format, and writing that never leaves half a file behind.

pub mod atomic;
pub mod safetensors;

pub use atomic::{AtomicFolder, FileWriter, write_file};
pub use safetensors::{
    DEFAULT_SHARD_BYTES, TensorMeta, WeightFiles, is_weight_file, write_safetensors,
};
