//! The tensors of a network, planned: what each phase of a step reads and writes, and how long it
//! lives. The phases of a training step of L blocks are
//!
//! ```text
//! 0 embed · 1…L blocks forward · L+1 LM head · L+2…2L+1 blocks backward (last first) · 2L+2 embed backward
//! ```
//!
//! **Number formats.** What a matrix product reads is in the compute format of the workload
//! (`precision`), and so is what it makes for another one. The residual stream, its gradient, and all
//! that is accumulated or decides (parameter gradients, master weights, moments, norms' weights, biases,
//! statistics) is float32. In half precision training keeps the master weights of all tensors and a
//! rounded copy of the matrices, the operands; without an optimizer there is no master copy of them.

use super::plan::{MemoryPlan, SegmentKind};
use super::requests::{Requests, Tensor};
use crate::dtype::DType;
use crate::model::{ModelSpec, ParamTable, Slot};
use crate::ops::{ClipStats, Indices, Region, TokenStats};
use std::ops::RangeInclusive;

/// What a network is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Forward, backward, optimizer.
    Train {
        /// Keep only the input of each block and compute the rest again in the backward
        /// (`gradient_checkpointing`).
        recompute: bool,
    },
    /// Forward and loss.
    Evaluate,
    /// Text, one token at a time, up to `capacity` tokens with the prompt.
    Generate {
        /// Positions of the key and value cache.
        capacity: usize,
    },
}

/// The largest amounts that a run will ask of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// What for.
    pub purpose: Purpose,
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Tokens of one sequence.
    pub sequence_length: usize,
    /// Supervised tokens whose statistics are kept before they are copied to the host.
    pub stats: usize,
    /// Rows of logits that the LM head holds at a time.
    pub head_rows: usize,
    /// Format of the matrix products' operands.
    pub precision: DType,
    /// Bytes of scratch memory that the ops of the backend ask for.
    pub workspace: usize,
}

impl Workload {
    /// Rows of logits in `precision` that fill 48 MiB: enough for the matrix products to run at full
    /// speed, small next to the activations.
    pub fn head_rows_for(vocab_size: usize, tokens: usize, precision: DType) -> usize {
        let rows = (48 << 20) / (precision.size() * vocab_size.max(1));
        rows.clamp(64, 1024).min(tokens.max(1))
    }
}

/// What one block keeps. T tokens, H hidden, Q and K the widths of all query and key heads. Float32
/// unless marked C, the compute format.
#[derive(Clone, Copy, Debug)]
pub struct LayerRegions {
    /// The block's input, `(T, H)`.
    pub x: Region,
    /// `(T)`
    pub input_inv_rms: Region,
    /// Before q/k norm, `(T, Q + 2K)` C; empty without q/k norm.
    pub qkv_raw: Region,
    /// `(T, heads + kv_heads)`; empty without q/k norm.
    pub qk_inv_rms: Region,
    /// Normed and rotated, `(T, Q + 2K)` C.
    pub qkv: Region,
    /// `(T, Q)` C
    pub attention: Region,
    /// `(heads, T)`
    pub lse: Region,
    /// After attention, `(T, H)`.
    pub x_mid: Region,
    /// `(T)`
    pub post_inv_rms: Region,
    /// `(T, 2F)` C
    pub gate_up: Region,
    /// Keys and values, `(capacity, 2K)` C; empty unless generating.
    pub kv_cache: Region,
}

