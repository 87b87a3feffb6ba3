//! How the run ends when nothing disturbs it, and the comparison with that.

use super::run::{Leg, Run, names};
use super::shim::Op;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// What a run leaves, without what differs from run to run for good reason: times.
#[derive(PartialEq)]
pub struct End {
    /// Every file by its path.
    files: BTreeMap<String, Content>,
}

#[derive(Clone, PartialEq)]
enum Content {
    Bytes(Vec<u8>),
    Rows(Vec<Value>),
}

/// The undisturbed run.
pub struct Undisturbed {
    pub end: End,
    /// What it did on disk.
    pub ops: Vec<Op>,
    pub took: Duration,
}

impl Undisturbed {
    /// How many operations change something.
    pub fn changes(&self) -> u64 {
        self.ops.iter().filter_map(|op| op.number).max().unwrap()
    }
}

pub fn undisturbed() -> &'static Undisturbed {
    static UNDISTURBED: OnceLock<Undisturbed> = OnceLock::new();
    UNDISTURBED.get_or_init(|| {
        let mut run = Run::new();
        let leg = run.leg(None, None);
        assert!(leg.status.success(), "{}", leg.said);
        let end = End::of(&run);
        let Some(Content::Rows(log)) = end.files.get("out/train_log.jsonl") else {
            panic!("no log");
        };
        // The run that the tests are about: it stops early, and its best step has no checkpoint due.
        let last = log.last().unwrap();
        assert_eq!(
            (&last["step"], &last["stop_reason"], &last["best_step"]),
            (&20.into(), &"plateau".into(), &14.into())
        );
        Undisturbed {
            end,
            ops: leg.ops,
            took: leg.took,
        }
    })
}

impl End {
    pub fn of(run: &Run) -> Self {
        let mut files = BTreeMap::new();
        collect(&run.watched(), "", &mut files);
        Self { files }
    }

    /// The files whose names count.
    fn only(&self, counts: impl Fn(&str) -> bool) -> Self {
        let files = self.files.iter().filter(|(name, _)| counts(name));
        Self {
            files: files.map(|(n, c)| (n.clone(), c.clone())).collect(),
        }
    }

    /// In what they differ, for people.
    fn difference(&self, other: &Self) -> String {
        let mut all: Vec<&String> = self.files.keys().chain(other.files.keys()).collect();
        all.sort();
        all.dedup();
        let differ = |name: &&&String| self.files.get(**name) != other.files.get(**name);
        let describe = |name: &String| match (self.files.get(name), other.files.get(name)) {
            (None, _) => format!("{name} is too much"),
            (_, None) => format!("{name} is missing"),
            (Some(Content::Rows(a)), Some(Content::Rows(b))) => {
                let at = a.iter().zip(b).take_while(|(a, b)| a == b).count();
                let row = |rows: &[Value]| rows.get(at).map_or("nothing".into(), Value::to_string);
                format!("{name}: row {}: {} instead of {}", at + 1, row(b), row(a))
            }
            (Some(_), Some(_)) => format!("{name} has other bytes"),
        };
        let all: Vec<String> = all.iter().filter(differ).map(|n| describe(n)).collect();
        all.join("\n")
    }
}

/// The run in `run` has ended, in `leg`, as the undisturbed one. `story`: what was done to it.
pub fn check(run: &Run, leg: &Leg, story: &dyn std::fmt::Debug) {
    check_files(run, leg, story, |_| true);
}

/// As [`check`], but for checkpoints before the last: one that could not be written in the last updates
/// of the run is not written later.
pub fn check_but_older_checkpoints(run: &Run, leg: &Leg, story: &dyn std::fmt::Debug) {
    let last = run.checkpoints().last().copied();
    let last = format!("out/checkpoint-{}/", last.unwrap_or_default());
    check_files(run, leg, story, |name| {
        !name.starts_with("out/checkpoint-") || name.starts_with(&last)
    });
}

fn check_files(run: &Run, leg: &Leg, story: &dyn std::fmt::Debug, counts: impl Fn(&str) -> bool) {
    assert!(
        leg.status.success(),
        "{story:?}: {}\n{}",
        leg.status,
        leg.said
    );
    let (expected, found) = (undisturbed().end.only(&counts), End::of(run).only(&counts));
    assert!(
        found == expected,
        "{story:?}:\n{}\nThe last process said:\n{}",
        expected.difference(&found),
        leg.said
    );
    check_times(&run.out());
}

/// The seconds of the log go on where they were.
fn check_times(out: &Path) {
    let log = fs::read_to_string(out.join("train_log.jsonl")).unwrap();
    let times: Vec<f64> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["elapsed_seconds"].as_f64())
        .collect();
    assert!(times.len() > 20 && times.is_sorted(), "{times:?}");
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Content>) {
    for name in names(folder) {
        let path = folder.join(&name);
        let shown = format!("{prefix}{name}");
        if path.is_dir() {
            collect(&path, &format!("{shown}/"), files);
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        files.insert(shown, content(&name, bytes));
    }
}

fn content(name: &str, bytes: Vec<u8>) -> Content {
    let json = |text: &str| timeless(serde_json::from_str(text).unwrap());
    match name {
        "train_log.jsonl" => {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.ends_with('\n'));
            Content::Rows(text.lines().map(json).collect())
        }
        "checkpoint.json" | "run.json" => {
            let mut value = json(std::str::from_utf8(&bytes).unwrap());
            // The checkpoint's checksum of itself covers the times.
            value.as_object_mut().unwrap().remove("blake3");
            Content::Rows(vec![value])
        }
        _ => Content::Bytes(bytes),
    }
}

/// `value` without times and what hangs on them, and without what one run differs in from another by
/// its place and its past.
fn timeless(value: Value) -> Value {
    const TIMES: [&str; 10] = [
        "elapsed_seconds",
        "tokens_per_second",
        "model_flops_per_second",
        "eval_runtime",
        "log_bytes",
        "started",
        "resumed",
        "from_cache",
        "output_dir",
        "overwrite_output_dir",
    ];
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(key, _)| !TIMES.contains(&&**key));
            Value::Object(
                kept.map(|(key, value)| (key, timeless(value)))
                    .collect::<Map<_, _>>(),
            )
        }
        Value::Array(values) => values.into_iter().map(timeless).collect(),
        other => other,
    }
}
