use crate::harness::*;
use crate::precision::*;
use sft::ops::AdamWStep;

fn step(step: u64) -> AdamWStep {
    AdamWStep {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step,
    }
}

/// Weights, m and v after one update from each of `gradients` times `scale`, and what is left of
/// the gradients after the last.
fn run<B: Device>(
    backend: B,
    weights: &[f32],
    gradients: &[Vec<f32>],
    scale: f32,
) -> [Vec<f32>; 4] {
    let mut memory = Memory::new(backend);
    let (n, weights) = (weights.len(), memory.put(weights));
    let (m, v) = (memory.put(&vec![0.0; n]), memory.put(&vec![0.0; n]));
    let (gradient, clip) = (memory.garbage(n), memory.put(&[7.0, scale, 1.0]));
    for (t, values) in gradients.iter().enumerate() {
        memory.backend.upload(gradient, values);
        memory
            .backend
            .adamw(step(t as u64 + 1), clip, weights, gradient, m, v, None);
    }
    [weights, m, v, gradient].map(|region| memory.get(region))
}

/// The update in float64, with bounds on the roundings of a float32 one beside each number.
#[derive(Clone, Copy, Default)]
struct Reference {
    weight: f64,
    m: f64,
    v: f64,
    /// m from |g|: Σ|terms|.
    m_terms: f64,
    weight_error: f64,
}

impl Reference {
    fn update(&mut self, step: AdamWStep, g: f64) {
        let (t, lr) = (step.step as f64, step.learning_rate);
        self.weight -= lr * step.weight_decay * self.weight;
        self.m = step.beta1 * self.m + (1.0 - step.beta1) * g;
        self.v = step.beta2 * self.v + (1.0 - step.beta2) * g * g;
        let m_hat = self.m / (1.0 - step.beta1.powf(t));
        let v_hat = self.v / (1.0 - step.beta2.powf(t));
        self.weight -= lr * m_hat / (v_hat.sqrt() + step.epsilon);

        self.m_terms = step.beta1 * self.m_terms + (1.0 - step.beta1) * g.abs();
        // The quotient: m's roundings, half of v's, and 8 of the constants, products, √, +, and ÷.
        let roundings = self.m_roundings(t) + self.v_roundings(t) / 2.0 + 8.0;
        let quotient =
            lr * self.m_terms / (1.0 - step.beta1.powf(t)) / (v_hat.sqrt() + step.epsilon);
        // The weight: the factor of the decay, its product and the subtraction.
        self.weight_error += U * (3.0 * (self.weight.abs() + quotient) + roundings * quotient);
    }

    /// A step rounds the constant, the product and the sum; the gradient enters with two more.
    fn m_roundings(&self, t: f64) -> f64 {
        3.0 * t + 2.0
    }

    /// As m, with the gradient's rounding twice and one more product.
    fn v_roundings(&self, t: f64) -> f64 {
        3.0 * t + 5.0
    }
}

fn fifty_updates_agree_with_the_formula<B: Device>() {
    // Gradients as small as ε show where it is added.
    for (n, size) in [(0, 1.0), (1, 1.0), (7, 1e-7), (16_385, 1.0)] {
        let weights = normals(1, n);
        let sized = |t: u64| normals(100 + t, n).iter().map(|g| g * size).collect();
        let mut gradients: Vec<Vec<f32>> = (0..50).map(sized).collect();
        // One parameter that never has a gradient, only decay.
        gradients
            .iter_mut()
            .for_each(|g| g.iter_mut().skip(3).take(1).for_each(|g| *g = 0.0));
        let scale = 0.37f32;
        let [got_weights, got_m, got_v, left] =
            run(B::with_threads(2), &weights, &gradients, scale);

        let mut reference: Vec<Reference> = weights
            .iter()
            .map(|&weight| Reference {
                weight: f64::from(weight),
                ..Reference::default()
            })
            .collect();
        for (t, gradients) in gradients.iter().enumerate() {
            for (reference, &g) in reference.iter_mut().zip(gradients) {
                reference.update(step(t as u64 + 1), f64::from(g) * f64::from(scale));
            }
        }
        let all = |f: fn(&Reference) -> f64| reference.iter().map(f).collect::<Vec<f64>>();
        let (m, v) = (all(|r| r.m), all(|r| r.v));
        assert_within("m", &got_m, &m, |i| {
            reference[i].m_roundings(50.0) * U * reference[i].m_terms
        });
        assert_within("v", &got_v, &v, |i| {
            reference[i].v_roundings(50.0) * U * v[i]
        });
        assert_within("weights", &got_weights, &all(|r| r.weight), |i| {
            reference[i].weight_error
        });
        assert_eq!(left, vec![0.0; n], "gradients are zeroed");
    }
}

