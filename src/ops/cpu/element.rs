//! Number formats in memory. Arithmetic is float32 everywhere: rows in a half-precision format are
//! widened into a small buffer of the thread, computed on, and rounded once when they are stored;
//! float32 rows are computed on where they lie.

use super::matrix::{MatMut, MatRef, Write};
use super::product::{self, Cut};
use crate::dtype::{DType, bf16, f16};
use half::slice::HalfFloatSliceExt;
use std::cell::RefCell;

/// A number format that tensors are stored in.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// Its name.
    const DTYPE: DType;

    /// Numbers of this format as float32, exactly.
    fn widen(from: &[Self], to: &mut [f32]);

    /// Float32 numbers in this format: to nearest, ties to even.
    fn narrow(from: &[f32], to: &mut [Self]);

    /// A row as float32: itself, or widened into the buffer.
    #[inline(always)]
    fn read<'a>(row: &'a [Self], buffer: &'a mut Buffer) -> &'a [f32] {
        let wide = buffer.first(row.len());
        Self::widen(row, wide);
        wide
    }

    /// Lets `f` overwrite a row with float32 numbers, and rounds them.
    #[inline(always)]
    fn write<R>(row: &mut [Self], buffer: &mut Buffer, f: impl FnOnce(&mut [f32]) -> R) -> R {
        let wide = buffer.first(row.len());
        let result = f(wide);
        Self::narrow(wide, row);
        result
    }

    /// Lets `f` change a row's numbers as float32, and rounds them.
    #[inline(always)]
    fn update<R>(row: &mut [Self], buffer: &mut Buffer, f: impl FnOnce(&mut [f32]) -> R) -> R {
        let wide = buffer.first(row.len());
        Self::widen(row, wide);
        let result = f(wide);
        Self::narrow(wide, row);
        result
    }

    /// A matrix as float32: itself, or widened into the buffer.
    fn read_matrix<'a>(matrix: MatRef<'a, Self>, buffer: &'a mut Buffer) -> MatRef<'a> {
        matrix.widen(buffer)
    }

    /// How the product of a and b is cut into tiles.
    fn cut(a: MatRef<Self>, b: MatRef<Self>) -> Cut {
        Cut::widened(a, b)
    }

    /// `c = a·b` or `c += a·b` in float32, on this thread; calls `done(first row, rows)` when rows of
    /// c are complete.
    fn multiply(
        c: MatMut,
        write: Write,
        a: MatRef<Self>,
        b: MatRef<Self>,
        buffers: [&mut Buffer; 3],
        done: impl FnMut(usize, MatMut),
    ) {
        product::multiply_widened(c, write, a, b, buffers, done);
    }

    /// Lets `f(sums, done)` overwrite a matrix with float32 numbers; rows that it hands to
    /// `done(first row, rows)` are rounded while they are in the first cache.
    fn write_rows(
        mut matrix: MatMut<'_, Self>,
        buffer: &mut Buffer,
        f: impl FnOnce(MatMut<'_>, &mut dyn FnMut(usize, MatMut)),
    ) {
        let (rows, cols) = matrix.shape();
        let wide = MatMut::new(buffer.first(rows * cols), rows, cols);
        f(wide, &mut |first, rows| matrix.narrow_rows(first, rows));
    }

    /// Lets `f` overwrite a matrix with float32 numbers, and rounds them.
    fn write_matrix(matrix: MatMut<'_, Self>, buffer: &mut Buffer, f: impl FnOnce(MatMut<'_>)) {
        Self::write_rows(matrix, buffer, |mut wide, done| {
            f(wide.reborrow());
            done(0, wide);
        });
    }
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn widen(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn read<'a>(row: &'a [f32], _: &'a mut Buffer) -> &'a [f32] {
        row
    }

    #[inline(always)]
    fn write<R>(row: &mut [f32], _: &mut Buffer, f: impl FnOnce(&mut [f32]) -> R) -> R {
        f(row)
    }

    #[inline(always)]
    fn update<R>(row: &mut [f32], _: &mut Buffer, f: impl FnOnce(&mut [f32]) -> R) -> R {
        f(row)
    }

    fn read_matrix<'a>(matrix: MatRef<'a>, _: &'a mut Buffer) -> MatRef<'a> {
        matrix
    }

    fn write_rows(
        matrix: MatMut<'_>,
        _: &mut Buffer,
        f: impl FnOnce(MatMut<'_>, &mut dyn FnMut(usize, MatMut)),
    ) {
        f(matrix, &mut |_, _| ());
    }
}

/// Whole-number arithmetic on the bits, which vectorises on every instruction set.
impl Element for bf16 {
    const DTYPE: DType = DType::BF16;

    #[inline(always)]
    fn widen(from: &[bf16], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [bf16]) {
        assert_eq!(from.len(), to.len());
        for (to, from) in to.iter_mut().zip(from) {
            let bits = from.to_bits();
            // Half of the last place that is kept, and one less when it is even.
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let quiet = bits >> 16 | 0x40;
            *to = bf16::from_bits(if from.is_nan() { quiet } else { rounded } as u16);
        }
    }

    fn cut(a: MatRef<bf16>, b: MatRef<bf16>) -> Cut {
        product::cut_bf16(a, b)
    }

    fn multiply(
        c: MatMut,
        write: Write,
        a: MatRef<bf16>,
        b: MatRef<bf16>,
        buffers: [&mut Buffer; 3],
        done: impl FnMut(usize, MatMut),
    ) {
        product::multiply_bf16(c, write, a, b, buffers, done);
    }
}

/// The conversion instructions of the CPU where it has them.
impl Element for f16 {
    const DTYPE: DType = DType::F16;

    #[inline(always)]
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

/// `by_format!(dtype, T => expression)`: the expression compiled for each number format, and run for
/// the one that `dtype` names. `by_format!(dtype, f32 => other, T => expression)` has another
/// expression for float32.
macro_rules! by_format {
    ($dtype:expr, f32 => $other:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F32 => $other,
            $crate::dtype::DType::BF16 => {
                type $T = $crate::dtype::bf16;
                $body
            }
            $crate::dtype::DType::F16 => {
                type $T = $crate::dtype::f16;
                $body
            }
        }
    };
    ($dtype:expr, $T:ident => $body:expr) => {
        $crate::ops::cpu::element::by_format!(
            $dtype,
            f32 => {
                type $T = f32;
                $body
            },
            $T => $body
        )
    };
}
pub(in crate::ops) use by_format;

/// Float32 numbers on their way to or from a half-precision row.
#[derive(Default)]
pub struct Buffer(Vec<f32>);

impl Buffer {
    /// The first `len` 32-bit words from an address that whole cache lines and registers start at.
    pub fn aligned(&mut self, len: usize) -> &mut [u32] {
        const LINE: usize = 64;
        let words: &mut [u32] = bytemuck::cast_slice_mut(self.first(len + LINE / 4));
        let start = words.as_ptr().align_offset(LINE);
        &mut words[start..start + len]
    }

    /// The first `len` numbers of another format, with whatever they were last.
    pub fn of<T: Element>(&mut self, len: usize) -> &mut [T] {
        let words = (len * size_of::<T>()).div_ceil(size_of::<f32>());
        &mut bytemuck::cast_slice_mut(self.first(words))[..len]
    }

    /// The first `len` numbers, with whatever they were last.
    pub fn first(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len {
            self.0.resize(len, 0.0);
        }
        &mut self.0[..len]
    }
}

/// Buffers of one thread.
const BUFFERS: usize = 12;

thread_local! {
    /// Kept from task to task; each grows to the largest row or panel that it held.
    static THREAD: RefCell<[Buffer; BUFFERS]> = RefCell::default();
}

/// Lends this thread's buffers. `f` must not wait for other tasks: they may want the same.
pub fn with_buffers<R>(f: impl FnOnce(&mut [Buffer; BUFFERS]) -> R) -> R {
    THREAD.with_borrow_mut(f)
}
