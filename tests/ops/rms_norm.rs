use crate::harness::*;
use crate::precision::*;

/// (tokens, hidden): empty, single, prime, around the 32 rows and the 64 columns of one task; more rows
/// than a GPU takes at a time, and around the widest row that one block holds.
const SHAPES: [(usize, usize); 11] = [
    (0, 64),
    (1, 1),
    (1, 80),
    (31, 7),
    (32, 64),
    (33, 65),
    (67, 129),
    (3, 576),
    (300, 64),
    (1, 8192),
    (1, 8195),
];
const EPS: f32 = 1e-5;

struct Case {
    /// Of y and dy.
    format: DType,
    tokens: usize,
    hidden: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    dy: Vec<f32>,
    dx: Vec<f32>,
    dweight: Vec<f32>,
}

struct Outputs {
    y: Vec<f32>,
    inv_rms: Vec<f32>,
    dx: Vec<f32>,
    dweight: Vec<f32>,
}

fn case(format: DType, (tokens, hidden): (usize, usize)) -> Case {
    Case {
        format,
        tokens,
        hidden,
        x: normals(1, tokens * hidden),
        weight: normals(2, hidden),
        dy: normals_in(format, 3, tokens * hidden),
        dx: normals(4, tokens * hidden),
        dweight: normals(5, hidden),
    }
}

fn run<B: Device>(backend: B, case: &Case) -> Outputs {
    let mut memory = Memory::new(backend);
    let (x, weight) = (memory.put(&case.x), memory.put(&case.weight));
    let y = memory.garbage_as(case.x.len(), case.format);
    let inv_rms = memory.garbage(case.tokens);
    memory.backend.rms_norm_forward(x, weight, y, inv_rms, EPS);
    let dy = memory.put_as(&case.dy, case.format);
    let dx = memory.put(&case.dx);
    let dweight = memory.put(&case.dweight);
    memory
        .backend
        .rms_norm_backward(x, weight, inv_rms, dy, dx, dweight);
    Outputs {
        y: memory.get(y),
        inv_rms: memory.get(inv_rms),
        dx: memory.get(dx),
        dweight: memory.get(dweight),
    }
}

/// The inverse root mean square of one row.
pub fn inv_rms(row: &[f64], eps: f32) -> f64 {
    let mean_square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    1.0 / (mean_square + f64::from(eps)).sqrt()
}

fn reference(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mut y = Vec::new();
    for row in x.chunks(weight.len()) {
        let r = inv_rms(row, EPS);
        y.extend(row.iter().zip(weight).map(|(x, w)| w * x * r));
    }
    y
}

/// Roundings of r: half of the square sum's, as the root halves, and those of /, +, √ and 1/.
pub fn r_roundings(hidden: usize) -> f64 {
    sum_roundings(hidden) / 2.0 + 4.0
}

fn forward_agrees_with_the_reference<B: Device>() {
    for (format, shape) in every_format_of(SHAPES) {
        let case = case(format, shape);
        let outputs = run(B::with_threads(2), &case);
        let x = wide(&case.x);
        let y = reference(&x, &wide(&case.weight));
        let roundings = r_roundings(case.hidden);
        assert_stored("y", format, &outputs.y, &y, |i| {
            (roundings + 2.0) * U * y[i].abs()
        });
        let r: Vec<f64> = x.chunks(case.hidden).map(|row| inv_rms(row, EPS)).collect();
        assert_within("inv_rms", &outputs.inv_rms, &r, |i| roundings * U * r[i]);
    }
}

fn backward_adds_the_finite_differences<B: Device>() {
    for (format, shape) in every_format_of(SHAPES) {
        let case = case(format, shape);
        let Outputs { dx, dweight, .. } = run(B::with_threads(2), &case);
        let (x, weight, dy) = (wide(&case.x), wide(&case.weight), wide(&case.dy));
        let (hidden, n) = (case.hidden, sum_roundings(case.hidden));
        let r: Vec<f64> = x.chunks(hidden).map(|row| inv_rms(row, EPS)).collect();

        // dx = dx₀ + r w dy − x r³/H Σ x w dy: r three times, one sum, and seven single roundings.
        let terms = |i: usize| {
            let row = i / hidden * hidden;
            let sum: f64 = (row..row + hidden)
                .map(|j| (x[j] * weight[j - row] * dy[j]).abs())
                .sum();
            let r = r[i / hidden];
            let direct = (r * weight[i - row] * dy[i]).abs();
            f64::from(case.dx[i]).abs() + direct + (x[i] * r.powi(3)).abs() / hidden as f64 * sum
        };
        let roundings = 3.0 * r_roundings(hidden) + n + 7.0;
        assert_gradient(
            "dx",
            F32,
            &dx,
            &case.dx,
            &case.x,
            |x| weigh(&case.dy, &reference(x, &weight)),
            |i| roundings * U * terms(i),
        );

        // dw = dw₀ + Σ x r dy over the rows.
        let terms = |i: usize| {
            let sum: f64 = (0..case.tokens)
                .map(|t| (x[t * hidden + i] * r[t] * dy[t * hidden + i]).abs())
                .sum();
            f64::from(case.dweight[i]).abs() + sum
        };
        let roundings = r_roundings(hidden) + sum_roundings(case.tokens + 1) + 2.0;
        assert_gradient(
            "dweight",
            F32,
            &dweight,
            &case.dweight,
            &case.weight,
            |weight| weigh(&case.dy, &reference(&x, weight)),
            |i| roundings * U * terms(i),
        );
    }
}

