//! Checkpoints of a run: when one is due, what goes into it, and what became of it.

use super::Session;
use crate::config::SaveStrategy;
use crate::engine::any_network::AnyNetwork;
use crate::engine::checkpoint::{BestWeights, Contents, Durable, RunState};
use crate::engine::hooks::CheckpointReport;
use crate::error::{Error, ErrorKind, Result};
use crate::report::StopReason;
use std::path::Path;
use std::sync::Arc;

impl Session {
    pub(super) fn checkpoint_due(&self, epoch_end: bool) -> bool {
        // What is not finite is nothing to go on from.
        if self.stop_reason() == Some(StopReason::NonFinite) {
            return false;
        }
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

    /// Copies the state of the run and has it written in the background.
    pub(super) fn begin_checkpoint(&mut self) -> Result<()> {
        let folder = self.files.checkpoint(self.step);
        let contents = self.contents();
        self.writer.save(&folder, contents, self.network.as_mut())?;
        self.checkpointed = Some(self.step);
        Ok(())
    }

    /// Writes a checkpoint to a folder of the host's choice.
    pub(super) fn save_now(&mut self, folder: &Path) -> Result<()> {
        // Once the best weights are back, those of the last update, with which alone the run can go
        // on, stand in their place.
        self.exchange_best()?;
        let contents = self.contents();
        let network = self.network.as_mut();
        let saved = self.writer.save_now(folder, &contents, network);
        self.exchange_best()?;
        saved.map(drop)
    }

    /// Where the weights of the best and of the last update have changed places, puts them back; a
    /// second call undoes it.
    fn exchange_best(&mut self) -> Result<()> {
        if !self.restored_best {
            return Ok(());
        }
        let Some(best) = &mut self.best_weights else {
            return Ok(());
        };
        if best.values.is_empty() {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                "the run has ended with its best weights, and there was no room for those of the last \
                 update, which a checkpoint needs; export writes the best weights",
            ));
        }
        exchange(self.network.as_mut(), best)
    }

    fn contents(&mut self) -> Contents {
        let (log_bytes, log) = self.journal.mark();
        let state = RunState {
            step: self.step,
            epoch: self.epoch,
            total_tokens: self.total_tokens,
            skipped_updates: self.skipped_updates,
            optimizer_updates: self.network.updates(),
            elapsed_seconds: self.elapsed().as_secs_f64(),
            total_steps: self.total_steps,
            position: self.data.loader.as_ref().map(|loader| loader.position()),
            precision: self.precision.to_string(),
            loss_scale: self.loss_scale.clone(),
            stop: self.stop.state(),
            log_bytes,
            config: self.config.clone(),
            data: self.fingerprints.clone(),
        };
        Contents {
            state,
            best: self.best_weights.clone(),
            model: Arc::clone(&self.model),
            log,
        }
    }

    /// Takes in what has become of checkpoints on the way, without waiting.
    pub(super) fn poll_checkpoints(&mut self) -> Result<()> {
        let outcomes = self.writer.poll();
        let result = self.take_in(outcomes);
        self.warn_of_leftovers();
        result
    }

    /// As [`Session::poll_checkpoints`], once none is on the way any more.
    pub(super) fn finish_checkpoints(&mut self) -> Result<()> {
        let outcomes = self.writer.finish();
        let result = self.take_in(outcomes);
        self.writer.finish_removals();
        self.warn_of_leftovers();
        result
    }

    /// Nothing that was saved is lost by a checkpoint too many, so it does not hold up the run.
    fn warn_of_leftovers(&mut self) {
        for error in self.writer.not_removed() {
            self.hooks
                .warning(format!("an old checkpoint cannot be deleted: {error}"));
        }
    }

    fn take_in(&mut self, outcomes: Vec<Result<Durable>>) -> Result<()> {
        let mut result = Ok(());
        for outcome in outcomes {
            match outcome {
                Ok(durable) => self.is_durable(durable),
                Err(error) => {
                    // So that the last one is tried again at the end.
                    self.checkpointed = None;
                    result = result.and(Err(error));
                }
            }
        }
        result
    }

    fn is_durable(&mut self, durable: Durable) {
        let Durable { step, folder } = durable;
        self.durable = self.durable.max(Some(step));
        self.hooks.info(format!("{} is written", folder.display()));
        if let Some(checkpoint) = &mut self.hooks.checkpoint {
            checkpoint(&CheckpointReport { step, folder });
        }
        let best = self.stop.best().and_then(|best| best.step);
        let writing = self.writer.writing();
        let limit = self.config.save_total_limit;
        for folder in self.files.wrote(step, limit, best, writing) {
            self.writer.remove(folder);
        }
    }
}

/// Reads all weights into `values`, laid out as the parameter table.
pub(super) fn read_weights(network: &mut dyn AnyNetwork, values: &mut [f32]) -> Result<()> {
    let table = network.table().clone();
    for param in &table.params {
        let to = &mut values[param.offset..param.offset + param.len()];
        network.read_weight(param, 0, to)?;
    }
    Ok(())
}

/// Loads `best` into the network and keeps what was there in its place; nothing where the host has no
/// room for that.
pub(super) fn exchange(network: &mut dyn AnyNetwork, best: &mut BestWeights) -> Result<()> {
    let mut last = Vec::new();
    if last.try_reserve_exact(best.values.len()).is_ok() {
        last.resize(best.values.len(), 0.0);
        read_weights(network, &mut last)?;
    }
    let values = &best.values;
    // The operands of half precision are rounded anew on the way.
    network.load_weights(&|param, start, to| {
        to.copy_from_slice(&values[param.offset + start..][..to.len()]);
        Ok(())
    })?;
    best.values = Arc::new(last);
    Ok(())
}
