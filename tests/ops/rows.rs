use crate::harness::*;
use crate::precision::*;

struct Case {
    hidden: usize,
    x: Vec<f32>,
    rows: Vec<i32>,
    dout: Vec<f32>,
}

fn case(tokens: usize, hidden: usize, rows: Vec<i32>) -> Case {
    Case {
        hidden,
        x: normals(1, tokens * hidden),
        dout: normals(2, rows.len() * hidden),
        rows,
    }
}

/// Nothing of nothing, nothing of something, one, all, out of order, every third, a wide row.
fn cases() -> Vec<Case> {
    vec![
        case(0, 5, vec![]),
        case(7, 5, vec![]),
        case(1, 1, vec![0]),
        case(5, 80, (0..5).collect()),
        case(7, 3, vec![6, 0, 3]),
        case(131, 13, (0..131).step_by(3).collect()),
        case(9, 644, vec![8, 2, 5]),
    ]
}

/// out and dx.
fn run<B: Device>(backend: B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let mut memory = Memory::new(backend);
    let (x, rows) = (memory.put(&case.x), memory.put_indices(&case.rows));
    let (out, dout) = (memory.garbage(case.dout.len()), memory.put(&case.dout));
    let dx = memory.garbage(case.x.len());
    memory.backend.rows_forward(x, rows, out, case.hidden);
    memory.backend.rows_backward(dout, rows, dx, case.hidden);
    (memory.get(out), memory.get(dx))
}

fn reference(x: &[f64], case: &Case) -> Vec<f64> {
    let mut out = Vec::new();
    for &row in &case.rows {
        out.extend_from_slice(&x[row as usize * case.hidden..][..case.hidden]);
    }
    out
}

fn forward_copies_rows<B: Device>() {
    for case in cases() {
        let (out, _) = run(B::with_threads(2), &case);
        assert_within("out", &out, &reference(&wide(&case.x), &case), |_| 0.0);
    }
}

/// Copies and zeros do not round.
fn backward_agrees_with_finite_differences<B: Device>() {
    for case in cases() {
        let (_, dx) = run(B::with_threads(2), &case);
        let zeros = vec![0.0; dx.len()];
        let loss = |x: &[f64]| weigh(&case.dout, &reference(x, &case));
        assert_gradient("dx", F32, &dx, &zeros, &case.x, loss, |_| 0.0);
    }
}

fn threads_do_not_change_bits<B: Device>() {
    let case = case(257, 31, (0..257).step_by(2).collect());
    assert_same_bits(|backend: B| {
        let (out, dx) = run(backend, &case);
        vec![out, dx]
    });
}

on_every_backend!(
    forward_copies_rows,
    backward_agrees_with_finite_differences,
    threads_do_not_change_bits,
);
