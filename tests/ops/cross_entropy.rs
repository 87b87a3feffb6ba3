use crate::harness::*;
use crate::precision::*;
use sft::ops::TokenStats;

struct Case {
    /// Of the logits and their gradient.
    format: DType,
    vocab: usize,
    logits: Vec<f32>,
    labels: Vec<i32>,
}

struct Outputs {
    stats: Vec<f32>,
    stats_again: Vec<f32>,
    dlogits: Vec<f32>,
}

/// Factor of the gradient.
const SCALE: f32 = 0.125;

/// `rows` positions with normal logits times `spread`.
fn case(format: DType, (rows, vocab, spread): (usize, usize, f32)) -> Case {
    let logits: Vec<f32> = normals(1, rows * vocab)
        .iter()
        .map(|z| z * spread)
        .collect();
    Case {
        format,
        vocab,
        logits: rounded(format, &logits),
        labels: integers(2, rows, vocab),
    }
}

/// Rows, vocabulary, spread.
const SHAPES: [(usize, usize, f32); 8] = [
    (0, 7, 1.0),
    (1, 1, 1.0),
    (1, 7, 1.0),
    (65, 7, 3.0),
    (33, 63, 10.0),
    (3, 1009, 30.0),
    (1, 50_261, 5.0),
    (5, 17, 1e4),
];

fn cases() -> impl Iterator<Item = Case> {
    every_format_of(SHAPES).map(|(format, shape)| case(format, shape))
}

fn run<B: Device>(backend: B, case: &Case) -> Outputs {
    let mut memory = Memory::new(backend);
    let logits = memory.put_as(&case.logits, case.format);
    let labels = memory.put_indices(&case.labels);
    let width = case.labels.len() * TokenStats::WIDTH;
    let (stats, stats_again) = (memory.garbage(width), memory.garbage(width));
    memory.backend.cross_entropy_forward(logits, labels, stats);
    memory
        .backend
        .cross_entropy_forward_backward(logits, labels, stats_again, SCALE);
    Outputs {
        stats: memory.get(stats),
        stats_again: memory.get(stats_again),
        dlogits: memory.get(logits),
    }
}

/// One position, with what its bounds need.
struct Row {
    loss: f64,
    entropy: f64,
    correct: f64,
    top: f64,
    log_total: f64,
    /// Mean under p of the distance to the largest logit, and of its square.
    distance: f64,
    distance_squared: f64,
}

/// p log p at p = 0 is 0.
fn reference(logits: &[f64], label: usize) -> Row {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|z| (z - top).exp()).sum();
    let seen = || logits.iter().filter(|z| z.is_finite());
    let mean = |power: i32| -> f64 {
        let terms = seen().map(|z| (z - top).exp() / total * (top - z).powi(power));
        terms.sum()
    };
    let first_top = logits.iter().position(|&z| z == top).unwrap();
    Row {
        loss: top + total.ln() - logits[label],
        entropy: total.ln() + mean(1),
        correct: f64::from(u8::from(first_top == label)),
        top,
        log_total: total.ln(),
        distance: mean(1),
        distance_squared: mean(2),
    }
}

impl Row {
    /// Relative error, in units of U, of Σ e^(z − top): z − top rounds by U times its size, which the
    /// exponential turns into a relative error; the exponential has 2 ulp, and there is the sum.
    fn total_roundings(&self, vocab: usize) -> f64 {
        self.distance + 4.0 + sum_roundings(vocab)
    }

    /// ln rounds by an ulp (2 U) and turns the relative error of its argument into an absolute one.
    fn log_total_roundings(&self, vocab: usize) -> f64 {
        self.total_roundings(vocab) + 2.0 * self.log_total
    }

    /// z − top, its difference with log_total.
    fn loss_error(&self, vocab: usize, z: f64) -> f64 {
        U * (self.log_total_roundings(vocab) + (self.top - z) + self.loss.abs())
    }

    /// Σ e^d d / Σ e^d with d = z − top: each term of the sum errs as in the total and by d's
    /// rounding and a product; then ÷ and the difference.
    fn entropy_error(&self, vocab: usize) -> f64 {
        let sum = (6.0 + sum_roundings(vocab)) * self.distance + self.distance_squared;
        let quotient = sum + (self.total_roundings(vocab) + 1.0) * self.distance;
        U * (self.log_total_roundings(vocab) + quotient + self.entropy)
    }

