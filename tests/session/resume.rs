//! Checkpoints and going on from them: the interrupted run against the undisturbed one, bit for bit.

use crate::*;
use sft::config::ResumeFrom;
use sft::engine::CheckpointReport;
use sft::io::WeightFiles;
use std::collections::BTreeMap;

/// Everything that a run left behind and that an interruption must not change.
#[derive(Debug, PartialEq)]
struct Outcome {
    weights: BTreeMap<String, Vec<u32>>,
    log: Vec<Value>,
    stop: Option<(StopReason, u64)>,
    best: (Option<u64>, Option<u64>),
    tokens: u64,
    epoch: f64,
    restored_best: bool,
}

fn weights(folder: &Path) -> BTreeMap<String, Vec<u32>> {
    let files = WeightFiles::open(folder).unwrap();
    let names: Vec<String> = files.names().map(str::to_owned).collect();
    let bits = |name: &String| {
        let shape = files.shape(name).unwrap().to_vec();
        let mut values = vec![0.0; shape.iter().product()];
        files.read_f32(name, &shape, &mut values).unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    names
        .iter()
        .map(|name| (name.clone(), bits(name)))
        .collect()
}

/// Rows of the log without what a clock decides.
fn timeless(folder: &Path) -> Vec<Value> {
    let mut rows = log(folder);
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        for key in [
            "elapsed_seconds",
            "tokens_per_second",
            "model_flops_per_second",
            "eval_runtime",
        ] {
            row.remove(key);
        }
    }
    rows
}

fn outcome(session: &mut Session, folder: &Path) -> Outcome {
    let model = folder.join("model");
    session.export(&model, Export::Full).unwrap();
    let snapshot = session.snapshot();
    Outcome {
        weights: weights(&model),
        log: timeless(folder),
        stop: session.stop_reason().map(|reason| (reason, snapshot.step)),
        best: (snapshot.best_step, snapshot.best_value.map(f64::to_bits)),
        tokens: snapshot.total_tokens,
        epoch: snapshot.epoch,
        restored_best: session.restored_best(),
    }
}

/// Feeds a session that has rows, or one that the host feeds, until it ends or `steps` are done.
fn advance(session: &mut Session, until: u64) {
    let host = session.config().dataset_name.is_none();
    while session.snapshot().step < until {
        let next = session.snapshot().step as i32 + 1;
        let report = match host {
            true => session.step_batch(&[batch(next), batch(2 * next)]).unwrap(),
            false => session.step().unwrap(),
        };
        if report.is_none() {
            return;
        }
    }
}

type Make = fn(&Path, Value) -> Config;

/// The run of `keys` against one that is cut off after each update, as a crash would, and goes on.
fn survives_every_cut(make: Make, keys: Value) -> Outcome {
    let whole = folder();
    let mut session = start(make(whole.path(), keys.clone()));
    advance(&mut session, u64::MAX);
    let steps = session.snapshot().step;
    let expected = outcome(&mut session, whole.path());
    assert!(steps > 2, "too short to be cut: {keys}");
    for cut in 1..=steps {
        let dir = folder();
        let saving = with(
            keys.clone(),
            &json!({"save_strategy": "steps", "save_steps": 1}),
        );
        let saving = with(saving, &json!({"resume_from_checkpoint": "auto"}));
        let config = make(dir.path(), saving);
        let mut session = start(config.clone());
        advance(&mut session, cut);
        drop(session);
        let mut session = start(config);
        assert_eq!(session.snapshot().resumed_step, Some(cut), "{keys}");
        advance(&mut session, u64::MAX);
        assert_eq!(session.step_or_none(), None);
        let found = outcome(&mut session, dir.path());
        assert_eq!(found.log, expected.log, "cut after update {cut} of {keys}");
        assert!(found == expected, "cut after update {cut} of {keys}");
    }
    expected
}

/// For a run that has ended, by whichever door it is fed.
trait StepOrNone {
    fn step_or_none(&mut self) -> Option<StepReport>;
}

