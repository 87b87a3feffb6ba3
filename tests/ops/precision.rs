//! Number formats in tests: rounding in float64 arithmetic, independent of any conversion that is
//! tested, and the two bounds on what a half-precision operation may err by.
//!
//! **One rounding.** An op computes in float32 and rounds a number once when it stores it. So the
//! bound of the float32 test holds, on operands that the format can hold, with half a unit in the
//! last place of the stored number added ([`assert_stored`]). This is checked element by element, and
//! fails where numbers are truncated, or rounded twice.
//!
//! **The 2× rule.** The error against the float64 reference is at most twice that of the plain
//! half-precision computation ([`assert_half`]): the formula with each of its tensors rounded to the
//! format after each step, as an eager framework computes it in that format, with sums and matrix
//! products accumulated wider and rounded once. It bounds what an op may keep in half precision on
//! the way, such as the probabilities of attention.

use crate::harness::{normals, wide};
pub use sft::dtype::DType::{self, BF16, F16, F32};

/// Every compute format.
pub const FORMATS: [DType; 3] = [F32, BF16, F16];

/// The half-precision ones.
pub const HALVES: [DType; 2] = [BF16, F16];

/// Each shape in every format.
pub fn every_format_of<S: Copy>(
    shapes: impl IntoIterator<Item = S>,
) -> impl Iterator<Item = (DType, S)> {
    let shapes = shapes.into_iter();
    shapes.flat_map(|shape| FORMATS.map(|format| (format, shape)))
}

/// Bits of the significand, the smallest exponent of a normal number, and the largest.
fn parameters(format: DType) -> (i32, i32, i32) {
    match format {
        F32 => (24, -126, 127),
        BF16 => (8, -126, 127),
        F16 => (11, -14, 15),
    }
}

