//! Learning-rate schedules: pure functions of the number of updates done.
//!
//! Names, options and values are those of transformers' `get_scheduler`, in the same order of
//! floating-point operations, so that a curve is the same to the last bit. `lr(k)` is the rate that
//! update `k + 1` uses, after `k` scheduler steps; an update that a loss scaler skipped does not count.

use crate::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::f64::consts::PI;

/// The shape of a schedule, by its `lr_scheduler_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The base rate throughout; warmup is ignored.
    Constant,
    /// The base rate after the warmup.
    ConstantWithWarmup,
    /// Down to 0 at the last update, in a straight line.
    #[default]
    Linear,
    /// Down to 0 along half a cosine (`num_cycles` of one, 0.5 by default).
    Cosine,
    /// `num_cycles` times down to 0 along half a cosine.
    CosineWithRestarts,
    /// Down to `lr_end` along a power `power` of what is left.
    Polynomial,
    /// With the inverse square root of the update over `timescale`.
    InverseSqrt,
    /// A cosine down to `min_lr` or `min_lr_rate` of the base rate.
    CosineWithMinLr,
    /// The same one update ahead, with a warmup that starts at `warmup_lr_rate`.
    CosineWarmupWithMinLr,
    /// Warmup, then the base rate, then a decay over the last `num_decay_steps` updates.
    WarmupStableDecay,
}

impl ScheduleKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [ScheduleKind; 10] = [
        ScheduleKind::Constant,
        ScheduleKind::ConstantWithWarmup,
        ScheduleKind::Linear,
        ScheduleKind::Cosine,
        ScheduleKind::CosineWithRestarts,
        ScheduleKind::Polynomial,
        ScheduleKind::InverseSqrt,
        ScheduleKind::CosineWithMinLr,
        ScheduleKind::CosineWarmupWithMinLr,
        ScheduleKind::WarmupStableDecay,
    ];

    /// Whether the rate depends on the total number of updates.
    pub const fn needs_total(self) -> bool {
        let fixed = matches!(
            self,
            ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup | ScheduleKind::InverseSqrt
        );
        !fixed
    }

    /// The `lr_scheduler_type` of this kind.
    pub const fn name(self) -> &'static str {
        match self {
            ScheduleKind::Constant => "constant",
            ScheduleKind::ConstantWithWarmup => "constant_with_warmup",
            ScheduleKind::Linear => "linear",
            ScheduleKind::Cosine => "cosine",
            ScheduleKind::CosineWithRestarts => "cosine_with_restarts",
            ScheduleKind::Polynomial => "polynomial",
            ScheduleKind::InverseSqrt => "inverse_sqrt",
            ScheduleKind::CosineWithMinLr => "cosine_with_min_lr",
            ScheduleKind::CosineWarmupWithMinLr => "cosine_warmup_with_min_lr",
            ScheduleKind::WarmupStableDecay => "warmup_stable_decay",
        }
    }

    /// The kind of this name.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a schedule that only the peer has, else [`ErrorKind::Config`].
    pub fn from_name(name: &str) -> Result<Self> {
        if let Some(kind) = Self::ALL.into_iter().find(|kind| kind.name() == name) {
            return Ok(kind);
        }
        let known = Self::ALL.map(ScheduleKind::name).join(", ");
        let (kind, what) = match name {
            "reduce_lr_on_plateau" | "greedy" => (ErrorKind::Unsupported, "is not supported"),
            _ => (ErrorKind::Config, "is no schedule"),
        };
        let message = format!("lr_scheduler_type: `{name}` {what}; supported are {known}");
        Err(Error::new(kind, message))
    }
}

