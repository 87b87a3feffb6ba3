//! One transformer block: forward and backward side by side. The backward reads as the forward
//! upwards, with the same names.
//!
//! ```text
//! x_mid = x     + o_proj(attention(rope(qk_norm(qkv_proj(rms_norm(x))))))
//! out   = x_mid + down_proj(swiglu(gate_up_proj(rms_norm(x_mid))))
//! ```
//!
//! The gradient of the residual stream lives in one float32 buffer, `dx`: each half of the block adds
//! its share to what came from above. The output projections read it in the compute format.

use crate::memory::{LayerRegions, NetworkLayout};
use crate::model::{LayerSlots, ModelSpec, ParamTable, Slot};
use crate::ops::{
    AttentionShape, Backend, Indices, LinearShape, QkNormShape, Recording, Region, RopeShape,
};

/// How many tokens and supervised positions the uploaded micro-batch has.
#[derive(Clone, Copy)]
pub(super) struct Uploaded {
    /// Those that fill it up included.
    pub tokens: usize,
    /// The same; some may be empty.
    pub sequences: usize,
    pub supervised: usize,
}

impl Uploaded {
    /// The name of what a part of the network launches: everything but these two is the network's.
    pub fn recording(self, part: &'static str) -> Recording {
        Recording {
            part,
            sizes: [self.tokens, self.sequences],
        }
    }
}

/// A block of the network with the micro-batch that it works on.
pub(super) struct Block<'a> {
    spec: &'a ModelSpec,
    slots: &'a LayerSlots,
    layout: &'a NetworkLayout,
    up: Uploaded,
    r: LayerRegions,
}

impl<'a> Block<'a> {
    pub fn new(
        spec: &'a ModelSpec,
        table: &'a ParamTable,
        layout: &'a NetworkLayout,
        index: usize,
        up: Uploaded,
    ) -> Self {
        let t = up.tokens;
        let planned = layout.layers[index];
        let raw = if spec.qk_norm { t } else { 0 };
        let r = LayerRegions {
            x: planned.x.first(t * spec.hidden_size),
            input_inv_rms: planned.input_inv_rms.first(t),
            qkv_raw: planned.qkv_raw.first(raw * spec.qkv_size()),
            qk_inv_rms: planned
                .qk_inv_rms
                .first(raw * (spec.num_heads + spec.num_kv_heads)),
            qkv: planned.qkv.first(t * spec.qkv_size()),
            attention: planned.attention.first(t * spec.q_size()),
            lse: planned.lse.first(t * spec.num_heads),
            x_mid: planned.x_mid.first(t * spec.hidden_size),
            post_inv_rms: planned.post_inv_rms.first(t),
            gate_up: planned.gate_up.first(t * 2 * spec.intermediate_size),
            kv_cache: planned.kv_cache,
        };
        Self {
            spec,
            slots: &table.layers[index],
            layout,
            up,
            r,
        }
    }

    /// Computes what the block keeps and, unless it is only recomputed for the backward, its output.
    pub fn forward<B: Backend>(&self, b: &mut B, out: Option<Region>) {
        let (s, r) = (self.slots, &self.r);
        self.project_qkv(b);
        b.attention_forward(
            self.attention(),
            self.seq_starts(),
            r.qkv,
            r.attention,
            r.lse,
        );
        self.finish(b, s, out);
    }

    /// As [`Block::forward`] for the prompt of a generation: keeps its keys and values.
    pub fn prefill<B: Backend>(&self, b: &mut B, out: Region) {
        self.forward(b, Some(out));
        b.attention_cache(self.attention(), 0, self.r.qkv, self.r.kv_cache);
    }

    /// One new token at `position`, whose keys and values join the cache.
    pub fn decode<B: Backend>(&self, b: &mut B, position: usize, out: Region) {
        let (s, r) = (self.slots, &self.r);
        self.project_qkv(b);
        b.attention_cache(self.attention(), position, r.qkv, r.kv_cache);
        b.attention_decode(self.attention(), position, r.qkv, r.kv_cache, r.attention);
        self.finish(b, s, Some(out));
    }

