//! Strided matrix views and their product, on the `gemm` crate. The only place where the CPU
//! backend hands raw pointers on.

use super::element::{Buffer, Element};
use super::vector::vectorised;
use gemm::Parallelism;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix to read.
#[derive(Clone, Copy)]
pub struct MatRef<'a, T = f32> {
    data: *const T,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    life: PhantomData<&'a [T]>,
}

/// A matrix to write. Rows and columns can be split off as views of their own.
pub struct MatMut<'a, T = f32> {
    data: *mut T,
    rows: usize,
    cols: usize,
    row_stride: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: a view is a slice with a shape; it is as shareable and movable as `&[T]`.
unsafe impl<T: Sync> Send for MatRef<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for MatRef<'_, T> {}
// SAFETY: a writable view owns its elements exclusively, as `&mut [T]` does.
unsafe impl<T: Send> Send for MatMut<'_, T> {}

impl<'a, T> MatRef<'a, T> {
    /// The rows × cols matrix that fills `data`.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self {
            data: data.as_ptr(),
            rows,
            cols,
            row_stride: cols,
            col_stride: 1,
            life: PhantomData,
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the rows.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows);
        // SAFETY: start ≤ rows, so the pointer stays in the slice or one past its end.
        let data = unsafe {
            self.data
                .add(offset(self.rows, range.start, self.row_stride))
        };
        Self {
            data,
            rows: range.len(),
            ..self
        }
    }

    /// Some of the columns.
    pub fn cols(self, range: Range<usize>) -> Self {
        self.t().rows(range).t()
    }

    /// Numbers from one of a row to the next.
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }

    /// Where the first number lies, and numbers from one row to the next.
    pub fn as_ptr(&self) -> (*const T, usize) {
        (self.data, self.row_stride)
    }

    /// One row of a matrix whose rows are contiguous.
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows && self.col_stride == 1);
        // SAFETY: row i and its `cols` elements lie in the slice that the view was made of.
        unsafe { std::slice::from_raw_parts(self.data.add(i * self.row_stride), self.cols) }
    }
}

impl<'a, T: Element> MatRef<'a, T> {
    /// A copy in float32, its numbers in the order in which they lie in memory.
    pub fn widen(self, buffer: &mut Buffer) -> MatRef<'_> {
        if self.col_stride != 1 {
            return self.t().widen(buffer).t();
        }
        let (rows, cols) = (self.rows, self.cols);
        let wide = buffer.first(rows * cols);
        vectorised(
            #[inline(always)]
            || {
                for (i, wide) in wide.chunks_exact_mut(cols.max(1)).enumerate() {
                    T::widen(self.row(i), wide);
                }
            },
        );
        MatRef::new(wide, rows, cols)
    }
}

impl<T: Element> MatMut<'_, T> {
    /// Overwrites rows from `first` on with the numbers of `wide`, rounded.
    pub fn narrow_rows(&mut self, first: usize, mut wide: MatMut) {
        vectorised(
            #[inline(always)]
            || {
                for i in 0..wide.rows {
                    T::narrow(wide.row_mut(i), self.row_mut(first + i));
                }
            },
        );
    }
}

impl MatMut<'_> {
    /// Sets every number to zero.
    pub fn clear(&mut self) {
        (0..self.rows).for_each(|i| self.row_mut(i).fill(0.0));
    }

    /// Overwrites it with the first rows and columns of `from`, or adds them.
    pub fn write(&mut self, write: Write, from: MatRef) {
        for i in 0..self.rows {
            let row = self.row_mut(i).iter_mut().zip(from.row(i));
            match write {
                Write::Replace => row.for_each(|(to, &from)| *to = from),
                Write::Add => row.for_each(|(to, &from)| *to += from),
            }
        }
    }
}

impl<'a, T> MatMut<'a, T> {
    /// The rows × cols matrix that fills `data`.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self {
            data: data.as_mut_ptr(),
            rows,
            cols,
            row_stride: cols,
            life: PhantomData,
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Splits into the first `at` rows and the rest.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows);
        // SAFETY: at ≤ rows; the two views share no row.
        let below = unsafe { self.data.add(offset(self.rows, at, self.row_stride)) };
        (
            Self { rows: at, ..self },
            Self {
                data: below,
                rows: self.rows - at,
                ..self
            },
        )
    }

    /// Splits into the first `at` columns and the rest.
    pub fn split_cols(self, at: usize) -> (Self, Self) {
        assert!(at <= self.cols);
        // SAFETY: at ≤ cols; the two views share no column.
        let right = unsafe { self.data.add(offset(self.cols, at, 1)) };
        (
            Self { cols: at, ..self },
            Self {
                data: right,
                cols: self.cols - at,
                ..self
            },
        )
    }

    /// Some of the rows and columns, borrowed.
    pub fn block(&mut self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'_, T> {
        let (_, below) = self.reborrow().split_rows(rows.start);
        let (block, _) = below.split_rows(rows.len());
        let (_, right) = block.split_cols(cols.start);
        right.split_cols(cols.len()).0
    }

    /// Where the first number lies, and numbers from one row to the next.
    pub fn as_mut_ptr(&mut self) -> (*mut T, usize) {
        (self.data, self.row_stride)
    }

    /// A shorter borrow of the same elements.
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut {
            life: PhantomData,
            ..*self
        }
    }

    /// One row.
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows);
        // SAFETY: row i and its `cols` elements belong to this view alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.row_stride), self.cols) }
    }
}

/// Where element `i` of `n` starts; nothing is added when the end is meant, as strided views do not
/// reach to the end of the slice's last row.
fn offset(n: usize, i: usize, stride: usize) -> usize {
    if i == n { 0 } else { i * stride }
}

/// What happens to the old content of the product's destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is overwritten.
    Replace,
    /// The product is added to it.
    Add,
}

/// c = scale · a·b, or c += scale · a·b. Runs on the threads of the current pool when `parallel`.
pub fn matmul(c: MatMut, write: Write, scale: f32, a: MatRef, b: MatRef, parallel: bool) {
    assert_eq!(
        (c.rows, c.cols, a.cols),
        (a.rows, b.cols, b.rows),
        "shapes of a matrix product"
    );
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let parallelism = if parallel {
        Parallelism::Rayon(rayon::current_num_threads())
    } else {
        Parallelism::None
    };
    // SAFETY: the views lie in live slices with the shapes checked above, and `c` is exclusive.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data,
            1,
            c.row_stride as isize,
            write == Write::Add,
            a.data,
            a.col_stride as isize,
            a.row_stride as isize,
            b.data,
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
