//! Every operation against a float64 reference that is written to be read.
//!
//! Forward: the reference's value, within a bound on float32's rounding. Backward: central
//! differences of the reference's forward. Half precision: the bounds of `precision.rs`. Then the
//! laws: parameter gradients are added to, activation gradients are overwritten, and the number of
//! threads does not show in the bits. The tests are generic over the backend; `on_every_backend!`
//! lists those that they run on.

mod adamw;
mod attention;
mod cast;
mod cross_entropy;
mod device;
mod embedding;
#[cfg(feature = "emulate")]
mod emulator;
#[cfg(feature = "emulate")]
mod gpu;
mod grad_norm;
mod harness;
mod linear;
mod precision;
mod qk_norm;
mod rms_norm;
mod rope;
mod rows;
mod swiglu;