impl StepOrNone for Session {
    fn step_or_none(&mut self) -> Option<StepReport> {
        match self.config().dataset_name {
            None => self.step_batch(&[batch(0)]).unwrap(),
            Some(_) => self.step().unwrap(),
        }
    }
}

fn resumed(config: &Config, from: impl AsRef<Path>) -> Result<Session, sft::Error> {
    Session::resume(config.clone(), from, Hooks::default())
}

fn refused(config: &Config, from: impl AsRef<Path>) -> sft::Error {
    resumed(config, from).err().expect("a refusal")
}

fn checkpoints(folder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder.join("out")).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> = names
        .filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    steps
}

#[test]
fn a_run_that_is_cut_anywhere_gives_the_same_bits() {
    // 16 rows: an epoch is 4 updates, so the cuts are within epochs and at their ends.
    for keys in [
        json!({"max_steps": 6}),
        json!({"max_steps": -1, "num_train_epochs": 1.5, "train_sampling_strategy": "random",
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3,
            "weight_decay": 0.01, "warmup_steps": 2, "lr_scheduler_type": "cosine"}),
        json!({"max_steps": 5, "packing": true, "max_length": 96, "per_device_train_batch_size": 2,
            "train_sampling_strategy": "random", "shuffle_dataset": true}),
        json!({"max_steps": 5, "train_sampling_strategy": "group_by_length", "bf16": true,
            "val_size": 4, "eval_dataset_name": null, "eval_strategy": "epoch"}),
    ] {
        survives_every_cut(config, keys);
    }
}

#[test]
fn rules_remember_over_a_cut() {
    // Patience half used, with the best weights of an update before the cut put back at the end.
    let plateau = json!({"max_steps": 40, "learning_rate": 2e-2, "eval_strategy": "steps",
        "eval_steps": 1, "load_best_model_at_end": true, "early_stopping_patience": 3,
        "lr_scheduler_type": "constant"});
    let outcome = survives_every_cut(config, plateau);
    assert_eq!(outcome.stop.unwrap().0, StopReason::Plateau);
    assert!(outcome.restored_best);
    // Smoothing windows half full.
    let free = run(&mut start(config(folder().path(), json!({"max_steps": 9}))));
    let mean = (free[4].loss + free[5].loss + free[6].loss) / 3.0;
    let target = json!({"max_steps": 9, "stop": [
        {"rule": "target", "metric": "train_loss", "at_most": mean + 1e-6, "patience": 1,
            "smoothing": {"mean": 3}, "min_steps": 5},
        {"rule": "divergence", "factor": 5}]});
    let outcome = survives_every_cut(config, target);
    assert_eq!(outcome.stop.unwrap().0, StopReason::TargetReached);
    // A budget that is not a number of updates.
    let tokens = json!({"max_steps": 20, "max_tokens": free[4].total_tokens});
    let outcome = survives_every_cut(config, tokens);
    assert_eq!(outcome.stop, Some((StopReason::MaxTokens, 5)));
}

#[test]
fn a_run_that_the_host_feeds_goes_on_where_it_was() {
    survives_every_cut(host_fed, json!({"max_steps": 5}));
    survives_every_cut(host_fed, json!({"max_steps": 4, "fp16": true}));
}

#[test]
fn the_loss_scale_goes_on_within_its_interval() {
    // Surprising rows overflow at the first scale; what halved it must not be forgotten.
    let dir = folder();
    let keys = json!({"fp16": true, "max_steps": 4, "save_strategy": "steps", "save_steps": 1});
    let config = host_fed(dir.path(), keys);
    let mut session = start(config.clone());
    let surprising = (300..400)
        .map(|token| {
            let mut batch = Batch::default();
            batch.push(&[300, token], &[300, token]);
            batch
        })
        .find(|b| {
            session
                .evaluate_batch(std::slice::from_ref(b))
                .unwrap()
                .loss
                > 8.5
        })
        .unwrap();
    let first = session
        .step_batch(std::slice::from_ref(&surprising))
        .unwrap();
    assert_eq!(first.unwrap().skipped_updates, 1);
    drop(session);
    let mut session = resumed(&config, dir.path().join("out/checkpoint-1")).unwrap();
    let second = session.step_batch(&[surprising]).unwrap().unwrap();
    assert_eq!(
        (second.step, second.loss_scale, second.skipped_updates),
        (2, Some(32768.0), 1)
    );
    assert!(second.grad_norm.is_finite());
}

