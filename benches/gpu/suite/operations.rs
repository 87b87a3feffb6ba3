//! Every operation at the shapes of each model and at odd ones.

use super::check::{Bench, Check, Output, positive_sum, sum};
use super::scale::{Model, Scale};
use super::tensors::Tensors;
use serde_json::Value;
use sft::Result;
use sft::cuda::Cuda;
use sft::ops::{
    AdamWStep, AttentionShape, Backend, ClipStats, LinearShape, QkNormShape, RopeShape, TokenStats,
};

/// Checks everything; one row for each operation, case and format.
pub fn check_all(scale: &Scale, open: impl Fn() -> Result<Cuda>) -> Result<Vec<Value>> {
    let mut bench = Bench::new(open()?, scale.arena)?;
    let tokens = scale.tokens();
    for model in scale.models {
        eprintln!("checking {}", model.name);
        check_model(&mut bench, scale, model)?;
    }
    eprintln!("checking odd shapes");
    for (rows, hidden) in [(1, 1), (3, 7), (tokens, 77)] {
        let case = format!("{rows}x{hidden}");
        bench.check(&case, &RmsNorm { rows, hidden })?;
        let width = hidden;
        bench.check(&case, &Swiglu { rows, width })?;
        let vocab = 1 + 5 * hidden;
        bench.check(&case, &CrossEntropy { rows, vocab })?;
        bench.check(
            &case,
            &Embedding {
                rows,
                vocab,
                hidden,
            },
        )?;
        bench.check(&case, &Rows { rows, hidden })?;
        bench.check(&case, &Cast(rows * hidden))?;
        bench.check(&case, &Optimizer(rows * hidden))?;
        for inputs in [1, 8, 77] {
            let (outputs, bias) = (hidden, true);
            let shape = LinearShape {
                rows,
                inputs,
                outputs,
            };
            let case = format!("{rows}x{inputs}x{outputs}");
            bench.check(&case, &Linear { shape, bias })?;
        }
    }
    bench.check("parameters", &Optimizer(scale.parameters))?;
    bench.check("parameters", &Cast(scale.parameters))?;
    Ok(bench.rows)
}

fn check_model(bench: &mut Bench, scale: &Scale, model: &Model) -> Result<()> {
    let (case, rows, hidden) = (model.name, scale.tokens(), model.hidden);
    bench.check(case, &RmsNorm { rows, hidden })?;
    bench.check(
        case,
        &Swiglu {
            rows,
            width: model.width,
        },
    )?;
    bench.check(
        case,
        &Embedding {
            rows,
            vocab: model.vocab,
            hidden,
        },
    )?;
    bench.check(case, &Rows { rows, hidden })?;
    bench.check(
        case,
        &CrossEntropy {
            rows: scale.head_rows,
            vocab: model.vocab,
        },
    )?;
    bench.check(
        case,
        &Rope {
            rows,
            model: *model,
        },
    )?;
    bench.check(
        case,
        &QkNorm {
            rows,
            model: *model,
        },
    )?;
    for (name, inputs, outputs) in model.matrices() {
        let (rows, bias) = match name {
            "lm_head" => (scale.head_rows, false),
            _ => (rows, name == "qkv"),
        };
        let shape = LinearShape {
            rows,
            inputs,
            outputs,
        };
        bench.check(&format!("{case} {name}"), &Linear { shape, bias })?;
    }
    for window in [None, Some(50)] {
        let shape = AttentionShape {
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            window,
        };
        let case = match window {
            None => case.to_owned(),
            Some(window) => format!("{case} window {window}"),
        };
        bench.check(
            &case,
            &Attention {
                shape,
                sequences: scale.sequences,
            },
        )?;
        bench.check(
            &case,
            &Decode {
                shape,
                tokens: rows,
            },
        )?;
    }
    Ok(())
}

struct RmsNorm {
    rows: usize,
    hidden: usize,
}

impl Check for RmsNorm {
    const OP: &'static str = "rms_norm";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let (rows, hidden) = (self.rows, self.hidden);
        let (x, weight) = (t.full(rows * hidden, 1.0), t.full(hidden, 1.0));
        let (y, inv_rms) = (t.operand_out(rows * hidden), t.full_out(rows));
        let dy = t.operand(rows * hidden, 1.0);
        let (dx, dweight) = (t.full(rows * hidden, 1.0), t.full(hidden, 1.0));
        t.backend.rms_norm_forward(x, weight, y, inv_rms, 1e-5);
        t.backend
            .rms_norm_backward(x, weight, inv_rms, dy, dx, dweight);
        let row = positive_sum(hidden);
        vec![
            Output::of(t, "y", y, 1.0, row),
            Output::of(t, "inv_rms", inv_rms, 0.0, row),
            // The sum over the row is as large as x r² and random in sign.
            Output::of(
                t,
                "dx",
                dx,
                0.0,
                3.0 * row + sum(hidden) / (hidden as f64).sqrt(),
            )
            .terms(1.0),
            Output::of(t, "dweight", dweight, 0.0, row + sum(rows + 1)).terms(1.0),
        ]
    }
}

