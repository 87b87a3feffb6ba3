//! Where generation begins and ends: the special token ids of a model folder.

use std::path::Path;

use serde_json::{Map, Value};

use super::families::{Family, read_json_object};
use crate::{Error, ErrorKind, Result};

/// Token ids that `generation_config.json` or else `config.json` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationDefaults {
    /// The token that begins a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Any of these ends generation. Empty: nothing but the length does.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills up a padded batch, if the model has one.
    pub pad_token_id: Option<u32>,
}

impl GenerationDefaults {
    /// Reads the ids of the model folder `dir`; a key that `generation_config.json` lacks is taken from
    /// `config.json`, and one that both lack has the family's default.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a broken file or an id that is no token id.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = Source::open(dir, "config.json")?;
        let generation = match dir.join("generation_config.json").is_file() {
            true => Source::open(dir, "generation_config.json")?,
            false => Source::default(),
        };
        let family = config.object.get("model_type").and_then(Value::as_str);
        let family = family.and_then(|t| Family::of(t).ok());
        let ids = |key: &str, default: Option<u32>| -> Result<Vec<u32>> {
            Ok(match generation.ids(key)? {
                Some(ids) => ids,
                // A null is a statement: this model has no such token.
                None if config.object.contains_key(key) => config.ids(key)?.unwrap_or_default(),
                None => default.into_iter().collect(),
            })
        };
        let first = |ids: Vec<u32>| ids.first().copied();
        Ok(Self {
            bos_token_id: ids("bos_token_id", family.and_then(|f| f.default_bos_token_id))
                .map(first)?,
            eos_token_ids: ids("eos_token_id", family.and_then(|f| f.default_eos_token_id))?,
            pad_token_id: ids("pad_token_id", None).map(first)?,
        })
    }
}

#[derive(Default)]
struct Source {
    place: String,
    object: Map<String, Value>,
}

impl Source {
    fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let object = read_json_object(&path)?;
        Ok(Self {
            place: path.display().to_string(),
            object,
        })
    }

    /// One id or a list of them; `None` when absent or null.
    fn ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let invalid = |value: &Value| {
            Error::new(
                ErrorKind::Model,
                format!(
                    "{}: key `{key}` is {value}, expected a token id or a list",
                    self.place
                ),
            )
        };
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| invalid(value))
        };
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => list.iter().map(id).collect::<Result<_>>().map(Some),
            // -1 is how some tools write "none".
            Some(value) if value.as_i64() == Some(-1) => Ok(Some(Vec::new())),
            Some(value) => Ok(Some(vec![id(value)?])),
        }
    }
}
