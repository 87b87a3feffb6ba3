//! Every operation at the shapes of SmolLM2-135M, one group an operation: `cargo bench --bench ops`,
//! or `cargo bench --bench ops -- linear` for one. Throughput is floating-point operations a second
//! for the matrix products and attention, bytes read and written a second for the rest.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use sft::dtype::DType;
use sft::ops::{
    AdamW, AdamWStep, Attention, AttentionShape, Backend, ClipStats, Cpu, CrossEntropy, Embedding,
    GradNorm, Indices, Linear, LinearShape, QkNorm, QkNormShape, Region, RmsNorm, Rope, RopeShape,
    Rows, Swiglu, TokenStats,
};
use sft::rng::Stream;

/// Tokens of a micro-batch.
const T: usize = 1024;
/// Hidden size.
const H: usize = 576;
/// Width of the feed-forward layer.
const F: usize = 1536;
/// Vocabulary, and rows of logits at a time.
const V: usize = 49_152;
const CHUNK: usize = 256;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const D: usize = 64;
const QKV: usize = (HEADS + 2 * KV_HEADS) * D;
/// Parameters of one block: what the optimizer's ops run on.
const N: usize = H * (QKV + H + 3 * F) + 2 * H;

/// All cores, and an arena that tensors are handed out of.
struct Memory {
    cpu: Cpu,
    used: usize,
}

impl Memory {
    fn new() -> Self {
        let mut cpu = Cpu::new(0).expect("a thread pool");
        // The largest group holds two (V, H) tables, less than 256 MiB.
        cpu.allocate(512 << 20, Region::EMPTY).expect("memory");
        Self { cpu, used: 0 }
    }

    /// A float32 tensor of normal numbers.
    fn tensor(&mut self, len: usize) -> Region {
        self.tensor_as(len, DType::F32)
    }

    /// A tensor of normal numbers, a few thousand of them over and over.
    fn tensor_as(&mut self, len: usize, dtype: DType) -> Region {
        let stream = Stream::new(1, self.used as u64);
        let period: Vec<f32> = (0..4099).map(|i| stream.normal(i) as f32).collect();
        let values: Vec<f32> = period.into_iter().cycle().take(len).collect();
        let region = Region {
            offset: self.used,
            len,
            dtype,
        };
        self.used = (self.used + dtype.size() * len).next_multiple_of(64);
        self.cpu.upload(region, &values);
        region
    }

    fn indices(&mut self, values: impl IntoIterator<Item = usize>) -> Indices {
        let values: Vec<i32> = values.into_iter().map(|i| i as i32).collect();
        let (offset, len) = (self.used, values.len());
        self.used = (offset + 4 * len).next_multiple_of(64);
        let indices = Indices { offset, len };
        self.cpu.upload_indices(indices, &values);
        indices
    }
}

/// Floating-point operations.
fn flops(n: usize) -> Throughput {
    Throughput::Elements(n as u64)
}

/// Bytes of this many float32 numbers.
fn numbers(n: usize) -> Throughput {
    numbers_as(n, DType::F32)
}

fn numbers_as(n: usize, dtype: DType) -> Throughput {
    Throughput::Bytes((dtype.size() * n) as u64)
}

fn bench(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    throughput: Throughput,
    mut run: impl FnMut(),
) {
    group.throughput(throughput);
    group.bench_function(name, |b| b.iter(&mut run));
}

/// The formats of a run on the CPU.
const FORMATS: [DType; 2] = [DType::F32, DType::BF16];

/// What the names of half-precision benches end in.
fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "",
        DType::BF16 => "/bf16",
        DType::F16 => "/f16",
    }
}

