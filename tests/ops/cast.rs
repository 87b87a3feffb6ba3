use crate::harness::*;
use crate::precision::*;
use sft::dtype::{bf16, f16};

/// To the format and back.
fn there_and_back<B: Device>(values: &[f32], format: DType) -> Vec<f32> {
    let mut memory = Memory::new(B::with_threads(2));
    let (from, back) = (memory.put(values), memory.garbage(values.len()));
    let half = memory.garbage_as(values.len(), format);
    memory.backend.cast(from, half);
    memory.backend.cast(half, back);
    memory.get(back)
}

/// What each of the 65536 patterns stands for.
fn every_number(format: DType) -> Vec<f32> {
    let number = |bits: u16| match format {
        BF16 => bf16::from_bits(bits).to_f32(),
        F16 => f16::from_bits(bits).to_f32(),
        F32 => unreachable!("not a half-precision format"),
    };
    (0..=u16::MAX).map(number).collect()
}

fn assert_rounded<B: Device>(values: &[f32], format: DType) {
    let got = there_and_back::<B>(values, format);
    for ((got, expected), value) in got.iter().zip(rounded(format, values)).zip(values) {
        assert!(
            got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
            "{value:e} became {got:e} in {format}, expected {expected:e}"
        );
    }
}

/// Subnormal ones, zeros of both signs, infinities; NaN stays NaN.
fn every_half_survives_the_round_trip<B: Device>() {
    for format in HALVES {
        let numbers = every_number(format);
        for (back, number) in there_and_back::<B>(&numbers, format).iter().zip(&numbers) {
            match number.is_nan() {
                true => assert!(back.is_nan()),
                false => assert_eq!(back.to_bits(), number.to_bits(), "{number:e} in {format}"),
            }
        }
    }
}

/// The midpoint of each pair of neighbours, subnormal ones too, and the float32 numbers beside it.
fn halfway_rounds_to_even<B: Device>() {
    for format in HALVES {
        let mut numbers = every_number(format);
        numbers.retain(|x| x.is_finite());
        numbers.sort_by(f32::total_cmp);
        let midpoints: Vec<f32> = (numbers.windows(2))
            .map(|pair| ((f64::from(pair[0]) + f64::from(pair[1])) / 2.0) as f32)
            .collect();
        for beside in [f32::next_down, |x| x, f32::next_up] {
            let values: Vec<f32> = midpoints.iter().map(|&x| beside(x)).collect();
            assert_rounded::<B>(&values, format);
        }
    }
}

fn beyond_the_range_is_infinite<B: Device>() {
    let edges = [65504.0, 65519.996, 65520.0, 65536.0, 1e30];
    let last = f32::from_bits(0x7f7f_8000); // halfway between bfloat16's largest and 2^128
    let edges = [&edges[..], &[last.next_down(), last, f32::MAX]].concat();
    for format in HALVES {
        let both: Vec<f32> = edges.iter().flat_map(|&x| [x, -x]).collect();
        assert_rounded::<B>(&both, format);
        let infinities = [f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(there_and_back::<B>(&infinities, format), infinities);
    }
    assert_eq!(there_and_back::<B>(&[65520.0], F16), [f32::INFINITY]);
    assert_eq!(there_and_back::<B>(&[f32::MAX], BF16), [f32::INFINITY]);
}

/// A payload that is all in the bits that are dropped must not turn into infinity.
fn nan_stays_nan<B: Device>() {
    let patterns = [
        0x7f80_0001,
        0xff80_0001,
        0x7fff_ffff,
        0xffff_ffff,
        0x7fc0_0000,
    ];
    for format in HALVES {
        let back = there_and_back::<B>(&patterns.map(f32::from_bits), format);
        assert!(back.iter().all(|x| x.is_nan()), "{back:?} in {format}");
    }
}

/// Lengths around the vectors and the blocks of any kernel, over twelve orders of magnitude.
fn any_length_is_rounded<B: Device>() {
    for n in [0, 1, 7, 8, 9, 255, 257, 4099, 65_537, 131_101] {
        let mut values = normals(n as u64, n);
        for (i, x) in values.iter_mut().enumerate() {
            *x *= 10f32.powi(i as i32 % 13 - 8);
        }
        for format in FORMATS {
            assert_rounded::<B>(&values, format);
        }
    }
}

/// What the host sends and sees is rounded in the same way.
fn uploads_and_fills_round<B: Device>() {
    for format in HALVES {
        let values = normals(1, 1001);
        let mut memory = Memory::new(B::with_threads(2));
        let region = memory.put_as(&values, format);
        assert_eq!(memory.get(region), rounded(format, &values));
        let copy = memory.garbage_as(1001, format);
        memory.backend.copy(region, copy);
        assert_eq!(memory.get(copy), rounded(format, &values));
        memory.backend.fill(region.slice(3, 7), 1.0 / 3.0);
        let mut filled = values.clone();
        filled[3..10].fill(1.0 / 3.0);
        assert_eq!(memory.get(region), rounded(format, &filled));
    }
}

on_every_backend!(
    every_half_survives_the_round_trip,
    halfway_rounds_to_even,
    beyond_the_range_is_infinite,
    nan_stays_nan,
    any_length_is_rounded,
    uploads_and_fills_round,
);
