//! Whole runs against recorded runs of the peer, TRL's SFTTrainer, on the same model, rows and
//! settings, all through `Session::step`. `scripts/parity` prints the table.
//!
//! The bounds in float32: learning rate 1e-12, loss and evaluation loss 1e-4 and gradient norm 1e-3 of the
//! peer's value, token counts exact. The peer's own float32 gradient norm is up to 7e-6 off its
//! float64 one, so a correct engine lands far inside.
//!
//! They run on the CPU, or on the device that `SFT_TEST_DEVICE` names, such as `cuda:0` or
//! `cuda-emulated`. `SFT_PARITY_CASES` names some of the recordings, for where all would take too long.
//!
//! In mixed precision the reference is the peer's float32 run: ours may be off it by at most twice what
//! the peer's own run in that format is. Of updates and evaluations the largest difference of the run
//! counts, since at a single one roundings may happen to cancel. The norms of the final tensors are one
//! sample of noise a run: tensors with hardly any gradient but rounding errors (the key bias of qwen2)
//! are moved by AdamW as far as any. They are compared as one vector over all runs of a format.

use serde_json::{Map, Value, json};
use sft::Result;
use sft::config::Config;
use sft::engine::{Export, Hooks, Session, evaluate_model};
use sft::report::StopReason;
use std::fmt::Write as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

const LEARNING_RATE: f64 = 1e-12;
const LOSS: f64 = 1e-4;
const GRAD_NORM: f64 = 1e-3;
const EVAL_LOSS: f64 = 1e-4;

/// Keys of a recording's settings that are the recorder's own.
const RECORDER_KEYS: [&str; 6] = [
    "train_rows",
    "eval_rows",
    "dtype",
    "model",
    "format",
    "lora",
];