fn rms_norm(c: &mut Criterion) {
    let mut group = c.benchmark_group("rms_norm");
    for dtype in FORMATS {
        let mut memory = Memory::new();
        let [x, dx] = [T * H; 2].map(|n| memory.tensor(n));
        let y = memory.tensor_as(T * H, dtype);
        let [weight, dweight, inv_rms] = [H, H, T].map(|n| memory.tensor(n));
        let (cpu, suffix) = (&mut memory.cpu, suffix(dtype));
        let bytes = |float32: usize, others: usize| {
            Throughput::Bytes((T * H * (4 * float32 + dtype.size() * others)) as u64)
        };
        bench(&mut group, &format!("forward{suffix}"), bytes(1, 1), || {
            cpu.rms_norm_forward(x, weight, y, inv_rms, 1e-5);
        });
        bench(
            &mut group,
            &format!("backward{suffix}"),
            bytes(3, 1),
            || {
                cpu.rms_norm_backward(x, weight, inv_rms, y, dx, dweight);
            },
        );
    }
}

/// The four products of a block and the LM head's chunk, in float32 and with operands in bfloat16.
fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    let shapes = [
        ("qkv", T, H, QKV),
        ("attention_out", T, H, H),
        ("gate_up", T, H, 2 * F),
        ("down", T, F, H),
        ("lm_head", CHUNK, H, V),
    ];
    for ((name, rows, inputs, outputs), dtype) in shapes
        .into_iter()
        .flat_map(|shape| FORMATS.map(|dtype| (shape, dtype)))
    {
        let mut memory = Memory::new();
        let shape = LinearShape {
            rows,
            inputs,
            outputs,
        };
        let [x, weight, y, dx] = [
            rows * inputs,
            outputs * inputs,
            rows * outputs,
            rows * inputs,
        ]
        .map(|n| memory.tensor_as(n, dtype));
        let dweight = memory.tensor(outputs * inputs);
        let cpu = &mut memory.cpu;
        let work = flops(2 * rows * inputs * outputs);
        let name = |direction| format!("{name}/{direction}{}", suffix(dtype));
        bench(&mut group, &name("forward"), work.clone(), || {
            cpu.linear_forward(shape, x, weight, None, None, y);
        });
        bench(&mut group, &name("backward_input"), work.clone(), || {
            cpu.linear_backward_input(shape, y, weight, dx);
        });
        bench(&mut group, &name("backward_weight"), work, || {
            cpu.linear_backward_weight(shape, y, x, dweight, None);
        });
    }
}

/// One sequence of 4096 tokens, one of 1024, and eight packed ones of 128. The products of the pairs that see
/// each other count, two forward and five backward, of 2·head_dim operations.
fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    let shape = AttentionShape {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: D,
        window: None,
    };
    let lengths = [4 * T, T, 128].into_iter();
    for (length, dtype) in lengths.flat_map(|length| FORMATS.map(|dtype| (length, dtype))) {
        let mut memory = Memory::new();
        let tokens = length.max(T);
        let starts = memory.indices((0..=tokens).step_by(length));
        let [qkv, dqkv] = [tokens * QKV; 2].map(|n| memory.tensor_as(n, dtype));
        let [out, dout] = [tokens * H; 2].map(|n| memory.tensor_as(n, dtype));
        let lse = memory.tensor(HEADS * tokens);
        let cpu = &mut memory.cpu;
        let pairs = HEADS * (tokens / length) * length * (length + 1) / 2;
        let sequences = tokens / length;
        let name = |direction| format!("{sequences}x{length}/{direction}{}", suffix(dtype));
        bench(&mut group, &name("forward"), flops(4 * pairs * D), || {
            cpu.attention_forward(shape, starts, qkv, out, lse);
        });
        bench(&mut group, &name("backward"), flops(10 * pairs * D), || {
            cpu.attention_backward(shape, starts, qkv, out, lse, dout, dqkv);
        });
    }
    let mut memory = Memory::new();
    let [qkv, cache, out] = [QKV, 2 * T * KV_HEADS * D, H].map(|n| memory.tensor(n));
    bench(&mut group, "decode", numbers(2 * T * KV_HEADS * D), || {
        memory.cpu.attention_decode(shape, T - 1, qkv, cache, out);
    });
}

