//! Files: tensors in the safetensors format, and writing that never leaves half a file behind.

pub mod atomic;
mod block_file;
mod checksum;
mod file_writer;
mod host_memory;
pub mod safetensors;

pub use atomic::{AtomicFolder, write_file};
pub use checksum::{FileSummary, Segment, verify};
pub use file_writer::FileWriter;
pub use host_memory::available_memory;
pub(crate) use safetensors::read_in_pieces;
pub use safetensors::{
    DEFAULT_SHARD_BYTES, TensorMeta, WeightFiles, is_weight_file, write_safetensors,
};
