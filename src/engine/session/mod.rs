//! A run, from start to stop: this file is what a host sees of it. One update is in `update`, what a
//! run keeps and leaves in `ending`.

mod budget;
mod ending;
mod resume;
mod saving;
#[cfg(test)]
mod tests;
mod update;

use super::any_network::AnyNetwork;
use super::checkpoint::{BestWeights, ModelFiles, Writer};
use super::device::OpenDevice;
use super::evaluate::evaluate_batches;
use super::hooks::Hooks;
use super::journal::Journal;
use super::prepare::{self, Data};
use super::run_files::RunFiles;
use super::run_record::RunRecord;
use crate::config::{Changes, Config, EvalStrategy, list_changes};
use crate::data::{Batch, DataReport};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::MemoryPlan;
use crate::model::{ModelSpec, ParamTable, SaveOptions};
use crate::report::{EvalReport, Snapshot, StepReport, StopReason};
use crate::schedule::Schedule;
use crate::stop::{RuleStatus, StopMachine};
use crate::train::{AdamWOptions, LossScale};
use budget::{budget, schedule_length, total_steps};
use resume::Standing;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    /// Hashes of the rows by set.
    fingerprints: BTreeMap<String, String>,
    model: Arc<ModelFiles>,
    precision: DType,
    optimizer: AdamWOptions,
    schedule: Schedule,
    total_steps: Option<u64>,
    stop: StopMachine,
    files: RunFiles,
    journal: Journal,
    writer: Writer,
    /// The update of the newest checkpoint, on the way or durable, as long as it knows everything.
    checkpointed: Option<u64>,
    /// The update of the newest durable checkpoint.
    durable: Option<u64>,
    /// The update that this leg of the run went on from.
    resumed: Option<u64>,
    /// When this leg began, and how long those before it took.
    started: Instant,
    elapsed_before: Duration,
    step: u64,
    /// In float16.
    loss_scale: Option<LossScale>,
    skipped_updates: u64,
    epoch: f64,
    total_tokens: u64,
    /// Floating-point operations a second that the run's speed is held against, if measured.
    ceiling: Option<f64>,
    last_report: Option<StepReport>,
    last_evaluation: Option<EvalReport>,
    best_weights: Option<BestWeights>,
    restored_best: bool,
    /// The verdict's consequences (best weights, checkpoint, last log row) are done.
    ended: bool,
}

