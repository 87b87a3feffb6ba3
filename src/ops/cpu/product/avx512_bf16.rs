//! bf16 operands on AVX-512 with its bf16 instructions: `vdpbf16ps` adds the products of a pair of
//! numbers to a float32 sum. It reads and writes numbers too small to be normal as zero.

use super::panels::{Kernel, PANEL_PAIRS};
use crate::dtype::bf16;
use crate::ops::cpu::matrix::{MatMut, MatRef, Write};
use std::arch::x86_64::*;

/// Sums of 12 rows and 32 columns stay in 24 of the 32 registers; a pair of k costs 2 loads of b, 12
/// of a, and 24 `vdpbf16ps`.
pub struct Avx512Bf16(());

const ROWS: usize = 12;
const COLS: usize = 32;

impl Avx512Bf16 {
    /// The kernel, if this CPU has the instructions.
    pub fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        found.then_some(Self(()))
    }
}

impl Kernel for Avx512Bf16 {
    const ROWS: usize = ROWS;
    const COLS: usize = COLS;

    fn pack_a(&self, a: MatRef<bf16>, to: &mut [u32]) {
        assert!(to.len() >= a.shape().0 * PANEL_PAIRS && a.shape().1 <= 2 * PANEL_PAIRS);
        // SAFETY: `new` found the instructions; what is written was checked above.
        unsafe {
            if a.col_stride() == 1 {
                pack_a_rows(a, to);
            } else {
                pack_a_columns(a, to);
            }
        }
    }

    fn pack_b(&self, b: MatRef<bf16>, to: &mut [u32]) {
        let (terms, cols) = b.shape();
        assert!(to.len() >= terms.div_ceil(2) * cols.next_multiple_of(COLS));
        // SAFETY: as above.
        unsafe {
            if b.col_stride() == 1 {
                pack_b_rows(b, to);
            } else {
                pack_b_columns(b, to);
            }
        }
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

/// The first `len` numbers at `from`, and zeros.
///
/// # Safety
/// `len` numbers can be read, at most 32 of them.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load(from: *const bf16, len: usize) -> __m512i {
    let mask = ((1u64 << len) - 1) as u32;
    // SAFETY: masked numbers are not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, from.cast()) }
}

/// 16 pairs of numbers of two rows, of columns 0 to 15, and of columns 16 to 31.
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(first: __m512i, second: __m512i) -> [__m512i; 2] {
    let low = _mm512_set_epi16(
        47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
        35, 3, 34, 2, 33, 1, 32, 0,
    );
    let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    [
        _mm512_permutex2var_epi16(first, low, second),
        _mm512_permutex2var_epi16(first, high, second),
    ]
}

/// Transposes a 16 × 16 matrix of 32-bit numbers.
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // quads[4q + c]: of rows 4q to 4q + 3, columns c, c + 4, c + 8 and c + 12, a 128-bit lane each.
    let mut quads = pairs;
    for i in (0..16).step_by(4) {
        quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = quads;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(quads[c], quads[c + 4]);
        let high = _mm512_shuffle_i32x4::<0xdd>(quads[c], quads[c + 4]);
        let low2 = _mm512_shuffle_i32x4::<0x88>(quads[c + 8], quads[c + 12]);
        let high2 = _mm512_shuffle_i32x4::<0xdd>(quads[c + 8], quads[c + 12]);
        columns[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        columns[c + 4] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        columns[c + 8] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        columns[c + 12] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    columns
}

/// Rows with their terms side by side are copied.
///
/// # Safety
/// As asserted by [`Kernel::pack_a`] above.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_a_rows(a: MatRef<bf16>, to: &mut [u32]) {
    let (rows, terms) = a.shape();
    for (i, to) in to.chunks_exact_mut(PANEL_PAIRS).take(rows).enumerate() {
        let from = a.row(i);
        for k in (0..terms).step_by(32) {
            // SAFETY: the numbers from k to the end of the row, and as many pairs, as `terms` fit.
            unsafe {
                let pairs = load(from.as_ptr().add(k), (terms - k).min(32));
                let len = (terms - k).div_ceil(2).min(16);
                _mm512_mask_storeu_epi32(to.as_mut_ptr().add(k / 2).cast(), mask16(len), pairs);
            }
        }
    }
}

/// Columns with their rows side by side are transposed, 16 pairs of terms of 16 rows at a time.
///
/// # Safety
/// As asserted by [`Kernel::pack_a`] above.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_a_columns(a: MatRef<bf16>, to: &mut [u32]) {
    let (rows, terms) = a.shape();
    let columns = a.t();
    for row in (0..rows).step_by(32) {
        let len = (rows - row).min(32);
        for k in (0..terms).step_by(32) {
            let mut halves = [[_mm512_setzero_si512(); 16]; 2];
            let pairs = (terms - k).div_ceil(2).min(16);
            for pair in 0..pairs {
                let term = k + 2 * pair;
                // SAFETY: `len` numbers of a column; one that is not there is zero.
                let [first, second] = unsafe { load_two(columns, term, row, len) };
                [halves[0][pair], halves[1][pair]] = interleave(first, second);
            }
            for (half, pairs_of_rows) in halves.into_iter().enumerate() {
                let row = row + half * 16;
                for (i, pairs_of_row) in transpose(pairs_of_rows).into_iter().enumerate() {
                    if row + i < rows {
                        // SAFETY: row + i < rows, whose pairs fit.
                        unsafe {
                            let to = to.as_mut_ptr().add((row + i) * PANEL_PAIRS + k / 2);
                            _mm512_mask_storeu_epi32(to.cast(), mask16(pairs), pairs_of_row);
                        }
                    }
                }
            }
        }
    }
}

