//! Whole updates and evaluations through `Session`, in tokens per second.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sft::config::Config;
use sft::data::Batch;
use sft::engine::{Hooks, Session};
use sft::model::{InitOptions, init_model};
use std::hint::black_box;
use std::time::Duration;

/// Four sequences of GSM8K's typical length.
const LENGTHS: [usize; 4] = [140, 179, 152, 201];

fn batch() -> Batch {
    let mut batch = Batch::default();
    for (i, &length) in LENGTHS.iter().enumerate() {
        let tokens: Vec<i32> = (0..length)
            .map(|t| ((t * 37 + i * 11) % 250) as i32)
            .collect();
        batch.push(&tokens, &tokens);
    }
    batch
}

/// A block of SmolLM2-135M's shape costs the same in a model of 4 layers as in one of 30.
fn session(folder: &std::path::Path, recompute: bool) -> Session {
    let mut options = InitOptions::preset("smollm2-135m").unwrap();
    options.num_hidden_layers = 4;
    options.overwrite = true;
    init_model(folder.join("model"), &options).unwrap();
    let mut config = Config::default();
    let keys = serde_json::json!({
        "model_name_or_path": folder.join("model").display().to_string(),
        "output_dir": folder.join("out").display().to_string(),
        "overwrite_output_dir": true,
        "save_strategy": "no",
        "max_length": 256,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-5,
        "gradient_checkpointing": recompute,
    });
    config.merge_json(&keys.to_string()).unwrap();
    Session::start(config, Hooks::default()).unwrap()
}

fn step(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let batch = batch();
    let mut group = c.benchmark_group("smollm2-135m shape, 4 layers");
    group.throughput(Throughput::Elements(batch.tokens.len() as u64));
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(8));
    for (name, recompute) in [("step", false), ("step with recompute", true)] {
        let mut session = session(folder.path(), recompute);
        let first = session
            .step_batch(std::slice::from_ref(&batch))
            .unwrap()
            .unwrap();
        group.bench_function(name, |b| {
            b.iter(|| black_box(session.step_batch(std::slice::from_ref(&batch)).unwrap()));
        });
        let last = session
            .step_batch(std::slice::from_ref(&batch))
            .unwrap()
            .unwrap();
        assert!(
            last.loss < first.loss && last.grad_norm > 0.0,
            "a bench that does not train"
        );
    }
    let mut session = session(folder.path(), false);
    group.bench_function("evaluate", |b| {
        b.iter(|| {
            black_box(
                session
                    .evaluate_batch(std::slice::from_ref(&batch))
                    .unwrap(),
            )
        });
    });
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
