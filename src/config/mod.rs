//! The configuration of a run: one flat struct whose keys are TRL's where TRL has the thing, with
//! TRL's defaults, so that a configuration written for `SFTTrainer` runs as it is.
//!
//! A key enters by one of four doors (YAML or JSON file, JSON text, a typed setter, a command line
//! word) and all of them lead through `Config::merge`: known key, known peer key (`peer`), or an
//! error that names the nearest known key. [`Config::validate`] then looks at the whole.

mod eval_datasets;
mod fields;
mod metrics;
mod peer;
mod read;
mod resume;
mod validate;
mod values;

use std::path::Path;

use serde_json::{Map, Value};

pub use eval_datasets::EvalDatasets;
pub use fields::{Config, KeyInfo, keys};
pub use peer::{PeerKey, peer_keys};
pub(crate) use resume::{Changes, list_changes};
pub use values::{
    Amount, Device, EvalStrategy, Gemm, KeyNames, LossType, PackingStrategy, ReportTo, ResumeFrom,
    SamplingStrategy, SaveStrategy, Setting,
};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::stop::StopConfig;

impl Config {
    /// A configuration from YAML (or JSON) text over the defaults. `origin` is the file's name for
    /// messages.
    ///
    /// # Errors
    /// `Config` for malformed text or a value of the wrong type, `UnknownKey`, `Unsupported`; each
    /// with `origin:line`.
    pub fn from_yaml_str(text: &str, origin: &str) -> Result<Self> {
        let mut config = Config::default();
        config.merge_text(text, origin)?;
        Ok(config)
    }

    /// A configuration from the YAML or JSON file at `path` over the defaults.
    ///
    /// # Errors
    /// `Io` if it cannot be read, else as [`Config::from_yaml_str`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let mut config = Config::default();
        config.merge_file(path)?;
        Ok(config)
    }

    /// Merges the YAML or JSON file at `path` over what is set so far; on an error nothing changes.
    ///
    /// # Errors
    /// As [`Config::from_file`].
    pub fn merge_file(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        self.merge_text(&text, &path.display().to_string())
    }

    /// Merges YAML or JSON text over what is set so far; on an error nothing changes.
    ///
    /// # Errors
    /// As [`Config::from_yaml_str`].
    pub fn merge_text(&mut self, text: &str, origin: &str) -> Result<()> {
        let map = read::document(text, origin)?;
        let mut merged = self.clone();
        for (key, value) in map {
            merged
                .merge(&key, value)
                .context(|| match read::line_of_key(text, &key) {
                    Some(line) => format!("{origin}:{line}"),
                    None => origin.to_owned(),
                })?;
        }
        *self = merged;
        Ok(())
    }

    /// Merges a JSON object over what is set so far; on an error nothing changes.
    ///
    /// # Errors
    /// As [`Config::from_yaml_str`].
    pub fn merge_json(&mut self, json: &str) -> Result<()> {
        let map = read::json_object(json)?;
        let mut merged = self.clone();
        for (key, value) in map {
            merged.merge(&key, value)?;
        }
        *self = merged;
        Ok(())
    }

    /// Sets one key to a typed value. Text is taken as the key needs it: `"5"` sets a number,
    /// `"null"` clears an optional key, JSON or flow YAML sets a nested one such as `stop`. A key
    /// with dots reaches inside a nested one: `lr_scheduler_kwargs.num_cycles`.
    ///
    /// # Errors
    /// `Config` for a value of the wrong type or that is not finite, `UnknownKey`, `Unsupported`.
    pub fn set(&mut self, key: &str, value: impl Into<Setting>) -> Result<()> {
        match value.into() {
            Setting::Bool(b) => self.set_value(key, Value::Bool(b)),
            Setting::Int(i) => self.set_value(key, Value::from(i)),
            Setting::Float(x) if x.is_finite() => self.set_value(key, Value::from(x)),
            Setting::Float(x) => Err(Error::new(
                ErrorKind::Config,
                format!("{key}: expected a finite number, found {x}"),
            )),
            Setting::Str(text) => self.set_text(key, &text),
        }
    }

    /// The readings of `text`, the most literal first: only a key whose type refuses the text as it
    /// stands gets it read as YAML, so that an `eos_token` of `"1"` stays text. Below a nested key there
    /// may be no type to refuse anything, as in `lr_scheduler_kwargs`: there YAML comes first.
    fn set_text(&mut self, key: &str, text: &str) -> Result<()> {
        if text == "null" && self.set_value(key, Value::Null).is_ok() {
            return Ok(());
        }
        if key.contains('.')
            && let Some(value) = read::scalar(text)
            && self.set_value(key, value).is_ok()
        {
            return Ok(());
        }
        let literal = self.set_value(key, Value::from(text));
        match (&literal, read::scalar(text)) {
            (Err(e), Some(value)) if e.kind() != ErrorKind::UnknownKey => {
                self.set_value(key, value)
            }
            _ => literal,
        }
    }

    fn set_value(&mut self, key: &str, value: Value) -> Result<()> {
        let Some((head, rest)) = key.split_once('.') else {
            return self.merge(key, value);
        };
        let mut tree = self.value_of(head).unwrap_or(Value::Null);
        let mut node = &mut tree;
        for part in rest.split('.') {
            if node.is_null() {
                *node = Value::Object(Map::new());
            }
            let Value::Object(map) = node else {
                let message = format!("{key}: `{part}` stands below a value that holds no keys");
                return Err(Error::new(ErrorKind::Config, message));
            };
            node = map.entry(part).or_insert(Value::Null);
        }
        *node = value;
        self.merge(head, tree)
    }

    /// All keys with their values, defaults included, as JSON; merging it into a default
    /// configuration gives this one again.
    pub fn to_json(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or(Value::Null);
        serde_json::to_string_pretty(&value).unwrap_or_default()
    }

    fn value_of(&self, key: &str) -> Option<Value> {
        let Ok(Value::Object(mut map)) = serde_json::to_value(self) else {
            return None;
        };
        map.remove(key)
    }

    /// The one door: every key and value comes through here.
    fn merge(&mut self, key: &str, value: Value) -> Result<()> {
        let (key, value) = values::peer_spelling(key, value);
        if !keys().iter().any(|known| known.name == key) {
            return peer::accept(&key, &value);
        }
        peer::refuse_value(&key, &value)?;
        if key == "stop" {
            self.stop = StopConfig::from_value(value)?;
            return Ok(());
        }
        let Ok(Value::Object(mut map)) = serde_json::to_value(&*self) else {
            return Err(Error::new(
                ErrorKind::Internal,
                "the configuration is no JSON object",
            ));
        };
        map.insert(key.clone(), value);
        *self = serde_path_to_error::deserialize(Value::Object(map))
            .map_err(|e| read::type_error(&key, &e))?;
        Ok(())
    }
}
