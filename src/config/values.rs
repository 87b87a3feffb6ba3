//! The types of single configuration values.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::fields::keys;
use crate::suggest::did_you_mean;

/// A value as it crosses a typed setter.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// Text, taken as the key needs it.
    Str(String),
    /// A whole number.
    Int(i64),
    /// A number; must be finite.
    Float(f64),
    /// A truth value.
    Bool(bool),
}

impl From<&str> for Setting {
    fn from(text: &str) -> Self {
        Setting::Str(text.to_owned())
    }
}

impl From<i64> for Setting {
    fn from(i: i64) -> Self {
        Setting::Int(i)
    }
}

impl From<f64> for Setting {
    fn from(x: f64) -> Self {
        Setting::Float(x)
    }
}

impl From<bool> for Setting {
    fn from(b: bool) -> Self {
        Setting::Bool(b)
    }
}

/// A number of things from 1, or below 1 a share of their total.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Deserialize)]
#[serde(transparent)]
pub struct Amount(pub f64);

impl Amount {
    /// The number of things out of `total`: a share is rounded up, a number is cut to a whole one.
    pub fn of(self, total: u64) -> u64 {
        if self.0 < 1.0 {
            (total as f64 * self.0).ceil() as u64
        } else {
            self.0 as u64
        }
    }
}

impl Serialize for Amount {
    /// Whole numbers without a fraction, as one writes them.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.fract() == 0.0 && self.0.abs() < 2f64.powi(53) {
            serializer.serialize_i64(self.0 as i64)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

/// When evaluation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalStrategy {
    /// Never.
    No,
    /// Every `eval_steps` updates, and after the last.
    Steps,
    /// After each epoch.
    Epoch,
}

/// When a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SaveStrategy {
    /// Never; the final model is still written.
    No,
    /// Every `save_steps` updates, and after the last.
    Steps,
    /// After each epoch.
    Epoch,
    /// After an evaluation that is the best so far.
    Best,
}

/// What a run goes on from; written `null`, `true`, `auto` or as the path of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ResumeFrom {
    /// Nothing: the run starts afresh.
    #[default]
    Nothing,
    /// The newest whole checkpoint of `output_dir`, which must have one.
    Newest,
    /// The newest whole checkpoint of `output_dir`; without one the run starts afresh.
    Auto,
    /// The checkpoint in this folder.
    Folder(PathBuf),
}

impl Serialize for ResumeFrom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ResumeFrom::Nothing => serializer.serialize_none(),
            ResumeFrom::Newest => serializer.serialize_bool(true),
            ResumeFrom::Auto => serializer.serialize_str("auto"),
            ResumeFrom::Folder(path) => path.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ResumeFrom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null | Value::Bool(false) => Ok(ResumeFrom::Nothing),
            Value::Bool(true) => Ok(ResumeFrom::Newest),
            // What a command line and a C string say for the truth values.
            Value::String(text) => Ok(match text.as_str() {
                "" => return Err(serde::de::Error::custom(NO_CHECKPOINT_NAME)),
                "false" => ResumeFrom::Nothing,
                "true" => ResumeFrom::Newest,
                "auto" => ResumeFrom::Auto,
                path => ResumeFrom::Folder(path.into()),
            }),
            _ => Err(serde::de::Error::custom(NO_CHECKPOINT_NAME)),
        }
    }
}

const NO_CHECKPOINT_NAME: &str = "expected null, true, auto or the path of a checkpoint";

/// Names of configuration keys: a list, or on a command line `learning_rate,seed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct KeyNames(pub Vec<String>);

impl KeyNames {
    /// Whether `key` is among them.
    pub fn contains(&self, key: &str) -> bool {
        self.0.iter().any(|name| name == key)
    }
}