#[test]
fn the_log_goes_on_without_gaps_or_doubles_whatever_a_crash_left_in_it() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps",
        "eval_steps": 2, "eval_on_start": true, "resume_from_checkpoint": "auto"});
    let config = config(dir.path(), keys);
    let mut session = start(config.clone());
    advance(&mut session, 5);
    drop(session);
    use std::io::Write;
    let path = dir.path().join("out/train_log.jsonl");
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(b"{\"step\":6,\"lo").unwrap();
    let mut session = start(config);
    assert_eq!(session.snapshot().resumed_step, Some(4));
    advance(&mut session, u64::MAX);
    let steps = |key: &str| {
        let rows = log_rows(dir.path(), key);
        rows.iter()
            .map(|r| r["step"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(steps("loss"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(steps("eval_loss"), [0, 2, 4, 6]);
    assert_eq!(steps("stop_reason"), [6]);
    let record = sft::engine::RunRecord::read(dir.path().join("out")).unwrap();
    assert_eq!(record.resumed.len(), 1);
    assert_eq!(record.resumed[0].step, 4);
}

#[test]
fn the_seconds_of_earlier_legs_count() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 1, "max_seconds": 1000.0});
    let config = config(dir.path(), keys);
    let mut session = start(config.clone());
    advance(&mut session, 1);
    std::thread::sleep(std::time::Duration::from_millis(300));
    advance(&mut session, 2);
    let before = session.snapshot().elapsed_seconds;
    drop(session);
    let session = resumed(&config, dir.path().join("out/checkpoint-2")).unwrap();
    assert!(session.snapshot().elapsed_seconds >= 0.3 && before >= 0.3);
    drop(session);
    let mut less = config;
    less.max_seconds = Some(0.2);
    let mut session = resumed(&less, dir.path().join("out/checkpoint-2")).unwrap();
    assert_eq!(session.stop_reason(), Some(StopReason::MaxTime));
    assert!(session.step().unwrap().is_none());
}

#[test]
fn a_cancelled_run_leaves_a_checkpoint_and_goes_on_from_it() {
    let keys = json!({"save_strategy": "steps", "save_steps": 100,
        "resume_from_checkpoint": "auto"});
    let whole = folder();
    let mut session = start(config(whole.path(), keys.clone()));
    advance(&mut session, u64::MAX);
    let expected = outcome(&mut session, whole.path());

    let dir = folder();
    let config = config(dir.path(), keys);
    let canceller = Canceller::new();
    let hooks = Hooks {
        canceller: canceller.clone(),
        ..Hooks::default()
    };
    let mut session = Session::start(config.clone(), hooks).unwrap();
    advance(&mut session, 3);
    canceller.cancel();
    assert!(session.step().unwrap().is_none());
    assert_eq!(log(dir.path()).last().unwrap()["stop_reason"], "cancelled");
    assert_eq!(checkpoints(dir.path()), [3]);
    assert_eq!(session.snapshot().checkpoint_step, Some(3));
    drop(session);
    let mut session = start(config);
    assert!(!session.should_stop());
    advance(&mut session, u64::MAX);
    assert!(outcome(&mut session, dir.path()) == expected);
}

#[test]
fn a_run_that_has_ended_says_so_and_a_changed_rule_lets_it_go_on() {
    let dir = folder();
    let rules = |bound: f64| {
        json!([{"rule": "target", "metric": "train_loss", "at_most": bound,
        "patience": 1, "min_steps": 3}])
    };
    let keys = json!({"save_strategy": "steps", "stop": rules(100.0),
        "resume_from_checkpoint": "auto"});
    let config = config(dir.path(), keys);
    advance(&mut start(config.clone()), u64::MAX);
    let rows = log(dir.path());

    let (hooks, heard) = warnings();
    let mut session = Session::start(config.clone(), hooks).unwrap();
    assert!(session.should_stop());
    assert_eq!(session.stop_reason(), Some(StopReason::TargetReached));
    assert!(session.step().unwrap().is_none());
    assert!(heard.lock().unwrap()[0].contains("had ended after update 3"));
    assert_eq!(log(dir.path()), rows);
    drop(session);

    let mut strict = config;
    strict
        .merge_json(&json!({"stop": rules(0.1)}).to_string())
        .unwrap();
    let mut session = start(strict);
    advance(&mut session, u64::MAX);
    assert_eq!(session.stop_reason(), Some(StopReason::MaxSteps));
    assert_eq!(session.snapshot().step, 6);
}

#[test]
fn what_changes_the_numbers_is_refused_by_a_list_and_can_be_allowed() {
    let dir = folder();
    let config = config(
        dir.path(),
        json!({"save_strategy": "steps", "save_steps": 2}),
    );
    advance(&mut start(config.clone()), 2);
    let from = dir.path().join("out/checkpoint-2");
    let mut other = config.clone();
    let changed = json!({"learning_rate": 2e-3, "max_grad_norm": 0.5, "threads": 2,
        "logging_steps": 1, "save_total_limit": 3});
    other.merge_json(&changed.to_string()).unwrap();
    let error = refused(&other, &from);
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    for part in [
        "learning_rate is 0.002, was 0.001",
        "max_grad_norm is 0.5, was 1.0",
        "resume_allow_changes: [learning_rate, max_grad_norm]",
        "checkpoint-2",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        !text.contains("threads") && !text.contains("logging_steps"),
        "{text}"
    );

    other
        .set("resume_allow_changes", "learning_rate,max_grad_norm")
        .unwrap();
    let mut session = resumed(&other, &from).unwrap();
    let report = session.step().unwrap().unwrap();
    // Linear from 2e-3, two of six updates done.
    assert!((report.learning_rate - 2e-3 * 4.0 / 6.0).abs() < 1e-12);
    assert_eq!(report.step, 3);
}

#[test]
fn other_batch_sizes_go_on_at_the_same_place_of_the_epoch() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 2, "max_steps": -1,
        "num_train_epochs": 1, "lr_scheduler_type": "constant"});
    let config = config(dir.path(), keys);
    advance(&mut start(config.clone()), 2);
    let mut other = config;
    other.per_device_train_batch_size = 2;
    other
        .set("resume_allow_changes", "per_device_train_batch_size")
        .unwrap();
    let mut session = resumed(&other, dir.path().join("out/checkpoint-2")).unwrap();
    let report = session.step().unwrap().unwrap();
    assert_eq!((report.step, report.epoch), (3, 0.625));
}

