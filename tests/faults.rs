//! What a run leaves behind when the system fails it: the process is killed, or a call on a file
//! fails, at chosen and at random moments; then the run is resumed and must end as if nothing had
//! been.
//!
//! A library in C is preloaded into `sft` (`faults/shim.c`); the product has no part in it.
//! `scripts/faults` runs the same tests in long form.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

#[path = "faults/end.rs"]
mod end;
#[path = "faults/errors.rs"]
mod errors;
#[path = "faults/flips.rs"]
mod flips;
#[path = "faults/kills.rs"]
mod kills;
#[path = "faults/order.rs"]
mod order;
#[path = "faults/random.rs"]
mod random;
#[path = "faults/run.rs"]
mod run;
#[path = "faults/shim.rs"]
mod shim;