impl<'de> Deserialize<'de> for KeyNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a list of configuration keys")]
        enum Written {
            List(Vec<String>),
            Words(String),
        }
        let names = match Option::deserialize(deserializer)? {
            None => Vec::new(),
            Some(Written::List(names)) => names,
            Some(Written::Words(words)) => words.split(',').map(|w| w.trim().to_owned()).collect(),
        };
        for name in &names {
            let known = || keys().iter().map(|key| key.name);
            if !known().any(|key| key == name) {
                let near = did_you_mean(name, known());
                return Err(serde::de::Error::custom(format!(
                    "`{name}` is not a key of the configuration{near}"
                )));
            }
        }
        Ok(Self(names))
    }
}

/// Where the rows of the log go besides the log itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportTo {
    /// Nowhere.
    None,
    /// Event files that TensorBoard shows.
    TensorBoard,
}

/// How documents share a sequence of `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackingStrategy {
    /// Best fit decreasing; a document longer than `max_length` is cut.
    Bfd,
    /// Best fit decreasing; a long document is split and every piece is kept.
    #[serde(alias = "bfd-requeue")]
    BfdSplit,
    /// One stream cut at every `max_length`, blind to document borders.
    Wrapped,
}

/// The order of training rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplingStrategy {
    /// A new seeded permutation each epoch.
    Random,
    /// File order.
    Sequential,
    /// Random, rows of similar length together.
    GroupByLength,
}

/// The training objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean −log p over supervised positions.
    #[serde(alias = "chunked_nll")]
    Nll,
}

/// What multiplies matrices on a CUDA device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gemm {
    /// What is known to be faster; own kernels, as nothing has been measured yet.
    Auto,
    /// This library's kernels.
    Own,
    /// NVIDIA's cuBLASLt, which must be installed.
    CublasLt,
}

/// Where the arithmetic runs; written `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The best that this build and machine have.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by its index.
    Cuda(u32),
    /// For tests of the library: the CUDA kernels compiled for the CPU, written `cuda-emulated`.
    #[cfg(feature = "emulate")]
    CudaEmulated,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(0) => f.write_str("cuda"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
            #[cfg(feature = "emulate")]
            Device::CudaEmulated => f.write_str("cuda-emulated"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            #[cfg(feature = "emulate")]
            "cuda-emulated" => Ok(Device::CudaEmulated),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| format!("expected auto, cpu, cuda or cuda:N, found \"{text}\"")),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Other spellings that mean exactly one of our keys and values.
pub(super) fn peer_spelling(key: &str, value: Value) -> (String, Value) {
    let key = match key {
        "activation_checkpointing" => "gradient_checkpointing",
        "test_split_size" => "val_size",
        other => other,
    };
    match (key, &value) {
        // YAML 1.1 reads a bare `no` as false.
        ("eval_strategy" | "save_strategy", Value::Bool(false)) => (key.into(), "no".into()),
        // A key without a value: no rules.
        ("stop", Value::Null) => (key.into(), Value::Array(Vec::new())),
        ("report_to", Value::Null) => (key.into(), "none".into()),
        ("report_to", Value::Array(names)) => match &names[..] {
            [] => (key.into(), "none".into()),
            [only] => peer_spelling(key, only.clone()),
            _ => (key.into(), value),
        },
        // Every tracker that is there.
        ("report_to", Value::String(name)) if name == "all" => (key.into(), "tensorboard".into()),
        ("use_cpu", Value::Bool(true)) => ("device".into(), "cpu".into()),
        _ => (key.to_owned(), value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_below_one_is_a_share_rounded_up() {
        assert_eq!(Amount(0.1).of(25), 3);
        assert_eq!(Amount(0.0).of(25), 0);
        assert_eq!(Amount(1.0).of(25), 1);
        assert_eq!(Amount(7.9).of(25), 7);
    }

    #[test]
    fn devices_round_trip_through_their_spelling() {
        for text in ["auto", "cpu", "cuda", "cuda:3"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        for text in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(text.parse::<Device>().unwrap_err().contains(text));
        }
    }
}