#[test]
fn changed_rows_are_noticed_by_their_content() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps"});
    let config = config(dir.path(), keys);
    advance(&mut start(config.clone()), 2);
    let from = dir.path().join("out/checkpoint-2");

    // The same rows under another name are the same.
    let mut moved = config.clone();
    moved.dataset_name = Some(dir.path().join("moved.jsonl"));
    std::fs::copy(
        dir.path().join("train.jsonl"),
        dir.path().join("moved.jsonl"),
    )
    .unwrap();
    drop(resumed(&moved, &from).unwrap());

    for (file, key) in [("train", "dataset_name"), ("test", "eval_dataset_name")] {
        let path = dir.path().join(format!("{file}.jsonl"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen(" the ", " a ", 1)).unwrap();
        let error = refused(&config, &from);
        assert_eq!(error.kind(), ErrorKind::Config);
        let message = error.to_string();
        assert!(
            message.contains(&format!("{key}: the rows"))
                && message.contains(&format!("resume_allow_changes: [{key}]")),
            "{message}"
        );
        let mut allowed = config.clone();
        allowed.set("resume_allow_changes", key).unwrap();
        drop(resumed(&allowed, &from).unwrap());
        std::fs::write(&path, text).unwrap();
    }
    drop(resumed(&config, &from).unwrap());
}

