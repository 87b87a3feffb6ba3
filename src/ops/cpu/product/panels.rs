//! A tile of a bf16 matrix product from panels of pairs of neighbouring terms, in the order in which a
//! kernel reads them whatever way the operands lie. Rows of a whose terms lie side by side are read
//! where they are; all else is copied into that order.
//!
//! ```text
//! a   row-major, `stride` pairs from one row to the next     (rows, pairs)
//! b   strips of COLS columns, the pairs of all of a term     (strips, pairs, COLS)
//! ```

use super::Cut;
use super::pack::{COLS, Packer};
use crate::dtype::bf16;
use crate::ops::cpu::element::Buffer;
use crate::ops::cpu::matrix::{MatMut, MatRef, Write};

/// Pairs of terms that are packed at a time. With 320 columns a panel of b is 640 KiB and stays in the
/// second cache; 12 rows of a are 24 KiB and stay in the first.
pub const PANEL_PAIRS: usize = 512;

/// Rows of a that are packed at a time, at least.
const GROUP: usize = 96;

/// Multiplies packed panels.
pub trait Kernel {
    /// Rows of what one call computes; it has COLS columns.
    const ROWS: usize;
    /// What the number of pairs is a multiple of.
    const PAIRS: usize;

    /// Sets this thread up for calls of [`Kernel::multiply`].
    fn begin(&self) {}

    /// Ends what [`Kernel::begin`] began.
    fn end(&self) {}

    /// What packs its operands.
    fn packer(&self) -> Packer;

    /// The product of ROWS rows of a, `stride` numbers from one to the next, and a strip of b, `pairs`
    /// deep, overwrites c `(ROWS, COLS)` or is added to it.
    ///
    /// # Safety
    /// `pairs` pairs of each row of a can be read.
    unsafe fn multiply(
        &self,
        pairs: usize,
        a: (*const bf16, usize),
        b: &[u32],
        c: MatMut,
        write: Write,
    );
}

/// Columns of a tile at most, so that b's panel stays in the second cache.
const TILE_COLS: usize = 320;

/// Rows of a tile at most: b is packed once for them. Where a is packed too, once for each tile of
/// columns, tiles need not be that high.
const TILE_ROWS: usize = 2016;
const TILE_ROWS_PACKED: usize = 504;

/// How the product of a and b is cut into tiles for the threads of the current pool.
pub fn cut<K: Kernel>(_: &K, a: MatRef<bf16>, b: MatRef<bf16>) -> Cut {
    let tile_rows = match a.col_stride() {
        1 => TILE_ROWS,
        _ => TILE_ROWS_PACKED,
    };
    let most = [tile_rows, TILE_COLS];
    let lengths = [a.shape().0, b.shape().1];
    Cut::for_threads(lengths, most, [K::ROWS, COLS], rayon::current_num_threads())
}

/// `c = a·b` or `c += a·b`, on this thread. Each sum runs over the terms in order, so that it does not
/// depend on the size of the tile. `done(first row, rows)` is called when rows of c are complete.
pub fn multiply<K: Kernel>(
    kernel: &K,
    mut c: MatMut,
    write: Write,
    a: MatRef<bf16>,
    b: MatRef<bf16>,
    [buffer_a, buffer_b, buffer_c]: [&mut Buffer; 3],
    mut done: impl FnMut(usize, MatMut),
) {
    let (rows, terms) = a.shape();
    let cols = b.shape().1;
    if terms == 0 {
        if write == Write::Replace {
            c.clear();
        }
        return done(0, c);
    }
    // Panels of the same depth, as far as the kernel's units allow.
    let unit = 2 * K::PAIRS;
    let depth = terms
        .div_ceil(terms.div_ceil(2 * PANEL_PAIRS))
        .next_multiple_of(unit);
    let packed_b = buffer_b.aligned(cols.next_multiple_of(COLS) * depth / 2);
    for start in (0..terms).step_by(depth) {
        let panel = start..(start + depth).min(terms);
        let pairs = panel.len().next_multiple_of(unit) / 2;
        let write = if start == 0 { write } else { Write::Add };
        let last = panel.end == terms;
        kernel
            .packer()
            .pack_b(b.rows(panel.clone()), pairs, packed_b);
        kernel.begin();
        let a = a.cols(panel);
        let mut strip = |row: usize, height: usize, a: (*const bf16, usize)| {
            for (strip, col) in (0..cols).step_by(COLS).enumerate() {
                let b = &packed_b[strip * pairs * COLS..][..pairs * COLS];
                let width = COLS.min(cols - col);
                let mut c = c.block(row..row + height, col..col + width);
                if (height, width) == (K::ROWS, COLS) {
                    // SAFETY: by the callers below.
                    unsafe { kernel.multiply(pairs, a, b, c, write) };
                } else {
                    let block = buffer_c.first(K::ROWS * COLS);
                    let whole = MatMut::new(block, K::ROWS, COLS);
                    // SAFETY: by the callers below.
                    unsafe { kernel.multiply(pairs, a, b, whole, Write::Replace) };
                    c.write(write, MatRef::new(block, K::ROWS, COLS));
                }
            }
            if last {
                done(row, c.block(row..row + height, 0..cols));
            }
        };
        // Whole strips of rows with whole units of terms lie as the kernel reads them.
        let in_place = match a.col_stride() == 1 && a.shape().1.is_multiple_of(unit) {
            true => rows - rows % K::ROWS,
            false => 0,
        };
        for row in (0..in_place).step_by(K::ROWS) {
            // The kernel reads rows `row` to `row + ROWS`, which are there, and their terms.
            strip(row, K::ROWS, a.rows(row..row + K::ROWS).as_ptr());
        }
        let group = GROUP.next_multiple_of(K::ROWS);
        for first in (in_place..rows).step_by(group) {
            let group = first..(first + group).min(rows);
            let packed = buffer_a.aligned(group.len().next_multiple_of(K::ROWS) * PANEL_PAIRS);
            kernel.packer().pack_a(a.rows(group.clone()), packed);
            for row in group.step_by(K::ROWS) {
                // The kernel reads ROWS rows of what was packed; those beyond `rows` are not used.
                let a = &packed[(row - first) * PANEL_PAIRS..];
                let height = K::ROWS.min(rows - row);
                strip(row, height, (a.as_ptr().cast(), 2 * PANEL_PAIRS));
            }
        }
        kernel.end();
    }
}
