//! The life of a run through `Session`: stopping, best weights, host-fed batches, cancelling, files.

#[cfg(feature = "cuda")]
#[path = "session/device.rs"]
mod device;
#[path = "session/evaluation.rs"]
mod evaluation;
#[path = "session/precision.rs"]
mod precision;
#[path = "session/resume.rs"]
mod resume;

use serde_json::{Value, json};
use sft::ErrorKind;
use sft::config::Config;
use sft::data::{Batch, ChatTemplate, Conversation, IGNORE, Tokenizer};
use sft::engine::{
    Canceller, Export, Generator, Hooks, LogLevel, RunRecord, SamplingOptions, Session,
    evaluate_model, plan, training_rows,
};
use sft::model::GenerationDefaults;
use sft::report::{EvalReport, EvalSetReport, StepReport, StopReason};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A run on llama-tiny and GSM8K rows as plain texts, changed by `keys`.
fn config(folder: &Path, keys: Value) -> Config {
    let rows = |split: &str| {
        let source = fixtures().join(format!("data/gsm8k_{split}_small.jsonl"));
        let path = folder.join(format!("{split}.jsonl"));
        let rows: Vec<String> = std::fs::read_to_string(source)
            .unwrap()
            .lines()
            .take(16)
            .map(|line| {
                let row: Value = serde_json::from_str(line).unwrap();
                json!({"text": row["question"]}).to_string()
            })
            .collect();
        std::fs::write(&path, rows.join("\n")).unwrap();
        path.display().to_string()
    };
    let mut all = json!({
        "model_name_or_path": fixtures().join("models/llama-tiny").display().to_string(),
        "dataset_name": rows("train"),
        "eval_dataset_name": rows("test"),
        "output_dir": folder.join("out").display().to_string(),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "max_steps": 6,
        "device": "cpu",
        "threads": 1,
    });
    for (key, value) in keys.as_object().unwrap() {
        all[key] = value.clone();
    }
    let mut config = Config::default();
    config.merge_json(&all.to_string()).unwrap();
    config
}

/// A run whose host feeds the batches.
fn host_fed(folder: &Path, keys: Value) -> Config {
    let mut keys = keys;
    for key in ["dataset_name", "eval_dataset_name"] {
        keys[key] = Value::Null;
    }
    keys["max_length"] = json!(32);
    config(folder, keys)
}

fn start(config: Config) -> Session {
    Session::start(config, Hooks::default()).unwrap()
}

fn run(session: &mut Session) -> Vec<StepReport> {
    std::iter::from_fn(|| session.step().unwrap()).collect()
}

