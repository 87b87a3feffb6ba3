//! The training maths: a network's forward and backward over one micro-batch, the optimizer, and
//! decoding. Generic over the [`Backend`](crate::ops::Backend); knows nothing of files or rules.

mod block;
mod ceiling;
mod decode;
mod head;
mod loss_scale;
mod network;
mod optimizer;
mod state;

pub use loss_scale::LossScale;
pub use network::{LossSums, Network};
pub use optimizer::AdamWOptions;
pub use state::Moment;
