//! A run, from start to stop.

use super::any_network::AnyNetwork;
use super::evaluate::{evaluate_batches, evaluate_dataset};
use super::hooks::Hooks;
use super::journal::Journal;
use super::prepare::{self, Data};
use super::run_files::RunFiles;
use crate::config::{Config, EvalStrategy, SaveStrategy};
use crate::data::{Batch, DataReport, Update};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::MemoryPlan;
use crate::model::{ModelSpec, SaveOptions, save_model_folder};
use crate::report::{EvalReport, Snapshot, StepReport, StopReason};
use crate::schedule::Schedule;
use crate::stop::{Budget, Observation, RuleStatus, StopMachine};
use crate::train::AdamWOptions;
use std::path::Path;
use std::time::Instant;

/// What [`Session::export`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Export {
    /// The whole model as a Hugging Face folder.
    Full,
}

/// A run of supervised fine-tuning.
///
/// [`Session::start`] loads the model and the data; each [`Session::step`] is one optimizer update
/// with the evaluation, checkpoint and stop decision that are due after it, until
/// [`Session::should_stop`]. Weights are read out by [`Session::export`].
pub struct Session {
    config: Config,
    hooks: Hooks,
    network: Box<dyn AnyNetwork>,
    data: Data,
    saving: SaveOptions,
    optimizer: AdamWOptions,
    schedule: Schedule,
    total_steps: Option<u64>,
    stop: StopMachine,
    files: RunFiles,
    journal: Journal,
    started: Instant,
    step: u64,
    epoch: f64,
    total_tokens: u64,
    best_weights: Option<BestWeights>,
    restored_best: bool,
    /// The verdict's consequences (best weights, checkpoint, last log row) are done.
    ended: bool,
}

/// A copy of the weights at the best evaluation, in the layout of the parameter table.
struct BestWeights {
    step: u64,
    values: Vec<f32>,
}

impl Session {
    /// Loads the model and the data that `config` names, plans and allocates all memory, and opens
    /// the log in `output_dir`. Without `dataset_name` the host feeds its own batches by
    /// [`Session::step_batch`].
    ///
    /// # Errors
    /// Of kind `Config`, `Model`, `Tensor`, `Tokenizer`, `Template`, `Data`, `OutOfMemory`, `Exists`,
    /// `Io`; each names what is wrong and where. `Cancelled` when the canceller was triggered.
    pub fn start(config: Config, mut hooks: Hooks) -> Result<Self> {
        config.validate()?;
        hooks.canceller.check("starting")?;
        let spec = ModelSpec::from_dir(prepare::model_folder(&config)?)?;
        let data = prepare::open_data(&config, &spec, &mut hooks)?;
        if data.eval.is_none()
            && (config.eval_strategy != EvalStrategy::No || config.eval_on_start)
            && data.loader.is_some()
        {
            return Err(Error::new(
                ErrorKind::Config,
                "eval_strategy: there are no rows to evaluate on; set eval_dataset_name or val_size",
            ));
        }
        let saving = SaveOptions {
            overrides: prepare::overrides(&config)?,
            ..SaveOptions::default()
        };
        let total_steps = total_steps(&config, &data);
        let schedule = config.schedule(total_steps.or_needed_by(&config)?)?;
        let work = prepare::training_workload(&config, &spec, &data)?;
        let mut stop =
            StopMachine::new(&config.stop_rules()?, budget(&config, &data, total_steps))?;
        if let Some((metric, direction)) = config.best_metric()? {
            stop.watch(metric, direction);
        }
        let network = prepare::open_network(&config, spec, work, &mut hooks)?;
        // The folder is claimed last: a failed start leaves nothing behind.
        let files = RunFiles::claim(&config.output_dir, config.overwrite_output_dir)?;
        let journal = Journal::create(files.folder())?;
        Ok(Self {
            optimizer: AdamWOptions {
                beta1: config.adam_beta1,
                beta2: config.adam_beta2,
                epsilon: config.adam_epsilon,
                weight_decay: config.weight_decay,
                max_grad_norm: config.max_grad_norm,
            },
            config,
            hooks,
            network,
            data,
            saving,
            schedule,
            total_steps,
            stop,
            files,
            journal,
            started: Instant::now(),
            step: 0,
            epoch: 0.0,
            total_tokens: 0,
            best_weights: None,
            restored_best: false,
            ended: false,
        })
    }

