//! How fast each operation is: matrix products and attention in floating-point operations a second,
//! the rest in bytes a second beside a copy within the device, measured in the same run.

use super::scale::{Model, Scale};
use super::tensors::Tensors;
use serde_json::{Value, json};
use sft::Result;
use sft::cuda::{Cuda, GemmProvider};
use sft::dtype::DType;
use sft::ops::{
    AdamW, AdamWStep, Attention, AttentionShape, Backend, Cast, ClipStats, CrossEntropy, Embedding,
    GradNorm, Linear, LinearShape, QkNorm, QkNormShape, Region, RmsNorm, Rope, RopeShape, Rows,
    Swiglu, TokenStats,
};
use std::time::Instant;

/// Timed batches; the median counts.
const BATCHES: usize = 9;

/// What a launch does, for its rate.
#[derive(Clone, Copy)]
enum Work {
    /// Floating-point operations.
    Operations(usize),
    /// Bytes that must be read and written at least.
    Bytes(usize),
}

struct Speed {
    t: Tensors<Cuda>,
    batch_seconds: f64,
    /// One number that is downloaded to wait for the device.
    probe: Region,
    rows: Vec<Value>,
    copy_rate: f64,
}

/// Measures everything; one row for each operation and case.
pub fn measure_all(scale: &Scale, open: impl Fn() -> Result<Cuda>) -> Result<Vec<Value>> {
    let mut speed = Speed {
        t: Tensors::new(open()?, scale.arena)?,
        batch_seconds: scale.batch_seconds,
        probe: Region::EMPTY,
        rows: Vec::new(),
        copy_rate: f64::NAN,
    };
    speed.copy(scale)?;
    for model in scale.models {
        eprintln!("timing {}", model.name);
        speed.matrix_products(scale, model)?;
        speed.attention(scale, model)?;
        speed.block(scale, model)?;
        speed.head(scale, model)?;
    }
    speed.optimizer(scale)?;
    Ok(speed.rows)
}

impl Speed {
    /// Forgets all tensors; operands are bf16 from now on.
    fn clear(&mut self) {
        self.t.clear(DType::BF16, DType::BF16);
        self.probe = self.t.full(1, 1.0);
    }

    /// Seconds of one call: the median of batches that are long enough for the wait not to matter.
    fn seconds(&mut self, launch: &mut dyn FnMut(&mut Cuda)) -> Result<f64> {
        let mut batch = |calls: usize| {
            let start = Instant::now();
            for _ in 0..calls {
                launch(&mut self.t.backend);
            }
            self.t.backend.download(self.probe, &mut [0.0]);
            start.elapsed().as_secs_f64()
        };
        batch(1);
        let once = batch(1).max(1e-9);
        let calls = ((self.batch_seconds / once).ceil() as usize).clamp(1, 10_000);
        let mut times: Vec<f64> = (0..BATCHES).map(|_| batch(calls) / calls as f64).collect();
        self.t.backend.status()?;
        times.sort_by(f64::total_cmp);
        Ok(times[BATCHES / 2])
    }

    fn measure(
        &mut self,
        op: &str,
        case: &str,
        work: Work,
        mut launch: impl FnMut(&mut Cuda),
    ) -> Result<()> {
        let seconds = self.seconds(&mut launch)?;
        let mut row = json!({"op": op, "case": case, "seconds": seconds});
        match work {
            Work::Operations(count) => row["tflops"] = json!(count as f64 / seconds / 1e12),
            Work::Bytes(count) => {
                let rate = count as f64 / seconds;
                row["bytes"] = json!(count);
                row["gb_per_s"] = json!(rate / 1e9);
                row["fraction_of_copy"] = json!(rate / self.copy_rate);
            }
        }
        self.rows.push(row);
        Ok(())
    }

    /// A matrix product by own kernels, and where cuBLASLt can be loaded by it as well, with how fast
    /// the own ones are beside it.
    fn product(
        &mut self,
        op: &str,
        case: &str,
        work: Work,
        mut launch: impl FnMut(&mut Cuda),
    ) -> Result<()> {
        let own = self.rows.len();
        self.measure(op, case, work, &mut launch)?;
        self.rows[own]["gemm"] = json!("own");
        if self.t.backend.set_gemm(GemmProvider::CublasLt).is_ok() {
            let measured = self.measure(op, case, work, &mut launch);
            self.t.backend.set_gemm(GemmProvider::Portable)?;
            measured?;
            let seconds = |row: &Value| row["seconds"].as_f64().unwrap_or(f64::NAN);
            let fraction = seconds(&self.rows[own + 1]) / seconds(&self.rows[own]);
            self.rows[own]["fraction_of_cublaslt"] = json!(fraction);
            self.rows[own + 1]["gemm"] = json!("cublaslt");
        }
        Ok(())
    }

