//! The model as data: what it is ([`ModelSpec`]), its tensors ([`ParamTable`]), and the families that
//! read both from a Hugging Face folder.

pub mod families;
mod generation;
mod params;
mod spec;

pub use generation::GenerationDefaults;
pub use params::{ALIGNMENT, LayerSlots, Param, ParamTable, Slot};
pub use spec::{ModelSpec, Rope};