/// In place; a rotation keeps the numbers' size.
fn rope(c: &mut Criterion) {
    let mut group = c.benchmark_group("rope");
    let shape = RopeShape {
        rotated_heads: HEADS + KV_HEADS,
        head_dim: D,
        row: QKV,
    };
    let angles: Vec<f32> = (0..T * D / 2).map(|i| i as f32 * 1e-3).collect();
    let table = |f: fn(f32) -> f32| angles.iter().map(|&a| f(a)).collect::<Vec<f32>>();
    for dtype in FORMATS {
        let mut memory = Memory::new();
        let qkv = memory.tensor_as(T * QKV, dtype);
        let positions = memory.indices(0..T);
        let [cos, sin] = [T * D / 2; 2].map(|n| memory.tensor(n));
        memory.cpu.upload(cos, &table(f32::cos));
        memory.cpu.upload(sin, &table(f32::sin));
        let (cpu, moved) = (&mut memory.cpu, 2 * T * (HEADS + KV_HEADS) * D);
        let moved = numbers_as(moved, dtype);
        let name = |direction| format!("{direction}{}", suffix(dtype));
        bench(&mut group, &name("forward"), moved.clone(), || {
            cpu.rope_forward(shape, positions, cos, sin, qkv);
        });
        bench(&mut group, &name("backward"), moved, || {
            cpu.rope_backward(shape, positions, cos, sin, qkv);
        });
    }
}

fn qk_norm(c: &mut Criterion) {
    let (mut group, mut memory) = (c.benchmark_group("qk_norm"), Memory::new());
    let shape = QkNormShape {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: D,
    };
    let [raw, out, inv_rms] = [T * QKV, T * QKV, T * (HEADS + KV_HEADS)].map(|n| memory.tensor(n));
    let [q, k, dq, dk] = [D; 4].map(|n| memory.tensor(n));
    let gradient = memory.tensor(T * QKV);
    let dqkv = memory.tensor(T * QKV);
    let cpu = &mut memory.cpu;
    bench(&mut group, "forward", numbers(2 * T * QKV), || {
        cpu.qk_norm_forward(shape, raw, (q, k), out, inv_rms, 1e-6);
    });
    // In place: the gradient is copied each time, so that it does not fade. The copy counts.
    bench(&mut group, "copy_backward", numbers(5 * T * QKV), || {
        cpu.copy(gradient, dqkv);
        cpu.qk_norm_backward(shape, raw, (q, k), inv_rms, dqkv, (dq, dk));
    });
}

fn swiglu(c: &mut Criterion) {
    let mut group = c.benchmark_group("swiglu");
    for dtype in FORMATS {
        let mut memory = Memory::new();
        let [gate_up, dgate_up, act, dact] =
            [2 * T * F, 2 * T * F, T * F, T * F].map(|n| memory.tensor_as(n, dtype));
        let cpu = &mut memory.cpu;
        let name = |direction| format!("{direction}{}", suffix(dtype));
        let moved = |tensors| numbers_as(tensors * T * F, dtype);
        bench(&mut group, &name("forward"), moved(3), || {
            cpu.swiglu_forward(gate_up, act, F);
        });
        bench(&mut group, &name("backward"), moved(6), || {
            cpu.swiglu_backward(gate_up, dact, dgate_up, act, F);
        });
    }
}

/// Ids spread over the whole table.
fn embedding(c: &mut Criterion) {
    let (mut group, mut memory) = (c.benchmark_group("embedding"), Memory::new());
    let [table, dtable, out] = [V * H, V * H, T * H].map(|n| memory.tensor(n));
    let ids = memory.indices((0..T).map(|t| t * 7919 % V));
    let cpu = &mut memory.cpu;
    bench(&mut group, "forward", numbers(2 * T * H), || {
        cpu.embedding_forward(table, ids, out, H);
    });
    bench(&mut group, "backward", numbers(3 * T * H), || {
        cpu.embedding_backward(out, ids, dtable, H);
    });
}

