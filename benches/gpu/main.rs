//! Verifies and measures the CUDA backend on a GPU, and writes what it found as JSON.
//!
//! ```text
//! gpu --probe [--device N]
//! gpu [--device N] [--out FILE] [--commit TEXT] [--machine TEXT] [--tests TEXT]
//! ```
//!
//! `--probe` only says which device there is, or in one line why there is none. `scripts/gpu` runs it, beside the tests, and passes the commit, the machine's own description and
//! the tests' verdicts on.

mod suite;

use serde_json::{Value, json};
use sft::cuda::Cuda;
use sft::ops::Backend;
use std::process::ExitCode;
use suite::{Model, Scale};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("gpu: a check failed");
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("gpu: {message}");
            ExitCode::from(2)
        }
    }
}

/// The value after a flag.
fn value<'a>(arguments: &'a [String], flag: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| argument == flag)?;
    arguments.get(at + 1).map(String::as_str)
}

fn run(arguments: &[String]) -> Result<bool, String> {
    let ordinal = value(arguments, "--device").unwrap_or("0");
    let ordinal: usize = ordinal
        .parse()
        .map_err(|_| format!("--device {ordinal}: not the number of a device"))?;
    let folder = std::env::temp_dir().join(format!("sft-gpu-{}", std::process::id()));
    let open = || Cuda::open(ordinal);
    let device = open().map_err(|error| error.to_string())?;
    eprintln!("gpu: {}", device.describe());
    drop(device);
    if arguments.iter().any(|argument| argument == "--probe") {
        return Ok(true);
    }
    let mut report = suite::run(&full(), open, &format!("cuda:{ordinal}"), &folder)
        .map_err(|error| error.to_string())?;
    let _ = std::fs::remove_dir_all(&folder);

    // `ops=0 network=101`: the exit status of each test binary.
    let tests: Vec<Value> = value(arguments, "--tests")
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|test| test.split_once('='))
        .map(|(name, status)| json!({"name": name, "status": status, "passed": status == "0"}))
        .collect();
    let passed = report["passed"] == true && tests.iter().all(|test| test["passed"] == true);
    report["passed"] = json!(passed);
    report["tests"] = json!(tests);
    report["commit"] = json!(value(arguments, "--commit"));
    report["machine"] = json!(value(arguments, "--machine"));
    report["command"] = json!(std::env::args().collect::<Vec<_>>().join(" "));

    let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
    match value(arguments, "--out") {
        Some(path) => std::fs::write(path, text).map_err(|error| format!("{path}: {error}"))?,
        None => println!("{text}"),
    }
    Ok(passed)
}

const MODELS: [Model; 4] = [
    Model {
        name: "SmolLM2-135M",
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        width: 1536,
        vocab: 49_152,
    },
    Model {
        name: "Qwen2.5-0.5B",
        hidden: 896,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        width: 4864,
        vocab: 151_936,
    },
    Model {
        name: "Qwen2.5-1.5B",
        hidden: 1536,
        heads: 12,
        kv_heads: 2,
        head_dim: 128,
        width: 8960,
        vocab: 151_936,
    },
    Model {
        name: "Llama-3.1-8B",
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        width: 14_336,
        vocab: 128_256,
    },
];

/// The shapes of real models.
fn full() -> Scale {
    Scale {
        models: &MODELS,
        sequences: &[1, 63, 64, 257, 636],
        head_rows: 67,
        parameters: 30_000_001,
        arena: 8 << 30,
        speed_sequences: (16, 1024),
        speed_head_rows: 2048,
        speed_parameters: 1 << 27,
        batch_seconds: 0.02,
        updates: &[("smollm2-135m", 32, 512, 30), ("qwen2.5-0.5b", 16, 512, 20)],
    }
}