/// Numbers `start` to `start + len` of rows i and i + 1; zeros for a row that is not there.
///
/// # Safety
/// Row i has them; `len` is at most 32.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_two(rows: MatRef<bf16>, i: usize, start: usize, len: usize) -> [__m512i; 2] {
    // SAFETY: by the caller.
    unsafe {
        let first = load(rows.row(i).as_ptr().add(start), len);
        let second = match i + 1 < rows.shape().0 {
            true => load(rows.row(i + 1).as_ptr().add(start), len),
            false => _mm512_setzero_si512(),
        };
        [first, second]
    }
}

/// Rows with their columns side by side: two rows become one of pairs.
///
/// # Safety
/// As asserted by [`Kernel::pack_b`] above.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_b_rows(b: MatRef<bf16>, to: &mut [u32]) {
    let (terms, cols) = b.shape();
    let pairs = terms.div_ceil(2);
    for (strip, to) in to
        .chunks_exact_mut(pairs * COLS)
        .enumerate()
        .take(cols.div_ceil(COLS))
    {
        let col = strip * COLS;
        let len = (cols - col).min(COLS);
        for (pair, to) in to.chunks_exact_mut(COLS).enumerate() {
            // SAFETY: `len` numbers of the row from `col` on; 32 pairs are written to 32.
            unsafe {
                let [first, second] = load_two(b, 2 * pair, col, len);
                let [low, high] = interleave(first, second);
                _mm512_storeu_si512(to.as_mut_ptr().cast(), low);
                _mm512_storeu_si512(to.as_mut_ptr().add(16).cast(), high);
            }
        }
    }
}

/// Columns with their terms side by side are transposed, 16 pairs of terms of 16 columns at a time.
///
/// # Safety
/// As asserted by [`Kernel::pack_b`] above.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_b_columns(b: MatRef<bf16>, to: &mut [u32]) {
    let (terms, cols) = b.shape();
    let pairs = terms.div_ceil(2);
    let columns = b.t();
    for (half_strip, col) in (0..cols.next_multiple_of(COLS)).step_by(16).enumerate() {
        let strip = (half_strip / 2) * pairs * COLS + (half_strip % 2) * 16;
        for k in (0..terms).step_by(32) {
            let len = (terms - k).min(32);
            let mut pairs_of_columns = [_mm512_setzero_si512(); 16];
            for (j, pairs) in pairs_of_columns.iter_mut().enumerate() {
                if col + j < cols {
                    // SAFETY: `len` numbers of column col + j from k on.
                    *pairs = unsafe { load(columns.row(col + j).as_ptr().add(k), len) };
                }
            }
            let rows = transpose(pairs_of_columns);
            for (pair, row) in rows.into_iter().enumerate().take(len.div_ceil(2)) {
                // SAFETY: k / 2 + pair < pairs, and the strip has 32 numbers for each pair.
                unsafe {
                    let to = to.as_mut_ptr().add(strip + (k / 2 + pair) * COLS);
                    _mm512_storeu_si512(to.cast(), row);
                }
            }
        }
    }
}

/// The first `len` of 16.
fn mask16(len: usize) -> u16 {
    ((1u32 << len) - 1) as u16
}
