//! `run.json`: what a run was made of, beside the log of how it went. Written when a run starts and
//! again when it is resumed, whole or not at all; read by whoever looks back at a run.

use super::any_network::AnyNetwork;
use crate::config::Config;
use crate::data::DataReport;
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::io::write_file;
use crate::memory::{MemoryPlan, SegmentKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// What a run was made of. Keys that a later version adds are passed over by this one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this file's form; see [`RunRecord::FORMAT`].
    pub format: u32,
    /// The library that wrote it: its name and version, such as `libsft 0.1.0`.
    pub library: String,
    /// When the run was first started: RFC 3339, in UTC, to the second.
    pub started: String,
    /// Each time it was resumed since, oldest first.
    #[serde(default)]
    pub resumed: Vec<Resumption>,
    /// The device in words.
    pub device: String,
    /// The format that matrix products read: `float32`, `bfloat16` or `float16`.
    pub precision: String,
    /// Floating-point operations a second of the matrix products that the run's speed is held against,
    /// with `measure_ceiling`, as measured at the last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling_flops_per_second: Option<f64>,
    /// Updates planned, if the budget says so.
    pub total_steps: Option<u64>,
    /// The model.
    pub model: ModelRecord,
    /// What became of the rows: `train`, `eval`, and `eval_<name>` for named sets. Empty where the
    /// host feeds all batches.
    #[serde(default)]
    pub data: BTreeMap<String, DataReport>,
    /// The memory plan.
    pub memory: MemoryRecord,
    /// Every key of the configuration, defaults included; see [`RunRecord::configuration`].
    pub config: Map<String, Value>,
}

/// One time that a run was resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumption {
    /// The update that the checkpoint stood at.
    pub step: u64,
    /// When: RFC 3339, in UTC, to the second.
    pub at: String,
}

/// The model of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// `model_type` of its `config.json`, such as `llama`.
    pub model_type: String,
    /// Numbers in all its tensors.
    pub parameters: u64,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Longest sequence that the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the LM head is the embedding table.
    pub tie_word_embeddings: bool,
}

/// The totals of a memory plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// Size of the arena, in bytes.
    pub total_bytes: usize,
    /// Bytes by what they are for (`weights`, `gradients`, …). Tensors that share bytes count each, so
    /// these may sum to more than the arena.
    pub bytes_of: BTreeMap<SegmentKind, usize>,
}

impl RunRecord {
    /// Name of the file in the output folder.
    pub const FILE_NAME: &'static str = "run.json";
    /// The newest form of the file that this version writes and reads.
    pub const FORMAT: u32 = 1;

    /// Reads the record in the output folder of a run.
    ///
    /// # Errors
    /// `Io` if the file cannot be read, `Data` if it is no such record or of a later form.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(Self::FILE_NAME);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let record: Self = serde_json::from_str(&text).map_err(|e| {
            let message = format!("{} is not the record of a run", path.display());
            Error::new(ErrorKind::Data, message).with_source(e)
        })?;
        if record.format > Self::FORMAT {
            let message = format!(
                "{} has form {}, this version reads up to {}: read it with {} or later",
                path.display(),
                record.format,
                Self::FORMAT,
                record.library
            );
            return Err(Error::new(ErrorKind::Data, message));
        }
        Ok(record)
    }

    /// The configuration of the run's last start, relative paths as they were written.
    ///
    /// # Errors
    /// As [`Config::merge_json`], where this version does not know a key or a value.
    pub fn configuration(&self) -> Result<Config> {
        let mut config = Config::default();
        config.merge_json(&Value::Object(self.config.clone()).to_string())?;
        Ok(config)
    }

    /// The record of a run that starts now.
    pub(super) fn new(
        config: &Config,
        network: &dyn AnyNetwork,
        precision: DType,
        data: BTreeMap<String, DataReport>,
        total_steps: Option<u64>,
    ) -> Self {
        let spec = network.spec();
        let config = match serde_json::to_value(config) {
            Ok(Value::Object(keys)) => keys,
            _ => Map::new(),
        };
        Self {
            format: Self::FORMAT,
            library: format!("libsft {}", env!("CARGO_PKG_VERSION")),
            started: now(),
            resumed: Vec::new(),
            device: network.device(),
            precision: precision.to_string(),
            ceiling_flops_per_second: None,
            total_steps,
            model: ModelRecord {
                model_type: spec.model_type.clone(),
                parameters: network.table().num_parameters() as u64,
                num_layers: spec.num_layers,
                hidden_size: spec.hidden_size,
                intermediate_size: spec.intermediate_size,
                num_heads: spec.num_heads,
                num_kv_heads: spec.num_kv_heads,
                vocab_size: spec.vocab_size,
                max_position_embeddings: spec.max_position_embeddings,
                tie_word_embeddings: spec.tie_word_embeddings,
            },
            data,
            memory: MemoryRecord::of(network.plan()),
            config,
        }
    }

    /// Makes this the record of a run that goes on after update `step`: the first start and earlier
    /// resumptions are taken over from `earlier`, the record of the leg before, if there is one.
    pub(super) fn resumed(mut self, earlier: Option<RunRecord>, step: u64) -> Self {
        let at = std::mem::take(&mut self.started);
        (self.started, self.resumed) = match earlier {
            Some(earlier) => (earlier.started, earlier.resumed),
            None => (at.clone(), Vec::new()),
        };
        self.resumed.push(Resumption { step, at });
        self
    }

    /// Writes the record into `folder`, in place of an earlier one.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "the record of the run").with_source(e))?;
        write_file(folder.join(Self::FILE_NAME), |file| {
            file.write(text.as_bytes())?;
            file.write(b"\n")
        })
    }
}

