//! The whole network: embed → blocks → LM head with its loss, and back.

use super::block::{Block, Uploaded};
use super::optimizer::{UpdateGroup, update_groups};
use crate::data::{Batch, IGNORE};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{MemoryPlan, NetworkLayout, Purpose, Workload};
use crate::model::{ModelSpec, Param, ParamTable, Slot};
use crate::ops::{Backend, Region, TokenStats};

/// Sums over supervised positions. They add up over micro-batches; divide by `supervised` for means.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Σ −log p of the labels, in nats.
    pub loss: f64,
    /// Σ entropy of the predictions, in nats.
    pub entropy: f64,
    /// Positions whose label is the most likely token.
    pub correct: u64,
    /// Supervised positions.
    pub supervised: u64,
}

impl LossSums {
    /// Adds another sum.
    pub fn add(&mut self, other: LossSums) {
        self.loss += other.loss;
        self.entropy += other.entropy;
        self.correct += other.correct;
        self.supervised += other.supervised;
    }
}

/// A model on a device, with everything that its workload needs.
pub struct Network<B> {
    pub(super) backend: B,
    pub(super) spec: ModelSpec,
    pub(super) table: ParamTable,
    pub(super) layout: NetworkLayout,
    pub(super) work: Workload,
    /// What the optimizer updates, a launch each.
    pub(super) groups: Vec<UpdateGroup>,
    /// Optimizer updates that took effect.
    pub(super) updates: u64,
    /// Positions whose statistics are on the device and not yet in `sums`.
    pub(super) pending_stats: usize,
    pub(super) sums: LossSums,
    host: HostBatch,
}

/// Index arrays of a micro-batch, kept to be filled again.
#[derive(Default)]
struct HostBatch {
    ids: Vec<i32>,
    positions: Vec<i32>,
    seq_starts: Vec<i32>,
    rows: Vec<i32>,
    targets: Vec<i32>,
    results: Vec<f32>,
}