struct Swiglu {
    rows: usize,
    width: usize,
}

impl Check for Swiglu {
    const OP: &'static str = "swiglu";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let n = self.rows * self.width;
        let (gate_up, dact) = (t.operand(2 * n, 1.0), t.operand(n, 1.0));
        let [act, act_again] = [0; 2].map(|_| t.operand_out(n));
        let dgate_up = t.operand_out(2 * n);
        t.backend.swiglu_forward(gate_up, act, self.width);
        t.backend
            .swiglu_backward(gate_up, dact, dgate_up, act_again, self.width);
        vec![
            Output::of(t, "act", act, 1.0, 16.0),
            Output::of(t, "act again", act_again, 1.0, 16.0),
            Output::of(t, "dgate_up", dgate_up, 1.0, 32.0),
        ]
    }
}

struct Embedding {
    rows: usize,
    vocab: usize,
    hidden: usize,
}

impl Check for Embedding {
    const OP: &'static str = "embedding";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let (table_len, n) = (self.vocab * self.hidden, self.rows * self.hidden);
        let (table, dtable) = (t.operand(table_len, 1.0), t.full(table_len, 1.0));
        // Few ids, so that they repeat, the last of the table among them.
        let few = self.vocab.min(self.rows.div_ceil(3));
        let ids = t.indices((0..self.rows).map(|i| self.vocab - 1 - (i * 5) % few));
        let (out, dout) = (t.full_out(n), t.full(n, 1.0));
        t.backend.embedding_forward(table, ids, out, self.hidden);
        t.backend.embedding_backward(dout, ids, dtable, self.hidden);
        vec![
            Output::of(t, "out", out, 0.0, 0.0),
            Output::of(t, "dtable", dtable, 0.0, sum(self.rows.div_ceil(few) + 1)).terms(1.0),
        ]
    }
}

struct Rows {
    rows: usize,
    hidden: usize,
}

impl Check for Rows {
    const OP: &'static str = "rows";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let (n, picked) = (self.rows * self.hidden, self.rows.div_ceil(3));
        let rows = t.indices((0..picked).map(|i| self.rows - 1 - 3 * i.min((self.rows - 1) / 3)));
        let (x, out) = (t.full(n, 1.0), t.full_out(picked * self.hidden));
        let (dout, dx) = (t.full(picked * self.hidden, 1.0), t.full_out(n));
        t.backend.rows_forward(x, rows, out, self.hidden);
        t.backend.rows_backward(dout, rows, dx, self.hidden);
        vec![
            Output::of(t, "out", out, 0.0, 0.0),
            Output::of(t, "dx", dx, 0.0, 0.0),
        ]
    }
}

struct CrossEntropy {
    rows: usize,
    vocab: usize,
}

impl Check for CrossEntropy {
    const OP: &'static str = "cross_entropy";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let (rows, width) = (self.rows, TokenStats::WIDTH);
        let (logits, labels) = (
            t.operand(rows * self.vocab, 3.0),
            t.scattered(rows, self.vocab),
        );
        let [forward, stats] = [0; 2].map(|_| t.full_out(rows * width));
        t.backend.cross_entropy_forward(logits, labels, forward);
        t.backend
            .cross_entropy_forward_backward(logits, labels, stats, 0.125);
        let (forward, stats) = (t.get(forward), t.get(stats));
        let column =
            |stats: &[f32], i: usize| stats.iter().skip(i).step_by(width).copied().collect();
        // Logits reach some 20 below the largest, where the exponential's argument rounds twice.
        let floats = positive_sum(self.vocab) + 64.0;
        vec![
            Output::new("loss", column(&stats, 0), 0.0, floats),
            Output::new("loss alone", column(&forward, 0), 0.0, floats),
            Output::new("entropy", column(&stats, 1), 0.0, 2.0 * floats),
            Output::new("correct", column(&stats, 2), 0.0, 0.0),
            Output::of(t, "dlogits", logits, 1.0, floats),
        ]
    }
}

struct Rope {
    rows: usize,
    model: Model,
}

