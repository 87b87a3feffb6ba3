//! Whole updates through a session, with random weights: tokens a second, and memory beside the plan.

use super::scale::Scale;
use serde_json::{Value, json};
use sft::Result;
use sft::config::Config;
use sft::data::Batch;
use sft::engine::{Hooks, Session};
use sft::model::{InitOptions, init_model};
use sft::rng::Stream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Updates that are not timed.
const WARM_UP: usize = 2;

/// Trains each preset for a few updates; one row each.
pub fn measure_all(scale: &Scale, device: &str, folder: &Path) -> Result<Vec<Value>> {
    let runs = scale.updates.iter();
    runs.map(|&(preset, rows, length, updates)| {
        eprintln!("training {preset}");
        measure(preset, [rows, length, updates], device, folder)
    })
    .collect()
}

fn measure(
    preset: &str,
    [rows, length, updates]: [usize; 3],
    device: &str,
    folder: &Path,
) -> Result<Value> {
    let (model, out) = (folder.join(preset), folder.join(format!("{preset}-out")));
    let mut options = InitOptions::preset(preset)?;
    options.overwrite = true;
    init_model(&model, &options)?;
    let mut config = Config::default();
    let keys = json!({
        "model_name_or_path": model.display().to_string(),
        "output_dir": out.display().to_string(),
        "overwrite_output_dir": true,
        "save_strategy": "no",
        "max_length": length,
        "per_device_train_batch_size": rows,
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-4,
        "device": device,
        "bf16": device != "cpu",
    });
    config.merge_json(&keys.to_string())?;
    let before = device_memory(device);
    let mut session = Session::start(config, Hooks::default())?;
    let batch = batch(rows, length, options.vocab_size);
    let mut losses = Vec::new();
    let mut smallest_norm = f64::INFINITY;
    let mut start = Instant::now();
    for update in 0..WARM_UP + updates {
        if update == WARM_UP {
            start = Instant::now();
        }
        if let Some(report) = session.step_batch(std::slice::from_ref(&batch))? {
            losses.push(report.loss);
            smallest_norm = smallest_norm.min(report.grad_norm);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = device_memory(device);
    let falls = losses.windows(2).all(|pair| pair[1].is_finite()) && losses.last() < losses.first();
    Ok(json!({
        "model": preset,
        "rows": rows,
        "length": length,
        "updates": updates,
        "seconds": seconds,
        "tokens_per_second": (updates * rows * length) as f64 / seconds,
        "losses": losses,
        "smallest_grad_norm": smallest_norm,
        "passed": falls && smallest_norm > 0.0 && smallest_norm.is_finite(),
        "planned_bytes": session.memory_plan().total_bytes,
        "device_bytes": before.zip(after).map(|(before, after)| after as i64 - before as i64),
    }))
}

/// The same random tokens each update, so that the loss can only fall.
fn batch(rows: usize, length: usize, vocab: usize) -> Batch {
    let stream = Stream::new(11, 0);
    let mut batch = Batch::default();
    for row in 0..rows {
        let token = |i| (stream.uniform((row * length + i) as u64) * vocab as f64) as i32;
        let tokens: Vec<i32> = (0..length).map(token).collect();
        batch.push(&tokens, &tokens);
    }
    batch
}

/// Bytes in use on the device, by all processes, if its tool is here to say so.
fn device_memory(device: &str) -> Option<usize> {
    let ordinal = device.strip_prefix("cuda:")?;
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=memory.used", "--format=csv,noheader,nounits"])
        .args(["-i", ordinal])
        .output()
        .ok()?;
    let mebibytes: usize = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    Some(mebibytes << 20)
}