impl<B: Backend> Network<B> {
    /// Plans and allocates a network. Weights are zero until [`Network::load_weights`].
    ///
    /// # Errors
    /// `OutOfMemory` with the plan's need when the device cannot give it.
    pub fn new(mut backend: B, spec: ModelSpec, table: ParamTable, work: Workload) -> Result<Self> {
        let filled = Workload {
            tokens: B::filled_sizes(work.tokens, 1).0,
            ..work
        };
        let layout = NetworkLayout::new(&spec, &table, &filled);
        backend.allocate(layout.plan.total_bytes, layout.workspace)?;
        let positions = layout.rope_cos.len / (spec.head_dim / 2);
        let (cos, sin) = spec.rope.table(positions);
        backend.upload(layout.rope_cos, &cos);
        backend.upload(layout.rope_sin, &sin);
        let groups = update_groups(&table);
        Ok(Self {
            backend,
            spec,
            table,
            layout,
            work,
            groups,
            updates: 0,
            pending_stats: 0,
            sums: LossSums::default(),
            host: HostBatch::default(),
        })
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Its tensors.
    pub fn table(&self) -> &ParamTable {
        &self.table
    }

    /// Where everything lies.
    pub fn plan(&self) -> &MemoryPlan {
        &self.layout.plan
    }

    /// The largest amounts that this network was planned for.
    pub fn workload(&self) -> &Workload {
        &self.work
    }

    /// The device in words.
    pub fn device(&self) -> String {
        self.backend.describe()
    }

    /// Whether the device carried out everything so far. Once it failed it stays failed, and every
    /// call that brings numbers to the host says so.
    ///
    /// # Errors
    /// `Device` with what the driver said.
    pub fn status(&self) -> Result<()> {
        self.backend.status()
    }

    /// Fills the weights from a reader that gets a tensor's entry, a first element and the numbers to
    /// write from there on. It is called for parts of tensors, in any order and on several threads at
    /// once. In half precision the matrix products read the weights rounded.
    ///
    /// # Errors
    /// Those of `read`, and `Device`.
    pub fn load_weights(
        &mut self,
        read: impl Fn(&Param, usize, &mut [f32]) -> Result<()> + Sync,
    ) -> Result<()> {
        let parts = Parts::of(&self.table);
        let NetworkLayout {
            weights,
            operands,
            first_weight,
            ..
        } = self.layout;
        let backend = &mut self.backend;
        backend.upload_from(weights, &|start, values| {
            parts.read(first_weight + start, values, &read)
        })?;
        match first_weight {
            0 if operands.len > 0 => backend.cast(weights.first(operands.len), operands),
            0 => {}
            // The matrices are only held as operands.
            _ => {
                backend.upload_from(operands, &|start, values| parts.read(start, values, &read))?
            }
        }
        backend.status()
    }

    /// Copies elements of one tensor's weights, from `start` on, to the host: of the float32 master
    /// where there is one.
    ///
    /// # Errors
    /// `Device`.
    pub fn read_weight(&mut self, param: &Param, start: usize, to: &mut [f32]) -> Result<()> {
        let slot = slot_of(param);
        let master = self.layout.master(slot);
        let tensor = master.unwrap_or_else(|| self.layout.weight(slot));
        self.backend.download(tensor.slice(start, to.len()), to);
        self.backend.status()
    }

    /// Copies one tensor's accumulated gradient, times the loss scale, to the host.
    ///
    /// # Errors
    /// `Device`.
    pub fn read_gradient(&mut self, param: &Param, to: &mut [f32]) -> Result<()> {
        self.backend
            .download(self.layout.gradient(slot_of(param)), to);
        self.backend.status()
    }

    /// Forward and backward of one micro-batch. Gradients of `scale · Σ −log p` are added to the
    /// accumulated ones; `scale` is one over the supervised tokens of the whole update, times the loss
    /// scale. The loss itself, without scale, is found by [`Network::take_sums`].
    ///
    /// # Errors
    /// `Batch` when the micro-batch is malformed or larger than planned.
    pub fn forward_backward(&mut self, batch: &Batch, scale: f64) -> Result<()> {
        let Purpose::Train { recompute } = self.work.purpose else {
            return Err(Error::new(
                ErrorKind::Internal,
                "the network was not planned for training",
            ));
        };
        let up = self.upload(batch, Fill::ToRepeat)?;
        if up.supervised == 0 {
            return Ok(());
        }
        self.recorded_forward(up);
        self.head_forward_backward(up, scale as f32);
        let pass = Pass {
            spec: &self.spec,
            table: &self.table,
            layout: &self.layout,
            up,
        };
        self.backend.recorded(up.recording("backward"), |backend| {
            pass.backward(backend, recompute)
        });
        Ok(())
    }

    /// Forward of one micro-batch, for evaluation: touches neither gradients nor optimizer.
    ///
    /// # Errors
    /// As [`Network::forward_backward`].
    pub fn forward_loss(&mut self, batch: &Batch) -> Result<()> {
        let up = self.upload(batch, Fill::ToRepeat)?;
        if up.supervised > 0 {
            self.recorded_forward(up);
            self.head_forward(up);
        }
        Ok(())
    }

    /// The logits `(tokens, V)` of every position of a batch, as many rows at a time as the head
    /// holds: `each(first_row, rows)`.
    ///
    /// # Errors
    /// As [`Network::forward_backward`], and `Device`.
    pub fn logits(&mut self, batch: &Batch, mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        let up = self.upload(batch, Fill::Nothing)?;
        self.run_blocks(up, |block, backend, out| block.forward(backend, Some(out)));
        let all: Vec<i32> = (0..up.tokens as i32).collect();
        self.head_logits(up, &all, &mut each)
    }

    /// The sums since the last call, after everything on the device is done. [`Network::update`] has
    /// brought them to the host already, so that an update waits for the device once.
    ///
    /// # Errors
    /// `Device`, also for earlier work that failed.
    pub fn take_sums(&mut self) -> Result<LossSums> {
        self.flush_stats();
        self.backend.status()?;
        Ok(std::mem::take(&mut self.sums))
    }

    /// Copies the pending statistics to the host and adds them up.
    pub(super) fn flush_stats(&mut self) {
        if self.pending_stats > 0 {
            self.download_results(NetworkLayout::FIRST_STAT);
        }
    }

    /// Copies what an update leaves, from element `first` of the layout's `results` to the last of the
    /// pending statistics, to the host in one piece. The statistics are added up, in float64 and in
    /// order; what stands before them is returned.
    pub(super) fn download_results(&mut self, first: usize) -> &[f32] {
        let before = NetworkLayout::FIRST_STAT - first;
        let len = before + self.pending_stats * TokenStats::WIDTH;
        self.host.results.resize(len, 0.0);
        self.backend.download(
            self.layout.results.slice(first, len),
            &mut self.host.results,
        );
        let (before, stats) = self.host.results.split_at(before);
        for row in stats.chunks_exact(TokenStats::WIDTH) {
            self.sums.loss += f64::from(row[0]);
            self.sums.entropy += f64::from(row[1]);
            self.sums.correct += u64::from(row[2] != 0.0);
        }
        self.sums.supervised += self.pending_stats as u64;
        self.pending_stats = 0;
        before
    }

    /// Embedding and all blocks: leaves the last block's output in `x_final`.
    fn recorded_forward(&mut self, up: Uploaded) {
        let pass = Pass {
            spec: &self.spec,
            table: &self.table,
            layout: &self.layout,
            up,
        };
        self.backend.recorded(up.recording("forward"), |backend| {
            pass.forward(backend, |block, backend, out| {
                block.forward(backend, Some(out))
            });
        });
    }

    /// Embedding, then `run(block, backend, output)` for each block in order.
    pub(super) fn run_blocks(&mut self, up: Uploaded, run: impl Fn(&Block, &mut B, Region)) {
        let pass = Pass {
            spec: &self.spec,
            table: &self.table,
            layout: &self.layout,
            up,
        };
        pass.forward(&mut self.backend, run);
    }

    /// Whether a micro-batch is well formed and fits in the plan.
    ///
    /// # Errors
    /// `Batch` naming what is wrong.
    pub fn check_batch(&self, batch: &Batch) -> Result<()> {
        batch.validate(self.spec.vocab_size)?;
        let longest = batch.sequences().map(|s| s.len()).max().unwrap_or(0);
        let checks = [
            ("a micro-batch", batch.tokens.len(), self.work.tokens),
            ("a sequence", longest, self.work.sequence_length),
        ];
        for (what, is, planned) in checks {
            if is > planned {
                let message = format!("{what} of {is} tokens, but memory is planned for {planned}");
                return Err(Error::new(ErrorKind::Batch, message));
            }
        }
        Ok(())
    }

    /// Checks a micro-batch and copies its indices to the device. What fills it up stands behind it as
    /// sequences of their own, one of token 0 and empty ones: nothing attends to it, and no gradient
    /// comes from it.
    pub(super) fn upload(&mut self, batch: &Batch, fill: Fill) -> Result<Uploaded> {
        self.check_batch(batch)?;
        let host = &mut self.host;
        host.ids.clear();
        host.positions.clear();
        host.seq_starts.clear();
        host.rows.clear();
        host.targets.clear();
        for sequence in batch.sequences() {
            host.positions.extend(0..sequence.len() as i32);
            host.seq_starts.push(sequence.start as i32);
            for t in sequence.start..sequence.end - 1 {
                if batch.labels[t + 1] != IGNORE {
                    host.rows.push(t as i32);
                    host.targets.push(batch.labels[t + 1]);
                }
            }
        }
        let real = (batch.tokens.len(), host.seq_starts.len());
        let (tokens, sequences) = match fill {
            Fill::Nothing => real,
            Fill::ToRepeat => B::filled_sizes(real.0, real.1),
        };
        host.ids.extend_from_slice(&batch.tokens);
        host.ids.resize(tokens, 0);
        host.positions.resize(tokens, 0);
        host.seq_starts.push(real.0 as i32);
        host.seq_starts.resize(sequences + 1, tokens as i32);
        let layout = &self.layout;
        let up = Uploaded {
            tokens,
            sequences,
            supervised: host.rows.len(),
        };
        self.backend
            .upload_indices(layout.ids.first(up.tokens), &host.ids);
        self.backend
            .upload_indices(layout.positions.first(up.tokens), &host.positions);
        self.backend
            .upload_indices(layout.seq_starts.first(up.sequences + 1), &host.seq_starts);
        self.backend
            .upload_indices(layout.rows.first(up.supervised), &host.rows);
        self.backend
            .upload_indices(layout.targets.first(up.supervised), &host.targets);
        Ok(up)
    }

    pub(super) fn weight(&self, slot: Slot) -> Region {
        self.layout.weight(slot)
    }

    pub(super) fn gradient(&self, slot: Slot) -> Region {
        self.layout.gradient(slot)
    }
}

/// Whether a micro-batch is filled up to sizes that occur again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    Nothing,
    ToRepeat,
}

