//! Matrix products of half-precision operands: multiplied a panel at a time, by instructions for pairs
//! of bf16 numbers where the CPU has them and else widened, summed in float32, and rounded once.
//!
//! The destination is cut into tiles. One task computes one tile from start to end. Each of its sums
//! runs over the terms in an order that does not depend on the tile, so the number of threads does not
//! show in the bits. What a thread keeps is bounded whatever the sizes of the matrices.

#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod panels;

use super::element::{Buffer, Element, with_buffers};
use super::matrix::{MatMut, MatRef, Write, matmul};
use crate::dtype::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Rows and columns of a tile whose operands are widened, and terms that are widened at a time: two
/// panels of at most 1 MiB that stay in the second cache while they are multiplied.
pub const WIDENED_TILE: [usize; 2] = [256, 256];
const PANEL: usize = 1024;

/// `c = a·b`, where `finish(row, first column, sums)` may change the float32 sums of a part of a row
/// before they are rounded.
pub fn product<T: Element, C: Element>(
    c: MatMut<C>,
    a: MatRef<T>,
    b: MatRef<T>,
    finish: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let tile = T::tile(c.shape());
    for_each_tile(c, tile, |[sums, buffers @ ..], rows, cols, tile| {
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
    let tile = T::tile(c.shape());
    for_each_tile(c, tile, |[_, buffers @ ..], rows, cols, tile| {
        let (a, b) = (a.rows(rows), b.cols(cols));
        T::multiply(tile, Write::Add, a, b, buffers, |_, _| ());
    });
}

/// Does `$packed` with the kernel for pairs of bf16 numbers that this CPU has, else `$widened`.
macro_rules! with_kernel {
    ($kernel:ident => $packed:expr, $widened:expr) => {{
        #[cfg(target_arch = "x86_64")]
        if let Some($kernel) = avx512_bf16::Avx512Bf16::new() {
            return $packed;
        }
        $widened
    }};
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

/// [`Element::tile`] of bf16.
pub fn tile_of_bf16(shape: (usize, usize)) -> [usize; 2] {
    with_kernel!(kernel => panels::tile(&kernel, shape), WIDENED_TILE)
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
    [tile_rows, tile_cols]: [usize; 2],
    f: impl Fn([&mut Buffer; 4], Range<usize>, Range<usize>, MatMut<C>) + Sync,
) {
    let (rows, cols) = c.shape();
    let mut tiles = Vec::with_capacity(rows.div_ceil(tile_rows) * cols.div_ceil(tile_cols));
    for row in (0..rows).step_by(tile_rows) {
        let rows = row..(row + tile_rows).min(rows);
        let (mut right, below) = c.split_rows(rows.len());
        c = below;
        for col in (0..cols).step_by(tile_cols) {
            let cols = col..(col + tile_cols).min(cols);
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
