//! What a run keeps and leaves: the best weights, checkpoints, and its end.

use super::Session;
use crate::config::SaveStrategy;
use crate::engine::prepare;
use crate::error::Result;
use crate::model::save_model_folder;
use crate::report::StopReason;
use std::path::Path;

/// A copy of the weights at the best evaluation, in the layout of the parameter table.
pub(super) struct BestWeights {
    step: u64,
    values: Vec<f32>,
}

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
        let table = self.network.table().clone();
        let best = self.best_weights.get_or_insert_with(|| BestWeights {
            step: 0,
            values: vec![0.0; table.len],
        });
        best.step = self.step;
        for param in &table.params {
            let to = &mut best.values[param.offset..param.offset + param.len()];
            self.network.read_weight(param, 0, to)?;
        }
        Ok(())
    }

    pub(super) fn write_checkpoint(&mut self) -> Result<()> {
        let folder = self.files.checkpoint(self.step);
        self.write_model(&folder)?;
        let best = self.stop.best().and_then(|b| b.step);
        self.files
            .wrote(self.step, self.config.save_total_limit, best)
    }

    /// Once, after the verdict: the best weights put back or a checkpoint of the last step, as the
    /// configuration says, and the last row of the log.
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
        // First what no full disk can stop: whoever exports next must get these weights.
        if let Some(best) = &self.best_weights {
            let values = &best.values;
            // The operands of half precision are rounded anew on the way.
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
        let snapshot = self.snapshot();
        self.journal.end(&snapshot, &verdict.detail)?;
        let saves = self.config.save_strategy != SaveStrategy::No && self.step > 0;
        if saves && !self.restored_best && !self.files.has_checkpoint(self.step) {
            self.write_checkpoint()?;
        }
        Ok(())
    }

    pub(super) fn write_model(&mut self, dir: &Path) -> Result<()> {
        let source = prepare::model_folder(&self.config)?.to_path_buf();
        let (spec, table) = (self.network.spec().clone(), self.network.table().clone());
        let network = &mut self.network;
        save_model_folder(
            dir,
            source,
            &spec,
            &table,
            &self.saving,
            |param, start, chunk| network.read_weight(param, start, chunk),
        )
    }
}
