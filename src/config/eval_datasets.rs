//! The evaluation rows that a configuration names: one set without a name, or several with names.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};
use crate::report::EvalSetReport;
use crate::suggest::did_you_mean;

/// Evaluation rows: a path, or a mapping of names to paths.
///
/// Each named set gives its own numbers beside those of all together: `eval_<name>_loss` and
/// `eval_<name>_mean_token_accuracy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvalDatasets {
    /// One set without a name.
    One(PathBuf),
    /// Names and paths, in the order in which they were written.
    Named(Vec<(String, PathBuf)>),
}

impl EvalDatasets {
    /// The sets in order: the name, if it has one, and the path.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&str>, &Path)> {
        let (one, named) = match self {
            EvalDatasets::One(path) => (Some(path.as_path()), &[][..]),
            EvalDatasets::Named(sets) => (None, &sets[..]),
        };
        let named = named
            .iter()
            .map(|(name, path)| (Some(name.as_str()), path.as_path()));
        one.into_iter().map(|path| (None, path)).chain(named)
    }

    /// The names of the sets that have one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().filter_map(|(name, _)| name)
    }

    /// Checks that names are identifiers, so that they can stand within a metric's name, and that none
    /// stands for something else already.
    pub(super) fn validate(&self) -> Result<()> {
        let wrong = |place: &str, message: String| {
            let message = format!("eval_dataset_name{place}: {message}");
            Err(Error::new(ErrorKind::Config, message))
        };
        let EvalDatasets::Named(sets) = self else {
            return Ok(());
        };
        if sets.is_empty() {
            return wrong("", "names no set; name one, or remove the key".into());
        }
        for (i, (name, _)) in sets.iter().enumerate() {
            let place = format!(".{name}");
            let mut letters = name.chars();
            let starts = |c: char| c.is_ascii_alphabetic() || c == '_';
            let follows = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if !letters.next().is_some_and(starts) || !letters.all(follows) {
                let message = "the name of a set becomes part of `eval_<name>_loss`, so it is made \
                               of letters, digits and _ and begins with none of the digits";
                return wrong(&place, message.into());
            }
            if name == "eval" || name.starts_with("eval_") {
                let message = "every metric of an evaluation begins with eval_ already; drop it from \
                               the name";
                return wrong(&place, message.into());
            }
            let same = |(other, _): &&(String, PathBuf)| other.eq_ignore_ascii_case(name);
            if let Some((other, _)) = sets[..i].iter().find(same) {
                return wrong(&place, format!("clashes with the set {other}; rename one"));
            }
        }
        Ok(())
    }

    /// Whether `metric` is a number of one of the named sets.
    ///
    /// # Errors
    /// The message, for a metric that has the form of a set's number where no set has that name.
    pub(super) fn is_metric_of_set(&self, metric: &str) -> Result<bool, String> {
        let is_of = |name: &str| {
            let metric = metric.strip_prefix("eval_").unwrap_or(metric);
            let rest = metric.strip_prefix(name);
            rest.is_some_and(|rest| EvalSetReport::SUFFIXES.contains(&rest))
        };
        if self.names().any(is_of) {
            return Ok(true);
        }
        let set = metric.strip_prefix("eval_").and_then(|rest| {
            let mut suffixes = EvalSetReport::SUFFIXES.iter();
            suffixes.find_map(|suffix| rest.strip_suffix(suffix))
        });
        match (set, self) {
            (Some(set), EvalDatasets::Named(sets)) => Err(format!(
                "`{metric}` is of no evaluation set{} (eval_dataset_name has: {})",
                did_you_mean(set, self.names()),
                sets.iter()
                    .map(|(name, _)| name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
            _ => Ok(false),
        }
    }
}

impl From<PathBuf> for EvalDatasets {
    fn from(path: PathBuf) -> Self {
        EvalDatasets::One(path)
    }
}

impl From<&str> for EvalDatasets {
    fn from(path: &str) -> Self {
        EvalDatasets::One(path.into())
    }
}

impl Serialize for EvalDatasets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            EvalDatasets::One(path) => path.serialize(serializer),
            EvalDatasets::Named(sets) => {
                serializer.collect_map(sets.iter().map(|(name, path)| (name, path)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for EvalDatasets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PathOrMap)
    }
}

struct PathOrMap;

impl<'de> Visitor<'de> for PathOrMap {
    type Value = EvalDatasets;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, or a mapping of names to paths such as {math: a.jsonl, code: b.jsonl}")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EvalDatasets, E> {
        // A mapping as one word, of a command line or a C string: it is read as YAML then.
        if text.trim_start().starts_with('{') {
            return Err(E::invalid_value(serde::de::Unexpected::Str(text), &self));
        }
        Ok(EvalDatasets::One(text.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EvalDatasets, A::Error> {
        let mut sets = Vec::new();
        while let Some(entry) = map.next_entry()? {
            sets.push(entry);
        }
        Ok(EvalDatasets::Named(sets))
    }
}