    /// scale · (e^(z − top − log_total) − [label]): two differences, the exponential, the products.
    /// Below e^−87 the exponential may flush to zero.
    fn gradient_error(&self, vocab: usize, z: f64, p: f64, is_label: bool) -> f64 {
        let exponent = (self.top - z) * 2.0 + self.log_total;
        let relative = exponent + self.log_total_roundings(vocab) + 4.0 + 2.0;
        let scale = f64::from(SCALE);
        U * scale * (p * relative + f64::from(u8::from(is_label))) + 1e-37
    }
}

fn rows(case: &Case) -> Vec<Row> {
    let logits = wide(&case.logits);
    let rows = logits.chunks(case.vocab).zip(&case.labels);
    rows.map(|(logits, &label)| reference(logits, label as usize))
        .collect()
}

fn assert_stats(case: &Case, stats: &[f32]) {
    let rows = rows(case);
    let expected: Vec<f64> = rows
        .iter()
        .flat_map(|row| [row.loss, row.entropy, row.correct])
        .collect();
    assert_within("stats", stats, &expected, |i| {
        let (t, row) = (i / 3, &rows[i / 3]);
        let z = f64::from(case.logits[t * case.vocab + case.labels[t] as usize]);
        match i % 3 {
            0 => row.loss_error(case.vocab, z),
            1 => row.entropy_error(case.vocab),
            _ => 0.0,
        }
    });
}

/// dlogits against scale · (p − [label]).
fn assert_dlogits(case: &Case, dlogits: &[f32]) {
    let (vocab, scale) = (case.vocab, f64::from(SCALE));
    let (logits, rows) = (wide(&case.logits), rows(case));
    let p = |i: usize| {
        let row = &rows[i / vocab];
        (logits[i] - row.top - row.log_total).exp()
    };
    let is_label = |i: usize| case.labels[i / vocab] as usize == i % vocab;
    let expected: Vec<f64> = (0..logits.len())
        .map(|i| scale * (p(i) - f64::from(u8::from(is_label(i)))))
        .collect();
    assert_stored("dlogits", case.format, dlogits, &expected, |i| {
        if p(i) == 0.0 {
            return 0.0; // masked, or too far below the top to be more than zero in float64
        }
        rows[i / vocab].gradient_error(vocab, logits[i], p(i), is_label(i))
    });
}

fn forward_agrees_with_the_reference<B: Device>() {
    for case in cases() {
        let outputs = run(B::with_threads(2), &case);
        assert_stats(&case, &outputs.stats);
        assert_eq!(bits(&outputs.stats), bits(&outputs.stats_again));
    }
}

fn backward_agrees_with_the_closed_form<B: Device>() {
    for case in cases() {
        assert_dlogits(&case, &run(B::with_threads(2), &case).dlogits);
    }
}

/// The closed form above, and with it the backward, is the slope of the loss.
fn backward_agrees_with_finite_differences<B: Device>() {
    for case in cases().filter(|case| case.logits.len() < 10_000 && case.vocab != 17) {
        let Outputs { dlogits, .. } = run(B::with_threads(2), &case);
        let (vocab, rows) = (case.vocab, rows(&case));
        let loss = |logits: &[f64]| {
            let rows = logits.chunks(vocab).zip(&case.labels);
            let losses = rows.map(|(logits, &label)| reference(logits, label as usize).loss);
            f64::from(SCALE) * losses.sum::<f64>()
        };
        assert_gradient(
            "dlogits",
            case.format,
            &dlogits,
            &vec![0.0; dlogits.len()],
            &case.logits,
            loss,
            |i| {
                let (row, z) = (&rows[i / vocab], f64::from(case.logits[i]));
                let p = (z - row.top - row.log_total).exp();
                row.gradient_error(vocab, z, p, case.labels[i / vocab] as usize == i % vocab)
            },
        );
    }
}

/// An eager framework keeps log p in the format; the entropy is the sum of rounded products.
fn half_precision_errs_at_most_twice_as_the_plain_one<B: Device>() {
    for (format, shape) in HALVES.into_iter().zip([(65, 37, 3.0), (33, 63, 3.0)]) {
        let case = case(format, shape);
        let outputs = run(B::with_threads(2), &case);
        let column = |c| -> Vec<f32> { outputs.stats.iter().skip(c).step_by(3).copied().collect() };
        let (losses, entropies) = (column(0), column(1));
        let got = [
            ("loss", F32, &losses[..]),
            ("entropy", F32, &entropies),
            ("dlogits", format, &outputs.dlogits),
        ];
        let logits = wide(&case.logits);
        assert_twice_plain(format, got, |round| {
            let (mut loss, mut entropy, mut dlogits) = (Vec::new(), Vec::new(), Vec::new());
            for (logits, &label) in logits.chunks(case.vocab).zip(&case.labels) {
                let row = reference(logits, label as usize);
                let log_p = logits.iter().map(|z| round(z - row.top - row.log_total));
                let log_p: Vec<f64> = log_p.collect();
                loss.push(-log_p[label as usize]);
                let terms = log_p.iter().map(|&log_p| round(round(log_p.exp()) * log_p));
                entropy.push(round(-terms.sum::<f64>()));
                dlogits.extend(log_p.iter().enumerate().map(|(i, log_p)| {
                    let is_label = f64::from(u8::from(i == label as usize));
                    round(f64::from(SCALE) * (log_p.exp() - is_label))
                }));
            }
            [loss, entropy, dlogits]
        });
    }
}

