//! bf16 operands on AVX-512 with its bf16 instructions: `vdpbf16ps` adds the products of a pair of
//! numbers to a float32 sum. It reads and writes numbers too small to be normal as zero.

use super::pack::{COLS, Packer};
use super::panels::Kernel;
use crate::dtype::bf16;
use crate::ops::cpu::matrix::{MatMut, Write};
use std::arch::x86_64::*;

/// Sums of 12 rows and 32 columns stay in 24 of the 32 registers; a pair of k costs 2 loads of b, 12
/// of a, and 24 `vdpbf16ps`.
#[derive(Clone, Copy)]
pub struct Avx512Bf16(Packer);

const ROWS: usize = 12;

impl Avx512Bf16 {
    /// The kernel, if this CPU has the instructions.
    pub fn new() -> Option<Self> {
        let packer = Packer::new()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(packer))
    }
}

impl Kernel for Avx512Bf16 {
    const ROWS: usize = ROWS;
    const PAIRS: usize = 1;

    fn packer(&self) -> Packer {
        self.0
    }

    unsafe fn multiply(
        &self,
        pairs: usize,
        (a, stride): (*const bf16, usize),
        b: &[u32],
        mut c: MatMut,
        write: Write,
    ) {
        assert!(b.len() >= pairs * COLS && c.shape() == (ROWS, COLS));
        // SAFETY: `new` found the instructions; the rest was checked here and by the caller.
        unsafe { multiply(pairs, (a, stride), b.as_ptr(), c.as_mut_ptr(), write) }
    }
}

/// # Safety
/// `pairs` pairs can be read of 12 rows of a and of the strip b, and 32 numbers of 12 rows of c be
/// written.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn multiply(
    pairs: usize,
    (a, a_stride): (*const bf16, usize),
    b: *const u32,
    (c, c_stride): (*mut f32, usize),
    write: Write,
) {
    for i in 0..ROWS {
        _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(i * c_stride).cast());
        _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(i * c_stride + 16).cast());
    }
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for k in 0..pairs {
        // SAFETY: pair k of each of the rows of a, and row k of b.
        unsafe {
            let b0 = as_pairs(_mm512_loadu_si512(b.add(k * COLS).cast()));
            let b1 = as_pairs(_mm512_loadu_si512(b.add(k * COLS + 16).cast()));
            for (i, [sum0, sum1]) in sums.iter_mut().enumerate() {
                let pair: *const i32 = a.add(i * a_stride + 2 * k).cast();
                let a = as_pairs(_mm512_set1_epi32(pair.read_unaligned()));
                *sum0 = _mm512_dpbf16_ps(*sum0, a, b0);
                *sum1 = _mm512_dpbf16_ps(*sum1, a, b1);
            }
        }
    }
    for (i, row) in sums.iter().enumerate() {
        for (j, sum) in row.iter().enumerate() {
            // SAFETY: 16 numbers of row i of c.
            unsafe {
                let c = c.add(i * c_stride + j * 16);
                let sum = match write {
                    Write::Add => _mm512_add_ps(_mm512_loadu_ps(c), *sum),
                    Write::Replace => *sum,
                };
                _mm512_storeu_ps(c, sum);
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn as_pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of any value.
    unsafe { std::mem::transmute(bits) }
}