    /// The bandwidth that everything else is held against.
    fn copy(&mut self, scale: &Scale) -> Result<()> {
        self.clear();
        let n = 2 * scale.speed_parameters;
        let (from, to) = (self.t.full(n, 1.0), self.t.full_out(n));
        let seconds = self.seconds(&mut |b| b.copy(from, to))?;
        self.copy_rate = 8.0 * n as f64 / seconds;
        self.measure("copy", "float32", Work::Bytes(8 * n), |b| b.copy(from, to))
    }

    fn matrix_products(&mut self, scale: &Scale, model: &Model) -> Result<()> {
        let (sequences, length) = scale.speed_sequences;
        for (name, inputs, outputs) in model.matrices() {
            self.clear();
            let rows = match name {
                "lm_head" => scale.speed_head_rows,
                _ => sequences * length,
            };
            let shape = LinearShape {
                rows,
                inputs,
                outputs,
            };
            let (x, dy) = (
                self.t.operand(rows * inputs, 1.0),
                self.t.operand(rows * outputs, 1.0),
            );
            let weight = self.t.operand(outputs * inputs, 1.0);
            let (y, dx) = (
                self.t.operand_out(rows * outputs),
                self.t.operand_out(rows * inputs),
            );
            let dweight = self.t.full(outputs * inputs, 1.0);
            let work = Work::Operations(2 * rows * inputs * outputs);
            let case = format!("{} {name} {rows}x{inputs}x{outputs}", model.name);
            self.product("linear forward", &case, work, |b| {
                b.linear_forward(shape, x, weight, None, None, y);
            })?;
            self.product("linear backward input", &case, work, |b| {
                b.linear_backward_input(shape, dy, weight, dx);
            })?;
            self.product("linear backward weight", &case, work, |b| {
                b.linear_backward_weight(shape, dy, x, dweight, None);
            })?;
        }
        Ok(())
    }

    /// Many sequences, and all of their tokens as one. The pairs that see each other count: two
    /// products forward and five backward.
    fn attention(&mut self, scale: &Scale, model: &Model) -> Result<()> {
        let (sequences, length) = scale.speed_sequences;
        let tokens = sequences * length;
        let shape = AttentionShape {
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            window: None,
        };
        for (sequences, length) in [(sequences, length), (1, tokens)] {
            self.clear();
            let starts = self.t.indices((0..=sequences).map(|i| i * length));
            let (qkv, dqkv) = (
                self.t.operand(tokens * shape.qkv_size(), 1.0),
                self.t.operand_out(tokens * shape.qkv_size()),
            );
            let (out, dout) = (
                self.t.operand_out(tokens * shape.q_size()),
                self.t.operand(tokens * shape.q_size(), 1.0),
            );
            let lse = self.t.full_out(shape.heads * tokens);
            let pairs = shape.heads * sequences * length * (length + 1) / 2;
            let case = format!("{} {sequences}x{length}", model.name);
            let work = |products: usize| Work::Operations(products * 2 * pairs * shape.head_dim);
            self.measure("attention forward", &case, work(2), |b| {
                b.attention_forward(shape, starts, qkv, out, lse);
            })?;
            self.measure("attention backward", &case, work(5), |b| {
                b.attention_backward(shape, starts, qkv, out, lse, dout, dqkv);
            })?;
        }
        Ok(())
    }

