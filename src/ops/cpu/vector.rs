//! Elementwise arithmetic, compiled for the best vector instructions at run time.
//!
//! Loops inside [`vectorised`] are compiled once for each instruction set that `pulp` knows (AVX-512,
//! AVX2 with FMA, NEON, plain) and picked when they run. Sums keep 16 partial sums, so that they
//! vectorise and so that their order is the same on each of them.

/// Partial sums of a reduction: the lanes of one AVX-512 register.
const LANES: usize = 16;

/// Runs `f` compiled for the best vector instructions that this CPU has. The closure must be marked
/// `#[inline(always)]`: one that is only called from the dispatcher is compiled for the plain
/// instruction set, where each multiply-add is a call into the maths library.
#[inline(always)]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// The vector instructions that [`vectorised`] uses here; the `gemm` crate, asked for the product of
/// float32 matrices, picks the same.
pub fn instruction_set() -> &'static str {
    match pulp::Arch::new() {
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V4(_) => "avx512",
        #[cfg(target_arch = "x86_64")]
        pulp::Arch::V3(_) => "avx2+fma",
        #[cfg(target_arch = "aarch64")]
        pulp::Arch::Neon(_) => "neon",
        _ => "baseline",
    }
}

/// Adds the lanes pairwise.
#[inline(always)]
fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Σ f(aᵢ, bᵢ) over two slices of the same length.
#[inline(always)]
pub fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut lanes = [0.0; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(&a, &b)| f(a, b))
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    add_lanes(lanes) + tail
}

/// Σ aᵢ·bᵢ.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(&a, &b)| a * b)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    add_lanes(lanes) + tail
}

/// Σ aᵢ.
#[inline(always)]
pub fn sum(a: &[f32]) -> f32 {
    sum2(a, a, |a, _| a)
}

/// The largest number; NaN where there is one, −∞ for an empty slice.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    // Both comparisons are false for NaN: a NaN input enters its lane, and one in the lane stays.
    let pick = |best: f32, x: f32| if x > best || x.is_nan() { x } else { best };
    let chunks = a.chunks_exact(LANES);
    let tail = chunks
        .remainder()
        .iter()
        .fold(f32::NEG_INFINITY, |best, &x| pick(best, x));
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = pick(lanes[i], chunk[i]);
        }
    }
    lanes.iter().fold(
        tail,
        |best, &x| if best.is_nan() { best } else { pick(best, x) },
    )
}

/// `e^x` within 2 ulp, flushing to zero below −87.3 and to +∞ above 88.7; NaN stays NaN.
///
/// e^x = 2^n · e^r with n = round(x / ln 2) and |r| ≤ ln 2 / 2, where e^r is a degree-6 polynomial
/// (the coefficients of Cephes' `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -88.0 { -88.0 } else { x };
    let clamped = if clamped > 88.8 { 88.8 } else { clamped };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 5e-1);
    let y = (p * r).mul_add(r, r) + 1.0;
    // 2^n in two halves, so that n = 128 does not overflow the exponent before the product does.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n.wrapping_add(127)) as u32) << 23);
    let y = y * power(half) * power(n.wrapping_sub(half));
    if x < -87.3 { 0.0 } else { y }
}

/// `1 / (1 + e^−x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0.0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let ulp = f64::from(f32::EPSILON) * 2f64.powf(exact.log2().floor());
            worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} ulp");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn max_reports_nan_and_empty() {
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[1.0, 3.0, 2.0]), 3.0);
        let mut values = vec![0.5; 40];
        values[3] = f32::NAN;
        assert!(max(&values).is_nan());
        values[3] = 0.5;
        values[39] = f32::NAN;
        assert!(max(&values).is_nan());
    }

    #[test]
    fn sums_handle_every_tail() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let exact: f32 = (0..n).map(|i| (i * i) as f32).sum();
            assert_eq!(
                vectorised(
                    #[inline(always)]
                    || dot(&a, &a)
                ),
                exact
            );
            assert_eq!(sum(&a), (0..n).sum::<i32>() as f32);
        }
    }

    /// Which instructions a CPU has shows in no bit of what is computed in this way.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_instruction_set_gives_the_same_bits() {
        use pulp::Arch;
        let a: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let b: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.11).cos()).collect();
        let bits = |arch: Arch| {
            arch.dispatch(
                #[inline(always)]
                || {
                    let mut numbers: Vec<f32> = a.iter().map(|&x| exp(x) * sigmoid(x)).collect();
                    numbers.extend([dot(&a, &b), sum(&a), max(&a)]);
                    numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                },
            )
        };
        let baseline = bits(Arch::Scalar);
        if let Some(v3) = pulp::x86::V3::try_new() {
            assert_eq!(bits(Arch::V3(v3)), baseline);
        }
        if let Some(v4) = pulp::x86::V4::try_new() {
            assert_eq!(bits(Arch::V4(v4)), baseline);
        }
    }
}