#[test]
fn another_precision_or_model_is_refused() {
    let dir = folder();
    let config = config(
        dir.path(),
        json!({"save_strategy": "steps", "max_steps": 2}),
    );
    advance(&mut start(config.clone()), 2);
    let from = dir.path().join("out/checkpoint-2");
    let mut half = config.clone();
    half.bf16 = Some(true);
    let error = refused(&half, &from).to_string();
    assert!(
        error.contains("would train in bfloat16 and the checkpoint's did in float32"),
        "{error}"
    );
    half.set("resume_allow_changes", "bf16").unwrap();
    drop(resumed(&half, &from).unwrap());
    let mut model = config;
    model.model_name_or_path = Some(fixtures().join("models/qwen3-tiny"));
    let error = refused(&model, &from).to_string();
    assert!(error.contains("model_name_or_path"), "{error}");
}

#[test]
fn which_checkpoint_is_taken() {
    let dir = folder();
    let config = config(
        dir.path(),
        json!({"save_strategy": "steps", "save_steps": 2}),
    );
    let from = |from: ResumeFrom, hooks: Hooks| {
        let mut config = config.clone();
        config.resume_from_checkpoint = from;
        Session::start(config, hooks)
    };
    let error = from(ResumeFrom::Newest, Hooks::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
    assert!(
        error.to_string().contains("holds no whole checkpoint"),
        "{error}"
    );
    assert!(!dir.path().join("out").exists());

    // Afresh, also after a crash before the first checkpoint.
    drop(from(ResumeFrom::Auto, Hooks::default()).unwrap());
    let mut session = from(ResumeFrom::Auto, Hooks::default()).unwrap();
    assert_eq!(session.snapshot().resumed_step, None);
    advance(&mut session, 4);
    drop(session);
    let error = from(ResumeFrom::Nothing, Hooks::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");

    let session = from(ResumeFrom::Newest, Hooks::default()).unwrap();
    assert_eq!(session.snapshot().resumed_step, Some(4));
    drop(session);

    // A newer one that is damaged is passed over, with a warning that names it.
    let torn = dir.path().join("out/checkpoint-4/optimizer.safetensors");
    let mut bytes = std::fs::read(&torn).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&torn, bytes).unwrap();
    let (hooks, heard) = warnings();
    let mut session = from(ResumeFrom::Auto, hooks).unwrap();
    assert_eq!(session.snapshot().resumed_step, Some(2));
    assert!(
        heard.lock().unwrap()[0].contains("checkpoint-4"),
        "{heard:?}"
    );
    let error = refused(&config, dir.path().join("out/checkpoint-4"));
    assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
    // Written again when its turn comes.
    advance(&mut session, 4);
    drop(session);
    let session = from(ResumeFrom::Newest, Hooks::default()).unwrap();
    assert_eq!(session.snapshot().resumed_step, Some(4));
}

#[test]
fn going_back_to_an_older_checkpoint_needs_leave_and_removes_the_newer_ones() {
    let dir = folder();
    let config = config(
        dir.path(),
        json!({"save_strategy": "steps", "save_steps": 1}),
    );
    advance(&mut start(config.clone()), 4);
    let from = dir.path().join("out/checkpoint-2");
    let error = refused(&config, &from);
    assert_eq!(error.kind(), ErrorKind::Exists);
    let text = error.to_string();
    assert!(
        text.contains("checkpoint-3, checkpoint-4") && text.contains("overwrite_output_dir"),
        "{text}"
    );
    assert_eq!(checkpoints(dir.path()), [1, 2, 3, 4]);
    let mut back = config.clone();
    back.overwrite_output_dir = true;
    let session = resumed(&back, &from).unwrap();
    assert_eq!(checkpoints(dir.path()), [1, 2]);
    assert_eq!(log_rows(dir.path(), "loss").len(), 2);
    drop(session);

    // Another folder may begin there as well, and gets the start of the log.
    let mut elsewhere = config.clone();
    elsewhere.output_dir = dir.path().join("elsewhere");
    let mut session = resumed(&elsewhere, dir.path().join("out/checkpoint-1")).unwrap();
    advance(&mut session, u64::MAX);
    let text = std::fs::read_to_string(dir.path().join("elsewhere/train_log.jsonl")).unwrap();
    assert_eq!(text.matches("\"loss\":").count(), 6);
    assert_eq!(checkpoints(dir.path()), [1, 2]);

    // A new run in the old folder removes them all: `auto` must not take them for its own.
    drop(start(back));
    assert!(checkpoints(dir.path()).is_empty());
}

#[test]
fn the_limit_counts_checkpoints_of_earlier_legs() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2,
        "resume_from_checkpoint": "auto"});
    let config = config(dir.path(), keys);
    let mut session = start(config.clone());
    advance(&mut session, 3);
    drop(session);
    let left = checkpoints(dir.path());
    assert!(left.ends_with(&[3]) && left.len() <= 3, "{left:?}");
    let mut session = start(config.clone());
    advance(&mut session, u64::MAX);
    assert_eq!(checkpoints(dir.path()), [5, 6]);
    drop(session);
    // A leg that was cut off before it deleted the oldest.
    std::fs::create_dir(dir.path().join("out/checkpoint-1")).unwrap();
    drop(start(config));
    assert_eq!(checkpoints(dir.path()), [5, 6]);
}