    /// What a block does beside its products. Bytes: 2 for an operand, 4 for a number of the
    /// residual stream, twice where it is added to.
    fn block(&mut self, scale: &Scale, model: &Model) -> Result<()> {
        let (sequences, length) = scale.speed_sequences;
        let (tokens, hidden, width) = (sequences * length, model.hidden, model.width);
        let case = model.name;

        self.clear();
        let n = tokens * hidden;
        let (x, weight) = (self.t.full(n, 1.0), self.t.full(hidden, 1.0));
        let (y, inv_rms) = (self.t.operand(n, 1.0), self.t.full_out(tokens));
        let (dx, dweight) = (self.t.full(n, 1.0), self.t.full(hidden, 1.0));
        self.measure("rms_norm forward", case, Work::Bytes(6 * n), |b| {
            b.rms_norm_forward(x, weight, y, inv_rms, 1e-5);
        })?;
        self.measure("rms_norm backward", case, Work::Bytes(14 * n), |b| {
            b.rms_norm_backward(x, weight, inv_rms, y, dx, dweight);
        })?;

        self.clear();
        let n = tokens * width;
        let (gate_up, dgate_up) = (self.t.operand(2 * n, 1.0), self.t.operand_out(2 * n));
        let (act, dact) = (self.t.operand_out(n), self.t.operand(n, 1.0));
        self.measure("swiglu forward", case, Work::Bytes(6 * n), |b| {
            b.swiglu_forward(gate_up, act, width);
        })?;
        self.measure("swiglu backward", case, Work::Bytes(12 * n), |b| {
            b.swiglu_backward(gate_up, dact, dgate_up, act, width);
        })?;

        self.clear();
        let rotated_heads = model.heads + model.kv_heads;
        let (half, row) = (model.head_dim / 2, model.qkv());
        let normed = tokens * rotated_heads * model.head_dim;
        let shape = RopeShape {
            rotated_heads,
            head_dim: model.head_dim,
            row,
        };
        let positions = self.t.indices((0..tokens).map(|i| i % length));
        let [cos, sin] = [0; 2].map(|_| self.t.full_of(&vec![0.707; length * half]));
        let (qkv, out) = (
            self.t.operand(tokens * row, 1.0),
            self.t.operand(tokens * row, 1.0),
        );
        self.measure("rope forward", case, Work::Bytes(4 * normed), |b| {
            b.rope_forward(shape, positions, cos, sin, qkv);
        })?;
        let shape = QkNormShape {
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
        };
        let [q, k, dq, dk] = [0; 4].map(|_| self.t.full(model.head_dim, 1.0));
        let inv_rms = self.t.full(tokens * rotated_heads, 1.0);
        self.measure(
            "qk_norm forward",
            case,
            Work::Bytes(4 * tokens * row),
            |b| {
                b.qk_norm_forward(shape, qkv, (q, k), out, inv_rms, 1e-6);
            },
        )?;
        self.measure("qk_norm backward", case, Work::Bytes(6 * normed), |b| {
            b.qk_norm_backward(shape, qkv, (q, k), inv_rms, out, (dq, dk));
        })
    }

    /// Both ends of the network.
    fn head(&mut self, scale: &Scale, model: &Model) -> Result<()> {
        let (sequences, length) = scale.speed_sequences;
        let (tokens, hidden, vocab) = (sequences * length, model.hidden, model.vocab);
        let case = model.name;

        self.clear();
        let n = tokens * hidden;
        let (table, dtable) = (
            self.t.operand(vocab * hidden, 1.0),
            self.t.full(vocab * hidden, 1.0),
        );
        let ids = self.t.scattered(tokens, vocab);
        let out = self.t.full(n, 1.0);
        self.measure("embedding forward", case, Work::Bytes(6 * n), |b| {
            b.embedding_forward(table, ids, out, hidden);
        })?;
        self.measure("embedding backward", case, Work::Bytes(12 * n), |b| {
            b.embedding_backward(out, ids, dtable, hidden);
        })?;

        self.clear();
        let rows = self.t.indices((0..tokens).step_by(2));
        let picked = rows.len * hidden;
        let (x, out) = (self.t.full(n, 1.0), self.t.full(picked, 1.0));
        self.measure("rows forward", case, Work::Bytes(8 * picked), |b| {
            b.rows_forward(x, rows, out, hidden);
        })?;
        self.measure("rows backward", case, Work::Bytes(4 * (picked + n)), |b| {
            b.rows_backward(out, rows, x, hidden);
        })?;

        self.clear();
        let rows = scale.speed_head_rows;
        let n = rows * vocab;
        let (logits, labels) = (self.t.operand(n, 1.0), self.t.scattered(rows, vocab));
        let stats = self.t.full_out(rows * TokenStats::WIDTH);
        self.measure("cross_entropy forward", case, Work::Bytes(2 * n), |b| {
            b.cross_entropy_forward(logits, labels, stats);
        })?;
        // A row that leaves the cache in between is read twice; once is what counts here.
        self.measure(
            "cross_entropy forward and backward",
            case,
            Work::Bytes(4 * n),
            |b| b.cross_entropy_forward_backward(logits, labels, stats, 1.0),
        )
    }

    fn optimizer(&mut self, scale: &Scale) -> Result<()> {
        self.clear();
        let n = scale.speed_parameters;
        let case = format!("{n} parameters");
        let [weights, gradients, m] = [0; 3].map(|_| self.t.full(n, 1.0));
        let (v, operands) = (self.t.full_of(&vec![0.5; n]), self.t.operand_out(n));
        let clip = self.t.full_out(ClipStats::WIDTH);
        self.measure("grad_norm", &case, Work::Bytes(4 * n), |b| {
            b.grad_norm(gradients, 1.0, 1.0, clip);
        })?;
        let step = AdamWStep {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            step: 100,
        };
        self.measure("adamw", &case, Work::Bytes(34 * n), |b| {
            b.adamw(step, clip, weights, gradients, m, v, Some(operands));
        })?;
        self.measure("cast", &case, Work::Bytes(6 * n), |b| {
            b.cast(weights, operands);
        })
    }
}