/// Every region of a network. Float32 unless marked C, the compute format.
#[derive(Clone, Debug)]
pub struct NetworkLayout {
    /// The plan that the regions come from.
    pub plan: MemoryPlan,
    /// Parameters in the layout of the parameter table, from element [`NetworkLayout::first_weight`]
    /// on.
    pub weights: Region,
    /// What `weights` begins with: 0 for all parameters, or the table's `matrices_len` where the
    /// matrices are only held as operands.
    pub first_weight: usize,
    /// The matrices `(matrices_len)` C; empty when C is float32.
    pub operands: Region,
    /// All parameters' gradients; empty unless training. The next two as well.
    pub gradients: Region,
    /// First moments.
    pub m: Region,
    /// Second moments.
    pub v: Region,
    /// `(positions, head_dim / 2)`
    pub rope_cos: Region,
    /// `(positions, head_dim / 2)`
    pub rope_sin: Region,
    /// Token ids, `(T)`.
    pub ids: Indices,
    /// Positions within their sequence, `(T)`.
    pub positions: Indices,
    /// `(sequences + 1)`
    pub seq_starts: Indices,
    /// Supervised positions, `(S)`.
    pub rows: Indices,
    /// Their labels, `(S)`.
    pub targets: Indices,
    /// One entry for each block.
    pub layers: Vec<LayerRegions>,
    /// The last block's output, `(T, H)`.
    pub x_final: Region,
    /// Output of a norm, `(T, H)` C.
    pub normed: Region,
    /// Output of SwiGLU, `(T, F)` C.
    pub act: Region,
    /// Gathered rows before the final norm, `(S, H)`.
    pub head_x: Region,
    /// After it, `(S, H)` C.
    pub head_normed: Region,
    /// `(S)`
    pub head_inv_rms: Region,
    /// `(head_rows, V)` C
    pub logits: Region,
    /// What an update brings to the host in one copy: `clip`, then `stats`.
    pub results: Region,
    /// `(3)`, the first of `results`.
    pub clip: Region,
    /// `(stats, 3)`, the rest of `results`, from [`NetworkLayout::FIRST_STAT`] on.
    pub stats: Region,
    /// Gradient of head_normed, `(S, H)` C.
    pub dhead_normed: Region,
    /// Gradient of head_x, `(S, H)`.
    pub dhead_x: Region,
    /// The residual stream's gradient, `(T, H)`.
    pub dx: Region,
    /// The same for the output projections' backward, `(T, H)` C; `dx` itself when C is float32.
    pub dx_operand: Region,
    /// `(T, H)` C
    pub dnormed: Region,
    /// `(T, Q + 2K)` C
    pub dqkv: Region,
    /// `(T, Q)` C
    pub dattention: Region,
    /// `(T, 2F)` C
    pub dgate_up: Region,
    /// `(T, F)` C
    pub dact: Region,
    /// Scratch of the backend's ops.
    pub workspace: Region,
}

impl NetworkLayout {
    /// Where the statistics begin among the results: behind the clip factor, at 16 bytes.
    pub const FIRST_STAT: usize = ClipStats::WIDTH.next_multiple_of(4);

