use crate::harness::*;
use crate::precision::*;
use crate::rms_norm::{inv_rms, plain, r_roundings};
use sft::ops::QkNormShape;

const EPS: f32 = 1e-6;

struct Case {
    /// Of the rows.
    format: DType,
    shape: QkNormShape,
    tokens: usize,
    raw: Vec<f32>,
    /// For query heads and for key heads.
    weights: [Vec<f32>; 2],
    dqkv: Vec<f32>,
    dweights: [Vec<f32>; 2],
}

struct Outputs {
    out: Vec<f32>,
    inv_rms: Vec<f32>,
    dqkv: Vec<f32>,
    dweights: [Vec<f32>; 2],
}

fn case(format: DType, [tokens, heads, kv_heads, head_dim]: [usize; 4]) -> Case {
    let row = (heads + 2 * kv_heads) * head_dim;
    Case {
        format,
        shape: QkNormShape {
            heads,
            kv_heads,
            head_dim,
        },
        tokens,
        raw: normals_in(format, 1, tokens * row),
        weights: [normals(2, head_dim), normals(3, head_dim)],
        dqkv: normals_in(format, 4, tokens * row),
        dweights: [normals(5, head_dim), normals(6, head_dim)],
    }
}

/// Tokens, query heads, key heads, width of a head.
const SHAPES: [[usize; 4]; 8] = [
    [0, 2, 1, 8],
    [1, 1, 1, 1],
    [1, 6, 2, 80],
    [31, 3, 1, 7],
    [33, 4, 4, 16],
    [65, 3, 1, 64],
    [900, 5, 1, 16],
    [2, 3, 1, 256],
];

fn cases() -> impl Iterator<Item = Case> {
    every_format_of(SHAPES).map(|(format, shape)| case(format, shape))
}

fn run<B: Device>(backend: B, case: &Case) -> Outputs {
    let mut memory = Memory::new(backend);
    let QkNormShape {
        heads, kv_heads, ..
    } = case.shape;
    let raw = memory.put_as(&case.raw, case.format);
    let weights = (memory.put(&case.weights[0]), memory.put(&case.weights[1]));
    let out = memory.garbage_as(case.raw.len(), case.format);
    let inv_rms = memory.garbage(case.tokens * (heads + kv_heads));
    let dqkv = memory.put_as(&case.dqkv, case.format);
    let dweights = (memory.put(&case.dweights[0]), memory.put(&case.dweights[1]));
    memory
        .backend
        .qk_norm_forward(case.shape, raw, weights, out, inv_rms, EPS);
    memory
        .backend
        .qk_norm_backward(case.shape, raw, weights, inv_rms, dqkv, dweights);
    Outputs {
        out: memory.get(out),
        inv_rms: memory.get(inv_rms),
        dqkv: memory.get(dqkv),
        dweights: [memory.get(dweights.0), memory.get(dweights.1)],
    }
}

/// Which weight the head of element i has: query heads 0, key heads 1, value heads none.
fn weight_of(shape: QkNormShape, i: usize) -> Option<usize> {
    let (queries, keys) = (shape.heads, shape.kv_heads);
    let head = i / shape.head_dim % (queries + 2 * keys);
    match head {
        _ if head < queries => Some(0),
        _ if head < queries + keys => Some(1),
        _ => None,
    }
}

fn reference(case: &Case, raw: &[f64], weights: [&[f64]; 2]) -> Vec<f64> {
    let d = case.shape.head_dim;
    let mut out = raw.to_vec();
    for start in (0..raw.len()).step_by(d) {
        let head = &raw[start..start + d];
        if let Some(which) = weight_of(case.shape, start) {
            let r = inv_rms(head, EPS);
            for i in 0..d {
                out[start + i] = weights[which][i] * head[i] * r;
            }
        }
    }
    out
}

fn forward_agrees_with_the_reference<B: Device>() {
    for case in cases() {
        let outputs = run(B::with_threads(2), &case);
        let (raw, d) = (wide(&case.raw), case.shape.head_dim);
        let (q, k) = (wide(&case.weights[0]), wide(&case.weights[1]));
        let expected = reference(&case, &raw, [&q, &k]);
        let roundings = r_roundings(d);
        // Value heads are copied.
        let tolerance = |i: usize| match weight_of(case.shape, i) {
            Some(_) => (roundings + 2.0) * U * expected[i].abs(),
            None => 0.0,
        };
        assert_stored("out", case.format, &outputs.out, &expected, tolerance);
        let heads = raw.chunks(d).enumerate();
        let r: Vec<f64> = heads
            .filter(|(head, _)| weight_of(case.shape, head * d).is_some())
            .map(|(_, head)| inv_rms(head, EPS))
            .collect();
        assert_within("inv_rms", &outputs.inv_rms, &r, |i| roundings * U * r[i]);
    }
}

