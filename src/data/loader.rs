//! Hands out the micro-batches of each optimizer update, epoch after epoch.
//!
//! An epoch of `n` rows has `M = ceil(n / B)` micro-batches of `B` rows and
//! `U = max(ceil(M / G), 1)` updates of `G` micro-batches. The last micro-batch of an epoch may be
//! short and so may its last update: an update never spans two epochs.

use serde::{Deserialize, Serialize};

use super::batch::Batch;
use super::dataset::Dataset;
use super::order::Order;
use crate::error::{Error, ErrorKind, Result};

/// How a [`Loader`] cuts rows into updates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Rows of a micro-batch (packed rows when the dataset is packed).
    pub per_device_train_batch_size: usize,
    /// Micro-batches of an update.
    pub gradient_accumulation_steps: usize,
    /// In which order an epoch visits the rows.
    pub order: Order,
    /// Seed of the order; epoch `e` uses `seed + e`.
    pub seed: u64,
    /// Leave out the last micro-batch of an epoch when it is short.
    pub drop_last: bool,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 1,
            order: Order::Random,
            seed: 42,
            drop_last: false,
        }
    }
}

/// Where a loader stands: the next update to hand out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Update within the epoch, from 0.
    pub update: u64,
}

/// The micro-batches of one optimizer update.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// At least one micro-batch.
    pub micro_batches: Vec<Batch>,
    /// Epochs done after this update, such as 1.25.
    pub epoch: f64,
    /// Whether this was the last update of its epoch.
    pub epoch_end: bool,
}

/// An endless sequence of updates over a dataset.
#[derive(Debug)]
pub struct Loader {
    dataset: Dataset,
    options: LoaderOptions,
    lengths: Vec<u32>,
    position: Position,
    /// The visiting order of `order_epoch`.
    order: Vec<u32>,
    order_epoch: u64,
}

impl Loader {
    /// A loader at the start of epoch 0.
    ///
    /// Fails when the dataset has no row, or not one full batch under `drop_last`, or a size is 0.
    pub fn new(dataset: Dataset, options: LoaderOptions) -> Result<Self> {
        let fail = |message: String| Err(Error::new(ErrorKind::Config, message));
        if options.per_device_train_batch_size == 0 {
            return fail("per_device_train_batch_size must be at least 1".into());
        }
        if options.gradient_accumulation_steps == 0 {
            return fail("gradient_accumulation_steps must be at least 1".into());
        }
        let lengths: Vec<u32> = dataset.lengths().map(|n| n as u32).collect();
        if lengths.is_empty() {
            return Err(Error::new(
                ErrorKind::Data,
                "the dataset has no row to train on; the data report says what became of its rows",
            ));
        }
        if options.drop_last && lengths.len() < options.per_device_train_batch_size {
            return fail(format!(
                "dataloader_drop_last leaves nothing: {} rows are less than one batch of {}",
                lengths.len(),
                options.per_device_train_batch_size
            ));
        }
        let mut loader = Self {
            dataset,
            options,
            lengths,
            position: Position::default(),
            order: Vec::new(),
            order_epoch: 0,
        };
        loader.order = loader.permutation(0);
        Ok(loader)
    }

    /// The next update. Only copies tokens; a new epoch also draws its order.
    pub fn next_update(&mut self) -> Update {
        let Position { epoch, update } = self.position;
        if self.order_epoch != epoch {
            self.order = self.permutation(epoch);
            self.order_epoch = epoch;
        }
        let micro_batches_per_epoch = self.micro_batches_per_epoch();
        let accumulate = self.options.gradient_accumulation_steps;
        let first = update as usize * accumulate;
        let last = (first + accumulate).min(micro_batches_per_epoch);
        let micro_batches = (first..last).map(|m| self.micro_batch(m)).collect();

        let epoch_end = last == micro_batches_per_epoch;
        self.position = match epoch_end {
            true => Position {
                epoch: epoch + 1,
                update: 0,
            },
            false => Position {
                epoch,
                update: update + 1,
            },
        };
        Update {
            micro_batches,
            epoch: epoch as f64 + last as f64 / micro_batches_per_epoch as f64,
            epoch_end,
        }
    }

    /// Micro-batches of an epoch.
    pub fn micro_batches_per_epoch(&self) -> usize {
        let batch = self.options.per_device_train_batch_size;
        match self.options.drop_last {
            true => self.lengths.len() / batch,
            false => self.lengths.len().div_ceil(batch),
        }
    }

    /// Optimizer updates of an epoch.
    pub fn updates_per_epoch(&self) -> usize {
        self.micro_batches_per_epoch()
            .div_ceil(self.options.gradient_accumulation_steps)
    }

    /// Epochs done after `updates` updates, as [`Update::epoch`] says it.
    pub fn epochs_after(&self, updates: u64) -> f64 {
        let Some(last) = updates.checked_sub(1) else {
            return 0.0;
        };
        let per_epoch = self.updates_per_epoch() as u64;
        let micro_batches = self.micro_batches_per_epoch();
        let accumulate = self.options.gradient_accumulation_steps;
        let done = ((last % per_epoch) as usize + 1) * accumulate;
        (last / per_epoch) as f64 + done.min(micro_batches) as f64 / micro_batches as f64
    }

    /// The position of the next update.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Goes to `position` without visiting the updates before it.
    ///
    /// Fails when the epoch has no such update, which means another dataset or batch size.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        if position.update as usize >= self.updates_per_epoch() {
            return Err(Error::new(
                ErrorKind::Data,
                format!(
                    "cannot go on at update {} of epoch {}: an epoch has {} updates with this \
                     dataset and these batch sizes; resume with those of the interrupted run",
                    position.update,
                    position.epoch,
                    self.updates_per_epoch()
                ),
            ));
        }
        self.position = position;
        Ok(())
    }

    /// An upper bound of the tokens of a micro-batch; exact for sequential order.
    pub fn max_micro_batch_tokens(&self) -> usize {
        let batch = self.options.per_device_train_batch_size;
        let sum = |rows: &[u32]| rows.iter().map(|&n| n as usize).sum::<usize>();
        if self.options.order == Order::Sequential {
            let batches = self.lengths.chunks(batch);
            let batches = batches.take(self.micro_batches_per_epoch());
            return batches.map(sum).max().unwrap_or(0);
        }
        let mut lengths = self.lengths.clone();
        let batch = batch.min(lengths.len());
        lengths.select_nth_unstable_by_key(batch - 1, |&n| std::cmp::Reverse(n));
        sum(&lengths[..batch])
    }

    /// Tokens of the longest sequence: what attention must span.
    pub fn max_sequence_length(&self) -> usize {
        self.dataset.max_sequence_length()
    }

    /// The dataset that is loaded from.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// How the rows are cut.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    fn permutation(&self, epoch: u64) -> Vec<u32> {
        let options = &self.options;
        let update_rows = options.per_device_train_batch_size * options.gradient_accumulation_steps;
        let order = options.order;
        order.permutation(&self.lengths, update_rows, options.seed, epoch)
    }

    fn micro_batch(&self, index: usize) -> Batch {
        let size = self.options.per_device_train_batch_size;
        let start = index * size;
        let end = (start + size).min(self.order.len());
        let mut batch = Batch::default();
        for &row in &self.order[start..end] {
            self.dataset.push_row(row as usize, &mut batch);
        }
        batch
    }
}