fn log(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("out/train_log.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The rows of the log that have `key`.
fn log_rows(folder: &Path, key: &str) -> Vec<Value> {
    let rows = log(folder).into_iter();
    rows.filter(|row| row.get(key).is_some()).collect()
}

fn batch(seed: i32) -> Batch {
    let tokens: Vec<i32> = (0..20).map(|i| 300 + (i * 7 + seed) % 50).collect();
    let mut batch = Batch::default();
    batch.push(&tokens[..13], &tokens[..13]);
    batch.push(&tokens[13..], &tokens[13..]);
    batch
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The keys of each number format.
fn formats() -> [Value; 3] {
    [json!({}), json!({"bf16": true}), json!({"fp16": true})]
}

fn with(keys: Value, more: &Value) -> Value {
    let mut keys = keys;
    for (key, value) in more.as_object().unwrap() {
        keys[key] = value.clone();
    }
    keys
}

#[test]
fn the_loss_falls_and_the_gradient_is_not_zero() {
    let mut losses = Vec::new();
    for format in formats() {
        let dir = folder();
        let keys = with(json!({"max_steps": 20}), &format);
        let mut session = start(config(dir.path(), keys));
        let reports = run(&mut session);
        assert_eq!(reports.len(), 20);
        assert!(
            reports[19].loss < reports[0].loss - 0.5,
            "{format}: {}",
            reports[19].loss
        );
        assert!(reports.iter().all(|r| r.grad_norm > 0.0 && r.tokens > 0));
        assert_eq!(session.stop_reason(), Some(StopReason::MaxSteps));
        assert!(session.should_stop());
        let scale = format.get("fp16").map(|_| 65536.0);
        assert!(reports.iter().all(|r| r.loss_scale == scale));
        losses.push(reports.iter().map(|r| r.loss).collect::<Vec<_>>());
    }
    // Half precision trains as float32 does, and is not float32.
    for (half, apart) in [(1, 5e-3), (2, 1e-3)] {
        for (a, b) in losses[0].iter().zip(&losses[half]) {
            assert!(a != b && (a / b - 1.0).abs() < apart, "{a} {b}");
        }
    }
}

#[test]
fn a_run_is_repeatable_to_the_bit_on_any_number_of_threads() {
    for format in formats() {
        let losses = |threads: usize, recompute: bool| {
            let dir = folder();
            let keys = json!({"threads": threads, "gradient_checkpointing": recompute,
                "train_sampling_strategy": "random", "weight_decay": 0.01});
            let reports = run(&mut start(config(dir.path(), with(keys, &format))));
            reports
                .iter()
                .map(|r| (r.loss, r.grad_norm))
                .collect::<Vec<_>>()
        };
        let reference = losses(1, false);
        for (threads, recompute) in [(1, false), (2, false), (3, true)] {
            assert_eq!(reference, losses(threads, recompute), "{format}");
        }
    }
}

#[test]
fn the_target_rule_stops_at_the_very_step() {
    let dir = folder();
    let free = run(&mut start(config(dir.path(), json!({"max_steps": 30}))));
    let target = free[12].loss + 1e-9;
    let first = free.iter().position(|r| r.loss <= target).unwrap();

    let dir = folder();
    let rules = json!([{"rule": "target", "metric": "train_loss", "at_most": target,
        "patience": 1}]);
    let mut session = start(config(dir.path(), json!({"max_steps": 30, "stop": rules})));
    let reports = run(&mut session);
    let last = reports.last().unwrap();
    assert_eq!(last.step, first as u64 + 1);
    assert_eq!(last.stop_reason, Some(StopReason::TargetReached));
    assert_eq!(session.stop_reason(), Some(StopReason::TargetReached));
    assert_eq!(
        log(dir.path()).last().unwrap()["stop_reason"],
        "target_reached"
    );
}

#[test]
fn an_update_whose_gradient_is_not_finite_is_not_applied() {
    let dir = folder();
    let mut session = start(host_fed(
        dir.path(),
        json!({"learning_rate": 1e30, "max_grad_norm": 0.0}),
    ));
    let first = session.step_batch(&[batch(1)]).unwrap().unwrap();
    assert!(first.grad_norm.is_finite());
    let before = dir.path().join("before");
    session.save(&before).unwrap();
    // The weights are now about 1e30 in size: the next update overflows.
    let second = session.step_batch(&[batch(2)]).unwrap().unwrap();
    assert!(!second.grad_norm.is_finite() || !second.loss.is_finite());
    assert_eq!(second.stop_reason, Some(StopReason::NonFinite));
    let after = dir.path().join("after");
    session.save(&after).unwrap();
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(
        weights(&before) == weights(&after),
        "a broken update changed the weights"
    );
    let rows = log(dir.path());
    assert!(
        rows[1]["loss"].is_string() || rows[1]["grad_norm"].is_string(),
        "{}",
        rows[1]
    );
}

#[test]
fn the_best_weights_are_those_of_the_best_step_between_saves() {
    for format in formats() {
        let dir = folder();
        let keys = json!({"max_steps": 40, "learning_rate": 2e-2, "eval_strategy": "steps",
        "eval_steps": 1, "load_best_model_at_end": true, "early_stopping_patience": 3,
        "lr_scheduler_type": "constant"});
        let mut session = start(config(dir.path(), with(keys, &format)));
        let reports = run(&mut session);
        assert_eq!(session.stop_reason(), Some(StopReason::Plateau));
        let evals: Vec<f64> = reports
            .iter()
            .map(|r| r.eval.as_ref().unwrap().loss)
            .collect();
        let best = evals.iter().copied().fold(f64::INFINITY, f64::min);
        let snapshot = session.snapshot();
        assert_eq!(snapshot.best_value, Some(best));
        assert!(snapshot.best_step.unwrap() < snapshot.step);
        assert!(session.restored_best());

        // The saved model is the best one, evaluated from disk by another door.
        let saved = dir.path().join("best");
        session.export(&saved, Export::Full).unwrap();
        let mut again = session.config().clone();
        again.model_name_or_path = Some(saved);
        assert_eq!(evaluate_model(&again, Hooks::default()).unwrap().loss, best);

        // The operands of the matrix products are those of the best weights as well.
        assert_eq!(session.evaluate().unwrap().loss, best);
    }
}

#[test]
fn evaluation_does_not_depend_on_the_batch_size_and_disturbs_nothing() {
    let losses = |rows: usize, strategy: &str| {
        let dir = folder();
        let keys = json!({"eval_strategy": strategy, "eval_steps": 2,
            "per_device_eval_batch_size": rows});
        run(&mut start(config(dir.path(), keys)))
    };
    let (one, all) = (losses(1, "steps"), losses(16, "steps"));
    for (a, b) in one.iter().zip(&all) {
        assert_eq!(a.loss, b.loss);
        if let (Some(a), Some(b)) = (&a.eval, &b.eval) {
            assert_eq!(
                (a.tokens, a.supervised_tokens),
                (b.tokens, b.supervised_tokens)
            );
            assert!(
                (a.loss / b.loss - 1.0).abs() < 1e-6,
                "{} {}",
                a.loss,
                b.loss
            );
        }
    }
    assert_eq!(one.iter().filter(|r| r.eval.is_some()).count(), 3);
    let without = losses(1, "no");
    assert!(one.iter().zip(&without).all(|(a, b)| a.loss == b.loss));
}

#[test]
fn an_early_stop_leaves_a_checkpoint_of_the_last_step() {
    let dir = folder();
    let rules = json!([{"rule": "target", "metric": "train_loss", "at_most": 100.0,
        "patience": 1}]);
    let keys = json!({"save_strategy": "steps", "save_steps": 5, "stop": rules});
    let mut session = start(config(dir.path(), keys));
    assert_eq!(run(&mut session).len(), 1);
    let checkpoint = dir.path().join("out/checkpoint-1");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(checkpoint.join(name).is_file(), "{name}");
    }
}

#[test]
fn old_checkpoints_go_but_never_the_best() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2,
        "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 5e-2,
        "lr_scheduler_type": "constant", "max_steps": 8});
    let mut session = start(config(dir.path(), keys));
    run(&mut session);
    let best = session.snapshot().best_step.unwrap();
    let left: Vec<u64> = (1..=8)
        .filter(|step| dir.path().join(format!("out/checkpoint-{step}")).exists())
        .collect();
    assert!(
        best < 7,
        "the best step {best} should be an old one for this test to say anything"
    );
    assert_eq!(left, [best, 8]);
}

