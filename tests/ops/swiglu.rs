use crate::harness::*;
use crate::precision::*;

/// (tokens, width).
const SHAPES: [(usize, usize); 6] = [(0, 5), (1, 1), (1, 80), (31, 7), (33, 65), (65, 129)];

struct Case {
    format: DType,
    tokens: usize,
    width: usize,
    gate_up: Vec<f32>,
    dact: Vec<f32>,
}

struct Outputs {
    act: Vec<f32>,
    dgate_up: Vec<f32>,
    act_again: Vec<f32>,
}

fn case(format: DType, (tokens, width): (usize, usize)) -> Case {
    let mut gate_up = normals(1, tokens * 2 * width);
    gate_up.iter_mut().for_each(|x| *x *= 3.0);
    Case {
        format,
        tokens,
        width,
        gate_up: rounded(format, &gate_up),
        dact: normals_in(format, 2, tokens * width),
    }
}

fn run<B: Device>(backend: B, case: &Case) -> Outputs {
    let mut memory = Memory::new(backend);
    let [gate_up, dact] = [&case.gate_up, &case.dact].map(|x| memory.put_as(x, case.format));
    let n = case.tokens * case.width;
    let [act, act_again, dgate_up] = [n, n, 2 * n].map(|n| memory.garbage_as(n, case.format));
    memory.backend.swiglu_forward(gate_up, act, case.width);
    memory
        .backend
        .swiglu_backward(gate_up, dact, dgate_up, act_again, case.width);
    Outputs {
        act: memory.get(act),
        dgate_up: memory.get(dgate_up),
        act_again: memory.get(act_again),
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn reference(gate_up: &[f64], width: usize) -> Vec<f64> {
    let mut act = Vec::new();
    for row in gate_up.chunks(2 * width) {
        for i in 0..width {
            act.push(row[i] * sigmoid(row[i]) * row[width + i]);
        }
    }
    act
}

/// Roundings of σ: the 2 ulp (4 U) of the exponential, + and ÷. Below −87 it may flush to zero.
const SIGMOID: f64 = 6.0;
const FLUSHED: f64 = 1e-37;

fn forward_agrees_with_the_reference<B: Device>() {
    for (format, shape) in every_format_of(SHAPES) {
        let case = case(format, shape);
        let outputs = run(B::with_threads(2), &case);
        let act = reference(&wide(&case.gate_up), case.width);
        let tolerance = |i: usize| (SIGMOID + 2.0) * U * act[i].abs() + FLUSHED;
        assert_stored("act", format, &outputs.act, &act, tolerance);
    }
}

fn the_backward_recomputes_the_forward<B: Device>() {
    for format in FORMATS {
        let outputs = run(B::with_threads(2), &case(format, (33, 65)));
        assert_eq!(bits(&outputs.act_again), bits(&outputs.act));
    }
}

fn backward_agrees_with_finite_differences<B: Device>() {
    for (format, shape) in every_format_of(SHAPES) {
        let case = case(format, shape);
        let Outputs { dgate_up, .. } = run(B::with_threads(2), &case);
        let width = case.width;
        // du = dact g σ;  dg = dact u σ (1 + g (1 − σ)), where σ stands twice and five operations
        // round beside it.
        let terms = |i: usize| {
            let (t, column) = (i / (2 * width), i % (2 * width));
            let at = |column: usize| f64::from(case.gate_up[t * 2 * width + column]);
            let (g, u) = (at(column % width), at(width + column % width));
            let d = f64::from(case.dact[t * width + column % width]).abs();
            let s = sigmoid(g);
            if column < width {
                d * u.abs() * s * (1.0 + g.abs() * (1.0 + s))
            } else {
                d * g.abs() * s
            }
        };
        assert_gradient(
            "dgate_up",
            format,
            &dgate_up,
            &vec![0.0; dgate_up.len()],
            &case.gate_up,
            |x| weigh(&case.dact, &reference(x, width)),
            |i| (2.0 * SIGMOID + 5.0) * U * terms(i) + FLUSHED,
        );
    }
}

/// As an eager framework computes it: silu and its gradient are one operation each.
fn half_precision_errs_at_most_twice_as_the_plain_one<B: Device>() {
    for format in HALVES {
        let case = case(format, (33, 65));
        let outputs = run(B::with_threads(2), &case);
        let (gate_up, dact, width) = (wide(&case.gate_up), wide(&case.dact), case.width);
        let got = [
            ("act", format, &outputs.act[..]),
            ("dgate_up", format, &outputs.dgate_up),
        ];
        assert_twice_plain(format, got, |round| {
            let (mut act, mut dgate_up) = (Vec::new(), Vec::new());
            for (row, dact) in gate_up.chunks(2 * width).zip(dact.chunks(width)) {
                let silu = |i: usize| round(row[i] * sigmoid(row[i]));
                act.extend((0..width).map(|i| round(silu(i) * row[width + i])));
                dgate_up.extend((0..width).map(|i| {
                    let s = sigmoid(row[i]);
                    let dsilu = round(dact[i] * row[width + i]);
                    round(dsilu * s * (1.0 + row[i] * (1.0 - s)))
                }));
                dgate_up.extend((0..width).map(|i| round(dact[i] * silu(i))));
            }
            [act, dgate_up]
        });
    }
}

fn saturated_gates_stay_finite<B: Device>() {
    let gates = [-1e4f32, -100.0, -89.0, -0.0, 0.0, 89.0, 100.0, 1e4];
    let ups = [2.0f32; 8];
    for format in FORMATS {
        let case = Case {
            format,
            tokens: 1,
            width: 8,
            gate_up: rounded(format, &[gates, ups].concat()),
            dact: vec![1.0; 8],
        };
        let outputs = run(B::with_threads(1), &case);
        let act = reference(&wide(&case.gate_up), 8);
        let tolerance = |i: usize| (SIGMOID + 2.0) * U * act[i].abs() + 1e-34;
        assert_stored("act", format, &outputs.act, &act, tolerance);
        // Slopes of silu(g)·2 and of u: 0 far left, 1 and 2 at zero or far right.
        let dgate = [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 2.0];
        let dup: Vec<f64> = act.iter().map(|a| a / 2.0).collect();
        let expected = [&dgate[..], &dup].concat();
        let tolerance = |i: usize| (2.0 * SIGMOID + 5.0) * U * expected[i].abs() + 1e-34;
        assert_stored("dgate_up", format, &outputs.dgate_up, &expected, tolerance);
    }
}

fn threads_do_not_change_bits<B: Device>() {
    for format in FORMATS {
        let case = case(format, (131, 131));
        assert_same_bits(|backend: B| {
            let outputs = run(backend, &case);
            vec![outputs.act, outputs.dgate_up, outputs.act_again]
        });
    }
}

on_every_backend!(
    forward_agrees_with_the_reference,
    the_backward_recomputes_the_forward,
    backward_agrees_with_finite_differences,
    half_precision_errs_at_most_twice_as_the_plain_one,
    saturated_gates_stay_finite,
    threads_do_not_change_bits,
);
