//! The run that is disturbed: `sft train` on a tiny model, stopped early by patience in its second
//! epoch, with evaluations, checkpoints in the middle of epochs and between evaluations, and the best
//! weights of a step that no checkpoint is due at.

use super::shim::{self, Fault, Op};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No leg of a run takes nearly as long.
const LIMIT: Duration = Duration::from_secs(120);

/// Rows and configuration, written once.
fn inputs() -> &'static Path {
    static INPUTS: OnceLock<TempDir> = OnceLock::new();
    INPUTS.get_or_init(write_inputs).path()
}

fn write_inputs() -> TempDir {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    let rows = |split: &str, count: usize| {
        let source = fixtures.join(format!("data/gsm8k_{split}_small.jsonl"));
        let source = fs::read_to_string(source).unwrap();
        let rows = source.lines().take(count).map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            format!("{}\n", json!({"text": row["question"]}))
        });
        let path = folder.path().join(format!("{split}.jsonl"));
        fs::write(&path, rows.collect::<String>()).unwrap();
        path
    };
    // 24 rows, two an update: 12 updates an epoch. The best evaluation is after update 14, the run
    // stops after 20; checkpoints are due at 3, 6, … 18.
    let config = json!({
        "model_name_or_path": fixtures.join("models/llama-tiny"),
        "dataset_name": rows("train", 24),
        "eval_dataset_name": rows("test", 4),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_length": 48,
        "learning_rate": 2e-2,
        "max_steps": 30,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": 2,
        "load_best_model_at_end": true,
        "early_stopping_patience": 3,
        "device": "cpu",
        "threads": 1,
        "disable_tqdm": true,
        "cache_dir": folder.path().join("cache"),
    });
    fs::write(folder.path().join("run.json"), config.to_string()).unwrap();
    folder
}

/// A run in a folder of its own.
pub struct Run {
    folder: TempDir,
    legs: usize,
    overwrite: bool,
}

/// What became of one process.
pub struct Leg {
    pub status: ExitStatus,
    /// Standard output and standard error.
    pub said: String,
    pub ops: Vec<Op>,
    pub took: Duration,
}

impl Leg {
    pub fn was_killed(&self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        self.status.signal() == Some(9)
    }
}

impl Run {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("watched")).unwrap();
        Self {
            folder,
            legs: 0,
            overwrite: false,
        }
    }

    /// As a person does who wants neither the model that a failed process could still save nor to
    /// resume: without a checkpoint a run does not start over it unasked.
    pub fn overwrite_if_no_checkpoint(&mut self) {
        self.overwrite = self.checkpoints().is_empty();
    }

    /// The output folder. Its parent is watched and holds nothing else: a model folder is written
    /// beside its place.
    pub fn out(&self) -> PathBuf {
        self.watched().join("out")
    }

    /// What is watched.
    pub fn watched(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join("watched")
    }

    /// Trains on from the newest checkpoint, or from the start when there is none, until the run ends
    /// or the fault does. A process that still lives after `kill_after` is killed.
    pub fn leg(&mut self, fault: Option<&Fault>, kill_after: Option<Duration>) -> Leg {
        self.legs += 1;
        let file = |kind: &str| self.folder.path().join(format!("{kind}-{}", self.legs));
        let (said, trace) = (file("said"), file("trace"));
        let output = File::create(&said).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sft"));
        command
            .args(["train", "--resume_from_checkpoint", "auto", "--config"])
            .arg(inputs().join("run.json"))
            .arg("--output_dir")
            .arg(self.out())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        if self.overwrite {
            command.args(["--overwrite_output_dir", "true"]);
        }
        shim::preload(&mut command, &self.watched(), &trace, fault);
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            let lived = started.elapsed();
            if kill_after.is_some_and(|limit| lived >= limit) {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
            if lived > LIMIT {
                child.kill().unwrap();
                panic!("{fault:?}: the process hangs:\n{}", read(&said));
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let leg = Leg {
            status,
            said: read(&said),
            ops: shim::read_trace(&trace),
            took: started.elapsed(),
        };
        assert!(!leg.said.contains("panicked"), "{fault:?}: {}", leg.said);
        leg
    }

    /// The steps of the checkpoints that stand in the output folder, in order.
    pub fn checkpoints(&self) -> Vec<u64> {
        let mut steps: Vec<u64> = names(&self.out())
            .iter()
            .filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok())
            .collect();
        steps.sort_unstable();
        steps
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

/// What stands in `folder`, which need not exist.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