/// How `warmup_stable_decay` goes up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Ramp {
    #[serde(rename = "linear")]
    Linear,
    #[serde(rename = "cosine")]
    Cosine,
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// The factor on the base rate, with its options resolved.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Constant,
    ConstantWithWarmup,
    Linear,
    Cosine {
        num_cycles: f64,
    },
    CosineWithRestarts {
        num_cycles: f64,
    },
    Polynomial {
        lr_end: f64,
        power: f64,
    },
    InverseSqrt {
        timescale: f64,
    },
    CosineWithMinLr {
        num_cycles: f64,
        floor: f64,
    },
    CosineWarmupWithMinLr {
        num_cycles: f64,
        floor: f64,
        warmup_lr_rate: Option<f64>,
    },
    WarmupStableDecay {
        stable: f64,
        decay: f64,
        up: Ramp,
        down: Ramp,
        floor: f64,
        num_cycles: f64,
    },
}

/// A learning rate for every update of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    shape: Shape,
    base_lr: f64,
    /// Warmup updates.
    warmup: f64,
    /// Updates of the run.
    total: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CosineOptions {
    #[serde(default = "half")]
    num_cycles: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestartOptions {
    #[serde(default = "one")]
    num_cycles: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolynomialOptions {
    #[serde(default = "tiny")]
    lr_end: f64,
    #[serde(default = "one")]
    power: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InverseSqrtOptions {
    timescale: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MinLrOptions {
    #[serde(default = "half")]
    num_cycles: f64,
    min_lr: Option<f64>,
    min_lr_rate: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WarmupMinLrOptions {
    #[serde(default = "half")]
    num_cycles: f64,
    min_lr: Option<f64>,
    min_lr_rate: Option<f64>,
    warmup_lr_rate: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StableOptions {
    num_decay_steps: u64,
    num_stable_steps: Option<u64>,
    #[serde(default = "linear")]
    warmup_type: Ramp,
    #[serde(default = "cosine")]
    decay_type: Ramp,
    #[serde(default)]
    min_lr_ratio: f64,
    #[serde(default = "half")]
    num_cycles: f64,
}

fn half() -> f64 {
    0.5
}
fn one() -> f64 {
    1.0
}
fn tiny() -> f64 {
    1e-7
}
fn linear() -> Ramp {
    Ramp::Linear
}
fn cosine() -> Ramp {
    Ramp::Cosine
}

fn option_error(key: &str, message: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("lr_scheduler_kwargs.{key}: {message}"),
    )
}

fn options<T: DeserializeOwned>(kwargs: &Map<String, Value>) -> Result<T> {
    serde_path_to_error::deserialize(Value::Object(kwargs.clone())).map_err(|error| {
        let key = error.path().to_string();
        match key.as_str() {
            // A missing key, which the message names.
            "." => Error::new(
                ErrorKind::Config,
                format!("lr_scheduler_kwargs: {}", error.inner()),
            ),
            _ if error.inner().to_string().starts_with("unknown field") => {
                let message = format!("lr_scheduler_kwargs.{key}: {}", error.inner());
                Error::new(ErrorKind::UnknownKey, message)
            }
            _ => option_error(&key, error.inner()),
        }
    })
}

/// `x` if it is finite and not negative.
fn not_negative(key: &str, x: f64) -> Result<f64> {
    if x.is_finite() && x >= 0.0 {
        Ok(x)
    } else {
        Err(option_error(
            key,
            format!("must be finite and not negative, found {x}"),
        ))
    }
}

/// The smallest rate as a fraction of the base rate.
fn floor(min_lr: Option<f64>, min_lr_rate: Option<f64>, base_lr: f64) -> Result<f64> {
    match (min_lr, min_lr_rate) {
        (Some(_), Some(_)) => Err(option_error("min_lr_rate", "give it or `min_lr`, not both")),
        (None, None) => Err(option_error(
            "min_lr",
            "is missing: give it or `min_lr_rate`",
        )),
        (None, Some(rate)) => not_negative("min_lr_rate", rate),
        (Some(_), None) if base_lr == 0.0 => Err(option_error("min_lr", "the learning rate is 0")),
        (Some(lr), None) => Ok(not_negative("min_lr", lr)? / base_lr),
    }
}

impl Schedule {
    /// A schedule over `total_steps` updates with the base rate `base_lr`.
    ///
    /// `warmup_steps` below 1 is a fraction of `total_steps`, rounded up; from 1 its whole part counts.
    /// `kwargs` are the kind's `lr_scheduler_kwargs`.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownKey`] for an option that the kind does not have; [`ErrorKind::Config`] for a
    /// missing or wrong one, with its key path, such as `lr_scheduler_kwargs.num_cycles`.
    pub fn new(
        kind: ScheduleKind,
        base_lr: f64,
        warmup_steps: f64,
        total_steps: u64,
        kwargs: &Map<String, Value>,
    ) -> Result<Self> {
        for (key, x) in [("learning_rate", base_lr), ("warmup_steps", warmup_steps)] {
            if !(x.is_finite() && x >= 0.0) {
                let message = format!("{key}: must be finite and not negative, found {x}");
                return Err(Error::new(ErrorKind::Config, message));
            }
        }
        let total = total_steps as f64;
        let warmup = if warmup_steps >= 1.0 {
            warmup_steps.trunc()
        } else {
            (total * warmup_steps).ceil()
        };
        let shape = match kind {
            ScheduleKind::Constant => options::<NoOptions>(kwargs).map(|_| Shape::Constant)?,
            ScheduleKind::ConstantWithWarmup => {
                options::<NoOptions>(kwargs).map(|_| Shape::ConstantWithWarmup)?
            }
            ScheduleKind::Linear => options::<NoOptions>(kwargs).map(|_| Shape::Linear)?,
            ScheduleKind::Cosine => {
                let o: CosineOptions = options(kwargs)?;
                Shape::Cosine {
                    num_cycles: not_negative("num_cycles", o.num_cycles)?,
                }
            }
            ScheduleKind::CosineWithRestarts => {
                let o: RestartOptions = options(kwargs)?;
                Shape::CosineWithRestarts {
                    num_cycles: not_negative("num_cycles", o.num_cycles)?,
                }
            }
            ScheduleKind::Polynomial => {
                let o: PolynomialOptions = options(kwargs)?;
                let lr_end = not_negative("lr_end", o.lr_end)?;
                if lr_end >= base_lr {
                    let message = format!("must be below the learning rate {base_lr}, is {lr_end}");
                    return Err(option_error("lr_end", message));
                }
                Shape::Polynomial {
                    lr_end,
                    power: not_negative("power", o.power)?,
                }
            }
            ScheduleKind::InverseSqrt => {
                let o: InverseSqrtOptions = options(kwargs)?;
                let default = if warmup > 0.0 { warmup } else { 10_000.0 };
                let timescale = not_negative("timescale", o.timescale.unwrap_or(default))?;
                if timescale == 0.0 {
                    return Err(option_error("timescale", "must be above 0"));
                }
                Shape::InverseSqrt { timescale }
            }
            ScheduleKind::CosineWithMinLr => {
                let o: MinLrOptions = options(kwargs)?;
                let floor = floor(o.min_lr, o.min_lr_rate, base_lr)?;
                let num_cycles = not_negative("num_cycles", o.num_cycles)?;
                Shape::CosineWithMinLr { num_cycles, floor }
            }
            ScheduleKind::CosineWarmupWithMinLr => {
                let o: WarmupMinLrOptions = options(kwargs)?;
                let floor = floor(o.min_lr, o.min_lr_rate, base_lr)?;
                let num_cycles = not_negative("num_cycles", o.num_cycles)?;
                let rate = o
                    .warmup_lr_rate
                    .map(|rate| not_negative("warmup_lr_rate", rate));
                let warmup_lr_rate = rate.transpose()?;
                Shape::CosineWarmupWithMinLr {
                    num_cycles,
                    floor,
                    warmup_lr_rate,
                }
            }
            ScheduleKind::WarmupStableDecay => {
                let o: StableOptions = options(kwargs)?;
                let decay = o.num_decay_steps as f64;
                let stable = o
                    .num_stable_steps
                    .map_or(total - warmup - decay, |n| n as f64);
                if stable < 0.0 {
                    let message = format!(
                        "{decay} updates of decay and {warmup} of warmup are more than the {total} of \
                         the run"
                    );
                    return Err(option_error("num_decay_steps", message));
                }
                Shape::WarmupStableDecay {
                    stable,
                    decay,
                    up: o.warmup_type,
                    down: o.decay_type,
                    floor: not_negative("min_lr_ratio", o.min_lr_ratio)?,
                    num_cycles: not_negative("num_cycles", o.num_cycles)?,
                }
            }
        };
        Ok(Self {
            shape,
            base_lr,
            warmup,
            total,
        })
    }

    /// The learning rate of update `k + 1`, that is after `k` scheduler steps. It is also defined
    /// beyond the last update.
    pub fn lr(&self, k: u64) -> f64 {
        self.base_lr * self.factor(k as f64)
    }

    /// The warmup in whole updates.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup as u64
    }

    fn factor(&self, k: f64) -> f64 {
        let Self {
            shape,
            base_lr,
            warmup,
            total,
        } = *self;
        let climb = k / warmup.max(1.0);
        let progress = (k - warmup) / (total - warmup).max(1.0);
        let warming = k < warmup;
        let half_wave = |cycles: f64, x: f64| 0.5 * (1.0 + (PI * cycles * 2.0 * x).cos());
        match shape {
            Shape::Constant => 1.0,
            Shape::WarmupStableDecay {
                stable,
                decay,
                up,
                down,
                floor,
                num_cycles,
            } => {
                let raised = |factor: f64| (factor * (1.0 - floor) + floor).max(0.0);
                if warming {
                    raised(match up {
                        Ramp::Linear => climb,
                        Ramp::Cosine => 0.5 * (1.0 - (PI * climb).cos()),
                        Ramp::OneMinusSqrt => 1.0 - (1.0 - climb).sqrt(),
                    })
                } else if k < warmup + stable {
                    1.0
                } else if k < warmup + stable + decay {
                    let x = (k - warmup - stable) / decay.max(1.0);
                    raised(match down {
                        Ramp::Linear => 1.0 - x,
                        Ramp::Cosine => half_wave(num_cycles, x),
                        Ramp::OneMinusSqrt => 1.0 - x.sqrt(),
                    })
                } else {
                    floor
                }
            }
            Shape::CosineWarmupWithMinLr {
                num_cycles,
                floor,
                warmup_lr_rate,
            } => {
                if warming {
                    return match warmup_lr_rate {
                        None => (k + 1.0) / warmup.max(1.0),
                        Some(rate) => rate + (1.0 - rate) * k / (warmup - 1.0).max(1.0),
                    };
                }
                let x = (k - warmup + 1.0) / (total - warmup).max(1.0);
                (half_wave(num_cycles, x) * (1.0 - floor) + floor).max(0.0)
            }
            _ if warming => climb,
            Shape::ConstantWithWarmup => 1.0,
            Shape::Linear => ((total - k) / (total - warmup).max(1.0)).max(0.0),
            Shape::Cosine { num_cycles } => half_wave(num_cycles, progress).max(0.0),
            Shape::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            Shape::CosineWithRestarts { num_cycles } => {
                (0.5 * (1.0 + (PI * ((num_cycles * progress) % 1.0)).cos())).max(0.0)
            }
            Shape::Polynomial { lr_end, .. } if k > total => lr_end / base_lr,
            Shape::Polynomial { lr_end, power } => {
                ((base_lr - lr_end) * (1.0 - progress).powf(power) + lr_end) / base_lr
            }
            Shape::InverseSqrt { timescale } => {
                1.0 / ((k + (timescale - warmup)) / timescale).sqrt()
            }
            Shape::CosineWithMinLr { num_cycles, floor } => {
                (half_wave(num_cycles, progress) * (1.0 - floor) + floor).max(0.0)
            }
        }
    }
}