fn huge_logits_do_not_overflow<B: Device>() {
    let case = Case {
        format: F32,
        vocab: 4,
        logits: vec![
            1e4, -1e4, 0.0, 1e4, // two sure ones
            -1e4, -1e4, -1e4, -1e4, // all equal, far below
            1e4, 9999.0, -1e4, 3.0, // the label far away
        ],
        labels: vec![3, 2, 2],
    };
    let outputs = run(B::with_threads(2), &case);
    assert_stats(&case, &outputs.stats);
    assert_dlogits(&case, &outputs.dlogits);
    assert_eq!(outputs.stats[6], 20_000.312, "the loss is the distance");
}

/// A host or a model may rule tokens out by −∞: probability 0, no part in the entropy, no gradient.
fn minus_infinity_is_probability_zero<B: Device>() {
    for format in FORMATS {
        let mut case = case(format, (2, 37, 1.0));
        for i in [0, 5, 36, 37 + 20, 37 + 36] {
            case.logits[i] = f32::NEG_INFINITY;
        }
        // All but the label.
        case.logits.extend([f32::NEG_INFINITY; 37]);
        case.logits[2 * 37 + 19] = 0.5;
        case.labels = vec![3, 9, 19];
        let outputs = run(B::with_threads(2), &case);
        assert_stats(&case, &outputs.stats);
        assert_dlogits(&case, &outputs.dlogits);
        assert_eq!(outputs.stats[6..], [0.0, 0.0, 1.0]);
    }
}

fn a_label_of_probability_zero_has_infinite_loss<B: Device>() {
    let case = Case {
        format: F32,
        vocab: 3,
        logits: vec![1.0, f32::NEG_INFINITY, 2.0],
        labels: vec![1],
    };
    let outputs = run(B::with_threads(1), &case);
    assert_eq!(outputs.stats[0], f32::INFINITY);
    assert_eq!(outputs.dlogits[1], -SCALE);
}

fn nan_reaches_the_loss<B: Device>() {
    for (format, at) in every_format_of([0, 20, 36]) {
        let mut case = case(format, (1, 37, 1.0));
        case.logits[at] = f32::NAN;
        let outputs = run(B::with_threads(1), &case);
        assert!(outputs.stats[0].is_nan() && outputs.stats[1].is_nan());
        assert_eq!(outputs.stats[2], 0.0);
    }
}

fn the_first_of_equal_logits_is_the_prediction<B: Device>() {
    for (format, (first, second)) in every_format_of([(0, 1), (3, 33), (17, 36)]) {
        let mut logits = vec![0.0; 2 * 37];
        for row in logits.chunks_mut(37) {
            (row[first], row[second]) = (2.0, 2.0);
        }
        let case = Case {
            format,
            vocab: 37,
            logits,
            labels: vec![first as i32, second as i32],
        };
        let stats = run(B::with_threads(1), &case).stats;
        assert_eq!((stats[2], stats[5]), (1.0, 0.0), "{first} and {second}");
    }
}

fn threads_do_not_change_bits<B: Device>() {
    for format in FORMATS {
        let case = case(format, (67, 1013, 4.0));
        assert_same_bits(|backend: B| {
            let outputs = run(backend, &case);
            vec![outputs.stats, outputs.stats_again, outputs.dlogits]
        });
    }
}

on_every_backend!(
    forward_agrees_with_the_reference,
    backward_agrees_with_the_closed_form,
    backward_agrees_with_finite_differences,
    half_precision_errs_at_most_twice_as_the_plain_one,
    huge_logits_do_not_overflow,
    minus_infinity_is_probability_zero,
    a_label_of_probability_zero_has_infinite_loss,
    nan_reaches_the_loss,
    the_first_of_equal_logits_is_the_prediction,
    threads_do_not_change_bits,
);
