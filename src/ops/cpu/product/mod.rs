//! Matrix products of half-precision operands: multiplied a panel at a time, by instructions for pairs
//! of bf16 numbers where the CPU has them and else widened, summed in float32, and rounded once.
//!
//! The destination is cut into tiles. One task computes one tile from start to end. Each of its sums
//! runs over the terms in an order that does not depend on the tile, so the number of threads does not
//! show in the bits. What a thread keeps is bounded whatever the sizes of the matrices.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod choice;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod panels;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

pub use choice::Bf16Kernel;

use super::element::{Buffer, Element, with_buffers};
use super::matrix::{MatMut, MatRef, Write, matmul};
use crate::dtype::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Rows and columns of a tile whose operands are widened, and terms that are widened at a time: two
/// panels of at most 1 MiB that stay in the second cache while they are multiplied.
const WIDENED_TILE: [usize; 2] = [256, 256];
const PANEL: usize = 1024;

/// Tiles of a thread from which on they need not be a multiple of the threads.
const TILES_PER_THREAD: usize = 4;

/// How a destination is cut into tiles: a number of parts of its rows and of its columns, of about the
/// same size and of whole units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    lengths: [usize; 2],
    units: [usize; 2],
    parts: [usize; 2],
}

impl Cut {
    /// Tiles of operands that are widened, whatever the number of threads.
    pub fn widened<T>(a: MatRef<T>, b: MatRef<T>) -> Self {
        let lengths = [a.shape().0, b.shape().1];
        Self::for_threads(lengths, WIDENED_TILE, [1, 1], 1)
    }

    /// Tiles of at most `most` rows and columns, as large as keeps the threads equally busy.
    fn for_threads(
        lengths: [usize; 2],
        most: [usize; 2],
        units: [usize; 2],
        threads: usize,
    ) -> Self {
        let mut parts = [0, 1].map(|i| lengths[i].div_ceil(most[i]).max(1));
        let size = |parts: [usize; 2], i: usize| lengths[i] / parts[i];
        loop {
            let tiles = parts[0] * parts[1];
            if tiles % threads == 0 || tiles >= TILES_PER_THREAD * threads {
                break;
            }
            let longer = usize::from(size(parts, 1) > size(parts, 0));
            if size(parts, longer) < 4 * units[longer] {
                break;
            }
            parts[longer] += 1;
        }
        Self {
            lengths,
            units,
            parts,
        }
    }

    /// The parts of the rows (0) or columns (1).
    fn ranges(self, i: usize) -> impl Iterator<Item = Range<usize>> {
        let Self {
            lengths,
            units,
            parts,
        } = self;
        let bound = move |part: usize| {
            (lengths[i].div_ceil(units[i]) * part / parts[i] * units[i]).min(lengths[i])
        };
        (0..parts[i]).map(move |part| bound(part)..bound(part + 1))
    }
}

/// `c = a·b`, where `finish(row, first column, sums)` may change the float32 sums of a part of a row
/// before they are rounded.
pub fn product<T: Element, C: Element>(
    c: MatMut<C>,
    a: MatRef<T>,
    b: MatRef<T>,
    finish: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let cut = T::cut(a, b);
    for_each_tile(c, cut, |[sums, buffers @ ..], rows, cols, tile| {
        let (a, b) = (a.rows(rows.clone()), b.cols(cols.clone()));
        C::write_rows(tile, sums, |sums, done| {
            T::multiply(sums, Write::Replace, a, b, buffers, |first, mut sums| {
                for i in 0..sums.shape().0 {
                    finish(rows.start + first + i, cols.start, sums.row_mut(i));
                }
                done(first, sums);
            });
        });
    });
}

/// `c += a·b`.
pub fn add_product<T: Element>(c: MatMut, a: MatRef<T>, b: MatRef<T>) {
    let cut = T::cut(a, b);
    for_each_tile(c, cut, |[_, buffers @ ..], rows, cols, tile| {
        let (a, b) = (a.rows(rows), b.cols(cols));
        T::multiply(tile, Write::Add, a, b, buffers, |_, _| ());
    });
}

/// Does `$packed` with the chosen kernel for pairs of bf16 numbers, or `$widened`.
macro_rules! with_kernel {
    ($kernel:ident => $packed:expr, $widened:expr) => {
        match Bf16Kernel::chosen_or_widened() {
            #[cfg(target_arch = "x86_64")]
            Bf16Kernel::Amx($kernel) => $packed,
            #[cfg(target_arch = "x86_64")]
            Bf16Kernel::Avx512Bf16($kernel) => $packed,
            Bf16Kernel::Widened => $widened,
        }
    };
}

/// [`Element::multiply`] of bf16.
pub fn multiply_bf16(
    c: MatMut,
    write: Write,
    a: MatRef<bf16>,
    b: MatRef<bf16>,
    buffers: [&mut Buffer; 3],
    done: impl FnMut(usize, MatMut),
) {
    with_kernel!(
        kernel => panels::multiply(&kernel, c, write, a, b, buffers, done),
        multiply_widened(c, write, a, b, buffers, done)
    )
}

/// [`Element::cut`] of bf16.
pub fn cut_bf16(a: MatRef<bf16>, b: MatRef<bf16>) -> Cut {
    with_kernel!(kernel => panels::cut(&kernel, a, b), Cut::widened(a, b))
}

/// The product of a tile, its operands widened to float32 a panel at a time.
pub fn multiply_widened<T: Element>(
    mut c: MatMut,
    write: Write,
    a: MatRef<T>,
    b: MatRef<T>,
    [buffer_a, buffer_b, _]: [&mut Buffer; 3],
    mut done: impl FnMut(usize, MatMut),
) {
    let terms = a.shape().1;
    // At least once, as a sum of no terms is zero.
    for start in (0..terms.max(1)).step_by(PANEL) {
        let panel = start..(start + PANEL).min(terms);
        let write = if start == 0 { write } else { Write::Add };
        let a = T::read_matrix(a.cols(panel.clone()), buffer_a);
        let b = T::read_matrix(b.rows(panel), buffer_b);
        matmul(c.reborrow(), write, 1.0, a, b, false);
    }
    done(0, c);
}

/// Runs `f(buffers, rows, columns, tile)` for each tile, on the threads of the current pool.
fn for_each_tile<C: Element>(
    mut c: MatMut<C>,
    cut: Cut,
    f: impl Fn([&mut Buffer; 4], Range<usize>, Range<usize>, MatMut<C>) + Sync,
) {
    let mut tiles = Vec::with_capacity(cut.parts[0] * cut.parts[1]);
    for rows in cut.ranges(0) {
        let (mut right, below) = c.split_rows(rows.len());
        c = below;
        for cols in cut.ranges(1) {
            let (tile, rest) = right.split_cols(cols.len());
            right = rest;
            tiles.push((rows.clone(), cols, tile));
        }
    }
    tiles
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(rows, cols, tile)| {
            with_buffers(|[a, b, c, d, ..]| f([a, b, c, d], rows, cols, tile));
        });
}