/// The folder beside this file; `SFT_FIXTURES` where the test runs away from its repository.
fn fixtures() -> PathBuf {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::env::var_os("SFT_FIXTURES").map_or_else(here, PathBuf::from)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The recorder's rows: the first `count` of a split, in one of the three formats.
fn write_rows(folder: &Path, split: &str, format: &str, count: usize) -> PathBuf {
    let source = fixtures().join(format!("data/gsm8k_{split}_small.jsonl"));
    let mut rows = String::new();
    for line in std::fs::read_to_string(source).unwrap().lines().take(count) {
        let row: Value = serde_json::from_str(line).unwrap();
        let (q, a) = (
            row["question"].as_str().unwrap(),
            row["answer"].as_str().unwrap(),
        );
        let row = match format {
            "text" => json!({"text": format!("Question: {q}\nAnswer: {a}")}),
            "prompt-completion" => json!({
                "prompt": format!("Question: {q}\nAnswer:"), "completion": format!(" {a}")}),
            "messages" => json!({"messages": [
                {"role": "user", "content": q}, {"role": "assistant", "content": a}]}),
            other => panic!("unknown format {other}"),
        };
        writeln!(rows, "{row}").unwrap();
    }
    let path = folder.join(format!("{split}.jsonl"));
    std::fs::write(&path, rows).unwrap();
    path
}

/// Where the recordings are run again.
fn device() -> String {
    std::env::var("SFT_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

/// The configuration of a recording, writing into `folder`.
fn config(trace: &Value, device: &str, folder: &Path) -> Result<Config> {
    let settings = trace["settings"].as_object().unwrap();
    let count = |key: &str| settings[key].as_u64().unwrap() as usize;
    let text = |key: &str| settings[key].as_str().unwrap();
    let mut keys: Map<String, Value> = settings
        .iter()
        .filter(|(key, _)| !RECORDER_KEYS.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    keys.insert("model_name_or_path".into(), {
        fixtures()
            .join("models")
            .join(text("model"))
            .display()
            .to_string()
            .into()
    });
    let train = write_rows(folder, "train", text("format"), count("train_rows"));
    keys.insert("dataset_name".into(), train.display().to_string().into());
    if count("eval_rows") > 0 {
        let eval = write_rows(folder, "test", text("format"), count("eval_rows"));
        keys.insert(
            "eval_dataset_name".into(),
            eval.display().to_string().into(),
        );
    }
    keys.insert(
        "output_dir".into(),
        folder.join("out").display().to_string().into(),
    );
    keys.entry("save_strategy").or_insert("no".into());
    keys.insert("gradient_checkpointing".into(), false.into());
    keys.insert("device".into(), device.into());
    keys.entry("bf16").or_insert(false.into());
    keys.insert("threads".into(), 1.into());
    let mut config = Config::default();
    config.merge_json(&Value::Object(keys).to_string())?;
    Ok(config)
}

/// The largest relative differences of a run.
#[derive(Clone, Debug, Default)]
struct Differences {
    updates: usize,
    learning_rate: f64,
    loss: f64,
    grad_norm: f64,
    eval_loss: f64,
    evals: usize,
    params: f64,
    /// Of each final tensor: found, recorded.
    norms: Vec<(f64, f64)>,
    faults: Vec<String>,
}

/// A number of each update or evaluation.
fn series(trace: &Value, rows: &str, key: &str) -> Vec<f64> {
    let rows = trace[rows].as_array().unwrap().iter();
    rows.map(|row| row[key].as_f64().unwrap()).collect()
}

/// The largest relative difference of two runs of the peer.
fn apart(a: &Value, b: &Value, rows: &str, key: &str) -> f64 {
    let (a, b) = (series(a, rows, key), series(b, rows, key));
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(&b).map(|(&a, &b)| relative(a, b));
    pairs.fold(0.0, f64::max)
}

/// The norm of each final tensor of two runs of the peer.
fn norms(a: &Value, b: &Value) -> Vec<(f64, f64)> {
    let params = a["final_params"].as_object().unwrap().iter();
    let norm = |value: &Value| value[0].as_f64().unwrap();
    params
        .map(|(name, a)| (norm(a), norm(&b["final_params"][name])))
        .collect()
}

/// The L2 norm of the difference of two vectors, relative to that of the second.
fn vectors_apart(pairs: &[(f64, f64)]) -> f64 {
    let difference: f64 = pairs.iter().map(|(a, b)| (a - b).powi(2)).sum();
    let size: f64 = pairs.iter().map(|(_, b)| b.powi(2)).sum();
    (difference / size).sqrt()
}

fn relative(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs().max(1e-12)
}

fn run(trace: &Value, device: &str) -> Differences {
    let folder = tempfile::tempdir().unwrap();
    let mut d = Differences::default();
    let mut session = Session::start(
        config(trace, device, folder.path()).unwrap(),
        Hooks::default(),
    )
    .unwrap_or_else(|e| panic!("{}: {e}", trace["case"]));
    let mut evals = trace["evals"].as_array().unwrap().iter();
    for expected in trace["updates"].as_array().unwrap() {
        let Some(found) = session.step().unwrap() else {
            d.faults
                .push(format!("ended before update {}", expected["step"]));
            break;
        };
        let number = |key: &str| expected[key].as_f64().unwrap();
        d.updates += 1;
        d.loss = d.loss.max(relative(found.loss, number("loss")));
        d.grad_norm = d
            .grad_norm
            .max(relative(found.grad_norm, number("grad_norm")));
        let rate = (found.learning_rate - number("learning_rate")).abs();
        d.learning_rate = d.learning_rate.max(rate);
        let exact = [
            ("supervised_tokens", found.supervised_tokens as f64),
            ("num_tokens", found.total_tokens as f64),
        ];
        for (key, value) in exact {
            if value != number(key) {
                d.faults.push(format!(
                    "update {}: {key} {value} for {}",
                    found.step,
                    number(key)
                ));
            }
        }
        if (found.epoch - number("epoch")).abs() > 1e-4 {
            d.faults
                .push(format!("update {}: epoch {}", found.step, found.epoch));
        }
        if let Some(eval) = found.eval {
            let Some(expected) = evals.next() else {
                d.faults
                    .push(format!("an evaluation too many at update {}", found.step));
                continue;
            };
            d.evals += 1;
            let loss = expected["token_weighted_loss"].as_f64().unwrap();
            d.eval_loss = d.eval_loss.max(relative(eval.loss, loss));
            if eval.step != expected["step"].as_u64().unwrap()
                || eval.supervised_tokens != expected["supervised_tokens"].as_u64().unwrap()
            {
                d.faults.push(format!(
                    "evaluation at {} differs in step or tokens",
                    eval.step
                ));
            }
        }
    }
    if let Some(missing) = evals.next() {
        d.faults
            .push(format!("no evaluation at update {}", missing["step"]));
    }
    check_end(trace, &mut session, &mut d);
    check_params(trace, &mut session, folder.path(), &mut d);
    d
}

/// The run ends where the peer's ended, with the same best.
fn check_end(trace: &Value, session: &mut Session, d: &mut Differences) {
    let result = &trace["result"];
    let early = result["stopped_early"].as_bool() == Some(true);
    let by_epochs = trace["settings"]["max_steps"].as_i64() == Some(-1);
    let expected = match (early, by_epochs) {
        (true, _) => StopReason::Plateau,
        (false, true) => StopReason::MaxEpochs,
        (false, false) => StopReason::MaxSteps,
    };
    let snapshot = session.snapshot();
    if snapshot.stop_reason != Some(expected) || Some(snapshot.step) != result["steps"].as_u64() {
        d.faults.push(format!(
            "ended as {:?} at {}",
            snapshot.stop_reason, snapshot.step
        ));
    }
    if snapshot.total_steps != result["planned_steps"].as_u64() {
        d.faults
            .push(format!("planned {:?} updates", snapshot.total_steps));
    }
    if session.step().unwrap().is_some() {
        d.faults.push("a step after the end".into());
    }
    if early {
        if snapshot.best_step != result["best_step"].as_u64() {
            d.faults.push(format!("best at {:?}", snapshot.best_step));
        }
        let value = snapshot.best_value.unwrap_or(f64::NAN);
        let metric = trace["best"]["metric"].as_f64().unwrap();
        d.eval_loss = d.eval_loss.max(relative(value, metric));
        // The best weights are back: evaluating them again gives the best value.
        let again = session.evaluate().unwrap().loss;
        let best = trace["best"]["token_weighted_loss"].as_f64().unwrap();
        d.eval_loss = d.eval_loss.max(relative(again, best));
        if again != value || !session.restored_best() {
            d.faults
                .push(format!("restored weights evaluate to {again}"));
        }
    }
}

/// Norm of every saved tensor: of the last weights, or after an early stop of the best. The folder then
/// evaluates, by the door that any model folder takes, to what the peer's own evaluation after the run
/// found.
fn check_params(trace: &Value, session: &mut Session, folder: &Path, d: &mut Differences) {
    let saved = folder.join("saved");
    session.export(&saved, Export::Full).unwrap();
    if let Some(best) = trace.get("best") {
        let mut config = session.config().clone();
        config.model_name_or_path = Some(saved.clone());
        let found = evaluate_model(&config, Hooks::default()).unwrap().loss;
        let expected = best["token_weighted_loss"].as_f64().unwrap();
        d.eval_loss = d.eval_loss.max(relative(found, expected));
        // The peer's mean of batches is the mean over tokens where one batch holds all rows.
        let own = best["eval_loss"].as_f64().unwrap();
        d.eval_loss = d.eval_loss.max(relative(found, own));
    }
    let files = sft::io::WeightFiles::open(&saved).unwrap();
    let mut norms = Vec::new();
    for (name, expected) in trace["final_params"].as_object().into_iter().flatten() {
        let shape = files.shape(name).unwrap().to_vec();
        let mut values = vec![0.0; shape.iter().product()];
        files.read_f32(name, &shape, &mut values).unwrap();
        let norm = values
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt();
        norms.push((norm, expected[0].as_f64().unwrap()));
    }
    let each = norms
        .iter()
        .map(|&(found, expected)| relative(found, expected));
    d.params = each.fold(0.0, f64::max);
    d.norms = norms;
}

/// The recordings that are asked for, if not all are.
fn named_cases() -> Option<Vec<String>> {
    let names = std::env::var("SFT_PARITY_CASES").ok()?;
    Some(names.split_whitespace().map(str::to_owned).collect())
}

/// That these are all recordings that there should be, at least so many, or some that were named.
fn assert_count(traces: &[Value], all: usize) {
    let least = if named_cases().is_some() { 1 } else { all };
    assert!(traces.len() >= least, "{} recordings", traces.len());
}

/// The recorded runs, in mixed precision or in float32.
fn recordings(mixed: bool) -> Vec<Value> {
    let index = read_json(&fixtures().join("parity/index.json"));
    let cases = index["cases"].as_array().unwrap().iter();
    let of_format = |case: &&Value| {
        let settings = case["settings"].as_object().unwrap();
        mixed == (settings.contains_key("bf16") || settings.contains_key("fp16"))
    };
    let named = named_cases();
    cases
        .filter(of_format)
        .map(|case| case["case"].as_str().unwrap())
        .filter(|&case| (named.iter().flatten()).any(|name| name == case) || named.is_none())
        .map(recording)
        .collect()
}

fn recording(case: &str) -> Value {
    read_json(&fixtures().join(format!("parity/{case}.json")))
}

/// `f` of each trace, in their order, on plain threads: a thread of a rayon pool that waits for a session's
/// work takes up the next trace meanwhile, and in that one the next, until its stack is full.
fn of_each<T: Send>(traces: &[Value], f: impl Fn(&Value) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let numbers = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let mine = numbers.take_while(|&i| i < traces.len());
        mine.map(|i| (i, f(&traces[i]))).collect::<Vec<_>>()
    };
    let mut results: Vec<(usize, T)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(|thread| thread.join());
        results
            .flat_map(|part| part.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn every_recorded_run_is_within_its_bounds() {
    let (later, traces): (Vec<Value>, Vec<Value>) =
        recordings(false).into_iter().partition(|trace| {
            let settings = &trace["settings"];
            settings.get("lora").is_some() || settings["loss_type"] == "dft"
        });
    let results: Vec<Differences> = of_each(&traces, |trace| run(trace, "cpu"));

    let mut table = format!(
        "{:<48} {:>7} {:>9} {:>9} {:>9} {:>6} {:>9} {:>9}\n",
        "case", "updates", "loss", "grad norm", "lr", "evals", "eval loss", "weights"
    );
    let mut failed = 0;
    for (trace, d) in traces.iter().zip(&results) {
        let within = d.loss <= LOSS
            && d.grad_norm <= GRAD_NORM
            && d.learning_rate <= LEARNING_RATE
            && d.eval_loss <= EVAL_LOSS
            && d.params <= LOSS
            && d.faults.is_empty();
        failed += usize::from(!within);
        writeln!(
            table,
            "{:<48} {:>7} {:>9.1e} {:>9.1e} {:>9.1e} {:>6} {:>9.1e} {:>9.1e} {}{}",
            trace["case"].as_str().unwrap(),
            d.updates,
            d.loss,
            d.grad_norm,
            d.learning_rate,
            d.evals,
            d.eval_loss,
            d.params,
            if within { "ok" } else { "OUT OF BOUNDS " },
            d.faults.join("; ")
        )
        .unwrap();
    }
    writeln!(
        table,
        "bounds: loss {LOSS:e}, grad norm {GRAD_NORM:e}, lr {LEARNING_RATE:e} absolute, eval loss \
         {EVAL_LOSS:e}; {} runs, {failed} out of bounds; {} recordings are of features that this \
         version refuses by name",
        traces.len(),
        later.len()
    )
    .unwrap();
    println!("{table}");
    assert_count(&traces, 80);
    assert_eq!(failed, 0, "\n{table}");
}

/// The overflows of this one are in the peer's float16 gradients of weights, which are float32 here.
const PEERS_OWN_OVERFLOW: &str = "llama-tiny.overflow.fp16";

/// Runs the recordings in mixed precision and compares them with the float32 recordings of the same.
fn assert_mixed_precision(traces: &[Value], device: &str) {
    let runs: Vec<(Value, Differences)> = of_each(traces, |trace| {
        let case = trace["case"].as_str().unwrap();
        let twin = recording(case.rsplit_once('.').unwrap().0);
        let mut reference = twin.clone();
        reference["settings"] = trace["settings"].clone();
        (twin, run(&reference, device))
    });
    let mut table = format!(
        "{:<34} {:>16} {:>16} {:>16}\n",
        "case (ours, the peer's own)", "loss", "grad norm", "eval loss"
    );
    let mut failed = 0;
    for (trace, (twin, d)) in traces.iter().zip(&runs) {
        let pairs = [
            (d.loss, apart(trace, twin, "updates", "loss")),
            (d.grad_norm, apart(trace, twin, "updates", "grad_norm")),
            (
                d.eval_loss,
                apart(trace, twin, "evals", "token_weighted_loss"),
            ),
        ];
        let within = pairs.iter().all(|(ours, peers)| *ours <= 2.0 * peers)
            && d.loss > 1e-6 // else that was float32
            && d.learning_rate <= LEARNING_RATE
            && d.faults.is_empty();
        failed += usize::from(!within);
        write!(table, "{:<34}", trace["case"].as_str().unwrap()).unwrap();
        for (ours, peers) in pairs {
            write!(table, " {ours:>7.1e} {peers:>8.1e}").unwrap();
        }
        let verdict = if within { "ok" } else { "OUT OF BOUNDS" };
        writeln!(table, " {verdict} {}", d.faults.join("; ")).unwrap();
    }
    for format in [".bf16", ".fp16"] {
        let is_of = |trace: &Value| trace["case"].as_str().unwrap().ends_with(format);
        let of_format = traces.iter().zip(&runs).filter(|(trace, _)| is_of(trace));
        let count = of_format.clone().count();
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for (trace, (twin, d)) in of_format {
            ours.extend_from_slice(&d.norms);
            peers.extend(norms(trace, twin));
        }
        assert_eq!(ours.len(), peers.len());
        if count < 3 {
            continue; // a sample of one or two says nothing
        }
        let (ours, peers) = (vectors_apart(&ours), vectors_apart(&peers));
        failed += usize::from(ours > 2.0 * peers);
        writeln!(table, "weights of {format:<23} {ours:>7.1e} {peers:>8.1e}").unwrap();
    }
    println!("{table}");
    assert_eq!(failed, 0, "\n{table}");
}

#[test]
fn mixed_precision_is_at_most_twice_as_far_from_float32_as_the_peers() {
    let mut traces = recordings(true);
    traces.retain(|trace| trace["case"] != PEERS_OWN_OVERFLOW);
    assert_count(&traces, 17);
    assert_mixed_precision(&traces, &device());
}

/// The CUDA backend, its kernels compiled for the CPU: each format once, on the models whose blocks have
/// the most parts. A run takes some twenty seconds.
#[test]
#[cfg(feature = "emulate")]
fn the_emulated_kernels_train_as_the_peer() {
    let device = "cuda-emulated";
    let d = run(&recording("mistral-tiny.text.accum1"), device);
    let within = d.loss <= LOSS && d.grad_norm <= GRAD_NORM && d.faults.is_empty();
    assert!(within && d.params <= LOSS, "{d:?}");
    let halves = ["qwen3-tiny.text.accum1.bf16", "qwen2-tiny.text.accum1.fp16"];
    assert_mixed_precision(&halves.map(recording), device);
}

#[test]
fn the_loss_scale_and_the_schedule_follow_the_peers_overflows() {
    let trace = recording(PEERS_OWN_OVERFLOW);
    let mut state = sft::train::LossScale::default();
    let schedule = config(&trace, "cpu", tempfile::tempdir().unwrap().path())
        .unwrap()
        .schedule(20)
        .unwrap();
    let mut skipped = 0;
    for (i, update) in trace["updates"].as_array().unwrap().iter().enumerate() {
        assert_eq!(update["loss_scale"], state.scale());
        let rate = update["learning_rate"].as_f64().unwrap();
        assert!((schedule.lr(i as u64) - rate).abs() <= LEARNING_RATE);
        let skip = update["skipped"].as_bool().unwrap();
        state.observe(!skip);
        skipped += u32::from(skip);
    }
    assert!(skipped > 0);
}
