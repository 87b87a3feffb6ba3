//! What must hold between the values of a configuration. Each failure names its key, what it found
//! and the way out. Nothing here looks at the disk or the device.

use std::path::Path;

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};

use crate::schedule::Schedule;
use crate::stop::{self, Budget, Direction, Metric, StopConfig};

use super::fields::Config;
use super::values::{Amount, Device, EvalStrategy, SaveStrategy};

impl Config {
    /// Checks every value alone and against the others.
    ///
    /// # Errors
    /// `Config` for a value out of range or a contradiction, `Unsupported` for what is not built
    /// yet, `Device` for a device that this build cannot use.
    pub fn validate(&self) -> Result<()> {
        self.check_supported()?;
        self.check_ranges()?;
        self.check_data()?;
        if let Some(sets) = &self.eval_dataset_name {
            sets.validate()?;
        }
        self.check_evaluation()
    }

    /// Whether evaluation rows are named: a file, a share of the training rows, or a folder that may
    /// hold a test split.
    pub fn has_eval_data(&self) -> bool {
        let folder = |path: &Path| path.extension().is_none();
        self.eval_dataset_name.is_some()
            || self.val_size.is_some()
            || self.dataset_name.as_deref().is_some_and(folder)
    }

    /// All stop rules: `stop`, then the plateau rule that the `early_stopping_…` keys stand for.
    ///
    /// # Errors
    /// `Config` for early stopping keys that contradict each other.
    pub fn stop_rules(&self) -> Result<StopConfig> {
        let mut config = self.stop.clone();
        if let Some(patience) = self.early_stopping_patience {
            config.rules.push(stop::early_stopping(
                patience,
                Some(self.early_stopping_threshold),
                self.metric_for_best_model.as_deref(),
                self.greater_is_better,
            )?);
        }
        Ok(config)
    }

    /// What `metric_for_best_model` and `greater_is_better` name, if they are set.
    ///
    /// # Errors
    /// `Config` for a name that is no metric.
    pub fn best_metric(&self) -> Result<Option<(Metric, Direction)>> {
        let Some(name) = self.metric_for_best_model.as_deref() else {
            return Ok(None);
        };
        let metric = Metric::for_best_model(name)?;
        let direction = match self.greater_is_better {
            Some(true) => Direction::Maximize,
            Some(false) => Direction::Minimize,
            None => metric.default_direction(),
        };
        Ok(Some((metric, direction)))
    }

    /// The limits of the run as written: `max_steps`, or `num_train_epochs` without it, and
    /// `max_tokens` and `max_seconds`.
    pub fn budget(&self) -> Budget {
        let max_steps = u64::try_from(self.max_steps).ok();
        Budget {
            max_steps,
            max_epochs: max_steps.is_none().then_some(self.num_train_epochs),
            max_tokens: self.max_tokens,
            max_seconds: self.max_seconds,
        }
    }

    /// The learning-rate schedule over `total_steps` updates.
    ///
    /// # Errors
    /// As [`Schedule::new`].
    pub fn schedule(&self, total_steps: u64) -> Result<Schedule> {
        let none = serde_json::Map::new();
        Schedule::new(
            self.lr_scheduler_type,
            self.learning_rate,
            self.warmup_steps.0,
            total_steps,
            self.lr_scheduler_kwargs.as_ref().unwrap_or(&none),
        )
    }

    /// The format of the matrix products' operands, on a CUDA device or on the CPU: what `bf16` and
    /// `fp16` say, else bfloat16 on CUDA. Of CPUs only those with AMX or AVX-512's bf16 instructions gain by
    /// it, and a run's numbers should not depend on which one it was, so there it must be asked for.
    pub fn precision(&self, cuda: bool) -> DType {
        match (self.bf16, self.fp16) {
            (_, true) => DType::F16,
            (Some(true), _) => DType::BF16,
            (None, _) if cuda => DType::BF16,
            (None | Some(false), _) => DType::F32,
        }
    }

