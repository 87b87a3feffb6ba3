//! What is known about a run: its log, its record and what lies in its folder. Only the log must be
//! there; what else cannot be read becomes a note on the page.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sft::config::Config;
use sft::engine::RunRecord;
use sft::error::ResultExt;
use sft::stop::replay::{Row, read_log};
use sft::{Error, ErrorKind, Result};

/// Names of the logs that a run leaves in its folder: ours, and a peer's.
const LOGS: [&str; 2] = ["train_log.jsonl", "trainer_state.json"];

/// Everything that the page tells about.
#[derive(Debug)]
pub struct Run {
    /// Name of the output folder, or of a log by itself.
    pub name: String,
    /// The log.
    pub log: PathBuf,
    /// Its rows.
    pub rows: Vec<Row>,
    /// Its last row, once the run has ended.
    pub end: Option<End>,
    /// `run.json`.
    pub record: Option<RunRecord>,
    /// The configuration: the given one, else the record's.
    pub config: Option<Config>,
    /// Updates that have a checkpoint folder, ascending.
    pub checkpoints: Vec<u64>,
    /// What could not be read, in whole sentences.
    pub notes: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct End {
    /// The last update.
    pub step: Option<u64>,
    /// Why, as its code; a peer's log does not say.
    pub reason: Option<String>,
    /// The rule that ended it and its numbers.
    pub detail: Option<String>,
    /// The update of the best value.
    pub best_step: Option<u64>,
    /// The best value.
    pub best_value: Option<f64>,
}

/// Whether `log` has the name that a run gives to its own, so that what lies beside it is of this run.
pub fn is_of_a_run(log: &Path) -> bool {
    log.file_name()
        .is_some_and(|name| LOGS.iter().any(|known| name == *known))
}

impl Run {
    /// Reads the run at `place`, an output folder or a log.
    ///
    /// # Errors
    /// `Io` when there is no log or it cannot be read, `Data` when it is no log.
    pub fn read(place: &Path, given: Option<Config>) -> Result<Self> {
        let log = find_log(place)?;
        let bytes = std::fs::read(&log).map_err(|e| Error::io(&log, e))?;
        let text = String::from_utf8_lossy(&bytes);
        let (text, torn) = without_torn_line(&text);
        let rows = read_log(text).context(|| log.display().to_string())?;
        let mut notes = Vec::new();
        if torn {
            notes.push("The log’s last line is torn and left out: it was being written when the run was killed, or still is.".to_owned());
        }
        let folder = log.parent().filter(|_| is_of_a_run(&log));
        let record = folder.and_then(|folder| read_record(folder, &mut notes));
        let config = given.or_else(|| {
            let config = record.as_ref()?.configuration();
            config
                .map_err(|e| {
                    notes.push(format!(
                        "The configuration in run.json cannot be used: {e}."
                    ))
                })
                .ok()
        });
        Ok(Self {
            name: name_of(&log),
            end: read_end(text),
            checkpoints: folder.map(checkpoints).unwrap_or_default(),
            log,
            rows,
            record,
            config,
            notes,
        })
    }

    /// The last update of the log.
    pub fn last_step(&self) -> u64 {
        let logged = self.rows.last().map_or(0, |row| row.step);
        self.end
            .as_ref()
            .and_then(|end| end.step)
            .unwrap_or(0)
            .max(logged)
    }
}

/// The log of `place`: itself, or the one in the folder; of a peer's folder the newest checkpoint's.
fn find_log(place: &Path) -> Result<PathBuf> {
    if !place.is_dir() {
        return Ok(place.to_owned());
    }
    let own = LOGS.map(|name| place.join(name));
    let newest = checkpoints(place)
        .last()
        .map(|step| place.join(format!("checkpoint-{step}")).join(LOGS[1]));
    own.into_iter()
        .chain(newest)
        .find(|log| log.is_file())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Io,
                format!(
                    "{} holds no {}: name the output folder of a run, or a log",
                    place.display(),
                    LOGS[0]
                ),
            )
        })
}

fn name_of(log: &Path) -> String {
    let full = std::path::absolute(log).unwrap_or_else(|_| log.to_owned());
    let named = if is_of_a_run(log) {
        full.parent()
    } else {
        Some(&*full)
    };
    let name = named.and_then(Path::file_name).unwrap_or(log.as_os_str());
    name.to_string_lossy().into_owned()
}

/// A last line without its end that is no row: the process died within it, or is within it now.
fn without_torn_line(text: &str) -> (&str, bool) {
    let begin = text.rfind('\n').map_or(0, |end| end + 1);
    let (whole, last) = text.split_at(begin);
    let is_lines = whole.trim_start().starts_with('{') && whole.lines().next() != Some("{");
    let torn = is_lines && !last.trim().is_empty() && read_log(last).is_err();
    if torn { (whole, true) } else { (text, false) }
}

fn read_record(folder: &Path, notes: &mut Vec<String>) -> Option<RunRecord> {
    if !folder.join(RunRecord::FILE_NAME).exists() {
        return None;
    }
    RunRecord::read(folder)
        .map_err(|e| notes.push(format!("{e}.")))
        .ok()
}

