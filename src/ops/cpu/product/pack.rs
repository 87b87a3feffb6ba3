//! Packing bf16 operands with AVX-512 into the order that [`super::panels`] describes.

use super::panels::PANEL_PAIRS;
use crate::dtype::bf16;
use crate::ops::cpu::matrix::MatRef;
use std::arch::x86_64::*;

/// Columns of a strip of b.
pub const COLS: usize = 32;

/// The instructions that packing needs; whoever has one may pack.
#[derive(Clone, Copy)]
pub struct Packer(());

impl Packer {
    /// A packer, if this CPU has the instructions.
    pub fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        found.then_some(Self(()))
    }

    /// Packs a `(rows, terms)` with at most `2·PANEL_PAIRS` terms, filled up with zeros to a multiple
    /// of 16 pairs.
    pub fn pack_a(self, a: MatRef<bf16>, to: &mut [u32]) {
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

    /// Packs b `(terms, cols)`, filled up with zeros to whole strips and to `pairs`.
    pub fn pack_b(self, b: MatRef<bf16>, pairs: usize, to: &mut [u32]) {
        let (terms, cols) = b.shape();
        assert!(terms <= 2 * pairs && to.len() >= pairs * cols.next_multiple_of(COLS));
        // SAFETY: as above.
        unsafe {
            if b.col_stride() == 1 {
                pack_b_rows(b, pairs, to);
            } else {
                pack_b_columns(b, pairs, to);
            }
        }
    }
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
/// As asserted by [`Packer::pack_a`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_a_rows(a: MatRef<bf16>, to: &mut [u32]) {
    let (rows, terms) = a.shape();
    for (i, to) in to.chunks_exact_mut(PANEL_PAIRS).take(rows).enumerate() {
        let from = a.row(i);
        for k in (0..terms).step_by(32) {
            // SAFETY: the numbers from k to the end of the row; a row of 512 pairs has room for 16.
            unsafe {
                let pairs = load(from.as_ptr().add(k), (terms - k).min(32));
                _mm512_storeu_si512(to.as_mut_ptr().add(k / 2).cast(), pairs);
            }
        }
    }
}

/// Columns with their rows side by side are transposed, 16 pairs of terms of 16 rows at a time.
///
/// # Safety
/// As asserted by [`Packer::pack_a`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_a_columns(a: MatRef<bf16>, to: &mut [u32]) {
    let (rows, terms) = a.shape();
    let columns = a.t();
    for row in (0..rows).step_by(32) {
        let len = (rows - row).min(32);
        for k in (0..terms).step_by(32) {
            let [mut low, mut high] = [[_mm512_setzero_si512(); 16]; 2];
            let pairs = low.iter_mut().zip(&mut high).enumerate();
            for (pair, (low, high)) in pairs.take((terms - k).div_ceil(2)) {
                let term = k + 2 * pair;
                // SAFETY: `len` numbers of a column; one that is not there is zeros.
                let [first, second] = unsafe { load_two(columns, term, row, len) };
                [*low, *high] = interleave(first, second);
            }
            for (half, pairs_of_rows) in [low, high].into_iter().enumerate() {
                let row = row + half * 16;
                for (i, pairs_of_row) in transpose(pairs_of_rows).into_iter().enumerate() {
                    if row + i < rows {
                        // SAFETY: row + i < rows; a row of 512 pairs has room for 16.
                        unsafe {
                            let to = to.as_mut_ptr().add((row + i) * PANEL_PAIRS + k / 2);
                            _mm512_storeu_si512(to.cast(), pairs_of_row);
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
/// A row has them; `len` is at most 32.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_two(rows: MatRef<bf16>, i: usize, start: usize, len: usize) -> [__m512i; 2] {
    // SAFETY: by the caller.
    unsafe {
        [i, i + 1].map(|i| match i < rows.shape().0 {
            true => load(rows.row(i).as_ptr().add(start), len),
            false => _mm512_setzero_si512(),
        })
    }
}

/// Rows with their columns side by side: two rows become one of pairs.
///
/// # Safety
/// As asserted by [`Packer::pack_b`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_b_rows(b: MatRef<bf16>, pairs: usize, to: &mut [u32]) {
    let cols = b.shape().1;
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
/// As asserted by [`Packer::pack_b`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_b_columns(b: MatRef<bf16>, pairs: usize, to: &mut [u32]) {
    let (terms, cols) = b.shape();
    let columns = b.t();
    for (half_strip, col) in (0..cols.next_multiple_of(COLS)).step_by(16).enumerate() {
        let strip = (half_strip / 2) * pairs * COLS + (half_strip % 2) * 16;
        for k in (0..2 * pairs).step_by(32) {
            let len = terms.saturating_sub(k).min(32);
            let mut pairs_of_columns = [_mm512_setzero_si512(); 16];
            for (j, pairs) in pairs_of_columns.iter_mut().enumerate() {
                if col + j < cols && len > 0 {
                    // SAFETY: `len` numbers of column col + j from k on.
                    *pairs = unsafe { load(columns.row(col + j).as_ptr().add(k), len) };
                }
            }
            let rows = transpose(pairs_of_columns);
            for (pair, row) in rows.into_iter().enumerate().take(pairs - k / 2) {
                // SAFETY: k / 2 + pair < pairs, and the strip has 32 numbers for each pair.
                unsafe {
                    let to = to.as_mut_ptr().add(strip + (k / 2 + pair) * COLS);
                    _mm512_storeu_si512(to.cast(), row);
                }
            }
        }
    }
}