    /// Updates between evaluations as written: `eval_steps`, or `logging_steps` without it.
    pub fn eval_interval(&self) -> Amount {
        self.eval_steps.unwrap_or(self.logging_steps)
    }

    fn check_supported(&self) -> Result<()> {
        let unsupported = |text: &str| Err(Error::new(ErrorKind::Unsupported, text));
        if self.bf16 == Some(true) && self.fp16 {
            return wrong("bf16, fp16: both are true; choose one");
        }
        if self.use_peft {
            return unsupported("use_peft: adapters are not supported yet: set it to false");
        }
        if let Device::Cuda(_) = self.device
            && !cfg!(feature = "cuda")
        {
            let message = format!(
                "device: {} needs CUDA, and this build has the CPU only; build with the feature \
                 `cuda` (cargo build --features cuda), or use `cpu`",
                self.device
            );
            return Err(Error::new(ErrorKind::Device, message));
        }
        Ok(())
    }

    fn check_ranges(&self) -> Result<()> {
        at_least("learning_rate", self.learning_rate, 0.0)?;
        at_least("weight_decay", self.weight_decay, 0.0)?;
        at_least("max_grad_norm", self.max_grad_norm, 0.0)?;
        at_least("warmup_steps", self.warmup_steps.0, 0.0)?;
        at_least("eval_delay", self.eval_delay, 0.0)?;
        at_least(
            "early_stopping_threshold",
            self.early_stopping_threshold,
            0.0,
        )?;
        above_zero("adam_epsilon", self.adam_epsilon)?;
        above_zero("logging_steps", self.logging_steps.0)?;
        above_zero("save_steps", self.save_steps.0)?;
        for (key, beta) in [
            ("adam_beta1", self.adam_beta1),
            ("adam_beta2", self.adam_beta2),
        ] {
            if !(0.0..1.0).contains(&beta) {
                return wrong(format!("{key}: must lie in 0 to below 1, found {beta}"));
            }
        }
        let counts = [
            (
                "per_device_train_batch_size",
                Some(self.per_device_train_batch_size as u64),
            ),
            (
                "per_device_eval_batch_size",
                Some(self.per_device_eval_batch_size as u64),
            ),
            (
                "gradient_accumulation_steps",
                Some(self.gradient_accumulation_steps as u64),
            ),
            ("dataset_num_proc", self.dataset_num_proc.map(|n| n as u64)),
            ("threads", self.threads.map(|n| n as u64)),
            ("save_total_limit", self.save_total_limit.map(|n| n as u64)),
            ("max_tokens", self.max_tokens),
        ];
        for (key, count) in counts {
            if count == Some(0) {
                return wrong(format!("{key}: must be at least 1, found 0"));
            }
        }
        if let Some(seconds) = self.max_seconds {
            above_zero("max_seconds", seconds)?;
        }
        if self.max_steps < -1 || self.max_steps == 0 {
            return wrong(format!(
                "max_steps: must be at least 1, or -1 to let num_train_epochs decide, found {}",
                self.max_steps
            ));
        }
        if self.max_steps < 0 {
            above_zero("num_train_epochs", self.num_train_epochs)?;
        }
        Ok(())
    }

    fn check_data(&self) -> Result<()> {
        if self.model_name_or_path.is_none() {
            return wrong("model_name_or_path: missing: name the folder of the model to train");
        }
        if let Some(length @ 0..=1) = self.max_length {
            return wrong(format!(
                "max_length: must be at least 2 (one token to read, one to predict), found \
                 {length}; null never cuts"
            ));
        }
        for (key, on) in [
            ("packing", self.packing),
            ("eval_packing", self.eval_packing == Some(true)),
        ] {
            if on && self.max_length.is_none() {
                return wrong(format!(
                    "{key}: needs a max_length to pack into, found max_length: null; set \
                     max_length, or {key}: false"
                ));
            }
        }
        if let Some(size) = self.val_size {
            above_zero("val_size", size.0)?;
            if size.0 >= 1.0 && size.0.fract() != 0.0 {
                return wrong(format!(
                    "val_size: must be a share below 1 or a whole number of rows, found {}",
                    size.0
                ));
            }
            if self.eval_dataset_name.is_some() {
                return wrong(
                    "val_size, eval_dataset_name: both name the evaluation rows; remove one",
                );
            }
        }
        Ok(())
    }

