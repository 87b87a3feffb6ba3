//! Strided matrix views and their product, on the `gemm` crate. The only place where the CPU
//! backend hands raw pointers on.

use gemm::Parallelism;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix to read.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    data: *const f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    life: PhantomData<&'a [f32]>,
}

/// A matrix to write. Rows and columns can be split off as views of their own.
pub struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view is a slice with a shape; it is as shareable and movable as `&[f32]`.
unsafe impl Send for MatRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for MatRef<'_> {}
// SAFETY: a writable view owns its elements exclusively, as `&mut [f32]` does.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatRef<'a> {
    /// The rows × cols matrix that fills `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
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

    /// One row of a matrix whose rows are contiguous.
    pub fn row(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows && self.col_stride == 1);
        // SAFETY: row i and its `cols` elements lie in the slice that the view was made of.
        unsafe { std::slice::from_raw_parts(self.data.add(i * self.row_stride), self.cols) }
    }
}

impl<'a> MatMut<'a> {
    /// The rows × cols matrix that fills `data`.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self {
            data: data.as_mut_ptr(),
            rows,
            cols,
            row_stride: cols,
            life: PhantomData,
        }
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

    /// A shorter borrow of the same elements.
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut {
            life: PhantomData,
            ..*self
        }
    }

    /// One row.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
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