/// The roundings are those of rms_norm, where they are counted.
fn backward_agrees_with_finite_differences<B: Device>() {
    for case in cases() {
        let Outputs { dqkv, dweights, .. } = run(B::with_threads(2), &case);
        let (raw, dout, d) = (wide(&case.raw), wide(&case.dqkv), case.shape.head_dim);
        let weights = [wide(&case.weights[0]), wide(&case.weights[1])];

        let tolerance = |i: usize| {
            let Some(which) = weight_of(case.shape, i) else {
                return 0.0;
            };
            let (start, weight) = (i / d * d, &weights[which]);
            let r = inv_rms(&raw[start..start + d], EPS);
            let sum: f64 = (0..d)
                .map(|j| (raw[start + j] * weight[j] * dout[start + j]).abs())
                .sum();
            let terms = (r * weight[i - start] * dout[i]).abs()
                + (raw[i] * r.powi(3)).abs() / d as f64 * sum;
            (3.0 * r_roundings(d) + sum_roundings(d) + 7.0) * U * terms
        };
        assert_gradient(
            "draw",
            case.format,
            &dqkv,
            &vec![0.0; dqkv.len()],
            &case.raw,
            |raw| {
                weigh(
                    &case.dqkv,
                    &reference(&case, raw, [&weights[0], &weights[1]]),
                )
            },
            tolerance,
        );

        for which in [0, 1] {
            let tolerance = |i: usize| {
                let mut terms = vec![f64::from(case.dweights[which][i]).abs()];
                for start in (0..raw.len()).step_by(d) {
                    if weight_of(case.shape, start) == Some(which) {
                        let r = inv_rms(&raw[start..start + d], EPS);
                        terms.push((raw[start + i] * r * dout[start + i]).abs());
                    }
                }
                let roundings = r_roundings(d) + sum_roundings(terms.len()) + 2.0;
                roundings * U * terms.iter().sum::<f64>()
            };
            let loss = |weight: &[f64]| {
                let mut weights = [&weights[0][..], &weights[1]];
                weights[which] = weight;
                weigh(&case.dqkv, &reference(&case, &raw, weights))
            };
            assert_gradient(
                ["dq_weight", "dk_weight"][which],
                F32,
                &dweights[which],
                &case.dweights[which],
                &case.weights[which],
                loss,
                tolerance,
            );
        }
    }
}

/// Each head is a row of rms_norm.
fn half_precision_errs_at_most_twice_as_the_plain_one<B: Device>() {
    for format in HALVES {
        let case = case(format, [33, 3, 1, 16]);
        let outputs = run(B::with_threads(2), &case);
        let (raw, dqkv, d) = (wide(&case.raw), wide(&case.dqkv), case.shape.head_dim);
        for which in [0, 1] {
            let elements: Vec<usize> = (0..raw.len())
                .filter(|&i| weight_of(case.shape, i) == Some(which))
                .collect();
            let of = |x: &[f64]| elements.iter().map(|&i| x[i]).collect::<Vec<f64>>();
            let got = |x: &[f32]| elements.iter().map(|&i| x[i]).collect::<Vec<f32>>();
            let (out, draw) = (got(&outputs.out), got(&outputs.dqkv));
            let got = [
                ("out", format, &out[..]),
                ("draw", format, &draw),
                ("dweight", F32, &outputs.dweights[which]),
            ];
            assert_twice_plain(format, got, |round| {
                let weight = wide(&case.weights[which]);
                let [y, _, dx, dweight] = plain(&of(&raw), &weight, &of(&dqkv), EPS, round);
                let start = wide(&case.dweights[which]).into_iter().map(round);
                let dweight = start.zip(dweight).map(|(a, b)| round(a + b)).collect();
                [y, dx, dweight]
            });
        }
        let values = |i: &usize| i / d % 5 == 4;
        for i in (0..raw.len()).filter(values) {
            assert_eq!(outputs.out[i], case.raw[i], "value heads are copied");
            assert_eq!(outputs.dqkv[i], case.dqkv[i], "value heads are left alone");
        }
    }
}

fn threads_do_not_change_bits<B: Device>() {
    for format in FORMATS {
        let case = case(format, [131, 4, 2, 26]);
        assert_same_bits(|backend: B| {
            let outputs = run(backend, &case);
            let [dq_weight, dk_weight] = outputs.dweights;
            vec![
                outputs.out,
                outputs.inv_rms,
                outputs.dqkv,
                dq_weight,
                dk_weight,
            ]
        });
    }
}

on_every_backend!(
    forward_agrees_with_the_reference,
    backward_agrees_with_finite_differences,
    half_precision_errs_at_most_twice_as_the_plain_one,
    threads_do_not_change_bits,
);
