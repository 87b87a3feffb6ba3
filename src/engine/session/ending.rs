//! What a run keeps and how it ends: the best weights, the last checkpoint, the last row of the log.

use super::Session;
use super::saving::{exchange, read_weights};
use crate::config::SaveStrategy;
use crate::engine::checkpoint::BestWeights;
use crate::error::Result;
use crate::model::save_model_folder;
use crate::report::StopReason;
use std::path::Path;
use std::sync::Arc;

impl Session {
    /// Takes in a cancel request and finishes the run once a verdict is there. A device that failed has
    /// ended the run for good: every later call says so.
    pub(super) fn check_ended(&mut self) -> Result<bool> {
        self.network.status()?;
        if self.hooks.canceller.is_cancelled() {
            self.stop.request(StopReason::Cancelled, self.step);
        }
        self.end_if_stopped()?;
        Ok(self.stop.verdict().is_some())
    }

    /// Keeps the weights of this very step when it is the best so far, whatever `save_steps` says.
    pub(super) fn keep_best(&mut self) -> Result<()> {
        if !self.config.load_best_model_at_end || !self.stop.is_new_best() {
            return Ok(());
        }
        let len = self.network.table().len;
        let best = self.best_weights.get_or_insert_with(|| BestWeights {
            step: 0,
            values: Arc::default(),
        });
        best.step = self.step;
        // A checkpoint on the way may still hold the earlier ones: then these get a place of their own.
        let mut values = Arc::try_unwrap(std::mem::take(&mut best.values)).unwrap_or_default();
        values.resize(len, 0.0);
        let read = read_weights(self.network.as_mut(), &mut values);
        best.values = Arc::new(values);
        read
    }

    /// What an observation of the host's own leads to.
    pub(super) fn after_observation(&mut self) -> Result<()> {
        self.keep_best()?;
        // A checkpoint of this update does not know what was observed since.
        self.checkpointed = None;
        let best = self.config.save_strategy == SaveStrategy::Best && self.stop.is_new_best();
        let begun = match best && self.step > 0 {
            true => self.begin_checkpoint(),
            false => Ok(()),
        };
        let written = begun.and(self.poll_checkpoints());
        written.and(self.end_if_stopped())
    }

    /// Once, after the verdict: a checkpoint of the last update, then the best weights put back, as the
    /// configuration says, then the last row of the log. Whatever fails, the rest is done: whoever
    /// exports next must get the best weights.
    pub(super) fn end_if_stopped(&mut self) -> Result<()> {
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
        let saves = self.config.save_strategy != SaveStrategy::No
            && self.step > 0
            && verdict.reason != StopReason::NonFinite;
        let begun = self.checkpointed == Some(self.step);
        let mut result = self.finish_checkpoints();
        if saves && self.checkpointed != Some(self.step) {
            let last = self.begin_checkpoint().and(self.finish_checkpoints());
            // The one of this update that failed in the background has now been tried again.
            result = if begun { last } else { result.and(last) };
        }
        let restored = self.restore_best();
        let logged = self.journal.end(&self.snapshot(), &verdict.detail);
        result.and(restored).and(logged)
    }

    fn restore_best(&mut self) -> Result<()> {
        if let Some(best) = &mut self.best_weights {
            exchange(self.network.as_mut(), best)?;
            let step = best.step;
            self.restored_best = true;
            self.hooks
                .info(format!("the best weights, of update {step}, are back"));
        }
        Ok(())
    }

    pub(super) fn write_model(&mut self, dir: &Path) -> Result<()> {
        let model = Arc::clone(&self.model);
        let network = &mut self.network;
        save_model_folder(
            dir,
            &model.source,
            &model.spec,
            &model.table,
            &model.options,
            |param, start, chunk| network.read_weight(param, start, chunk),
        )
    }
}