#[test]
fn a_folder_that_holds_a_model_is_not_overwritten() {
    let dir = folder();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("model.safetensors"), b"precious").unwrap();
    let error = Session::start(config(dir.path(), json!({})), Hooks::default())
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(
        error.to_string().contains("overwrite_output_dir"),
        "{error}"
    );
    assert_eq!(
        std::fs::read(out.join("model.safetensors")).unwrap(),
        b"precious"
    );
    start(config(dir.path(), json!({"overwrite_output_dir": true})));
}

#[test]
fn a_run_records_what_it_is_made_of() {
    let folder = folder();
    let config = config(folder.path(), json!({}));
    let out = config.output_dir.clone();
    let session = start(config.clone());
    let record = RunRecord::read(&out).unwrap();
    assert_eq!(record.configuration().unwrap(), config);
    assert_eq!(record.total_steps, Some(6));
    assert_eq!(record.precision, "float32");
    assert_eq!(record.device, session.device());
    assert_eq!(record.model.model_type, "llama");
    let names: Vec<&str> = record.data.keys().map(String::as_str).collect();
    assert_eq!(names, ["eval", "train"]);
    assert_eq!(Some(&record.data["train"]), session.data_reports().0);
    let plan = session.memory_plan();
    assert_eq!(record.memory.total_bytes, plan.total_bytes);
    for (&kind, &bytes) in &record.memory.bytes_of {
        assert_eq!(bytes, plan.bytes_of(kind));
    }
    drop(session);

    // The record alone is enough for the folder to be taken.
    std::fs::remove_file(out.join("train_log.jsonl")).unwrap();
    let error = Session::start(config, Hooks::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(error.to_string().contains("run.json"), "{error}");
}

#[test]
fn a_start_that_cannot_open_its_log_leaves_nothing_behind() {
    let folder = folder();
    let config = config(folder.path(), json!({"overwrite_output_dir": true}));
    let out = config.output_dir.clone();
    // Where the log should be stands a folder.
    std::fs::create_dir_all(out.join("train_log.jsonl")).unwrap();
    let error = Session::start(config, Hooks::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io);
    let left: Vec<_> = std::fs::read_dir(&out).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn tensorboard_gets_the_rows_of_the_log() {
    let folder = folder();
    let keys = json!({"report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 3});
    let config = config(folder.path(), keys);
    let runs = config.output_dir.join("runs");
    run(&mut start(config));
    let files: Vec<_> = std::fs::read_dir(&runs).unwrap().flatten().collect();
    assert_eq!(files.len(), 1);
    let bytes = std::fs::read(files[0].path()).unwrap();
    let count = |tag: &str| {
        bytes
            .windows(tag.len())
            .filter(|w| *w == tag.as_bytes())
            .count()
    };
    assert_eq!((count("train/loss"), count("train/learning_rate")), (6, 6));
    assert_eq!(count("eval/loss"), 2);
    assert_eq!(count("stop"), 0);
}

#[test]
fn a_start_that_cannot_write_its_events_leaves_nothing_behind() {
    let folder = folder();
    // Where the folder of the events should be stands a file.
    let runs = folder.path().join("runs");
    std::fs::write(&runs, "").unwrap();
    let keys = json!({"report_to": "tensorboard", "logging_dir": runs.display().to_string()});
    let config = config(folder.path(), keys);
    let out = config.output_dir.clone();
    let error = Session::start(config, Hooks::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(!out.exists());
}

#[test]
fn a_host_feeds_batches_and_its_own_metric() {
    let dir = folder();
    let rules = json!([{"rule": "plateau", "metric": "my_score", "greater_is_better": true,
        "patience": 2}]);
    let mut session = start(host_fed(
        dir.path(),
        json!({"max_steps": 50, "stop": rules}),
    ));
    let mut losses = Vec::new();
    for (i, score) in [0.1, 0.5, 0.4, 0.45, 0.9].into_iter().enumerate() {
        let Some(report) = session.step_batch(&[batch(i as i32), batch(1)]).unwrap() else {
            break;
        };
        losses.push(report.loss);
        assert_eq!(report.supervised_tokens, 36);
        session.observe("my_score", score).unwrap();
    }
    assert_eq!(losses.len(), 4);
    assert_eq!(session.stop_reason(), Some(StopReason::Plateau));
    assert_eq!(session.snapshot().best_step, Some(2));
    assert!(losses[3] < losses[0]);
}

#[test]
fn a_malformed_host_batch_changes_nothing() {
    let dir = folder();
    let run = |bad: Option<Batch>| {
        let dir = folder();
        let mut session = start(host_fed(dir.path(), json!({})));
        session.step_batch(&[batch(0)]).unwrap();
        if let Some(bad) = bad {
            let error = session.step_batch(&[batch(1), bad]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Batch);
            assert!(error.to_string().starts_with("micro-batch 1"), "{error}");
        }
        session.step_batch(&[batch(2)]).unwrap().unwrap()
    };
    let expected = run(None);
    let mut outside = batch(0);
    outside.tokens[3] = 2048;
    let mut label = batch(0);
    label.labels[3] = -7;
    let mut starts = batch(0);
    starts.seq_starts = vec![0, 13, 13];
    let mut long = Batch::default();
    long.push(&[5; 33], &[5; 33]);
    for bad in [outside, label, starts, long] {
        let found = run(Some(bad));
        assert_eq!((found.step, found.loss), (expected.step, expected.loss));
    }
    let mut session = start(host_fed(dir.path(), json!({})));
    assert_eq!(
        session.step_batch(&[]).unwrap_err().kind(),
        ErrorKind::Batch
    );
    assert_eq!(
        session.step().unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn a_wholly_masked_update_neither_trains_nor_stops() {
    let dir = folder();
    let rules = json!([{"rule": "target", "metric": "train_loss", "at_most": 0.5}]);
    let mut session = start(host_fed(dir.path(), json!({"stop": rules})));
    let mut masked = batch(0);
    masked.labels.fill(IGNORE);
    let report = session.step_batch(&[masked]).unwrap().unwrap();
    assert_eq!((report.supervised_tokens, report.stop_reason), (0, None));
    assert!(!session.should_stop());
}

#[test]
fn a_canceller_stops_before_the_next_update() {
    let dir = folder();
    let canceller = Canceller::new();
    let hooks = Hooks {
        canceller: canceller.clone(),
        ..Hooks::default()
    };
    let mut session = Session::start(config(dir.path(), json!({})), hooks).unwrap();
    session.step().unwrap().unwrap();
    canceller.cancel();
    assert!(session.should_stop());
    assert!(session.step().unwrap().is_none());
    assert_eq!(session.stop_reason(), Some(StopReason::Cancelled));
    assert_eq!(log(dir.path()).last().unwrap()["stop_reason"], "cancelled");
}

#[test]
fn a_host_that_only_looks_at_should_stop_still_gets_the_end_of_its_run() {
    let dir = folder();
    let canceller = Canceller::new();
    let hooks = Hooks {
        canceller: canceller.clone(),
        ..Hooks::default()
    };
    let keys = json!({"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": true});
    let mut session = Session::start(config(dir.path(), keys), hooks).unwrap();
    while !session.should_stop() {
        if session.step().unwrap().unwrap().step == 2 {
            canceller.cancel();
        }
    }
    session.save(dir.path().join("saved")).unwrap();
    assert!(session.restored_best());
    assert_eq!(log(dir.path()).last().unwrap()["stop_reason"], "cancelled");
}

/// `/dev/full` takes a file's place and refuses every byte.
#[cfg(target_os = "linux")]
#[test]
fn a_log_that_cannot_be_written_costs_neither_the_weights_nor_the_best() {
    let dir = folder();
    std::fs::create_dir(dir.path().join("out")).unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("out/train_log.jsonl")).unwrap();
    let keys = json!({"overwrite_output_dir": true, "eval_strategy": "steps", "eval_steps": 1,
        "load_best_model_at_end": true, "max_steps": 3});
    let mut session = start(config(dir.path(), keys));
    let mut failed = 0;
    while !session.should_stop() {
        assert_eq!(session.step().unwrap_err().kind(), ErrorKind::Io);
        failed += 1;
    }
    assert_eq!((failed, session.snapshot().step), (3, 3));
    let saved = dir.path().join("saved");
    assert_eq!(session.save(&saved).unwrap_err().kind(), ErrorKind::Io);
    assert!(saved.join("model.safetensors").is_file());
    assert!(session.restored_best());
    session.save(&saved).unwrap();
}

#[test]
fn a_canceller_works_while_loading() {
    let dir = folder();
    let canceller = Canceller::new();
    canceller.cancel();
    let hooks = Hooks {
        canceller,
        ..Hooks::default()
    };
    let error = Session::start(config(dir.path(), json!({})), hooks)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(
        !dir.path().join("out").exists(),
        "a start that failed leaves nothing behind"
    );
}

/// Hooks that write down the warnings.
fn warnings() -> (Hooks, Arc<Mutex<Vec<String>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let record = heard.clone();
    let log = move |level, text: &str| {
        if level == LogLevel::Warning {
            record.lock().unwrap().push(text.to_owned());
        }
    };
    let hooks = Hooks {
        log: Some(Box::new(log)),
        ..Hooks::default()
    };
    (hooks, heard)
}

fn write(folder: &Path, name: &str, rows: &[Value]) -> String {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let path = folder.join(name);
    std::fs::write(&path, lines.join("\n")).unwrap();
    path.display().to_string()
}

#[test]
fn a_cancelled_evaluation_does_not_cost_its_update() {
    let dir = folder();
    let canceller = Canceller::new();
    let trigger = canceller.clone();
    // Said after the last look at the canceller before the first update.
    let on_message = move |_, text: &str| {
        if text.starts_with("evaluation before the first update") {
            trigger.cancel();
        }
    };
    let hooks = Hooks {
        canceller,
        log: Some(Box::new(on_message)),
        ..Hooks::default()
    };
    let keys = json!({"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": true,
        "save_strategy": "steps"});
    let mut session = Session::start(config(dir.path(), keys), hooks).unwrap();
    let report = session.step().unwrap().unwrap();
    assert_eq!((report.step, report.eval), (1, None));
    assert!(session.should_stop());
    assert!(session.step().unwrap().is_none());
    assert_eq!(session.stop_reason(), Some(StopReason::Cancelled));
    let rows = log_rows(dir.path(), "loss");
    assert_eq!((rows.len(), &rows[0]["step"]), (1, &json!(1)));
    let last = log(dir.path()).pop().unwrap();
    assert_eq!(
        (&last["step"], &last["stop_reason"]),
        (&json!(1), &json!("cancelled"))
    );
    assert!(dir.path().join("out/checkpoint-1").exists());
}

#[test]
fn a_failed_evaluation_does_not_cost_its_update() {
    let dir = folder();
    let masked = json!({"input_ids": [5, 6, 7], "labels": [-100, -100, -100]});
    let keys = json!({"eval_strategy": "steps", "eval_steps": 1, "eval_packing": true,
        "eval_dataset_name": write(dir.path(), "masked.jsonl", &[masked]),
        "stop": [{"rule": "target", "metric": "train_loss", "at_most": 100.0, "patience": 1}]});
    let mut session = start(config(dir.path(), keys));
    let error = session.step().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("no supervised token"), "{error}");
    // The rule has seen the update, and the log has it.
    assert_eq!(session.stop_reason(), Some(StopReason::TargetReached));
    assert_eq!(log_rows(dir.path(), "loss").len(), 1);
    assert!(session.step().unwrap().is_none());
}

#[test]
fn shuffled_rows_train_in_another_order_that_the_seed_decides() {
    let first_losses = |keys: Value| {
        let dir = folder();
        let mut all = json!({"max_steps": 2});
        for (key, value) in keys.as_object().unwrap() {
            all[key] = value.clone();
        }
        let reports = run(&mut start(config(dir.path(), all)));
        reports.iter().map(|r| r.loss).collect::<Vec<_>>()
    };
    let shuffled = first_losses(json!({"shuffle_dataset": true}));
    assert_eq!(shuffled, first_losses(json!({"shuffle_dataset": true})));
    assert_ne!(shuffled, first_losses(json!({})));
    assert_ne!(
        shuffled,
        first_losses(json!({"shuffle_dataset": true, "data_seed": 1}))
    );
}

#[test]
fn training_rows_are_those_that_a_run_trains_on() {
    let dir = folder();
    let (hooks, heard) = warnings();
    let config = config(
        dir.path(),
        json!({"val_size": 4, "max_length": 40,
        "eval_dataset_name": null}),
    );
    let (rows, report) = training_rows(&config, hooks).unwrap();
    assert_eq!((rows.len(), report.rows_read), (12, 12));
    assert!(report.truncated.rows > 0);
    assert!(heard.lock().unwrap()[0].contains("truncated"));
    let session = start(config.clone());
    assert_eq!(session.data_reports().0, Some(&report));
    let mut without = config;
    without.dataset_name = None;
    let error = training_rows(&without, Hooks::default()).unwrap_err();
    assert!(error.to_string().contains("dataset_name"), "{error}");
}

#[test]
fn a_run_may_be_evaluated_on_its_training_rows_when_told_so() {
    let dir = folder();
    let mut config = config(dir.path(), json!({"eval_strategy": "steps"}));
    config.eval_dataset_name = config.dataset_name.clone().map(Into::into);
    let session = start(config.clone());
    assert_eq!(session.data_reports().1.unwrap().rows, 16);
    config.eval_dataset_name = None;
    config.output_dir = dir.path().join("out2");
    let error = Session::start(config, Hooks::default()).err().unwrap();
    assert!(error.to_string().contains("eval_dataset_name"), "{error}");
}

#[test]
fn rows_that_look_wrong_are_warned_about_in_one_line() {
    let dir = folder();
    let chat = json!({"messages": [{"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}]});
    let inside = json!({"prompt": "How many? 4", "completion": "2 apples"});
    let sound = json!({"prompt": "How many?", "completion": " 42 apples"});
    for (rows, keys, parts) in [
        (
            vec![chat.clone(), chat.clone()],
            json!({"eos_token": "<|endoftext|>"}),
            vec!["2 of 2 rows", "<|endoftext|>", "eos_token"],
        ),
        (
            vec![inside, sound.clone()],
            json!({}),
            vec!["1 of 2 rows", "prompt"],
        ),
        (vec![sound], json!({}), vec![]),
        (vec![chat], json!({}), vec![]),
    ] {
        let (hooks, heard) = warnings();
        let mut config = config(dir.path(), keys);
        config.dataset_name = Some(write(dir.path(), "rows.jsonl", &rows).into());
        training_rows(&config, hooks).unwrap();
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), usize::from(!parts.is_empty()), "{heard:?}");
        for part in parts
            .into_iter()
            .chain(["rows.jsonl"])
            .take(heard.len() * 9)
        {
            assert!(heard[0].contains(part), "{heard:?}");
        }
    }
}

#[test]
fn the_progress_callback_sees_every_update_and_can_stop() {
    let dir = folder();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let progress = move |report: &StepReport| {
        record.lock().unwrap().push(report.step);
        report.step == 3
    };
    let hooks = Hooks {
        progress: Some(Box::new(progress)),
        ..Hooks::default()
    };
    let mut session = Session::start(config(dir.path(), json!({})), hooks).unwrap();
    let reports = run(&mut session);
    assert_eq!(*seen.lock().unwrap(), [1, 2, 3]);
    assert_eq!(reports[2].stop_reason, Some(StopReason::Callback));
}

#[test]
fn evaluation_before_the_first_update_is_logged_and_no_rule_counts_it() {
    let dir = folder();
    let keys = json!({"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": true});
    let mut session = start(config(dir.path(), keys));
    run(&mut session);
    let rows = log(dir.path());
    assert_eq!(rows[0]["step"], 0);
    assert!(rows[0]["eval_loss"].is_f64());
    assert!(session.snapshot().best_step.unwrap() > 0);
}

#[test]
fn the_log_has_one_row_for_each_update_under_the_peers_names() {
    let dir = folder();
    let keys = json!({"eval_strategy": "steps", "eval_steps": 3});
    let mut session = start(config(dir.path(), keys));
    let reports = run(&mut session);
    let rows = log(dir.path());
    let updates: Vec<&Value> = rows.iter().filter(|r| r.get("loss").is_some()).collect();
    assert_eq!(updates.len(), reports.len());
    let keys = [
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "num_tokens",
        "mean_token_accuracy",
        "tokens_per_second",
        "model_flops_per_second",
    ];
    for (row, report) in updates.iter().zip(&reports) {
        assert!(keys.iter().all(|key| row[*key].is_number()), "{row}");
        assert_eq!(row["loss"].as_f64(), Some(report.loss));
    }
    assert_eq!(
        rows.iter().filter(|r| r.get("eval_loss").is_some()).count(),
        2
    );
    assert_eq!(rows.last().unwrap()["stop_reason"], "max_steps");
}

#[test]
fn a_run_holds_its_speed_against_matrix_products_and_trains_the_same() {
    let losses_and_rows = |keys: Value| {
        let dir = folder();
        let config = config(dir.path(), with(keys, &json!({"max_steps": 2})));
        let out = config.output_dir.clone();
        let reports = run(&mut start(config));
        let losses: Vec<f64> = reports.iter().map(|r| r.loss).collect();
        assert!(reports.iter().all(|r| r.model_flops > 0));
        let record = RunRecord::read(out).unwrap();
        let rows = log_rows(dir.path(), "loss");
        (losses, rows, record.ceiling_flops_per_second)
    };
    for precision in formats() {
        let (losses, rows, none) = losses_and_rows(precision.clone());
        assert!(none.is_none() && rows[0].get("ceiling_ratio").is_none());
        let measured = with(precision, &json!({"measure_ceiling": true}));
        let (with_it, rows, ceiling) = losses_and_rows(measured);
        assert_eq!(losses, with_it);
        let ceiling = ceiling.unwrap();
        assert!(ceiling.is_finite() && ceiling > 0.0);
        for row in rows {
            let speed = row["model_flops_per_second"].as_f64().unwrap();
            let ratio = row["ceiling_ratio"].as_f64().unwrap();
            assert!((ratio - speed / ceiling).abs() < 1e-4, "{row} {ceiling}");
        }
    }
}

#[test]
fn the_budgets_end_a_run() {
    let cases = [
        (
            json!({"max_steps": -1, "num_train_epochs": 1.5}),
            StopReason::MaxEpochs,
            6,
        ),
        (
            json!({"max_steps": 50, "max_tokens": 1}),
            StopReason::MaxTokens,
            1,
        ),
        (
            json!({"max_steps": 50, "max_seconds": 1e-9}),
            StopReason::MaxTime,
            1,
        ),
        (json!({"max_steps": 2}), StopReason::MaxSteps, 2),
    ];
    for (keys, reason, steps) in cases {
        let dir = folder();
        let mut session = start(config(dir.path(), keys));
        assert_eq!(run(&mut session).len(), steps);
        assert_eq!(session.stop_reason(), Some(reason));
    }
}

#[test]
fn a_saved_model_is_read_back_to_the_bit() {
    let dir = folder();
    let mut session = start(config(dir.path(), json!({"max_steps": 3})));
    run(&mut session);
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    session.save(&first).unwrap();
    let again = json!({"max_steps": 1, "learning_rate": 0.0,
        "model_name_or_path": first.display().to_string(),
        "output_dir": dir.path().join("out2").display().to_string()});
    let mut again = start(config(dir.path(), again));
    again.save(&second).unwrap();
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&first) == weights(&second));
}

#[test]
fn what_is_saved_has_the_end_token_and_the_template_of_the_configuration() {
    let dir = folder();
    let template = dir.path().join("template.jinja");
    std::fs::write(&template, "{{ messages[0].content }}{{ eos_token }}").unwrap();
    // Whether the run reads rows or the host feeds it.
    for start_with in [config, host_fed] {
        let keys = json!({"eos_token": "<|im_start|>", "max_steps": 1, "save_strategy": "steps",
            "chat_template_path": template.display().to_string(), "overwrite_output_dir": true});
        let mut session = start(start_with(dir.path(), keys));
        session.step_batch(&[batch(0)]).unwrap();
        let exported = dir.path().join("exported");
        session.save(&exported).unwrap();
        for saved in [exported, dir.path().join("out/checkpoint-1")] {
            let tokenizer = Tokenizer::open(&saved).unwrap();
            assert_eq!(tokenizer.eos_token_id(), Some(1));
            let template = ChatTemplate::of(&tokenizer).unwrap().unwrap();
            let conversation = Conversation {
                messages: &[json!({"role": "user", "content": "x"})],
                ..Conversation::default()
            };
            assert_eq!(template.render(&conversation).unwrap(), "x<|im_start|>");
            let ends = GenerationDefaults::from_dir(&saved).unwrap().eos_token_ids;
            assert_eq!(ends, [1, 2]);
        }
    }
}

#[test]
fn a_schedule_needs_max_steps_when_the_host_feeds() {
    let dir = folder();
    let keys = json!({"max_steps": -1});
    let error = Session::start(host_fed(dir.path(), keys), Hooks::default())
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("max_steps"), "{error}");
    let keys = json!({"max_steps": -1, "lr_scheduler_type": "constant"});
    let mut session = start(host_fed(dir.path(), keys));
    session.step_batch(&[batch(0)]).unwrap().unwrap();
    assert!(!session.should_stop());
}

#[test]
fn broken_models_are_refused_by_name() {
    let source = fixtures().join("models/llama-tiny");
    let copy = |dir: &Path| {
        let model = dir.join("model");
        std::fs::create_dir(&model).unwrap();
        for entry in std::fs::read_dir(&source).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
        }
        model
    };
    type Spoil = fn(&Path);
    let cases: [(Spoil, ErrorKind, &str); 6] = [
        (
            |m| {
                let path = m.join("model.safetensors");
                let mut bytes = std::fs::read(&path).unwrap();
                let last = bytes.len() - 4;
                bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
                std::fs::write(&path, bytes).unwrap();
            },
            ErrorKind::Tensor,
            "NaN",
        ),
        (
            |m| {
                let path = m.join("config.json");
                let mut config: Value =
                    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
                config["vocab_size"] = json!(3000);
                std::fs::write(path, config.to_string()).unwrap();
            },
            ErrorKind::Tensor,
            "model.embed_tokens.weight",
        ),
        (
            |m| std::fs::remove_file(m.join("model.safetensors")).unwrap(),
            ErrorKind::Tensor,
            "model.safetensors",
        ),
        (
            |m| {
                let path = m.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            },
            ErrorKind::Tensor,
            "model.safetensors",
        ),
        (
            |m| std::fs::remove_file(m.join("tokenizer.json")).unwrap(),
            ErrorKind::Tokenizer,
            "tokenizer.json",
        ),
        (
            |m| {
                let path = m.join("config.json");
                let text = std::fs::read_to_string(&path).unwrap();
                std::fs::write(path, text.replace("\"llama\"", "\"gpt2\"")).unwrap();
            },
            ErrorKind::UnsupportedModel,
            "gpt2",
        ),
    ];
    for (spoil, kind, named) in cases {
        let dir = folder();
        let model = copy(dir.path());
        spoil(&model);
        let keys = json!({"model_name_or_path": model.display().to_string()});
        let error = Session::start(config(dir.path(), keys), Hooks::default())
            .err()
            .unwrap();
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[test]
fn the_plan_is_what_the_session_allocates() {
    let dir = folder();
    let config = config(dir.path(), json!({}));
    let planned = plan(&config).unwrap();
    assert_eq!(&planned, start(config).memory_plan());
}

#[test]
fn generation_is_greedy_or_sampled_by_seed_and_ends_at_the_limit() {
    let dir = folder();
    let config = config(dir.path(), json!({}));
    let mut generator = Generator::open(&config, 64, Hooks::default()).unwrap();
    let mut text = |options: SamplingOptions| {
        let mut tokens = Vec::new();
        generator
            .generate(&[300, 301, 302], &options, |token| {
                tokens.push(token);
                true
            })
            .unwrap();
        tokens
    };
    let greedy = SamplingOptions {
        max_new_tokens: 9,
        ..SamplingOptions::default()
    };
    assert_eq!(text(greedy), text(greedy));
    assert!(text(greedy).len() <= 9);
    let sampled = SamplingOptions {
        temperature: 1.5,
        ..greedy
    };
    assert_eq!(text(sampled), text(sampled));
    assert_ne!(text(sampled), text(SamplingOptions { seed: 1, ..sampled }));
    let wrong = SamplingOptions {
        temperature: f64::NAN,
        ..greedy
    };
    let error = generator.generate(&[300], &wrong, |_| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(generator.generate(&[], &greedy, |_| true).is_err());
}