#[test]
fn the_host_hears_of_every_checkpoint_once_it_is_durable() {
    let dir = folder();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let record = heard.clone();
    let hooks = Hooks {
        checkpoint: Some(Box::new(move |report: &CheckpointReport| {
            assert!(report.folder.join("checkpoint.json").is_file());
            record.lock().unwrap().push(report.step);
        })),
        ..Hooks::default()
    };
    let keys = json!({"save_strategy": "steps", "save_steps": 2, "max_steps": 5});
    let mut session = Session::start(config(dir.path(), keys), hooks).unwrap();
    advance(&mut session, u64::MAX);
    assert_eq!(*heard.lock().unwrap(), [2, 4, 5]);
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_told_and_training_goes_on() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": true,
        "eval_strategy": "steps", "eval_steps": 1});
    let mut session = start(config(dir.path(), keys));
    // A file takes the place of the folder.
    let place = dir.path().join("out/checkpoint-2");
    std::fs::write(&place, "in the way").unwrap();
    let mut failures = Vec::new();
    let mut steps = 0;
    while !session.should_stop() {
        match session.step() {
            Ok(report) => steps = report.unwrap().step,
            Err(error) => failures.push(error),
        }
    }
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(
        failures[0].to_string().contains("checkpoint-2"),
        "{:?}",
        failures[0]
    );
    assert_eq!((steps, session.snapshot().step), (6, 6));
    assert_eq!(log_rows(dir.path(), "loss").len(), 6);
    assert_eq!(checkpoints(dir.path()), [2, 4, 6]);
    assert!(session.restored_best());
}

#[test]
fn a_last_checkpoint_that_cannot_be_written_costs_neither_the_best_weights_nor_the_last_row() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 100, "max_steps": 3,
        "load_best_model_at_end": true, "eval_strategy": "steps", "eval_steps": 1});
    let mut session = start(config(dir.path(), keys));
    std::fs::write(dir.path().join("out/checkpoint-3"), "in the way").unwrap();
    advance(&mut session, 2);
    let error = session.step().unwrap_err();
    assert!(error.to_string().contains("checkpoint-3"), "{error}");
    assert!(session.restored_best());
    assert_eq!(log(dir.path()).last().unwrap()["stop_reason"], "max_steps");
    assert!(session.step().unwrap().is_none());
    session
        .export(dir.path().join("model"), Export::Full)
        .unwrap();
}

#[test]
fn a_host_saves_where_it_likes_and_goes_on_from_there() {
    let whole = folder();
    let mut session = start(config(whole.path(), json!({})));
    advance(&mut session, u64::MAX);
    let expected = outcome(&mut session, whole.path());

    let dir = folder();
    let config = config(dir.path(), json!({}));
    let mut session = start(config.clone());
    advance(&mut session, 3);
    let saved = dir.path().join("mine");
    session.save(&saved).unwrap();
    advance(&mut session, 5);
    drop(session);
    let mut session = resumed(&config, &saved).unwrap();
    assert_eq!(session.snapshot().resumed_step, Some(3));
    advance(&mut session, u64::MAX);
    assert!(outcome(&mut session, dir.path()) == expected);
}