    /// Plans a network. Pure: touches no device.
    pub fn new(spec: &ModelSpec, table: &ParamTable, work: &Workload) -> Self {
        let training = matches!(work.purpose, Purpose::Train { .. });
        let keeps_all = work.purpose == Purpose::Train { recompute: false };
        let capacity = match work.purpose {
            Purpose::Generate { capacity } => capacity,
            _ => 0,
        };
        let (layers, tokens) = (spec.num_layers, work.tokens);
        let phases = Phases { layers, training };
        let mut p = Requests::default();
        use SegmentKind::*;

        let always = 0..=phases.last();
        let c = work.precision;
        let half = c != DType::F32;
        let trained = if training { table.len } else { 0 };
        let first_weight = if half && !training {
            table.matrices_len
        } else {
            0
        };
        let held = table.len - first_weight;
        let weights = p.f32("weights", Weights, held, always.clone());
        let rounded = if half { table.matrices_len } else { 0 };
        let operands = p.of(c, "operands", Weights, rounded, always.clone());
        let gradients = p.f32("gradients", Gradients, trained, always.clone());
        let m = p.f32("adam.m", Optimizer, trained, always.clone());
        let v = p.f32("adam.v", Optimizer, trained, always.clone());
        let angles = work.sequence_length.max(capacity) * spec.head_dim / 2;
        let rope_cos = p.f32("rope.cos", Batch, angles, always.clone());
        let rope_sin = p.f32("rope.sin", Batch, angles, always.clone());
        let ids = p.i32("batch.ids", tokens, always.clone());
        let positions = p.i32("batch.positions", tokens, always.clone());
        let seq_starts = p.i32("batch.seq_starts", tokens + 1, always.clone());
        let rows = p.i32("batch.rows", tokens, always.clone());
        let targets = p.i32("batch.targets", tokens, always.clone());
        let results = Self::FIRST_STAT + work.stats * TokenStats::WIDTH;
        let results = p.f32("results", Batch, results, always.clone());

        let (h, f) = (spec.hidden_size, spec.intermediate_size);
        let (q, qkv) = (spec.q_size(), spec.qkv_size());
        let normed_heads = spec.num_heads + spec.num_kv_heads;
        let raw = if spec.qk_norm { tokens } else { 0 };
        // A block's tensors: its own when the backward needs them, else one set for all blocks.
        let block = |p: &mut Requests, name: &str, life: RangeInclusive<usize>| {
            let mut t = |part: &str, dtype: DType, len: usize| {
                let name = format!("{name}.{part}");
                p.of(dtype, name, Activations, len, life.clone())
            };
            LayerTensors {
                input_inv_rms: t("input_inv_rms", DType::F32, tokens),
                qkv_raw: t("qkv_raw", c, raw * qkv),
                qk_inv_rms: t("qk_inv_rms", DType::F32, raw * normed_heads),
                qkv: t("qkv", c, tokens * qkv),
                attention: t("attention", c, tokens * q),
                lse: t("lse", DType::F32, tokens * spec.num_heads),
                x_mid: t("x_mid", DType::F32, tokens * h),
                post_inv_rms: t("post_inv_rms", DType::F32, tokens),
                gate_up: t("gate_up", c, tokens * 2 * f),
            }
        };
        let shared = (!keeps_all).then(|| block(&mut p, "block", 1..=phases.last()));
        let mut layer_ids = Vec::with_capacity(layers);
        for i in 0..layers {
            // Input of block i: written one phase earlier, read last in its backward.
            let x = p.f32(
                format!("layers.{i}.x"),
                Activations,
                tokens * h,
                phases.forward(i) - 1..=phases.last_use(i),
            );
            let ids = shared.unwrap_or_else(|| {
                block(
                    &mut p,
                    &format!("layers.{i}"),
                    phases.forward(i)..=phases.last_use(i),
                )
            });
            let cache_len = capacity * 2 * spec.kv_size();
            let cache = p.of(
                c,
                format!("layers.{i}.kv_cache"),
                KvCache,
                cache_len,
                always.clone(),
            );
            layer_ids.push((x, ids, cache));
        }
        let head = phases.head();
        let x_final = p.f32("x_final", Activations, tokens * h, head - 1..=head);
        let normed = p.of(c, "normed", Scratch, tokens * h, 1..=phases.last());
        let act = p.of(c, "act", Scratch, tokens * f, 1..=phases.last());
        let head_x = p.f32("head.x", Scratch, tokens * h, head..=head);
        let head_normed = p.of(c, "head.normed", Scratch, tokens * h, head..=head);
        let head_inv_rms = p.f32("head.inv_rms", Scratch, tokens, head..=head);
        let logits = p.of(
            c,
            "head.logits",
            Scratch,
            work.head_rows * spec.vocab_size,
            head..=head,
        );

        let back = if training { tokens } else { 0 };
        let after = head + 1..=phases.last();
        let dhead_normed = p.of(c, "head.dnormed", Scratch, back * h, head..=head);
        let dhead_x = p.f32("head.dx", Scratch, back * h, head..=head);
        let dx = p.f32("dx", Scratch, back * h, head..=phases.last());
        let rounded = if half { back * h } else { 0 };
        let dx_operand = p.of(c, "dx.operand", Scratch, rounded, after.clone());
        let dnormed = p.of(c, "dnormed", Scratch, back * h, after.clone());
        let dqkv = p.of(c, "dqkv", Scratch, back * qkv, after.clone());
        let dattention = p.of(c, "dattention", Scratch, back * q, after.clone());
        let dgate_up = p.of(c, "dgate_up", Scratch, back * 2 * f, after.clone());
        let dact = p.of(c, "dact", Scratch, back * f, after);

        let workspace = p.f32("workspace", Scratch, work.workspace / 4, always);

        let placed = p.solve();
        let (at, i32) = (|tensor| placed.region(tensor), |id| placed.i32(id));
        Self {
            weights: at(weights),
            first_weight,
            operands: at(operands),
            gradients: at(gradients),
            m: at(m),
            v: at(v),
            rope_cos: at(rope_cos),
            rope_sin: at(rope_sin),
            ids: i32(ids),
            positions: i32(positions),
            seq_starts: i32(seq_starts),
            rows: i32(rows),
            targets: i32(targets),
            layers: layer_ids
                .iter()
                .map(|&(x, ids, cache)| LayerRegions {
                    x: at(x),
                    input_inv_rms: at(ids.input_inv_rms),
                    qkv_raw: at(ids.qkv_raw),
                    qk_inv_rms: at(ids.qk_inv_rms),
                    qkv: at(ids.qkv),
                    attention: at(ids.attention),
                    lse: at(ids.lse),
                    x_mid: at(ids.x_mid),
                    post_inv_rms: at(ids.post_inv_rms),
                    gate_up: at(ids.gate_up),
                    kv_cache: at(cache),
                })
                .collect(),
            x_final: at(x_final),
            normed: at(normed),
            act: at(act),
            head_x: at(head_x),
            head_normed: at(head_normed),
            head_inv_rms: at(head_inv_rms),
            logits: at(logits),
            results: at(results),
            clip: at(results).first(ClipStats::WIDTH),
            stats: at(results).slice(Self::FIRST_STAT, at(results).len - Self::FIRST_STAT),
            dhead_normed: at(dhead_normed),
            dhead_x: at(dhead_x),
            dx: at(dx),
            dx_operand: at(if half { dx_operand } else { dx }),
            dnormed: at(dnormed),
            dqkv: at(dqkv),
            dattention: at(dattention),
            dgate_up: at(dgate_up),
            dact: at(dact),
            workspace: at(workspace),
            plan: placed.plan,
        }
    }
    /// Where a matrix product or a norm reads a parameter: matrices in the compute format.
    pub fn weight(&self, slot: Slot) -> Region {
        match slot.offset < self.operands.len {
            true => self.operands.slice(slot.offset, slot.len),
            false => self
                .weights
                .slice(slot.offset - self.first_weight, slot.len),
        }
    }

