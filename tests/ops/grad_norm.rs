use crate::harness::*;
use sft::ops::ClipStats;

fn run<B: Device>(backend: B, gradients: &[f32], max_norm: f32) -> ClipStats {
    run_scaled(backend, gradients, 1.0, max_norm)
}

fn run_scaled<B: Device>(backend: B, gradients: &[f32], unscale: f32, max_norm: f32) -> ClipStats {
    let mut memory = Memory::new(backend);
    let gradients = memory.put(gradients);
    let clip = memory.garbage(ClipStats::WIDTH);
    memory.backend.grad_norm(gradients, unscale, max_norm, clip);
    ClipStats::from_slice(memory.get(clip).as_slice().try_into().unwrap())
}

/// Sizes around the pieces that are summed apart.
fn norm_and_scale_agree_with_the_reference<B: Device>() {
    for n in [1, 7, 8, 9, 65_535, 65_536, 65_537, 200_003] {
        let gradients = normals(1, n);
        let norm = wide(&gradients).iter().map(|g| g * g).sum::<f64>().sqrt();
        for max_norm in [0.0, norm as f32 / 3.0, norm as f32 * 3.0] {
            let clip = run(B::with_threads(2), &gradients, max_norm);
            let scale = match max_norm {
                0.0 => 1.0,
                max_norm => (f64::from(max_norm) / (norm + 1e-6)).min(1.0),
            };
            // Summed wider than float32 or not, the norm is at least as good as a float32 sum.
            let roundings = sum_roundings(n) / 2.0 + 3.0;
            assert_within("norm", &[clip.norm], &[norm], |_| roundings * U * norm);
            assert_within("scale", &[clip.scale], &[scale], |_| {
                (roundings + 2.0) * U * scale
            });
            assert_eq!(clip.finite, 1.0);
        }
    }
}

/// With whole numbers every partial sum is exact, so a lost element shows.
fn no_element_is_left_out<B: Device>() {
    let mut gradients = vec![0.0; 131_101];
    for i in [0, 65_535, 65_536, 131_071, 131_100] {
        gradients.fill(0.0);
        gradients[i] = 3.0;
        assert_eq!(run(B::with_threads(2), &gradients, 0.0).norm, 3.0, "{i}");
    }
}

fn no_gradient_is_no_norm<B: Device>() {
    for gradients in [&[][..], &[0.0; 5]] {
        let clip = run(B::with_threads(2), gradients, 1.0);
        assert_eq!((clip.norm, clip.scale, clip.finite), (0.0, 1.0, 1.0));
    }
}

fn one_bad_number_is_not_finite<B: Device>() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for i in [0, 70_000, 70_002] {
            let mut gradients = vec![1.0; 70_003];
            gradients[i] = bad;
            for max_norm in [0.0, 1.0] {
                let clip = run(B::with_threads(2), &gradients, max_norm);
                assert!(!clip.norm.is_finite());
                assert_eq!(clip.finite, 0.0);
            }
        }
    }
}

/// The squares are beyond float32, the norm is not.
fn large_and_tiny_gradients_keep_their_norm<B: Device>() {
    for size in [1e30, 1e-30] {
        let clip = run(B::with_threads(2), &[size; 10_000], 1.0);
        let norm = f64::from(size) * 100.0;
        let scale = (1.0 / (norm + 1e-6)).min(1.0);
        assert_within("norm", &[clip.norm], &[norm], |_| 8.0 * U * norm);
        assert_within("scale", &[clip.scale], &[scale], |_| 8.0 * U * scale);
        assert_eq!(clip.finite, 1.0);
    }
}

/// What the host reads and what the optimizer does agree: an infinite norm is not finite.
fn a_norm_beyond_float32_is_not_finite<B: Device>() {
    let clip = run(B::with_threads(2), &[f32::MAX; 100], 1.0);
    assert_eq!((clip.norm, clip.finite), (f32::INFINITY, 0.0));
}

/// A loss scale is a power of two, so scaling rounds nothing: the norm is that of the gradients
/// without it, to the bit, and the optimizer's factor takes it out again.
fn the_loss_scale_is_taken_out<B: Device>() {
    let gradients = normals(1, 70_003);
    for loss_scale in [1.0, 2.0, 65_536.0, 1.0 / 1024.0, 2f32.powi(30)] {
        let scaled: Vec<f32> = gradients.iter().map(|g| g * loss_scale).collect();
        for max_norm in [0.0, 1.0, 1e6] {
            let plain = run(B::with_threads(2), &gradients, max_norm);
            let clip = run_scaled(B::with_threads(2), &scaled, 1.0 / loss_scale, max_norm);
            assert_eq!(clip.norm.to_bits(), plain.norm.to_bits());
            // The factor may be rounded once more before the loss scale goes into it.
            let factor = f64::from(plain.scale) / f64::from(loss_scale);
            assert_within("scale", &[clip.scale], &[factor], |_| 2.0 * U * factor);
            assert_eq!(clip.finite, 1.0);
        }
    }
}

/// Gradients that overflowed under the loss scale are found; a norm that only looks infinite under
/// it is not.
fn overflow_under_the_loss_scale_is_not_finite<B: Device>() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut gradients = vec![1.0; 1001];
        gradients[1000] = bad;
        let clip = run_scaled(B::with_threads(2), &gradients, 1.0 / 65_536.0, 1.0);
        assert!(!clip.norm.is_finite());
        assert_eq!(clip.finite, 0.0);
    }
    // The scaled norm is beyond float32, the true one is not.
    let clip = run_scaled(B::with_threads(2), &[f32::MAX; 4], 0.25, 0.0);
    assert_eq!((clip.norm, clip.finite), (f32::MAX / 2.0, 1.0));
}

fn threads_do_not_change_bits<B: Device>() {
    let gradients = normals(1, 300_007);
    assert_same_bits(|backend: B| {
        let clip = run(backend, &gradients, 1.0);
        vec![vec![clip.norm, clip.scale, clip.finite]]
    });
}

on_every_backend!(
    norm_and_scale_agree_with_the_reference,
    no_element_is_left_out,
    no_gradient_is_no_norm,
    one_bad_number_is_not_finite,
    large_and_tiny_gradients_keep_their_norm,
    a_norm_beyond_float32_is_not_finite,
    the_loss_scale_is_taken_out,
    overflow_under_the_loss_scale_is_not_finite,
    threads_do_not_change_bits,
);
