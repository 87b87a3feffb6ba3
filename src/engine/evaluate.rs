//! Evaluation: forward only, token-weighted over all rows of all sets, so that the result depends
//! neither on the batch size nor on the order of rows.

use super::any_network::AnyNetwork;
use super::device::OpenDevice;
use super::hooks::Hooks;
use super::prepare::{EvalSet, largest_eval_batch, model_folder, open_data, open_network};
use crate::config::Config;
use crate::data::Batch;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::memory::{Purpose, Workload};
use crate::model::ModelSpec;
use crate::report::{EvalReport, EvalSetReport};
use crate::train::LossSums;
use std::borrow::Borrow;
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
    let mut sets = data.eval;
    if let (true, Some(loader), Some(report)) = (sets.is_empty(), data.loader, data.train_report) {
        let (name, dataset) = (None, loader.dataset().clone());
        sets.push(EvalSet {
            name,
            dataset,
            report,
        });
    }
    if sets.is_empty() {
        let message = "no rows to evaluate on: set eval_dataset_name or dataset_name";
        return Err(Error::new(ErrorKind::Data, message));
    }
    let rows = config.per_device_eval_batch_size;
    let (tokens, sequence_length) = largest_eval_batch(&sets, rows);
    let work = Workload {
        purpose: Purpose::Evaluate,
        tokens,
        sequence_length,
        stats: tokens,
        head_rows: Workload::head_rows_for(spec.vocab_size, tokens, needs.precision),
        precision: needs.precision,
        workspace: needs.workspace,
    };
    let mut network = open_network(config, device, spec, work, &mut hooks)?;
    evaluate_sets(network.as_mut(), &sets, rows, 0, &hooks)
}

/// Evaluates on every set, `rows` rows at a time.
pub(super) fn evaluate_sets(
    network: &mut dyn AnyNetwork,
    sets: &[EvalSet],
    rows: usize,
    step: u64,
    hooks: &Hooks,
) -> Result<EvalReport> {
    let mut all = Totals::default();
    let mut parts = Vec::new();
    for set in sets {
        let mut batches = set.dataset.batches(rows);
        let totals = evaluate(network, || {
            hooks.canceller.check("evaluating")?;
            Ok(batches.next())
        })?;
        all.add(totals);
        if let Some(name) = &set.name {
            let part = totals.report(step).context(|| set.key())?;
            parts.push(EvalSetReport::new(name.clone(), &part));
        }
    }
    let report = all.report(step)?;
    Ok(EvalReport {
        sets: parts,
        ..report
    })
}

/// Evaluates on the batches that `next` gives.
pub(super) fn evaluate_batches<T: Borrow<Batch>>(
    network: &mut dyn AnyNetwork,
    step: u64,
    next: impl FnMut() -> Result<Option<T>>,
) -> Result<EvalReport> {
    evaluate(network, next)?.report(step)
}

fn evaluate<T: Borrow<Batch>>(
    network: &mut dyn AnyNetwork,
    mut next: impl FnMut() -> Result<Option<T>>,
) -> Result<Totals> {
    let start = Instant::now();
    let mut tokens = 0;
    let mut feed = || -> Result<()> {
        while let Some(batch) = next()? {
            network.forward_loss(batch.borrow())?;
            tokens += batch.borrow().tokens.len() as u64;
        }
        Ok(())
    };
    let fed = feed();
    // Once, so that the device is waited for once; and also where the batches ended early, since what
    // is pending must not be counted with the next update.
    let sums = network.take_sums();
    fed?;
    Ok(Totals {
        sums: sums?,
        tokens,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// What adds up over batches and sets.
#[derive(Clone, Copy, Default)]
struct Totals {
    sums: LossSums,
    tokens: u64,
    seconds: f64,
}

impl Totals {
    fn add(&mut self, other: Totals) {
        self.sums.add(other.sums);
        self.tokens += other.tokens;
        self.seconds += other.seconds;
    }

    fn report(&self, step: u64) -> Result<EvalReport> {
        let sums = self.sums;
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
            tokens: self.tokens,
            seconds: self.seconds,
            sets: Vec::new(),
        })
    }
}
