//! One update of a run: forward, backward, optimizer, and everything that is due after it.

use super::Session;
use crate::config::EvalStrategy;
use crate::data::Batch;
use crate::engine::evaluate::evaluate_sets;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::ClipStats;
use crate::report::{EvalReport, StepReport, StopReason};
use crate::stop::Observation;
use crate::train::LossScale;
use std::time::Instant;

impl Session {
    /// Forward, backward and optimizer over the update's micro-batches, then what is due. `epoch` is
    /// how many epochs are done after it.
    pub(super) fn run_update(
        &mut self,
        micro_batches: &[Batch],
        epoch: f64,
        epoch_end: bool,
    ) -> Result<StepReport> {
        let clock = Instant::now();
        let learning_rate = self.schedule.lr(self.step);
        // Counted over all micro-batches first: the loss is a mean over the whole update.
        let supervised: usize = micro_batches.iter().map(Batch::supervised).sum();
        let tokens: usize = micro_batches.iter().map(|b| b.tokens.len()).sum();
        // Where nothing is supervised nothing is to be done.
        let worked = micro_batches.iter().filter(|b| b.supervised() > 0);
        let lengths = worked.flat_map(Batch::sequences).map(|s| s.len());
        let model_flops = self.network.spec().training_flops(lengths, supervised);
        let scale = 1.0 / supervised.max(1) as f64;
        let loss_scale = self.loss_scale.as_ref().map(LossScale::scale);
        let factor = loss_scale.unwrap_or(1.0);
        for batch in micro_batches {
            if let Err(error) = self.network.forward_backward(batch, scale * factor) {
                self.network.zero_gradients();
                return Err(error);
            }
        }
        let clip = match supervised {
            0 => ClipStats::default(),
            _ => self
                .network
                .update(&self.optimizer, learning_rate, factor)?,
        };
        let sums = self.network.take_sums()?;

        self.step += 1;
        self.count_update(supervised > 0, clip.finite != 0.0);
        self.epoch = epoch;
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
            model_flops,
            seconds: clock.elapsed().as_secs_f64(),
            eval: None,
            stop_reason: None,
            loss_scale,
            skipped_updates: self.skipped_updates,
        };
        let mut failed = None;
        if self.evaluation_due(epoch_end) {
            match self.run_evaluation() {
                Ok(eval) => report.eval = Some(eval),
                // The evaluation was not taken; the next call ends the run.
                Err(error) if error.kind() == ErrorKind::Cancelled => {}
                Err(error) => failed = Some(error),
            }
        }
        // The update has taken effect, whatever became of its evaluation.
        let finished = self.finish_update(&mut report, epoch_end);
        self.last_report = Some(report.clone());
        finished?;
        match failed {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }

    /// Counts an update that has been tried. One without a supervised token had no gradient to apply,
    /// so it says nothing about the loss scale.
    fn count_update(&mut self, supervised: bool, finite: bool) {
        let skipped = supervised && !finite;
        self.skipped_updates += u64::from(skipped);
        if let Some(state) = self.loss_scale.as_mut().filter(|_| supervised) {
            let before = state.scale();
            state.observe(finite);
            let (step, after) = (self.step, state.scale());
            if skipped && after < before {
                self.hooks.info(format!(
                    "update {step} was not applied: its gradient overflowed at loss scale {before}; \
                     the next one has {after}"
                ));
            }
        }
    }

    /// Stop rules, log, callback, checkpoint, and the end of the run if it is there.
    pub(super) fn finish_update(&mut self, report: &mut StepReport, epoch_end: bool) -> Result<()> {
        let of_sets = report.eval.as_ref().map(EvalReport::named_metrics);
        let observation = Observation {
            train: Some((&*report).into()),
            eval: report.eval.as_ref().map(Into::into),
            ..self.observation(of_sets.as_deref().unwrap_or_default())
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
        let elapsed = self.elapsed();
        let mut logged = self.journal.update(report, self.ceiling, elapsed);
        if let Some(eval) = &report.eval {
            logged = logged.and(self.journal.evaluation(self.epoch, eval, elapsed));
        }
        logged?;
        let begun = match self.checkpoint_due(epoch_end) {
            true => self.begin_checkpoint(),
            false => Ok(()),
        };
        let written = begun.and(self.poll_checkpoints());
        written.and(self.end_if_stopped())
    }

    pub(super) fn observation<'a>(&self, host: &'a [(String, f64)]) -> Observation<'a> {
        Observation {
            step: self.step,
            epoch: self.epoch,
            tokens: self.total_tokens,
            seconds: self.elapsed().as_secs_f64(),
            train: None,
            eval: None,
            host,
        }
    }

    pub(super) fn evaluation_due(&self, epoch_end: bool) -> bool {
        if self.data.eval.is_empty() {
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

    pub(super) fn evaluate_on_start(&mut self) -> Result<()> {
        if self.step == 0 && self.config.eval_on_start && !self.data.eval.is_empty() {
            // A look at the untouched model: logged, but no rule counts it as progress.
            let report = self.run_evaluation()?;
            self.journal
                .evaluation(self.epoch, &report, self.elapsed())?;
            self.hooks.info(format!(
                "evaluation before the first update: loss {:.4}",
                report.loss
            ));
        }
        Ok(())
    }

    pub(super) fn run_evaluation(&mut self) -> Result<EvalReport> {
        let (sets, step) = (&self.data.eval, self.step);
        if sets.is_empty() {
            return Err(Error::new(
                ErrorKind::Data,
                "there are no evaluation rows: set eval_dataset_name or val_size, or use \
                 evaluate_batch",
            ));
        }
        let rows = self.config.per_device_eval_batch_size;
        let report = evaluate_sets(self.network.as_mut(), sets, rows, step, &self.hooks)?;
        self.last_evaluation = Some(report.clone());
        Ok(report)
    }

    /// Takes in an evaluation that the host asked for.
    pub(super) fn observe_evaluation(&mut self, report: &EvalReport) -> Result<()> {
        let of_sets = report.named_metrics();
        let observation = Observation {
            eval: Some(report.into()),
            ..self.observation(&of_sets)
        };
        self.stop.observe(&observation);
        self.journal
            .evaluation(self.epoch, report, self.elapsed())?;
        self.after_observation()
    }
}
