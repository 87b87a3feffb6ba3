//! `config.json` as a checked dictionary: every reader names the file, the key, the value that it
//! found and what it expected.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Result};

/// The object in `config.json` (or a part of it) and where it stands.
#[derive(Clone, Debug)]
pub struct ConfigJson {
    place: String,
    /// Dotted path of the part, ending in a dot; empty for the whole file.
    prefix: String,
    object: Map<String, Value>,
}

/// Reads the JSON object in the file at `path`.
///
/// # Errors
/// [`ErrorKind::Model`] names the file, and the line and column of a syntax error.
pub fn read_json_object(path: &Path) -> Result<Map<String, Value>> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::new(ErrorKind::Model, format!("cannot read {name}")).with_source(e))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::new(
            ErrorKind::Model,
            format!("{name}: expected a JSON object"),
        )),
        Err(e) => {
            Err(Error::new(ErrorKind::Model, format!("{name}: not valid JSON")).with_source(e))
        }
    }
}

impl ConfigJson {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// As [`read_json_object`].
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::new(
            path.display().to_string(),
            read_json_object(path)?,
        ))
    }

    /// An object that is already in memory; `place` names it in errors.
    pub fn new(place: impl Into<String>, object: Map<String, Value>) -> Self {
        Self {
            place: place.into(),
            prefix: String::new(),
            object,
        }
    }

    /// The file's name.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The object under `key`, whose own keys are then named `key.…`.
    pub(super) fn part(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Self {
                place: self.place.clone(),
                prefix: format!("{}{key}.", self.prefix),
                object: object.clone(),
            })),
            Some(_) => Err(self.invalid(key, "an object or null")),
        }
    }

    /// The value of `key`, null included.
    pub(super) fn optional(&self, key: &str) -> Option<&Value> {
        self.object.get(key)
    }

    /// The value of `key` unless it is null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn required_str(&self, key: &str) -> Result<&str> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        value.as_str().ok_or_else(|| self.invalid(key, "a string"))
    }

    pub(super) fn str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.invalid(key, "a string")),
        }
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.invalid(key, "true or false")),
        }
    }

    /// A positive integer that must be there.
    pub(super) fn required_size(&self, key: &str) -> Result<usize> {
        match self.get(key) {
            None => Err(self.missing(key)),
            Some(_) => self.size_or(key, 0),
        }
    }

    /// A positive integer.
    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match integer(value) {
                Some(n) if n > 0 => Ok(n),
                _ => Err(self.invalid(key, "a positive integer")),
            },
        }
    }

    /// An integer that may be zero.
    pub(super) fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                integer(value).ok_or_else(|| self.invalid(key, "a non-negative integer"))
            }
        }
    }

    pub(super) fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.invalid(key, "a number")),
        }
    }

    pub(super) fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.f64_or(key, default)? {
            x if x > 0.0 && x.is_finite() => Ok(x),
            _ => Err(self.invalid(key, "a positive number")),
        }
    }

    pub(super) fn required_positive(&self, key: &str) -> Result<f64> {
        match self.get(key) {
            None => Err(self.missing(key)),
            Some(_) => self.positive_or(key, 0.0),
        }
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        let close = self
            .object
            .keys()
            .map(|k| (edit_distance(k, key), k))
            .filter(|(distance, _)| *distance <= 2)
            .min();
        let hint = match close {
            Some((_, k)) => format!("; is `{}{k}` a misspelling of it?", self.prefix),
            None => String::new(),
        };
        Error::new(
            ErrorKind::Model,
            format!(
                "{}: required key `{}{key}` is missing{hint}",
                self.place, self.prefix
            ),
        )
    }

    pub(super) fn invalid(&self, key: &str, expected: &str) -> Error {
        let value = self.object.get(key).unwrap_or(&Value::Null).to_string();
        self.invalid_value(key, &value, expected)
    }

    pub(super) fn invalid_value(&self, key: &str, value: &str, expected: &str) -> Error {
        Error::new(
            ErrorKind::Model,
            format!(
                "{}: key `{}{key}` is {value}, expected {expected}",
                self.place, self.prefix
            ),
        )
    }

    pub(super) fn unsupported(&self, key: &str, supported: &str) -> Error {
        let value = self.object.get(key).unwrap_or(&Value::Null);
        Error::new(
            ErrorKind::UnsupportedModel,
            format!(
                "{}: key `{}{key}` is {value}, which is not supported; supported: {supported}",
                self.place, self.prefix
            ),
        )
    }
}

/// A non-negative integer; some writers spell it `4.0`.
fn integer(value: &Value) -> Option<usize> {
    let exact = |x: f64| (x >= 0.0 && x.fract() == 0.0 && x < 9e15).then_some(x as usize);
    match value.as_u64() {
        Some(n) => usize::try_from(n).ok(),
        None => value.as_f64().and_then(exact),
    }
}

/// Levenshtein distance in bytes; keys are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