    /// One optimizer update on the next rows, with everything that is due after it. `None` once the
    /// run has ended.
    ///
    /// # Errors
    /// `InvalidArgument` without a data set. `Io` when a checkpoint or the log cannot be written, and
    /// those of [`Session::evaluate`] when an evaluation is due: the update has taken effect all the
    /// same, and the run can go on.
    pub fn step(&mut self) -> Result<Option<StepReport>> {
        if self.check_ended()? {
            return Ok(None);
        }
        self.evaluate_on_start()?;
        let Some(loader) = &mut self.data.loader else {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "this run has no dataset_name: feed it by step_batch",
            ));
        };
        let update = loader.next_update();
        self.run_update(update).map(Some)
    }

    /// One optimizer update on the host's micro-batches, which are one update together. `None` once
    /// the run has ended.
    ///
    /// # Errors
    /// `Batch` for a malformed micro-batch; nothing has changed then.
    pub fn step_batch(&mut self, micro_batches: &[Batch]) -> Result<Option<StepReport>> {
        if self.check_ended()? {
            return Ok(None);
        }
        if micro_batches.is_empty() {
            return Err(Error::new(
                ErrorKind::Batch,
                "an update needs at least one micro-batch",
            ));
        }
        for (i, batch) in micro_batches.iter().enumerate() {
            self.network
                .check_batch(batch)
                .map_err(|e| e.context(format!("micro-batch {i}")))?;
        }
        self.evaluate_on_start()?;
        let micro_batches = micro_batches.to_vec();
        self.run_update(Update {
            micro_batches,
            epoch: self.epoch,
            epoch_end: false,
        })
        .map(Some)
    }

    /// Evaluates on the evaluation rows now. The result is logged and seen by the stop rules.
    ///
    /// # Errors
    /// `Data` when there are no evaluation rows.
    pub fn evaluate(&mut self) -> Result<EvalReport> {
        let report = self.run_evaluation()?;
        self.observe_evaluation(&report)?;
        Ok(report)
    }

    /// Evaluates on the host's batches, as [`Session::evaluate`].
    ///
    /// # Errors
    /// `Batch` for a malformed batch, `Data` when nothing in them is supervised.
    pub fn evaluate_batch(&mut self, batches: &[Batch]) -> Result<EvalReport> {
        for (i, batch) in batches.iter().enumerate() {
            self.network
                .check_batch(batch)
                .map_err(|e| e.context(format!("batch {i}")))?;
        }
        let mut batches = batches.iter();
        let report = evaluate_batches(self.network.as_mut(), self.step, || Ok(batches.next()))?;
        self.observe_evaluation(&report)?;
        Ok(report)
    }

    /// Feeds a number of the host's own to the stop rules, as known after the last update. A built-in
    /// name such as `eval_loss` stands for that metric, so a host may evaluate by itself.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty name.
    pub fn observe(&mut self, metric: &str, value: f64) -> Result<()> {
        if metric.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "the metric has no name",
            ));
        }
        let host = [(metric.to_owned(), value)];
        let observation = self.observation(&host);
        self.stop.observe(&observation);
        self.keep_best()?;
        self.end_if_stopped()
    }

    /// Whether the run has ended. Stays true once it is.
    pub fn should_stop(&self) -> bool {
        self.stop.verdict().is_some() || self.hooks.canceller.is_cancelled()
    }

    /// Why the run ended; `None` while it goes on.
    pub fn stop_reason(&self) -> Option<StopReason> {
        match self.stop.verdict() {
            Some(verdict) => Some(verdict.reason),
            None => self
                .hooks
                .canceller
                .is_cancelled()
                .then_some(StopReason::Cancelled),
        }
    }

    /// Why the run ended, for people: the rule and its numbers.
    pub fn stop_detail(&self) -> Option<&str> {
        self.stop.verdict().map(|v| v.detail.as_str())
    }

    /// Asks the run to stop, for the host: takes effect at once.
    ///
    /// # Errors
    /// `Io` when what is due at the end cannot be written.
    pub fn request_stop(&mut self, reason: StopReason) -> Result<()> {
        self.stop.request(reason, self.step);
        self.end_if_stopped()
    }

    /// Where the run stands.
    pub fn snapshot(&self) -> Snapshot {
        let best = self.stop.best();
        Snapshot {
            step: self.step,
            total_steps: self.total_steps,
            epoch: self.epoch,
            total_tokens: self.total_tokens,
            best_step: best.and_then(|b| b.step),
            best_value: best.map(|b| b.value),
            patience_used: self.stop.patience_used(),
            stop_reason: self.stop_reason(),
        }
    }

    /// Where every stop rule stands, for display.
    pub fn rule_status(&self) -> Vec<RuleStatus> {
        self.stop.status(&self.observation(&[]))
    }

    /// What became of the training rows and of the evaluation rows.
    pub fn data_reports(&self) -> (Option<&DataReport>, Option<&DataReport>) {
        (
            self.data.train_report.as_ref(),
            self.data.eval_report.as_ref(),
        )
    }

    /// The memory plan of this run.
    pub fn memory_plan(&self) -> &MemoryPlan {
        self.network.plan()
    }

    /// The configuration that the run was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device in words.
    pub fn device(&self) -> String {
        self.network.device()
    }

    /// Whether the weights are those of the best evaluation, put back when the run ended.
    pub fn restored_best(&self) -> bool {
        self.restored_best
    }

    /// Writes the weights and the tokenizer as a Hugging Face folder, whole or not at all; the
    /// configuration's `eos_token` and `chat_template_path` are part of it.
    ///
    /// # Errors
    /// `Io` naming the file; an earlier model in `dir` stays as it was.
    pub fn save(&mut self, dir: impl AsRef<Path>) -> Result<()> {
        self.export(dir, Export::Full)
    }

    /// As [`Session::save`], choosing what is written.
    ///
    /// # Errors
    /// As [`Session::save`].
    pub fn export(&mut self, dir: impl AsRef<Path>, what: Export) -> Result<()> {
        match what {
            Export::Full => self.write_model(dir.as_ref()),
        }
    }

    fn write_model(&mut self, dir: &Path) -> Result<()> {
        let source = prepare::model_folder(&self.config)?.to_path_buf();
        let (spec, table) = (self.network.spec().clone(), self.network.table().clone());
        let network = &mut self.network;
        save_model_folder(
            dir,
            source,
            &spec,
            &table,
            &self.saving,
            |param, start, chunk| {
                network.read_weight(param, start, chunk);
                Ok(())
            },
        )
    }

    /// Takes in a cancel request and finishes the run once a verdict is there.
    fn check_ended(&mut self) -> Result<bool> {
        if self.hooks.canceller.is_cancelled() {
            self.stop.request(StopReason::Cancelled, self.step);
        }
        self.end_if_stopped()?;
        Ok(self.stop.verdict().is_some())
    }

    /// Forward, backward and optimizer over the update's micro-batches, then what is due.
    fn run_update(&mut self, update: Update) -> Result<StepReport> {
        let clock = Instant::now();
        let learning_rate = self.schedule.lr(self.step);
        // Counted over all micro-batches first: the loss is a mean over the whole update.
        let supervised: usize = update.micro_batches.iter().map(Batch::supervised).sum();
        let tokens: usize = update.micro_batches.iter().map(|b| b.tokens.len()).sum();
        let scale = 1.0 / supervised.max(1) as f64;
        for batch in &update.micro_batches {
            if let Err(error) = self.network.forward_backward(batch, scale) {
                self.network.zero_gradients();
                return Err(error);
            }
        }
        let clip = match supervised {
            0 => Default::default(),
            _ => self.network.update(&self.optimizer, learning_rate),
        };
        let sums = self.network.take_sums();

        self.step += 1;
        self.epoch = update.epoch;
        self.total_tokens += tokens as u64;
        let mut report = StepReport {
            step: self.step,
            epoch: self.epoch,
            loss: sums.loss * scale,
            smoothed_loss: None,
            grad_norm: f64::from(clip.norm),
            learning_rate,
            token_accuracy: sums.correct as f64 * scale,
            entropy: sums.entropy * scale,
            supervised_tokens: sums.supervised,
            tokens: tokens as u64,
            total_tokens: self.total_tokens,
            seconds: clock.elapsed().as_secs_f64(),
            eval: None,
            stop_reason: None,
        };
        let mut failed = None;
        if self.evaluation_due(update.epoch_end) {
            match self.run_evaluation() {
                Ok(eval) => report.eval = Some(eval),
                // The evaluation was not taken; the next call ends the run.
                Err(error) if error.kind() == ErrorKind::Cancelled => {}
                Err(error) => failed = Some(error),
            }
        }
        // The update has taken effect, whatever became of its evaluation.
        self.finish_update(&mut report, update.epoch_end)?;
        match failed {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }

    /// Stop rules, log, callback, checkpoint, and the end of the run if it is there.
    fn finish_update(&mut self, report: &mut StepReport, epoch_end: bool) -> Result<()> {
        let observation = Observation {
            train: Some((&*report).into()),
            eval: report.eval.as_ref().map(Into::into),
            ..self.observation(&[])
        };
        self.stop.observe(&observation);
        report.smoothed_loss = self.stop.smoothed();
        self.keep_best()?;
        report.stop_reason = self.stop.verdict().map(|v| v.reason);
        if let Some(progress) = &mut self.hooks.progress
            && progress(report)
        {
            self.stop.request(StopReason::Callback, self.step);
            report.stop_reason = self.stop.verdict().map(|v| v.reason);
        }
        self.journal.update(report, self.started.elapsed())?;
        if let Some(eval) = &report.eval {
            self.journal
                .evaluation(self.epoch, eval, self.started.elapsed())?;
        }
        if self.checkpoint_due(epoch_end) {
            self.write_checkpoint()?;
        }
        self.end_if_stopped()
    }

    fn observation<'a>(&self, host: &'a [(String, f64)]) -> Observation<'a> {
        Observation {
            step: self.step,
            epoch: self.epoch,
            tokens: self.total_tokens,
            seconds: self.started.elapsed().as_secs_f64(),
            train: None,
            eval: None,
            host,
        }
    }

    fn evaluation_due(&self, epoch_end: bool) -> bool {
        if self.data.eval.is_none() {
            return false;
        }
        let last = self.total_steps == Some(self.step);
        match self.config.eval_strategy {
            EvalStrategy::No => false,
            EvalStrategy::Epoch => epoch_end && self.config.eval_delay <= self.epoch,
            EvalStrategy::Steps => {
                let total = self.total_steps.unwrap_or(0);
                let interval = self.config.eval_interval().of(total).max(1);
                let due = self.step.is_multiple_of(interval) || last;
                due && self.config.eval_delay <= self.step as f64
            }
        }
    }

    fn checkpoint_due(&self, epoch_end: bool) -> bool {
        match self.config.save_strategy {
            SaveStrategy::No => false,
            SaveStrategy::Epoch => epoch_end,
            SaveStrategy::Best => self.stop.is_new_best(),
            SaveStrategy::Steps => {
                let interval = self
                    .config
                    .save_steps
                    .of(self.total_steps.unwrap_or(0))
                    .max(1);
                self.step.is_multiple_of(interval)
            }
        }
    }

    fn evaluate_on_start(&mut self) -> Result<()> {
        if self.step == 0 && self.config.eval_on_start && self.data.eval.is_some() {
            // A look at the untouched model: logged, but no rule counts it as progress.
            let report = self.run_evaluation()?;
            self.journal
                .evaluation(self.epoch, &report, self.started.elapsed())?;
            self.hooks.info(format!(
                "evaluation before the first update: loss {:.4}",
                report.loss
            ));
        }
        Ok(())
    }

    fn run_evaluation(&mut self) -> Result<EvalReport> {
        let Some(dataset) = &self.data.eval else {
            return Err(Error::new(
                ErrorKind::Data,
                "there are no evaluation rows: set eval_dataset_name or val_size, or use \
                 evaluate_batch",
            ));
        };
        let rows = self.config.per_device_eval_batch_size;
        evaluate_dataset(self.network.as_mut(), dataset, rows, self.step, &self.hooks)
    }

    /// Takes in an evaluation that the host asked for.
    fn observe_evaluation(&mut self, report: &EvalReport) -> Result<()> {
        let observation = Observation {
            eval: Some(report.into()),
            ..self.observation(&[])
        };
        self.stop.observe(&observation);
        self.journal
            .evaluation(self.epoch, report, self.started.elapsed())?;
        self.keep_best()?;
        self.end_if_stopped()
    }

    /// Keeps the weights of this very step when it is the best so far, whatever `save_steps` says.
    fn keep_best(&mut self) -> Result<()> {
        if !self.config.load_best_model_at_end || !self.stop.is_new_best() {
            return Ok(());
        }
        let table = self.network.table().clone();
        let best = self.best_weights.get_or_insert_with(|| BestWeights {
            step: 0,
            values: vec![0.0; table.len],
        });
        best.step = self.step;
        for param in &table.params {
            let to = &mut best.values[param.offset..param.offset + param.len()];
            self.network.read_weight(param, 0, to);
        }
        Ok(())
    }

    fn write_checkpoint(&mut self) -> Result<()> {
        let folder = self.files.checkpoint(self.step);
        self.write_model(&folder)?;
        let best = self.stop.best().and_then(|b| b.step);
        self.files
            .wrote(self.step, self.config.save_total_limit, best)
    }

    /// Once, after the verdict: the best weights put back or a checkpoint of the last step, as the
    /// configuration says, and the last row of the log.
    fn end_if_stopped(&mut self) -> Result<()> {
        let Some(verdict) = self.stop.verdict().cloned() else {
            return Ok(());
        };
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        self.hooks.info(format!(
            "stopped after update {}: {}: {}",
            verdict.step,
            verdict.reason.code(),
            verdict.detail
        ));
        let snapshot = self.snapshot();
        self.journal.end(&snapshot, &verdict.detail)?;
        match &self.best_weights {
            Some(best) => {
                let values = &best.values;
                self.network.load_weights(&mut |param, to| {
                    to.copy_from_slice(&values[param.offset..param.offset + param.len()]);
                    Ok(())
                })?;
                self.hooks.info(format!(
                    "the best weights, of update {}, are back",
                    best.step
                ));
                self.restored_best = true;
            }
            None if self.config.save_strategy != SaveStrategy::No
                && self.step > 0
                && !self.files.has_checkpoint(self.step) =>
            {
                self.write_checkpoint()?;
            }
            None => {}
        }
        Ok(())
    }
}