#[test]
fn what_is_saved_after_the_best_weights_are_back_can_still_go_on() {
    let dir = folder();
    let keys = json!({"max_steps": 40, "learning_rate": 2e-2, "eval_strategy": "steps",
        "eval_steps": 1, "load_best_model_at_end": true, "early_stopping_patience": 2,
        "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 100});
    let config = config(dir.path(), keys);
    let mut session = start(config.clone());
    advance(&mut session, u64::MAX);
    let (step, best) = (session.snapshot().step, dir.path().join("best"));
    session.export(&best, Export::Full).unwrap();
    let saved = dir.path().join("saved");
    session.save(&saved).unwrap();
    let last = dir.path().join(format!("out/checkpoint-{step}"));
    assert!(weights(&saved) == weights(&last));
    assert!(weights(&saved) != weights(&best));
    let again = dir.path().join("again");
    session.export(&again, Export::Full).unwrap();
    assert!(weights(&again) == weights(&best));
    drop(session);

    let mut patient = config;
    patient.early_stopping_patience = Some(4);
    let mut session = resumed(&patient, &saved).unwrap();
    assert!(!session.should_stop());
    advance(&mut session, u64::MAX);
    assert!(session.snapshot().step > step);
}

#[test]
fn best_weights_that_nobody_kept_are_not_promised() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps",
        "eval_steps": 1, "learning_rate": 5e-2, "lr_scheduler_type": "constant", "max_steps": 8});
    let config = config(dir.path(), keys);
    let mut session = start(config.clone());
    advance(&mut session, 8);
    assert!(session.snapshot().best_step.unwrap() < 8);
    drop(session);
    let from = dir.path().join("out/checkpoint-8");
    let mut late = config;
    late.load_best_model_at_end = true;
    let error = refused(&late, &from).to_string();
    assert!(error.contains("load_best_model_at_end"), "{error}");
    late.set("resume_allow_changes", "load_best_model_at_end")
        .unwrap();
    drop(resumed(&late, &from).unwrap());
}

#[test]
fn a_host_that_evaluates_by_itself_gets_a_checkpoint_of_each_best() {
    let dir = folder();
    let keys = json!({"save_strategy": "best", "eval_strategy": "steps", "max_steps": 4, "stop": [
        {"rule": "plateau", "metric": "mine", "greater_is_better": true, "patience": 2}]});
    let config = host_fed(dir.path(), keys);
    let mut session = start(config.clone());
    for (step, score) in [(1, 1.0), (2, 3.0), (3, 2.0)] {
        advance(&mut session, step);
        session.observe("mine", score).unwrap();
    }
    drop(session);
    assert_eq!(checkpoints(dir.path()), [1, 2]);
    // Patience is used at update 3, which the checkpoint of update 2 does not know.
    let mut session = resumed(&config, dir.path().join("out/checkpoint-2")).unwrap();
    assert_eq!(session.snapshot().patience_used, 0);
    for (step, score) in [(3, 2.0), (4, 2.5)] {
        advance(&mut session, step);
        assert!(step == 4 || session.stop_reason().is_none());
        session.observe("mine", score).unwrap();
    }
    assert_eq!(session.stop_reason(), Some(StopReason::MaxSteps));
    assert_eq!(checkpoints(dir.path()), [1, 2, 4]);
}

#[test]
fn what_was_observed_after_the_last_checkpoint_is_in_the_one_at_the_end() {
    let dir = folder();
    let keys = json!({"save_strategy": "steps", "save_steps": 1, "max_steps": 9, "stop": [
        {"rule": "target", "metric": "mine", "at_least": 2.0}]});
    let config = host_fed(dir.path(), keys);
    let mut session = start(config.clone());
    advance(&mut session, 2);
    session.observe("mine", 2.0).unwrap();
    assert_eq!(session.stop_reason(), Some(StopReason::TargetReached));
    drop(session);
    let session = resumed(&config, dir.path().join("out/checkpoint-2")).unwrap();
    assert_eq!(session.stop_reason(), Some(StopReason::TargetReached));
}