/// The end of a log, if its last row says that the run has ended.
fn read_end(text: &str) -> Option<End> {
    let text = text.trim_end();
    let last = text.lines().next_back()?;
    let (state, last) = match serde_json::from_str::<Value>(last) {
        Ok(row @ Value::Object(_)) => (Value::Null, row),
        _ => match serde_json::from_str(text).ok()? {
            Value::Array(mut rows) => (Value::Null, rows.pop()?),
            mut state => {
                let last = state["log_history"].as_array_mut().and_then(Vec::pop)?;
                (state, last)
            }
        },
    };
    let best_step = state["best_global_step"]
        .as_u64()
        .filter(|_| state["best_metric"].is_number());
    if last.get("stop_reason").is_none()
        && last.get("train_runtime").is_none()
        && best_step.is_none()
    {
        return None;
    }
    let text_of = |key: &str| last[key].as_str().map(str::to_owned);
    Some(End {
        step: last["step"].as_u64(),
        reason: text_of("stop_reason"),
        detail: text_of("stop_detail"),
        best_step: last["best_step"].as_u64().or(best_step),
        best_value: last["best_value"]
            .as_f64()
            .or(state["best_metric"].as_f64()),
    })
}

fn checkpoints(folder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut steps: Vec<u64> = entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_prefix("checkpoint-")?
                .parse()
                .ok()
        })
        .collect();
    steps.sort_unstable();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = "{\"step\": 1, \"loss\": 2.0}\n{\"step\": 2, \"loss\": 1.0}\n";
    const END: &str = "{\"step\": 2, \"stop_reason\": \"plateau\", \"stop_detail\": \"d\", \
                       \"best_step\": 1, \"best_value\": 0.5}\n";

    fn read(log: &str) -> Result<Run> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("train_log.jsonl"), log).unwrap();
        Run::read(folder.path(), None)
    }

    #[test]
    fn a_bare_log_is_enough() {
        let run = read(&format!("{ROWS}{END}")).unwrap();
        assert_eq!((run.rows.len(), run.last_step()), (2, 2));
        let end = run.end.unwrap();
        assert_eq!(
            (end.reason.as_deref(), end.best_value),
            (Some("plateau"), Some(0.5))
        );
        assert!(run.record.is_none() && run.config.is_none() && run.notes.is_empty());
    }

    #[test]
    fn a_torn_last_line_is_noted_and_a_torn_line_within_is_an_error() {
        let run = read(&format!("{ROWS}{{\"step\": 3, \"lo")).unwrap();
        assert_eq!((run.rows.len(), run.end), (2, None));
        assert!(run.notes[0].contains("torn"), "{:?}", run.notes);
        assert!(read(&format!("{ROWS}{{\"step\": 3, \"lo\n{ROWS}")).is_err());
        let run = read(ROWS.trim_end()).unwrap();
        assert_eq!((run.rows.len(), run.notes.len()), (2, 0));
    }

    #[test]
    fn a_run_that_goes_on_after_its_end_has_no_end() {
        let run = read(&format!("{ROWS}{END}{{\"step\": 3, \"loss\": 0.5}}\n")).unwrap();
        assert_eq!((run.rows.len(), run.end), (3, None));
    }

    #[test]
    fn an_empty_log_is_a_run_of_no_updates() {
        let run = read("").unwrap();
        assert_eq!((run.rows.len(), run.last_step(), run.end), (0, 0, None));
    }

    #[test]
    fn a_peer_s_state_has_its_best() {
        let rows = r#"[{"step": 1, "eval_loss": 2.0}, {"step": 2, "eval_loss": 3.0}]"#;
        let state = format!(
            "{{\n\"best_metric\": 2.0,\n\"best_global_step\": 1,\n\"log_history\": {rows}\n}}\n"
        );
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("checkpoint-2");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("trainer_state.json"), state).unwrap();
        let run = Run::read(folder.path(), None).unwrap();
        assert_eq!(run.rows.len(), 2);
        let end = run.end.unwrap();
        assert_eq!(
            (end.best_step, end.best_value, end.reason),
            (Some(1), Some(2.0), None)
        );
    }

    #[test]
    fn checkpoints_are_found_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "checkpoint-20",
            "checkpoint-3",
            "checkpoint-x",
            ".checkpoint-9.tmp",
        ] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("checkpoint-7"), "no folder").unwrap();
        assert_eq!(checkpoints(folder.path()), [3, 20]);
    }

    #[test]
    fn a_folder_without_a_log_says_what_it_wants() {
        let folder = tempfile::tempdir().unwrap();
        let error = Run::read(folder.path(), None).unwrap_err();
        assert!(error.to_string().contains("train_log.jsonl"), "{error}");
    }

    #[test]
    fn a_broken_record_is_a_note() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("train_log.jsonl"), ROWS).unwrap();
        std::fs::write(folder.path().join("run.json"), "{").unwrap();
        let run = Run::read(folder.path(), None).unwrap();
        assert!(
            run.record.is_none() && run.notes[0].contains("run.json"),
            "{:?}",
            run.notes
        );
    }
}