impl Check for Rope {
    const OP: &'static str = "rope";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let (rows, model) = (self.rows, self.model);
        let (half, n) = (model.head_dim / 2, rows * model.qkv());
        let shape = RopeShape {
            rotated_heads: model.heads + model.kv_heads,
            head_dim: model.head_dim,
            row: model.qkv(),
        };
        let angle = |i: usize| (i / half) as f32 * 0.01 * (1 + i % half) as f32;
        let table = |f: fn(f32) -> f32| (0..rows * half).map(|i| f(angle(i))).collect::<Vec<_>>();
        let (cos, sin) = (t.full_of(&table(f32::cos)), t.full_of(&table(f32::sin)));
        let positions = t.indices((0..rows).map(|i| rows - 1 - i));
        let (qkv, dqkv) = (t.operand(n, 1.0), t.operand(n, 1.0));
        t.backend.rope_forward(shape, positions, cos, sin, qkv);
        t.backend.rope_backward(shape, positions, cos, sin, dqkv);
        vec![
            Output::of(t, "qkv", qkv, 1.0, 4.0),
            Output::of(t, "dqkv", dqkv, 1.0, 4.0),
        ]
    }
}

struct QkNorm {
    rows: usize,
    model: Model,
}

impl Check for QkNorm {
    const OP: &'static str = "qk_norm";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let (rows, model) = (self.rows, self.model);
        let (n, head_dim) = (rows * model.qkv(), model.head_dim);
        let shape = QkNormShape {
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim,
        };
        let [q, k, dq, dk] = [0; 4].map(|_| t.full(head_dim, 1.0));
        let (raw, out) = (t.operand(n, 1.0), t.operand_out(n));
        let inv_rms = t.full_out(rows * (model.heads + model.kv_heads));
        let dqkv = t.operand(n, 1.0);
        t.backend
            .qk_norm_forward(shape, raw, (q, k), out, inv_rms, 1e-6);
        t.backend
            .qk_norm_backward(shape, raw, (q, k), inv_rms, dqkv, (dq, dk));
        let row = positive_sum(head_dim);
        vec![
            Output::of(t, "out", out, 1.0, row),
            Output::of(t, "inv_rms", inv_rms, 0.0, row),
            Output::of(t, "dqkv", dqkv, 1.0, 3.0 * row + sum(head_dim)),
            Output::of(t, "dq weight", dq, 0.0, row + sum(rows * model.heads)),
            Output::of(t, "dk weight", dk, 0.0, row + sum(rows * model.kv_heads)),
        ]
    }
}

struct Linear {
    shape: LinearShape,
    bias: bool,
}

impl Check for Linear {
    const OP: &'static str = "linear";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = self.shape;
        let (x, dy) = (
            t.operand(rows * inputs, 1.0),
            t.operand(rows * outputs, 1.0),
        );
        let weight = t.operand(outputs * inputs, 1.0 / (inputs as f32).sqrt());
        let residual = t.full(rows * outputs, 1.0);
        let bias = self.bias.then(|| t.full(outputs, 1.0));
        let (dweight, dbias) = (
            t.full(outputs * inputs, 1.0),
            self.bias.then(|| t.full(outputs, 1.0)),
        );
        let (y, sum_with_residual) = (t.operand_out(rows * outputs), t.full_out(rows * outputs));
        let dx = t.operand_out(rows * inputs);
        let b = &mut t.backend;
        b.linear_forward(self.shape, x, weight, bias, None, y);
        b.linear_forward(
            self.shape,
            x,
            weight,
            None,
            Some(residual),
            sum_with_residual,
        );
        b.linear_backward_input(self.shape, dy, weight, dx);
        b.linear_backward_weight(self.shape, dy, x, dweight, dbias);
        let mut written = vec![
            Output::of(t, "y", y, 1.0, sum(inputs + 1)).terms(1.0),
            Output::of(t, "y + residual", sum_with_residual, 0.0, sum(inputs + 1)).terms(1.0),
            Output::of(t, "dx", dx, 1.0, sum(outputs)),
            Output::of(t, "dweight", dweight, 0.0, sum(rows + 1)).terms(1.0),
        ];
        if let Some(dbias) = dbias {
            written.push(Output::of(t, "dbias", dbias, 0.0, sum(rows + 1)).terms(1.0));
        }
        written
    }
}

/// Columns `start..end` of rows of `width`.
fn columns(values: &[f32], width: usize, start: usize, end: usize) -> Vec<f32> {
    let rows = values.chunks(width);
    rows.flat_map(|row| row[start..end].iter().copied())
        .collect()
}

