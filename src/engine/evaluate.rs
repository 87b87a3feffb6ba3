//! Evaluation: forward only, token-weighted over the whole set, so that the result depends neither on
//! the batch size nor on the order of rows.

use super::any_network::AnyNetwork;
use super::device::OpenDevice;
use super::hooks::Hooks;
use super::prepare::{largest_eval_batch, model_folder, open_data, open_network};
use crate::config::Config;
use crate::data::{Batch, Dataset};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Purpose, Workload};
use crate::model::ModelSpec;
use crate::report::EvalReport;
use crate::train::LossSums;
use std::time::Instant;

/// Evaluates the model folder of `config` on its evaluation rows, or on its training rows where it
/// names no others.
///
/// # Errors
/// Those of opening the model and the data; `Data` when there is no row to evaluate on.
pub fn evaluate_model(config: &Config, mut hooks: Hooks) -> Result<EvalReport> {
    let device = OpenDevice::open(config, &mut hooks)?;
    let needs = device.needs();
    let spec = ModelSpec::from_dir(model_folder(config)?)?;
    needs.check(&spec)?;
    let data = open_data(config, &spec, &mut hooks)?;
    let dataset = data
        .eval
        .or_else(|| data.loader.map(|l| l.dataset().clone()));
    let dataset = dataset.ok_or_else(|| {
        let message = "no rows to evaluate on: set eval_dataset_name or dataset_name";
        Error::new(ErrorKind::Data, message)
    })?;
    let rows = config.per_device_eval_batch_size;
    let tokens = largest_eval_batch(&dataset, rows);
    let work = Workload {
        purpose: Purpose::Evaluate,
        tokens,
        sequence_length: dataset.max_sequence_length(),
        stats: tokens,
        head_rows: Workload::head_rows_for(spec.vocab_size, tokens, needs.precision),
        precision: needs.precision,
        workspace: needs.workspace,
    };
    let mut network = open_network(config, device, spec, work, &mut hooks)?;
    evaluate_dataset(network.as_mut(), &dataset, rows, 0, &hooks)
}

/// Evaluates on a dataset, `rows` rows at a time.
pub(super) fn evaluate_dataset(
    network: &mut dyn AnyNetwork,
    dataset: &Dataset,
    rows: usize,
    step: u64,
    hooks: &Hooks,
) -> Result<EvalReport> {
    let mut batches = dataset.batches(rows);
    evaluate_batches(network, step, || {
        hooks.canceller.check("evaluating")?;
        Ok(batches.next())
    })
}

/// Evaluates on the batches that `next` gives.
pub(super) fn evaluate_batches<T: std::borrow::Borrow<Batch>>(
    network: &mut dyn AnyNetwork,
    step: u64,
    mut next: impl FnMut() -> Result<Option<T>>,
) -> Result<EvalReport> {
    let start = Instant::now();
    let (mut sums, mut tokens) = (LossSums::default(), 0);
    while let Some(batch) = next()? {
        network.forward_loss(batch.borrow())?;
        tokens += batch.borrow().tokens.len() as u64;
        sums.add(network.take_sums()?);
    }
    if sums.supervised == 0 {
        return Err(Error::new(
            ErrorKind::Data,
            "the evaluation rows have no supervised token, so there is no loss",
        ));
    }
    let supervised = sums.supervised as f64;
    Ok(EvalReport {
        step,
        loss: sums.loss / supervised,
        token_accuracy: sums.correct as f64 / supervised,
        entropy: sums.entropy / supervised,
        supervised_tokens: sums.supervised,
        tokens,
        seconds: start.elapsed().as_secs_f64(),
    })
}
