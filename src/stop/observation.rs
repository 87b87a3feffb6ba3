//! What became known at a step, and what a metric's name means there.

use super::metric::Metric;
use crate::report::{EvalReport, StepReport};

/// What became known at one step: the numbers of an update, of an evaluation, of the host, together
/// or one after another. The numbers are the true ones; nothing is filtered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observation<'a> {
    /// Updates done; 0 for an evaluation before the first.
    pub step: u64,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Input tokens of the run so far.
    pub tokens: u64,
    /// Wall time of the run so far, in seconds. Ranks of one run must pass the same number.
    pub seconds: f64,
    /// The update, if this observation brings one.
    pub train: Option<TrainMetrics>,
    /// The evaluation, if this observation brings one.
    pub eval: Option<EvalMetrics>,
    /// Numbers that the host feeds, and those of named evaluation sets
    /// ([`EvalReport::named_metrics`]). A built-in metric's name stands for that metric where `train`
    /// and `eval` do not have it, so a host may evaluate by itself.
    pub host: &'a [(String, f64)],
}

/// The numbers of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainMetrics {
    /// Token-weighted loss, in nats.
    pub loss: f64,
    /// L2 norm of the gradient before clipping, if it is known: an overflow that the loss scale of
    /// float16 caused ([`StepReport::overflowed`]) hides it.
    pub grad_norm: Option<f64>,
    /// Fraction of the supervised tokens that the model would have chosen itself.
    pub token_accuracy: Option<f64>,
    /// Supervised tokens. With none the loss is an empty sum: no rule looks at it.
    pub supervised_tokens: u64,
}

/// The numbers of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalMetrics {
    /// Token-weighted loss, in nats.
    pub loss: f64,
    /// Fraction of the supervised tokens that the model would have chosen itself.
    pub token_accuracy: Option<f64>,
}

impl From<&StepReport> for TrainMetrics {
    fn from(report: &StepReport) -> Self {
        Self {
            loss: report.loss,
            grad_norm: (!report.overflowed()).then_some(report.grad_norm),
            token_accuracy: Some(report.token_accuracy),
            supervised_tokens: report.supervised_tokens,
        }
    }
}

impl From<&EvalReport> for EvalMetrics {
    fn from(report: &EvalReport) -> Self {
        Self {
            loss: report.loss,
            token_accuracy: Some(report.token_accuracy),
        }
    }
}

impl Observation<'_> {
    /// The value of `metric` here, if it was observed.
    ///
    /// The loss and accuracy of an update whose loss or gradient norm is not finite are NaN: such an
    /// update reaches no target, even where something logged its loss as 0.
    pub fn metric(&self, metric: &Metric) -> Option<f64> {
        let train = self.train.filter(|train| train.supervised_tokens > 0);
        let sound = |x: f64| if self.is_broken() { f64::NAN } else { x };
        match metric {
            Metric::TrainLoss => self.raw_train_loss().map(sound),
            Metric::TokenAccuracy => {
                let own = train.and_then(|train| train.token_accuracy);
                own.or_else(|| self.fed(metric)).map(sound)
            }
            Metric::GradNorm => {
                let own = train.and_then(|train| train.grad_norm);
                own.or_else(|| self.fed(metric))
            }
            Metric::EvalLoss => self.eval.map(|e| e.loss).or_else(|| self.fed(metric)),
            Metric::EvalTokenAccuracy => {
                let own = self.eval.and_then(|eval| eval.token_accuracy);
                own.or_else(|| self.fed(metric))
            }
            Metric::EvalPerplexity => {
                let own = self.eval.map(|eval| eval.loss.exp());
                let fed = own.or_else(|| self.fed(metric));
                fed.or_else(|| self.fed(&Metric::EvalLoss).map(f64::exp))
            }
            Metric::Host(name) => self
                .host(name)
                .or_else(|| self.host(&format!("eval_{name}")))
                .or_else(|| self.perplexity_of_set(name)),
        }
    }

    /// `eval_<set>_perplexity`, with or without `eval_`, from the set's loss.
    fn perplexity_of_set(&self, name: &str) -> Option<f64> {
        let set = name.strip_suffix("_perplexity")?;
        let set = set.strip_prefix("eval_").unwrap_or(set);
        self.host(&format!("eval_{set}_loss")).map(f64::exp)
    }

    /// The training loss exactly as it was observed.
    pub(super) fn raw_train_loss(&self) -> Option<f64> {
        let own = self
            .train
            .filter(|train| train.supervised_tokens > 0)
            .map(|train| train.loss);
        own.or_else(|| self.host(Metric::TrainLoss.name()))
    }

    fn is_broken(&self) -> bool {
        let numbers = [self.raw_train_loss(), self.metric(&Metric::GradNorm)];
        numbers.into_iter().flatten().any(|x| !x.is_finite())
    }

    /// What the host fed as a built-in metric, under any of its names.
    fn fed(&self, metric: &Metric) -> Option<f64> {
        let aliases = || metric.aliases().iter().find_map(|name| self.host(name));
        self.host(metric.name()).or_else(aliases)
    }

    /// What the host fed under `name`; the last one counts.
    fn host(&self, name: &str) -> Option<f64> {
        self.host
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, x)| *x)
    }
}
