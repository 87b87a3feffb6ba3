//! Text to values: YAML and JSON documents, single words of the command line, and the line a key
//! stands on.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// The top-level mapping of a YAML or JSON document; an empty document is an empty mapping.
pub(super) fn document(text: &str, origin: &str) -> Result<Map<String, Value>> {
    let value = if text.trim_start().starts_with('{') {
        serde_json::from_str::<Node>(text)
            .map_err(|e| malformed(origin, Some((e.line(), e.column())), &e.to_string()))?
            .0
    } else if text
        .lines()
        .all(|line| line.trim_start().starts_with('#') || line.trim().is_empty())
    {
        Value::Object(Map::new())
    } else {
        yaml(text).map_err(|e| {
            let place = e
                .location()
                .map(|at| (at.line() as usize, at.column() as usize));
            let words = e.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            malformed(origin, place, &words)
        })?
    };
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Error::new(
            ErrorKind::Config,
            format!(
                "{origin}: expected keys and values, found {}",
                kind_of(&other)
            ),
        )),
    }
}

/// A document that its reader refuses; `place` is the line and the column, from 1.
fn malformed(origin: &str, place: Option<(usize, usize)>, words: &str) -> Error {
    let mut message = origin.to_owned();
    if let Some((line, column)) = place {
        message += &format!(":{line}:{column}");
    }
    // Both readers end with the place, which stands in front here.
    let words = words
        .rsplit_once(" at line ")
        .map_or(words, |(words, _)| words);
    Error::new(
        ErrorKind::Config,
        format!("{message}: not valid YAML or JSON: {words}"),
    )
}

/// A JSON object.
pub(super) fn json_object(json: &str) -> Result<Map<String, Value>> {
    let wrong = || Error::new(ErrorKind::Config, "the configuration is not a JSON object");
    match serde_json::from_str::<Node>(json) {
        Ok(Node(Value::Object(map))) => Ok(map),
        Ok(Node(other)) => Err(wrong().with_source(format!("found {}", kind_of(&other)))),
        Err(e) => Err(wrong().with_source(e)),
    }
}

/// One word of the command line (or a C string) read as YAML; `None` if it is not valid YAML.
pub(super) fn scalar(text: &str) -> Option<Value> {
    yaml(text).ok()
}

/// NaN and infinity become text, so that a key which needs a number refuses them by name.
fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Node>(text, options).map(|node| node.0)
}

/// The 1-based line on which the top-level `key` stands.
pub(super) fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let in_yaml = |line: &str| {
        let line = line.trim_matches(['"', '\'']);
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    };
    let in_json = |line: &str| {
        let quoted = format!("\"{key}\"");
        line.split_once(&quoted)
            .is_some_and(|(_, rest)| rest.trim_start().starts_with(':'))
    };
    text.lines()
        .position(|line| in_yaml(line) || in_json(line))
        .map(|index| index + 1)
}

/// `key.path: expected …, found …` from serde's error.
pub(super) fn type_error(
    key: &str,
    error: &serde_path_to_error::Error<serde_json::Error>,
) -> Error {
    let path = error.path().to_string();
    let place = if path.starts_with(key) {
        path.as_str()
    } else {
        key
    };
    let text = error.inner().to_string();
    let message = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|start| text.strip_prefix(start))
        .and_then(|rest| rest.rsplit_once(", expected "))
        .map_or(text.clone(), |(found, expected)| {
            format!("expected {}, found {found}", in_words(expected))
        });
    Error::new(ErrorKind::Config, format!("{place}: {message}"))
}

fn in_words(rust_type: &str) -> &str {
    match rust_type {
        "f64" | "f32" => "a number",
        "usize" | "u64" | "u32" => "a whole number from 0",
        "i64" | "i32" => "a whole number",
        "a boolean" => "true or false",
        "a string" | "path string" => "text",
        other => other,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// A JSON value whose mappings hold each key once.
struct Node(Value);

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor).map(Node)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E>(self, i: i64) -> Result<Value, E> {
        Ok(Value::from(i))
    }

    fn visit_u64<E>(self, u: u64) -> Result<Value, E> {
        Ok(Value::from(u))
    }

    fn visit_f64<E>(self, x: f64) -> Result<Value, E> {
        Ok(if x.is_finite() {
            Value::from(x)
        } else {
            Value::from(x.to_string())
        })
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Node(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Node(value))) = access.next_entry::<String, Node>()? {
            if map.insert(key.clone(), value).is_some() {
                return Err(serde::de::Error::custom(format!(
                    "the key `{key}` stands twice"
                )));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_one_writes_learning_rates() {
        for text in ["2e-5", "2.0e-5", "0.00002", "2E-5"] {
            assert_eq!(scalar(text), Some(Value::from(2e-5)), "{text}");
        }
        assert_eq!(scalar("-1"), Some(Value::from(-1)));
        assert_eq!(scalar("no"), Some(Value::from(false)), "as PyYAML reads it");
        assert_eq!(scalar(".nan"), Some(Value::from(".nan")));
    }

    #[test]
    fn a_key_is_found_on_its_own_line_only() {
        let yaml = "max_steps_total: 1\n# max_steps: 3\nmax_steps: 2\n";
        assert_eq!(line_of_key(yaml, "max_steps"), Some(3));
        assert_eq!(line_of_key("{\n \"seed\" : 1\n}", "seed"), Some(2));
        assert_eq!(line_of_key(yaml, "seed"), None);
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        for text in ["seed: 1\nseed: 2\n", "{\"seed\": 1,\n\"seed\": 2}"] {
            let error = document(text, "run.yaml").unwrap_err().to_string();
            assert!(error.starts_with("run.yaml:2:"), "{error}");
            assert!(error.contains("seed"), "{error}");
        }
    }

    #[test]
    fn what_no_reader_takes_is_named_with_its_place_once() {
        for (text, start) in [
            ("max_steps: 1\nstop: [\n", "run.yaml:"),
            ("max_steps: 1\nstop: ]\n", "run.yaml:2:7: not valid"),
            (
                "{\"max_steps\": 1,\n \"seed\" 2}",
                "run.yaml:2:9: not valid",
            ),
        ] {
            let error = document(text, "run.yaml").unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
            assert!(!error.contains(" at line "), "{error}");
        }
    }

    #[test]
    fn an_empty_or_commented_document_sets_nothing() {
        for text in ["", "\n", "# only a comment\n\n"] {
            assert!(document(text, "run.yaml").unwrap().is_empty());
        }
        assert!(
            document("- 1\n", "run.yaml")
                .unwrap_err()
                .to_string()
                .contains("a list")
        );
    }
}