/// y and the gradients as an eager framework has them in half precision: statistics in float32, what
/// is normalised rounded, then the weight. `y, inv_rms, dx, dweight` of rows, the latter two without
/// what they are added to.
pub fn plain(
    x: &[f64],
    weight: &[f64],
    dy: &[f64],
    eps: f32,
    round: &dyn Fn(f64) -> f64,
) -> [Vec<f64>; 4] {
    let hidden = weight.len();
    let [x, weight] = [x, weight].map(|v| v.iter().map(|&x| round(x)).collect::<Vec<f64>>());
    let (mut y, mut inv, mut dx) = (Vec::new(), Vec::new(), Vec::new());
    let mut dweight = vec![0.0; hidden];
    for (x, dy) in x.chunks(hidden).zip(dy.chunks(hidden)) {
        let r = inv_rms(x, eps);
        let normed: Vec<f64> = x.iter().map(|x| round(x * r)).collect();
        let dnormed: Vec<f64> = dy.iter().zip(&weight).map(|(d, w)| round(d * w)).collect();
        let sum: f64 = x.iter().zip(&dnormed).map(|(x, d)| x * d).sum();
        let slope = r.powi(3) / hidden as f64 * sum;
        y.extend(normed.iter().zip(&weight).map(|(n, w)| round(n * w)));
        inv.push(round(r));
        dx.extend(
            x.iter()
                .zip(&dnormed)
                .map(|(x, d)| round(r * d - x * slope)),
        );
        for (i, dw) in dweight.iter_mut().enumerate() {
            *dw += round(dy[i] * normed[i]);
        }
    }
    dweight.iter_mut().for_each(|dw| *dw = round(*dw));
    [y, inv, dx, dweight]
}

fn half_precision_errs_at_most_twice_as_the_plain_one<B: Device>() {
    for (format, shape) in HALVES.into_iter().zip([(33, 65), (67, 129)]) {
        let case = case(format, shape);
        let outputs = run(B::with_threads(2), &case);
        let got = [
            ("y", format, &outputs.y[..]),
            ("inv_rms", F32, &outputs.inv_rms),
            ("dx", F32, &outputs.dx),
            ("dweight", F32, &outputs.dweight),
        ];
        assert_twice_plain(format, got, |round| {
            let (x, weight, dy) = (wide(&case.x), wide(&case.weight), wide(&case.dy));
            let [y, inv_rms, dx, dweight] = plain(&x, &weight, &dy, EPS, round);
            let add = |start: &[f32], change: Vec<f64>| {
                let sums = wide(start).into_iter().zip(change);
                sums.map(|(a, b)| round(round(a) + b)).collect()
            };
            [y, inv_rms, add(&case.dx, dx), add(&case.dweight, dweight)]
        });
    }
}

fn a_row_of_zeros_stays_finite<B: Device>() {
    let mut case = case(F32, (2, 5));
    case.x[..5].fill(0.0);
    let outputs = run(B::with_threads(1), &case);
    assert_eq!(outputs.y[..5], [0.0; 5]);
    assert!(
        outputs
            .dx
            .iter()
            .chain(&outputs.dweight)
            .all(|g| g.is_finite())
    );
}

fn threads_do_not_change_bits<B: Device>() {
    for format in FORMATS {
        let case = case(format, (131, 131));
        assert_same_bits(|backend: B| {
            let outputs = run(backend, &case);
            vec![outputs.y, outputs.inv_rms, outputs.dx, outputs.dweight]
        });
    }
}

on_every_backend!(
    forward_agrees_with_the_reference,
    backward_adds_the_finite_differences,
    half_precision_errs_at_most_twice_as_the_plain_one,
    a_row_of_zeros_stays_finite,
    threads_do_not_change_bits,
);