    /// From x to the rotated queries, keys and the values.
    fn project_qkv<B: Backend>(&self, b: &mut B) {
        let (s, r) = (self.slots, &self.r);
        let (cos, sin) = (self.layout.rope_cos, self.layout.rope_sin);
        b.rms_norm_forward(
            r.x,
            self.w(s.input_norm),
            self.normed(),
            r.input_inv_rms,
            self.eps(),
        );
        let projected = if self.spec.qk_norm { r.qkv_raw } else { r.qkv };
        let (weight, bias) = (self.w(s.qkv_proj), s.qkv_bias.map(|s| self.w(s)));
        b.linear_forward(self.qkv(), self.normed(), weight, bias, None, projected);
        if let (Some(q_norm), Some(k_norm)) = (s.q_norm, s.k_norm) {
            let weights = (self.w(q_norm), self.w(k_norm));
            b.qk_norm_forward(
                self.qk(),
                r.qkv_raw,
                weights,
                r.qkv,
                r.qk_inv_rms,
                self.eps(),
            );
        }
        b.rope_forward(self.rope(), self.positions(), cos, sin, r.qkv);
    }

    /// From the attention's output to the block's.
    fn finish<B: Backend>(&self, b: &mut B, s: &LayerSlots, out: Option<Region>) {
        let r = &self.r;
        let (weight, bias) = (self.w(s.o_proj), s.o_bias.map(|s| self.w(s)));
        b.linear_forward(self.o(), r.attention, weight, bias, Some(r.x), r.x_mid);

        let weight = self.w(s.post_attention_norm);
        b.rms_norm_forward(r.x_mid, weight, self.normed(), r.post_inv_rms, self.eps());
        let (weight, bias) = (self.w(s.gate_up_proj), s.gate_up_bias.map(|s| self.w(s)));
        b.linear_forward(self.gate_up(), self.normed(), weight, bias, None, r.gate_up);
        let Some(out) = out else { return };
        b.swiglu_forward(r.gate_up, self.act(), self.spec.intermediate_size);
        let (weight, bias) = (self.w(s.down_proj), s.down_bias.map(|s| self.w(s)));
        b.linear_forward(self.down(), self.act(), weight, bias, Some(r.x_mid), out);
    }

    /// Turns the residual stream's gradient at the block's output into that at its input, and adds to
    /// the gradients of the block's parameters.
    pub fn backward<B: Backend>(&self, b: &mut B) {
        let (s, r, l) = (self.slots, &self.r, self.layout);
        let t = self.up.tokens;
        let dx = l.dx.first(t * self.spec.hidden_size);
        let dnormed = l.dnormed.first(t * self.spec.hidden_size);

        // out = x_mid + down_proj(act)
        let dout = self.dx_operand(b, dx);
        let dact = l.dact.first(t * self.spec.intermediate_size);
        b.linear_backward_input(self.down(), dout, self.w(s.down_proj), dact);
        // act = swiglu(gate_up)
        let dgate_up = l.dgate_up.first(t * 2 * self.spec.intermediate_size);
        b.swiglu_backward(
            r.gate_up,
            dact,
            dgate_up,
            self.act(),
            self.spec.intermediate_size,
        );
        let (dweight, dbias) = (self.dw(s.down_proj), s.down_bias.map(|s| self.dw(s)));
        b.linear_backward_weight(self.down(), dout, self.act(), dweight, dbias);
        // gate_up = gate_up_proj(rms_norm(x_mid))
        let weight = self.w(s.post_attention_norm);
        b.rms_norm_forward(r.x_mid, weight, self.normed(), r.post_inv_rms, self.eps());
        let (dgate_up_w, dbias) = (self.dw(s.gate_up_proj), s.gate_up_bias.map(|s| self.dw(s)));
        b.linear_backward_weight(self.gate_up(), dgate_up, self.normed(), dgate_up_w, dbias);
        b.linear_backward_input(self.gate_up(), dgate_up, self.w(s.gate_up_proj), dnormed);
        let dweight = self.dw(s.post_attention_norm);
        b.rms_norm_backward(r.x_mid, weight, r.post_inv_rms, dnormed, dx, dweight);

        // x_mid = x + o_proj(attention)
        let dout = self.dx_operand(b, dx);
        let dattention = l.dattention.first(t * self.spec.q_size());
        b.linear_backward_input(self.o(), dout, self.w(s.o_proj), dattention);
        let (dweight, dbias) = (self.dw(s.o_proj), s.o_bias.map(|s| self.dw(s)));
        b.linear_backward_weight(self.o(), dout, r.attention, dweight, dbias);
        // attention(rope(qk_norm(qkv)))
        let dqkv = l.dqkv.first(t * self.spec.qkv_size());
        let starts = self.seq_starts();
        b.attention_backward(
            self.attention(),
            starts,
            r.qkv,
            r.attention,
            r.lse,
            dattention,
            dqkv,
        );
        b.rope_backward(self.rope(), self.positions(), l.rope_cos, l.rope_sin, dqkv);
        if let (Some(q_norm), Some(k_norm)) = (s.q_norm, s.k_norm) {
            let weights = (self.w(q_norm), self.w(k_norm));
            let dweights = (self.dw(q_norm), self.dw(k_norm));
            b.qk_norm_backward(self.qk(), r.qkv_raw, weights, r.qk_inv_rms, dqkv, dweights);
        }
        // qkv = qkv_proj(rms_norm(x))
        let weight = self.w(s.input_norm);
        b.rms_norm_forward(r.x, weight, self.normed(), r.input_inv_rms, self.eps());
        let (dqkv_w, dbias) = (self.dw(s.qkv_proj), s.qkv_bias.map(|s| self.dw(s)));
        b.linear_backward_weight(self.qkv(), dqkv, self.normed(), dqkv_w, dbias);
        b.linear_backward_input(self.qkv(), dqkv, self.w(s.qkv_proj), dnormed);
        let dweight = self.dw(s.input_norm);
        b.rms_norm_backward(r.x, weight, r.input_inv_rms, dnormed, dx, dweight);
    }