    fn check_evaluation(&self) -> Result<()> {
        let evaluates = self.eval_strategy != EvalStrategy::No;
        if let Some(steps) = self.eval_steps {
            above_zero("eval_steps", steps.0)?;
        }
        // Without dataset_name the host feeds the rows, and decides itself what it evaluates.
        if self.dataset_name.is_some() && !self.has_eval_data() {
            let asks = [
                ("eval_strategy", evaluates),
                ("eval_on_start", self.eval_on_start),
            ];
            if let Some((key, _)) = asks.iter().find(|(_, on)| *on) {
                return wrong(format!(
                    "{key}: there are no rows to evaluate on; set eval_dataset_name to a file or \
                     val_size to a share of the training rows, such as 0.1"
                ));
            }
        }
        if !evaluates {
            self.check_without_evaluation()?;
        }
        if self.early_stopping_patience.is_none() && self.early_stopping_threshold > 0.0 {
            return wrong(
                "early_stopping_threshold: does nothing without early_stopping_patience; set both",
            );
        }
        self.check_metric()?;
        self.check_rule_metrics()?;
        self.stop_rules()?;
        self.stop.validate()?;
        // The number of updates is not known yet: options that depend on it are checked at the start.
        self.schedule(u64::try_from(self.max_steps).unwrap_or(1_000_000))
            .map(drop)
    }

    /// What waits for evaluations would wait for ever.
    fn check_without_evaluation(&self) -> Result<()> {
        let metric = self.best_metric()?.map(|(metric, _)| metric);
        let by_evaluations = match &metric {
            Some(metric) => self.is_evaluation(metric, "metric_for_best_model")?,
            None => false,
        };
        let by_updates = metric.as_ref().is_some_and(Metric::is_per_update);
        let early_stopping = self.early_stopping_patience.is_some();
        let needs = [
            ("early_stopping_patience", early_stopping && !by_updates),
            (
                "load_best_model_at_end",
                self.load_best_model_at_end && !by_updates,
            ),
            (
                "save_strategy: best",
                self.save_strategy == SaveStrategy::Best,
            ),
            ("metric_for_best_model", by_evaluations),
        ];
        let mut waiting: Vec<String> = needs
            .iter()
            .filter(|(_, on)| *on)
            .map(|(key, _)| (*key).to_owned())
            .collect();
        // A host that feeds its own rows evaluates when it likes.
        if self.dataset_name.is_some() {
            for (i, metric) in self.rule_metrics() {
                if self.is_evaluation(metric, &format!("stop[{i}].metric"))? {
                    waiting.push(format!("stop[{i}]"));
                }
            }
        }
        match waiting.first() {
            None => Ok(()),
            Some(key) => wrong(format!(
                "{key}: needs evaluations, and eval_strategy is no; set eval_strategy to steps or \
                 epoch"
            )),
        }
    }
}

pub(super) fn wrong<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Config, message))
}

/// NaN fails too.
fn at_least(key: &str, value: f64, least: f64) -> Result<()> {
    if value.is_finite() && value >= least {
        return Ok(());
    }
    wrong(format!(
        "{key}: must be a finite number, at least {least}, found {value}"
    ))
}

/// NaN fails too.
fn above_zero(key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    wrong(format!(
        "{key}: must be a finite number above 0, found {value}"
    ))
}
