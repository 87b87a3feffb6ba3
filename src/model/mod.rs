//! The model as data: what it is ([`ModelSpec`]), its tensors ([`ParamTable`]), and the families that
//! read both from a Hugging Face folder.

pub mod families;
mod flops;
mod folder;
mod generation;
mod init;
mod params;
mod spec;
mod train_tokenizer;

pub use folder::{
    ExtraTensors, Overrides, SaveOptions, is_model_file, load_weights, save_model_folder,
    write_model,
};
pub use generation::GenerationDefaults;
pub use init::{CHATML_TEMPLATE, InitOptions, init_model};
pub use params::{ALIGNMENT, LayerSlots, Param, ParamTable, Slot};
pub use spec::{ModelSpec, Rope};