/// All that the blocks of a micro-batch are launched from, the backend apart.
struct Pass<'a> {
    spec: &'a ModelSpec,
    table: &'a ParamTable,
    layout: &'a NetworkLayout,
    up: Uploaded,
}

impl Pass<'_> {
    fn block(&self, index: usize) -> Block<'_> {
        Block::new(self.spec, self.table, self.layout, index, self.up)
    }

    /// Embedding, then `run(block, backend, output)` for each block in order.
    fn forward<B: Backend>(&self, backend: &mut B, run: impl Fn(&Block, &mut B, Region)) {
        let (h, l, tokens) = (self.spec.hidden_size, self.layout, self.up.tokens);
        let input = |i: usize| {
            let x = l.layers.get(i).map_or(l.x_final, |layer| layer.x);
            x.first(tokens * h)
        };
        let table = l.weight(self.table.embed_tokens);
        backend.embedding_forward(table, l.ids.first(tokens), input(0), h);
        for i in 0..self.spec.num_layers {
            run(&self.block(i), backend, input(i + 1));
        }
    }

    /// The blocks from the last to the first, then the embedding.
    fn backward<B: Backend>(&self, backend: &mut B, recompute: bool) {
        for i in (0..self.spec.num_layers).rev() {
            let block = self.block(i);
            if recompute {
                block.forward(backend, None);
            }
            block.backward(backend);
        }
        let (h, l, tokens) = (self.spec.hidden_size, self.layout, self.up.tokens);
        let dtable = l.gradient(self.table.embed_tokens);
        let (dx, ids) = (l.dx.first(tokens * h), l.ids.first(tokens));
        backend.embedding_backward(dx, ids, dtable, h);
    }
}