impl MemoryRecord {
    fn of(plan: &MemoryPlan) -> Self {
        let mut bytes_of = BTreeMap::new();
        for segment in &plan.segments {
            *bytes_of.entry(segment.kind).or_default() += segment.bytes;
        }
        Self {
            total_bytes: plan.total_bytes,
            bytes_of,
        }
    }
}

/// The time, in UTC, to the second.
fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RunRecord {
        let mut config = Config::default();
        config
            .merge_json(r#"{"max_steps": 7, "stop": [{"rule": "target", "metric": "eval_loss", "at_most": 1.5}]}"#)
            .unwrap();
        let Ok(Value::Object(config)) = serde_json::to_value(config) else {
            panic!("a configuration is an object");
        };
        RunRecord {
            format: RunRecord::FORMAT,
            library: "libsft 0.1.0".into(),
            started: "2026-01-02T03:04:05Z".into(),
            resumed: Vec::new(),
            device: "CPU".into(),
            precision: "float32".into(),
            ceiling_flops_per_second: Some(4.5e11),
            total_steps: Some(7),
            model: ModelRecord {
                model_type: "llama".into(),
                parameters: 1000,
                num_layers: 2,
                hidden_size: 8,
                intermediate_size: 16,
                num_heads: 2,
                num_kv_heads: 1,
                vocab_size: 50,
                max_position_embeddings: 64,
                tie_word_embeddings: false,
            },
            data: BTreeMap::from([("train".into(), DataReport::default())]),
            memory: MemoryRecord {
                total_bytes: 256,
                bytes_of: BTreeMap::from([(SegmentKind::Weights, 128)]),
            },
            config,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        record().write(folder.path()).unwrap();
        let back = RunRecord::read(folder.path()).unwrap();
        assert_eq!(back, record());
        let config = back.configuration().unwrap();
        assert_eq!((config.max_steps, config.stop.rules.len()), (7, 1));
    }

    #[test]
    fn the_first_start_outlives_every_resumption() {
        let now = |at: &str| RunRecord {
            started: at.into(),
            ..record()
        };
        let second = now("2026-01-03T00:00:00Z").resumed(Some(record()), 4);
        let third = now("2026-01-04T00:00:00Z").resumed(Some(second), 6);
        assert_eq!(third.started, record().started);
        let resumed: Vec<_> = third.resumed.iter().map(|r| (r.step, &r.at[..])).collect();
        let expected = [(4, "2026-01-03T00:00:00Z"), (6, "2026-01-04T00:00:00Z")];
        assert_eq!(resumed, expected);
    }

    #[test]
    fn a_run_whose_earlier_record_is_lost_starts_when_it_is_resumed() {
        let resumed = record().resumed(None, 4);
        assert_eq!(resumed.started, record().started);
        assert_eq!(resumed.resumed.len(), 1);
    }

    #[test]
    fn a_later_form_is_refused_with_the_version_that_wrote_it() {
        let folder = tempfile::tempdir().unwrap();
        let later = RunRecord {
            format: RunRecord::FORMAT + 1,
            library: "libsft 9.9.9".into(),
            ..record()
        };
        later.write(folder.path()).unwrap();
        let error = RunRecord::read(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.to_string().contains("libsft 9.9.9"), "{error}");
    }

    #[test]
    fn keys_of_a_later_version_are_passed_over() {
        let mut value = serde_json::to_value(record()).unwrap();
        value["weather"] = "fine".into();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(RunRecord::FILE_NAME), value.to_string()).unwrap();
        assert_eq!(RunRecord::read(folder.path()).unwrap(), record());
    }

    #[test]
    fn the_time_is_utc_to_the_second() {
        let now = now();
        assert_eq!((now.len(), now.ends_with('Z')), (20, true), "{now}");
    }
}