impl Session {
    /// Loads the model and the data that `config` names, plans and allocates all memory, and opens
    /// the log in `output_dir`; or goes on from a checkpoint where `resume_from_checkpoint` says so.
    /// Without `dataset_name` the host feeds its own batches by
    /// [`Session::step_batch`].
    ///
    /// A session has threads of its own. A host that trains several at once drives each from a plain
    /// thread: a task of a rayon pool that waits for them takes up other tasks of that pool meanwhile, one
    /// session within another.
    ///
    /// # Errors
    /// Of kind `Config`, `Model`, `Tensor`, `Tokenizer`, `Template`, `Data`, `OutOfMemory`, `Exists`,
    /// `Checkpoint`, `Io`; each names what is wrong and where. `Cancelled` when the canceller was triggered.
    pub fn start(config: Config, mut hooks: Hooks) -> Result<Self> {
        config.validate()?;
        hooks.canceller.check("starting")?;
        let earlier = resume::find(&config, &mut hooks)?;
        let device = OpenDevice::open(&config, &mut hooks)?;
        let spec = ModelSpec::from_dir(prepare::model_folder(&config)?)?;
        let mut data = prepare::open_data(&config, &spec, &mut hooks)?;
        if data.eval.is_empty()
            && (config.eval_strategy != EvalStrategy::No || config.eval_on_start)
            && data.loader.is_some()
        {
            return Err(Error::new(
                ErrorKind::Config,
                "eval_strategy: there are no rows to evaluate on; set eval_dataset_name or val_size",
            ));
        }
        let fingerprints = resume::fingerprints(&data);
        let precision = device.needs().precision;
        let changes = match &earlier {
            Some(earlier) => earlier.check(&config, &spec, precision, &fingerprints)?,
            None => Changes::default(),
        };
        if !changes.allowed.is_empty() {
            hooks.info(format!("changed: {}", list_changes(&changes.allowed)));
        }
        let model = Arc::new(ModelFiles {
            source: prepare::model_folder(&config)?.to_path_buf(),
            spec: spec.clone(),
            table: ParamTable::new(&spec),
            options: SaveOptions {
                overrides: prepare::overrides(&config)?,
                ..SaveOptions::default()
            },
        });
        let total_steps = total_steps(&config, &data);
        let schedule = config.schedule(schedule_length(&config, total_steps)?)?;
        let work = prepare::training_workload(&config, &spec, &data, device.needs())?;
        let mut stop =
            StopMachine::new(&config.stop_rules()?, budget(&config, &data, total_steps))?;
        if let Some((metric, direction)) = config.best_metric()? {
            stop.watch(metric, direction);
        }
        let mut standing = Standing::new(precision);
        let mut network = match &earlier {
            None => prepare::open_network(&config, device, spec, work, &mut hooks)?,
            Some(earlier) => {
                earlier.restore_rules(&config, &mut stop, total_steps, &mut hooks)?;
                if let Some(loader) = &mut data.loader {
                    earlier.seek(loader, &changes)?;
                }
                standing = earlier.standing(&config, precision, &model.table, &stop)?;
                earlier.open_network(device, spec, work, &mut hooks)?
            }
        };
        let ceiling = prepare::ceiling(&config, network.as_mut(), &mut hooks)?;
        // The folder is made last: a failed start leaves nothing behind.
        let mut files = RunFiles::create(&config.output_dir)?;
        let reports = data.reports();
        let record = RunRecord {
            ceiling_flops_per_second: ceiling,
            ..RunRecord::new(&config, network.as_ref(), precision, reports, total_steps)
        };
        let overwrite = config.overwrite_output_dir;
        let begun = earlier.as_ref();
        let resumed = begun.map(|_| standing.step);
        let events = files.events(&config, resumed)?;
        let journal = resume::begin_files(begun, overwrite, &mut files, record, &mut hooks);
        let journal = match journal {
            Ok(journal) => journal.with_events(events),
            Err(error) => {
                if let Some(events) = events {
                    events.remove();
                    files.take_back();
                }
                return Err(error);
            }
        };
        let written = |earlier: &resume::Earlier| earlier.checkpoint.written().clone();
        let mut writer = Writer::new(earlier.as_ref().map(written));
        let of_last = files.checkpoint(standing.step);
        let is_last = earlier
            .as_ref()
            .is_some_and(|earlier| earlier.is_at(&of_last));
        if is_last {
            // The leg before may have been cut off before it deleted what was too many.
            let best = stop.best().and_then(|best| best.step);
            for folder in files.wrote(standing.step, config.save_total_limit, best, None) {
                writer.remove(folder);
            }
        }
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
            fingerprints,
            model,
            precision,
            schedule,
            total_steps,
            stop,
            files,
            journal,
            writer,
            checkpointed: resumed.filter(|_| is_last),
            durable: resumed.filter(|_| is_last),
            resumed,
            started: Instant::now(),
            elapsed_before: standing.elapsed,
            step: standing.step,
            loss_scale: standing.loss_scale,
            skipped_updates: standing.skipped_updates,
            epoch: standing.epoch,
            total_tokens: standing.total_tokens,
            ceiling,
            last_report: None,
            last_evaluation: None,
            best_weights: standing.best_weights,
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
    /// same, and the run can go on. `Device` when the device failed: the run cannot go on, and every
    /// later call that needs the device fails alike.
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
        self.run_update(&update.micro_batches, update.epoch, update.epoch_end)
            .map(Some)
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
        self.run_update(micro_batches, self.epoch, false).map(Some)
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
        self.last_evaluation = Some(report.clone());
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
        self.after_observation()
    }