struct Attention {
    shape: AttentionShape,
    sequences: &'static [usize],
}

impl Check for Attention {
    const OP: &'static str = "attention";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let shape = self.shape;
        let mut starts = vec![0];
        for length in self.sequences {
            starts.push(starts[starts.len() - 1] + length);
        }
        let tokens = starts[starts.len() - 1];
        let (width, q, kv) = (shape.qkv_size(), shape.q_size(), shape.kv_size());
        let starts = t.indices(starts);
        let (qkv, dout) = (t.operand(tokens * width, 1.0), t.operand(tokens * q, 1.0));
        let (out, lse) = (t.operand_out(tokens * q), t.full_out(shape.heads * tokens));
        let dqkv = t.operand_out(tokens * width);
        let b = &mut t.backend;
        b.attention_forward(shape, starts, qkv, out, lse);
        b.attention_backward(shape, starts, qkv, out, lse, dout, dqkv);
        let dqkv = t.get(dqkv);
        let longest = self.sequences.iter().copied().max().unwrap_or(0);
        let forward = sum(shape.head_dim) + positive_sum(longest);
        let group = shape.heads / shape.kv_heads;
        let backward = forward + sum(shape.head_dim) + sum(longest * group);
        // Plain: S, P and O are rounded; with dO: dP, delta and dS as well, and the result.
        vec![
            Output::of(t, "out", out, 3.0, forward),
            Output::of(t, "lse", lse, 0.0, forward),
            Output::new("dq", columns(&dqkv, width, 0, q), 7.0, backward),
            Output::new("dk", columns(&dqkv, width, q, q + kv), 7.0, backward),
            Output::new("dv", columns(&dqkv, width, q + kv, width), 3.0, backward),
        ]
    }
}

/// A prompt's keys and values into the cache, and the token after it.
struct Decode {
    shape: AttentionShape,
    tokens: usize,
}

impl Check for Decode {
    const OP: &'static str = "attention_decode";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let (shape, tokens) = (self.shape, self.tokens);
        let (width, cached) = (shape.qkv_size(), 2 * shape.kv_size());
        let (prompt, next) = (t.operand(tokens * width, 1.0), t.operand(width, 1.0));
        let cache = t.operand((tokens + 1) * cached, 0.0);
        let out = t.operand_out(shape.q_size());
        let b = &mut t.backend;
        b.attention_cache(shape, 0, prompt, cache);
        b.attention_cache(shape, tokens, next, cache);
        b.attention_decode(shape, tokens, next, cache, out);
        let floats = sum(shape.head_dim) + positive_sum(tokens + 1);
        vec![
            Output::of(t, "cache", cache, 0.0, 0.0),
            Output::of(t, "out", out, 3.0, floats),
        ]
    }
}

/// Float32 to the format of operands and back.
struct Cast(usize);

impl Check for Cast {
    const OP: &'static str = "cast";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let (from, to, back) = (
            t.full(self.0, 1.0),
            t.operand_out(self.0),
            t.full_out(self.0),
        );
        t.backend.cast(from, to);
        t.backend.cast(to, back);
        let (to, back) = (t.get(to), t.get(back));
        // The CPU has kept float32.
        vec![
            Output::new("to", t.rounded(to), 0.0, 0.0),
            Output::new("back", t.rounded(back), 0.0, 0.0),
        ]
    }
}

/// The norm and a clipped update of this many parameters.
struct Optimizer(usize);

impl Check for Optimizer {
    const OP: &'static str = "grad_norm, adamw";

    fn run<B: Backend>(&self, t: &mut Tensors<B>) -> Vec<Output> {
        let n = self.0;
        let [weights, gradients, m] = [0; 3].map(|_| t.full(n, 1.0));
        let v = t.full_of(&vec![0.5; n]);
        let clip = t.full_out(ClipStats::WIDTH);
        let operands = t.operand_out(n);
        let step = AdamWStep {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step: 3,
        };
        t.backend.grad_norm(gradients, 0.5, 1.0, clip);
        t.backend
            .adamw(step, clip, weights, gradients, m, v, Some(operands));
        vec![
            Output::of(t, "clip", clip, 0.0, 8.0),
            Output::of(t, "weights", weights, 0.0, 24.0),
            Output::of(t, "gradients", gradients, 0.0, 0.0),
            Output::of(t, "m", m, 0.0, 8.0),
            Output::of(t, "v", v, 0.0, 8.0),
            Output::of(t, "operands", operands, 1.0, 24.0),
        ]
    }
}