/// Updates that the budget allows, where that is known before the run.
fn total_steps(config: &Config, data: &Data) -> Option<u64> {
    if let Ok(steps) = u64::try_from(config.max_steps) {
        return Some(steps);
    }
    let per_epoch = data.loader.as_ref()?.updates_per_epoch() as f64;
    Some((config.num_train_epochs * per_epoch).ceil() as u64)
}

/// What a schedule is made for when the number of updates is not known.
trait OrNeeded {
    fn or_needed_by(self, config: &Config) -> Result<u64>;
}

impl OrNeeded for Option<u64> {
    fn or_needed_by(self, config: &Config) -> Result<u64> {
        if let Some(steps) = self {
            return Ok(steps);
        }
        if config.lr_scheduler_type.needs_total() || config.warmup_steps.0.fract() != 0.0 {
            return Err(Error::new(
                ErrorKind::Config,
                "max_steps: set it, since the host feeds the batches and the learning-rate schedule \
                 depends on the number of updates; or choose lr_scheduler_type: constant",
            ));
        }
        Ok(u64::MAX)
    }
}

/// The limits of the run. The epoch budget is that of the last planned update, so that a fraction of
/// an epoch ends where the peer's does.
fn budget(config: &Config, data: &Data, total_steps: Option<u64>) -> Budget {
    let mut budget = config.budget();
    budget.max_epochs = match (&data.loader, total_steps, budget.max_epochs) {
        (Some(loader), Some(total), Some(_)) => Some(loader.epochs_after(total)),
        _ => None,
    };
    budget
}
