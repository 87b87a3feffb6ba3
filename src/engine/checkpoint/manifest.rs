//! The manifest: the state of a run at an update and what the checkpoint's other files hold.
//!
//! The file is one JSON object whose first line holds the BLAKE3 checksum of all bytes after that line.
//! The line itself has no freedom, so that no bit of the file can change unnoticed.

use super::{BEST, MANIFEST, MODEL};
use crate::config::Config;
use crate::data::Position;
use crate::error::{Error, ErrorKind, Result};
use crate::io::FileSummary;
use crate::stop::StopState;
use crate::train::LossScale;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The format that is written. A reader knows this one and all before it.
pub(super) const FORMAT: u32 = 1;

/// Where a run stands after an update, weights and moments apart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::engine) struct RunState {
    /// Updates done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Tokens seen.
    pub total_tokens: u64,
    /// Updates that were not applied, since their gradient was not finite.
    pub skipped_updates: u64,
    /// Updates that took effect: AdamW's t.
    pub optimizer_updates: u64,
    /// Time that the run has taken, over all its resumptions.
    pub elapsed_seconds: f64,
    /// The length of the run, where it is known.
    pub total_steps: Option<u64>,
    /// The next update to take from the training rows; `None` when the host feeds its own batches.
    pub position: Option<Position>,
    /// The compute format, such as `bfloat16`.
    pub precision: String,
    /// In float16.
    pub loss_scale: Option<LossScale>,
    /// What the stop rules remember.
    pub stop: StopState,
    /// Length of the log at this moment, in bytes.
    pub log_bytes: u64,
    /// The configuration that the run was started with. Keys that a later library added have their
    /// defaults.
    #[serde(deserialize_with = "merged_config")]
    pub config: Config,
    /// Fingerprints of the rows by set: `train`, `eval`, `eval_NAME`.
    pub data: BTreeMap<String, String>,
}

fn merged_config<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
    let keys = serde_json::Value::deserialize(deserializer)?;
    let mut config = Config::default();
    (config.merge_json(&keys.to_string())).map_err(D::Error::custom)?;
    Ok(config)
}

/// The best weights of the run so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct BestPlace {
    /// The update that they are of.
    pub step: u64,
    /// What their files begin with: `model` when they are the checkpoint's own, else `best_model`.
    pub files: String,
}

/// All of `checkpoint.json` but its checksum.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::engine) struct Manifest {
    /// [`FORMAT`] of its writer.
    pub format: u32,
    /// The version of the library that wrote it.
    pub library: String,
    /// Where the run stood.
    pub state: RunState,
    /// The best weights, if the run keeps them.
    pub best: Option<BestPlace>,
    /// Every other file of the checkpoint.
    pub files: Vec<FileSummary>,
}

/// What must be known before the rest can be read.
#[derive(Deserialize)]
struct Origin {
    format: u32,
    library: String,
}

/// A manifest of a later library. It is not damaged.
#[derive(Debug, thiserror::Error)]
#[error(
    "version {0} of the library wrote it, this is {version}: use a newer library",
    version = env!("CARGO_PKG_VERSION")
)]
pub(super) struct NewerFormat(String);

/// The first line, around the checksum's digits.
const BEFORE: &[u8] = b"{\n  \"blake3\": \"";
const AFTER: &[u8] = b"\",\n";
const DIGITS: usize = 2 * blake3::OUT_LEN;

impl Manifest {
    /// The bytes of `checkpoint.json`.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_vec_pretty(self).map_err(|e| {
            Error::new(ErrorKind::Internal, "the manifest is no JSON").with_source(e)
        })?;
        // Without the brace and the line break that `BEFORE` has.
        let rest = [&text[2..], b"\n"].concat();
        let checksum = blake3::hash(&rest).to_hex();
        Ok([BEFORE, checksum.as_bytes(), AFTER, &rest].concat())
    }

    /// Reads and checks the manifest of `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::new(
                    ErrorKind::Checkpoint,
                    format!(
                        "{MANIFEST} is missing, without which there is no run to go on with; a model \
                         folder is trained further by model_name_or_path"
                    ),
                ));
            }
            read => read.map_err(|e| Error::io(&path, e))?,
        };
        Self::decode(&bytes).map_err(|e| e.context(path.display().to_string()))
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let broken = |what: &str| Error::new(ErrorKind::Checkpoint, what);
        let damaged = || broken("is damaged: it does not have the checksum that it names");
        let rest = bytes.strip_prefix(BEFORE).ok_or_else(damaged)?;
        let (digits, rest) = rest.split_at_checked(DIGITS).ok_or_else(damaged)?;
        let rest = rest.strip_prefix(AFTER).ok_or_else(damaged)?;
        if digits != blake3::hash(rest).to_hex().as_bytes() {
            return Err(damaged());
        }
        let malformed = |e| broken("is not a manifest").with_source(e);
        let origin: Origin = serde_json::from_slice(bytes).map_err(malformed)?;
        if origin.format > FORMAT {
            let message = format!("has format {}, which is not known", origin.format);
            return Err(broken(&message).with_source(NewerFormat(origin.library)));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// What a checksum does not say: that the names lead nowhere else.
    fn check(&self) -> Result<()> {
        let inside = |name: &str| {
            let parts = Path::new(name).components();
            parts.count() > 0
                && (Path::new(name).components())
                    .all(|part| matches!(part, std::path::Component::Normal(_)))
        };
        let names = self.files.iter().map(|file| file.name.as_str());
        let best = self.best.iter().map(|best| best.files.as_str());
        let wrong = (names.filter(|name| !inside(name)))
            .chain(best.filter(|stem| ![MODEL, BEST].contains(stem)))
            .next();
        match wrong {
            None => Ok(()),
            Some(name) => Err(Error::new(
                ErrorKind::Checkpoint,
                format!("names {name:?}, which is no file of a checkpoint"),
            )),
        }
    }
}