fn cross_entropy(c: &mut Criterion) {
    let mut group = c.benchmark_group("cross_entropy");
    for dtype in FORMATS {
        let mut memory = Memory::new();
        let [source, logits] = [CHUNK * V; 2].map(|n| memory.tensor_as(n, dtype));
        let stats = memory.tensor(CHUNK * TokenStats::WIDTH);
        let labels = memory.indices((0..CHUNK).map(|t| t * 7919 % V));
        let cpu = &mut memory.cpu;
        let name = |what| format!("{what}{}", suffix(dtype));
        let moved = |passes| numbers_as(passes * CHUNK * V, dtype);
        bench(&mut group, &name("forward"), moved(1), || {
            cpu.cross_entropy_forward(source, labels, stats);
        });
        // In place: the logits are copied each time. The copy counts.
        let both = name("copy_forward_backward");
        bench(&mut group, &both, moved(4), || {
            cpu.copy(source, logits);
            cpu.cross_entropy_forward_backward(logits, labels, stats, 1e-3);
        });
    }
}

/// Half of the rows are supervised.
fn rows(c: &mut Criterion) {
    let (mut group, mut memory) = (c.benchmark_group("rows"), Memory::new());
    let [x, out] = [T * H, T / 2 * H].map(|n| memory.tensor(n));
    let rows = memory.indices((0..T).step_by(2));
    let cpu = &mut memory.cpu;
    bench(&mut group, "forward", numbers(T * H), || {
        cpu.rows_forward(x, rows, out, H);
    });
    bench(&mut group, "backward", numbers(2 * T * H), || {
        cpu.rows_backward(out, rows, x, H);
    });
}

fn grad_norm(c: &mut Criterion) {
    let (mut group, mut memory) = (c.benchmark_group("grad_norm"), Memory::new());
    let [gradients, clip] = [N, ClipStats::WIDTH].map(|n| memory.tensor(n));
    bench(&mut group, "norm", numbers(N), || {
        memory.cpu.grad_norm(gradients, 1.0, 1.0, clip);
    });
}

fn adamw(c: &mut Criterion) {
    let (mut group, mut memory) = (c.benchmark_group("adamw"), Memory::new());
    let [weights, gradients, m, v, clip] = [N, N, N, N, ClipStats::WIDTH].map(|n| memory.tensor(n));
    let cpu = &mut memory.cpu;
    cpu.upload(clip, &[1.0, 1.0, 1.0]);
    cpu.fill(v, 0.5);
    // The first update zeroes the gradients. Moments that hardly decay stay away from denormal
    // numbers, which are slow.
    let step = AdamWStep {
        learning_rate: 1e-4,
        beta1: 0.9999,
        beta2: 0.9999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        step: 100,
    };
    bench(&mut group, "update", numbers(8 * N), || {
        cpu.adamw(step, clip, weights, gradients, m, v, None);
    });
    let operand = memory.tensor_as(N, DType::BF16);
    let cpu = &mut memory.cpu;
    let bytes = Throughput::Bytes((8 * 4 + 2) * N as u64);
    bench(&mut group, "update/bf16", bytes, || {
        cpu.adamw(step, clip, weights, gradients, m, v, Some(operand));
    });
}

/// What memory gives: a copy of a tensor that stays in the last cache, and of one that does not fit.
fn memory(c: &mut Criterion) {
    let (mut group, mut memory) = (c.benchmark_group("memory"), Memory::new());
    for (name, len) in [("cache", T * H), ("dram", 60 << 20)] {
        let [from, to] = [len; 2].map(|n| memory.tensor(n));
        bench(
            &mut group,
            &format!("copy_{name}"),
            numbers(2 * len),
            || {
                memory.cpu.copy(from, to);
            },
        );
    }
}

criterion_group! {
    name = ops;
    config = Criterion::default().sample_size(20);
    targets = rms_norm, linear, attention, rope, qk_norm, swiglu, embedding, cross_entropy, rows,
        grad_norm, adamw, memory
}
criterion_main!(ops);