    /// The residual stream's gradient as a matrix product reads it.
    fn dx_operand<B: Backend>(&self, b: &mut B, dx: Region) -> Region {
        let operand = self.layout.dx_operand.first(dx.len);
        if operand != dx {
            b.cast(dx, operand);
        }
        operand
    }

    fn w(&self, slot: Slot) -> Region {
        self.layout.weight(slot)
    }

    fn dw(&self, slot: Slot) -> Region {
        self.layout.gradient(slot)
    }

    fn eps(&self) -> f32 {
        self.spec.rms_norm_eps
    }

    fn normed(&self) -> Region {
        self.layout
            .normed
            .first(self.up.tokens * self.spec.hidden_size)
    }

    fn act(&self) -> Region {
        self.layout
            .act
            .first(self.up.tokens * self.spec.intermediate_size)
    }

    fn positions(&self) -> Indices {
        self.layout.positions.first(self.up.tokens)
    }

    fn seq_starts(&self) -> Indices {
        self.layout.seq_starts.first(self.up.sequences + 1)
    }

    fn attention(&self) -> AttentionShape {
        AttentionShape {
            heads: self.spec.num_heads,
            kv_heads: self.spec.num_kv_heads,
            head_dim: self.spec.head_dim,
            window: self.spec.sliding_window,
        }
    }

    fn qk(&self) -> QkNormShape {
        QkNormShape {
            heads: self.spec.num_heads,
            kv_heads: self.spec.num_kv_heads,
            head_dim: self.spec.head_dim,
        }
    }

    fn rope(&self) -> RopeShape {
        RopeShape {
            rotated_heads: self.spec.num_heads + self.spec.num_kv_heads,
            head_dim: self.spec.head_dim,
            row: self.spec.qkv_size(),
        }
    }

    fn linear(&self, inputs: usize, outputs: usize) -> LinearShape {
        LinearShape {
            rows: self.up.tokens,
            inputs,
            outputs,
        }
    }

    fn qkv(&self) -> LinearShape {
        self.linear(self.spec.hidden_size, self.spec.qkv_size())
    }

    fn o(&self) -> LinearShape {
        self.linear(self.spec.q_size(), self.spec.hidden_size)
    }

    fn gate_up(&self) -> LinearShape {
        self.linear(self.spec.hidden_size, 2 * self.spec.intermediate_size)
    }

    fn down(&self) -> LinearShape {
        self.linear(self.spec.intermediate_size, self.spec.hidden_size)
    }
}
