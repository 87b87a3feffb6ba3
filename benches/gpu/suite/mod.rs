//! Everything that can be said of the CUDA backend on one device, as one JSON document: each
//! operation beside the CPU's, speed, whole updates. `benches/gpu/main.rs` runs it at the shapes
//! of real models; a test runs it at small ones on the emulated device, so that it keeps working.

pub mod check;
mod operations;
mod scale;
mod speed;
mod tensors;
mod updates;

pub use scale::{Model, Scale};

use serde_json::{Value, json};
use sft::Result;
use sft::cuda::Cuda;
use std::path::Path;

/// Runs it all. `open` opens the device; `device` is its name in a run's configuration.
pub fn run(
    scale: &Scale,
    open: impl Fn() -> Result<Cuda>,
    device: &str,
    folder: &Path,
) -> Result<Value> {
    let checks = operations::check_all(scale, &open)?;
    let speed = speed::measure_all(scale, &open)?;
    let updates = updates::measure_all(scale, device, folder)?;
    let all_passed = [&checks, &updates]
        .iter()
        .all(|rows| rows.iter().all(|row| row["passed"] == true));
    Ok(json!({
        "device": sft::ops::Backend::describe(&open()?),
        "passed": all_passed,
        "checks": checks,
        "speed": speed,
        "updates": updates,
    }))
}