/// The tensors of a table by their place in the flat space.
pub(super) struct Parts<'a>(Vec<&'a Param>);

impl<'a> Parts<'a> {
    pub fn of(table: &'a ParamTable) -> Self {
        let mut params: Vec<&Param> = table.params.iter().collect();
        params.sort_by_key(|param| param.offset);
        Self(params)
    }

    /// Reads the flat space from element `start` on: every tensor's part of it by `read(param, first,
    /// numbers)`. The gaps between tensors become zero.
    pub fn read(
        &self,
        start: usize,
        values: &mut [f32],
        read: &impl Fn(&Param, usize, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let end = start + values.len();
        let first = (self.0).partition_point(|param| param.offset + param.len() <= start);
        let mut done = start;
        for param in self.0[first..]
            .iter()
            .take_while(|param| param.offset < end)
        {
            let part = param.offset.max(start)..(param.offset + param.len()).min(end);
            values[done - start..part.start - start].fill(0.0);
            done = part.end;
            let to = &mut values[part.start - start..part.end - start];
            read(param, part.start - param.offset, to)?;
        }
        values[done - start..].fill(0.0);
        Ok(())
    }
}

fn slot_of(param: &Param) -> Slot {
    Slot {
        offset: param.offset,
        len: param.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param(offset: usize, len: usize) -> Param {
        Param {
            name: String::new(),
            shape: vec![len],
            offset,
            decay: false,
            trainable: true,
        }
    }

    #[test]
    fn parts_of_the_flat_space_are_parts_of_tensors_and_zeros_between() {
        let (a, b, c) = (param(1, 3), param(4, 2), param(8, 4));
        let parts = Parts(vec![&a, &b, &c]);
        // Each element's tensor and place in it.
        let read = |param: &Param, first: usize, to: &mut [f32]| {
            for (i, x) in to.iter_mut().enumerate() {
                *x = (100 * param.offset + first + i) as f32;
            }
            Ok(())
        };
        let whole = [
            0.0, 100.0, 101.0, 102.0, 400.0, 401.0, 0.0, 0.0, 800.0, 801.0, 802.0, 803.0, 0.0,
        ];
        for start in 0..whole.len() {
            for end in start..=whole.len() {
                let mut values = vec![9.0; end - start];
                parts.read(start, &mut values, &read).unwrap();
                assert_eq!(values, whole[start..end], "{start}..{end}");
            }
        }
    }
}
