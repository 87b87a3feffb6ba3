use crate::harness::*;
use crate::precision::*;
use sft::ops::RopeShape;

/// Positions that the tables know.
const POSITIONS: usize = 200;

struct Case {
    /// Of the rows.
    format: DType,
    shape: RopeShape,
    positions: Vec<i32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    qkv: Vec<f32>,
    dqkv: Vec<f32>,
}

/// `rotated` heads and two value heads of `head_dim`, positions in no order.
fn case(format: DType, [tokens, rotated, head_dim]: [usize; 3]) -> Case {
    let row = (rotated + 2) * head_dim;
    let half = head_dim / 2;
    let angle = |i: usize| {
        let inv_freq = 1e4f64.powf(-2.0 * (i % half) as f64 / head_dim as f64);
        (i / half) as f64 * inv_freq
    };
    let table = |f: fn(f64) -> f64| (0..POSITIONS * half).map(|i| f(angle(i)) as f32).collect();
    Case {
        format,
        shape: RopeShape {
            rotated_heads: rotated,
            head_dim,
            row,
        },
        positions: integers(1, tokens, POSITIONS),
        cos: table(f64::cos),
        sin: table(f64::sin),
        qkv: normals_in(format, 2, tokens * row),
        dqkv: normals_in(format, 3, tokens * row),
    }
}

/// Tokens, rotated heads, width of a head.
const SHAPES: [[usize; 3]; 6] = [
    [0, 2, 8],
    [1, 1, 2],
    [1, 3, 80],
    [31, 4, 6],
    [33, 5, 64],
    [65, 2, 80],
];

fn cases() -> impl Iterator<Item = Case> {
    every_format_of(SHAPES).map(|(format, shape)| case(format, shape))
}

/// qkv and dqkv after the rotations.
fn run<B: Device>(backend: B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let mut memory = Memory::new(backend);
    let positions = memory.put_indices(&case.positions);
    let (cos, sin) = (memory.put(&case.cos), memory.put(&case.sin));
    let [qkv, dqkv] = [&case.qkv, &case.dqkv].map(|x| memory.put_as(x, case.format));
    memory
        .backend
        .rope_forward(case.shape, positions, cos, sin, qkv);
    memory
        .backend
        .rope_backward(case.shape, positions, cos, sin, dqkv);
    (memory.get(qkv), memory.get(dqkv))
}

fn reference(case: &Case, qkv: &[f64]) -> Vec<f64> {
    let RopeShape {
        rotated_heads,
        head_dim,
        row,
    } = case.shape;
    let half = head_dim / 2;
    let mut out = qkv.to_vec();
    for (t, &position) in case.positions.iter().enumerate() {
        for head in 0..rotated_heads {
            let start = t * row + head * head_dim;
            for i in 0..half {
                let cos = f64::from(case.cos[position as usize * half + i]);
                let sin = f64::from(case.sin[position as usize * half + i]);
                let (a, b) = (qkv[start + i], qkv[start + half + i]);
                out[start + i] = a * cos - b * sin;
                out[start + half + i] = b * cos + a * sin;
            }
        }
    }
    out
}

/// Two products and their sum, of numbers that a pair bounds: |a cos| + |b sin| ≤ |a| + |b|. Heads
/// that are not rotated are exact.
fn tolerance(shape: RopeShape, values: &[f32]) -> impl Fn(usize) -> f64 {
    let RopeShape { head_dim, row, .. } = shape;
    move |i| {
        let (head, column) = (i % row / head_dim, i % head_dim);
        let partner = i - column + (column + head_dim / 2) % head_dim;
        let pair = f64::from(values[i]).abs() + f64::from(values[partner]).abs();
        if head < shape.rotated_heads {
            2.0 * U * pair
        } else {
            0.0
        }
    }
}

fn forward_agrees_with_the_reference<B: Device>() {
    for case in cases() {
        let (qkv, _) = run(B::with_threads(2), &case);
        let expected = reference(&case, &wide(&case.qkv));
        let tolerance = tolerance(case.shape, &case.qkv);
        assert_stored("qkv", case.format, &qkv, &expected, tolerance);
    }
}

fn backward_agrees_with_finite_differences<B: Device>() {
    for case in cases() {
        let (_, dqkv) = run(B::with_threads(2), &case);
        assert_gradient(
            "dqkv",
            case.format,
            &dqkv,
            &vec![0.0; dqkv.len()],
            &case.qkv,
            |qkv| weigh(&case.dqkv, &reference(&case, qkv)),
            tolerance(case.shape, &case.dqkv),
        );
    }
}

/// An eager framework rounds the tables, both products and their sum.
fn half_precision_errs_at_most_twice_as_the_plain_one<B: Device>() {
    for format in HALVES {
        let case = case(format, [33, 5, 16]);
        let (qkv, dqkv) = run(B::with_threads(2), &case);
        let got = [("qkv", format, &qkv[..]), ("dqkv", format, &dqkv)];
        assert_twice_plain(format, got, |round| {
            [(&case.qkv, 1.0), (&case.dqkv, -1.0)].map(|(x, direction)| {
                let (x, d) = (wide(x), case.shape.head_dim);
                let mut out = x.clone();
                for (i, out) in out.iter_mut().enumerate() {
                    let (t, column) = (i / case.shape.row, i % d);
                    if i % case.shape.row >= case.shape.rotated_heads * d {
                        continue;
                    }
                    let angle = case.positions[t] as usize * (d / 2) + column % (d / 2);
                    let cos = round(f64::from(case.cos[angle]));
                    let sin = round(direction * f64::from(case.sin[angle]));
                    let other = match column < d / 2 {
                        true => -x[i + d / 2],
                        false => x[i - d / 2],
                    };
                    *out = round(round(x[i] * cos) + round(other * sin));
                }
                out
            })
        });
    }
}

fn value_heads_pass_unchanged<B: Device>() {
    for format in FORMATS {
        let case = case(format, [33, 3, 10]);
        let (qkv, dqkv) = run(B::with_threads(2), &case);
        for start in (0..33).map(|t| t * case.shape.row) {
            let values = start + 30..start + 50;
            assert_eq!(qkv[values.clone()], case.qkv[values.clone()]);
            assert_eq!(dqkv[values.clone()], case.dqkv[values]);
        }
    }
}

fn threads_do_not_change_bits<B: Device>() {
    for format in FORMATS {
        let case = case(format, [131, 4, 26]);
        assert_same_bits(|backend: B| {
            let (qkv, dqkv) = run(backend, &case);
            vec![qkv, dqkv]
        });
    }
}

on_every_backend!(
    forward_agrees_with_the_reference,
    backward_agrees_with_finite_differences,
    half_precision_errs_at_most_twice_as_the_plain_one,
    value_heads_pass_unchanged,
    threads_do_not_change_bits,
);