/// The first update of each weight is the learning rate, whatever the gradient's size.
fn the_first_update_is_corrected_for_bias<B: Device>() {
    let gradients = vec![vec![1e-3, -5.0, 1e4]];
    let [weights, ..] = run(B::with_threads(1), &[0.0; 3], &gradients, 1.0);
    // ε = 1e-8 against a gradient of 1e-3 is 1e-5 of the update.
    assert_within("weights", &weights, &[-1e-2, 1e-2, -1e-2], |_| {
        1e-2 * 1.1e-5
    });
}

fn a_norm_that_is_not_finite_skips_the_update<B: Device>() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut memory = Memory::new(B::with_threads(2));
        let before = [normals(1, 100), normals(2, 100), normals(3, 100)];
        let [weights, m, v] = [0, 1, 2].map(|i| memory.put(&before[i]));
        let mut values = normals(4, 100);
        values[57] = bad;
        let (gradients, clip) = (memory.put(&values), memory.garbage(3));
        memory.backend.grad_norm(gradients, 1.0, 1.0, clip);
        memory
            .backend
            .adamw(step(3), clip, weights, gradients, m, v, None);
        for (region, before) in [weights, m, v].into_iter().zip(&before) {
            assert_eq!(&memory.get(region), before);
        }
        assert_eq!(memory.get(gradients), [0.0; 100]);
    }
}

fn clipping_scales_the_gradient<B: Device>() {
    let mut memory = Memory::new(B::with_threads(2));
    let zeros = [0.0; 2];
    let [weights, m, v] = [(); 3].map(|()| memory.put(&zeros));
    let (gradients, clip) = (memory.put(&[3.0, 4.0]), memory.garbage(3));
    memory.backend.grad_norm(gradients, 1.0, 0.5, clip);
    memory
        .backend
        .adamw(step(1), clip, weights, gradients, m, v, None);
    // m = (1 − β₁) · g · 0.5 / 5, but for the 1e-6 in the clip's denominator and six roundings.
    assert_within("m", &memory.get(m), &[0.03, 0.04], |_| {
        0.04 * (6.0 * U + 1e-6)
    });
}

/// The operands of the matrix products are the new weights, rounded. Their update is that without
/// operands, and when it is skipped they stay.
fn operands_are_the_rounded_weights<B: Device>() {
    for (format, n) in every_format_of([0, 1, 7, 1025, 16_385]) {
        if format == F32 {
            continue;
        }
        let (weights, gradients) = (normals(1, n), vec![normals(2, n)]);
        let [expected, ..] = run(B::with_threads(2), &weights, &gradients, 0.5);
        let mut memory = Memory::new(B::with_threads(2));
        let (weights, gradient) = (memory.put(&weights), memory.put(&gradients[0]));
        let [m, v] = [(); 2].map(|()| memory.put(&vec![0.0; n]));
        let operands = memory.garbage_as(n, format);
        for finite in [1.0, 0.0] {
            let clip = memory.put(&[7.0, 0.5, finite]);
            let b = &mut memory.backend;
            b.adamw(step(1), clip, weights, gradient, m, v, Some(operands));
            let got = memory.get(weights);
            assert_eq!(bits(&got), bits(&expected));
            assert_eq!(bits(&memory.get(operands)), bits(&rounded(format, &got)));
            memory.backend.upload(gradient, &gradients[0]);
        }
    }
}

fn threads_do_not_change_bits<B: Device>() {
    let weights = normals(1, 70_001);
    let gradients: Vec<Vec<f32>> = (0..3).map(|t| normals(100 + t, 70_001)).collect();
    assert_same_bits(|backend: B| run(backend, &weights, &gradients, 0.5).to_vec());
    assert_same_bits(|backend: B| {
        let mut memory = Memory::new(backend);
        let [weights, gradient] = [&weights, &gradients[0]].map(|x| memory.put(x));
        let [m, v] = [(); 2].map(|()| memory.put(&[0.0; 70_001]));
        let clip = memory.put(&[7.0, 0.5, 1.0]);
        let operands = memory.garbage_as(70_001, BF16);
        let b = &mut memory.backend;
        b.adamw(step(1), clip, weights, gradient, m, v, Some(operands));
        vec![memory.get(weights), memory.get(operands)]
    });
}

on_every_backend!(
    fifty_updates_agree_with_the_formula,
    the_first_update_is_corrected_for_bias,
    a_norm_that_is_not_finite_skips_the_update,
    clipping_scales_the_gradient,
    operands_are_the_rounded_weights,
    threads_do_not_change_bits,
);
