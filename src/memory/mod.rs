//! Memory is planned, not discovered: what a run needs is computed from the model and the workload
//! before a device is touched, allocated once, and addressed by [`Region`](crate::ops::Region).

mod layout;
mod plan;
mod requests;

pub use layout::{LayerRegions, NetworkLayout, Purpose, Workload};
pub use plan::{MemoryPlan, Planner, Segment, SegmentKind, TensorId};