/// The distance of neighbouring numbers of the format around x.
fn ulp(format: DType, x: f64) -> f64 {
    let (digits, smallest, _) = parameters(format);
    let exponent = (x.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    2f64.powi(exponent.max(smallest) + 1 - digits)
}

/// The nearest number of the format, ties to even; infinite beyond its range.
pub fn round_to(format: DType, x: f64) -> f64 {
    if !x.is_finite() {
        return x;
    }
    let unit = ulp(format, x);
    let rounded = (x / unit).round_ties_even() * unit;
    let beyond = 2f64.powi(parameters(format).2) * 2.0;
    if rounded.abs() >= beyond {
        f64::INFINITY.copysign(x)
    } else {
        rounded
    }
}

/// Numbers rounded to the format.
pub fn rounded(format: DType, values: &[f32]) -> Vec<f32> {
    let round = |&x: &f32| round_to(format, f64::from(x)) as f32;
    values.iter().map(round).collect()
}

/// Standard normal numbers that the format can hold.
pub fn normals_in(format: DType, seed: u64, n: usize) -> Vec<f32> {
    rounded(format, &normals(seed, n))
}

/// What storing a number adds to its error: half a unit in the last place. Float32 bounds count the
/// rounding of the result themselves.
pub fn storing(format: DType, x: f64) -> f64 {
    match format {
        F32 => 0.0,
        half => ulp(half, x) / 2.0,
    }
}

/// What keeping a number in the format on the way to a result adds to its error, wherever a multiple
/// of it lies between two powers of two.
pub fn keeping(format: DType, x: f64) -> f64 {
    let (digits, smallest, _) = parameters(format);
    match format {
        F32 => 0.0,
        _ => 2f64.powi(-digits) * x.abs().max(2f64.powi(smallest)),
    }
}

/// Fails at the first number that is further from `expected` than a float32 result with an error of
/// `tolerance(i)` that is then stored in the format.
pub fn assert_stored(
    what: &str,
    format: DType,
    got: &[f32],
    expected: &[f64],
    tolerance: impl Fn(usize) -> f64,
) {
    crate::harness::assert_within(&format!("{what} in {format}"), got, expected, |i| {
        tolerance(i) + storing(format, expected[i].abs() + tolerance(i))
    });
}

/// The 2× rule for a tensor stored in `format`.
///
/// Errors are measured in two norms of the whole tensor: the largest, as the peers' attention tests
/// do, and the root mean square. Not element by element, as a plain computation is exact here and
/// there by luck; not row by row, as rows of a test are as short as one number. The largest error
/// sees a single wrong number, the root mean square sees what is a little wrong everywhere, such as
/// a sum kept in half precision, which the largest hides behind the worst rounding.
///
/// Nobody can store a number better than to half a unit in its last place, so the plain error counts
/// as no less than that: a formula of one exact step has a plain error of 0 by luck.
pub fn assert_half(what: &str, format: DType, got: &[f32], exact: &[f64], plain: &[f64]) {
    assert_eq!(got.len(), exact.len(), "{what}: length");
    assert_eq!(got.len(), plain.len(), "{what}: length of the plain one");
    assert!(
        plain.iter().all(|x| x.is_finite()),
        "{what}: the plain computation leaves the format's range and bounds nothing"
    );
    let errors: Vec<f64> = (wide(got).iter().zip(exact))
        .map(|(got, exact)| (got - exact).abs())
        .collect();
    let allowed: Vec<f64> = (plain.iter().zip(exact))
        .map(|(plain, &exact)| 2.0 * (plain - exact).abs().max(ulp(format, exact) / 2.0))
        .collect();
    let largest = |errors: &[f64]| errors.iter().copied().fold(0.0, f64::max);
    let mean = |errors: &[f64]| {
        let squares: f64 = errors.iter().map(|e| e * e).sum();
        (squares / errors.len().max(1) as f64).sqrt()
    };
    assert!(
        errors.iter().all(|e| !e.is_nan()),
        "{what} in {format}: NaN"
    );
    for (norm, got, allowed) in [
        ("largest", largest(&errors), largest(&allowed)),
        ("root mean square", mean(&errors), mean(&allowed)),
    ] {
        assert!(
            got <= allowed,
            "{what} in {format}: the {norm} error is {got:e}, allowed {allowed:e}"
        );
    }
}

/// [`assert_half`] of named tensors of an op: `formula` computes them from rounded operands with the
/// given rounding after each step, and `got` has each with the format that it is stored in.
pub fn assert_twice_plain<const N: usize>(
    format: DType,
    got: [(&str, DType, &[f32]); N],
    formula: impl Fn(&dyn Fn(f64) -> f64) -> [Vec<f64>; N],
) {
    let exact = formula(&|x| x);
    let plain = formula(&|x| round_to(format, x));
    for (((what, stored, got), exact), plain) in got.into_iter().zip(&exact).zip(&plain) {
        assert_half(what, stored, got, exact, plain);
    }
}

#[test]
fn rounding_agrees_with_the_format() {
    assert_eq!(round_to(BF16, 1.0 + 1.0 / 256.0), 1.0, "a tie to even");
    assert_eq!(round_to(BF16, 1.0 + 3.0 / 256.0), 1.0 + 1.0 / 64.0);
    assert_eq!(round_to(BF16, 1.0 + 1.001 / 256.0), 1.0 + 1.0 / 128.0);
    assert_eq!(round_to(F16, 65519.0), 65504.0);
    assert_eq!(round_to(F16, -65520.0), f64::NEG_INFINITY);
    assert_eq!(round_to(F16, 2f64.powi(-25)), 0.0, "a tie to even");
    assert_eq!(round_to(F16, 1.5 * 2f64.powi(-24)), 2f64.powi(-23));
    assert!(round_to(F16, f64::NAN).is_nan());
    for x in normals(1, 1000) {
        assert_eq!(round_to(F32, f64::from(x)), f64::from(x));
    }
}

#[test]
#[should_panic(expected = "root mean square")]
fn a_little_error_everywhere_breaks_the_rule() {
    // The plain computation errs by much in one place only.
    let exact = vec![1.0; 100];
    let mut plain = exact.clone();
    plain[7] = 1.01;
    assert_half("x", BF16, &[1.015; 100], &exact, &plain);
}

#[test]
#[should_panic(expected = "NaN")]
fn nan_breaks_the_rule() {
    assert_half("x", BF16, &[f32::NAN], &[1.0], &[1.1]);
}