    /// Whether the run has ended, or its device has failed so that it cannot go on. Stays true once it
    /// is.
    pub fn should_stop(&self) -> bool {
        self.stop.verdict().is_some() || self.hooks.canceller.is_cancelled() || self.has_failed()
    }

    /// Whether the device has failed, so that nothing more can be done with this run.
    pub fn has_failed(&self) -> bool {
        self.network.status().is_err()
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
            elapsed_seconds: self.elapsed().as_secs_f64(),
            resumed_step: self.resumed,
            checkpoint_step: self.durable,
        }
    }

    /// Wall time of the run, over all its legs.
    fn elapsed(&self) -> Duration {
        self.elapsed_before + self.started.elapsed()
    }

    /// Where every stop rule stands, for display.
    pub fn rule_status(&self) -> Vec<RuleStatus> {
        self.stop.status(&self.observation(&[]))
    }

    /// What became of the training rows and of the evaluation rows, the first set of them where there
    /// are several.
    pub fn data_reports(&self) -> (Option<&DataReport>, Option<&DataReport>) {
        let eval = self.data.eval.first().map(|set| &set.report);
        (self.data.train_report.as_ref(), eval)
    }

    /// What became of the rows of each evaluation set, with its name if it has one.
    pub fn eval_reports(&self) -> impl Iterator<Item = (Option<&str>, &DataReport)> {
        let sets = self.data.eval.iter();
        sets.map(|set| (set.name.as_deref(), &set.report))
    }

    /// The report of the last update since the start or the resumption, if there was one; also of one
    /// whose call returned an error although it took effect.
    pub fn last_report(&self) -> Option<&StepReport> {
        self.last_report.as_ref()
    }

    /// The last evaluation of this run, if there was one: over all sets and, where they have names, of
    /// each.
    pub fn last_evaluation(&self) -> Option<&EvalReport> {
        self.last_evaluation.as_ref()
    }

    /// The memory plan of this run.
    pub fn memory_plan(&self) -> &MemoryPlan {
        self.network.plan()
    }

    /// Floating-point operations a second of this machine's matrix products on the model's widest
    /// layers, as measured at the start; `None` without `measure_ceiling`. What
    /// [`StepReport::model_flops_per_second`] is held against.
    pub fn ceiling_flops_per_second(&self) -> Option<f64> {
        self.ceiling
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

    /// Writes a checkpoint to `dir`, whole or not at all, durable on return: all that a run needs to go
    /// on by [`Session::resume`]. It is a Hugging Face folder too, with the weights of the last update
    /// in float32. Once the run has ended and the best weights are back, those are in the checkpoint
    /// beside the last ones, and [`Session::export`] is what writes them as a model.
    ///
    /// # Errors
    /// `Io` naming the file; what stood in `dir` stays as it was. When this call also ends a cancelled
    /// run and that fails, as for a log on a full disk, the checkpoint is written all the same.
    pub fn save(&mut self, dir: impl AsRef<Path>) -> Result<()> {
        // A host whose loop ended on the canceller has not called `step` since: the run ends here.
        // What fails there, such as the last row of the log, must not cost the weights.
        let ended = self.check_ended();
        self.save_now(dir.as_ref())?;
        ended.map(drop)
    }

    /// Writes the weights and the tokenizer as a Hugging Face folder, whole or not at all; the
    /// configuration's `eos_token` and `chat_template_path` are part of it. `what` says which weights.
    ///
    /// # Errors
    /// As [`Session::save`].
    pub fn export(&mut self, dir: impl AsRef<Path>, what: Export) -> Result<()> {
        let ended = self.check_ended();
        match what {
            Export::Full => self.write_model(dir.as_ref())?,
        }
        ended.map(drop)
    }
}
