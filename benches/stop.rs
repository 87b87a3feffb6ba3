//! The cost of the stop rules: one observation under eight rules, and a replay of a long log.

use criterion::{Criterion, criterion_group, criterion_main};
use sft::stop::replay::{Row, replay};
use sft::stop::{Budget, EvalMetrics, Observation, StopConfig, StopMachine, TrainMetrics};
use std::hint::black_box;

/// Eight rules, none of which fires on what the benches feed.
const RULES: &str = "
- {rule: non_finite}
- {rule: target, metric: train_loss, at_most: 0, smoothing: {ema: 0.9}}
- {rule: target, metric: eval_loss, at_most: 0, smoothing: {mean: 10}}
- {rule: plateau, patience: 1000000000}
- {rule: plateau, patience: 1000000000, reference: hf}
- {rule: divergence, factor: 1000, smoothing: {median: 9}}
- {rule: overfit, patience: 1000000000}
- {rule: budget, max_steps: 1000000000000}
";

fn loss(step: u64) -> f64 {
    2.0 + (step as f64 * 0.7).sin()
}

fn bench(c: &mut Criterion) {
    let config = StopConfig::from_text(RULES).expect("the rules are valid");
    let mut group = c.benchmark_group("stop");

    let mut machine = StopMachine::new(&config, Budget::default()).expect("the rules are valid");
    let mut step = 0;
    group.bench_function("observe_8_rules", |b| {
        b.iter(|| {
            step += 1;
            let train = TrainMetrics {
                loss: loss(step),
                grad_norm: Some(1.0),
                token_accuracy: Some(0.5),
                supervised_tokens: 100,
            };
            let eval = EvalMetrics {
                loss: loss(step),
                token_accuracy: None,
            };
            let (train, eval) = (Some(train), Some(eval));
            machine.observe(black_box(&Observation {
                step,
                train,
                eval,
                ..Default::default()
            }))
        });
    });
    assert!(machine.verdict().is_none());

    let rows: Vec<Row> = (1..=100_000)
        .map(|step| {
            let metrics = vec![
                ("train_loss".into(), loss(step)),
                ("eval_loss".into(), loss(step)),
            ];
            Row {
                step,
                metrics,
                ..Row::default()
            }
        })
        .collect();
    group.sample_size(10);
    group.bench_function("replay_100k_rows", |b| {
        b.iter(|| replay(black_box(&rows), &config))
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
