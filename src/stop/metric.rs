//! The numbers that rules watch, and which way is better.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A number that a rule watches.
///
/// Written as its name. `mean_token_accuracy` and `eval_mean_token_accuracy`, the names in the log,
/// mean the same as `token_accuracy` and `eval_token_accuracy`, and `perplexity` the same as
/// `eval_perplexity`. A bare `loss` is refused, because it
/// is the training loss in a log and the evaluation loss in `metric_for_best_model`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Metric {
    /// Token-weighted loss of an update, in nats: one observation for each update.
    TrainLoss,
    /// Token-weighted loss of an evaluation, in nats: one observation for each evaluation.
    EvalLoss,
    /// L2 norm of the gradient before clipping: one observation for each update.
    GradNorm,
    /// Fraction of an update's supervised tokens that the model would have chosen itself.
    TokenAccuracy,
    /// The same for an evaluation.
    EvalTokenAccuracy,
    /// e to the power of the evaluation loss. Also written `perplexity`.
    EvalPerplexity,
    /// A number that the host feeds under its own name, or that a named evaluation set gives:
    /// `eval_<set>_loss`, `eval_<set>_mean_token_accuracy`, `eval_<set>_perplexity`. A rule on `acc`
    /// also reads `eval_acc`.
    Host(String),
}

impl Metric {
    /// The name as configurations and reports write it.
    pub fn name(&self) -> &str {
        match self {
            Metric::TrainLoss => "train_loss",
            Metric::EvalLoss => "eval_loss",
            Metric::GradNorm => "grad_norm",
            Metric::TokenAccuracy => "token_accuracy",
            Metric::EvalTokenAccuracy => "eval_token_accuracy",
            Metric::EvalPerplexity => "eval_perplexity",
            Metric::Host(name) => name,
        }
    }

    /// Other names that mean the same.
    pub(super) fn aliases(&self) -> &'static [&'static str] {
        match self {
            Metric::TokenAccuracy => &["mean_token_accuracy"],
            Metric::EvalTokenAccuracy => &["eval_mean_token_accuracy"],
            Metric::EvalPerplexity => &["perplexity"],
            _ => &[],
        }
    }

    /// Whether every update gives an observation, rather than every evaluation.
    pub fn is_per_update(&self) -> bool {
        matches!(
            self,
            Metric::TrainLoss | Metric::GradNorm | Metric::TokenAccuracy
        )
    }

    /// Whether only evaluations of the library's own give it. A host may feed it by its name all the
    /// same.
    pub fn is_per_evaluation(&self) -> bool {
        matches!(
            self,
            Metric::EvalLoss | Metric::EvalTokenAccuracy | Metric::EvalPerplexity
        )
    }

    /// Whether the library always computes the metric itself.
    pub fn is_built_in(&self) -> bool {
        !matches!(self, Metric::Host(_))
    }

    /// Which way is better, where the name says so.
    ///
    /// Names that end with `loss`, `ppl`, `perplexity`, `nll`, `error`, `mse`, `mae`, `wer`, `cer` or
    /// `norm` are minimised; names that end with `acc`, `accuracy`, `f1`, `bleu`, `rouge` (also
    /// `rouge1`, `rouge2`, `rougeL`, `rougeLsum`), `meteor`, `precision`, `recall`, `auc`, `match`,
    /// `reward`, `score` or `rate` are maximised; any other name says nothing (`None`).
    pub fn known_direction(&self) -> Option<Direction> {
        const MINIMIZED: [&str; 10] = [
            "loss",
            "ppl",
            "perplexity",
            "nll",
            "error",
            "mse",
            "mae",
            "wer",
            "cer",
            "norm",
        ];
        const MAXIMIZED: [&str; 17] = [
            "acc",
            "accuracy",
            "f1",
            "bleu",
            "rouge",
            "rouge1",
            "rouge2",
            "rougel",
            "rougelsum",
            "meteor",
            "precision",
            "recall",
            "auc",
            "match",
            "reward",
            "score",
            "rate",
        ];
        let name = self.name().to_ascii_lowercase();
        let ends = |list: &[&str]| list.iter().any(|suffix| name.ends_with(suffix));
        if ends(&MINIMIZED) {
            Some(Direction::Minimize)
        } else if ends(&MAXIMIZED) {
            Some(Direction::Maximize)
        } else {
            None
        }
    }

    /// Which way is better by default: what the name says, else minimise.
    pub fn default_direction(&self) -> Direction {
        self.known_direction().unwrap_or(Direction::Minimize)
    }
}

impl TryFrom<String> for Metric {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Ok(match name.as_str() {
            "train_loss" => Metric::TrainLoss,
            "eval_loss" => Metric::EvalLoss,
            "grad_norm" => Metric::GradNorm,
            "token_accuracy" | "mean_token_accuracy" => Metric::TokenAccuracy,
            "eval_token_accuracy" | "eval_mean_token_accuracy" => Metric::EvalTokenAccuracy,
            "eval_perplexity" | "perplexity" => Metric::EvalPerplexity,
            "loss" => return Err("`loss` is ambiguous: write `train_loss` or `eval_loss`".into()),
            "" => return Err("a metric needs a name".into()),
            _ => Metric::Host(name),
        })
    }
}

impl From<Metric> for String {
    fn from(metric: Metric) -> String {
        metric.name().to_owned()
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which way a metric is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Less is better.
    Minimize,
    /// More is better.
    Maximize,
}

impl Direction {
    /// Whether `a` is strictly better than `b`; never true of a NaN.
    pub fn better(self, a: f64, b: f64) -> bool {
        match self {
            Direction::Minimize => a < b,
            Direction::Maximize => a > b,
        }
    }

    /// The value that any other beats: +inf to minimise, −inf to maximise.
    pub fn worst(self) -> f64 {
        match self {
            Direction::Minimize => f64::INFINITY,
            Direction::Maximize => f64::NEG_INFINITY,
        }
    }
}
