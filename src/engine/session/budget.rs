//! How long a run may be, as its configuration and its rows say.

use crate::config::Config;
use crate::engine::prepare::Data;
use crate::error::{Error, ErrorKind, Result};
use crate::stop::Budget;

/// Updates that the budget allows, where that is known before the run.
pub(super) fn total_steps(config: &Config, data: &Data) -> Option<u64> {
    if let Ok(steps) = u64::try_from(config.max_steps) {
        return Some(steps);
    }
    let per_epoch = data.loader.as_ref()?.updates_per_epoch() as f64;
    Some((config.num_train_epochs * per_epoch).ceil() as u64)
}

/// The number of updates that the schedule is made for.
///
/// # Errors
/// `Config` when it depends on a number that is not known.
pub(super) fn schedule_length(config: &Config, total_steps: Option<u64>) -> Result<u64> {
    if let Some(steps) = total_steps {
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

/// The limits of the run. The epoch budget is that of the last planned update, so that a fraction of
/// an epoch ends where the peer's does.
pub(super) fn budget(config: &Config, data: &Data, total_steps: Option<u64>) -> Budget {
    let mut budget = config.budget();
    budget.max_epochs = match (&data.loader, total_steps, budget.max_epochs) {
        (Some(loader), Some(total), Some(_)) => Some(loader.epochs_after(total)),
        _ => None,
    };
    budget
}