    /// The float32 numbers of a parameter, where they are held.
    pub fn master(&self, slot: Slot) -> Option<Region> {
        let start = slot.offset.checked_sub(self.first_weight)?;
        Some(self.weights.slice(start, slot.len))
    }

    /// Where the gradient of a parameter is accumulated.
    pub fn gradient(&self, slot: Slot) -> Region {
        self.gradients.slice(slot.offset, slot.len)
    }
}

/// The phases of a step, see the module's head.
struct Phases {
    layers: usize,
    training: bool,
}

impl Phases {
    fn forward(&self, layer: usize) -> usize {
        1 + layer
    }

    fn head(&self) -> usize {
        1 + self.layers
    }

    /// The last phase that reads what block `layer` keeps.
    fn last_use(&self, layer: usize) -> usize {
        if self.training {
            2 * self.layers + 1 - layer
        } else {
            self.forward(layer)
        }
    }

    fn last(&self) -> usize {
        if self.training {
            2 * self.layers + 2
        } else {
            self.head()
        }
    }
}

#[derive(Clone, Copy)]
struct LayerTensors {
    input_inv_rms: Tensor,
    qkv_raw: Tensor,
    qk_inv_rms: Tensor,
    qkv: Tensor,
    attention: Tensor,
    lse: Tensor,
    x_mid: Tensor,
    post_inv_rms: Tensor,
    gate_up: Tensor,
}
